// Built with the compiler's baseline for the processor family: SSE2 or NEON registers, multiply and add apart. The same
// bits on every processor. Exports kernel_table_scalar and nothing else.
#include "../dispatch.h"

namespace {

struct Isa {
  static constexpr int kVectorBytes = 16, kRegisters = 16;
  // Costs as tools/measure_costs.py prints them; those measured are in docs/performance.md.
  static constexpr hotloop_isa_traits kTraits = {"scalar",
                                                 kVectorBytes,
                                                 kRegisters,
                                                 /* fuses */ 0,
                                                 /* lane_flops_ns */ 6,
                                                 /* cell_flops */ 270,
                                                 /* read_bytes_ns */ 100,
                                                 /* wake_ns */ 12e3,
                                                 /* handover_ns */ 5e3,
                                                 /* exchange_ns */ 200};
};

}  // namespace

#include "scalar.h"
#include "table.h"

namespace hotloop {
extern const KernelTable kernel_table_scalar;
const KernelTable kernel_table_scalar = kernel_table();
}  // namespace hotloop
