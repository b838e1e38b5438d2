#include "cpu/isa.h"

#include <array>
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace bantam {

namespace {

bool scalar_supported() { return true; }

#if defined(__x86_64__)
bool scalar_fma_supported() {
  return __builtin_cpu_supports("fma") != 0 && __builtin_cpu_supports("avx2") != 0;
}

bool avx512_supported() {
  return scalar_fma_supported() && __builtin_cpu_supports("avx512f") != 0 &&
         __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512vnni") != 0 &&
         __builtin_cpu_supports("avx512vbmi") != 0 &&
         __builtin_cpu_supports("gfni") != 0;
}
#endif

constexpr Isa kIsas[] = {
#define ISA(name, fill, supported) {#name, fill, supported},
#include "cpu/isa.def"
#undef ISA
};
constexpr int kNumIsas = static_cast<int>(sizeof(kIsas) / sizeof(kIsas[0]));

std::string supported_names() {
  std::string names;
  for (const Isa& isa : kIsas) {
    if (!isa.supported()) continue;
    if (!names.empty()) names += ' ';
    names += isa.name;
  }
  return names;
}

}  // namespace

std::span<const Isa> all_isas() { return kIsas; }

const Kernels& kernels_of(const Isa& isa) {
  static const std::array<Kernels, kNumIsas> tables = [] {
    std::array<Kernels, kNumIsas> all{};
    for (int i = 0; i < kNumIsas; ++i) {
      fill_scalar(all[i]);
#if defined(__x86_64__)
      if (i > 0 && scalar_fma_supported()) fill_scalar_fma(all[i]);
#endif
      if (kIsas[i].supported()) kIsas[i].fill(all[i]);
      all[i].name = kIsas[i].name;
    }
    return all;
  }();
  const auto index = static_cast<size_t>(&isa - kIsas);
  CHECK(index < tables.size());
  return tables[index];
}

Result<const Isa*> choose_isa(const char* forced) {
  if (forced != nullptr && forced[0] != '\0') {
    for (const Isa& isa : kIsas) {
      if (std::strcmp(isa.name, forced) != 0) continue;
      if (isa.supported()) return &isa;
      return refused("BANTAM_ISA=" + std::string(forced) + ": this CPU lacks it; it can run " +
                     supported_names());
    }
    return refused("BANTAM_ISA=" + std::string(forced) + " is unknown; this CPU can run " +
                   supported_names());
  }
  const Isa* best = &kIsas[0];
  for (const Isa& isa : kIsas) {
    if (isa.supported()) best = &isa;
  }
  return best;
}

}  // namespace bantam
