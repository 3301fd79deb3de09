/* The C ABI of hotloop: declarations only. cffi parses this very file, so it holds no #include, no #if and no
   extern "C"; C users include hotloop.h, which adds them.

   How a recurrence is run:

     hotloop_spec spec = {HOTLOOP_LSTM, HOTLOOP_FLOAT32, I, H, H};
     hotloop_plan plan;                                        a value: copy it, keep it, drop it
     hotloop_make_plan(&plan, &spec, HOTLOOP_INFERENCE, 1, T, B, threads);
     workspace = malloc(hotloop_workspace_bytes(&plan));
     while ((status = hotloop_forward(&plan, &buffers, NULL, workspace, bytes)) == HOTLOOP_AGAIN) {}

   Letters in brackets: T seq_len, B batch_size, I input_size, H hidden_size, P output_size, G gates, S saved arrays a unit.
   All strides are in elements. A feature stride is always 1. With `offsets` the sequences are flat: [T,B,*] is then
   [offsets[B],*], whose rows are stride_t apart, and sequence b is its rows offsets[b] to offsets[b+1]-1. Weights, biases
   and gates are in PyTorch's order and layout:
     RNN   G = 1, S = 0
     LSTM  G = 4, S = 4   gates i f g o        saved i f g o
     GRU   G = 3, S = 4   gates r z n          saved r z n and q, h's share of n (reset after the product)
     GRU_RESET_BEFORE     G = 3, S = 3         gates r z n, saved r z n
     LSTM_PROJECTED       G = 4, S = 4         as LSTM, h = weight_hr (o * tanh(c))
   P, the width of h, is H; of cells that project h, which have a weight_hr, it is what their spec says.

   Owners and threads: the caller owns every struct and every array, and they need to live for the call only. Nothing is
   allocated here except the threads of the pool, at their first use. Every function may be called from several threads at
   once, also with one spec, plan, weights, packed block or executor, which are only read. Buffers, gradients, results and
   the workspace belong to one running call.
   Aliases: what a call writes must not overlap with anything else it reads or writes, except that h_n may be h0 and c_n
   may be c0 in inference without reset_to_initial. Arrays that are only read may overlap with each other.            */

enum { HOTLOOP_ABI_VERSION = 3 }; /* of this header; hotloop_abi_version() is that of the library */

enum {                            /* what every function returns that says int32_t status */
  HOTLOOP_OK = 0,
  HOTLOOP_AGAIN = 1,              /* not an error: call again with the same arguments, the cursors have advanced */
  HOTLOOP_BAD_ARGUMENT = 2,       /* an argument that would corrupt memory, or that the plan was not made for */
  HOTLOOP_TOO_LARGE = 3,          /* a size whose byte count overflows */
  HOTLOOP_WORKSPACE_TOO_SMALL = 4,
  HOTLOOP_UNKNOWN_ISA = 5,        /* HOTLOOP_ISA names an instruction set that is unknown or not to be had here */
  HOTLOOP_PACKED_ELSEWHERE = 6,   /* weights packed for another shape, type, instruction set or version */
  HOTLOOP_PLANNED_ELSEWHERE = 7   /* a plan of another version or instruction set, or no plan at all */
};

enum { HOTLOOP_RNN_TANH = 0, HOTLOOP_RNN_RELU = 1, HOTLOOP_LSTM = 2, HOTLOOP_GRU = 3,
       HOTLOOP_GRU_RESET_BEFORE = 4, HOTLOOP_LSTM_PROJECTED = 5, HOTLOOP_CELL_COUNT = 6 };
enum { HOTLOOP_FLOAT32 = 0, HOTLOOP_FLOAT64 = 1, HOTLOOP_DTYPE_COUNT = 2 };

/* What a recurrence computes. */
typedef struct {
  int32_t cell;                   /* HOTLOOP_RNN_TANH ... HOTLOOP_GRU_RESET_BEFORE */
  int32_t dtype;                  /* of every array */
  int64_t input_size, hidden_size;
  int64_t output_size;            /* of h: hidden_size, but for cells that project it */
} hotloop_spec;

/* The parameters of a recurrence, by number; hotloop_describe_parameter says which a cell has. */
enum { HOTLOOP_WEIGHT_IH = 0,     /* [G*H,I], of x */
       HOTLOOP_WEIGHT_HH = 1,     /* [G*H,P], of h */
       HOTLOOP_BIAS_IH = 2, HOTLOOP_BIAS_HH = 3, /* [G*H], or NULL: there is none */
       HOTLOOP_WEIGHT_HR = 4,     /* [P,H], projects h */
       HOTLOOP_PARAMETER_COUNT = 5 };

/* The parameters of one recurrence, contiguous. They are only read. */
typedef struct {
  const void *parameters[HOTLOOP_PARAMETER_COUNT]; /* weights may be NULL where packed is not */
  const void *packed;             /* what hotloop_pack made of them, or NULL: then forward packs into its workspace */
} hotloop_weights;

/* What a plan is for: one of the first three, and for backward any of the others besides. */
enum {
  HOTLOOP_INFERENCE = 0,          /* forward that keeps nothing */
  HOTLOOP_TRAINING = 1,           /* forward that saves what backward needs */
  HOTLOOP_BACKWARD = 2,
  HOTLOOP_PACKED = 4,             /* inference and training: weights are packed, the workspace has no room for it */
  HOTLOOP_GRAD_X = 8,             /* backward: grad_x may be wanted */
  HOTLOOP_GRAD_WEIGHTS = 16,      /* backward: gradients of weights may be wanted */
  HOTLOOP_RESET_TO_INITIAL = 32,  /* backward: the buffers may have resets and reset_to_initial */
  HOTLOOP_BATCH_FIRST = 64,       /* hotloop_step: x and output are [B,T,*]. The strides of buffers say it to the others */
  HOTLOOP_ACCUMULATE = 128,       /* backward: gradients may say accumulate */
  HOTLOOP_MASKED = 256            /* any but hotloop_step: the buffers may have a recurrent_mask */
};

/* Every decision of a call that does not depend on its data. A plan holds no pointer to memory of the caller's, may be
   copied, and is never changed. It is good for any number of steps and rows up to those it was made for. */
typedef struct { uint64_t words[16]; } hotloop_plan;

/* The arrays of one recurrence, one direction of one layer, and what a call does with them. */
typedef struct {
  const hotloop_weights *weights; /* read, as long as the call runs */
  int64_t seq_len, batch_size;    /* seq_len at least 1; with lengths or offsets at least the longest */
  int32_t reverse;                /* process x[T-1] first; output[t] stays aligned with x[t] */
  int32_t reset_to_initial;       /* where `resets` are set the state becomes h0, c0, and not zero */

  const void *x;                  /* [T,B,I] read */
  int64_t x_stride_t, x_stride_b;
  const void *h0, *c0;            /* [B,P] and [B,H] contiguous, read, or NULL for zeros; c0: LSTM only */

  void *output;                   /* [T,B,P] written by forward, read by backward, as the next four and c */
  int64_t output_stride_t, output_stride_b;
  void *h_n, *c_n;                /* as h0 and c0, written; c_n: LSTM only; backward does not look at them */
  void *gates;                    /* [T,B,S*H] contiguous; where S > 0, in training and backward and only there */
  void *c;                        /* [T,B,H] LSTM: c of every step; needed with gates */
  int64_t c_stride_t, c_stride_b;

  const int64_t *lengths;         /* [B], 0 to T: steps of each sequence, which begins at step 0; or NULL: all T. What is behind
                                     its end is not read; output, c and grad_x are zero there. With reverse it is run from its
                                     own end. h_n and c_n are the states after its own last step, or h0 and c0 */
  const int64_t *offsets;         /* [B+1], not falling, from 0 on: flat sequences, as above; or NULL. Not with lengths */
  const uint8_t *resets;          /* [T,B]: not 0 where an episode begins, before that step in processing order: the state
                                     is replaced, and no gradient passes; or NULL */
  int64_t resets_stride_t, resets_stride_b;
  const void *recurrent_mask;     /* [B,P] contiguous: multiplies h of the step before where a product reads it, of every step (GRU
                                     keeps z times the h that is not multiplied); or NULL. It gets no gradient */

  int64_t cursor;                 /* steps done, backward counted from the last: 0 to start, advanced by the call */
} hotloop_buffers;

/* Gradients of one recurrence. What backward is given is read, what it gives is written, or NULL if not wanted. */
typedef struct {
  const void *grad_output;        /* [T,B,P] or NULL for zeros, as the next three */
  int64_t grad_output_stride_t, grad_output_stride_b;
  const void *grad_h_n, *grad_c_n; /* [B,P] and [B,H] contiguous */
  const void *grad_c;             /* [T,B,H] of c of every step, LSTM */
  int64_t grad_c_stride_t, grad_c_stride_b;

  void *grad_x;                   /* [T,B,I] */
  int64_t grad_x_stride_t, grad_x_stride_b;
  void *grad_parameters[HOTLOOP_PARAMETER_COUNT]; /* contiguous */
  int32_t accumulate;             /* those of parameters are added to what is there. Pieces of sequences, cut between steps in
                                     processing order, taken from the last to the first, with the states' gradients of one as
                                     grad_h_n and grad_c_n of the next, give the bits of one call over the whole */
  const int64_t *ranks;           /* [B] with lengths or offsets, or NULL: the order in which rows of one length are summed, by
                                     number where NULL. Pieces of a ragged batch give the bits of the whole in its order: longest
                                     first, rows of one length by number */
  void *grad_h0;                  /* [B,P] contiguous, always written */
  void *grad_c0;                  /* [B,H] contiguous, LSTM: always written */
} hotloop_gradients;

/* Threads of somebody else to run the shares of a call on; NULL wherever one is taken: hotloop's own pool. Where another call
   of this process has threads at work, or where these are fewer than the plan's, a call does without them. */
typedef struct {
  void *context;                  /* given to the three functions, which several threads may call at once */
  int32_t (*threads)(void *context); /* how many would take part now */
  int32_t (*awake)(void *context);   /* whether they would begin at once: 0 where one has to be woken first */
  /* task(data, index) for index 0 to count-1, each once, in any order and on any threads; returns when all are done. */
  void (*parallel_for)(void *context, int32_t count, void (*task)(void *data, int32_t index), void *data);
} hotloop_executor;

/* The version of the library's ABI. A program that was compiled against another one must not call anything else. */
int32_t hotloop_abi_version(void);

/* Fills *plan for `count` recurrences of this spec that run side by side, each of at most seq_len steps of at most batch_size
   rows, on at most `threads` threads. `uses`: HOTLOOP_INFERENCE ... HOTLOOP_BATCH_FIRST. Takes some 50 ns, so a call that is made
   once can be planned every time. The plan is written only if the status is HOTLOOP_OK. */
int32_t hotloop_make_plan(hotloop_plan *plan, const hotloop_spec *spec, int32_t uses, int64_t count, int64_t seq_len,
                          int64_t batch_size, int32_t threads);

/* Bytes of workspace that a call of this plan needs: 0 for a short one, which has its workspace on the stack, at most 64 KiB.
   -1 for what is no plan. */
int64_t hotloop_workspace_bytes(const hotloop_plan *plan);

/* Both run the plan's `count` recurrences, buffers[0] ... buffers[count-1], and return OK, AGAIN after some 50 ms of work,
   or an error, before anything is written. The workspace may have any alignment; NULL if none is needed. Between AGAIN calls
   it is kept as it is, and all arguments stay the same. A call that needs no workspace never returns AGAIN. */
int32_t hotloop_forward(const hotloop_plan *plan, hotloop_buffers *buffers, const hotloop_executor *executor,
                        void *workspace, int64_t workspace_bytes);
int32_t hotloop_backward(const hotloop_plan *plan, hotloop_buffers *buffers, const hotloop_gradients *gradients,
                         const hotloop_executor *executor, void *workspace, int64_t workspace_bytes);

/* Inference of one recurrence in scalars and pointers, for callers that pass no structs: some steps, usually one, without
   resets, from the first to the last. x [T,B,I] and output [T,B,H] are contiguous ([B,T,*] with HOTLOOP_BATCH_FIRST); the rest
   is as in hotloop_buffers. To continue, h0 may be the h_n of the call before, c0 its c_n, and each pair may be the same
   memory. Returns when all is done, never AGAIN. */
int32_t hotloop_step(const hotloop_plan *plan, const hotloop_weights *weights, int64_t seq_len, int64_t batch_size,
                     const void *x, const void *h0, const void *c0, void *output, void *h_n, void *c_n,
                     const hotloop_executor *executor, void *workspace, int64_t workspace_bytes);

/* Weights packed once for many calls. packed [hotloop_packed_bytes] starts on a cache line, 64 bytes, and may be copied to
   another one; weights->packed is not looked at. -1 where the spec is bad or the count overflows. */
int64_t hotloop_packed_bytes(const hotloop_spec *spec);
int32_t hotloop_pack(const hotloop_spec *spec, const hotloop_weights *weights, void *packed, int64_t packed_bytes);

/* Whether the bytes of some arrays are those they were: a hash of `count` arrays of so many bytes each, in two words. For
   a random seed arrays of the same sizes that differ have the same hash with a probability of 2^-63 at most. */
int32_t hotloop_hash(const void *const *arrays, const int64_t *bytes, int64_t count, uint64_t seed, uint64_t *result);

/* The instruction set in use, chosen at first use: the best the processor has, or what HOTLOOP_ISA names. NULL if that
   is unknown. hotloop_isa_at counts through the ones this processor can run, best first, and ends with NULL. */
const char *hotloop_isa(void);
const char *hotloop_isa_at(int32_t index);
int32_t hotloop_use_isa(const char *name); /* no call may be under way; for tests and benchmarks */

/* What an instruction set is, and the costs that the cost model reckons with, as tools/measure_costs.py prints them. */
typedef struct {
  const char *name;
  int32_t vector_bytes, registers;
  int32_t fuses;                  /* whether a product and a sum are rounded once */
  double lane_flops_ns;           /* flops of products that a lane of a float32 vector does in a nanosecond */
  double cell_flops;              /* what the cell functions of one unit take, in such flops */
  double read_bytes_ns;           /* bytes of packed weights that one thread reads in a nanosecond, from L2 */
  double wake_ns, handover_ns;    /* what it takes until a thread begins that sleeps, and one that is awake */
  double exchange_ns;             /* what threads that share the units of a step take to exchange them */
} hotloop_isa_traits;
int32_t hotloop_describe_isa(hotloop_isa_traits *traits); /* of the instruction set in use */

/* What a cell is: G, the products of a step, S, whether it has c, and whether it projects h. */
typedef struct { int32_t gates, stages, saved, has_c, projects; } hotloop_cell_traits;
int32_t hotloop_describe_cell(int32_t cell, hotloop_cell_traits *traits);

/* A parameter of a recurrence: [rows, columns], or of a bias [rows], for which columns is 1. rows is 0 where the cell has no
   such parameter. */
typedef struct { const char *name; int64_t rows, columns; int32_t is_bias; } hotloop_parameter_traits;
int32_t hotloop_describe_parameter(const hotloop_spec *spec, int32_t parameter, hotloop_parameter_traits *traits);

int32_t hotloop_processors(void);          /* how many processors this process may run on */
void hotloop_use_processors(int32_t count); /* that there are so many; 0: as many as there are. For tests */

/* An executor on the threads of an OpenMP runtime that the program uses besides: its GOMP_parallel and its
   omp_get_max_threads. They are of no use in a forked child, whose calls take hotloop's own; and for a while after one of them
   was seen to be put aside by the system. Never freed; the two functions are those of the first call. NULL: there is none
   in a forked child. */
const hotloop_executor *hotloop_openmp_executor(
    void (*parallel)(void (*task)(void *), void *data, unsigned threads, unsigned flags), int (*max_threads)(void));
const char *hotloop_status_string(int32_t status);

/* What the machine can do, for rooflines: `repeats` passes of the fastest loop we know over `bytes`, at least 4096, of
   a buffer that has 64 more, since its start is rounded up to a cache line. Returns the work done, flops for FMA, bytes for READ and COPY, vectors of units for the cells; the
   caller takes the time. */
enum { HOTLOOP_PROBE_FMA = 0, HOTLOOP_PROBE_READ = 1, HOTLOOP_PROBE_COPY = 2,
       HOTLOOP_PROBE_CELL_FORWARD = 3, HOTLOOP_PROBE_CELL_BACKWARD = 4 };
double hotloop_probe(int32_t probe, int32_t cell, int32_t dtype, void *buffer, int64_t bytes, int64_t repeats);

/* tanh (0) or sigmoid (1) as the cells compute it, elementwise: for the tests of accuracy. */
int32_t hotloop_activation(int32_t function, int32_t dtype, const void *x, void *result, int64_t count);
