// Products of bytes for AVX2, with VPDPBUSD where the including file says BANTAM_AVX_VNNI: the
// second half of vec_avx2.h, which includes it.
#pragma once

#include "cpu/vec_avx2.h"

namespace bantam {
namespace {

constexpr int kBitMult = 2;  // of bit_sum, for values of -1 and 1
template <int K>
BANTAM_INLINE Bytes bit_code(Bytes word) {
  // Bit K % 4 of every nibble value, by lookup: one instruction for each plane after the nibble.
  constexpr int bit = K % 4;
  const __m256i table = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1 >> bit & 1, 2 >> bit & 1, 3 >> bit & 1, 4 >> bit & 1, 5 >> bit & 1,
                    6 >> bit & 1, 7 >> bit & 1, 8 >> bit & 1, 9 >> bit & 1, 10 >> bit & 1,
                    11 >> bit & 1, 12 >> bit & 1, 13 >> bit & 1, 14 >> bit & 1, 15 >> bit & 1));
  const Bytes nibble = b_field<4, K / 4>(word);
  return {{_mm256_shuffle_epi8(table, nibble.v[0]), _mm256_shuffle_epi8(table, nibble.v[1])}};
}
constexpr bool kValueCorrection = false;
BANTAM_INLINE Ints value_correction(const Bytes*, int) { return i_zero(); }

#if defined(BANTAM_AVX_VNNI)
constexpr bool kSplitsWeights = false;
template <int>
BANTAM_INLINE Quad weight_quad(const uint8_t* four, const uint8_t*) {
  return quad_now(four);
}
struct BitAcc {
  Ints sum = {{_mm256_setzero_si256(), _mm256_setzero_si256()}};
};
typedef BitAcc SmallAcc;
typedef BitAcc WideAcc;
template <int>
using CodeAcc = BitAcc;
template <int>
using ValueAcc = BitAcc;
constexpr int kWideBias = 128;
BANTAM_INLINE void bit_add(BitAcc& acc, Bytes code, Quad x) {
  BANTAM_BOTH(acc.sum.v[i] = _mm256_dpbusd_avx_epi32(acc.sum.v[i], code.v[i], x));
}
BANTAM_INLINE Ints bit_sum(const BitAcc& acc) { return acc.sum; }
template <bool = true>
BANTAM_INLINE void small_add(SmallAcc& acc, Bytes code, Quad x) {
  bit_add(acc, code, x);
}
BANTAM_INLINE Ints small_sum(const SmallAcc& acc) { return acc.sum; }
BANTAM_INLINE Bytes wide_code(Bytes codes) {
  BANTAM_BOTH(codes.v[i] = _mm256_xor_si256(codes.v[i], _mm256_set1_epi8(-128)));
  return codes;
}
BANTAM_INLINE void wide_add(WideAcc& acc, Bytes code, Quad x) { bit_add(acc, code, x); }
BANTAM_INLINE void six_bits_add(WideAcc& acc, Bytes code, Quad x) { bit_add(acc, code, x); }
BANTAM_INLINE Ints wide_sum(const WideAcc& acc) { return acc.sum; }
BANTAM_INLINE BitAcc sum_start(int32_t x) { return {i_set(x)}; }
// Products of attention (vec_avx512.h).
BANTAM_INLINE void wide_key_add(WideAcc& acc, Bytes code, Quad x) { bit_add(acc, code, x); }
template <int Largest>
BANTAM_INLINE void code_add(BitAcc& acc, int, Bytes code, Quad x) {
  bit_add(acc, code, x);
}
template <int Largest>
BANTAM_INLINE Ints code_sum(const BitAcc& acc) {
  return acc.sum;
}
template <int Largest>
BANTAM_INLINE void value_add(BitAcc& acc, int, Bytes values, Quad weights) {
  BANTAM_BOTH(acc.sum.v[i] = _mm256_dpbusd_avx_epi32(acc.sum.v[i], weights, values.v[i]));
}
template <int Largest>
BANTAM_INLINE Ints value_sum(const BitAcc& acc) {
  return acc.sum;
}
#else
// Sums that compilers would otherwise add up in another order, for which there are too few
// registers.
BANTAM_INLINE void in_order(__m256i& sum) { asm("" : "+x"(sum)); }
// Sixteen-bit sums of pairs: |code * x| summed over an accumulator's quads stays below 2^15.
struct BitAcc {
  Ints pairs = {{_mm256_setzero_si256(), _mm256_setzero_si256()}};
};
typedef BitAcc SmallAcc;
struct WideAcc {
  Ints sum = {{_mm256_setzero_si256(), _mm256_setzero_si256()}};
};
constexpr int kWideBias = 0;
template <bool InOrder>
BANTAM_INLINE void pairs_add(BitAcc& acc, Bytes code, Quad x) {
  for (int i = 0; i < 2; ++i) {
    acc.pairs.v[i] = _mm256_add_epi16(acc.pairs.v[i], _mm256_maddubs_epi16(code.v[i], x));
    if constexpr (InOrder) in_order(acc.pairs.v[i]);
  }
}
BANTAM_INLINE void bit_add(BitAcc& acc, Bytes code, Quad x) { pairs_add<true>(acc, code, x); }
BANTAM_INLINE Ints bit_sum(const BitAcc& acc) {
  Ints out;
  BANTAM_BOTH(out.v[i] = _mm256_madd_epi16(acc.pairs.v[i], _mm256_set1_epi16(1)));
  return out;
}
template <bool InOrder = true>
BANTAM_INLINE void small_add(SmallAcc& acc, Bytes code, Quad x) {
  pairs_add<InOrder>(acc, code, x);
}
BANTAM_INLINE Ints small_sum(const SmallAcc& acc) { return bit_sum(acc); }
BANTAM_INLINE Bytes wide_code(Bytes codes) { return codes; }
BANTAM_INLINE void wide_add(WideAcc& acc, Bytes code, Quad x) {
  for (int i = 0; i < 2; ++i) {
    const __m256i pairs =
        _mm256_maddubs_epi16(_mm256_abs_epi8(code.v[i]), _mm256_sign_epi8(x, code.v[i]));
    acc.sum.v[i] = _mm256_add_epi32(acc.sum.v[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
}
// Codes from 0 to 63, whose pairs of products fit 16 bits: no sign is lent.
BANTAM_INLINE void six_bits_add(WideAcc& acc, Bytes code, Quad x) {
  for (int i = 0; i < 2; ++i) {
    const __m256i pairs = _mm256_maddubs_epi16(code.v[i], x);
    acc.sum.v[i] = _mm256_add_epi32(acc.sum.v[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    in_order(acc.sum.v[i]);
  }
}
BANTAM_INLINE Ints wide_sum(const WideAcc& acc) { return acc.sum; }

// Products of attention (vec_avx512.h). The magnitude of x serves both halves of a quad. -128 has
// no negative: ScoreArgs.
BANTAM_INLINE void wide_key_add(WideAcc& acc, Bytes code, Quad x) {
  for (int i = 0; i < 2; ++i) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(code.v[i], x));
    acc.sum.v[i] = _mm256_add_epi32(acc.sum.v[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    in_order(acc.sum.v[i]);
  }
}
// Sums of products, pairs of which are up to Most: in 16 bits for as many quads as fit, then wider.
template <int Most>
struct PairAcc {
  static constexpr int quads = 32767 / Most < 8 ? 32767 / Most : 8;
  static_assert(8 % quads == 0 && kSumChains == 1);  // or the last ones would stay where they are
  Ints pairs = {{_mm256_setzero_si256(), _mm256_setzero_si256()}};
  Ints sum = pairs;

  // Of quad 0 to 7.
  BANTAM_INLINE void add(int quad, Bytes unsigned_bytes, Bytes signed_bytes) {
    for (int i = 0; i < 2; ++i) {
      const __m256i pair = _mm256_maddubs_epi16(unsigned_bytes.v[i], signed_bytes.v[i]);
      pairs.v[i] = quad % quads == 0 ? pair : _mm256_add_epi16(pairs.v[i], pair);
      in_order(pairs.v[i]);
    }
    if (quads < 8 && (quad + 1) % quads == 0) sum = i_add(sum, widened(1));
  }
  BANTAM_INLINE Ints widened(int by) const {
    Ints out;
    BANTAM_BOTH(out.v[i] = _mm256_madd_epi16(pairs.v[i], _mm256_set1_epi16(int16_t(by))));
    return out;
  }
  template <int By>
  BANTAM_INLINE Ints total() const {
    static_assert(By == 1 || quads == 8);
    return quads < 8 ? sum : widened(By);
  }
};
BANTAM_INLINE Bytes twice(Quad x) { return {{x, x}}; }
template <int Largest>
using CodeAcc = PairAcc<2 * 127 * Largest>;
template <int Largest>
BANTAM_INLINE void code_add(CodeAcc<Largest>& acc, int i, Bytes code, Quad x) {
  acc.add(i, code, twice(x));
}
template <int Largest>
BANTAM_INLINE Ints code_sum(const CodeAcc<Largest>& acc) {
  return acc.template total<1>();
}
// Weights beside large values: their half bytes apart.
constexpr bool kSplitsWeights = true;
struct HalfQuads {
  Quad low, high;
};
BANTAM_INLINE void split_weights(uint8_t* low, uint8_t* high, Bytes weights) {
  b_store(low, b_field<4, 0>(weights));
  b_store(high, b_field<4, 1>(weights));
}
template <int Largest>
BANTAM_INLINE auto weight_quad(const uint8_t* four, const uint8_t* high) {
  if constexpr (Largest == 128) {
    return HalfQuads{quad_now(four), quad_now(high)};
  } else {
    return quad_now(four);
  }
}
template <int Largest>
struct ValueAcc {
  PairAcc<2 * 255 * Largest> acc;
};
template <>
struct ValueAcc<128> {
  PairAcc<2 * 15 * 128> low, high;
};
template <int Largest>
BANTAM_INLINE void value_add(ValueAcc<Largest>& to, int i, Bytes values, Quad weights) {
  to.acc.add(i, twice(weights), values);
}
template <int>
BANTAM_INLINE void value_add(ValueAcc<128>& to, int i, Bytes values, HalfQuads weights) {
  to.low.add(i, twice(weights.low), values);
  to.high.add(i, twice(weights.high), values);
}
template <int Largest>
BANTAM_INLINE Ints value_sum(const ValueAcc<Largest>& of) {
  if constexpr (Largest == 128) {
    return i_add(of.low.template total<1>(), of.high.template total<16>());
  } else {
    return of.acc.template total<1>();
  }
}
#endif

template <int Bias>
BANTAM_INLINE void store_factors(uint8_t* signs, int8_t* out) {
  __m256i* flips = reinterpret_cast<__m256i*>(signs);
  const __m256i sign = _mm256_loadu_si256(flips);
  _mm256_storeu_si256(flips, _mm256_and_si256(sign, _mm256_set1_epi8(2 * Bias - 1)));
  _mm256_store_si256(reinterpret_cast<__m256i*>(out),
                     _mm256_add_epi8(sign, _mm256_set1_epi8(Bias)));
}
BANTAM_INLINE Bytes weights_of(Ints a, Ints b, Ints c, Ints d) {
  return {{low_bytes(a, b), low_bytes(c, d)}};
}
template <int N>
BANTAM_INLINE void weight_corrections(const Bytes* weights, const int8_t* factors,
                                      const int* blocks, int32_t* out) {
  __m256i v[N];
  for (int k = 0; k < N; ++k) {
    const __m256i by =
        _mm256_load_si256(reinterpret_cast<const __m256i*>(factors + 32 * blocks[k]));
    v[k] =
        _mm256_madd_epi16(_mm256_maddubs_epi16(weights[k / 2].v[k % 2], by), _mm256_set1_epi16(-1));
  }
  for (int i = 0; i < N / 2; ++i) v[i] = _mm256_hadd_epi32(v[2 * i], v[2 * i + 1]);
  for (int i = 0; i < N / 4; ++i) {
    const __m256i x = _mm256_hadd_epi32(v[2 * i], v[2 * i + 1]);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 4 * i),
                     _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
  }
}

}  // namespace
}  // namespace bantam
