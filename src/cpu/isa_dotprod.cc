// NEON with the dot products of ARMv8.2 (Cortex-A76 and later).
#if defined(__aarch64__)
#define BANTAM_DOTPROD 1
#include "cpu/vec_neon.h"
//
#include "cpu/isa_simd.inl"

namespace bantam {
void fill_dotprod(Kernels& table) { fill_simd(table); }
}  // namespace bantam
#endif
