// Scores with vectors (NUMERICS rule 5), the bits of attend_scalar.inl. A lane is a position for
// quantized K, so that no dot product needs a horizontal sum, and a channel for float K (rule 2).
// A tile's block is unpacked once for all query rows. Includers choose the vector header first.
#pragma once

#include "cpu/attend_codes.inl"

namespace bantam {
namespace {

template <class Codec, bool Wide = Codec::bits != 4 || kIsTable<Codec>>
struct KeyDot {
  WideAcc acc = {};
  static constexpr int bias = kIsWide<Codec> ? kWideBias : Codec::bias;
  BANTAM_INLINE void add(Bytes code, Quad x) { wide_add(acc, code, x); }
  BANTAM_INLINE Ints sum() const { return wide_sum(acc); }
};
template <class Codec>
struct KeyDot<Codec, false> {
  SmallAcc acc = {};
  static constexpr int bias = Codec::bias;
  BANTAM_INLINE void add(Bytes code, Quad x) { small_add(acc, code, x); }
  BANTAM_INLINE Ints sum() const { return small_sum(acc); }
};

// What is subtracted from the dots and, for codes above a minimum, the float sums: of each row and
// block, once for the tile.
template <class Codec>
struct QuerySums {
  int32_t bias[KeyDot<Codec>::bias != 0 ? kRowsTogether * (kMostHeadDim / 32) : 1];
  float sum[Codec::minimum ? kRowsTogether * (kMostHeadDim / 32) : 1];

  QuerySums(const int16_t* sums16, int n) {
    for (int i = 0; KeyDot<Codec>::bias != 0 && i < n; ++i) {
      bias[i] = KeyDot<Codec>::bias * (sums16[2 * i] + sums16[2 * i + 1]);
    }
    for (int i = 0; Codec::minimum && i < n; ++i) {
      sum[i] = static_cast<float>(sums16[2 * i] + sums16[2 * i + 1]);
    }
  }
};

// Block b of the tile for all rows: s accumulates in args.s.
template <class Codec>
BANTAM_INLINE void score_block(const ScoreArgs& args, const KvTileLayout& at,
                               const QuerySums<Codec>& sums, int b) {
  const int hd = args.head_dim;
  Bytes keys[8][2];
  for (int i = 0; i < 8; ++i) {
    for (int h = 0; h < 2; ++h) keys[i][h] = key_codes<Codec>(args.tile, at, 8 * b + i, h);
  }
  Floats d[2], m[2];
  for (int h = 0; h < 2; ++h) {
    d[h] = f_halves(args.tile + at.scales + b * 64 + h * 32);
    if (Codec::minimum) m[h] = f_halves(args.tile + at.minima + b * 64 + h * 32);
  }
  const bool first = b == 0, last = b == hd / 32 - 1;
  for (int r = 0; r < args.n_rows; ++r) {
    const int8_t* q = args.q + int64_t{r} * hd + 32 * b;
    KeyDot<Codec> dots[2];
    for (int i = 0; i < 8; ++i) {
      const Quad x = quad(q + 4 * i);
      for (int h = 0; h < 2; ++h) dots[h].add(keys[i][h], x);
    }
    float* out = args.s + r * args.s_stride;
    for (int h = 0; h < 2; ++h) {
      Ints dot = dots[h].sum();
      if constexpr (KeyDot<Codec>::bias != 0) {
        dot = i_sub(dot, i_set(sums.bias[r * (hd / 32) + b]));
      }
      Floats s = first ? f_zero() : f_load(out + 16 * h);
      s = f_fma(f_from_ints(dot), d[h], s);
      if constexpr (Codec::minimum) s = f_fma(f_set(sums.sum[r * (hd / 32) + b]), m[h], s);
      if (last) s = f_mul(s, f_set(args.scale[r]));
      f_store(out + 16 * h, s);
    }
  }
}

template <class Codec>
void scores_quant_simd(const ScoreArgs& all) {
  const int hd = all.head_dim, blocks = hd / 32;
  const KvTileLayout at = layout_of<Codec>(hd);
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

template <class Float>
inline void score_floats(const ScoreArgs& args, const std::byte* tile) {
  const int hd = args.head_dim;
  for (int first = 0; first < 32; first += 16) {
    const std::byte* keys = tile + int64_t{first} * hd * Float::bytes;
    for (int r = 0; r < args.n_rows; ++r) {
      const float* q = args.qf + int64_t{r} * hd;
      Floats lanes[16];
      for (int k0 = 0; k0 < 16; k0 += kFloatKeys) {
        for (int k = k0; k < k0 + kFloatKeys; ++k) lanes[k] = f_zero();
        for (int c = 0; c < hd; c += 16) {
          const Floats x = f_load(q + c);
          for (int k = k0; k < k0 + kFloatKeys; ++k) {
            const Floats key = load_floats<Float>(keys + (int64_t{k} * hd + c) * Float::bytes);
            lanes[k] = f_fma(x, key, lanes[k]);
          }
        }
      }
      f_store(args.s + r * args.s_stride + first, f_mul(f_trees(lanes), f_set(args.scale[r])));
    }
  }
}

template <class Float>
void scores_float_simd(const ScoreArgs& args) {
  if (Float::bytes == 4 || args.n_rows == 1) return score_floats<Float>(args, args.tile);
  const FloatTile<Float> tile(args.tile, 32, args.head_dim);
  score_floats<CodecOf<KvType::f32>>(args, tile.data());
}

}  // namespace
}  // namespace bantam
