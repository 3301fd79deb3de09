// A call through the C ABI: a problem, its data, arrays of exactly their sizes, and what came back. For the programs of this
// folder.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "hotloop.h"

namespace native_tests {

constexpr const char* kCellNames[] = {"rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before", "lstm_projected"};
static_assert(sizeof kCellNames / sizeof *kCellNames == HOTLOOP_CELL_COUNT, "a cell without a name here");

inline hotloop_cell_traits traits_of(int cell) {
  hotloop_cell_traits traits{};
  hotloop_describe_cell(cell, &traits);
  return traits;
}

// Which biases and states there are, which gradients come from above and which are wanted: sets of these.
enum : unsigned { kBiasIh = 1, kBiasHh = 2, kH0 = 4, kC0 = 8, kAllInputs = 15 };
enum : unsigned { kOutput = 1, kHn = 2, kCn = 4, kAllUpstream = 7 };
enum : unsigned { kX = 1, kWih = 2, kWhh = 4, kBih = 8, kBhh = 16, kAllWanted = 31 };
enum Layout { kTimeMajor, kBatchFirst, kPadded, kFromTheEnd, kLayouts };

struct Problem {
  int cell;
  int64_t T, B, I, H;
  bool reverse = false;
  unsigned inputs = kAllInputs, upstream = kAllUpstream, wanted = kAllWanted;
  Layout layout = kTimeMajor;
  std::vector<int64_t> lengths{};  // [B], or all of T
  std::vector<uint8_t> resets{};   // [T, B], or none
  bool to_initial = false;

  hotloop_cell_traits facts() const { return traits_of(cell); }
  int64_t rows() const { return facts().gates * H; }
};

inline std::string describe(const Problem& p, size_t type_bytes) {
  char text[200];
  snprintf(text, sizeof text, "%s %s float%d T%d B%d I%d H%d%s inputs=%u upstream=%u wanted=%u layout=%d%s%s",
           hotloop_isa(), kCellNames[p.cell], static_cast<int>(type_bytes * 8), static_cast<int>(p.T),
           static_cast<int>(p.B), static_cast<int>(p.I), static_cast<int>(p.H), p.reverse ? " reverse" : "", p.inputs,
           p.upstream, p.wanted, static_cast<int>(p.layout), p.lengths.empty() ? "" : " ragged",
           p.resets.empty() ? "" : " resets");
  return text;
}

inline std::atomic<int64_t> passed{0}, failed{0};  // several threads check

inline void check(bool right, const std::string& what, const char* rule) {
  if (right) {
    ++passed;
  } else {
    ++failed;
    fprintf(stderr, "FAILED: %s: %s\n", what.c_str(), rule);
  }
}

inline void expect(int32_t status, int32_t wanted, const std::string& what) {
  check(status == wanted, what + ": " + hotloop_status_string(status), hotloop_status_string(wanted));
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  double uniform(double bound) { return bound * (static_cast<double>(bits() >> 11) * 0x1p-52 - 1); }

 private:
  uint64_t state_;
};

// Memory of exactly so many bytes, the last of them the last of the block; it starts as NaN. The start is that of a cache
// line or some elements further, so that no kernel may count on more than an element's alignment.
class Block {
 public:
  Block() = default;
  Block(size_t bytes, size_t offset) : bytes_(bytes), offset_(offset) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, bytes + offset) != 0) abort();
    memory_.reset(memory);
    memset(memory, 0xff, bytes + offset);
  }
  char* data() const { return static_cast<char*>(memory_.get()) + offset_; }
  size_t size() const { return bytes_; }

 private:
  std::unique_ptr<void, void (*)(void*)> memory_{nullptr, free};
  size_t bytes_ = 0, offset_ = 0;
};

template <class T>
class Array : public Block {
 public:
  Array() = default;
  explicit Array(int64_t count) : Block(static_cast<size_t>(count) * sizeof(T), next_offset()) {}
  explicit Array(const std::vector<T>& values) : Array(static_cast<int64_t>(values.size())) {
    if (!values.empty()) memcpy(data(), values.data(), size());
  }
  T* at(int64_t index) const { return reinterpret_cast<T*>(data()) + index; }
  std::vector<T> values() const { return std::vector<T>(at(0), at(static_cast<int64_t>(size() / sizeof(T)))); }

 private:
  static size_t next_offset() {
    static thread_local size_t turn = 0;
    return ++turn % 3 * sizeof(T);
  }
};

// [T, B, width] in one of the layouts.
template <class T>
class Sequence {
 public:
  Sequence() = default;
  Sequence(const Problem& p, int64_t width, Layout layout) : T_(p.T), B_(p.B), width_(width) {
    const int64_t row = layout == kPadded ? width + 3 : width;
    stride_t = layout == kBatchFirst ? row : B_ * row + (layout == kPadded ? 5 : 0);
    stride_b = layout == kBatchFirst ? T_ * row : row;
    array_ = Array<T>(T_ * B_ == 0 ? 0 : (T_ - 1) * stride_t + (B_ - 1) * stride_b + width);
    first_ = 0;
    if (layout == kFromTheEnd && B_ > 0) {
      first_ = (T_ - 1) * stride_t;
      stride_t = -stride_t;
    }
  }
  T* start() const { return array_.at(first_); }
  void fill(const std::vector<T>& dense) const {
    each([&](T* row, size_t index) { memcpy(row, &dense[index], static_cast<size_t>(width_) * sizeof(T)); });
  }
  std::vector<T> values() const {
    std::vector<T> dense(static_cast<size_t>(T_ * B_ * width_));
    each([&](const T* row, size_t index) { memcpy(&dense[index], row, static_cast<size_t>(width_) * sizeof(T)); });
    return dense;
  }
  // Nothing but the rows was written: every other byte is as it was.
  bool padding_is_untouched() const {
    std::vector<char> seen(array_.data(), array_.data() + array_.size());
    each([&](const T* row, size_t) {
      const size_t from = static_cast<size_t>(reinterpret_cast<const char*>(row) - array_.data());
      memset(&seen[from], 0xff, static_cast<size_t>(width_) * sizeof(T));
    });
    for (const char byte : seen) {
      if (byte != static_cast<char>(0xff)) return false;
    }
    return true;
  }

  int64_t stride_t = 0, stride_b = 0;

 private:
  template <class F>
  void each(F&& f) const {
    for (int64_t t = 0; t < T_; ++t) {
      for (int64_t b = 0; b < B_; ++b) {
        f(array_.at(first_ + t * stride_t + b * stride_b), static_cast<size_t>((t * B_ + b) * width_));
      }
    }
  }

  Array<T> array_;
  int64_t T_ = 0, B_ = 0, width_ = 0, first_ = 0;
};

// The inputs of a problem and its gradients from above, dense, and what comes back, dense.
template <class T>
struct Data {
  std::vector<T> x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, grad_output, grad_h_n, grad_c_n;
  std::vector<T> weight_hr;  // square, so that h has one size in all cells: Python's tests have others
};
template <class T>
struct Results {
  std::vector<T> output, h_n, c_n, gates, c, x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, weight_hr;
};

template <class T>
std::vector<T> random_values(Random& random, int64_t count, double bound) {
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = static_cast<T>(static_cast<float>(random.uniform(bound)));  // the same in both types
  return values;
}

template <class T>
Data<T> random_inputs(const Problem& p) {
  Random random(
      static_cast<uint64_t>((((p.T * 64 + p.B) * 64 + p.I) * 64 + p.H) * 16 + p.cell * int64_t{2} + p.reverse));
  const double bound = 1 / sqrt(static_cast<double>(p.H));
  Data<T> data;
  data.x = random_values<T>(random, p.T * p.B * p.I, 1.7);
  data.weight_ih = random_values<T>(random, p.rows() * p.I, bound);
  data.weight_hh = random_values<T>(random, p.rows() * p.H, bound);
  data.bias_ih = random_values<T>(random, p.rows(), bound);
  data.bias_hh = random_values<T>(random, p.rows(), bound);
  data.h0 = random_values<T>(random, p.B * p.H, 1);
  data.c0 = random_values<T>(random, p.B * p.H, 1);
  data.grad_output = random_values<T>(random, p.T * p.B * p.H, 1);
  data.grad_h_n = random_values<T>(random, p.B * p.H, 1);
  data.grad_c_n = random_values<T>(random, p.B * p.H, 1);
  data.weight_hr = random_values<T>(random, p.H * p.H, bound);
  return data;
}

// The arrays of one recurrence, with the structs that point to them.
struct Call {
  Call() = default;
  Call(const Call&) = delete;  // buffers point to weights
  Call& operator=(const Call&) = delete;
  virtual ~Call() = default;

  hotloop_spec spec{};
  hotloop_weights weights{};
  hotloop_buffers buffers{};
  hotloop_gradients gradients{};
  int32_t uses = HOTLOOP_INFERENCE;  // of forward

  int32_t uses_backward() const {
    const bool weights_wanted = gradients.grad_parameters[HOTLOOP_WEIGHT_IH] != nullptr ||
                                gradients.grad_parameters[HOTLOOP_WEIGHT_HH] != nullptr;
    return HOTLOOP_BACKWARD | (gradients.grad_x != nullptr ? HOTLOOP_GRAD_X : 0) |
           (weights_wanted ? HOTLOOP_GRAD_WEIGHTS : 0) |
           (buffers.resets != nullptr && buffers.reset_to_initial != 0 ? HOTLOOP_RESET_TO_INITIAL : 0);
  }
};

enum Mode { kInference, kPacked, kTraining };

template <class T>
class CallOf : public Call {
 public:
  CallOf(const Problem& p, const Data<T>& data, Mode mode) : p_(p) {
    const hotloop_cell_traits cell = p.facts();
    hotloop_buffers& f = buffers;
    spec = {p.cell, std::is_same_v<T, float> ? HOTLOOP_FLOAT32 : HOTLOOP_FLOAT64, p.I, p.H, p.H};
    uses = mode == kTraining ? HOTLOOP_TRAINING : HOTLOOP_INFERENCE;
    f.weights = &weights;
    f.reverse = p.reverse;
    f.seq_len = p.T;
    f.batch_size = p.B;
    x_ = Sequence<T>(p, p.I, p.layout);
    x_.fill(data.x);
    f.x = x_.start();
    f.x_stride_t = x_.stride_t;
    f.x_stride_b = x_.stride_b;
    weights.parameters[HOTLOOP_WEIGHT_IH] = weight(data.weight_ih);
    weights.parameters[HOTLOOP_WEIGHT_HH] = weight(data.weight_hh);
    if (cell.projects) weights.parameters[HOTLOOP_WEIGHT_HR] = weight(data.weight_hr);
    if (p.inputs & kBiasIh) weights.parameters[HOTLOOP_BIAS_IH] = weight(data.bias_ih);
    if (p.inputs & kBiasHh) weights.parameters[HOTLOOP_BIAS_HH] = weight(data.bias_hh);
    if (p.inputs & kH0) f.h0 = input(data.h0);
    if (p.inputs & kC0 && cell.has_c) f.c0 = input(data.c0);
    output_ = Sequence<T>(p, p.H, p.layout);
    f.output = output_.start();
    f.output_stride_t = output_.stride_t;
    f.output_stride_b = output_.stride_b;
    f.h_n = result(h_n_, p.B * p.H);
    if (cell.has_c) f.c_n = result(c_n_, p.B * p.H);
    if (!p.lengths.empty()) f.lengths = lengths_.emplace_back(p.lengths).at(0);
    if (!p.resets.empty()) f.resets = resets_.emplace_back(p.resets).at(0);
    f.resets_stride_t = p.B;
    f.resets_stride_b = 1;
    f.reset_to_initial = p.to_initial;
    f.c_stride_t = p.B * p.H;
    f.c_stride_b = p.H;
    if (mode == kPacked) pack();
    if (mode != kTraining) return;

    if (cell.saved > 0) f.gates = result(gates_, p.T * p.B * cell.saved * p.H);
    if (cell.has_c) f.c = result(c_, p.T * p.B * p.H);
    if (p.upstream & kOutput) {
      grad_output_ = Sequence<T>(p, p.H, p.layout);
      grad_output_.fill(data.grad_output);
      gradients.grad_output = grad_output_.start();
      gradients.grad_output_stride_t = grad_output_.stride_t;
      gradients.grad_output_stride_b = grad_output_.stride_b;
    }
    if (p.upstream & kHn) gradients.grad_h_n = input(data.grad_h_n);
    if (p.upstream & kCn && cell.has_c) gradients.grad_c_n = input(data.grad_c_n);
    if (p.wanted & kX) {
      grad_x_ = Sequence<T>(p, p.I, p.layout);
      gradients.grad_x = grad_x_.start();
      gradients.grad_x_stride_t = grad_x_.stride_t;
      gradients.grad_x_stride_b = grad_x_.stride_b;
    }
    if (p.wanted & kWih) gradients.grad_parameters[HOTLOOP_WEIGHT_IH] = result(grad_weight_ih_, p.rows() * p.I);
    if (p.wanted & kWhh) gradients.grad_parameters[HOTLOOP_WEIGHT_HH] = result(grad_weight_hh_, p.rows() * p.H);
    if (p.wanted & kWhh && cell.projects) {
      gradients.grad_parameters[HOTLOOP_WEIGHT_HR] = result(grad_weight_hr_, p.H * p.H);
    }
    if (p.wanted & kBih) gradients.grad_parameters[HOTLOOP_BIAS_IH] = result(grad_bias_ih_, p.rows());
    if (p.wanted & kBhh) gradients.grad_parameters[HOTLOOP_BIAS_HH] = result(grad_bias_hh_, p.rows());
    gradients.grad_h0 = result(grad_h0_, p.B * p.H);
    if (cell.has_c) gradients.grad_c0 = result(grad_c0_, p.B * p.H);
  }

  Results<T> results() const {
    const bool padding = output_.padding_is_untouched() && grad_x_.padding_is_untouched();
    check(padding, describe(p_, sizeof(T)), "padding is not written");
    Results<T> r;
    r.output = output_.values();
    r.h_n = h_n_.values();
    r.c_n = c_n_.values();
    r.gates = gates_.values();
    r.c = c_.values();
    r.x = grad_x_.values();
    r.weight_ih = grad_weight_ih_.values();
    r.weight_hh = grad_weight_hh_.values();
    r.weight_hr = grad_weight_hr_.values();
    r.bias_ih = grad_bias_ih_.values();
    r.bias_hh = grad_bias_hh_.values();
    r.h0 = grad_h0_.values();
    r.c0 = grad_c0_.values();
    return r;
  }

 private:
  const T* input(const std::vector<T>& values) { return inputs_.emplace_back(values).at(0); }
  const T* weight(const std::vector<T>& values) { return weights_.emplace_back(values).at(0); }

  static T* result(Array<T>& array, int64_t count) {
    array = Array<T>(count);
    return array.at(0);
  }

  // From here on the weights are in one block, and those it was made from are gone.
  void pack() {
    const int64_t bytes = hotloop_packed_bytes(&spec);
    packed_ = Block(static_cast<size_t>(bytes), 0);
    expect(hotloop_pack(&spec, &weights, packed_.data(), bytes), HOTLOOP_OK, describe(p_, sizeof(T)) + ": pack");
    weights = {};
    weights.packed = packed_.data();
    uses |= HOTLOOP_PACKED;
    weights_.clear();
  }

  Problem p_;
  std::vector<Array<T>> weights_, inputs_;
  std::vector<Array<int64_t>> lengths_;
  std::vector<Array<uint8_t>> resets_;
  Block packed_;
  Sequence<T> x_, output_, grad_output_, grad_x_;
  Array<T> h_n_, c_n_, gates_, c_;
  Array<T> grad_weight_hr_, grad_weight_ih_, grad_weight_hh_, grad_bias_ih_, grad_bias_hh_, grad_h0_, grad_c0_;
};

// How much larger than the calls that run on it a plan is.
struct Slack {
  int64_t steps = 0, rows = 0;
  int32_t uses = 0;
};

inline hotloop_plan make_plan(const std::vector<Call*>& calls, bool backward, int32_t threads, const std::string& what,
                              Slack slack = {}) {
  int32_t uses = slack.uses;
  int64_t steps = 0, rows = 0;
  for (const Call* call : calls) {
    uses |= backward ? call->uses_backward() : call->uses;
    if (call->buffers.seq_len > steps) steps = call->buffers.seq_len;
    if (call->buffers.batch_size > rows) rows = call->buffers.batch_size;
  }
  hotloop_plan plan{};
  expect(hotloop_make_plan(&plan, &calls[0]->spec, uses, static_cast<int64_t>(calls.size()), steps + slack.steps,
                           rows + slack.rows, threads),
         HOTLOOP_OK, what + ": plan");
  return plan;
}

// Runs recurrences of one spec in one call and a workspace of exactly the bytes asked for, at an odd address, until all is
// done. Returns how often it came back before the end.
inline int64_t run_on(const hotloop_plan& plan, const std::vector<Call*>& calls, bool backward, const std::string& what,
                      const hotloop_executor* executor = nullptr) {
  const hotloop_plan before = plan;
  std::vector<hotloop_buffers> buffers;
  std::vector<hotloop_gradients> gradients;
  for (const Call* call : calls) {
    buffers.push_back(call->buffers);
    gradients.push_back(call->gradients);
  }
  const int64_t bytes = hotloop_workspace_bytes(&plan);
  check(bytes >= 0, what, "a workspace has a size");
  const Block workspace(bytes < 0 ? 0 : static_cast<size_t>(bytes), 1);
  int64_t early = 0;
  for (;; ++early) {
    const int32_t status =
        backward ? hotloop_backward(&plan, buffers.data(), gradients.data(), executor, workspace.data(), bytes)
                 : hotloop_forward(&plan, buffers.data(), executor, workspace.data(), bytes);
    if (status == HOTLOOP_AGAIN) continue;
    expect(status, HOTLOOP_OK, what);
    break;
  }
  for (const hotloop_buffers& each : buffers) check(each.cursor == each.seq_len, what, "the cursor is at the end");
  check(memcmp(&plan, &before, sizeof plan) == 0, what, "a plan is only read");
  return early;
}

inline int64_t run(const std::vector<Call*>& calls, bool backward, int32_t threads, const std::string& what,
                   Slack slack = {}, const hotloop_executor* executor = nullptr) {
  return run_on(make_plan(calls, backward, threads, what, slack), calls, backward, what, executor);
}

template <class T>
Results<T> compute(const Problem& p, const Data<T>& data, Mode mode, int32_t threads = 1, Slack slack = {},
                   const hotloop_executor* executor = nullptr) {
  const std::string what = describe(p, sizeof(T));
  CallOf<T> call(p, data, mode);
  run({&call}, false, threads, what, slack, executor);
  if (mode == kTraining) run({&call}, true, threads, what, slack, executor);
  return call.results();
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T>
bool finite(const std::vector<T>& values) {
  for (const T value : values) {
    if (!isfinite(value)) return false;
  }
  return true;
}

// Every array of a set of results, in turn; arrays of two sets side by side.
template <class T>
using Member = std::vector<T> Results<T>::*;
template <class T>
constexpr Member<T> kForwardResults[] = {&Results<T>::output, &Results<T>::h_n, &Results<T>::c_n};
template <class T>
constexpr Member<T> kSaved[] = {&Results<T>::gates, &Results<T>::c};
template <class T>
constexpr Member<T> kSequenceGradients[] = {&Results<T>::x, &Results<T>::h0, &Results<T>::c0};
template <class T>
constexpr Member<T> kWeightGradients[] = {&Results<T>::weight_ih, &Results<T>::weight_hh, &Results<T>::bias_ih,
                                          &Results<T>::bias_hh, &Results<T>::weight_hr};

template <class T, size_t N>
bool same_bits(const Results<T>& a, const Results<T>& b, const Member<T> (&members)[N]) {
  for (const Member<T> member : members) {
    if (!same_bits(a.*member, b.*member)) return false;
  }
  return true;
}

template <class T>
bool all_same_bits(const Results<T>& a, const Results<T>& b) {
  return same_bits(a, b, kForwardResults<T>) && same_bits(a, b, kSaved<T>) && same_bits(a, b, kSequenceGradients<T>) &&
         same_bits(a, b, kWeightGradients<T>);
}

template <class T>
bool all_finite(const Results<T>& r) {
  return finite(r.output) && finite(r.h_n) && finite(r.c_n) && finite(r.gates) && finite(r.c) && finite(r.x) &&
         finite(r.weight_ih) && finite(r.weight_hh) && finite(r.bias_ih) && finite(r.bias_hh) && finite(r.h0) &&
         finite(r.c0) && finite(r.weight_hr);
}

}  // namespace native_tests
