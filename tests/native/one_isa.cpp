// In place of the kernels that CMake's HOTLOOP_ONLY_ISA leaves out. Nothing chooses these: who links them has to name the
// instruction set that is there, by HOTLOOP_ISA or hotloop_use_isa.
#include "dispatch.h"

namespace hotloop {

#if !defined(HOTLOOP_ONLY_scalar)
extern const KernelTable kernel_table_scalar;
const KernelTable kernel_table_scalar{"not linked", {}};
#endif
#if defined(__x86_64__) && !defined(HOTLOOP_ONLY_avx2)
extern const KernelTable kernel_table_avx2;
const KernelTable kernel_table_avx2{"not linked", {}};
#endif
#if defined(__x86_64__) && !defined(HOTLOOP_ONLY_avx512)
extern const KernelTable kernel_table_avx512;
const KernelTable kernel_table_avx512{"not linked", {}};
#endif

}  // namespace hotloop
