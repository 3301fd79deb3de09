/* The C ABI of hotloop: declarations only. cffi parses this very file, so it holds no #include, no #if and no
   extern "C"; C users include hotloop.h, which adds them.

   Letters in brackets: T seq_len, B batch_size, I input_size, H hidden_size, G gates, S saved arrays a unit.
   All strides are in elements. A feature stride is always 1. With `offsets` the sequences are flat: [T,B,*] is then
   [offsets[B],*], whose rows are stride_t apart, and sequence b is its rows offsets[b] to offsets[b+1]-1. The caller owns
   every array; nothing is allocated here except the threads of the pool. Weights, biases and gates are in PyTorch's order
   and layout:
     RNN   G = 1, S = 0
     LSTM  G = 4, S = 4   gates i f g o        saved i f g o
     GRU   G = 3, S = 4   gates r z n          saved r z n and q, h's share of n (reset after the product)
     GRU_RESET_BEFORE     G = 3, S = 3         gates r z n, saved r z n                                        */

enum {                            /* what every function returns */
  HOTLOOP_OK = 0,
  HOTLOOP_AGAIN = 1,              /* not an error: call again with the same arguments, the cursor has advanced */
  HOTLOOP_BAD_ARGUMENT = 2,       /* an argument that would corrupt memory */
  HOTLOOP_TOO_LARGE = 3,          /* a size whose byte count overflows */
  HOTLOOP_WORKSPACE_TOO_SMALL = 4,
  HOTLOOP_UNKNOWN_ISA = 5,        /* HOTLOOP_ISA names an instruction set that is unknown or not to be had here */
  HOTLOOP_PACKED_ELSEWHERE = 6    /* weights packed for another shape, type or instruction set */
};

enum { HOTLOOP_RNN_TANH = 0, HOTLOOP_RNN_RELU = 1, HOTLOOP_LSTM = 2, HOTLOOP_GRU = 3,
       HOTLOOP_GRU_RESET_BEFORE = 4, HOTLOOP_CELL_COUNT = 5 };
enum { HOTLOOP_FLOAT32 = 0, HOTLOOP_FLOAT64 = 1, HOTLOOP_DTYPE_COUNT = 2 };

/* One recurrence: one direction of one layer. A call takes an array of these.                                */
typedef struct {
  int32_t cell;                   /* HOTLOOP_RNN_TANH ... HOTLOOP_GRU_RESET_BEFORE */
  int32_t dtype;                  /* of every array */
  int32_t reverse;                /* process x[T-1] first; output[t] stays aligned with x[t] */
  int32_t reset_to_initial;       /* where `resets` are set the state becomes h0, c0, and not zero */
  int64_t seq_len, batch_size, input_size, hidden_size; /* with offsets T is at least the longest, and 1 */

  const void *x;                  /* [T,B,I] */
  int64_t x_stride_t, x_stride_b;
  const void *weight_ih;          /* [G*H,I] contiguous */
  const void *weight_hh;          /* [G*H,H] contiguous */
  const void *bias_ih, *bias_hh;  /* [G*H] or NULL */
  const void *packed;             /* from hotloop_pack, 64-byte aligned, or NULL: then forward packs into its workspace */
  const void *h0, *c0;            /* [B,H] contiguous, or NULL for zeros; c0: LSTM only */

  void *output;                   /* [T,B,H] */
  int64_t output_stride_t, output_stride_b;
  void *h_n, *c_n;                /* [B,H] contiguous; c_n: LSTM only */
  void *gates;                    /* [T,B,S*H] contiguous, or NULL in inference; backward only reads it */
  void *c;                        /* [T,B,H] LSTM: c of every step; needed with gates */
  int64_t c_stride_t, c_stride_b;

  const int64_t *lengths;         /* [B], 0 to T: steps of each sequence, which begins at step 0; or NULL: all T. What is behind
                                     its end is not read; output, c and grad_x are zero there. With reverse it is run from its
                                     own end. h_n and c_n are the states after its own last step, or h0 and c0 */
  const int64_t *offsets;         /* [B+1], not falling, from 0 on: flat sequences, as above; or NULL. Not with lengths */
  const uint8_t *resets;          /* [T,B]: not 0 where an episode begins, before that step in processing order: the state
                                     is replaced, and no gradient passes; or NULL */
  int64_t resets_stride_t, resets_stride_b;

  int64_t cursor;                 /* steps done; 0 to start */
} hotloop_forward_args;

typedef struct {
  hotloop_forward_args forward;   /* as forward had it; packed and cursor are not used */

  const void *grad_output;        /* [T,B,H] or NULL for zeros, as the next two */
  int64_t grad_output_stride_t, grad_output_stride_b;
  const void *grad_h_n, *grad_c_n; /* [B,H] contiguous */
  const void *grad_c;             /* [T,B,H] of c of every step, LSTM, or NULL */
  int64_t grad_c_stride_t, grad_c_stride_b;

  void *grad_x;                   /* [T,B,I], or NULL if not wanted, as the next four */
  int64_t grad_x_stride_t, grad_x_stride_b;
  void *grad_weight_ih;           /* [G*H,I] contiguous */
  void *grad_weight_hh;           /* [G*H,H] contiguous */
  void *grad_bias_ih, *grad_bias_hh; /* [G*H] */
  void *grad_h0;                  /* [B,H] contiguous, always written */
  void *grad_c0;                  /* [B,H] contiguous, LSTM: always written */

  int64_t cursor;                 /* steps done, counted from the last; 0 to start */
} hotloop_backward_args;

/* Bytes of workspace for a call with these arguments, or -1 where they are bad or the count overflows. Lengths and offsets
   are read; other pointers in args are only compared with NULL. `threads` is at most hotloop_processors() if the caller is wise. */
int64_t hotloop_forward_workspace(const hotloop_forward_args *args, int64_t count, int32_t threads);
int64_t hotloop_backward_workspace(const hotloop_backward_args *args, int64_t count, int32_t threads);

/* Both run `count` recurrences that do not depend on each other, side by side on up to `threads` threads, and return OK,
   AGAIN after some 50 ms of work, or an error. The workspace may have any alignment. Between AGAIN calls it is kept as
   it is, and count and threads stay the same. */
int32_t hotloop_forward(hotloop_forward_args *args, int64_t count, int32_t threads, void *workspace,
                        int64_t workspace_bytes);
int32_t hotloop_backward(hotloop_backward_args *args, int64_t count, int32_t threads, void *workspace,
                         int64_t workspace_bytes);

/* The same for a call that one thread does soonest, however many there are, and for which the workspace is enough: then
   nothing has to be asked before it, which is worth 1 us. They return when all is done, never AGAIN. Any other call, one
   that has begun too, is left alone: HOTLOOP_WORKSPACE_TOO_SMALL.                                                      */
int32_t hotloop_forward_short(hotloop_forward_args *args, int64_t count, void *workspace, int64_t workspace_bytes);
int32_t hotloop_backward_short(hotloop_backward_args *args, int64_t count, void *workspace, int64_t workspace_bytes);

/* One such recurrence forward, for inference, with arrays that lie one after the other: x [T,B,I] and output [T,B,H]
   contiguous, of one length, without resets. The rest is as `like` has it, which must hold packed weights. It needs no
   workspace, and leaves a call alone that is not short or would need more than 16 KiB: HOTLOOP_WORKSPACE_TOO_SMALL.    */
int32_t hotloop_forward_step(const hotloop_forward_args *like, int64_t seq_len, int64_t batch_size, const void *x,
                             const void *h0, const void *c0, void *output, void *h_n, void *c_n);

/* The same for one recurrence in scalars and pointers, for callers that cannot pass structs; c and grad_c are [T,B,H]
   contiguous. They return when all is done, never AGAIN. The workspace is that of `hotloop_*_flat_workspace`, whatever
   results are wanted and whatever the lengths are. */
int64_t hotloop_forward_flat_workspace(int32_t cell, int32_t dtype, int64_t seq_len, int64_t batch_size,
                                       int64_t input_size, int64_t hidden_size, int32_t threads);
int64_t hotloop_backward_flat_workspace(int32_t cell, int32_t dtype, int64_t seq_len, int64_t batch_size,
                                        int64_t input_size, int64_t hidden_size, int32_t threads);
int32_t hotloop_forward_flat(
    int32_t cell, int32_t dtype, int32_t reverse, int64_t seq_len, int64_t batch_size, int64_t input_size,
    int64_t hidden_size, const void *x, int64_t x_stride_t, int64_t x_stride_b, const void *weight_ih,
    const void *weight_hh, const void *bias_ih, const void *bias_hh, const void *h0, const void *c0, void *output,
    int64_t output_stride_t, int64_t output_stride_b, void *h_n, void *c_n, void *gates, void *c,
    const int64_t *lengths, const int64_t *offsets, const uint8_t *resets, int64_t resets_stride_t,
    int64_t resets_stride_b, int32_t reset_to_initial, int32_t threads, void *workspace, int64_t workspace_bytes);
int32_t hotloop_backward_flat(
    int32_t cell, int32_t dtype, int32_t reverse, int64_t seq_len, int64_t batch_size, int64_t input_size,
    int64_t hidden_size, const void *x, int64_t x_stride_t, int64_t x_stride_b, const void *weight_ih,
    const void *weight_hh, const void *h0, const void *c0, const void *output, int64_t output_stride_t,
    int64_t output_stride_b, const void *gates, const void *c, const int64_t *lengths, const int64_t *offsets,
    const uint8_t *resets, int64_t resets_stride_t, int64_t resets_stride_b, int32_t reset_to_initial,
    const void *grad_output, int64_t grad_output_stride_t, int64_t grad_output_stride_b, const void *grad_h_n,
    const void *grad_c_n, const void *grad_c, void *grad_x, int64_t grad_x_stride_t, int64_t grad_x_stride_b,
    void *grad_weight_ih, void *grad_weight_hh, void *grad_bias_ih, void *grad_bias_hh, void *grad_h0, void *grad_c0,
    int32_t threads, void *workspace, int64_t workspace_bytes);

/* Weights packed once for many calls: inference. Cell, dtype, sizes and weights of args are read. */
int64_t hotloop_packed_bytes(const hotloop_forward_args *args);
int32_t hotloop_pack(const hotloop_forward_args *args, void *packed, int64_t packed_bytes);

/* Whether the bytes of some arrays are those they were: a hash of `count` arrays of so many bytes each, in two words. For
   a random seed arrays of the same sizes that differ have the same hash with a probability of 2^-63 at most. */
int32_t hotloop_hash(const void *const *arrays, const int64_t *bytes, int64_t count, uint64_t seed, uint64_t *result);

/* The instruction set in use, chosen at first use: the best the processor has, or what HOTLOOP_ISA names. NULL if that
   is unknown. hotloop_isa_at counts through the ones this processor can run, best first, and ends with NULL. */
const char *hotloop_isa(void);
const char *hotloop_isa_at(int32_t index);
int32_t hotloop_use_isa(const char *name); /* no call may be under way; for tests and benchmarks */

int32_t hotloop_processors(void);          /* how many processors this process may run on */

/* Run the shares of calls on the threads of an OpenMP runtime that the program uses besides: its GOMP_parallel and its
   omp_get_max_threads. Its threads spin after their own work, where hotloop's would have to take turns with them. Where that
   runtime is set to fewer threads than a call is to have, and in a forked child, hotloop's own are used; NULL, NULL: always.
   Not while a call is running. */
void hotloop_borrow_threads(void (*parallel)(void (*task)(void *), void *data, unsigned threads, unsigned flags),
                            int (*max_threads)(void));
const char *hotloop_status_string(int32_t status);

/* What the machine can do, for rooflines: `repeats` passes of the fastest loop we know over `bytes`, at least 4096, of
   a buffer that has 64 more, since its start is rounded up to a cache line. Returns the work done, flops for FMA, bytes for READ and COPY, vectors of units for the cells; the
   caller takes the time. */
enum { HOTLOOP_PROBE_FMA = 0, HOTLOOP_PROBE_READ = 1, HOTLOOP_PROBE_COPY = 2,
       HOTLOOP_PROBE_CELL_FORWARD = 3, HOTLOOP_PROBE_CELL_BACKWARD = 4 };
double hotloop_probe(int32_t probe, int32_t cell, int32_t dtype, void *buffer, int64_t bytes, int64_t repeats);

/* tanh (0) or sigmoid (1) as the cells compute it, elementwise: for the tests of accuracy. */
int32_t hotloop_activation(int32_t function, int32_t dtype, const void *x, void *result, int64_t count);
