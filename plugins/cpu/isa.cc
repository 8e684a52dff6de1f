#include "cpu/isa.h"

#include <atomic>
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace kvfold {
namespace {

constexpr const char* kNames[kIsaCount] = {"portable", "avx2", "avx512vnni"};

#if defined(__x86_64__)
// Conversions of float16, which compilers before GCC 11 cannot ask the CPU for by name.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

bool supported(Isa isa) {
  if (isa == Isa::portable) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (isa == Isa::avx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

Isa best() {
  for (int i = kIsaCount - 1; i > 0; --i) {
    if (supported(static_cast<Isa>(i))) return static_cast<Isa>(i);
  }
  return Isa::portable;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{best()};
  return isa;
}

}  // namespace

Isa active_isa() { return chosen().load(std::memory_order_relaxed); }

}  // namespace kvfold

const char* kvfold_supported_isas() {
  static const std::string names = [] {
    std::string text;
    for (int i = 0; i < kvfold::kIsaCount; ++i) {
      if (kvfold::supported(static_cast<kvfold::Isa>(i))) text += (i ? " " : "") + std::string(kvfold::kNames[i]);
    }
    return text;
  }();
  return names.c_str();
}

const char* kvfold_active_isa() { return kvfold::kNames[static_cast<int>(kvfold::active_isa())]; }

int kvfold_select_isa(const char* name) {
  for (int i = 0; i < kvfold::kIsaCount; ++i) {
    const auto isa = static_cast<kvfold::Isa>(i);
    if (std::strcmp(name, kvfold::kNames[i]) == 0 && kvfold::supported(isa)) {
      kvfold::chosen().store(isa, std::memory_order_relaxed);
      return 1;
    }
  }
  return 0;
}
