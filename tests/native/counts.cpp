// What tools/count_gate.py counts instructions of: a fixed set of calls through the C ABI, one a process, on one thread and
// with the kernels of AVX2, since valgrind knows no AVX-512. The other kernels are not even linked: they take minutes to
// compile. Counted is what happens in hotloop_counted, by its name, and only in its second run, when everything is in its
// place. Nothing in there depends on the time, since this program's clock stands still.
//
//   hotloop_counts list              the names, a line each
//   hotloop_counts about             the compiler and the C library, a line each
//   hotloop_counts NAME [MORE]       that call; then so many instructions more, to try whether the gate sees them
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <memory>
#include <string>
#include <vector>

#if defined(__GLIBC__)
#include <gnu/libc-version.h>
#endif

#include "calls.h"

// The linker takes it instead of the C library's. So no call returns HOTLOOP_AGAIN because it took too long under valgrind.
extern "C" int clock_gettime(clockid_t, timespec* now) noexcept {
  *now = timespec{1, 0};
  return 0;
}

// The linker takes these, too. The C library has many of each, and which it takes goes by the processor and its caches: the
// count of a step was 0.53 % higher with those for SSE2. An instruction for eight bytes is near what AVX2 would need.
extern "C" {
void* memcpy(void* to, const void* from, size_t bytes) noexcept {
  void* at = to;
  size_t words = bytes / 8, rest = bytes % 8;
  __asm__ volatile("rep movsq" : "+D"(at), "+S"(from), "+c"(words) : : "memory");
  __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(rest) : : "memory");
  return to;
}

void* memset(void* to, int value, size_t bytes) noexcept {
  void* at = to;
  const uint64_t word = 0x0101010101010101u * static_cast<unsigned char>(value);
  size_t words = bytes / 8, rest = bytes % 8;
  __asm__ volatile("rep stosq" : "+D"(at), "+c"(words) : "a"(word) : "memory");
  __asm__ volatile("rep stosb" : "+D"(at), "+c"(rest) : "a"(word) : "memory");
  return to;
}
}  // extern "C"

namespace {

using namespace native_tests;

enum Kind { kPack, kPlan, kStep, kForwardPacked, kForward, kBackward };
constexpr const char* kKinds[] = {"pack", "plan", "step", "inference", "forward", "backward"};

struct Case {
  Kind kind;
  Problem problem;
  bool is_double = false, both_directions = false;

  std::string name() const {
    const Problem& p = problem;
    char shape[100];
    snprintf(shape, sizeof shape, "%s-%s-T%d-B%d-I%d-H%d", kCellNames[p.cell], kKinds[kind], static_cast<int>(p.T),
             static_cast<int>(p.B), static_cast<int>(p.I), static_cast<int>(p.H));
    return std::string(shape) + (p.reverse ? "-reverse" : "") + (p.layout == kBatchFirst ? "-batch_first" : "") +
           (p.lengths.empty() ? "" : "-ragged") + (p.resets.empty() ? "" : "-resets") +
           (both_directions ? "-both_directions" : "") + (is_double ? "-float64" : "");
  }
};

Problem shape(int cell, int64_t T, int64_t B, int64_t I, int64_t H) {
  Problem p{};
  p.cell = cell;
  p.T = T;
  p.B = B;
  p.I = I;
  p.H = H;
  p.inputs = kAllInputs;
  p.upstream = kAllUpstream;
  p.wanted = kAllWanted;
  return p;
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (int cell = 0; cell < HOTLOOP_CELL_COUNT; ++cell) {
    cases.push_back({kPlan, shape(cell, 1, 1, 32, 64)});
    cases.push_back({kStep, shape(cell, 1, 1, 32, 64)});
    for (const Kind kind : {kForwardPacked, kForward, kBackward}) {
      cases.push_back({kind, shape(cell, 100, 1, 8, 32)});
      cases.push_back({kind, shape(cell, 12, 24, 32, 64)});
    }
  }
  for (const int cell : {HOTLOOP_LSTM, HOTLOOP_GRU}) {
    cases.push_back({kStep, shape(cell, 1, 8, 32, 64)});
    cases.push_back({kPack, shape(cell, 1, 1, 32, 64)});
    for (const Kind kind : {kForwardPacked, kForward, kBackward}) {
      cases.push_back({kind, shape(cell, 12, 8, 16, 32), true});
      Problem odd = shape(cell, 20, 5, 7, 19);  // nothing a multiple of a vector or of a tile
      odd.reverse = true;
      odd.layout = kBatchFirst;
      cases.push_back({kind, odd});
      Problem ragged = shape(cell, 12, 8, 16, 32);
      ragged.lengths = {12, 3, 7, 10, 0, 5, 12, 9};
      cases.push_back({kind, ragged});
      for (int64_t i = 0; i < ragged.T * ragged.B; ++i) ragged.resets.push_back(i % 17 == 7);
      cases.push_back({kind, ragged});
      cases.push_back({kind, shape(cell, 12, 8, 16, 32), false, true});
    }
  }
  return cases;
}

// All that hotloop_counted needs, set up before.
struct Counted {
  Kind kind;
  hotloop_spec spec;
  const hotloop_weights* weights;
  std::vector<hotloop_buffers> buffers;
  std::vector<hotloop_gradients> gradients;
  hotloop_plan forward, backward;
  char* workspace;
  int64_t workspace_bytes;
};

int32_t forward(const Counted& counted) {
  hotloop_buffers buffers[2];
  for (size_t i = 0; i < counted.buffers.size(); ++i) buffers[i] = counted.buffers[i];
  return hotloop_forward(&counted.forward, buffers, nullptr, counted.workspace, counted.workspace_bytes);
}

int32_t backward(const Counted& counted) {
  hotloop_buffers buffers[2];
  for (size_t i = 0; i < counted.buffers.size(); ++i) buffers[i] = counted.buffers[i];
  return hotloop_backward(&counted.backward, buffers, counted.gradients.data(), nullptr, counted.workspace,
                          counted.workspace_bytes);
}

int32_t once(const Counted& counted) {
  const hotloop_buffers& b = counted.buffers[0];
  hotloop_plan plan;
  switch (counted.kind) {
    case kPack: return hotloop_pack(&counted.spec, counted.weights, counted.workspace, counted.workspace_bytes);
    case kPlan: return hotloop_make_plan(&plan, &counted.spec, HOTLOOP_PACKED, 1, b.seq_len, b.batch_size, 1);
    case kStep:
      return hotloop_step(&counted.forward, counted.weights, b.seq_len, b.batch_size, b.x, b.h0, b.c0, b.output, b.h_n,
                          b.c_n, nullptr, counted.workspace, counted.workspace_bytes);
    case kBackward: return backward(counted);
    default: return forward(counted);
  }
}

template <class T>
std::unique_ptr<Call> call_of(const Problem& p, Mode mode) {
  return std::make_unique<CallOf<T>>(p, random_inputs<T>(p), mode);
}

}  // namespace

// Not inlined, so that callgrind finds it by this name.
extern "C" __attribute__((noinline, used)) int32_t hotloop_counted(const Counted* counted, int64_t more) {
  const int32_t status = once(*counted);
  if (more > 0) {
    __asm__ volatile("1: subq $2, %0\n\tjg 1b" : "+r"(more) : : "cc");  // two instructions a turn
  }
  return status;
}

namespace {

int run_case(const Case& wanted, int64_t more) {
  const std::string name = wanted.name();
  Problem p = wanted.problem;
  const Mode mode = wanted.kind == kPack || wanted.kind == kPlan            ? kInference
                    : wanted.kind == kStep || wanted.kind == kForwardPacked ? kPacked
                                                                            : kTraining;
  std::vector<std::unique_ptr<Call>> calls;
  std::vector<Call*> pointers;
  Counted counted{};
  counted.kind = wanted.kind;
  for (int direction = 0; direction <= (wanted.both_directions ? 1 : 0); ++direction) {
    calls.push_back(wanted.is_double ? call_of<double>(p, mode) : call_of<float>(p, mode));
    pointers.push_back(calls.back().get());
    counted.buffers.push_back(calls.back()->buffers);
    counted.gradients.push_back(calls.back()->gradients);
    p.reverse = !p.reverse;
  }
  counted.spec = calls[0]->spec;
  counted.weights = &calls[0]->weights;
  counted.forward = make_plan(pointers, false, 1, name);
  if (wanted.kind == kBackward) counted.backward = make_plan(pointers, true, 1, name);
  int64_t bytes = hotloop_workspace_bytes(&counted.forward);
  if (wanted.kind == kPack) bytes = hotloop_packed_bytes(&counted.spec);
  if (wanted.kind == kBackward && hotloop_workspace_bytes(&counted.backward) > bytes) {
    bytes = hotloop_workspace_bytes(&counted.backward);
  }
  const Block workspace(static_cast<size_t>(bytes), 0);
  counted.workspace = workspace.data();
  counted.workspace_bytes = bytes;
  if (wanted.kind == kBackward) expect(forward(counted), HOTLOOP_OK, name + ": forward");
  expect(once(counted), HOTLOOP_OK, name + ": not counted");
  expect(hotloop_counted(&counted, more), HOTLOOP_OK, name);
  return failed == 0 ? 0 : 1;
}

void about() {
#if defined(__clang__)
  printf("clang %d.%d.%d\n", __clang_major__, __clang_minor__, __clang_patchlevel__);
#else
  printf("gcc %d.%d.%d\n", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#endif
#if defined(__GLIBC__)
  printf("glibc %s\n", gnu_get_libc_version());
#else
  printf("another libc\n");
#endif
}

}  // namespace

int main(int argc, char** argv) {
  const std::string wanted = argc > 1 ? argv[1] : "";
  if (wanted == "about") {
    about();
    return 0;
  }
  const std::vector<Case> cases = all_cases();
  if (wanted == "list") {
    for (const Case& each : cases) printf("%s\n", each.name().c_str());
    return 0;
  }
  if (hotloop_use_isa("avx2") != HOTLOOP_OK) {
    fprintf(stderr, "this processor has no AVX2\n");
    return 3;
  }
  for (const Case& each : cases) {
    if (each.name() == wanted) return run_case(each, argc > 2 ? atoll(argv[2]) : 0);
  }
  fprintf(stderr, "usage: hotloop_counts list | about | NAME [MORE]\n");
  return 2;
}
