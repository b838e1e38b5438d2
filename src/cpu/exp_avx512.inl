// exp and SiLU of codec/numerics.h for 16 floats at once, the same bits.
#pragma once

#include <immintrin.h>

#include "codec/numerics.h"

namespace bantam {
namespace {

inline __m512 round_even_avx512(__m512 x) {
  const __m512 magic = _mm512_set1_ps(kRoundMagic);
  return _mm512_sub_ps(_mm512_add_ps(x, magic), magic);
}

inline __m512 exp_avx512(__m512 x) {
  const __mmask16 low = _mm512_cmp_ps_mask(x, _mm512_set1_ps(kExpLowest), _CMP_LT_OQ);
  const __mmask16 high = _mm512_cmp_ps_mask(x, _mm512_set1_ps(kExpHighest), _CMP_GT_OQ);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512 n = round_even_avx512(_mm512_mul_ps(x, _mm512_set1_ps(kLog2e)));
  __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-kLn2Hi), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(-kLn2Lo), r);
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(kExpC7), r, _mm512_set1_ps(kExpC6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpC5));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpC4));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpC3));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpC2));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
  __m512 y = _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23)));
  y = _mm512_mask_mov_ps(y, high, _mm512_castsi512_ps(_mm512_set1_epi32(0x7f800000)));
  y = _mm512_mask_mov_ps(y, low, _mm512_setzero_ps());
  return _mm512_mask_mov_ps(y, nan, x);
}

inline __m512 silu_avx512(__m512 x) {
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  const __m512 sign = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(0x80000000u)));
  const __m512 e = exp_avx512(_mm512_mask_mov_ps(_mm512_xor_ps(x, sign), negative, x));
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 numerator = _mm512_mask_mov_ps(one, negative, e);
  return _mm512_mul_ps(x, _mm512_div_ps(numerator, _mm512_add_ps(one, e)));
}

// Rule 2: lane j + lane j + 8, then + 4, + 2, + 1.
inline float sum_lanes_avx512(__m512 x) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

}  // namespace
}  // namespace bantam
