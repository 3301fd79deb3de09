// Built with AVX2 and FMA. Exports kernel_table_avx2 and nothing else.
#if !defined(__AVX2__) || !defined(__FMA__)
#error "isa_avx2.cpp must be compiled with AVX2 and FMA enabled (see CMakeLists.txt)"
#endif
#define HOTLOOP_VECTOR_BYTES 32
#define HOTLOOP_REGISTERS 16
#include "table.h"

namespace hotloop {
extern const KernelTable kernel_table_avx2;
const KernelTable kernel_table_avx2 = kernel_table("avx2");
}  // namespace hotloop
