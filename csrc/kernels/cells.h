// The cells: lists of stages, with their equations and derivatives, elementwise on vectors. The equations stand here and in
// src/hotloop/_backends/cells.py, same names, same order, and nowhere else.
//
// A step of a cell is its stages, one after the other. A stage is a product and an elementwise function on what it gives:
//
//   a = start + operand * (some rows of a parameter)'        out = forward(a, ...)
//
// The stage before the last leaves its `out`, `hidden`, to the next one as operand; that of the last one is h. Backward they
// are taken the other way around: the gradient of a stage's `out` is the product of the next stage's gradients of a with
// that stage's weights (of the last stage: of the step after), and `backward` makes the gradients of its own a of it.
//
// Gradients of pre-activations are kept in rows of blocks of hidden_size columns, a cell's dG, in an order in which the gates
// of each stage, and all those that x has a part in, are one contiguous row for a matrix product.
#pragma once

#include "../hotloop.h"
#include "math.h"

namespace {

// A vector of units at one step in one stage, forward.
template <class V>
struct ForwardUnit {
  V a[4];     // of the stage's gates
  V x_apart;  // x's share of the stage's gate kApart
  V operand, h_prev, c_prev;
  V saved[4];  // all that is saved of this unit; a stage finds there what the stages before it saved
  V out, c;
};

// The same, backward.
template <class V>
struct BackwardUnit {
  V saved[4];
  V out, operand, h_prev, c, c_prev;
  V mask;  // by which operand is h_prev
  V d_out;
  V carry;  // in, of an LSTM: dc of this step's c as far as later steps give it. Out: dc of the step before; of a cell that
            // carries h, the part of dh that reaches h_prev without passing a product
  V da[4];  // blocks kGives ... of dG
};

// What the product of a stage multiplies.
enum class Operand {
  kH,       // h of the step before, times recurrent_mask where there is one: output_size columns
  kHidden,  // what the stage before left: hidden_size columns
};

// What a stage's functions read beside a, and backward beside saved arrays and d_out. kReadsSaved: forward, of the stages before.
enum Reads : unsigned {
  kReadsOut = 1,
  kReadsOperand = 2,
  kReadsHPrev = 4,
  kReadsC = 8,
  kReadsCarry = 16,
  kReadsSaved = 32
};

// What most stages are; others say otherwise.
struct Stage {
  static constexpr Operand kOperand = Operand::kH;
  static constexpr int kParameter =
      HOTLOOP_WEIGHT_HH;            // or HOTLOOP_WEIGHT_HR: output_size units, in which x has no part
  static constexpr int kFirst = 0;  // blocks of rows of the parameter before those of its gates
  // Of its gates the one whose sum starts from h's bias alone, while x's share comes in x_apart. -1: none.
  static constexpr int kApart = -1;
  static constexpr int kSaves = 0;  // arrays, behind those of the stages before
  static constexpr unsigned kForwardReads = 0, kBackwardReads = 0;
  static constexpr int kGradients = 0;            // the block of dG where its gates begin, ...
  static constexpr int kGateOf[] = {0, 1, 2, 3};  // ... in this order
  static constexpr int kGives = 0, kGiven = 0;    // blocks of dG that `backward` gives: from kGives on, kGiven
};

template <class... S>
struct Stages {
  static constexpr int kCount = sizeof...(S), kSaved = (S::kSaves + ...);
  static constexpr bool kReadsSaves = (((S::kForwardReads & kReadsSaved) != 0) || ...);

  // The gate kept apart, of all of the cell's.
  static constexpr int apart() {
    int gate = -1;
    ((gate = S::kApart >= 0 ? S::kFirst + S::kApart : gate), ...);
    return gate;
  }
};

// What most cells are; others say otherwise.
struct Recurrence {
  static constexpr int kXSide = 0;          // the block of dG where the gates that x has a part in begin
  static constexpr bool kHasC = false;      // as an LSTM
  static constexpr bool kCarriesH = false;  // a part of h reaches the next step without passing a product
  static constexpr bool kProjects = false;  // h is a product of weight_hr
};

struct RnnTanh : Recurrence {
  struct Update : Stage {
    static constexpr int kGates = 1, kGiven = 1;
    static constexpr unsigned kBackwardReads = kReadsOut;

    template <class V>
    static HOTLOOP_INLINE void forward(ForwardUnit<V>& unit) {
      unit.out = tanh(unit.a[0]);
    }
    template <class V>
    static HOTLOOP_INLINE void backward(BackwardUnit<V>& unit) {
      const V h = unit.out;
      unit.da[0] = unit.d_out * fnma(h, h, splat<Element<V>>(1));
    }
  };
  using List = Stages<Update>;
  static constexpr int kGates = 1, kGradients = 1;
};

struct RnnRelu : Recurrence {
  struct Update : Stage {
    static constexpr int kGates = 1, kGiven = 1;
    static constexpr unsigned kBackwardReads = kReadsOut;

    template <class V>
    static HOTLOOP_INLINE void forward(ForwardUnit<V>& unit) {
      unit.out = at_least(unit.a[0], V{});
    }
    template <class V>
    static HOTLOOP_INLINE void backward(BackwardUnit<V>& unit) {
      unit.da[0] = unit.d_out * (unit.out > V{} ? splat<Element<V>>(1) : V{});
    }
  };
  using List = Stages<Update>;
  static constexpr int kGates = 1, kGradients = 1;
};

struct Lstm : Recurrence {
  struct Update : Stage {
    static constexpr int kGates = 4, kSaves = 4, kGiven = 4;
    static constexpr unsigned kForwardReads = kReadsC, kBackwardReads = kReadsC | kReadsCarry;

    template <class V>
    static HOTLOOP_INLINE void forward(ForwardUnit<V>& unit) {
      const V i = sigmoid(unit.a[0]);
      const V f = sigmoid(unit.a[1]);
      const V g = tanh(unit.a[2]);
      const V o = sigmoid(unit.a[3]);
      const V c = fma(f, unit.c_prev, i * g);
      unit.saved[0] = i;
      unit.saved[1] = f;
      unit.saved[2] = g;
      unit.saved[3] = o;
      unit.c = c;
      unit.out = o * tanh(c);
    }
    template <class V>
    static HOTLOOP_INLINE void backward(BackwardUnit<V>& unit) {
      const V one = splat<Element<V>>(1), dh = unit.d_out;
      const V i = unit.saved[0], f = unit.saved[1], g = unit.saved[2], o = unit.saved[3];
      const V tanh_c = tanh(unit.c);
      const V dc = fma(dh * o, fnma(tanh_c, tanh_c, one), unit.carry);
      unit.da[0] = dc * g * (i * (one - i));
      unit.da[1] = dc * unit.c_prev * (f * (one - f));
      unit.da[2] = dc * i * fnma(g, g, one);
      unit.da[3] = dh * tanh_c * (o * (one - o));
      unit.carry = dc * f;
    }
  };
  using List = Stages<Update>;
  static constexpr int kGates = 4, kGradients = 4;
  static constexpr bool kHasC = true;
};

// h is a product of weight_hr and what is h of an LSTM, m.
struct LstmProjected : Recurrence {
  struct Gates : Lstm::Update {
    template <class V>
    static HOTLOOP_INLINE V hidden(const BackwardUnit<V>& unit) {
      return unit.saved[3] * tanh(unit.c);
    }
  };
  struct Project : Stage {
    static constexpr Operand kOperand = Operand::kHidden;
    static constexpr int kParameter = HOTLOOP_WEIGHT_HR, kGates = 1, kGradients = 4, kGives = 4, kGiven = 1;

    template <class V>
    static HOTLOOP_INLINE void forward(ForwardUnit<V>& unit) {
      unit.out = unit.a[0];
    }
    template <class V>
    static HOTLOOP_INLINE void backward(BackwardUnit<V>& unit) {
      unit.da[0] = unit.d_out;
    }
  };
  using List = Stages<Gates, Project>;
  static constexpr int kGates = 4, kGradients = 4;
  static constexpr bool kHasC = true, kProjects = true;
};

// Reset after the product: q, h's share of gate n, is kept apart, because r multiplies it alone. dG: dq, da_r, da_z, dx_n.
struct Gru : Recurrence {
  struct Update : Stage {
    static constexpr int kGates = 3, kApart = 2, kSaves = 4, kGiven = 4;
    static constexpr int kGateOf[] = {2, 0, 1};
    static constexpr unsigned kForwardReads = kReadsHPrev, kBackwardReads = kReadsHPrev;

    template <class V>
    static HOTLOOP_INLINE void forward(ForwardUnit<V>& unit) {
      const V r = sigmoid(unit.a[0]);
      const V z = sigmoid(unit.a[1]);
      const V q = unit.a[2];
      const V n = tanh(fma(r, q, unit.x_apart));
      unit.saved[0] = r;
      unit.saved[1] = z;
      unit.saved[2] = n;
      unit.saved[3] = q;
      unit.out = fma(z, unit.h_prev - n, n);
    }
    template <class V>
    static HOTLOOP_INLINE void backward(BackwardUnit<V>& unit) {
      const V one = splat<Element<V>>(1), dh = unit.d_out;
      const V r = unit.saved[0], z = unit.saved[1], n = unit.saved[2], q = unit.saved[3];
      const V dx_n = dh * (one - z) * fnma(n, n, one);
      unit.da[0] = dx_n * r;  // dq
      unit.da[1] = dx_n * q * (r * (one - r));
      unit.da[2] = dh * (unit.h_prev - n) * (z * (one - z));
      unit.da[3] = dx_n;
      unit.carry = dh * z;
    }
  };
  using List = Stages<Update>;
  static constexpr int kGates = 3, kGradients = 4, kXSide = 1;
  static constexpr bool kCarriesH = true;
};

// Reset before the product: r multiplies h, and gate n multiplies the result.
struct GruResetBefore : Recurrence {
  struct Reset : Stage {
    static constexpr int kGates = 2, kSaves = 2, kGiven = 1;
    static constexpr unsigned kForwardReads = kReadsOperand, kBackwardReads = kReadsOperand | kReadsCarry;

    template <class V>
    static HOTLOOP_INLINE void forward(ForwardUnit<V>& unit) {
      const V r = sigmoid(unit.a[0]);
      const V z = sigmoid(unit.a[1]);
      unit.saved[0] = r;
      unit.saved[1] = z;
      unit.out = r * unit.operand;
    }
    template <class V>
    static HOTLOOP_INLINE V hidden(const BackwardUnit<V>& unit) {
      return unit.saved[0] * unit.operand;
    }
    template <class V>
    static HOTLOOP_INLINE void backward(BackwardUnit<V>& unit) {
      const V one = splat<Element<V>>(1), dreset_h = unit.d_out;
      const V r = unit.saved[0];
      unit.da[0] = dreset_h * unit.operand * (r * (one - r));
      unit.carry = fma(dreset_h * unit.mask, r, unit.carry);
    }
  };
  struct Update : Stage {
    static constexpr Operand kOperand = Operand::kHidden;
    static constexpr int kGates = 1, kFirst = 2, kSaves = 1, kGradients = 2, kGives = 1, kGiven = 2;
    static constexpr unsigned kForwardReads = kReadsHPrev | kReadsSaved, kBackwardReads = kReadsHPrev;

    template <class V>
    static HOTLOOP_INLINE void forward(ForwardUnit<V>& unit) {
      const V z = unit.saved[1];
      const V n = tanh(unit.a[0]);
      unit.saved[2] = n;
      unit.out = fma(z, unit.h_prev - n, n);
    }
    template <class V>
    static HOTLOOP_INLINE void backward(BackwardUnit<V>& unit) {
      const V one = splat<Element<V>>(1), dh = unit.d_out;
      const V z = unit.saved[1], n = unit.saved[2];
      unit.da[0] = dh * (unit.h_prev - n) * (z * (one - z));
      unit.da[1] = dh * (one - z) * fnma(n, n, one);
      unit.carry = dh * z;
    }
  };
  using List = Stages<Reset, Update>;
  static constexpr int kGates = 3, kGradients = 3;
  static constexpr bool kCarriesH = true;
};

// What follows from the lists.

template <class Cell>
constexpr int kStages = Cell::List::kCount;
template <class Cell>
constexpr int kSaved = Cell::List::kSaved;

template <int kIndex, class First, class... Rest>
struct StageAt : StageAt<kIndex - 1, Rest...> {};
template <class First, class... Rest>
struct StageAt<0, First, Rest...> {
  using Type = First;
};
template <int kIndex, class List>
struct StageOf;
template <int kIndex, class... S>
struct StageOf<kIndex, Stages<S...>> : StageAt<kIndex, S...> {};

// Stage kNumber of a cell, and where it stands among the others.
template <class Cell, int kNumber>
struct At : StageOf<kNumber, typename Cell::List>::Type {
  using Self = typename StageOf<kNumber, typename Cell::List>::Type;
  static constexpr int kIndex = kNumber;
  static constexpr bool kLast = kNumber == kStages<Cell> - 1;
  static constexpr bool kOfOutput = Self::kParameter == HOTLOOP_WEIGHT_HR;  // its units are those of h, not of c

  // Saved arrays that its derivative reads.
  static constexpr int reads_saved() { return kOfOutput ? 0 : saved_before() + Self::kSaves; }
  // Arrays that the stages before it save.
  static constexpr int saved_before() {
    if constexpr (kNumber == 0) {
      return 0;
    } else {
      return At<Cell, kNumber - 1>::saved_before() + At<Cell, kNumber - 1>::kSaves;
    }
  }
  // Whether it is the last one of hidden_size units: there memory is asked for that later steps need of those.
  static constexpr bool asks() {
    if constexpr (kOfOutput) {
      return false;
    } else if constexpr (kLast) {
      return true;
    } else {
      return At<Cell, kNumber + 1>::kOfOutput;
    }
  }
};

// f(At<Cell, index>) for the stage of this index.
template <class Cell, int kFrom = 0, class F>
HOTLOOP_INLINE void with_stage(int index, F&& f) {
  if constexpr (kFrom + 1 == kStages<Cell>) {
    f(At<Cell, kFrom>{});
  } else {
    if (index == kFrom) {
      f(At<Cell, kFrom>{});
    } else {
      with_stage<Cell, kFrom + 1>(index, f);
    }
  }
}

// f(At<Cell, 0>), f(At<Cell, 1>), ...
template <class Cell, class F>
HOTLOOP_INLINE void each_stage(F&& f) {
  unroll<kStages<Cell>>([&](auto index) HOTLOOP_LAMBDA { f(At<Cell, decltype(index)::value>{}); });
}

// The sizes of a recurrence.
struct Sizes {
  int64_t input, hidden, output;

  template <class S>
  HOTLOOP_INLINE int64_t units() const {
    return S::kOfOutput ? output : hidden;
  }
  // Columns of a stage's operand.
  template <class S>
  HOTLOOP_INLINE int64_t depth() const {
    return S::kOperand == Operand::kH ? output : hidden;
  }
  // Columns of dG.
  template <class Cell>
  HOTLOOP_INLINE int64_t gradients() const {
    return Cell::kGradients * hidden + (Cell::kProjects ? output : 0);
  }
};

template <class Cell, class Call>
HOTLOOP_INLINE Sizes sizes_of(const Call& call) {
  return {call.input_size, call.hidden_size, Cell::kProjects ? call.output_size : call.hidden_size};
}

}  // namespace
