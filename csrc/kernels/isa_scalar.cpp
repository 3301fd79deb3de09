// Built with the compiler's baseline for the processor family: SSE2 or NEON registers, multiply and add apart. The same
// bits on every processor. Exports kernel_table_scalar and nothing else.
#define HOTLOOP_VECTOR_BYTES 16
#define HOTLOOP_REGISTERS 16
#include "table.h"

namespace hotloop {
extern const KernelTable kernel_table_scalar;
const KernelTable kernel_table_scalar = kernel_table("scalar");
}  // namespace hotloop
