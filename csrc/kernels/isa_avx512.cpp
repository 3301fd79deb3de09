// Built with AVX-512 F, VL, DQ and BW. Exports kernel_table_avx512 and nothing else.
#if !defined(__AVX512F__) || !defined(__AVX512VL__) || !defined(__AVX512DQ__) || !defined(__AVX512BW__)
#error "isa_avx512.cpp must be compiled with AVX-512 F, VL, DQ and BW enabled (see CMakeLists.txt)"
#endif
#define HOTLOOP_VECTOR_BYTES 64
#define HOTLOOP_REGISTERS 32
#include "table.h"

namespace hotloop {
extern const KernelTable kernel_table_avx512;
const KernelTable kernel_table_avx512 = kernel_table("avx512");
}  // namespace hotloop
