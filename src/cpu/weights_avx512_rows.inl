// RMSNorm, activation quantization and SiLU on 16 lanes, bit for bit as weights_scalar.inl.
#pragma once

#include "cpu/exp_avx512.inl"
#include "cpu/weights_avx512_products.inl"

namespace bantam {
namespace {
namespace w512 {

// The tree of rule 2 on one register.
static inline float sum_lanes(__m512 lanes) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

static inline void rms_norm(const float* x, const float* w, int n, float eps, float* y) {
  __m512 squares = _mm512_setzero_ps();
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = rows_mask(n, i);
    const __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
    squares = _mm512_mask3_fmadd_ps(v, v, squares, mask);
  }
  const float mean = sum_lanes(squares) / static_cast<float>(n);
  const __m512 r = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = rows_mask(n, i);
    const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), r);
    const __m512 weighted = _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(mask, w + i));
    _mm512_mask_storeu_ps(y + i, mask, weighted);
  }
}

// absmax as bits: the order of magnitudes, with Inf and NaN above every finite value.
static inline uint32_t largest_magnitude(const float* x, int n) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i largest = _mm512_setzero_si512();
  for (int i = 0; i < n; i += 16) {
    const __m512i bits = _mm512_and_si512(_mm512_loadu_si512(x + i), magnitude);
    largest = _mm512_max_epu32(largest, bits);
  }
  return _mm512_reduce_max_epu32(largest);
}

// Codes of 16 values and their sum.
static inline int quantize_16(const float* x, __m512 d, int8_t* q) {
  const __m512 ratio = _mm512_div_ps(_mm512_loadu_ps(x), d);
  __m512i code = _mm512_cvtps_epi32(ratio);
  code = _mm512_min_epi32(code, _mm512_set1_epi32(127));
  code = _mm512_max_epi32(code, _mm512_set1_epi32(-127));
  const __m128i bytes = _mm512_cvtepi32_epi8(code);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), bytes);
  // |q - 128| style sums: flipping the sign bit makes the bytes unsigned for PSADBW.
  const __m128i flipped = _mm_xor_si128(bytes, _mm_set1_epi8(static_cast<char>(0x80)));
  const __m128i sums = _mm_sad_epu8(flipped, _mm_setzero_si128());
  return _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4) - 16 * 128;
}

static inline void quantize(const float* x, int n, int block, int8_t* q, float* d, int32_t* sums,
                            int16_t* sums16) {
  for (int b = 0; b < n / block; ++b) {
    const int begin = b * block;
    const uint32_t largest = largest_magnitude(x + begin, block);
    const bool finite = largest < 0x7f800000u;
    const bool usable = finite && float_of(largest) >= kTinyMagnitude;
    sums[b] = 0;
    if (!usable) {
      d[b] = finite ? 0.0f : float_of(0x7fc00000u);
      __builtin_memset(q + begin, 0, static_cast<size_t>(block));
      __builtin_memset(sums16 + begin / 16, 0, static_cast<size_t>(block) / 16 * sizeof(*sums16));
      continue;
    }
    d[b] = float_of(largest) / 127.0f;
    const __m512 scale = _mm512_set1_ps(d[b]);
    for (int i = begin; i < begin + block; i += 16) {
      const int sum = quantize_16(x + i, scale, q + i);
      sums16[i / 16] = static_cast<int16_t>(sum);
      sums[b] += sum;
    }
  }
}

static inline void silu_mul(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = rows_mask(n, i);
    const __m512 activated = silu_avx512(_mm512_maskz_loadu_ps(mask, gate + i));
    const __m512 product = _mm512_mul_ps(activated, _mm512_maskz_loadu_ps(mask, up + i));
    _mm512_mask_storeu_ps(out + i, mask, product);
  }
}

}  // namespace w512
}  // namespace
}  // namespace bantam
