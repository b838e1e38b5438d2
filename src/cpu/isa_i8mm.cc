// NEON with the dot products and 2 x 2 matrix products of ARMv8.6 (Neoverse V1, N2, Cortex-A510,
// A710 and later).
#if defined(__aarch64__)
#define BANTAM_DOTPROD 1
#define BANTAM_I8MM 1
#include "cpu/vec_neon.h"
//
#include "cpu/isa_simd.inl"

namespace bantam {
void fill_i8mm(Kernels& table) { fill_simd(table); }
}  // namespace bantam
#endif
