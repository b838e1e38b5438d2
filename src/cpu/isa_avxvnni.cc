// AVX2 with AVX-VNNI (Alder Lake, Zen 5 and later).
#if defined(__x86_64__)
#define BANTAM_AVX_VNNI 1
#include "cpu/vec_avx2.h"
//
#include "cpu/isa_simd.inl"

namespace bantam {
void fill_avxvnni(Kernels& table) { fill_simd(table); }
}  // namespace bantam
#endif
