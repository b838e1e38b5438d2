// AVX2 with FMA and F16C (Haswell and later, Zen).
#if defined(__x86_64__)
#include "cpu/vec_avx2.h"
//
#include "cpu/isa_simd.inl"
//
#include "cpu/tables_avx2.inl"

namespace bantam {
void fill_avx2(Kernels& table) {
  fill_simd(table);
  fill_tables_avx2(table);
}
}  // namespace bantam
#endif
