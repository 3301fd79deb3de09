// The floating-point environment of a thread: how it rounds, whether it flushes subnormal numbers, and the exceptions that
// it has seen.
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#else
#include <fenv.h>
#endif

namespace hotloop {

// How a thread computes; two threads with the same give the same bits.
using FloatControl = uint32_t;

#if defined(__x86_64__)

constexpr uint32_t kExceptions = 0x3f;

inline FloatControl float_control() { return _mm_getcsr() & ~kExceptions; }

// For its lifetime the thread computes as `control` says. At the end it is as it was before, exceptions seen included.
class ComputeAs {
 public:
  explicit ComputeAs(FloatControl control) : before_(_mm_getcsr()) {
    if ((before_ & ~kExceptions) != control) _mm_setcsr(control | (before_ & kExceptions));
  }
  ~ComputeAs() {
    if (_mm_getcsr() != before_) _mm_setcsr(before_);
  }
  ComputeAs(const ComputeAs&) = delete;
  ComputeAs& operator=(const ComputeAs&) = delete;

 private:
  uint32_t before_;
};

#else

inline FloatControl float_control() { return static_cast<FloatControl>(fegetround()); }

class ComputeAs {
 public:
  explicit ComputeAs(FloatControl control) {
    fegetenv(&before_);
    if (float_control() != control) fesetround(static_cast<int>(control));
  }
  ~ComputeAs() { fesetenv(&before_); }
  ComputeAs(const ComputeAs&) = delete;
  ComputeAs& operator=(const ComputeAs&) = delete;

 private:
  fenv_t before_;
};

#endif

// For its lifetime the thread computes as ever; at the end it has seen no exception that it had not seen before.
class ExceptionsKept : ComputeAs {
 public:
  ExceptionsKept() : ComputeAs(float_control()) {}
};

}  // namespace hotloop
