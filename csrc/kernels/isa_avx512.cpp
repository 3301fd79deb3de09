// Built with AVX-512 F, VL, DQ and BW. Exports kernel_table_avx512 and nothing else.
#if !defined(__AVX512F__) || !defined(__AVX512VL__) || !defined(__AVX512DQ__) || !defined(__AVX512BW__)
#error "isa_avx512.cpp must be compiled with AVX-512 F, VL, DQ and BW enabled (see CMakeLists.txt)"
#endif
#include "../dispatch.h"

namespace {

struct Isa {
  static constexpr int kVectorBytes = 64, kRegisters = 32;
  // Costs as tools/measure_costs.py prints them; those measured are in docs/performance.md.
  static constexpr hotloop_isa_traits kTraits = {"avx512",
                                                 kVectorBytes,
                                                 kRegisters,
                                                 /* fuses */ 1,
                                                 /* lane_flops_ns */ 12.5,
                                                 /* cell_flops */ 270,
                                                 /* read_bytes_ns */ 200,
                                                 /* wake_ns */ 12e3,
                                                 /* handover_ns */ 5e3,
                                                 /* exchange_ns */ 200};
};

}  // namespace

#include "avx512.h"
#include "table.h"

namespace hotloop {
extern const KernelTable kernel_table_avx512;
const KernelTable kernel_table_avx512 = kernel_table();
}  // namespace hotloop
