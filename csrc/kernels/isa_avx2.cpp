// Built with AVX2 and FMA. Exports kernel_table_avx2 and nothing else.
#if !defined(__AVX2__) || !defined(__FMA__)
#error "isa_avx2.cpp must be compiled with AVX2 and FMA enabled (see CMakeLists.txt)"
#endif
#include "../dispatch.h"

namespace {

struct Isa {
  static constexpr int kVectorBytes = 32, kRegisters = 16;
  // Costs as tools/measure_costs.py prints them; those measured are in docs/performance.md.
  static constexpr hotloop_isa_traits kTraits = {"avx2",
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

#include "avx2.h"
#include "table.h"

namespace hotloop {
extern const KernelTable kernel_table_avx2;
const KernelTable kernel_table_avx2 = kernel_table();
}  // namespace hotloop
