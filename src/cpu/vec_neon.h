// The vocabulary of vec_avx512.h for NEON: plain (A57, A72), with SDOT where the including file
// says BANTAM_DOTPROD (A76), with SMMLA for tiles where it says BANTAM_I8MM too, on four registers
// where AVX-512 has one. Without SDOT a bit selects
// activations by a mask, whose pairs SADALP adds into 16 bits; codes of up to 4 bits take widening
// multiplications into 16 bits, one sum for each column of a quad; 8-bit codes go to 32 bits after
// two quads. Weights 0..255 are lowered by 128, which value_correction returns.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "codec/half.h"
#include "codec/numerics.h"

namespace bantam {
namespace {

#define BANTAM_INLINE inline __attribute__((always_inline))
// The eight quads of a block of attention.
#define BANTAM_EACH_QUAD(i) for (int i = 0; i < 8; ++i)
#define BANTAM_FOUR(expression) \
  for (int i = 0; i < 4; ++i) expression

struct Floats {
  float32x4_t v[4];
};
struct Ints {
  int32x4_t v[4];
};
struct Bytes {
  int8x16_t v[4];
};
typedef int8x16_t Quad;
struct Mask {
  uint32x4_t v[4];
};

#if defined(BANTAM_DOTPROD)
constexpr bool kSdot = true;
#else
constexpr bool kSdot = false;
#endif
#if defined(BANTAM_I8MM)
constexpr int kTileTokens = 8, kTileTokensSmall = 8, kTileTokensWide = 8;
constexpr bool kPairedRows = true;
#else
constexpr int kTileTokens = 4, kTileTokensSmall = kSdot ? 4 : 2, kTileTokensWide = kSdot ? 4 : 2;
constexpr bool kPairedRows = false;
#endif
constexpr int kChains = 1;
constexpr int kSumsInFlight = 1;
constexpr int kWeighRows = 1;
constexpr int kSumChains = 1;
// Whether weights of head sizes 64 and 128 have code of their own.
constexpr bool kKnownPairs = false;
constexpr bool kKnownPairsOfMinima = false;
constexpr bool kFlipsTables = false;
#if defined(BANTAM_DOTPROD)
constexpr bool kSumsStartAnywhere = true;
#else
constexpr bool kSumsStartAnywhere = false;  // 16-bit sums
#endif
constexpr int kExpsTogether = 2;
constexpr int kFloatKeys = 4;
// Rows that share a float once it is in a register; with up to kFloatRowsInPlace rows 16-bit floats
// are converted where they are used, with more they are converted once for all.
constexpr int kFloatRows = 2;
constexpr int kWeighFloatRows = 2;  // the same of values
constexpr int kFloatRowsInPlace = 2;
constexpr int kFloatChannels = 4;
BANTAM_INLINE int prefetch_bytes() { return 1024; }
constexpr int kPrefetchLevel = 3;

// ---- floats

BANTAM_INLINE Floats f_set(float x) {
  const float32x4_t v = vdupq_n_f32(x);
  return {{v, v, v, v}};
}
BANTAM_INLINE Floats f_zero() { return f_set(0.0f); }
BANTAM_INLINE Floats f_load(const float* p) {
  return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
BANTAM_INLINE void f_store(float* p, Floats x) { BANTAM_FOUR(vst1q_f32(p + 4 * i, x.v[i])); }
BANTAM_INLINE Floats f_load_n(const float* p, int n) {
  alignas(16) float lanes[16] = {};
  for (int i = 0; i < n && i < 16; ++i) lanes[i] = p[i];
  return f_load(lanes);
}
BANTAM_INLINE void f_store_n(float* p, Floats x, int n) {
  alignas(16) float lanes[16];
  f_store(lanes, x);
  for (int i = 0; i < n && i < 16; ++i) p[i] = lanes[i];
}
BANTAM_INLINE Mask m_first(int n) {
  const int32_t lanes[4] = {0, 1, 2, 3};
  const int32x4_t lane = vld1q_s32(lanes);
  Mask out;
  BANTAM_FOUR(out.v[i] = vcltq_s32(lane, vdupq_n_s32(n - 4 * i)));
  return out;
}
#define BANTAM_MAP2(Type, name, intrinsic)           \
  BANTAM_INLINE Type name(Type a, Type b) {          \
    BANTAM_FOUR(a.v[i] = intrinsic(a.v[i], b.v[i])); \
    return a;                                        \
  }
BANTAM_MAP2(Floats, f_add, vaddq_f32)
BANTAM_MAP2(Floats, f_sub, vsubq_f32)
BANTAM_MAP2(Floats, f_mul, vmulq_f32)
BANTAM_MAP2(Floats, f_div, vdivq_f32)
BANTAM_MAP2(Floats, f_max, vmaxq_f32)
BANTAM_INLINE float f_largest(Floats a) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3])));
}
BANTAM_INLINE Floats f_fma(Floats a, Floats b, Floats c) {
  BANTAM_FOUR(c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]));
  return c;
}
BANTAM_INLINE Mask m_less(Floats a, Floats b) {
  Mask out;
  BANTAM_FOUR(out.v[i] = vcltq_f32(a.v[i], b.v[i]));
  return out;
}
BANTAM_INLINE Mask m_nan(Floats a) {
  Mask out;
  BANTAM_FOUR(out.v[i] = vmvnq_u32(vceqq_f32(a.v[i], a.v[i])));
  return out;
}
BANTAM_INLINE Floats f_select(Mask m, Floats a, Floats b) {
  BANTAM_FOUR(a.v[i] = vbslq_f32(m.v[i], a.v[i], b.v[i]));
  return a;
}
BANTAM_INLINE Mask m_not_less(Floats a, Floats b) {
  Mask out;
  BANTAM_FOUR(out.v[i] = vmvnq_u32(vcltq_f32(a.v[i], b.v[i])));
  return out;
}
BANTAM_INLINE Floats f_only(Mask m, Floats a) {
  BANTAM_FOUR(a.v[i] = vreinterpretq_f32_u32(vandq_u32(m.v[i], vreinterpretq_u32_f32(a.v[i]))));
  return a;
}
BANTAM_INLINE Floats f_from_bits(Ints x) {
  Floats out;
  BANTAM_FOUR(out.v[i] = vreinterpretq_f32_s32(x.v[i]));
  return out;
}
BANTAM_INLINE Ints i_bits(Floats x) {
  Ints out;
  BANTAM_FOUR(out.v[i] = vreinterpretq_s32_f32(x.v[i]));
  return out;
}
BANTAM_INLINE uint16x4_t load_4_halves(const std::byte* p) {
  return vld1_u16(reinterpret_cast<const uint16_t*>(p));
}
BANTAM_INLINE Floats f_halves(const std::byte* p) {
  Floats out;
  BANTAM_FOUR(out.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(load_4_halves(p + 8 * i))));
  return out;
}
BANTAM_INLINE Floats f_brains(const std::byte* p) {
  Floats out;
  BANTAM_FOUR(out.v[i] = vreinterpretq_f32_u32(vshll_n_u16(load_4_halves(p + 8 * i), 16)));
  return out;
}
// Rule 2: lane j + lane j + 8, then + 4, + 2, + 1.
BANTAM_INLINE float f_tree(Floats x) {
  const float32x4_t a = vaddq_f32(x.v[0], x.v[2]), b = vaddq_f32(x.v[1], x.v[3]);
  const float32x4_t c = vaddq_f32(a, b);
  const float32x2_t d = vadd_f32(vget_low_f32(c), vget_high_f32(c));
  return vget_lane_f32(d, 0) + vget_lane_f32(d, 1);
}
BANTAM_INLINE Floats f_trees(Floats* v) {
  alignas(16) float sums[16];
  for (int k = 0; k < 16; ++k) sums[k] = f_tree(v[k]);
  return f_load(sums);
}
// For N = 4 or 8 vectors: sums and maxima of vector k are in this lane of the result.
template <int N>
BANTAM_INLINE constexpr int some_lane(int k) {
  return k;
}
// Each of those lanes has a partner: f_partners copies them there, m_partners says which they are.
BANTAM_INLINE Floats f_partners(Floats x) { return {{x.v[0], x.v[1], x.v[0], x.v[1]}}; }
BANTAM_INLINE Mask m_partners() {
  return {{vdupq_n_u32(0), vdupq_n_u32(0), vdupq_n_u32(~0u), vdupq_n_u32(~0u)}};
}
// The lanes of N vectors, one after the other; and their partners.
template <int N>
BANTAM_INLINE void f_store_some(float* p, Floats x) {
  for (int i = 0; i < N / 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
}
template <int N>
BANTAM_INLINE void f_store_partners(float* p, Floats x) {
  for (int i = 0; i < N / 4; ++i) vst1q_f32(p + 4 * i, x.v[2 + i]);
}
template <class X>
BANTAM_INLINE void in_memory(X&) {}
template <int N>
BANTAM_INLINE Floats f_some_trees(Floats* v) {
  alignas(64) float sums[16] = {};
  for (int k = 0; k < N; ++k) sums[k] = f_tree(v[k]);
  return f_load(sums);
}
template <int Stride>
BANTAM_INLINE Floats f_butterfly(Floats x) {
  if constexpr (Stride >= 4) {
    constexpr int step = Stride / 4;
    Floats out;
    for (int i = 0; i < 4; ++i) {
      const float32x4_t other = x.v[i ^ step];
      out.v[i] = (i & step) == 0 ? vaddq_f32(x.v[i], other) : vsubq_f32(other, x.v[i]);
    }
    return out;
  } else {
    const uint32_t flags[4] = {0, Stride == 1 ? ~0u : 0, Stride == 2 ? ~0u : 0, ~0u};
    const uint32x4_t upper = vld1q_u32(flags);
    for (int i = 0; i < 4; ++i) {
      const float32x4_t a = x.v[i];
      const float32x4_t partner = Stride == 1 ? vrev64q_f32(a) : vextq_f32(a, a, 2);
      x.v[i] = vbslq_f32(upper, vsubq_f32(partner, a), vaddq_f32(a, partner));
    }
    return x;
  }
}

// Lanes 2 i and 2 i + 1 change places.
BANTAM_INLINE Floats f_neighbours(Floats x) {
  BANTAM_FOUR(x.v[i] = vrev64q_f32(x.v[i]));
  return x;
}
// Eight floats, each in two neighbouring lanes.
BANTAM_INLINE Floats f_twice(const float* p) {
  const float32x4_t a = vld1q_f32(p), b = vld1q_f32(p + 4);
  return {{vzip1q_f32(a, a), vzip2q_f32(a, a), vzip1q_f32(b, b), vzip2q_f32(b, b)}};
}

// ---- int32

BANTAM_INLINE Ints i_set(int32_t x) {
  const int32x4_t v = vdupq_n_s32(x);
  return {{v, v, v, v}};
}
BANTAM_INLINE Ints i_zero() { return i_set(0); }
BANTAM_MAP2(Ints, i_add, vaddq_s32)
BANTAM_MAP2(Ints, i_sub, vsubq_s32)
BANTAM_MAP2(Ints, i_mul, vmulq_s32)
BANTAM_MAP2(Ints, i_and, vandq_s32)
BANTAM_MAP2(Ints, i_xor, veorq_s32)
BANTAM_MAP2(Ints, i_max, vmaxq_s32)
BANTAM_INLINE Ints i_max_unsigned(Ints a, Ints b) {
  BANTAM_FOUR(a.v[i] = vreinterpretq_s32_u32(
                  vmaxq_u32(vreinterpretq_u32_s32(a.v[i]), vreinterpretq_u32_s32(b.v[i]))));
  return a;
}
template <int N>
BANTAM_INLINE Ints i_shift_left(Ints a) {
  BANTAM_FOUR(a.v[i] = vshlq_n_s32(a.v[i], N));
  return a;
}
template <int N>
BANTAM_INLINE Ints i_shift_right(Ints a) {
  BANTAM_FOUR(a.v[i] = vshrq_n_s32(a.v[i], N));
  return a;
}
BANTAM_INLINE Mask m_equal(Floats a, Floats b) {
  Mask out;
  BANTAM_FOUR(out.v[i] = vceqq_f32(a.v[i], b.v[i]));
  return out;
}
BANTAM_INLINE Mask m_equal_ints(Ints a, Ints b) {
  Mask out;
  BANTAM_FOUR(out.v[i] = vceqq_s32(a.v[i], b.v[i]));
  return out;
}
// The first of 32 lanes that is set; 31 if none is (rows with NaN).
BANTAM_INLINE int m_first_of(Mask low, Mask high) {
  const uint32_t picks[4] = {1, 2, 4, 8};
  const uint32x4_t pick = vld1q_u32(picks);
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    bits |= vaddvq_u32(vandq_u32(low.v[i], pick)) << (4 * i);
    bits |= vaddvq_u32(vandq_u32(high.v[i], pick)) << (4 * i + 16);
  }
  return __builtin_ctz(bits | 0x80000000u);
}
BANTAM_INLINE Floats f_from_ints(Ints a) {
  Floats out;
  BANTAM_FOUR(out.v[i] = vcvtq_f32_s32(a.v[i]));
  return out;
}
// float(Mult * dot - Bias * *sum), whose magnitude is at most Most. Below 2^22 a number added to
// the bits of 1.5 * 2^23 is that float plus the number, and one exact subtraction leaves it alone;
// SCVTF takes one of the two pipes twice (A76).
template <int Mult, int Bias, int Most>
BANTAM_INLINE Floats f_of_dot(Ints dot, const int32_t* sum) {
  constexpr int32_t base = kSdot && Most < 1 << 22 ? 0x4b400000 : 0;
  const Ints least = i_set(Bias == 0 ? base : base - Bias * *sum);
  if constexpr (Mult != 1) dot = i_add(dot, dot);
  dot = Mult < 0 ? i_sub(least, dot) : i_add(least, dot);
  if constexpr (base == 0) return f_from_ints(dot);
  return f_sub(f_from_bits(dot), f_set(12582912.0f));
}
BANTAM_INLINE Ints i_round(Floats x) {
  Ints out;
  BANTAM_FOUR(out.v[i] = vcvtnq_s32_f32(x.v[i]));
  return out;
}
// p * 2^n for integers n whose power is a normal float.
BANTAM_INLINE Floats f_scale(Floats p, Floats n) {
  const Ints exponent = i_add(i_round(n), i_set(127));
  return f_mul(p, f_from_bits(i_shift_left<23>(exponent)));
}
BANTAM_INLINE int32_t i_total(Ints a) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
}
BANTAM_INLINE int32_t i_largest(Ints a) {
  return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3])));
}
BANTAM_INLINE void i_store(int32_t* p, Ints a) { BANTAM_FOUR(vst1q_s32(p + 4 * i, a.v[i])); }
BANTAM_INLINE int8x16_t low_bytes(Ints a) {
  const int16x8_t low = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
  return vcombine_s8(vmovn_s16(low), vmovn_s16(high));
}
BANTAM_INLINE void i_store_bytes(void* p, Ints a) {
  vst1q_s8(static_cast<int8_t*>(p), low_bytes(a));
}
BANTAM_INLINE uint32_t i_largest_unsigned(Ints a) {
  uint32x4_t x[4];
  BANTAM_FOUR(x[i] = vreinterpretq_u32_s32(a.v[i]));
  return vmaxvq_u32(vmaxq_u32(vmaxq_u32(x[0], x[1]), vmaxq_u32(x[2], x[3])));
}
BANTAM_INLINE void i_store_32_bytes(void* p, Ints a, Ints b) {
  i_store_bytes(p, a);
  i_store_bytes(static_cast<uint8_t*>(p) + 16, b);
}
template <int N>
BANTAM_INLINE Ints i_largests(Ints* v) {  // unsigned
  alignas(64) uint32_t largest[16] = {};
  for (int k = 0; k < N; ++k) largest[k] = i_largest_unsigned(v[k]);
  Ints out;
  BANTAM_FOUR(out.v[i] = vreinterpretq_s32_u32(vld1q_u32(largest + 4 * i)));
  return out;
}
template <int N>
BANTAM_INLINE Ints i_some_totals(Ints* v) {
  alignas(64) int32_t totals[16] = {};
  for (int k = 0; k < N; ++k) totals[k] = i_total(v[k]);
  Ints out;
  BANTAM_FOUR(out.v[i] = vld1q_s32(totals + 4 * i));
  return out;
}
BANTAM_INLINE int8x16_t load_16(const void* p) { return vld1q_s8(static_cast<const int8_t*>(p)); }
BANTAM_INLINE Ints i_load_bytes(const std::byte* p) {
  const int8x16_t x = load_16(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_s8(vget_high_s8(x));
  return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)),
           vmovl_s16(vget_low_s16(high)), vmovl_s16(vget_high_s16(high))}};
}

// ---- bytes

BANTAM_INLINE Bytes b_load(const std::byte* p) {
  return {{load_16(p), load_16(p + 16), load_16(p + 32), load_16(p + 48)}};
}
BANTAM_INLINE Bytes b_set(int x) {
  const int8x16_t v = vdupq_n_s8(static_cast<int8_t>(x));
  return {{v, v, v, v}};
}
BANTAM_MAP2(Bytes, b_sub, vsubq_s8)
BANTAM_MAP2(Bytes, b_or, vorrq_s8)
BANTAM_INLINE void b_store(void* p, Bytes a) {
  BANTAM_FOUR(vst1q_s8(static_cast<int8_t*>(p) + 16 * i, a.v[i]));
}
template <int Bits, int K>
BANTAM_INLINE Bytes b_field(Bytes a) {
  for (int i = 0; i < 4; ++i) {
    uint8x16_t x = vreinterpretq_u8_s8(a.v[i]);
    if constexpr (K != 0) x = vshrq_n_u8(x, Bits * K);
    if constexpr (Bits * (K + 1) < 8) x = vandq_u8(x, vdupq_n_u8((1 << Bits) - 1));
    a.v[i] = vreinterpretq_s8_u8(x);
  }
  return a;
}
template <int N>
BANTAM_INLINE Bytes b_shift_left(Bytes a) {
  BANTAM_FOUR(a.v[i] = vshlq_n_s8(a.v[i], N));
  return a;
}
BANTAM_INLINE Bytes b_fifth_bits(const std::byte* plane) {
  const uint8_t picks[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t pick = vld1q_u8(picks);
  Bytes out;
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t bits = vcombine_u8(vdup_n_u8(static_cast<uint8_t>(plane[2 * i])),
                                        vdup_n_u8(static_cast<uint8_t>(plane[2 * i + 1])));
    out.v[i] = vreinterpretq_s8_u8(vandq_u8(vtstq_u8(bits, pick), vdupq_n_u8(16)));
  }
  return out;
}
BANTAM_INLINE Bytes b_lookup(const int8_t* table16, Bytes index) {
  const int8x16_t table = vld1q_s8(table16);
  BANTAM_FOUR(index.v[i] = vqtbl1q_s8(table, vreinterpretq_u8_s8(index.v[i])));
  return index;
}
template <int Bias>
BANTAM_INLINE Bytes b_flip_below(Bytes a, Quad flags) {
  const int8x16_t below = veorq_s8(flags, vdupq_n_s8(Bias));
  BANTAM_FOUR(a.v[i] = vsubq_s8(veorq_s8(a.v[i], flags), below));
  return a;
}
BANTAM_INLINE Bytes b_flip(Bytes a, Quad x) {
  BANTAM_FOUR(a.v[i] = veorq_s8(a.v[i], x));
  return a;
}
BANTAM_INLINE Quad quad(const void* four) {
  int32_t x;
  __builtin_memcpy(&x, four, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(x));
}
BANTAM_INLINE bool sign_bytes(const std::byte* halves, uint8_t* out) {
  int16x8_t least = vdupq_n_s16(0);
  for (int i = 0; i < 4; ++i) {
    const int16x8_t x = vreinterpretq_s16_s8(load_16(halves + 16 * i));
    least = vminq_s16(least, x);
    vst1_s8(reinterpret_cast<int8_t*>(out) + 8 * i, vmovn_s16(vshrq_n_s16(x, 15)));
  }
  return vminvq_s16(least) < 0;
}

}  // namespace
}  // namespace bantam

#include "cpu/vec_neon_products.h"
