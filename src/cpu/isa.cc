#include "cpu/isa.h"

#include <array>
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace bantam {

namespace {

bool scalar_supported() { return true; }

#if defined(__aarch64__)
bool neon_supported() { return true; }
// HWCAP_ASIMDDP of the kernel's interface.
bool dotprod_supported() { return (::getauxval(AT_HWCAP) & 1ul << 20) != 0; }
// HWCAP2_I8MM; kernels before 5.6 do not tell.
bool i8mm_supported() { return dotprod_supported() && (::getauxval(AT_HWCAP2) & 1ul << 13) != 0; }
#endif

#if defined(__x86_64__)
bool scalar_fma_supported() {
  return __builtin_cpu_supports("fma") != 0 && __builtin_cpu_supports("avx2") != 0;
}

// Leaf 1, ECX bit 29 is F16C; clang 16 has no name for it.
bool avx2_supported() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return scalar_fma_supported() && __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & 1u << 29) != 0;
}

// Leaf 7, subleaf 1, EAX bit 4; the compiler's list has no name for it.
bool avxvnni_supported() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return avx2_supported() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1u << 4) != 0;
}

bool avx512_supported() {
  return scalar_fma_supported() && __builtin_cpu_supports("avx512f") != 0 &&
         __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512vnni") != 0 &&
         __builtin_cpu_supports("avx512vbmi") != 0 && __builtin_cpu_supports("avx512vbmi2") != 0 &&
         __builtin_cpu_supports("gfni") != 0;
}

// Bits 17 and 18 of XCR0: the system saves tile configuration and tiles.
bool system_saves_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & 1u << 27) == 0) return false;
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & 3u << 17) == 3u << 17;
}

// Leaf 7, EDX bits 24 and 25. Linux wants to be asked before a process uses tiles (5.16 and later;
// ARCH_REQ_XCOMP_PERM, component 18), and may refuse. From then on alternative signal stacks must
// have room for the tiles; this program has none.
bool amx_supported() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!avx512_supported() || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & 3u << 24) != 3u << 24 || !system_saves_tiles()) return false;
  return ::syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}
#endif

constexpr Isa kIsas[] = {
#define ISA(name, fill, supported, nominal_macs) {#name, fill, supported, nominal_macs},
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
