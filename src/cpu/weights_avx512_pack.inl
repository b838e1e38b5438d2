// Packing of 1-bit rows on AVX-512 VBMI: a transposition of nibbles, 256 bytes at a time.
#pragma once

#include "cpu/weights_avx512_formats.inl"

namespace bantam {
namespace {
namespace w512 {

// Byte 16k + i of the two halves -> byte 8i + k, for 8 words each.
static inline __m512i transpose_index(int first) {
  alignas(64) uint8_t index[64];
  for (int i = 0; i < 8; ++i) {
    for (int k = 0; k < 8; ++k) index[8 * i + k] = static_cast<uint8_t>(16 * k + first + i);
  }
  return _mm512_load_si512(index);
}

struct RowPairs {
  __m512i even, odd;  // rows 0 2 4 6 and 1 3 5 7 of eight rows, 16 bytes each
};

static inline RowPairs load_pairs(const std::byte* rows, int64_t row_bytes, int n_valid) {
  __m128i row[8];
  for (int r = 0; r < 8; ++r) {
    row[r] = r < n_valid ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + r * row_bytes))
                         : _mm_setzero_si128();
  }
  const auto join = [](__m128i a, __m128i b, __m128i c, __m128i d) {
    const __m512i low = _mm512_inserti32x4(_mm512_castsi128_si512(a), b, 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(low, c, 2), d, 3);
  };
  return {join(row[0], row[2], row[4], row[6]), join(row[1], row[3], row[5], row[7])};
}

static inline __m512i pair_low(const RowPairs& p) {
  const __m512i odd = _mm512_slli_epi16(low_nibbles(p.odd), 4);
  return _mm512_or_si512(low_nibbles(p.even), odd);
}
static inline __m512i pair_high(const RowPairs& p) {
  const __m512i odd = _mm512_andnot_si512(_mm512_set1_epi8(15), p.odd);
  return _mm512_or_si512(high_nibbles(p.even), odd);
}

// Nibble i of each row's 16 bytes goes to word i: even words from low nibbles, odd from high ones.
static inline void put_words(std::byte* out, __m512i low, __m512i high) {
  const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const __m512i second = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
  _mm512_storeu_si512(out, _mm512_permutex2var_epi64(low, first, high));
  _mm512_storeu_si512(out + 64, _mm512_permutex2var_epi64(low, second, high));
}

static inline void pack_q1_0(const std::byte* rows, int64_t row_bytes, int n_valid, int cols,
                             std::byte* group) {
  const __m512i index[2] = {transpose_index(0), transpose_index(8)};
  for (int b = 0; b < cols / 128; ++b) {
    const std::byte* source = rows + b * 18;
    std::byte* block = group + b * int64_t{288};
    const RowPairs top = load_pairs(source + 2, row_bytes, n_valid);
    const RowPairs bottom = load_pairs(source + 2 + 8 * row_bytes, row_bytes, n_valid - 8);
    for (int i = 0; i < 2; ++i) {
      const __m512i low = _mm512_permutex2var_epi8(pair_low(top), index[i], pair_low(bottom));
      const __m512i high = _mm512_permutex2var_epi8(pair_high(top), index[i], pair_high(bottom));
      put_words(block + i * 128, low, high);
    }
    uint16_t d[kGroupRows] = {};
    for (int r = 0; r < n_valid; ++r) __builtin_memcpy(&d[r], source + r * row_bytes, 2);
    __builtin_memcpy(block + 256, d, sizeof(d));
  }
}

}  // namespace w512
}  // namespace
}  // namespace bantam
