// Products of bytes for NEON, with SDOT where the including file says BANTAM_DOTPROD: the second
// half of vec_neon.h, which includes it.
#pragma once

#include <type_traits>

#include "cpu/vec_neon.h"

namespace bantam {
namespace {

constexpr int kWideBias = 0;
constexpr bool kValueCorrection = true;

// -1 where bit K is set: one CMTST, spelled out because the compiler turns the test and the AND
// that follows it into AND, CMEQ and BIC (32 more instructions for each word).
template <int K>
BANTAM_INLINE Bytes bit_code(Bytes word) {
  const int8x16_t pick = vreinterpretq_s8_u8(vdupq_n_u8(1 << K));
  for (int i = 0; i < 4; ++i) {
    asm("cmtst %0.16b, %1.16b, %2.16b" : "=w"(word.v[i]) : "w"(word.v[i]), "w"(pick));
  }
  return word;
}
// Bit K in the first and bit K + 1 in the second four bytes of a half.
template <int K>
BANTAM_INLINE int8x16_t bit_pair(int8x16_t word) {
  const uint32x4_t low = vdupq_n_u32(0x01010101u << K), high = vdupq_n_u32(0x02020202u << K);
  const int8x16_t pick = vreinterpretq_s8_u32(vzip1q_u32(low, high));
  int8x16_t out;
  asm("cmtst %0.16b, %1.16b, %2.16b" : "=w"(out) : "w"(word), "w"(pick));
  return out;
}
BANTAM_INLINE Bytes wide_code(Bytes codes) { return codes; }
constexpr bool kSplitsWeights = false;
template <int>
BANTAM_INLINE Quad weight_quad(const uint8_t* four, const uint8_t*) {
  return veorq_s8(quad(four), vdupq_n_s8(-128));
}

#if defined(BANTAM_DOTPROD)
constexpr int kBitMult = -2;  // of bit_sum, for values of -1 and 1
// One lane of four quads: SDOT by element, where LD1R would take a vector pipe for each quad.
template <int Lane>
struct LaneQuad {
  int8x16_t four;
};
// Quad number I of Together that lie side by side, as a factor of the products of weights.
template <int I, int Together>
BANTAM_INLINE auto quad_of(const int8_t* first) {
  if constexpr (Together % 4 == 0) {
    return LaneQuad<I % 4>{load_16(first + I / 4 * 16)};
  } else {
    return quad(first + 4 * I);
  }
}
struct WideAcc {
  int32x4_t v[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
};
typedef WideAcc BitAcc;
typedef WideAcc SmallAcc;
BANTAM_INLINE void wide_add(WideAcc& acc, Bytes code, Quad x) {
  BANTAM_FOUR(acc.v[i] = vdotq_s32(acc.v[i], code.v[i], x));
}
BANTAM_INLINE WideAcc sum_start(int32_t x) {
  const int32x4_t v = vdupq_n_s32(x);
  return {{v, v, v, v}};
}
template <int Lane>
BANTAM_INLINE void wide_add(WideAcc& acc, Bytes code, LaneQuad<Lane> x) {
  BANTAM_FOUR(acc.v[i] = vdotq_laneq_s32(acc.v[i], code.v[i], x.four, Lane));
}
BANTAM_INLINE Ints wide_sum(const WideAcc& acc) {
  return {{acc.v[0], acc.v[1], acc.v[2], acc.v[3]}};
}
template <class X>
BANTAM_INLINE void bit_add(BitAcc& acc, Bytes code, X x) {
  wide_add(acc, code, x);
}
BANTAM_INLINE Ints bit_sum(const BitAcc& acc) { return wide_sum(acc); }
template <bool = true, class X>
BANTAM_INLINE void small_add(SmallAcc& acc, Bytes code, X x) {
  wide_add(acc, code, x);
}
BANTAM_INLINE Ints small_sum(const SmallAcc& acc) { return wide_sum(acc); }
#else
constexpr int kBitMult = 2;
// Quad number I of Together that lie side by side, as a factor of the products of weights.
template <int I, int Together>
BANTAM_INLINE Quad quad_of(const int8_t* first) {
  return quad(first + 4 * I);
}
// Pairs of columns in 16 bits: up to 2 * 128 for each quad.
struct BitAcc {
  int16x8_t v[4] = {vdupq_n_s16(0), vdupq_n_s16(0), vdupq_n_s16(0), vdupq_n_s16(0)};
};
BANTAM_INLINE void bit_add(BitAcc& acc, Bytes code, Quad x) {
  BANTAM_FOUR(acc.v[i] = vpadalq_s8(acc.v[i], vandq_s8(code.v[i], x)));
}
BANTAM_INLINE Ints bit_sum(const BitAcc& acc) {
  Ints out;
  BANTAM_FOUR(out.v[i] = vpaddlq_s16(acc.v[i]));
  return out;
}
// Columns of a quad one by one in 16 bits: up to 15 * 128 for each quad.
struct SmallAcc {
  int16x8_t v[8] = {vdupq_n_s16(0), vdupq_n_s16(0), vdupq_n_s16(0), vdupq_n_s16(0),
                    vdupq_n_s16(0), vdupq_n_s16(0), vdupq_n_s16(0), vdupq_n_s16(0)};
};
template <bool = true>
BANTAM_INLINE void small_add(SmallAcc& acc, Bytes code, Quad x) {
  for (int i = 0; i < 4; ++i) {
    acc.v[2 * i] = vmlal_s8(acc.v[2 * i], vget_low_s8(code.v[i]), vget_low_s8(x));
    acc.v[2 * i + 1] = vmlal_high_s8(acc.v[2 * i + 1], code.v[i], x);
  }
}
BANTAM_INLINE Ints small_sum(const SmallAcc& acc) {
  Ints out;
  BANTAM_FOUR(out.v[i] = vpaddq_s32(vpaddlq_s16(acc.v[2 * i]), vpaddlq_s16(acc.v[2 * i + 1])));
  return out;
}
struct WideAcc {
  int32x4_t v[8] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0),
                    vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
};
BANTAM_INLINE void wide_add(WideAcc& acc, Bytes code, Quad x) {
  for (int i = 0; i < 4; ++i) {
    acc.v[2 * i] = vpadalq_s16(acc.v[2 * i], vmull_s8(vget_low_s8(code.v[i]), vget_low_s8(x)));
    acc.v[2 * i + 1] = vpadalq_s16(acc.v[2 * i + 1], vmull_high_s8(code.v[i], x));
  }
}
BANTAM_INLINE Ints wide_sum(const WideAcc& acc) {
  Ints out;
  BANTAM_FOUR(out.v[i] = vpaddq_s32(acc.v[2 * i], acc.v[2 * i + 1]));
  return out;
}
#endif

template <class X>
BANTAM_INLINE void six_bits_add(WideAcc& acc, Bytes code, X x) {
  wide_add(acc, code, x);
}
// Products of attention (vec_avx512.h).
BANTAM_INLINE void wide_key_add(WideAcc& acc, Bytes code, Quad x) { wide_add(acc, code, x); }
template <int Largest>
using CodeAcc = std::conditional_t<Largest == 15, SmallAcc, WideAcc>;
template <int Largest>
BANTAM_INLINE void code_add(CodeAcc<Largest>& acc, int, Bytes code, Quad x) {
  if constexpr (Largest == 15) {
    small_add(acc, code, x);
  } else {
    wide_add(acc, code, x);
  }
}
template <int Largest>
BANTAM_INLINE Ints code_sum(const CodeAcc<Largest>& acc) {
  if constexpr (Largest == 15) {
    return small_sum(acc);
  } else {
    return wide_sum(acc);
  }
}
template <int>
using ValueAcc = WideAcc;
template <int Largest>
BANTAM_INLINE void value_add(WideAcc& acc, int, Bytes values, Quad weights) {
  wide_add(acc, values, weights);
}
template <int Largest>
BANTAM_INLINE Ints value_sum(const WideAcc& acc) {
  return wide_sum(acc);
}
// 128 * (sum of the values) of 8 quads, `step` apart.
BANTAM_INLINE Ints value_correction(const Bytes* values, int step) {
  WideAcc acc;
  for (int i = 0; i < 8; ++i) wide_add(acc, values[i * step], vdupq_n_s8(1));
  return i_shift_left<7>(wide_sum(acc));
}

template <int Bias>
BANTAM_INLINE void store_factors(uint8_t* signs, int8_t* out) {
  static_assert(Bias > 0);  // weight_corrections takes no negative factors here
  for (int i = 0; i < 32; i += 16) {
    const int8x16_t sign = load_16(signs + i);
    vst1q_s8(out + i, vaddq_s8(sign, vdupq_n_s8(Bias)));
    vst1q_u8(signs + i, vandq_u8(vreinterpretq_u8_s8(sign), vdupq_n_u8(2 * Bias - 1)));
  }
}
BANTAM_INLINE Bytes weights_of(Ints a, Ints b, Ints c, Ints d) {
  return {{low_bytes(a), low_bytes(b), low_bytes(c), low_bytes(d)}};
}
template <int N>
BANTAM_INLINE void weight_corrections(const Bytes* weights, const int8_t* factors,
                                      const int* blocks, int32_t* out) {
  for (int k = 0; k < N; ++k) {
    uint32x4_t sum = vdupq_n_u32(0);
    for (int half = 0; half < 2; ++half) {
      const uint8x16_t x = vreinterpretq_u8_s8(weights[k / 2].v[k % 2 * 2 + half]);
      const uint8x16_t y = vreinterpretq_u8_s8(load_16(factors + 32 * blocks[k] + 16 * half));
      sum = vpadalq_u16(sum, vmull_u8(vget_low_u8(x), vget_low_u8(y)));
      sum = vpadalq_u16(sum, vmull_high_u8(x, y));
    }
    out[k] = -static_cast<int32_t>(vaddvq_u32(sum));
  }
}

}  // namespace
}  // namespace bantam
