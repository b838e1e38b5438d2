// What the integer products of every vector instruction set share: how the codes of each packed
// format are taken out of their words, what an activation block ends with, how rows are stored.
// Includers choose the vector header first.
#pragma once

#include "cpu/kernels.h"

namespace bantam {
namespace {

// A compile-time number, for lambdas that need one.
template <int V>
struct Constant {
  static constexpr int value = V;
};
template <int N, class Body>
BANTAM_INLINE void unrolled(Body&& body) {
  if constexpr (N > 0) {
    unrolled<N - 1>(body);
    body(Constant<N - 1>{});
  }
}

// ---- formats. Sum of value * x = mult * (sum of code * x) - bias * (sum of x); |value| <=
// largest.

template <class Accumulator, int Bits, int Values>
struct SimdLowBits {
  static constexpr int bits = Bits, values = Values, quads_per_word = 8 / Bits;
  static constexpr int scales = 2 * Values * Bits, block_bytes = scales + 32;
  static constexpr bool minimum = false, sub_scales = false;
  typedef Accumulator Acc;
};

struct SimdQ1_0 : SimdLowBits<BitAcc, 1, 128> {
  static constexpr int mult = kBitMult, bias = 1, largest = 1, tile = kTileTokens;
  template <int K>
  static BANTAM_INLINE Bytes code(Bytes word) {
    return bit_code<K>(word);
  }
  template <class X>
  static BANTAM_INLINE void add(Acc& acc, Bytes code, X x) {
    bit_add(acc, code, x);
  }
  static BANTAM_INLINE Ints sum(const Acc& acc) { return bit_sum(acc); }
};

template <int Bits, int Values, int Bias>
struct SimdSmall : SimdLowBits<SmallAcc, Bits, Values> {
  typedef SmallAcc Acc;
  static constexpr int mult = 1, bias = Bias, tile = kTileTokensSmall;
  static constexpr int largest = Bias < (1 << Bits) - Bias ? (1 << Bits) - 1 - Bias : Bias;
  template <int K>
  static BANTAM_INLINE Bytes code(Bytes word) {
    return b_field<Bits, K>(word);
  }
  template <class X>
  static BANTAM_INLINE void add(Acc& acc, Bytes code, X x) {
    small_add(acc, code, x);
  }
  static BANTAM_INLINE Ints sum(const Acc& acc) { return small_sum(acc); }
};
struct SimdQ4_0 : SimdSmall<4, 32, 8> {};
struct SimdQ4_1 : SimdSmall<4, 32, 0> {
  static constexpr int block_bytes = 320;
  static constexpr bool minimum = true;
};

struct SimdQ4_K : SimdSmall<4, 256, 0> {
  static constexpr int scales = 2240, block_bytes = 2304;
  static constexpr bool minimum = true, sub_scales = true;
  // AVX2, cycles for 16 x 32 of a row: in any order 20.5, in order 23.5, for its ends want many
  // registers.
  template <class X>
  static BANTAM_INLINE void add(Acc& acc, Bytes code, X x) {
    small_add<false>(acc, code, x);
  }
};

struct SimdQ8_0 {
  static constexpr int bits = 8, values = 32, quads_per_word = 1, scales = 512, block_bytes = 544;
  static constexpr int mult = 1, bias = kWideBias, largest = 128, tile = kTileTokensWide;
  static constexpr bool minimum = false, sub_scales = false;
  typedef WideAcc Acc;
  // Packed as code + 128; wide_code wants the signed code.
  template <int K>
  static BANTAM_INLINE Bytes code(Bytes word) {
    if constexpr (kWideBias == 128) return word;
    return wide_code(b_sub(word, b_set(0x80)));
  }
  template <class X>
  static BANTAM_INLINE void add(Acc& acc, Bytes code, X x) {
    wide_add(acc, code, x);
  }
  static BANTAM_INLINE Ints sum(const Acc& acc) { return wide_sum(acc); }
};

// ---- ends of products

BANTAM_INLINE void store_rows(const MatmulArgs& args, int group, int t, Floats y) {
  const int row = group * kGroupRows, n = args.w->rows - row;
  float* out = args.y + t * args.ldy + row;
  if (n >= kGroupRows) {
    f_store(out, args.add ? f_add(f_load(out), y) : y);
  } else {
    f_store_n(out, args.add ? f_add(f_load_n(out, n), y) : y, n);
  }
}

// Sub-scales (which 0) or minima (1) of sub-block `sub` of a q4_k block, one to a lane.
BANTAM_INLINE Ints q4_k_lanes(const std::byte* block, int sub, int which) {
  const Ints low = i_load_bytes(block + 2048 + sub * 16);
  const Ints high = i_load_bytes(block + 2176 + sub / 2 * 16);
  const Ints fifteen = i_set(15), three = i_set(3);
  const Ints pair = sub % 2 == 0 ? high : i_shift_right<4>(high);
  const Ints a = i_and(which == 0 ? low : i_shift_right<4>(low), fifteen);
  const Ints b = i_and(which == 0 ? pair : i_shift_right<2>(pair), three);
  return i_add(a, i_shift_left<4>(b));
}

// What the end of an activation block needs, for T rows. y = [T] running sums; no sum of products
// is above Most. Sub-scales are multiplied as floats: dots, sums of activations and sub-scales are
// below 2^24 and so exact, and a product of two exact floats is rounded as the exact integer is. It
// may be -0 where the integer is 0, which y does not tell: it starts at +0 and never becomes -0.
template <class F, int Block, int T, int Most>
BANTAM_INLINE void end_block(const ActRows& a, const std::byte* block, int t0, int index, int sub,
                             const Ints* s, Floats* y) {
  static_assert(!F::sub_scales || Most < 1 << 24);
  const int64_t n_blocks = a.n_cols / Block;
  const Floats d_w = f_halves(block + F::scales);
  Floats m_w = f_zero();
  Floats sub_d = f_zero(), sub_m = f_zero();
  if constexpr (F::minimum) m_w = f_halves(block + F::scales + 32);
  if constexpr (F::sub_scales) {
    sub_d = f_from_ints(q4_k_lanes(block, sub, 0));
    sub_m = f_from_ints(q4_k_lanes(block, sub, 1));
    m_w = f_sub(f_set(-0.0f), m_w);
  }
  unrolled<T>([&](auto row) __attribute__((always_inline)) {
    constexpr int t = decltype(row)::value;
    const int64_t at = (t0 + t) * n_blocks + index;
    const Floats d_a = f_set(a.d[at]);
    if constexpr (F::sub_scales) {
      y[t] = f_fma(f_mul(f_from_ints(s[t]), sub_d), f_mul(d_w, d_a), y[t]);
    } else {
      const Floats dot = f_of_dot<F::mult, F::bias, Most>(s[t], a.sums + at);
      y[t] = f_fma(dot, f_mul(d_w, d_a), y[t]);
    }
    if constexpr (F::sub_scales) {
      y[t] = f_fma(f_mul(sub_m, f_set(a.float_sums[at])), f_mul(m_w, d_a), y[t]);
    } else if constexpr (F::minimum) {
      y[t] = f_fma(f_set(a.float_sums[at]), f_mul(m_w, d_a), y[t]);
    }
  });
}

}  // namespace
}  // namespace bantam
