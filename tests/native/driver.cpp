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

// Several recurrences in one call: both directions, and another cell and type of another shape.
template <class T>
void check_together(const Problem& p, const Data<T>& data, const Results<T>& alone, int32_t threads) {
  using Other = std::conditional_t<std::is_same_v<T, float>, double, float>;
  Problem reversed = p, other = p;
  reversed.reverse = !p.reverse;
  reversed.layout = kTimeMajor;
  other.cell = (p.cell + 1) % HOTLOOP_CELL_COUNT;
  other.T = p.T % 4 + 1;
  other.B = p.B % 3 + 1;
  other.H = p.H % 20 + 1;
  const Data<Other> other_data = random_inputs<Other>(other);
  CallOf<T> first(p, data, kTraining), second(reversed, data, kTraining);
  CallOf<Other> third(other, other_data, kTraining);
  const std::string what = describe(p, sizeof(T)) + ": three at once";
  run({&first, &second, &third}, false, threads, what);
  run({&first, &second, &third}, true, threads, what);
  const bool same = all_same_bits(first.results(), alone) &&
                    all_same_bits(second.results(), compute(reversed, data, kTraining)) &&
                    all_same_bits(third.results(), compute(other, other_data, kTraining));
  check(same, what, "one call and three have the same bits");
}

// The entry points for callers that cannot pass structs.
template <class T>
void check_flat(const Problem& p, const Data<T>& data, const Results<T>& wanted, int32_t threads) {
  const std::string what = describe(p, sizeof(T)) + ": flat";
  const CallOf<T> call(p, data, kTraining);
  const hotloop_forward_args& f = call.args.forward;
  const hotloop_backward_args& b = call.args;
  const int64_t forward_bytes = hotloop_forward_flat_workspace(f.cell, f.dtype, p.T, p.B, p.I, p.H, threads);
  const int64_t backward_bytes = hotloop_backward_flat_workspace(f.cell, f.dtype, p.T, p.B, p.I, p.H, threads);
  check(forward_bytes >= 0 && backward_bytes >= 0, what, "a workspace has a size");
  const Block forward_workspace(static_cast<size_t>(forward_bytes), 1);
  const Block backward_workspace(static_cast<size_t>(backward_bytes), 1);
  const auto forward = [&](int64_t bytes) {
    return hotloop_forward_flat(f.cell, f.dtype, f.reverse, p.T, p.B, p.I, p.H, f.x, f.x_stride_t, f.x_stride_b,
                                f.weight_ih, f.weight_hh, f.bias_ih, f.bias_hh, f.h0, f.c0, f.output, f.output_stride_t,
                                f.output_stride_b, f.h_n, f.c_n, f.gates, f.c, f.lengths, f.offsets, f.resets,
                                f.resets_stride_t, f.resets_stride_b, f.reset_to_initial, threads,
                                forward_workspace.data(), bytes);
  };
  const auto backward = [&](int64_t bytes) {
    return hotloop_backward_flat(f.cell, f.dtype, f.reverse, p.T, p.B, p.I, p.H, f.x, f.x_stride_t, f.x_stride_b,
                                 f.weight_ih, f.weight_hh, f.h0, f.c0, f.output, f.output_stride_t, f.output_stride_b,
                                 f.gates, f.c, f.lengths, f.offsets, f.resets, f.resets_stride_t, f.resets_stride_b,
                                 f.reset_to_initial, b.grad_output, b.grad_output_stride_t, b.grad_output_stride_b,
                                 b.grad_h_n, b.grad_c_n, b.grad_c, b.grad_x, b.grad_x_stride_t, b.grad_x_stride_b,
                                 b.grad_weight_ih, b.grad_weight_hh, b.grad_bias_ih, b.grad_bias_hh, b.grad_h0,
                                 b.grad_c0, threads, backward_workspace.data(), bytes);
  };
  expect(forward(-1), HOTLOOP_WORKSPACE_TOO_SMALL, what);
  expect(backward(-1), HOTLOOP_WORKSPACE_TOO_SMALL, what);
  expect(forward(forward_bytes), HOTLOOP_OK, what);
  expect(backward(backward_bytes), HOTLOOP_OK, what);
  check(all_same_bits(call.results(), wanted), what, "structs and scalars have the same bits");
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
  check_flat(p, data, together, threads);
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
  check_flat(p, data, trained, 1 + static_cast<int32_t>(p.H % 2));
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
  }
  check(early > 0, std::string(kCells[cell].name) + " " + hotloop_isa(), "a long call comes back before the end");
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
      : p_{cell, 4, 3, 5, 6}, data_(random_inputs<float>(p_)), call_(p_, data_, kTraining), what_(describe(p_, 4)) {
    const hotloop_backward_args& args = call_.args;
    forward_bytes_ = hotloop_forward_workspace(&args.forward, 1, 2);
    backward_bytes_ = hotloop_backward_workspace(&args, 1, 2);
    forward_workspace_ = Block(static_cast<size_t>(forward_bytes_), 1);
    backward_workspace_ = Block(static_cast<size_t>(backward_bytes_), 1);
  }

  void check_all() {
    const bool has_c = p_.facts().has_c;
    const int64_t least = INT64_MIN, most = INT64_MAX;
    for (const int32_t bad : {-1, 1000, INT32_MAX, INT32_MIN}) {
      both([&](auto& args) { args.forward.cell = bad; }, HOTLOOP_BAD_ARGUMENT, "cell");
      both([&](auto& args) { args.forward.dtype = bad; }, HOTLOOP_BAD_ARGUMENT, "dtype");
    }
    both([](auto& args) { args.forward.cell = HOTLOOP_CELL_COUNT; }, HOTLOOP_BAD_ARGUMENT, "cell");
    both([](auto& args) { args.forward.dtype = HOTLOOP_DTYPE_COUNT; }, HOTLOOP_BAD_ARGUMENT, "dtype");
    for (const int64_t bad : {int64_t{-1}, least}) {
      both([&](auto& args) { args.forward.seq_len = bad; }, HOTLOOP_BAD_ARGUMENT, "seq_len");
      both([&](auto& args) { args.forward.batch_size = bad; }, HOTLOOP_BAD_ARGUMENT, "batch_size");
      both([&](auto& args) { args.forward.input_size = bad; }, HOTLOOP_BAD_ARGUMENT, "input_size");
      both([&](auto& args) { args.forward.hidden_size = bad; }, HOTLOOP_BAD_ARGUMENT, "hidden_size");
      forward([&](auto& args) { args.forward.cursor = bad; }, HOTLOOP_BAD_ARGUMENT, "cursor");
      backward([&](auto& args) { args.cursor = bad; }, HOTLOOP_BAD_ARGUMENT, "cursor");
    }
    both([](auto& args) { args.forward.seq_len = 0; }, HOTLOOP_BAD_ARGUMENT, "seq_len");
    both([](auto& args) { args.forward.input_size = 0; }, HOTLOOP_BAD_ARGUMENT, "input_size");
    both([](auto& args) { args.forward.hidden_size = 0; }, HOTLOOP_BAD_ARGUMENT, "hidden_size");
    forward([&](auto& args) { args.forward.cursor = p_.T + 1; }, HOTLOOP_BAD_ARGUMENT, "cursor");
    backward([&](auto& args) { args.cursor = p_.T + 1; }, HOTLOOP_BAD_ARGUMENT, "cursor");
    for (const int64_t bad : {most, int64_t{1} << 61}) {
      both([&](auto& args) { args.forward.seq_len = bad; }, HOTLOOP_TOO_LARGE, "seq_len");
      both([&](auto& args) { args.forward.batch_size = bad; }, HOTLOOP_TOO_LARGE, "batch_size");
      both([&](auto& args) { args.forward.input_size = bad; }, HOTLOOP_TOO_LARGE, "input_size");
      both([&](auto& args) { args.forward.hidden_size = bad; }, HOTLOOP_TOO_LARGE, "hidden_size");
    }
    for (const int64_t bad : {most, least, int64_t{1} << 61}) {
      both([&](auto& args) { args.forward.x_stride_t = bad; }, HOTLOOP_TOO_LARGE, "x_stride_t");
      both([&](auto& args) { args.forward.x_stride_b = bad; }, HOTLOOP_TOO_LARGE, "x_stride_b");
      both([&](auto& args) { args.forward.output_stride_t = bad; }, HOTLOOP_TOO_LARGE, "output_stride_t");
      both([&](auto& args) { args.forward.output_stride_b = bad; }, HOTLOOP_TOO_LARGE, "output_stride_b");
      backward([&](auto& args) { args.grad_output_stride_t = bad; }, HOTLOOP_TOO_LARGE, "grad_output_stride_t");
      backward([&](auto& args) { args.grad_output_stride_b = bad; }, HOTLOOP_TOO_LARGE, "grad_output_stride_b");
      backward([&](auto& args) { args.grad_x_stride_t = bad; }, HOTLOOP_TOO_LARGE, "grad_x_stride_t");
      backward([&](auto& args) { args.grad_x_stride_b = bad; }, HOTLOOP_TOO_LARGE, "grad_x_stride_b");
    }
    both([](auto& args) { args.forward.x = nullptr; }, HOTLOOP_BAD_ARGUMENT, "x");
    both([](auto& args) { args.forward.weight_ih = nullptr; }, HOTLOOP_BAD_ARGUMENT, "weight_ih");
    both([](auto& args) { args.forward.weight_hh = nullptr; }, HOTLOOP_BAD_ARGUMENT, "weight_hh");
    both([](auto& args) { args.forward.output = nullptr; }, HOTLOOP_BAD_ARGUMENT, "output");
    forward([](auto& args) { args.forward.h_n = nullptr; }, HOTLOOP_BAD_ARGUMENT, "h_n");
    backward([](auto& args) { args.grad_h0 = nullptr; }, HOTLOOP_BAD_ARGUMENT, "grad_h0");
    if (p_.facts().saved > 0) {
      backward([](auto& args) { args.forward.gates = nullptr; }, HOTLOOP_BAD_ARGUMENT, "gates");
    } else {
      forward([](auto& args) { args.forward.gates = args.forward.output; }, HOTLOOP_BAD_ARGUMENT, "gates");
    }
    if (has_c) {
      forward([](auto& args) { args.forward.c_n = nullptr; }, HOTLOOP_BAD_ARGUMENT, "c_n");
      both([](auto& args) { args.forward.c = nullptr; }, HOTLOOP_BAD_ARGUMENT, "c");
      backward([](auto& args) { args.grad_c0 = nullptr; }, HOTLOOP_BAD_ARGUMENT, "grad_c0");
    } else {
      forward([](auto& args) { args.forward.c = args.forward.output; }, HOTLOOP_BAD_ARGUMENT, "c");
      forward([](auto& args) { args.forward.c0 = args.forward.h0; }, HOTLOOP_BAD_ARGUMENT, "c0");
      backward([](auto& args) { args.grad_c_n = args.grad_h_n; }, HOTLOOP_BAD_ARGUMENT, "grad_c_n");
      backward([](auto& args) { args.grad_c0 = args.grad_h0; }, HOTLOOP_BAD_ARGUMENT, "grad_c0");
    }
    check_workspaces();
    check_counts();
    check_packed();
    const Results<float> r = call_.results();
    check(!written(r.output) && !written(r.h_n) && !written(r.c_n) && !written(r.gates) && !written(r.c) &&
              !written(r.x) && !written(r.weight_ih) && !written(r.weight_hh) && !written(r.bias_ih) &&
              !written(r.bias_hh) && !written(r.h0) && !written(r.c0),
          what_, "who refuses writes nothing");
  }

 private:
  using Change = std::function<void(hotloop_backward_args&)>;

  static bool written(const std::vector<float>& values) {
    for (const float value : values) {
      if (!isnan(value)) return true;
    }
    return false;
  }

  int32_t run_forward(hotloop_backward_args args) const {
    return hotloop_forward(&args.forward, 1, 2, forward_workspace_.data(), forward_bytes_);
  }
  int32_t run_backward(hotloop_backward_args args) const {
    return hotloop_backward(&args, 1, 2, backward_workspace_.data(), backward_bytes_);
  }
  void forward(const Change& change, int32_t status, const char* name) const {
    hotloop_backward_args args = call_.args;
    change(args);
    expect(run_forward(args), status, what_ + ": forward with a bad " + name);
  }
  void backward(const Change& change, int32_t status, const char* name) const {
    hotloop_backward_args args = call_.args;
    change(args);
    expect(run_backward(args), status, what_ + ": backward with a bad " + name);
  }
  void both(const Change& change, int32_t status, const char* name) const {
    forward(change, status, name);
    backward(change, status, name);
  }

  void check_workspaces() const {
    hotloop_backward_args args = call_.args;
    const auto status = [&](bool back, void* workspace, int64_t bytes) {
      return back ? hotloop_backward(&args, 1, 2, workspace, bytes)
                  : hotloop_forward(&args.forward, 1, 2, workspace, bytes);
    };
    for (const bool back : {false, true}) {
      const int64_t enough = back ? backward_bytes_ : forward_bytes_;
      char* const workspace = (back ? backward_workspace_ : forward_workspace_).data();
      for (const int64_t bytes : {enough - 1, int64_t{0}, int64_t{-1}, INT64_MIN}) {
        expect(status(back, workspace, bytes), HOTLOOP_WORKSPACE_TOO_SMALL, what_ + ": a small workspace");
      }
      expect(status(back, nullptr, enough), HOTLOOP_WORKSPACE_TOO_SMALL, what_ + ": no workspace");
    }
    for (const int64_t bad : {int64_t{-1}, INT64_MAX}) {
      hotloop_backward_args wrong = call_.args;
      wrong.forward.hidden_size = bad;
      check(hotloop_forward_workspace(&wrong.forward, 1, 1) == -1, what_, "the workspace of bad sizes is -1");
      check(hotloop_backward_workspace(&wrong, 1, 1) == -1, what_, "the workspace of bad sizes is -1");
      check(hotloop_packed_bytes(&wrong.forward) == -1, what_, "packed weights of bad sizes have -1 bytes");
      check(hotloop_forward_flat_workspace(p_.cell, 0, 1, 1, 1, bad, 1) == -1, what_, "a flat call's workspace, too");
      check(hotloop_backward_flat_workspace(p_.cell, 0, 1, 1, 1, bad, 1) == -1, what_, "a flat call's workspace, too");
    }
  }

  void check_counts() {
    hotloop_backward_args args = call_.args;
    char none[1];
    for (const int64_t bad : {int64_t{-1}, INT64_MIN}) {
      expect(hotloop_forward(&args.forward, bad, 1, none, 0), HOTLOOP_BAD_ARGUMENT, what_ + ": a negative count");
      expect(hotloop_backward(&args, bad, 1, none, 0), HOTLOOP_BAD_ARGUMENT, what_ + ": a negative count");
      check(hotloop_forward_workspace(&args.forward, bad, 1) == -1, what_, "a negative count needs -1 bytes");
      check(hotloop_backward_workspace(&args, bad, 1) == -1, what_, "a negative count needs -1 bytes");
    }
    expect(hotloop_forward(nullptr, 1, 1, none, 0), HOTLOOP_BAD_ARGUMENT, what_ + ": no struct");
    expect(hotloop_backward(nullptr, 1, 1, none, 0), HOTLOOP_BAD_ARGUMENT, what_ + ": no struct");
    check(hotloop_forward_workspace(nullptr, 1, 1) == -1, what_, "no struct needs -1 bytes");
    check(hotloop_backward_workspace(nullptr, 1, 1) == -1, what_, "no struct needs -1 bytes");
    check(hotloop_packed_bytes(nullptr) == -1, what_, "no struct has -1 bytes");
    // A bad one among good ones: all are checked first.
    hotloop_backward_args two[] = {args, args};
    two[1].forward.input_size = 0;
    hotloop_forward_args two_forward[] = {two[0].forward, two[1].forward};
    const Block workspace(static_cast<size_t>(2 * (forward_bytes_ + backward_bytes_)), 1);
    const auto bytes = static_cast<int64_t>(workspace.size());
    expect(hotloop_forward(two_forward, 2, 1, workspace.data(), bytes), HOTLOOP_BAD_ARGUMENT,
           what_ + ": one bad of two");
    expect(hotloop_backward(two, 2, 1, workspace.data(), bytes), HOTLOOP_BAD_ARGUMENT, what_ + ": one bad of two");
  }

  void check_packed() {
    hotloop_backward_args args = call_.args;
    hotloop_forward_args& f = args.forward;
    const int64_t bytes = hotloop_packed_bytes(&f);
    const Block packed(static_cast<size_t>(bytes), 0), odd(static_cast<size_t>(bytes), 4);
    expect(hotloop_pack(nullptr, packed.data(), bytes), HOTLOOP_BAD_ARGUMENT, what_ + ": pack nothing");
    expect(hotloop_pack(&f, nullptr, bytes), HOTLOOP_BAD_ARGUMENT, what_ + ": pack into nothing");
    expect(hotloop_pack(&f, odd.data(), bytes), HOTLOOP_BAD_ARGUMENT, what_ + ": pack at an odd address");
    expect(hotloop_pack(&f, packed.data(), bytes - 1), HOTLOOP_WORKSPACE_TOO_SMALL, what_ + ": pack into less");
    for (const void** const weight : {&f.weight_ih, &f.weight_hh}) {
      const void* const before = std::exchange(*weight, nullptr);
      expect(hotloop_pack(&f, packed.data(), bytes), HOTLOOP_BAD_ARGUMENT, what_ + ": pack without weights");
      *weight = before;
    }
    expect(hotloop_pack(&f, packed.data(), bytes), HOTLOOP_OK, what_ + ": pack");
    memcpy(odd.data(), packed.data(), packed.size());
    forward([&](auto& other) { other.forward.packed = odd.data(); }, HOTLOOP_PACKED_ELSEWHERE, "packed: odd address");
    // For another cell, type or size. (What the sizes need of the other arrays is checked after this.)
    forward([&](auto& other) { other.forward.packed = packed.data(), other.forward.input_size = 1; },
            HOTLOOP_PACKED_ELSEWHERE, "packed: another input size");
    forward([&](auto& other) { other.forward.packed = packed.data(), other.forward.hidden_size = 1; },
            HOTLOOP_PACKED_ELSEWHERE, "packed: another hidden size");
    forward([&](auto& other) { other.forward.packed = packed.data(), other.forward.dtype = HOTLOOP_FLOAT64; },
            HOTLOOP_PACKED_ELSEWHERE, "packed: another type");
    const std::string isa = hotloop_isa();
    for (int32_t i = 0; hotloop_isa_at(i) != nullptr; ++i) {
      if (isa == hotloop_isa_at(i)) continue;
      hotloop_use_isa(hotloop_isa_at(i));
      forward([&](auto& other) { other.forward.packed = packed.data(); }, HOTLOOP_PACKED_ELSEWHERE,
              "packed: another instruction set");
    }
    hotloop_use_isa(isa.c_str());
  }

  Problem p_;
  Data<float> data_;
  CallOf<float> call_;
  std::string what_;
  int64_t forward_bytes_, backward_bytes_;
  Block forward_workspace_, backward_workspace_;
};

void check_rest() {
  for (const char* const name : {"", "sse9", "SCALAR"}) {
    expect(hotloop_use_isa(name), HOTLOOP_UNKNOWN_ISA, std::string("use_isa ") + name);
  }
  expect(hotloop_use_isa(nullptr), HOTLOOP_UNKNOWN_ISA, "use_isa with nothing");
  check(hotloop_isa_at(-1) == nullptr && hotloop_isa_at(100) == nullptr, "isa_at", "there are no others");
  check(hotloop_processors() >= 1, "processors", "there is one");
  for (int32_t status = -1; status <= 8; ++status) {
    check(hotloop_status_string(status) != nullptr && *hotloop_status_string(status) != '\0', "status", "has a text");
  }
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
  check(hotloop_forward_workspace(&call.args.forward, 1, 1) == -1, "HOTLOOP_ISA=sse9", "nothing can be said");
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
