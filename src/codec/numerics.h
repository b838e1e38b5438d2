// The canonical scalar forms of docs/NUMERICS.md that every instruction set repeats bit for bit:
// rounding, exp, SiLU. Internal linkage, no libm but fma: ISA files and device code include it.
// Refuses reciprocal estimates and fast-math.
#pragma once

#include <cstdint>

#include "codec/half.h"

namespace bantam {

// Activation blocks with a smaller magnitude than this quantize to zero (rule 3), and so do V tiles
// (rule 5).
static constexpr float kTinyMagnitude = 0x1p-100f;

// Round to nearest, ties to even, for |x| < 2^22: the sum rounds at the unit.
static constexpr float kRoundMagic = 12582912.0f;
static inline float round_even(float x) { return (x + kRoundMagic) - kRoundMagic; }

static constexpr float kLog2e = 0x1.715476p+0f;
static constexpr float kLn2Hi =
    0x1.62e400p-1f;  // 11 trailing zero bits: n * kLn2Hi is exact for |n| <= 128
static constexpr float kLn2Lo = 0x1.7f7d1cp-20f;  // ln 2 - kLn2Hi
static constexpr float kExpLowest = -87.0f;
static constexpr float kExpHighest = 88.0f;
// Taylor coefficients 1/k!, k = 2..7: on |r| <= ln2/2 the remainder is below 6e-9.
static constexpr float kExpC7 = 0x1.a01a02p-13f;
static constexpr float kExpC6 = 0x1.6c16c2p-10f;
static constexpr float kExpC5 = 0x1.111112p-7f;
static constexpr float kExpC4 = 0x1.555556p-5f;
static constexpr float kExpC3 = 0x1.555556p-3f;
static constexpr float kExpC2 = 0.5f;

// exp for x <= 88, relative error <= 2 ulp (measured in tests/weights_test.cc); exp(x < -87) = +0,
// exp(x > 88) = +inf, exp(+-0) = 1, NaN stays NaN.
static inline float exp_f32(float x) {
  if (x < kExpLowest) return 0.0f;
  if (x > kExpHighest) return float_of(0x7f800000u);
  if (x != x) return x;
  const float n = round_even(x * kLog2e);
  float r = __builtin_fmaf(n, -kLn2Hi, x);
  r = __builtin_fmaf(n, -kLn2Lo, r);
  float p = __builtin_fmaf(kExpC7, r, kExpC6);
  p = __builtin_fmaf(p, r, kExpC5);
  p = __builtin_fmaf(p, r, kExpC4);
  p = __builtin_fmaf(p, r, kExpC3);
  p = __builtin_fmaf(p, r, kExpC2);
  p = __builtin_fmaf(p, r, 1.0f);
  p = __builtin_fmaf(p, r, 1.0f);
  return p * float_of(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
}

// SiLU(x) = x * sigmoid(x), with sigmoid from exp of a non-positive number only, so nothing
// overflows.
static inline float silu_f32(float x) {
  const float e = exp_f32(x < 0.0f ? x : -x);
  const float numerator = x < 0.0f ? e : 1.0f;
  return x * (numerator / (1.0f + e));
}

}  // namespace bantam
