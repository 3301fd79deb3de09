// Every kernel through the C ABI and nothing else, for the sanitizers to watch: each instruction set, cell, type,
// direction and layout, hidden sizes 1 to 40. Every array lies on the heap in exactly its size, so that one element too
// far is seen, and results start as NaN, so that one left out is seen.
//
// The equations are not written here again. What is checked is what the contract promises: the same bits however a call is
// made, padding left alone, a status for every bad argument; that float32 is near float64; and that the
// gradients are those of the function computed, by finite differences in float64.
//
//   hotloop_native_tests [few]     `few`: every seventh hidden size, where a sanitizer makes it slow
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "calls.h"

namespace {

using namespace native_tests;

// Part of [steps, rows, width], dense.
template <class T>
std::vector<T> part_of(const std::vector<T>& values, const Problem& p, int64_t width, int64_t t0, int64_t t1,
                       int64_t b0, int64_t b1) {
  std::vector<T> part;
  for (int64_t t = t0; t < t1; ++t) {
    const auto from = values.begin() + (t * p.B + b0) * width;
    part.insert(part.end(), from, from + (b1 - b0) * width);
  }
  return part;
}

// One row of the batch alone has the bits that it has among the others.
template <class T>
void check_row(const Problem& p, const Data<T>& data, const Results<T>& together, int64_t b) {
  Problem alone = p;
  alone.B = 1;
  Data<T> row = data;
  const auto state = [&](const std::vector<T>& values) { return part_of(values, p, p.H, 0, 1, b, b + 1); };
  row.x = part_of(data.x, p, p.I, 0, p.T, b, b + 1);
  row.grad_output = part_of(data.grad_output, p, p.H, 0, p.T, b, b + 1);
  row.h0 = state(data.h0);
  row.c0 = state(data.c0);
  row.grad_h_n = state(data.grad_h_n);
  row.grad_c_n = state(data.grad_c_n);
  const Results<T> r = compute(alone, row, kTraining);
  const auto sequence = [&](const std::vector<T>& values, int64_t width) {
    return values.empty() ? values : part_of(values, p, width, 0, p.T, b, b + 1);
  };
  const auto of_row = [&](const std::vector<T>& values) { return values.empty() ? values : state(values); };
  const bool same = same_bits(r.output, sequence(together.output, p.H)) && same_bits(r.h_n, of_row(together.h_n)) &&
                    same_bits(r.c_n, of_row(together.c_n)) && same_bits(r.x, sequence(together.x, p.I)) &&
                    same_bits(r.h0, of_row(together.h0)) && same_bits(r.c0, of_row(together.c0));
  check(same, describe(p, sizeof(T)), "a row alone has the same bits");
}

// A sequence cut after `cut` steps of processing, the state and its gradient passed on.
template <class T>
void check_cut(const Problem& p, const Data<T>& data, const Results<T>& whole, int64_t cut) {
  const std::string what = describe(p, sizeof(T));
  // Where the pieces lie in time: with `reverse` the one processed first is the later one.
  const int64_t border = p.reverse ? p.T - cut : cut;
  const auto piece = [&](bool early_in_time) {
    Data<T> part = data;
    const int64_t t0 = early_in_time ? 0 : border, t1 = early_in_time ? border : p.T;
    part.x = part_of(data.x, p, p.I, t0, t1, 0, p.B);
    part.grad_output = part_of(data.grad_output, p, p.H, t0, t1, 0, p.B);
    return part;
  };
  Problem first = p, second = p;
  first.T = cut;
  second.T = p.T - cut;
  Data<T> first_data = piece(!p.reverse), second_data = piece(p.reverse);
  // The state at the cut, found by a call that needs no gradient of it yet.
  const Results<T> before = compute(first, first_data, kInference);
  second.inputs |= kH0 | kC0;
  second_data.h0 = before.h_n;
  second_data.c0 = before.c_n;
  const Results<T> late = compute(second, second_data, kTraining);
  first.upstream |= kHn | kCn;
  first_data.grad_h_n = late.h0;
  first_data.grad_c_n = late.c0;
  const Results<T> early = compute(first, first_data, kTraining);
  const auto joined = [&](Member<T> member) {
    std::vector<T> both = (p.reverse ? late : early).*member;
    const std::vector<T>& rest = (p.reverse ? early : late).*member;
    both.insert(both.end(), rest.begin(), rest.end());
    return both;
  };
  const bool same = same_bits(joined(&Results<T>::output), whole.output) && same_bits(late.h_n, whole.h_n) &&
                    same_bits(late.c_n, whole.c_n) && same_bits(joined(&Results<T>::x), whole.x) &&
                    same_bits(early.h0, whole.h0) && same_bits(early.c0, whole.c0);
  check(same, what, "a sequence cut in time has the same bits");
}

// Several recurrences in one call: both directions, and one of fewer steps and rows in another layout.
template <class T>
void check_together(const Problem& p, const Data<T>& data, const Results<T>& alone, int32_t threads) {
  Problem reversed = p, other = p;
  reversed.reverse = !p.reverse;
  reversed.layout = kTimeMajor;
  other.T = p.T / 2 + 1;
  other.B = p.B > 1 ? p.B - 1 : p.B;
  other.layout = static_cast<Layout>((p.layout + 1) % kLayouts);
  other.inputs = kAllInputs;
  const Data<T> other_data = random_inputs<T>(other);
  const Results<T> second_alone = compute(reversed, data, kTraining);
  const Results<T> third_alone = compute(other, other_data, kTraining);
  const std::string what = describe(p, sizeof(T)) + ": three at once";
  for (const bool more : {false, true}) {  // than the plan is used for
    CallOf<T> first(p, data, kTraining), second(reversed, data, kTraining), third(other, other_data, kTraining);
    const Slack slack = more ? Slack{5, 11} : Slack{};
    run({&first, &second, &third}, false, threads + (more ? 1 : 0), what, slack);
    run({&first, &second, &third}, true, threads + (more ? 1 : 0), what, slack);
    check(all_same_bits(first.results(), alone) && all_same_bits(second.results(), second_alone) &&
              all_same_bits(third.results(), third_alone),
          what, "one call and three have the same bits");
  }
}

// A plan that was made for more than the call: steps, rows, threads, and gradients that are not wanted.
template <class T>
void check_larger_plans(const Problem& p, const Data<T>& data, const Results<T>& wanted) {
  const std::string what = describe(p, sizeof(T));
  for (const Slack slack : {Slack{1, 0}, Slack{0, 1}, Slack{300, 0}, Slack{0, 300}, Slack{9, 40}}) {
    for (const int32_t threads : {1, 3}) {
      check(all_same_bits(compute(p, data, kTraining, threads, slack), wanted), what,
            "a plan for more has the same bits");
      check(same_bits(compute(p, data, kInference, threads, slack), wanted, kForwardResults<T>), what,
            "a plan for more has the same bits in inference");
      check(same_bits(compute(p, data, kPacked, threads, slack), wanted, kForwardResults<T>), what,
            "a plan for more has the same bits, packed");
    }
  }
  CallOf<T> call(p, data, kTraining);
  run({&call}, false, 2, what);
  run({&call}, true, 2, what, {0, 0, HOTLOOP_GRAD_X | HOTLOOP_GRAD_WEIGHTS | HOTLOOP_RESET_TO_INITIAL});
  check(all_same_bits(call.results(), wanted), what, "what is planned and not wanted does not show in the bits");
}

// The entry point for callers that pass no structs.
template <class T>
void check_step(const Problem& dense, const Data<T>& data, int32_t threads) {
  Problem p = dense;
  p.reverse = false;
  const bool has_c = p.facts().has_c != 0;
  for (const Layout layout : {kTimeMajor, kBatchFirst}) {
    p.layout = layout;
    const int32_t first = layout == kBatchFirst ? HOTLOOP_BATCH_FIRST : 0;
    const std::string what = describe(p, sizeof(T)) + ": step";
    const Results<T> wanted = compute(p, data, kInference);
    for (const Mode mode : {kInference, kPacked}) {
      for (const bool in_place : {false, true}) {
        CallOf<T> call(p, data, mode);
        const hotloop_plan plan = make_plan({&call}, false, threads, what, {2, 1, first});
        const int64_t bytes = hotloop_workspace_bytes(&plan);
        const Block workspace(static_cast<size_t>(bytes < 0 ? 0 : bytes), 1);
        const hotloop_buffers& b = call.buffers;
        const void *h0 = b.h0, *c0 = b.c0;
        const size_t state = static_cast<size_t>(p.B * p.H) * sizeof(T);
        if (in_place && h0 != nullptr && state > 0) h0 = memcpy(b.h_n, h0, state);
        if (in_place && c0 != nullptr && state > 0) c0 = memcpy(b.c_n, c0, state);
        const auto step = [&](int64_t steps, int64_t size) {
          return hotloop_step(&plan, &call.weights, steps, p.B, b.x, h0, c0, b.output, b.h_n, b.c_n, nullptr,
                              workspace.data(), size);
        };
        const auto rows = [&](int64_t batch) {
          return hotloop_step(&plan, &call.weights, p.T, batch, b.x, h0, c0, b.output, b.h_n, b.c_n, nullptr,
                              workspace.data(), bytes);
        };
        if (bytes > 0) expect(step(p.T, bytes - 1), HOTLOOP_WORKSPACE_TOO_SMALL, what);
        expect(step(p.T + 3, bytes), HOTLOOP_BAD_ARGUMENT, what + ", too many");
        expect(step(0, bytes), HOTLOOP_BAD_ARGUMENT, what + ", none");
        expect(step(INT64_MIN, bytes), HOTLOOP_BAD_ARGUMENT, what + ", fewer");
        expect(rows(p.B + 2), HOTLOOP_BAD_ARGUMENT, what + ", too many rows");
        expect(rows(-1), HOTLOOP_BAD_ARGUMENT, what + ", fewer rows than none");
        expect(step(p.T, bytes), HOTLOOP_OK, what);
        check(same_bits(call.results(), wanted, kForwardResults<T>), what, "structs and scalars have the same bits");
      }
    }
  }
  // Step by step, the states in their place.
  p.layout = kTimeMajor;
  const std::string what = describe(p, sizeof(T)) + ": step by step";
  const Results<T> wanted = compute(p, data, kInference);
  CallOf<T> call(p, data, kPacked);
  const hotloop_plan plan = make_plan({&call}, false, threads, what);
  const Block workspace(static_cast<size_t>(hotloop_workspace_bytes(&plan)), 1);
  const hotloop_buffers& b = call.buffers;
  for (int64_t t = 0; t < p.T; ++t) {
    const T* const x = static_cast<const T*>(b.x) + t * b.x_stride_t;
    T* const output = static_cast<T*>(b.output) + t * b.output_stride_t;
    expect(hotloop_step(&plan, &call.weights, 1, p.B, x, t == 0 ? b.h0 : b.h_n, t == 0 || !has_c ? b.c0 : b.c_n, output,
                        b.h_n, b.c_n, nullptr, workspace.data(), static_cast<int64_t>(workspace.size())),
           HOTLOOP_OK, what);
  }
  check(same_bits(call.results(), wanted, kForwardResults<T>), what, "a stream has the bits of the whole sequence");
}

// An executor of the program's: it counts its calls, and runs the shares from the last to the first, on the caller or on
// threads of their own.
struct Counting {
  explicit Counting(bool on_threads)
      : executor{this, [](void* context) { return static_cast<Counting*>(context)->most.load(); },
                 [](void*) { return int32_t{1}; }, on_threads ? &each_on_its_own : &last_first} {}
  Counting(const Counting&) = delete;  // the executor points to it
  Counting& operator=(const Counting&) = delete;

  using Task = void (*)(void* data, int32_t index);
  static void last_first(void* context, int32_t count, Task task, void* data) {
    ++static_cast<Counting*>(context)->calls;
    for (int32_t index = count; index-- > 0;) task(data, index);
  }
  static void each_on_its_own(void* context, int32_t count, Task task, void* data) {
    ++static_cast<Counting*>(context)->calls;
    std::vector<std::thread> threads;
    for (int32_t index = count; index-- > 0;) threads.emplace_back(task, data, index);
    for (std::thread& thread : threads) thread.join();
  }

  std::atomic<int32_t> most{0};
  std::atomic<int> calls{0};
  hotloop_executor executor;
};

void check_executors(int cell) {
  const Problem p{cell, 60, 33, 9, 50};
  const Data<float> data = random_inputs<float>(p);
  const Results<float> wanted = compute(p, data, kTraining);
  const std::string what = describe(p, 4);
  hotloop_use_processors(2);  // else a call on a machine of one has no shares
  for (const bool on_threads : {false, true}) {
    Counting counting(on_threads);
    counting.most = 2;
    CallOf<float> call(p, data, kTraining);
    run({&call}, false, 2, what, {}, &counting.executor);
    check(counting.calls.exchange(0) > 0, what, "an executor is used in forward");
    run({&call}, true, 2, what, {}, &counting.executor);
    check(counting.calls.exchange(0) > 0, what, "an executor is used in backward");
    check(all_same_bits(call.results(), wanted), what, "an executor gives the same bits");

    CallOf<float> packed(p, data, kPacked);
    const hotloop_plan plan = make_plan({&packed}, false, 2, what);
    const Block workspace(static_cast<size_t>(hotloop_workspace_bytes(&plan)), 1);
    const hotloop_buffers& b = packed.buffers;
    expect(hotloop_step(&plan, &packed.weights, p.T, p.B, b.x, b.h0, b.c0, b.output, b.h_n, b.c_n, &counting.executor,
                        workspace.data(), static_cast<int64_t>(workspace.size())),
           HOTLOOP_OK, what + ": step");
    check(counting.calls.exchange(0) > 0, what, "an executor is used in steps");
    check(same_bits(packed.results(), wanted, kForwardResults<float>), what, "an executor gives steps the same bits");

    for (const int32_t few : {1, 0, -1}) {
      counting.most = few;
      check(all_same_bits(compute(p, data, kTraining, 2, {}, &counting.executor), wanted), what,
            "an executor of too few threads gives the same bits");
      check(counting.calls == 0, what, "an executor of too few threads is left alone");
    }
    counting.most = 2;
    check(all_same_bits(compute(p, data, kTraining, 1, {}, &counting.executor), wanted), what,
          "a plan for one thread has the same bits");
    const Problem small{cell, 1, 1, 4, 4};
    compute(small, random_inputs<float>(small), kTraining, 2, {}, &counting.executor);
    check(counting.calls == 0, what, "a short call, and one of one thread, are no executor's");
  }
  hotloop_use_processors(0);
}

// States that are written over those a call begins with: allowed in inference, but not where a reset goes back to them.
template <class T>
void check_in_place(const Problem& dense, const Data<T>& data, int32_t threads) {
  Problem p = dense;
  p.to_initial = false;
  const std::string what = describe(p, sizeof(T)) + ": in place";
  const size_t state = static_cast<size_t>(p.B * p.H) * sizeof(T);
  for (const Mode mode : {kInference, kPacked}) {
    CallOf<T> call(p, data, mode);
    hotloop_buffers& b = call.buffers;
    if (b.h0 != nullptr && state > 0) b.h0 = memcpy(b.h_n, b.h0, state);
    if (b.c0 != nullptr && state > 0) b.c0 = memcpy(b.c_n, b.c0, state);
    run({&call}, false, threads, what);
    check(same_bits(call.results(), compute(p, data, kInference), kForwardResults<T>), what,
          "states written over the first ones have the same bits");
  }
}

// Rows of several lengths, with episodes that begin inside them: each row has the bits that it has alone, and zeros behind
// its end. One row has no steps at all.
template <class T>
void check_ragged(const Problem& dense, const Data<T>& data, int32_t threads) {
  Problem p = dense;
  Random random(static_cast<uint64_t>(p.H * 64 + p.T));
  for (int64_t b = 0; b < p.B; ++b) {
    p.lengths.push_back(b == 1 ? 0 : static_cast<int64_t>(random.bits() % static_cast<uint64_t>(p.T + 1)));
  }
  for (int64_t i = 0; i < p.T * p.B; ++i) p.resets.push_back(random.bits() % 5 == 0);
  p.to_initial = p.H % 2 == 0;
  const Results<T> together = compute(p, data, kTraining, threads);
  check_larger_plans(p, data, together);
  check_in_place(p, data, threads);
  for (int64_t b = 0; b < p.B; ++b) {
    const int64_t length = p.lengths[static_cast<size_t>(b)];
    const auto sequence = [&](const std::vector<T>& values, int64_t width, int64_t t0, int64_t t1) {
      return values.empty() ? values : part_of(values, p, width, t0, t1, b, b + 1);
    };
    const auto state = [&](const std::vector<T>& values) { return sequence(values, p.H, 0, 1); };
    for (const auto& [values, width] : {std::pair{&together.output, p.H}, std::pair{&together.x, p.I}}) {
      const std::vector<T> behind = sequence(*values, width, length, p.T);
      check(same_bits(behind, std::vector<T>(behind.size())), describe(p, sizeof(T)), "zeros behind a row's end");
    }
    if (length == 0) {
      const bool initial = p.inputs & kH0 ? same_bits(state(together.h_n), state(data.h0)) : true;
      check(initial, describe(p, sizeof(T)), "a row of no steps ends as it began");
      continue;
    }
    Problem alone = p;
    alone.B = 1;
    alone.T = length;
    alone.lengths.clear();
    alone.resets.clear();
    for (int64_t t = 0; t < length; ++t) alone.resets.push_back(p.resets[static_cast<size_t>(t * p.B + b)]);
    Data<T> row = data;
    row.x = sequence(data.x, p.I, 0, length);
    row.grad_output = sequence(data.grad_output, p.H, 0, length);
    row.h0 = state(data.h0);
    row.c0 = state(data.c0);
    row.grad_h_n = state(data.grad_h_n);
    row.grad_c_n = state(data.grad_c_n);
    const Results<T> r = compute(alone, row, kTraining);
    const bool same = same_bits(r.output, sequence(together.output, p.H, 0, length)) &&
                      same_bits(r.h_n, state(together.h_n)) && same_bits(r.c_n, state(together.c_n)) &&
                      same_bits(r.x, sequence(together.x, p.I, 0, length)) && same_bits(r.h0, state(together.h0)) &&
                      same_bits(r.c0, state(together.c0));
    check(same, describe(p, sizeof(T)), "a row of a ragged batch has the bits it has alone");
  }
}

// The derivative of loss = <grad_output, output> + <grad_h_n, h_n> + <grad_c_n, c_n> in a random direction of all inputs,
// and of each alone, against the gradients.
void check_derivatives(const Problem& p) {
  const Data<double> data = random_inputs<double>(p);
  const Results<double> r = compute(p, data, kTraining);
  struct Input {
    const char* name;
    std::vector<double> Data<double>::* values;
    Member<double> gradient;
    bool present;
  };
  const Input inputs[] = {
      {"x", &Data<double>::x, &Results<double>::x, true},
      {"weight_ih", &Data<double>::weight_ih, &Results<double>::weight_ih, true},
      {"weight_hh", &Data<double>::weight_hh, &Results<double>::weight_hh, true},
      {"weight_hr", &Data<double>::weight_hr, &Results<double>::weight_hr, p.facts().projects != 0},
      {"bias_ih", &Data<double>::bias_ih, &Results<double>::bias_ih, (p.inputs & kBiasIh) != 0},
      {"bias_hh", &Data<double>::bias_hh, &Results<double>::bias_hh, (p.inputs & kBiasHh) != 0},
      {"h0", &Data<double>::h0, &Results<double>::h0, (p.inputs & kH0) != 0},
      {"c0", &Data<double>::c0, &Results<double>::c0, p.facts().has_c && (p.inputs & kC0) != 0},
  };
  const auto dot = [](const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size() && i < b.size(); ++i) sum += a[i] * b[i];
    return sum;
  };
  const auto loss = [&](const Data<double>& at) {
    const Results<double> here = compute(p, at, kInference);
    return (p.upstream & kOutput ? dot(data.grad_output, here.output) : 0) +
           (p.upstream & kHn ? dot(data.grad_h_n, here.h_n) : 0) +
           (p.upstream & kCn ? dot(data.grad_c_n, here.c_n) : 0);
  };
  Random random(static_cast<uint64_t>(p.H * 1000 + p.T));
  std::vector<std::vector<double>> directions;
  for (const Input& input : inputs) {
    directions.push_back(random_values<double>(random, static_cast<int64_t>((data.*input.values).size()), 1));
  }
  constexpr size_t kInputs = sizeof inputs / sizeof *inputs;
  for (size_t which = 0; which <= kInputs; ++which) {  // each alone, and last all
    if (which < kInputs && !inputs[which].present) continue;
    double expected = 0, difference = 0;
    bool right = false;
    // Where a step passes the corner of relu, a smaller one does not.
    for (const double eps : {1e-5, 3e-7, 1e-8}) {
      if (right) break;
      Data<double> up = data, down = data;
      expected = 0;
      for (size_t i = 0; i < kInputs; ++i) {
        if ((which < kInputs && i != which) || !inputs[i].present) continue;
        expected += dot(directions[i], r.*inputs[i].gradient);
        for (size_t k = 0; k < directions[i].size(); ++k) {
          (up.*inputs[i].values)[k] += eps * directions[i][k];
          (down.*inputs[i].values)[k] -= eps * directions[i][k];
        }
      }
      difference = (loss(up) - loss(down)) / (2 * eps);
      right = fabs(difference - expected) <= 1e-6 * fmax(1, fabs(expected));
    }
    char what[400];
    snprintf(what, sizeof what, "%s: derivative of %s %.12g, by differences %.12g", describe(p, 8).c_str(),
             which < kInputs ? inputs[which].name : "all", expected, difference);
    check(right, what, "gradients are those of the function");
  }
}

double distance(const std::vector<float>& got, const std::vector<double>& wanted) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < got.size() && i < wanted.size(); ++i) {
    error += (got[i] - wanted[i]) * (got[i] - wanted[i]);
    norm += wanted[i] * wanted[i];
  }
  return error == 0 ? 0 : sqrt(error / norm);
}

void check_types_agree(const Problem& p) {
  const Results<float> single = compute(p, random_inputs<float>(p), kTraining);
  const Results<double> exact = compute(p, random_inputs<double>(p), kTraining);
  const std::string what = describe(p, 4);
  check(distance(single.output, exact.output) < 1e-6 && distance(single.h_n, exact.h_n) < 1e-6 &&
            distance(single.c_n, exact.c_n) < 1e-6,
        what, "float32 is near float64");
  if (p.cell == HOTLOOP_RNN_RELU) return;  // a rounding error may pass its corner
  const bool near = distance(single.x, exact.x) < 1e-5 && distance(single.weight_ih, exact.weight_ih) < 1e-5 &&
                    distance(single.weight_hh, exact.weight_hh) < 1e-5 &&
                    distance(single.bias_ih, exact.bias_ih) < 1e-5 && distance(single.bias_hh, exact.bias_hh) < 1e-5 &&
                    distance(single.h0, exact.h0) < 1e-5 && distance(single.c0, exact.c0) < 1e-5;
  check(near, what, "float32's gradients are near float64's");
}

// All of the above for one problem.
template <class T>
void check_problem(const Problem& p) {
  const std::string what = describe(p, sizeof(T));
  const Data<T> data = random_inputs<T>(p);
  const Results<T> trained = compute(p, data, kTraining);
  check(all_finite(trained), what, "every result is written, and finite");
  const Results<T> inferred = compute(p, data, kInference);
  check(same_bits(inferred, trained, kForwardResults<T>), what, "inference and training have the same bits");
  check(same_bits(compute(p, data, kPacked), inferred, kForwardResults<T>), what, "packed weights give the same bits");
  for (const int32_t threads : {2, 3}) {
    check(all_same_bits(compute(p, data, kTraining, threads), trained), what, "threads do not show in the bits");
    check(same_bits(compute(p, data, kPacked, threads), inferred, kForwardResults<T>), what,
          "threads do not show in the bits, packed");
  }
  Problem plain = p;
  plain.layout = kTimeMajor;
  plain.wanted = kAllWanted;
  const Results<T> all = compute(plain, data, kTraining);
  check(same_bits(all, trained, kForwardResults<T>), what, "the layout does not show in the bits");
  const Member<T> gradients[] = {&Results<T>::x, &Results<T>::weight_ih, &Results<T>::weight_hh, &Results<T>::bias_ih,
                                 &Results<T>::bias_hh};
  for (size_t i = 0; i < sizeof gradients / sizeof *gradients; ++i) {
    if ((p.wanted >> i & 1) == 0) continue;
    check(same_bits(all.*gradients[i], trained.*gradients[i]), what, "what else is wanted does not show in the bits");
  }
  if (p.B > 1) check_row(p, data, trained, p.H % p.B);
  if (p.T > 1) check_cut(p, data, trained, p.H % (p.T - 1) + 1);
  check_together(p, data, trained, 1 + static_cast<int32_t>(p.H % 3));
  check_larger_plans(p, data, trained);
  check_step(p, data, 1 + static_cast<int32_t>(p.H % 2));
  check_ragged(p, data, 1 + static_cast<int32_t>(p.H % 3));
}

// Hidden sizes 1 to 40; the rest takes its turn, with periods that have no factor in common where that can be, so that
// values meet in ever other company.
Problem covering(int cell, int64_t hidden, bool reverse, unsigned turn) {
  constexpr int64_t kBatches[] = {1, 2, 5, 7, 33, 0, 3};
  constexpr int64_t kSteps[] = {3, 1, 7, 2, 5};
  Problem p{cell, kSteps[turn % 5], kBatches[turn % 7], 1 + static_cast<int64_t>(turn * 3 % 20), hidden};
  p.reverse = reverse;
  p.inputs = turn % 3 == 0 ? kAllInputs : turn * 5 % 16;
  p.upstream = turn % 3 == 1 ? kAllUpstream : turn * 3 % 8;
  p.wanted = turn % 2 == 0 ? kAllWanted : turn * 7 % 32;
  p.layout = static_cast<Layout>(turn % 11 % kLayouts);
  return p;
}

// Large enough to be shared among threads, and for several chunks of rows.
template <class T>
void check_large(int cell, bool reverse, int64_t batch) {
  Problem p{cell, batch == 5 ? 60 : 10, batch, 9, 50};
  p.reverse = reverse;
  const Data<T> data = random_inputs<T>(p);
  const Results<T> one = compute(p, data, kTraining);
  const Results<T> packed = compute(p, data, kPacked);
  const std::string what = describe(p, sizeof(T));
  check(all_finite(one), what, "every result is written, and finite");
  check(same_bits(packed, one, kForwardResults<T>), what, "packed weights give the same bits");
  for (const int32_t threads : {2, 3}) {
    check(all_same_bits(compute(p, data, kTraining, threads), one), what, "threads do not show in the bits");
    check(same_bits(compute(p, data, kPacked, threads), one, kForwardResults<T>), what,
          "threads do not show in the bits, packed");
  }
  check_cut(p, data, one, p.T / 3);
  check_row(p, data, one, 1);
  check_together(p, data, one, reverse ? 2 : 3);
  check_step(p, data, reverse ? 3 : 2);
  check_in_place(p, data, reverse ? 3 : 2);
}

// Calls so long that they come back before the end, resumed, alone and two at a time.
void check_long(int cell) {
  int64_t early = 0;
  for (int64_t steps = 1 << 10; early == 0 && steps <= 1 << 24; steps *= 4) {
    Problem p{cell, steps, 2, 1, 3};
    p.wanted = kWih | kWhh;
    p.upstream = kHn;
    const Data<float> data = random_inputs<float>(p);
    const std::string what = describe(p, 4) + ": long";
    CallOf<float> alone(p, data, kTraining), first(p, data, kTraining), second(p, data, kTraining);
    early = run({&alone}, false, 1, what);
    early = early > 0 ? run({&alone}, true, 1, what) : 0;
    if (early == 0) continue;
    run({&first, &second}, false, 2, what);
    run({&first, &second}, true, 2, what);
    check(all_same_bits(first.results(), alone.results()) && all_same_bits(second.results(), alone.results()), what,
          "two at once have the bits of one alone");
    // Scalars and pointers: to the end at once, its states written over the first ones.
    CallOf<float> stepped(p, data, kInference);
    const hotloop_plan plan = make_plan({&stepped}, false, 1, what);
    const Block workspace(static_cast<size_t>(hotloop_workspace_bytes(&plan)), 1);
    const hotloop_buffers& b = stepped.buffers;
    const size_t state = static_cast<size_t>(p.B * p.H) * sizeof(float);
    const void* const h0 = memcpy(b.h_n, b.h0, state);
    const void* const c0 = b.c0 != nullptr ? memcpy(b.c_n, b.c0, state) : nullptr;
    expect(hotloop_step(&plan, &stepped.weights, p.T, p.B, b.x, h0, c0, b.output, b.h_n, b.c_n, nullptr,
                        workspace.data(), static_cast<int64_t>(workspace.size())),
           HOTLOOP_OK, what + ": step");
    check(same_bits(stepped.results(), alone.results(), kForwardResults<float>), what,
          "structs and scalars have the same bits");
  }
  check(early > 0, std::string(kCellNames[cell]) + " " + hotloop_isa(), "a long call comes back before the end");
}

// Several threads of the program call at once and share what they only read; one of them gets the pool.
void check_concurrent_calls(int cell) {
  const Problem p{cell, 40, 9, 11, 50};
  const Data<float> data = random_inputs<float>(p);
  const Results<float> wanted = compute(p, data, kTraining);
  std::vector<std::thread> threads;
  for (int32_t share = 1; share <= 4; ++share) {
    threads.emplace_back([&, share] {
      for (int turn = 0; turn < 5; ++turn) {
        check(all_same_bits(compute(p, data, kTraining, share), wanted), describe(p, 4),
              "calls from several threads at once have the same bits");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Several threads of the program call at once on the same plans, weights, packed block and executor.
void check_shared(int cell) {
  const Problem p{cell, 40, 9, 11, 50};
  const Data<float> data = random_inputs<float>(p);
  const Results<float> wanted = compute(p, data, kTraining);
  const std::string what = describe(p, 4) + ": shared";
  CallOf<float> plain(p, data, kTraining), packed(p, data, kPacked);
  const hotloop_plan training = make_plan({&plain}, false, 2, what), backward = make_plan({&plain}, true, 2, what);
  const hotloop_plan inference = make_plan({&packed}, false, 2, what);
  const int64_t bytes = hotloop_packed_bytes(&packed.spec);
  const Block copy(static_cast<size_t>(bytes), 64);  // on another cache line
  memcpy(copy.data(), packed.weights.packed, copy.size());
  const hotloop_weights copied{{}, copy.data()};
  Counting counting(true);
  counting.most = 2;
  std::vector<std::thread> threads;
  for (int number = 0; number < 4; ++number) {
    threads.emplace_back([&, number] {
      const hotloop_executor* const executor = number % 2 == 0 ? &counting.executor : nullptr;
      for (int turn = 0; turn < 3; ++turn) {
        CallOf<float> own(p, data, kTraining), inferred(p, data, kInference), stepped(p, data, kInference);
        own.buffers.weights = &plain.weights;
        run_on(training, {&own}, false, what, executor);
        run_on(backward, {&own}, true, what, executor);
        check(all_same_bits(own.results(), wanted), what, "calls on one plan have the same bits");
        inferred.buffers.weights = turn == 1 ? &copied : &packed.weights;
        run_on(inference, {&inferred}, false, what, executor);
        const Block workspace(static_cast<size_t>(hotloop_workspace_bytes(&inference)), 1);
        const hotloop_buffers& b = stepped.buffers;
        expect(hotloop_step(&inference, inferred.buffers.weights, p.T, p.B, b.x, b.h0, b.c0, b.output, b.h_n, b.c_n,
                            executor, workspace.data(), static_cast<int64_t>(workspace.size())),
               HOTLOOP_OK, what);
        check(same_bits(inferred.results(), wanted, kForwardResults<float>) &&
                  same_bits(stepped.results(), wanted, kForwardResults<float>),
              what, "calls on one packed block have the same bits");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  check(memcmp(copy.data(), packed.weights.packed, copy.size()) == 0, what, "a packed block is only read");
}

// tanh and sigmoid on arrays of any length: nothing beyond them, bounded, and as symmetric as they are.
template <class T>
void check_activations() {
  const int32_t dtype = std::is_same_v<T, float> ? HOTLOOP_FLOAT32 : HOTLOOP_FLOAT64;
  for (int64_t count = 0; count <= 70; ++count) {
    Random random(static_cast<uint64_t>(count));
    std::vector<T> values = random_values<T>(random, count, 30), negative = values;
    for (T& value : negative) value = -value;
    const Array<T> x(values), minus_x(negative), result(count), mirrored(count);
    for (const int32_t function : {0, 1}) {
      const char* const name = function == 0 ? "tanh" : "sigmoid";
      expect(hotloop_activation(function, dtype, x.data(), result.data(), count), HOTLOOP_OK, name);
      expect(hotloop_activation(function, dtype, minus_x.data(), mirrored.data(), count), HOTLOOP_OK, name);
      bool right = true;
      for (int64_t i = 0; i < count; ++i) {
        const T y = *result.at(i), other = *mirrored.at(i);
        right = right && (function == 0 ? y == -other && fabs(y) <= 1 : y >= 0 && y <= 1 && fabs(y + other - 1) < 1e-6);
      }
      check(right, std::string(hotloop_isa()) + " " + name, "bounded and symmetric");
    }
  }
}

void check_probes() {
  const Block buffer(8000 + 64, 0);
  for (int32_t probe = HOTLOOP_PROBE_FMA; probe <= HOTLOOP_PROBE_CELL_BACKWARD; ++probe) {
    for (int32_t cell = 0; cell < HOTLOOP_CELL_COUNT; ++cell) {
      for (int32_t dtype = 0; dtype < HOTLOOP_DTYPE_COUNT; ++dtype) {
        memset(buffer.data(), 0, buffer.size());
        check(hotloop_probe(probe, cell, dtype, buffer.data() + 1, 8000, 3) > 0, hotloop_isa(), "a probe works");
      }
    }
  }
  check(hotloop_probe(-1, 0, 0, buffer.data(), 8000, 1) < 0, "probe", "an unknown one is refused");
  check(hotloop_probe(5, 0, 0, buffer.data(), 8000, 1) < 0, "probe", "an unknown one is refused");
  check(hotloop_probe(0, HOTLOOP_CELL_COUNT, 0, buffer.data(), 8000, 1) < 0, "probe", "an unknown cell is refused");
  check(hotloop_probe(0, 0, HOTLOOP_DTYPE_COUNT, buffer.data(), 8000, 1) < 0, "probe", "an unknown type is refused");
  check(hotloop_probe(0, 0, 0, nullptr, 8000, 1) < 0, "probe", "no buffer is refused");
  check(hotloop_probe(0, 0, 0, buffer.data(), 4095, 1) < 0, "probe", "a small buffer is refused");
  check(hotloop_probe(0, 0, 0, buffer.data(), 8000, -1) < 0, "probe", "less than no work is refused");
}

// Bad arguments: a status each, and nothing is written.
class Refusals {
 public:
  explicit Refusals(int cell)
      : p_{cell, 4, 3, 5, 60}, data_(random_inputs<float>(p_)), call_(p_, data_, kTraining), what_(describe(p_, 4)) {
    forward_ = make_plan({&call_}, false, 2, what_);
    backward_ = make_plan({&call_}, true, 2, what_);
    workspace_ = Block(1 << 20, 1);
    check(bytes(forward_) >= 0 && bytes(backward_) >= 0, what_, "a workspace has a size");
  }

  void check_all() {
    const bool has_c = p_.facts().has_c != 0;
    const int64_t least = INT64_MIN, most = INT64_MAX;
    for (const int64_t bad : {int64_t{-1}, least, int64_t{0}, p_.T + 1, most}) {
      both([&](auto& b, auto&) { b.seq_len = bad; }, HOTLOOP_BAD_ARGUMENT, "seq_len");
    }
    for (const int64_t bad : {int64_t{-1}, least, p_.B + 1, most}) {
      both([&](auto& b, auto&) { b.batch_size = bad; }, HOTLOOP_BAD_ARGUMENT, "batch_size");
    }
    for (const int64_t bad : {int64_t{-1}, least, p_.T + 1}) {
      both([&](auto& b, auto&) { b.cursor = bad; }, HOTLOOP_BAD_ARGUMENT, "cursor");
    }
    for (const int64_t bad : {most, least, int64_t{1} << 61}) {
      both([&](auto& b, auto&) { b.x_stride_t = bad; }, HOTLOOP_TOO_LARGE, "x_stride_t");
      both([&](auto& b, auto&) { b.x_stride_b = bad; }, HOTLOOP_TOO_LARGE, "x_stride_b");
      both([&](auto& b, auto&) { b.output_stride_t = bad; }, HOTLOOP_TOO_LARGE, "output_stride_t");
      both([&](auto& b, auto&) { b.output_stride_b = bad; }, HOTLOOP_TOO_LARGE, "output_stride_b");
      both([&](auto& b, auto&) { b.c_stride_t = bad; }, HOTLOOP_TOO_LARGE, "c_stride_t");
      both([&](auto& b, auto&) { b.c_stride_b = bad; }, HOTLOOP_TOO_LARGE, "c_stride_b");
      both([&](auto& b, auto&) { b.resets_stride_t = bad; }, HOTLOOP_TOO_LARGE, "resets_stride_t");
      both([&](auto& b, auto&) { b.resets_stride_b = bad; }, HOTLOOP_TOO_LARGE, "resets_stride_b");
      backward([&](auto&, auto& g) { g.grad_output_stride_t = bad; }, HOTLOOP_TOO_LARGE, "grad_output_stride_t");
      backward([&](auto&, auto& g) { g.grad_output_stride_b = bad; }, HOTLOOP_TOO_LARGE, "grad_output_stride_b");
      backward([&](auto&, auto& g) { g.grad_c_stride_t = bad; }, HOTLOOP_TOO_LARGE, "grad_c_stride_t");
      backward([&](auto&, auto& g) { g.grad_c_stride_b = bad; }, HOTLOOP_TOO_LARGE, "grad_c_stride_b");
      backward([&](auto&, auto& g) { g.grad_x_stride_t = bad; }, HOTLOOP_TOO_LARGE, "grad_x_stride_t");
      backward([&](auto&, auto& g) { g.grad_x_stride_b = bad; }, HOTLOOP_TOO_LARGE, "grad_x_stride_b");
    }
    both([](auto& b, auto&) { b.x = nullptr; }, HOTLOOP_BAD_ARGUMENT, "x");
    both([](auto& b, auto&) { b.weights = nullptr; }, HOTLOOP_BAD_ARGUMENT, "weights");
    both([](auto& b, auto&) { b.output = nullptr; }, HOTLOOP_BAD_ARGUMENT, "output");
    hotloop_weights weights = call_.weights;
    for (const void** const weight : {&weights.parameters[HOTLOOP_WEIGHT_IH], &weights.parameters[HOTLOOP_WEIGHT_HH]}) {
      const void* const before = std::exchange(*weight, nullptr);
      both([&](auto& b, auto&) { b.weights = &weights; }, HOTLOOP_BAD_ARGUMENT, "weight");
      *weight = before;
    }
    const Array<float> line(16);  // backward needs the weights themselves: packed ones alone do not do
    weights = {{}, line.data()};
    backward([&](auto& b, auto&) { b.weights = &weights; }, HOTLOOP_BAD_ARGUMENT, "weight: packed alone");
    forward([](auto& b, auto&) { b.h_n = nullptr; }, HOTLOOP_BAD_ARGUMENT, "h_n");
    backward([](auto&, auto& g) { g.grad_h0 = nullptr; }, HOTLOOP_BAD_ARGUMENT, "grad_h0");
    if (p_.facts().saved > 0) {
      both([](auto& b, auto&) { b.gates = nullptr; }, HOTLOOP_BAD_ARGUMENT, "gates");
    } else {
      both([](auto& b, auto&) { b.gates = b.output; }, HOTLOOP_BAD_ARGUMENT, "gates");
    }
    if (has_c) {
      forward([](auto& b, auto&) { b.c_n = nullptr; }, HOTLOOP_BAD_ARGUMENT, "c_n");
      both([](auto& b, auto&) { b.c = nullptr; }, HOTLOOP_BAD_ARGUMENT, "c");
      backward([](auto&, auto& g) { g.grad_c0 = nullptr; }, HOTLOOP_BAD_ARGUMENT, "grad_c0");
    } else {
      both([](auto& b, auto&) { b.c = b.output; }, HOTLOOP_BAD_ARGUMENT, "c");
      both([](auto& b, auto&) { b.c0 = b.h0; }, HOTLOOP_BAD_ARGUMENT, "c0");
      backward([](auto&, auto& g) { g.grad_c_n = g.grad_h_n; }, HOTLOOP_BAD_ARGUMENT, "grad_c_n");
      backward([](auto&, auto& g) { g.grad_c = g.grad_output; }, HOTLOOP_BAD_ARGUMENT, "grad_c");
      backward([](auto&, auto& g) { g.grad_c0 = g.grad_h0; }, HOTLOOP_BAD_ARGUMENT, "grad_c0");
    }
    const int64_t offsets[] = {0, 1, 2, 3}, falling[] = {0, 2, 1, 3}, late[] = {1, 1, 2, 3}, lengths[] = {1, 5, 2};
    both([&](auto& b, auto&) { b.offsets = falling; }, HOTLOOP_BAD_ARGUMENT, "offsets");
    both([&](auto& b, auto&) { b.offsets = late; }, HOTLOOP_BAD_ARGUMENT, "offsets");
    both([&](auto& b, auto&) { b.lengths = lengths; }, HOTLOOP_BAD_ARGUMENT, "lengths");
    both([&](auto& b, auto&) { b.offsets = offsets, b.lengths = offsets; }, HOTLOOP_BAD_ARGUMENT,
         "offsets and lengths");
    check_unplanned();
    check_short();
    check_specs();
    check_plans();
    check_workspaces();
    check_packed();
    const Results<float> r = call_.results();
    check(!written(r.output) && !written(r.h_n) && !written(r.c_n) && !written(r.gates) && !written(r.c) &&
              !written(r.x) && !written(r.weight_ih) && !written(r.weight_hh) && !written(r.bias_ih) &&
              !written(r.bias_hh) && !written(r.h0) && !written(r.c0),
          what_, "who refuses writes nothing");
  }

 private:
  using Change = std::function<void(hotloop_buffers&, hotloop_gradients&)>;

  static bool written(const std::vector<float>& values) {
    for (const float value : values) {
      if (!isnan(value)) return true;
    }
    return false;
  }

  static int64_t bytes(const hotloop_plan& plan) { return hotloop_workspace_bytes(&plan); }

  void run(bool back, const hotloop_plan& plan, const Change& change, int32_t status, const std::string& name) const {
    hotloop_buffers buffers = call_.buffers;
    hotloop_gradients gradients = call_.gradients;
    change(buffers, gradients);
    const auto size = static_cast<int64_t>(workspace_.size());
    const int32_t got = back ? hotloop_backward(&plan, &buffers, &gradients, nullptr, workspace_.data(), size)
                             : hotloop_forward(&plan, &buffers, nullptr, workspace_.data(), size);
    expect(got, status, what_ + (back ? ": backward with a bad " : ": forward with a bad ") + name);
  }
  void forward(const Change& change, int32_t status, const std::string& name) const {
    run(false, forward_, change, status, name);
  }
  void backward(const Change& change, int32_t status, const std::string& name) const {
    run(true, backward_, change, status, name);
  }
  void both(const Change& change, int32_t status, const std::string& name) const {
    forward(change, status, name);
    backward(change, status, name);
  }

  // What the plan was not made for.
  void check_unplanned() const {
    const auto nothing = [](auto&, auto&) {};
    run(true, forward_, nothing, HOTLOOP_BAD_ARGUMENT, "plan: forward's");
    run(false, backward_, nothing, HOTLOOP_BAD_ARGUMENT, "plan: backward's");
    const auto planned = [&](int32_t uses) {
      hotloop_plan plan{};
      expect(hotloop_make_plan(&plan, &call_.spec, uses, 1, p_.T, p_.B, 1), HOTLOOP_OK, what_);
      return plan;
    };
    run(true, planned(HOTLOOP_BACKWARD | HOTLOOP_GRAD_X), nothing, HOTLOOP_BAD_ARGUMENT, "wish: weights' gradients");
    run(true, planned(HOTLOOP_BACKWARD | HOTLOOP_GRAD_WEIGHTS), nothing, HOTLOOP_BAD_ARGUMENT, "wish: grad_x");
    const std::vector<uint8_t> resets(static_cast<size_t>(p_.T * p_.B));
    backward([&](auto& b, auto&) { b.resets = resets.data(), b.reset_to_initial = 1; }, HOTLOOP_BAD_ARGUMENT,
             "reset_to_initial");
    run(false, planned(HOTLOOP_TRAINING | HOTLOOP_PACKED), nothing, HOTLOOP_BAD_ARGUMENT, "wish: to pack");
    if (p_.facts().saved > 0) {
      run(false, planned(HOTLOOP_INFERENCE), nothing, HOTLOOP_BAD_ARGUMENT, "wish: gates in inference");
    }
  }

  // A short call has its workspace on the stack, and cannot have begun.
  void check_short() const {
    const Problem small{p_.cell, 4, 3, 2, 2};
    const Data<float> data = random_inputs<float>(small);
    const CallOf<float> call(small, data, kTraining);
    hotloop_spec spec = call.spec;
    for (const int32_t uses : {+HOTLOOP_TRAINING, HOTLOOP_BACKWARD | HOTLOOP_GRAD_X | HOTLOOP_GRAD_WEIGHTS}) {
      hotloop_plan plan{};
      expect(hotloop_make_plan(&plan, &spec, uses, 1, small.T, small.B, 2), HOTLOOP_OK, what_ + ": a short plan");
#if defined(HOTLOOP_STACK_BYTES)  // where a sanitizer watches there is none on the stack
      check(bytes(plan) > HOTLOOP_STACK_BYTES, what_, "a short plan needs a workspace here");
#else
      check(bytes(plan) == 0, what_, "a short plan needs no workspace");
      hotloop_gradients gradients = call.gradients;
      for (const int64_t cursor : {int64_t{1}, small.T}) {
        hotloop_buffers buffers = call.buffers;
        buffers.cursor = cursor;
        expect(uses == HOTLOOP_TRAINING ? hotloop_forward(&plan, &buffers, nullptr, nullptr, 0)
                                        : hotloop_backward(&plan, &buffers, &gradients, nullptr, nullptr, 0),
               HOTLOOP_BAD_ARGUMENT, what_ + ": cursor of a short call");
      }
#endif
    }
    const Results<float> r = call.results();
    check(!written(r.output) && !written(r.h_n) && !written(r.gates) && !written(r.weight_hh) && !written(r.h0), what_,
          "who refuses writes nothing");
    hotloop_plan plan{};
    spec = call_.spec;
    expect(hotloop_make_plan(&plan, &spec, HOTLOOP_INFERENCE, 1, 1000, 1000, 2), HOTLOOP_OK, what_ + ": a long plan");
    check(bytes(plan) > 0, what_, "a long plan needs a workspace");
  }

  void check_specs() const {
    const auto make = [&](hotloop_spec spec, int32_t uses, int64_t count, int64_t steps, int64_t rows, int32_t status,
                          const char* name) {
      hotloop_plan plan, before;
      memset(&plan, 0x5a, sizeof plan);
      before = plan;
      expect(hotloop_make_plan(&plan, &spec, uses, count, steps, rows, 2), status, what_ + ": plan with a bad " + name);
      check(status == HOTLOOP_OK || memcmp(&plan, &before, sizeof plan) == 0, what_,
            "a plan that fails is not written");
    };
    const hotloop_spec good = call_.spec;
    for (const int32_t bad : {-1, 1000, INT32_MAX, INT32_MIN, +HOTLOOP_CELL_COUNT}) {
      hotloop_spec spec = good;
      spec.cell = bad;
      make(spec, 0, 1, 1, 1, HOTLOOP_BAD_ARGUMENT, "cell");
      check(hotloop_packed_bytes(&spec) == -1, what_, "packed weights of a bad spec have -1 bytes");
      spec = good;
      spec.dtype = bad;
      make(spec, 0, 1, 1, 1, HOTLOOP_BAD_ARGUMENT, "dtype");
      check(hotloop_packed_bytes(&spec) == -1, what_, "packed weights of a bad spec have -1 bytes");
    }
    for (const auto& [bad, status] : {std::pair{int64_t{0}, HOTLOOP_BAD_ARGUMENT},
                                      {int64_t{-1}, HOTLOOP_BAD_ARGUMENT},
                                      {INT64_MIN, HOTLOOP_BAD_ARGUMENT},
                                      {INT64_MAX, HOTLOOP_TOO_LARGE},
                                      {int64_t{1} << 61, HOTLOOP_TOO_LARGE}}) {
      for (int64_t hotloop_spec::* const size : {&hotloop_spec::input_size, &hotloop_spec::hidden_size}) {
        hotloop_spec spec = good;
        spec.*size = bad;
        if (size == &hotloop_spec::hidden_size) spec.output_size = bad;
        make(spec, 0, 1, 1, 1, status, "size");
        check(hotloop_packed_bytes(&spec) == -1, what_, "packed weights of a bad spec have -1 bytes");
      }
      make(good, 0, 1, bad, 1, status, "seq_len");
      make(good, 0, 1, bad, 0, status, "seq_len");
      if (bad != 0) make(good, 0, 1, 1, bad, status, "batch_size");
      make(good, 0, bad, 1, 1, HOTLOOP_BAD_ARGUMENT, "count");
    }
    for (const int32_t uses : {-1, INT32_MIN, 2 * HOTLOOP_BATCH_FIRST, INT32_MAX}) {
      make(good, uses, 1, 1, 1, HOTLOOP_BAD_ARGUMENT, "use");
    }
    for (int32_t uses = 0; uses < 2 * HOTLOOP_BATCH_FIRST; ++uses) {
      const int32_t apart = (uses & HOTLOOP_BACKWARD) != 0
                                ? HOTLOOP_TRAINING | HOTLOOP_PACKED | HOTLOOP_BATCH_FIRST
                                : HOTLOOP_GRAD_X | HOTLOOP_GRAD_WEIGHTS | HOTLOOP_RESET_TO_INITIAL;
      make(good, uses, 1, 1, 1, (uses & apart) != 0 ? HOTLOOP_BAD_ARGUMENT : HOTLOOP_OK, "mix of uses");
    }
    for (const int32_t threads : {0, -1, INT32_MIN, INT32_MAX}) {  // any number is taken
      hotloop_plan plan{}, one{};
      expect(hotloop_make_plan(&plan, &good, 0, 1, 1000, 100, threads), HOTLOOP_OK, what_ + ": threads");
      expect(hotloop_make_plan(&one, &good, 0, 1, 1000, 100, 1), HOTLOOP_OK, what_ + ": one thread");
      check(threads > 0 || bytes(plan) == bytes(one), what_, "less than one thread is one");
    }
    expect(hotloop_make_plan(nullptr, &good, 0, 1, 1, 1, 1), HOTLOOP_BAD_ARGUMENT, what_ + ": no plan");
    hotloop_plan plan{};
    expect(hotloop_make_plan(&plan, nullptr, 0, 1, 1, 1, 1), HOTLOOP_BAD_ARGUMENT, what_ + ": no spec");
    check(hotloop_packed_bytes(nullptr) == -1, what_, "no spec has -1 bytes");
  }

  // What is no plan, or one of another instruction set.
  void check_plans() const {
    const auto nothing = [](auto&, auto&) {};
    hotloop_plan plan{};
    for (const int byte : {0, 0xff}) {
      memset(&plan, byte, sizeof plan);
      check(bytes(plan) == -1, what_, "what is no plan has -1 bytes");
      run(false, plan, nothing, HOTLOOP_PLANNED_ELSEWHERE, "plan");
      run(true, plan, nothing, HOTLOOP_PLANNED_ELSEWHERE, "plan");
    }
    check(hotloop_workspace_bytes(nullptr) == -1, what_, "what is no plan has -1 bytes");
    const hotloop_buffers& b = call_.buffers;
    const auto step = [&](const hotloop_plan* which) {
      return hotloop_step(which, &call_.weights, 1, 1, b.x, b.h0, b.c0, b.output, b.h_n, b.c_n, nullptr, nullptr, 0);
    };
    expect(step(nullptr), HOTLOOP_PLANNED_ELSEWHERE, what_ + ": step without a plan");
    expect(step(&plan), HOTLOOP_PLANNED_ELSEWHERE, what_ + ": step without a plan");
    expect(step(&backward_), HOTLOOP_BAD_ARGUMENT, what_ + ": step on a plan of backward");
    expect(step(&forward_), HOTLOOP_BAD_ARGUMENT, what_ + ": step on a plan of training");
    hotloop_plan inference{};
    expect(hotloop_make_plan(&inference, &call_.spec, 0, 2, p_.T, p_.B, 1), HOTLOOP_OK, what_);
    expect(step(&inference), HOTLOOP_BAD_ARGUMENT, what_ + ": step on a plan of two");
    expect(hotloop_make_plan(&inference, &call_.spec, 0, 1, p_.T, p_.B, 1), HOTLOOP_OK, what_);
    // Each of its pointers in turn is not there.
    for (int none = 0; none < 5; ++none) {
      if (none == 4 && !p_.facts().has_c) continue;
      expect(hotloop_step(&inference, none == 0 ? nullptr : &call_.weights, 1, 1, none == 1 ? nullptr : b.x, b.h0, b.c0,
                          none == 2 ? nullptr : b.output, none == 3 ? nullptr : b.h_n, none == 4 ? nullptr : b.c_n,
                          nullptr, workspace_.data(), static_cast<int64_t>(workspace_.size())),
             HOTLOOP_BAD_ARGUMENT, what_ + ": step with a pointer that is not there");
    }
    hotloop_buffers buffers = b;
    hotloop_gradients gradients = call_.gradients;
    expect(hotloop_forward(nullptr, &buffers, nullptr, nullptr, 0), HOTLOOP_PLANNED_ELSEWHERE, what_ + ": no plan");
    expect(hotloop_forward(&forward_, nullptr, nullptr, nullptr, 0), HOTLOOP_BAD_ARGUMENT, what_ + ": no buffers");
    expect(hotloop_backward(&backward_, nullptr, &gradients, nullptr, nullptr, 0), HOTLOOP_BAD_ARGUMENT, what_);
    expect(hotloop_backward(&backward_, &buffers, nullptr, nullptr, nullptr, 0), HOTLOOP_BAD_ARGUMENT, what_);
    const std::string isa = hotloop_isa();
    for (int32_t i = 0; hotloop_isa_at(i) != nullptr; ++i) {
      if (isa == hotloop_isa_at(i)) continue;
      hotloop_use_isa(hotloop_isa_at(i));
      run(false, forward_, nothing, HOTLOOP_PLANNED_ELSEWHERE, "plan: another instruction set");
      run(true, backward_, nothing, HOTLOOP_PLANNED_ELSEWHERE, "plan: another instruction set");
      expect(step(&inference), HOTLOOP_PLANNED_ELSEWHERE, what_ + ": step, another instruction set");
      check(bytes(forward_) == -1 && bytes(backward_) == -1 && bytes(inference) == -1, what_,
            "a plan of another instruction set has -1 bytes");
    }
    hotloop_use_isa(isa.c_str());
    // A bad one among good ones: all are checked first.
    hotloop_buffers two[] = {b, b};
    two[1].x = nullptr;
    expect(hotloop_make_plan(&plan, &call_.spec, HOTLOOP_TRAINING, 2, p_.T, p_.B, 1), HOTLOOP_OK, what_);
    expect(hotloop_forward(&plan, two, nullptr, workspace_.data(), static_cast<int64_t>(workspace_.size())),
           HOTLOOP_BAD_ARGUMENT, what_ + ": one bad of two");
    const int32_t all = HOTLOOP_BACKWARD | HOTLOOP_GRAD_X | HOTLOOP_GRAD_WEIGHTS;
    expect(hotloop_make_plan(&plan, &call_.spec, all, 2, p_.T, p_.B, 1), HOTLOOP_OK, what_);
    hotloop_gradients two_gradients[] = {gradients, gradients};
    const auto back = [&] {
      return hotloop_backward(&plan, two, two_gradients, nullptr, workspace_.data(),
                              static_cast<int64_t>(workspace_.size()));
    };
    expect(back(), HOTLOOP_BAD_ARGUMENT, what_ + ": one bad of two");
    two[1].x = b.x;
    two_gradients[1].grad_h0 = nullptr;
    expect(back(), HOTLOOP_BAD_ARGUMENT, what_ + ": one bad of two gradients");
  }

  void check_workspaces() const {
    hotloop_buffers buffers = call_.buffers;
    hotloop_gradients gradients = call_.gradients;
    for (const bool back : {false, true}) {
      const hotloop_plan& plan = back ? backward_ : forward_;
      const auto status = [&](void* workspace, int64_t size) {
        return back ? hotloop_backward(&plan, &buffers, &gradients, nullptr, workspace, size)
                    : hotloop_forward(&plan, &buffers, nullptr, workspace, size);
      };
      if (bytes(plan) == 0) continue;  // an RNN of this size
      for (const int64_t size : {bytes(plan) - 1, int64_t{0}, int64_t{-1}, INT64_MIN}) {
        expect(status(workspace_.data(), size), HOTLOOP_WORKSPACE_TOO_SMALL, what_ + ": a small workspace");
      }
      expect(status(nullptr, bytes(plan)), HOTLOOP_WORKSPACE_TOO_SMALL, what_ + ": no workspace");
    }
  }

  void check_packed() const {
    const hotloop_spec& spec = call_.spec;
    hotloop_weights weights = call_.weights;
    const int64_t bytes = hotloop_packed_bytes(&spec);
    const Block packed(static_cast<size_t>(bytes), 0), odd(static_cast<size_t>(bytes), 4);
    expect(hotloop_pack(nullptr, &weights, packed.data(), bytes), HOTLOOP_BAD_ARGUMENT, what_ + ": pack no spec");
    expect(hotloop_pack(&spec, nullptr, packed.data(), bytes), HOTLOOP_BAD_ARGUMENT, what_ + ": pack nothing");
    expect(hotloop_pack(&spec, &weights, nullptr, bytes), HOTLOOP_BAD_ARGUMENT, what_ + ": pack into nothing");
    expect(hotloop_pack(&spec, &weights, odd.data(), bytes), HOTLOOP_BAD_ARGUMENT, what_ + ": pack at an odd address");
    expect(hotloop_pack(&spec, &weights, packed.data(), bytes - 1), HOTLOOP_WORKSPACE_TOO_SMALL,
           what_ + ": pack into less");
    for (const void** const weight : {&weights.parameters[HOTLOOP_WEIGHT_IH], &weights.parameters[HOTLOOP_WEIGHT_HH]}) {
      const void* const before = std::exchange(*weight, nullptr);
      expect(hotloop_pack(&spec, &weights, packed.data(), bytes), HOTLOOP_BAD_ARGUMENT, what_ + ": pack no weights");
      *weight = before;
    }
    expect(hotloop_pack(&spec, &weights, packed.data(), bytes), HOTLOOP_OK, what_ + ": pack");
    memcpy(odd.data(), packed.data(), packed.size());
    const auto with = [&](const hotloop_spec& other, const void* block, const char* name) {
      hotloop_plan plan{};
      expect(hotloop_make_plan(&plan, &other, HOTLOOP_TRAINING | HOTLOOP_PACKED, 1, p_.T, p_.B, 1), HOTLOOP_OK, what_);
      const hotloop_weights given{{}, block};
      const auto use = [&](auto& b, auto&) {
        b.weights = &given;
        if (other.cell != spec.cell) {  // what another cell does not have, or has besides
          b.gates = traits_of(other.cell).saved > 0 ? workspace_.data() : nullptr;
          b.c = b.c_n = traits_of(other.cell).has_c ? workspace_.data() : nullptr;
          b.c0 = nullptr;
        }
      };
      run(false, plan, use, HOTLOOP_PACKED_ELSEWHERE, std::string("packed: ") + name);
      expect(hotloop_make_plan(&plan, &other, HOTLOOP_PACKED, 1, p_.T, p_.B, 1), HOTLOOP_OK, what_);
      const hotloop_buffers& b = call_.buffers;
      expect(hotloop_step(&plan, &given, 1, 1, b.x, nullptr, nullptr, b.output, b.h_n, workspace_.data(), nullptr,
                          workspace_.data(), static_cast<int64_t>(workspace_.size())),
             HOTLOOP_PACKED_ELSEWHERE, what_ + ": step, packed: " + name);
    };
    with(spec, odd.data(), "odd address");
    hotloop_spec other = spec;
    other.input_size = 1;
    with(other, packed.data(), "another input size");
    other = spec;
    other.hidden_size = other.output_size = 1;
    with(other, packed.data(), "another hidden size");
    other = spec;
    other.dtype = HOTLOOP_FLOAT64;
    with(other, packed.data(), "another type");
    other = spec;
    other.cell = (spec.cell + 1) % HOTLOOP_CELL_COUNT;
    with(other, packed.data(), "another cell");
    const std::string isa = hotloop_isa();
    for (int32_t i = 0; hotloop_isa_at(i) != nullptr; ++i) {
      if (isa == hotloop_isa_at(i)) continue;
      hotloop_use_isa(hotloop_isa_at(i));
      with(spec, packed.data(), "another instruction set");
    }
    hotloop_use_isa(isa.c_str());
  }

  Problem p_;
  Data<float> data_;
  CallOf<float> call_;
  std::string what_;
  hotloop_plan forward_{}, backward_{};
  Block workspace_;
};

void check_rest() {
  check(hotloop_abi_version() == HOTLOOP_ABI_VERSION, "abi_version", "the library is the header's");
  for (const char* const name : {"", "sse9", "SCALAR"}) {
    expect(hotloop_use_isa(name), HOTLOOP_UNKNOWN_ISA, std::string("use_isa ") + name);
  }
  expect(hotloop_use_isa(nullptr), HOTLOOP_UNKNOWN_ISA, "use_isa with nothing");
  check(hotloop_isa_at(-1) == nullptr && hotloop_isa_at(100) == nullptr, "isa_at", "there are no others");
  check(hotloop_processors() >= 1, "processors", "there is one");
  for (int32_t status = -1; status <= 8; ++status) {
    check(hotloop_status_string(status) != nullptr && *hotloop_status_string(status) != '\0', "status", "has a text");
  }
  const auto region = [](void (*)(void*), void*, unsigned, unsigned) {};
  const auto threads = [] { return 1; };
  check(hotloop_openmp_executor(nullptr, threads) == nullptr, "openmp_executor", "there is none of nothing");
  check(hotloop_openmp_executor(region, nullptr) == nullptr, "openmp_executor", "there is none of nothing");
  float value = 1;
  expect(hotloop_activation(2, 0, &value, &value, 1), HOTLOOP_BAD_ARGUMENT, "activation: function");
  expect(hotloop_activation(-1, 0, &value, &value, 1), HOTLOOP_BAD_ARGUMENT, "activation: function");
  expect(hotloop_activation(0, 2, &value, &value, 1), HOTLOOP_BAD_ARGUMENT, "activation: dtype");
  expect(hotloop_activation(0, 0, nullptr, &value, 1), HOTLOOP_BAD_ARGUMENT, "activation: x");
  expect(hotloop_activation(0, 0, &value, nullptr, 1), HOTLOOP_BAD_ARGUMENT, "activation: result");
  expect(hotloop_activation(0, 0, &value, &value, -1), HOTLOOP_BAD_ARGUMENT, "activation: count");
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t stride = argc > 1 && strcmp(argv[1], "few") == 0 ? 7 : 1;
  // Before anything is chosen: a name in the environment that there is not.
  setenv("HOTLOOP_ISA", "sse9", 1);
  check(hotloop_isa() == nullptr, "HOTLOOP_ISA=sse9", "there is no such instruction set");
  const Problem some{HOTLOOP_GRU, 2, 2, 2, 2};
  const CallOf<float> call(some, random_inputs<float>(some), kInference);
  hotloop_plan plan{};
  expect(hotloop_make_plan(&plan, &call.spec, HOTLOOP_INFERENCE, 1, 1, 1, 1), HOTLOOP_UNKNOWN_ISA, "HOTLOOP_ISA=sse9");
  check(hotloop_packed_bytes(&call.spec) == -1, "HOTLOOP_ISA=sse9", "nothing can be said");
  expect(hotloop_activation(0, 0, nullptr, nullptr, 0), HOTLOOP_UNKNOWN_ISA, "HOTLOOP_ISA=sse9");
  setenv("HOTLOOP_ISA", "", 1);

  for (int32_t i = 0; hotloop_isa_at(i) != nullptr; ++i) {
    expect(hotloop_use_isa(hotloop_isa_at(i)), HOTLOOP_OK, hotloop_isa_at(i));
    const int64_t before = passed + failed;
    unsigned turn = 0;
    for (int cell = 0; cell < HOTLOOP_CELL_COUNT; ++cell) {
      for (int64_t hidden = 1; hidden <= 40; hidden += stride) {
        for (const bool reverse : {false, true}) {
          check_problem<float>(covering(cell, hidden, reverse, turn++));
          check_problem<double>(covering(cell, hidden, reverse, turn++));
        }
      }
      for (const bool reverse : {false, true}) {
        for (const int64_t hidden : {1, 7, 12, 23}) {
          Problem p{cell, 6, 3, 4, hidden};
          p.reverse = reverse;
          check_derivatives(p);
          check_types_agree(p);
          p.inputs = kH0;
          check_derivatives(p);
        }
        check_large<float>(cell, reverse, reverse ? 33 : 5);
        check_large<double>(cell, reverse, reverse ? 5 : 33);
      }
      if (i == 0) check_long(cell);  // rounds are cut the same way on all of them
      check_concurrent_calls(cell);
      check_shared(cell);
      check_executors(cell);
      Refusals(cell).check_all();
    }
    check_activations<float>();
    check_activations<double>();
    check_probes();
    printf("%s: %lld checks\n", hotloop_isa(), static_cast<long long>(passed + failed - before));
    fflush(stdout);
  }
  check_rest();
  printf("%lld passed, %lld failed\n", static_cast<long long>(passed), static_cast<long long>(failed));
  return failed == 0 ? 0 : 1;
}
