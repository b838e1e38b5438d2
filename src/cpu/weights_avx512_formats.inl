// How the codes of a packed 16-row block (layout r16 of kernels.h) reach VPDPBUSD: quad g is the
// zmm whose byte 4r + c is the unsigned code of row r, column 4g + c. The signed dot product is
// the unsigned one minus (sum of the activations << bias_shift).
#pragma once

#include <immintrin.h>

#include "cpu/kernels.h"

namespace bantam {
namespace {
namespace w512 {

static inline __m512i load_512(const std::byte* p) { return _mm512_loadu_si512(p); }

static inline __m512 load_halves(const std::byte* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

static inline __m512i low_nibbles(__m512i pairs) {
  return _mm512_and_si512(pairs, _mm512_set1_epi8(15));
}
static inline __m512i high_nibbles(__m512i pairs) {
  return low_nibbles(_mm512_srli_epi16(pairs, 4));
}
static inline __m512i nibble_quad(const std::byte* codes, int g) {
  const __m512i pairs = load_512(codes + g / 2 * 64);
  return g % 2 == 0 ? low_nibbles(pairs) : high_nibbles(pairs);
}

// A bit becomes 0 or 2, so that the sum of the activations is all there is to subtract.
struct Q1_0 {
  static constexpr int values = 128, bytes = 288, bias_shift = 0;
  static constexpr bool biased = true, minimum = false, sub_scales = false;
  static __m512i quad(const std::byte* block, int g) {
    uint64_t bits;
    __builtin_memcpy(&bits, block + g * 8, sizeof(bits));
    return _mm512_maskz_mov_epi8(bits, _mm512_set1_epi8(2));
  }
  static __m512 scale(const std::byte* block) { return load_halves(block + 256); }
};

struct Q8_0 {
  static constexpr int values = 32, bytes = 544, bias_shift = 7;
  static constexpr bool biased = true, minimum = false, sub_scales = false;
  static __m512i quad(const std::byte* block, int g) { return load_512(block + g * 64); }
  static __m512 scale(const std::byte* block) { return load_halves(block + 512); }
};

struct Q4_0 {
  static constexpr int values = 32, bytes = 288, bias_shift = 3;
  static constexpr bool biased = true, minimum = false, sub_scales = false;
  static __m512i quad(const std::byte* block, int g) { return nibble_quad(block, g); }
  static __m512 scale(const std::byte* block) { return load_halves(block + 256); }
};

struct Q4_1 {
  static constexpr int values = 32, bytes = 320, bias_shift = 0;
  static constexpr bool biased = false, minimum = true, sub_scales = false;
  static __m512i quad(const std::byte* block, int g) { return nibble_quad(block, g); }
  static __m512 scale(const std::byte* block) { return load_halves(block + 256); }
  static __m512 minima(const std::byte* block) { return load_halves(block + 288); }
};

struct Q6_K {
  static constexpr int values = 256, bytes = 3360, bias_shift = 5;
  static constexpr bool biased = true, minimum = false, sub_scales = true;
  static __m512i quad(const std::byte* block, int g) {
    const __m512i high = load_512(block + 2048 + g / 4 * 64);
    const int k = g % 4;
    const __m512i moved = k == 0   ? _mm512_slli_epi16(high, 4)
                          : k == 1 ? _mm512_slli_epi16(high, 2)
                          : k == 2 ? high
                                   : _mm512_srli_epi16(high, 2);
    // low | (moved & 0x30)
    return _mm512_ternarylogic_epi32(nibble_quad(block, g), moved, _mm512_set1_epi8(0x30), 0xf8);
  }
  static __m512i sub_scale(const std::byte* block, int sub) {
    const auto* at = reinterpret_cast<const __m128i*>(block + 3072 + sub * 16);
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(at));
  }
  static __m512 scale(const std::byte* block) { return load_halves(block + 3328); }
};

}  // namespace w512
}  // namespace
}  // namespace bantam
