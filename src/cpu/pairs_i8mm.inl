// Sums of products of two and more activation rows by SMMLA (ARMv8.6): 8 columns of two weight rows
// times 8 columns of two activation rows. Needs vec_neon.h with BANTAM_I8MM and the formats of
// weights_simd.inl. The layouts are those of every instruction set, quads of 4 columns side by side
// for rows and tokens, so that a ZIP of two quads makes an operand: one for four rows of weights,
// shared by the tile's tokens, and one for four tokens. A layout of 8 columns for this instruction
// set alone would save a third of the vector instructions beside the products, and would need
// weights and activations packed twice over for SDOT, which serves single rows.
#pragma once

namespace bantam {
namespace {

BANTAM_INLINE int8x16_t zip_low(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}
BANTAM_INLINE int8x16_t zip_high(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}

// 4 * V weight rows from vector `at` of a word, T tokens. sum[i][j] is 2 x 2: rows 2i and 2i + 1,
// tokens 2j and 2j + 1. 16 registers with 8 tokens and 8 rows.
template <int T>
struct PairSums {
  static constexpr int V = T == 8 ? 2 : 4;
  int32x4_t sum[2 * V][T / 2];

  BANTAM_INLINE PairSums() {
    for (auto& row : sum) {
      for (int32x4_t& x : row) x = vdupq_n_s32(0);
    }
  }
  // rows[i]: 8 columns of rows 2i and 2i + 1. x: their first quad in a panel of Width tokens.
  template <int Width>
  BANTAM_INLINE void add(const int8x16_t* rows, const int8_t* x) {
    int8x16_t tokens[T / 2];
    if constexpr (T == 2) {
      tokens[0] = zip_low(vcombine_s8(vld1_s8(x), vdup_n_s8(0)),
                          vcombine_s8(vld1_s8(x + 4 * Width), vdup_n_s8(0)));
    } else {
      for (int j = 0; j < T / 4; ++j) {
        const int8x16_t a = load_16(x + 16 * j), b = load_16(x + 4 * Width + 16 * j);
        tokens[2 * j] = zip_low(a, b);
        tokens[2 * j + 1] = zip_high(a, b);
      }
    }
    for (int i = 0; i < 2 * V; ++i) {
      for (int j = 0; j < T / 2; ++j) sum[i][j] = vmmlaq_s32(sum[i][j], rows[i], tokens[j]);
    }
  }
  // Lanes are rows again: vectors [at, at + V) of the sums of each token.
  BANTAM_INLINE void store(int at, Ints* s) const {
    for (int i = 0; i < V; ++i) {
      for (int j = 0; j < T / 2; ++j) {
        s[2 * j].v[at + i] = vuzp1q_s32(sum[2 * i][j], sum[2 * i + 1][j]);
        s[2 * j + 1].v[at + i] = vuzp2q_s32(sum[2 * i][j], sum[2 * i + 1][j]);
      }
    }
  }
  BANTAM_INLINE void shift_left_8() {
    for (auto& row : sum) {
      for (int32x4_t& x : row) x = vshlq_n_s32(x, 8);
    }
  }
};

// Codes of V vectors of rows: quads a and b of 4 columns become 8 columns of two rows.
template <int V>
BANTAM_INLINE void pair_codes(Bytes a, Bytes b, int at, int8x16_t* rows) {
  for (int i = 0; i < V; ++i) {
    rows[2 * i] = zip_low(a.v[at + i], b.v[at + i]);
    rows[2 * i + 1] = zip_high(a.v[at + i], b.v[at + i]);
  }
}

// The words of an activation block, one plane of activations. Bits are paired before they are
// tested, once for the word: the two halves of an operand then ask for neighbouring bits.
template <class F, int Block, int T, int Width>
BANTAM_INLINE void pair_words(const std::byte* words, const int8_t* x, int at, PairSums<T>& sums) {
  constexpr int Q = F::quads_per_word, V = PairSums<T>::V;
  for (int w = 0; w < Block / (4 * Q); w += Q == 1 ? 2 : 1) {
    const Bytes word = b_load(words + 64 * w);
    if constexpr (Q == 1) {
      int8x16_t rows[2 * V];
      pair_codes<V>(F::template code<0>(word), F::template code<0>(b_load(words + 64 * w + 64)), at,
                    rows);
      sums.template add<Width>(rows, x);
      x += 8 * Width;
    } else {
      int8x16_t twice[2 * V];
      if constexpr (F::bits == 1) pair_codes<V>(word, word, at, twice);
      unrolled<Q / 2>([&](auto k) __attribute__((always_inline)) {
        constexpr int K = 2 * decltype(k)::value;
        int8x16_t rows[2 * V];
        if constexpr (F::bits == 1) {
          for (int i = 0; i < 2 * V; ++i) rows[i] = bit_pair<K>(twice[i]);
        } else {
          pair_codes<V>(F::template code<K>(word), F::template code<K + 1>(word), at, rows);
        }
        sums.template add<Width>(rows, x + 4 * K * Width);
      });
      x += 4 * Q * Width;
    }
  }
}

// product_tile for the rows of vectors [At, At + V): the sums of 8 rows and 8 tokens go from the
// registers they were made in to y.
template <class F, int Block, int T, int Width, int Planes, int At>
BANTAM_INLINE void pair_part(const MatmulArgs& args, int group, int t0, Floats* y) {
  const ActRows& a = args.a;
  const int n = args.w->cols;
  const std::byte* base = args.w->data + group * (int64_t{n} / F::values * F::block_bytes);
  const int64_t first = act_offset(a.n_rows, n, t0, 0);
  for (int t = 0; t < T; ++t) y[t] = f_zero();
  for (int c = 0, index = 0; c < n; c += Block, ++index) {
    const std::byte* block = base + int64_t{c} / F::values * F::block_bytes;
    const std::byte* words = block + c % F::values / (4 * F::quads_per_word) * 64;
    const int64_t offset = first + int64_t{c} * Width;
    PairSums<T> sums;
    pair_words<F, Block, T, Width>(words, a.q + offset, At, sums);
    if constexpr (Planes == 2) {
      sums.shift_left_8();
      pair_words<F, Block, T, Width>(words, a.low + offset, At, sums);
    }
    Ints s[T];
    for (int t = 0; t < T; ++t) s[t] = i_zero();  // the other vectors' results are dropped
    sums.store(At, s);
    constexpr int most = F::largest * (Planes == 2 ? 32512 : 128) * Block;
    end_block<F, Block, T, most>(a, block, t0, index, c % F::values / Block, s, y);
  }
}

template <class F, int Block, int T, int Width, int Planes>
inline void pair_tile(const MatmulArgs& args, int group, int t0) {
  constexpr int V = PairSums<T>::V;
  Floats y[T];
  unrolled<4 / V>([&](auto part) __attribute__((always_inline)) {
    constexpr int At = decltype(part)::value * V;
    Floats half[T];
    pair_part<F, Block, T, Width, Planes, At>(args, group, t0, half);
    for (int t = 0; t < T; ++t) {
      for (int i = At; i < At + V; ++i) y[t].v[i] = half[t].v[i];
    }
  });
  for (int t = 0; t < T; ++t) store_rows(args, group, t0 + t, y[t]);
}

// s[t] = sums of T rows over sub-block `sub` (16 columns) of a q6_k block.
template <int T, int Width>
BANTAM_INLINE void pair_sums_q6_k(const std::byte* block, int sub, const int8_t* x, Ints* s) {
  constexpr int V = PairSums<T>::V;
  unrolled<4 / V>([&](auto part) __attribute__((always_inline)) {
    constexpr int at = decltype(part)::value * V;
    PairSums<T> sums;
    int8x16_t rows[2 * V];
    pair_codes<V>(q6_k_code<0>(block, sub), q6_k_code<1>(block, sub), at, rows);
    sums.template add<Width>(rows, x);
    pair_codes<V>(q6_k_code<2>(block, sub), q6_k_code<3>(block, sub), at, rows);
    sums.template add<Width>(rows, x + 8 * Width);
    sums.store(at, s);
  });
}

}  // namespace
}  // namespace bantam
