// Scores with vectors (NUMERICS rule 5), the bits of attend_scalar.inl. A lane is a position for
// quantized K, so that no dot product needs a horizontal sum, and a channel for float K (rule 2;
// with many rows a position again: attend_turned.inl).
// A tile's block is unpacked once for all query rows. Includers choose the vector header first.
#pragma once

#include "cpu/attend_codes.inl"
#if defined(BANTAM_TURNED_KEYS)
#include "cpu/attend_turned.inl"
#endif

namespace bantam {
namespace {

// Products of a block, of its quads i = 0 to 7 in turn.
template <class Codec, bool Wide = kIsWide<Codec>>
struct KeyDot {
  WideAcc acc = {};
  static constexpr int bias = kWideBias;
  BANTAM_INLINE void add(int, Bytes code, Quad x) { wide_key_add(acc, code, x); }
  BANTAM_INLINE Ints sum() const { return wide_sum(acc); }
};
template <class Codec>
struct KeyDot<Codec, false> {
  static constexpr int bias = Codec::bias, largest = (1 << Codec::bits) - 1;
  CodeAcc<largest> acc = {};
  BANTAM_INLINE void add(int i, Bytes code, Quad x) { code_add<largest>(acc, i, code, x); }
  BANTAM_INLINE Ints sum() const { return code_sum<largest>(acc); }
};

// Where the dots start instead of at 0 (minus the bias of the codes times the sum of the query)
// and, for codes above a minimum, the float sums: of each row and block, once for the tile.
template <class Codec>
struct QuerySums {
  int32_t start[KeyDot<Codec>::bias != 0 ? kRowsTogether * (kMostHeadDim / 32) : 1];
  float sum[Codec::minimum ? kRowsTogether * (kMostHeadDim / 32) : 1];

  QuerySums(const int16_t* sums16, int n) {
    for (int i = 0; KeyDot<Codec>::bias != 0 && i < n; ++i) {
      start[i] = -KeyDot<Codec>::bias * (sums16[2 * i] + sums16[2 * i + 1]);
    }
    for (int i = 0; Codec::minimum && i < n; ++i) {
      sum[i] = static_cast<float>(sums16[2 * i] + sums16[2 * i + 1]);
    }
  }
};

}  // namespace
}  // namespace bantam

#if defined(BANTAM_SIXTEEN_REGISTERS)
#include "cpu/attend_scores_sixteen.inl"
#endif

namespace bantam {
namespace {

#if !defined(BANTAM_SIXTEEN_REGISTERS)
// Block b of the tile for all rows: s accumulates in args.s.
template <class Codec>
BANTAM_INLINE void score_block(const ScoreArgs& args, const KvTileLayout& at,
                               const QuerySums<Codec>& sums, int b) {
  const int hd = args.head_dim;
  Bytes keys[8][2];
  for (int i = 0; i < 8; ++i) {
    for (int h = 0; h < 2; ++h) {
      ask_for_key<Codec>(*args.ahead, b, i, h);
      keys[i][h] = key_codes<Codec>(args.tile, at, 8 * b + i, h);
    }
  }
  ask_for_rest<Codec>(*args.ahead, at, b);
  Floats d[2], m[2];
  for (int h = 0; h < 2; ++h) {
    d[h] = f_halves(args.tile + at.scales + b * 64 + h * 32);
    if (Codec::minimum) m[h] = f_halves(args.tile + at.minima + b * 64 + h * 32);
  }
  const bool first = b == 0, last = b == hd / 32 - 1;
  for (int r = 0; r < args.n_rows; ++r) {
    const int8_t* q = args.q + int64_t{r} * hd + 32 * b;
    KeyDot<Codec> dots[2][kSumChains];
    constexpr bool biased = KeyDot<Codec>::bias != 0;
    if constexpr (biased && kSumsStartAnywhere) {
      for (int h = 0; h < 2; ++h) dots[h][0].acc = sum_start(sums.start[r * (hd / 32) + b]);
    }
    for (int i = 0; i < 8; ++i) {
      const Quad x = quad(q + 4 * i);
      for (int h = 0; h < 2; ++h) dots[h][i % kSumChains].add(i, keys[i][h], x);
    }
    float* out = args.s + r * args.s_stride;
    for (int h = 0; h < 2; ++h) {
      Ints dot = dots[h][0].sum();
      for (int k = 1; k < kSumChains; ++k) dot = i_add(dot, dots[h][k].sum());
      if constexpr (biased && !kSumsStartAnywhere) {
        dot = i_add(dot, i_set(sums.start[r * (hd / 32) + b]));
      }
      Floats s = first ? f_zero() : f_load(out + 16 * h);
      s = f_fma(f_from_ints(dot), d[h], s);
      if constexpr (Codec::minimum) s = f_fma(f_set(sums.sum[r * (hd / 32) + b]), m[h], s);
      if (last) s = f_mul(s, f_set(args.scale[r]));
      f_store(out + 16 * h, s);
    }
  }
}
#endif

template <class Codec>
void scores_quant_simd(const ScoreArgs& all) {
  const int hd = all.head_dim, blocks = hd / 32;
  const KvTileLayout at = layout_of<Codec>(hd);
#if defined(BANTAM_SIXTEEN_REGISTERS)
  if (all.n_rows == 1) return scores_in_place<Codec, 1>(all, at);
  if (all.n_rows == 2) return scores_in_place<Codec, 2>(all, at);
#endif
  ScoreArgs args = all;
  for (int row = 0; row < all.n_rows; row += kRowsTogether) {
    args.n_rows = all.n_rows - row < kRowsTogether ? all.n_rows - row : kRowsTogether;
    const QuerySums<Codec> sums(args.sums16, args.n_rows * blocks);
    for (int b = 0; b < blocks; ++b) score_block<Codec>(args, at, sums, b);
    args.q += int64_t{kRowsTogether} * hd;
    args.sums16 += kRowsTogether * (hd / 16);
    args.scale += kRowsTogether;
    args.s += kRowsTogether * args.s_stride;
  }
}

// ---- float K

// Sixteen keys of the tile from `first` on against R rows from r on.
template <class Float, int R>
BANTAM_INLINE void score_float_rows(const ScoreArgs& args, const std::byte* tile, int first, int r,
                                    bool ask) {
  constexpr int K = kFloatKeys / R;
  const int hd = args.head_dim;
  const float* q = args.qf + int64_t{r} * hd;
  Floats lanes[R][16];
#if defined(BANTAM_AHEAD_STREAMS)
  int64_t asked = int64_t{first} * hd * Float::bytes;
  const std::byte* eight = nullptr;
#endif
  for (int k0 = 0; k0 < 16; k0 += K) {
    Floats sums[R][K];
    for (int n = 0; n < R; ++n) {
      for (int k = 0; k < K; ++k) sums[n][k] = f_zero();
    }
    for (int c = 0; c < hd; c += 16) {
      Floats x[R];
      for (int n = 0; n < R; ++n) x[n] = f_load(q + n * hd + c);
      for (int k = 0; k < K; ++k) {
        const int64_t at = (int64_t{first + k0 + k} * hd + c) * Float::bytes;
#if defined(BANTAM_AHEAD_STREAMS)
        static_assert(K % 8 == 0);
        if (ask && at % 64 == 0) {
          if (k % 8 == 0) {
            eight = line_ahead(*args.ahead, asked);
            asked += AheadLines::kEightBytes;
          }
          __builtin_prefetch(eight + k % 8 * 64, 0, kPrefetchLevel);
        }
#else
        if (ask && at % 64 == 0) ask_for(*args.ahead, at);
#endif
        const Floats key = load_floats<Float>(tile + at);
        for (int n = 0; n < R; ++n) sums[n][k] = f_fma(x[n], key, sums[n][k]);
      }
    }
    for (int n = 0; n < R; ++n) {
      for (int k = 0; k < K; ++k) lanes[n][k0 + k] = sums[n][k];
    }
  }
  for (int n = 0; n < R; ++n) {
    f_store(args.s + (r + n) * args.s_stride + first,
            f_mul(f_trees(lanes[n]), f_set(args.scale[r + n])));
  }
}

template <class Float>
BANTAM_INLINE void score_floats(const ScoreArgs& args, const std::byte* tile, bool ask) {
  for (int first = 0; first < 32; first += 16) {
    int r = 0;
    for (; r + kFloatRows <= args.n_rows; r += kFloatRows) {
      score_float_rows<Float, kFloatRows>(args, tile, first, r, ask && r == 0);
    }
    for (; r < args.n_rows; ++r) score_float_rows<Float, 1>(args, tile, first, r, ask && r == 0);
  }
}

template <class Float>
void scores_float_simd(const ScoreArgs& args) {
#if defined(BANTAM_TURNED_KEYS)
  if (args.n_rows >= turned_from(args.head_dim, Float::bytes)) return score_turned<Float>(args);
#endif
  if (Float::bytes == 4 || args.n_rows <= kFloatRowsInPlace) {
    return score_floats<Float>(args, args.tile, true);
  }
  const FloatTile<Float> tile(args.tile, *args.ahead, args.head_dim);
  score_floats<CodecOf<KvType::f32>>(args, tile.data(), false);
}

}  // namespace
}  // namespace bantam
