// NEON of ARMv8.0 (Cortex-A53, A57, A72).
#if defined(__aarch64__)
#include "cpu/vec_neon.h"
//
#include "cpu/isa_simd.inl"

namespace bantam {
void fill_neon(Kernels& table) { fill_simd(table); }
}  // namespace bantam
#endif
