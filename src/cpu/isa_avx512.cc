// AVX-512 with F, BW, DQ, VL, VNNI, VBMI, VBMI2, GFNI (Ice Lake, Zen 4 and later).
#if defined(__x86_64__)
#include "cpu/vec_avx512.h"
//
#include "cpu/isa_simd.inl"
//
#include "cpu/fives_avx512.inl"

namespace bantam {
void fill_avx512(Kernels& table) {
  fill_simd(table);
  fill_tables_avx512(table);
}
}  // namespace bantam
#endif
