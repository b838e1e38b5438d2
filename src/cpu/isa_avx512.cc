// AVX-512 with F, BW, DQ, VL, VNNI, VBMI (Ice Lake, Zen 4 and later). Slots left out keep the
// scalar_fma function.
#if defined(__x86_64__)
#include "cpu/attend_avx512.inl"
#include "cpu/kernels.h"
#include "cpu/weights_avx512.inl"

namespace bantam {
void fill_avx512(Kernels& table) {
  fill_weights_avx512(table);
  fill_attend_avx512(table);
}
}  // namespace bantam
#endif
