// Rows of floats with vectors: exp, SiLU, norm, rounding to integers, softmax, merge, rotation. The
// bits of weights_scalar.inl and attend_scalar.inl. Tails shorter than a vector are masked; absent
// lanes add nothing. Includers choose the vector header first.
#pragma once

#include "cpu/attend_scalar.inl"
#include "cpu/kernels.h"

namespace bantam {
namespace {

// exp(x - n * ln 2)
BANTAM_INLINE Floats exp_polynomial(Floats x, Floats n) {
  Floats r = f_fma(n, f_set(-kLn2Hi), x);
  r = f_fma(n, f_set(-kLn2Lo), r);
  Floats p = f_fma(f_set(kExpC7), r, f_set(kExpC6));
  p = f_fma(p, r, f_set(kExpC5));
  p = f_fma(p, r, f_set(kExpC4));
  p = f_fma(p, r, f_set(kExpC3));
  p = f_fma(p, r, f_set(kExpC2));
  p = f_fma(p, r, f_set(1.0f));
  p = f_fma(p, r, f_set(1.0f));
  return p;
}

BANTAM_INLINE Floats exp_simd(Floats x) {
  const Mask low = m_less(x, f_set(kExpLowest)), high = m_less(f_set(kExpHighest), x);
  const Mask nan = m_nan(x);
  const Floats magic = f_set(kRoundMagic);
  const Floats n = f_sub(f_add(f_mul(x, f_set(kLog2e)), magic), magic);
  const Floats p = exp_polynomial(x, n);
  const Ints exponent = i_add(i_round(n), i_set(127));
  Floats y = f_mul(p, f_from_bits(i_shift_left<23>(exponent)));
  y = f_select(high, f_set(float_of(0x7f800000u)), y);
  y = f_select(low, f_zero(), y);
  return f_select(nan, x, y);
}

BANTAM_INLINE Floats silu_simd(Floats x) {
  const Mask negative = m_less(x, f_zero());
  const Floats e = exp_simd(f_select(negative, x, f_sub(f_set(-0.0f), x)));
  const Floats one = f_set(1.0f);
  return f_mul(x, f_div(f_select(negative, e, one), f_add(one, e)));
}

BANTAM_INLINE Floats f_abs(Floats x) { return f_from_bits(i_and(i_bits(x), i_set(0x7fffffff))); }

void rms_norm_simd(const float* x, const float* w, int n, float eps, float* y) {
  Floats lanes = f_zero();
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const Floats v = f_load(x + i);
    lanes = f_fma(v, v, lanes);
  }
  if (i < n) {
    // Absent lanes are +0: fma(0, 0, lane) keeps a lane, for none is -0.
    const Floats v = f_load_n(x + i, n - i);
    lanes = f_fma(v, v, lanes);
  }
  const float mean = f_tree(lanes) / static_cast<float>(n);
  const Floats r = f_set(1.0f / __builtin_sqrtf(mean + eps));
  for (i = 0; i + 16 <= n; i += 16) {
    f_store(y + i, f_mul(f_mul(f_load(x + i), r), f_load(w + i)));
  }
  if (i < n) {
    f_store_n(y + i, f_mul(f_mul(f_load_n(x + i, n - i), r), f_load_n(w + i, n - i)), n - i);
  }
}

// The magnitudes of a block of n values, as integers in their order: the largest of each lane.
BANTAM_INLINE Ints block_largest(const float* x, int n) {
  Ints largest = i_zero();
  for (int i = 0; i < n; i += 16) {
    largest = i_max(largest, i_and(i_bits(f_load(x + i)), i_set(0x7fffffff)));
  }
  return largest;
}

// Rule 3: the largest magnitude of a block of n values as its scale for codes up to `top`. 0 or NaN
// when there is nothing to round.
BANTAM_INLINE float block_scale(const float* x, int n, float top) {
  const uint32_t bits = static_cast<uint32_t>(i_largest(block_largest(x, n)));
  if (bits >= 0x7f800000u) return float_of(0x7fc00000u);
  const float absmax = float_of(bits);
  return absmax < kTinyMagnitude ? 0.0f : absmax / top;
}

// Scales and their inverses. Of eight blocks the maxima and divisions are made together: one block
// after the other waits for both (Xeon, one thread, data in L1, GB/s of 5 bytes a value, blocks of
// 32 and 128: AVX2 9.3 and 12.5, 14.4 and 19.2; AVX-512 11.9 and 11.4, 19.3 and 21.1).
constexpr int kScalesTogether = 8;
struct ScaleGroup {
  float d[kScalesTogether], inverse[kScalesTogether];

  // The first n blocks from x on.
  BANTAM_INLINE ScaleGroup(const float* x, int block, int n, float top) {
    if (n < kScalesTogether) {
      for (int k = 0; k < n; ++k) {
        d[k] = block_scale(x + k * block, block, top);
        inverse[k] = 1.0f / d[k];
      }
      return;
    }
    Ints largest[kScalesTogether];
    for (int k = 0; k < kScalesTogether; ++k) largest[k] = block_largest(x + k * block, block);
    const Floats absmax = f_from_bits(i_largests<kScalesTogether>(largest));
    const Mask tiny = m_less(absmax, f_set(kTinyMagnitude));
    const Mask finite = m_less(absmax, f_set(float_of(0x7f800000u)));
    const Floats scale = f_select(tiny, f_zero(), f_div(absmax, f_set(top)));
    alignas(64) float scales[16], inverses[16];
    f_store(scales, f_select(finite, scale, f_set(float_of(0x7fc00000u))));
    f_store(inverses, f_div(f_set(1.0f), scale));
    for (int k = 0; k < kScalesTogether; ++k) {
      d[k] = scales[some_lane<kScalesTogether>(k)];
      inverse[k] = inverses[some_lane<kScalesTogether>(k)];
    }
  }
};

// x / d, correctly rounded where it is at least a quarter; what is below becomes code 0 either way.
// Divisions are dear, so with y = 1 / d: x y is within 2 ulp of the
// quotient, one correction brings it within 1, and from there q + y (x - q d) rounds to the
// quotient (P. Markstein, Computation of elementary functions on the IBM RISC System/6000, 1990).
// That last rest is exact: with d >= 2^-90 it cannot underflow.
struct Divisor {
  Floats d, inverse, minus;
  bool exact_rest;

  BANTAM_INLINE Divisor(float value, float one_over)
      : d(f_set(value)), inverse(f_set(one_over)), minus(f_set(-value)) {
    exact_rest = value >= 0x1p-90f;
  }
  BANTAM_INLINE Floats quotient(Floats x) const {
    if (!exact_rest) return f_div(x, d);
    Floats q = f_mul(x, inverse);
    q = f_fma(f_fma(q, minus, x), inverse, q);
    return f_fma(f_fma(q, minus, x), inverse, q);
  }
  // No code is beyond the scale's own: the largest value is `top` x d within an ulp.
  BANTAM_INLINE Ints codes(const float* x) const { return i_round(quotient(f_load(x))); }
};

// One block, and the lanes of its codes' sum; parts: sums of 16 codes, or nullptr.
BANTAM_INLINE Ints quantize_block(const float* x, int block, float d, float inverse, int8_t* q,
                                  int16_t* parts) {
  if (!(d > 0.0f)) {
    __builtin_memset(q, 0, static_cast<size_t>(block));
    if (parts != nullptr) __builtin_memset(parts, 0, static_cast<size_t>(block / 8));
    return i_zero();
  }
  const Divisor divisor(d, inverse);
  Ints total = i_zero();
  for (int i = 0; i < block; i += 16) {
    const Ints code = divisor.codes(x + i);
    i_store_bytes(q + i, code);
    total = i_add(total, code);
    if (parts != nullptr) parts[i / 16] = static_cast<int16_t>(i_total(code));
  }
  return total;
}

// Eight blocks of 32, whose sums are worked out together too (Xeon, AVX-512, bytes a cycle, medians
// of 15 runs beside neighbours: 2,048 columns 4.2 -> 6.6, 576 columns 3.9 -> 4.6).
BANTAM_INLINE void quantize_eight(const float* x, const ScaleGroup& scales, int8_t* q, float* d,
                                  int32_t* sums) {
  Ints lanes[kScalesTogether];
  for (int k = 0; k < kScalesTogether; ++k) {
    d[k] = scales.d[k];
    lanes[k] = quantize_block(x + 32 * k, 32, scales.d[k], scales.inverse[k], q + 32 * k, nullptr);
  }
  alignas(64) int32_t totals[16];
  i_store(totals, i_some_totals<kScalesTogether>(lanes));
  for (int k = 0; k < kScalesTogether; ++k) sums[k] = totals[some_lane<kScalesTogether>(k)];
}

void quantize_simd(const float* x, int n, int block, int8_t* q, float* d, int32_t* sums,
                   int16_t* sums16) {
  const int n_blocks = n / block;
  for (int first = 0; first < n_blocks; first += kScalesTogether) {
    const int left = n_blocks - first, together = left < kScalesTogether ? left : kScalesTogether;
    const ScaleGroup scales(x + first * block, block, together, 127.0f);
    if (block == 32 && together == kScalesTogether && sums16 == nullptr) {
      quantize_eight(x + first * 32, scales, q + first * 32, d + first, sums + first);
      continue;
    }
    for (int k = 0; k < together; ++k) {
      const int b = first + k, at = b * block;
      d[b] = scales.d[k];
      sums[b] = i_total(quantize_block(x + at, block, scales.d[k], scales.inverse[k], q + at,
                                       sums16 == nullptr ? nullptr : sums16 + at / 16));
    }
  }
}

BANTAM_INLINE int32_t quantize16_block(const float* x, int block, float d, float inverse,
                                       int8_t* high, int8_t* low) {
  if (!(d > 0.0f)) {
    __builtin_memset(high, 0, static_cast<size_t>(block));
    __builtin_memset(low, 0, static_cast<size_t>(block));
    return 0;
  }
  const Divisor divisor(d, inverse);
  Ints total = i_zero();
  for (int i = 0; i < block; i += 16) {
    const Ints code = divisor.codes(x + i);
    const Ints upper = i_shift_right<8>(i_add(code, i_set(128)));
    i_store_bytes(high + i, upper);
    i_store_bytes(low + i, i_sub(code, i_shift_left<8>(upper)));
    total = i_add(total, code);
  }
  return i_total(total);
}

void quantize16_simd(const float* x, int n, int block, int8_t* high, int8_t* low, float* d,
                     int32_t* sums) {
  const int n_blocks = n / block;
  for (int first = 0; first < n_blocks; first += kScalesTogether) {
    const int left = n_blocks - first, together = left < kScalesTogether ? left : kScalesTogether;
    const ScaleGroup scales(x + first * block, block, together, 32512.0f);
    for (int k = 0; k < together; ++k) {
      const int b = first + k, at = b * block;
      d[b] = scales.d[k];
      sums[b] =
          quantize16_block(x + at, block, scales.d[k], scales.inverse[k], high + at, low + at);
    }
  }
}

void silu_mul_simd(const float* gate, const float* up, int n, float* out) {
  int i = 0;
  for (; i + 16 <= n; i += 16) f_store(out + i, f_mul(silu_simd(f_load(gate + i)), f_load(up + i)));
  if (i < n) {
    const Floats y = silu_simd(f_load_n(gate + i, n - i));
    f_store_n(out + i, f_mul(y, f_load_n(up + i, n - i)), n - i);
  }
}

// exp_simd for N vectors of x <= 0, or NaN, which comes through the polynomial: the same bits.
template <int N>
BANTAM_INLINE void exp_below(Floats* x) {
  const Floats magic = f_set(kRoundMagic);
  Floats n[N], p[N];
  for (int i = 0; i < N; ++i) n[i] = f_sub(f_add(f_mul(x[i], f_set(kLog2e)), magic), magic);
  for (int i = 0; i < N; ++i) p[i] = f_scale(exp_polynomial(x[i], n[i]), n[i]);
  for (int i = 0; i < N; ++i) x[i] = f_only(m_not_less(x[i], f_set(kExpLowest)), p[i]);
}

// The largest of n >= 1 values; with a NaN among them it may be any, for the row ends as NaN
// anyway.
BANTAM_INLINE float largest_of(const float* s, int n) {
  Floats top[4] = {f_set(s[0]), f_set(s[0]), f_set(s[0]), f_set(s[0])};
  int i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int k = 0; k < 4; ++k) top[k] = f_max(top[k], f_load(s + i + 16 * k));
  }
  for (; i + 16 <= n; i += 16) top[0] = f_max(top[0], f_load(s + i));
  if (i < n) top[1] = f_max(top[1], f_select(m_first(n - i), f_load(s + i), top[1]));
  return f_largest(f_max(f_max(top[0], top[1]), f_max(top[2], top[3])));
}

void softmax_page_simd(float* s, int n_visible, float* m, float* l) {
  const float largest = largest_of(s, n_visible);
  const Floats top = f_set(largest);
  Floats lanes = f_zero();
  int i = 0;
  for (; i + 16 * kExpsTogether <= n_visible; i += 16 * kExpsTogether) {
    Floats p[kExpsTogether];
    for (int k = 0; k < kExpsTogether; ++k) p[k] = f_sub(f_load(s + i + 16 * k), top);
    exp_below<kExpsTogether>(p);
    for (int k = 0; k < kExpsTogether; ++k) {
      lanes = f_add(lanes, p[k]);
      f_store(s + i + 16 * k, p[k]);
    }
  }
  for (; i < n_visible; i += 16) {
    Floats p[1] = {f_sub(f_load(s + i), top)};
    exp_below<1>(p);
    const Floats seen = f_only(m_first(n_visible - i), p[0]);
    lanes = f_add(lanes, seen);
    f_store(s + i, seen);
  }
  for (; i < 256; i += 16) f_store(s + i, f_zero());
  *m = largest;
  *l = f_tree(lanes);
}

void merge_simd(int head_dim, float* m, float* l, float* acc, float m_p, float l_p,
                const float* acc_p) {
  // One of the two is exp(0) = 1, exactly, unless there is a NaN.
  const float top = m_p > *m ? m_p : *m;
  const float below = *m - top, below_p = m_p - top;
  const float a = below == 0.0f ? 1.0f : exp_f32(below);
  const float b = below_p == 0.0f ? 1.0f : exp_f32(below_p);
  for (int i = 0; i < head_dim; i += 16) {
    f_store(acc + i, f_add(f_mul(f_load(acc + i), f_set(a)), f_mul(f_load(acc_p + i), f_set(b))));
  }
  *l = *l * a + l_p * b;
  *m = top;
}

void finish_simd(int head_dim, const float* acc, float l, float* out) {
  for (int i = 0; i < head_dim; i += 16) f_store(out + i, f_div(f_load(acc + i), f_set(l)));
}

template <int Vectors>
BANTAM_INLINE void rotate_block(float* x, Floats norm) {
  Floats v[Vectors];
  for (int i = 0; i < Vectors; ++i) {
    v[i] = f_load(x + 16 * i);
    v[i] = f_butterfly<8>(f_butterfly<4>(f_butterfly<2>(f_butterfly<1>(v[i]))));
  }
  for (int stride = 1; stride < Vectors; stride *= 2) {
    for (int i = 0; i < Vectors; i += 2 * stride) {
      for (int j = i; j < i + stride; ++j) {
        const Floats a = v[j], b = v[j + stride];
        v[j] = f_add(a, b);
        v[j + stride] = f_sub(a, b);
      }
    }
  }
  for (int i = 0; i < Vectors; ++i) f_store(x + 16 * i, f_mul(v[i], norm));
}

void rotate_simd(float* x, int n, int block) {
  const Floats norm = f_set(rotation_norm(block));
  for (int start = 0; start < n; start += block) {
    if (block == 32) rotate_block<2>(x + start, norm);
    if (block == 64) rotate_block<4>(x + start, norm);
    if (block == 128) rotate_block<8>(x + start, norm);
    if (block == 256) rotate_block<16>(x + start, norm);
  }
}

// Neighbours turned together: a c - b s as a c + b (-s), the same bits.
BANTAM_INLINE void rope_pairs(float* x, int rope_dims, const float* cos, const float* sin) {
  alignas(64) static constexpr float kSigns[16] = {-1, 1, -1, 1, -1, 1, -1, 1,
                                                   -1, 1, -1, 1, -1, 1, -1, 1};
  const Floats signs = f_load(kSigns);
  for (int i = 0; i < rope_dims; i += 16) {
    const Floats v = f_load(x + i);
    const Floats turned = f_mul(f_neighbours(v), f_mul(f_twice(sin + i / 2), signs));
    f_store(x + i, f_add(f_mul(v, f_twice(cos + i / 2)), turned));
  }
}

void rope_simd(float* x, int rope_dims, bool interleaved, const float* cos, const float* sin) {
  const int half = rope_dims / 2;
  if (interleaved && half % 8 == 0) return rope_pairs(x, rope_dims, cos, sin);
  if (interleaved || half % 16 != 0) return rope(x, rope_dims, interleaved, cos, sin);
  for (int i = 0; i < half; i += 16) {
    const Floats a = f_load(x + i), b = f_load(x + half + i);
    const Floats c = f_load(cos + i), s = f_load(sin + i);
    f_store(x + i, f_sub(f_mul(a, c), f_mul(b, s)));
    f_store(x + half + i, f_add(f_mul(a, s), f_mul(b, c)));
  }
}

void fill_rows_simd(Kernels& table) {
  table.rms_norm = rms_norm_simd;
  table.quantize = quantize_simd;
  table.quantize16 = quantize16_simd;
  table.silu_mul = silu_mul_simd;
  table.softmax_page = softmax_page_simd;
  table.merge = merge_simd;
  table.finish = finish_simd;
  table.rotate = rotate_simd;
  table.rope = rope_simd;
}

}  // namespace
}  // namespace bantam
