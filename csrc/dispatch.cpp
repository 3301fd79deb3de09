// The choice of an instruction set: once a process, the best the processor has, or what HOTLOOP_ISA names.
#include "dispatch.h"

#include <stdlib.h>
#include <string.h>

#include <atomic>

namespace hotloop {

extern const KernelTable kernel_table_scalar;
#if defined(__x86_64__)
extern const KernelTable kernel_table_avx2;
extern const KernelTable kernel_table_avx512;
#endif

namespace {

struct Isa {
  const KernelTable* table;
  bool (*supported)();
};

// Best first. The features asked for are exactly those that CMakeLists.txt switches on for the file.
constexpr Isa kIsas[] = {
#if defined(__x86_64__)
    {&kernel_table_avx512,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
     }},
    {&kernel_table_avx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {&kernel_table_scalar, [] { return true; }},
};

const KernelTable* find(const char* name) {
  for (const Isa& isa : kIsas) {
    if (strcmp(isa.table->traits.name, name) == 0 && isa.supported()) return isa.table;
  }
  return nullptr;
}

std::atomic<const KernelTable*> active{nullptr};

}  // namespace

const KernelTable* table_at(int index) {
  for (const Isa& isa : kIsas) {
    if (isa.supported() && index-- == 0) return isa.table;
  }
  return nullptr;
}

bool use_table(const char* name) {
  const KernelTable* const table = find(name);
  if (table != nullptr) active.store(table, std::memory_order_release);
  return table != nullptr;
}

const KernelTable* active_table() {
  const KernelTable* table = active.load(std::memory_order_acquire);
  if (table == nullptr) {
    const char* const wanted = getenv("HOTLOOP_ISA");  // NOLINT(concurrency-mt-unsafe): nobody here writes it
    table = wanted != nullptr && *wanted != '\0' ? find(wanted) : table_at(0);
    if (table != nullptr) active.store(table, std::memory_order_release);
  }
  return table;
}

}  // namespace hotloop
