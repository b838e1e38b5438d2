// Weighted sums of V with vectors (NUMERICS rule 5), the bits of attend_scalar.inl. A lane is a
// channel. The u8 weights of all rows and blocks of a tile are worked out together, so that their
// maxima and divisions overlap; a block of values is unpacked once for all rows. Includers choose
// the vector header first.
#pragma once

#include "cpu/attend_codes.inl"

namespace bantam {
namespace {

// ---- quantized V: weights

// Few rows of codes with a zero point. A value is code - bias; where the scale is negative the bits
// of the code are flipped and the value is code - (bias - 1). Nothing is subtracted from codes
// then, but once from their sum: the weights times bias or bias - 1. With many rows this costs
// more than subtracting. Values of tables are flipped likewise: their bias is 0.
template <class Codec>
struct FewRows : Codec {};
// Values of tables are signed already, though their codes are not.
template <class Codec>
constexpr int kZeroPoint = kIsTable<Codec> || Codec::bits == 8 ? 0 : Codec::bias;
template <class Codec>
constexpr bool kFlipsCodes = false;
template <class Codec>
constexpr bool kFlipsCodes<FewRows<Codec>> = true;
// Xeon, cycles for a tile of q4_0, head size 128: 2 rows 396 subtracting and 352 with it, 64 rows
// 5957 and 6483; not measured between them. Zen 4, a tile of iq4_nl, 1, 2, 4 and 6 rows: 424, 547,
// 796, 1046 subtracting, 338, 438, 726, 980 with it (AVX-512).
constexpr int kFewRows = 6;

// Of pair r * (head_dim / 32) + b. Groups of pairs are filled up with copies of existing ones.
template <class Codec>
struct RowWeights {
  static constexpr int kRows = kFlipsCodes<Codec> ? kFewRows : kRowsTogether;
  static constexpr int kPairs = kRows * (kMostHeadDim / 32);  // whole groups
  static constexpr bool splits = kSplitsWeights && kIsWide<Codec>;
  static constexpr int kBytes = kPairs * 32 + 64;       // of a half; not a power of two apart
  alignas(64) uint8_t u[splits ? 2 * kBytes : kBytes];  // if split, lower and upper half bytes
  // NaN: not finite. +0: too small to count; then sums stay as they are, for none is ever -0.
  float c[kPairs];
  float minimum[Codec::minimum ? kPairs : 1];
  int32_t correction[kFlipsCodes<Codec> ? kPairs : 1];  // of the sums of codes

  template <int Largest>
  BANTAM_INLINE static auto quad_at(const uint8_t* four) {
    return weight_quad<Largest>(four, four + (splits ? kBytes : 0));
  }
};

// Which pairs are worked out together: from pair `first` on, `left` of them exist, others are
// copies of existing ones. Blocks: of a row where that is known and divides four, else 0.
template <int Blocks>
struct Pairs {
  int first, left, n_blocks, n_rows, over_blocks;

  BANTAM_INLINE explicit Pairs(const WeighArgs& args)
      : first(0),
        n_blocks(Blocks == 0 ? args.head_dim / 32 : Blocks),
        n_rows(args.n_rows),
        over_blocks(65536 / n_blocks + 1) {
    left = n_rows * n_blocks;
  }
  BANTAM_INLINE void next() {
    first += 8;
    left -= 8;
  }
  BANTAM_INLINE int number(int k) const { return first + (k < left ? k : left - 1); }
  BANTAM_INLINE int row(int k) const {
    // A division: there are at most 8 * kRowsTogether pairs.
    if constexpr (Blocks == 0) {
      return number(k) * over_blocks >> 16;
    } else {
      const int r = first / Blocks + k / Blocks;
      return r < n_rows ? r : n_rows - 1;
    }
  }
  BANTAM_INLINE int block(int k) const {
    if constexpr (Blocks == 0) {
      return number(k) - row(k) * n_blocks;
    } else {
      return k % Blocks;
    }
  }
};

// What the weights of a tile are made of: |d_v| and, in the same shape, the minima. Where signs of
// d_v flip codes: the bits that change, and what weights are to be multiplied by for the
// correction.
template <class Codec>
struct TileScales {
  alignas(64) float d[kMostHeadDim];
  alignas(64) float m[Codec::minimum ? kMostHeadDim : 16];
  alignas(64) uint8_t flips[kFlipsCodes<Codec> ? kMostHeadDim : 64];
  alignas(64) int8_t factors[kFlipsCodes<Codec> ? kMostHeadDim : 64];

  BANTAM_INLINE TileScales(const std::byte* tile, const KvTileLayout& at, int head_dim) {
    for (int i = 0; i < head_dim; i += 16) {
      f_store(d + i, f_abs(f_halves(tile + at.scales + 2 * i)));
      if (Codec::minimum) f_store(m + i, f_halves(tile + at.minima + 2 * i));
    }
    if constexpr (kFlipsCodes<Codec>) {
      for (int i = 0; i < head_dim; i += 32) {
        sign_bytes(tile + at.scales + 2 * i, flips + i);
        store_factors<kZeroPoint<Codec>>(flips + i, factors + i);
      }
    }
  }
};

template <bool Full>
BANTAM_INLINE Floats visible_product(const float* p, const float* d, int n_visible) {
  const Floats w = f_mul(f_load(p), f_load(d));
  if constexpr (Full) return w;
  return f_select(m_first(n_visible), w, f_zero());
}

// Sum of p * m over the visible positions of one block, before its tree.
template <bool Full>
BANTAM_INLINE Floats minimum_lanes(const float* p, const float* m, int n_visible) {
  const Floats one = f_fma(f_load(p), f_load(m), f_zero());
  if constexpr (Full) return f_fma(f_load(p + 16), f_load(m + 16), one);
  const Floats low = f_select(m_first(n_visible), one, f_zero());
  const Floats both = f_fma(f_load(p + 16), f_load(m + 16), low);
  return f_select(m_first(n_visible - 16), both, low);
}

// N pairs (4 or 8). Full: all rows see all 32 positions.
template <class Codec, int N, int Blocks, bool Full>
BANTAM_INLINE void weigh_pairs(const WeighArgs& args, const TileScales<Codec>& scales,
                               const Pairs<Blocks>& pairs, RowWeights<Codec>& out) {
  Floats w[N][2], lanes[N];
  Ints largest[N];
  for (int k = 0; k < N; ++k) {
    const int r = pairs.row(k), b = pairs.block(k);
    const float *p = args.p + r * args.p_stride, *d = scales.d + 32 * b;
    const int visible = Full ? 32 : args.n_visible[r];
    for (int h = 0; h < 2; ++h) {
      w[k][h] = visible_product<Full>(p + 16 * h, d + 16 * h, visible - 16 * h);
    }
    largest[k] = i_max_unsigned(i_bits(w[k][0]), i_bits(w[k][1]));
    if constexpr (Codec::minimum) {
      lanes[k] = minimum_lanes<Full>(p, scales.m + 32 * b, visible);
    }
  }
  // Weights are not negative: as integers they are in order, and a NaN is above them all.
  const Floats x = f_partners(f_from_bits(i_largests<N>(largest)));
  const Mask finite = m_less(x, f_set(float_of(0x7f800000u)));
  const Mask tiny = m_less(x, f_set(kTinyMagnitude));
  // 255 / x and, in the partners, x / 255: one division for both.
  const Mask partner = m_partners();
  const Floats top = f_set(255.0f), zero = f_zero();
  const Floats quotient = f_div(f_select(partner, x, top), f_select(partner, top, x));
  const Floats counted = f_select(tiny, f_select(partner, zero, quotient), quotient);
  const Floats factors =
      f_select(finite, counted, f_select(partner, f_set(float_of(0x7fc00000u)), zero));
  alignas(64) float factor[16];
  f_store(factor, factors);
  in_memory(factor);
  f_store_partners<N>(out.c + pairs.first, factors);
  if constexpr (Codec::minimum) {
    f_store_some<N>(out.minimum + pairs.first, f_some_trees<N>(lanes));
  }
  Bytes u[N / 2];
  for (int k = 0; k < N; k += 2) {
    const Floats f0 = f_set(factor[some_lane<N>(k)]), f1 = f_set(factor[some_lane<N>(k + 1)]);
    u[k / 2] = weights_of(i_round(f_mul(w[k][0], f0)), i_round(f_mul(w[k][1], f0)),
                          i_round(f_mul(w[k + 1][0], f1)), i_round(f_mul(w[k + 1][1], f1)));
    uint8_t* at = out.u + (pairs.first + k) * 32;
    if constexpr (RowWeights<Codec>::splits) {
      split_weights(at, at + RowWeights<Codec>::kBytes, u[k / 2]);
    } else {
      b_store(at, u[k / 2]);
    }
  }
  if constexpr (kFlipsCodes<Codec>) {
    int blocks[N];
    for (int k = 0; k < N; ++k) blocks[k] = pairs.block(k);
    weight_corrections<N>(u, scales.factors, blocks, out.correction + pairs.first);
  }
}

template <class Codec, int Blocks, bool Full>
BANTAM_INLINE void weigh_all_pairs(const WeighArgs& args, const TileScales<Codec>& scales,
                                   RowWeights<Codec>& out) {
  for (Pairs<Blocks> pairs(args); pairs.left > 0; pairs.next()) {
    if (pairs.left <= 4) return weigh_pairs<Codec, 4, Blocks, Full>(args, scales, pairs, out);
    weigh_pairs<Codec, 8, Blocks, Full>(args, scales, pairs, out);
  }
}

template <class Codec, bool Full>
BANTAM_INLINE void weigh_tile_pairs(const WeighArgs& args, const TileScales<Codec>& scales,
                                    RowWeights<Codec>& out) {
  if constexpr (Full && (Codec::minimum ? kKnownPairsOfMinima : kKnownPairs)) {
    if (args.head_dim == 128) return weigh_all_pairs<Codec, 4, Full>(args, scales, out);
    if (args.head_dim == 64) return weigh_all_pairs<Codec, 2, Full>(args, scales, out);
  }
  weigh_all_pairs<Codec, 0, Full>(args, scales, out);
}

// ---- quantized V: values

// Block b of the tile, values unpacked once with the signs of their scales.
template <class Codec>
struct ValueBlock {
  Bytes values[8][2];
  Ints correction[2];

  BANTAM_INLINE ValueBlock(const WeighArgs& args, const KvTileLayout& at,
                           const TileScales<Codec>& scales, int b) {
    const int head_dim = args.head_dim;
    BANTAM_EACH_QUAD(i) {
      for (int h = 0; h < 2; ++h) {
        ask_for_value<Codec>(*args.ahead, head_dim, i, b, h);
        values[i][h] = value_codes<Codec>(args.tile, at, head_dim, i, b, h);
        if constexpr (kFlipsCodes<Codec>) {
          values[i][h] = b_flip(values[i][h], quad(scales.flips + 32 * b + 4 * i));
        }
      }
    }
    ask_for_rest<Codec>(*args.ahead, at, b);
    if constexpr (!kFlipsCodes<Codec>) {
      alignas(32) uint8_t sign[32];
      const bool negative = sign_bytes(args.tile + at.scales + b * 64, sign);
      // Only these formats have negative scales, but every one would be right.
      for (int i = 0; (Codec::negative_scale || negative) && i < 8; ++i) {
        const Quad flip = quad(sign + 4 * i);
        for (int h = 0; h < 2; ++h)
          values[i][h] = b_flip_below<kZeroPoint<Codec>>(values[i][h], flip);
      }
    }
    if constexpr (kValueCorrection) {
      for (int h = 0; h < 2; ++h) correction[h] = value_correction(&values[0][h], 2);
    }
  }
};

// The largest magnitude of a value as it is multiplied.
template <class Codec>
constexpr int kLargestValue = kIsWide<Codec>                         ? 128
                              : kFlipsCodes<Codec> || Codec::minimum ? (1 << Codec::bits) - 1
                                                                     : 1 << (Codec::bits - 1);

}  // namespace
}  // namespace bantam

#if defined(BANTAM_SIXTEEN_REGISTERS)
#include "cpu/attend_weigh_sixteen.inl"
#endif

namespace bantam {
namespace {

// The sums of N neighbouring rows.
template <class Codec, int N>
BANTAM_INLINE void add_quants(const ValueBlock<Codec>& block, const RowWeights<Codec>& weights,
                              int pair, int n_blocks, Floats (*out)[2]) {
  constexpr int most = kLargestValue<Codec>;
  ValueAcc<most> sums[N][2][kSumChains] = {};
  BANTAM_EACH_QUAD(i) {
    for (int n = 0; n < N; ++n) {
      const auto x = weights.template quad_at<most>(weights.u + (pair + n * n_blocks) * 32 + 4 * i);
      for (int h = 0; h < 2; ++h) {
        value_add<most>(sums[n][h][i % kSumChains], i, block.values[i][h], x);
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    const Floats c = f_set(weights.c[pair + n * n_blocks]);
    for (int h = 0; h < 2; ++h) {
      Ints sum = value_sum<most>(sums[n][h][0]);
      for (int k = 1; k < kSumChains; ++k) sum = i_add(sum, value_sum<most>(sums[n][h][k]));
      if constexpr (kFlipsCodes<Codec>) {
        sum = i_add(sum, i_set(weights.correction[pair + n * n_blocks]));
      }
      if constexpr (kValueCorrection) sum = i_add(sum, block.correction[h]);
      out[n][h] = f_fma(f_from_ints(sum), c, out[n][h]);
    }
  }
}

// Block b of N rows from r on.
template <class Codec, int N>
BANTAM_INLINE void weigh_block_rows(const WeighArgs& args, const ValueBlock<Codec>& block,
                                    const RowWeights<Codec>& weights, int r, int b) {
  const int n_blocks = args.head_dim / 32, pair = r * n_blocks + b;
  float* acc = args.acc + r * args.acc_stride + 32 * b;
  Floats out[N][2];
  for (int n = 0; n < N; ++n) {
    for (int h = 0; h < 2; ++h) {
      out[n][h] = args.first ? f_zero() : f_load(acc + n * args.acc_stride + 16 * h);
    }
  }
  add_quants<Codec, N>(block, weights, pair, n_blocks, out);
  for (int n = 0; n < N; ++n) {
    for (int h = 0; h < 2; ++h) {
      if constexpr (Codec::minimum) {
        out[n][h] = f_add(out[n][h], f_set(weights.minimum[pair + n * n_blocks]));
      }
      f_store(acc + n * args.acc_stride + 16 * h, out[n][h]);
    }
  }
}

template <class Codec>
BANTAM_INLINE void weigh_rows_together(const WeighArgs& args) {
  const int hd = args.head_dim;
  const KvTileLayout at = layout_of<Codec>(hd);
  const TileScales<Codec> scales(args.tile, at, hd);
  RowWeights<Codec> weights;
  bool full = true;
  for (int r = 0; r < args.n_rows; ++r) full = full && args.n_visible[r] == 32;
  if (full) {
    weigh_tile_pairs<Codec, true>(args, scales, weights);
  } else {
    weigh_tile_pairs<Codec, false>(args, scales, weights);
  }
#if defined(BANTAM_SIXTEEN_REGISTERS)
  if constexpr (kRowsInPlace<Codec> != 0) {
    if (weigh_in_place<Codec>(args, at, weights)) return;
  }
#endif
  for (int b = 0; b < hd / 32; ++b) {
    const ValueBlock<Codec> block(args, at, scales, b);
    int r = 0;
    for (; full && r + kWeighRows <= args.n_rows; r += kWeighRows) {
      weigh_block_rows<Codec, kWeighRows>(args, block, weights, r, b);
    }
    for (; r < args.n_rows; ++r) {
      if (args.n_visible[r] > 0) weigh_block_rows<Codec, 1>(args, block, weights, r, b);
    }
  }
}

template <class Codec>
void weigh_quant_simd(const WeighArgs& all) {
  if constexpr (kIsTable<Codec> ? kFlipsTables : Codec::bits != 8 && Codec::bias != 0) {
    if (all.n_rows <= kFewRows) return weigh_rows_together<FewRows<Codec>>(all);
  }
  WeighArgs args = all;
  for (int row = 0; row < all.n_rows; row += kRowsTogether) {
    args.n_rows = all.n_rows - row < kRowsTogether ? all.n_rows - row : kRowsTogether;
    weigh_rows_together<Codec>(args);
    args.p += kRowsTogether * args.p_stride;
    args.n_visible += kRowsTogether;
    args.acc += kRowsTogether * args.acc_stride;
  }
}

// ---- float V

// Positions that some rows take together.
struct Stretch {
  int begin, end;
  bool ask;  // for the memory ahead
};

// N vectors of channels from c on for R rows from r on. Not inlined: among its neighbours the
// compiler runs out of registers for the sums.
template <class Float, int R, int N>
__attribute__((noinline)) void weigh_floats(const WeighArgs& args, const std::byte* tile, int r,
                                            int c, const Stretch& at_once) {
  const int hd = args.head_dim;
  float* acc = args.acc + r * args.acc_stride + c;
  const float* p = args.p + r * args.p_stride;
  Floats sum[R][N];
  // A later stretch of the first tile goes on with the sums of the one before it.
  const bool nothing = args.first && at_once.begin == 0;
  for (int n = 0; n < R; ++n) {
    for (int i = 0; i < N; ++i) {
      sum[n][i] = nothing ? f_zero() : f_load(acc + n * args.acc_stride + 16 * i);
    }
  }
  for (int pos = at_once.begin; pos < at_once.end; ++pos) {
    const int64_t at = (int64_t{pos} * hd + c) * Float::bytes;
    Floats weight[R];
    for (int n = 0; n < R; ++n) weight[n] = f_set(p[n * args.p_stride + pos]);
    for (int i = 0; i < N; ++i) {
      if (at_once.ask && 16 * i * Float::bytes % 64 == 0) {
        ask_for(*args.ahead, at + 16 * i * Float::bytes);
      }
      const Floats value = load_floats<Float>(tile + at + 16 * i * Float::bytes);
      for (int n = 0; n < R; ++n) sum[n][i] = f_fma(weight[n], value, sum[n][i]);
    }
  }
  for (int n = 0; n < R; ++n) {
    for (int i = 0; i < N; ++i) f_store(acc + n * args.acc_stride + 16 * i, sum[n][i]);
  }
}

// From channel c on, N vectors at a time and then fewer.
template <class Float, int R, int N>
BANTAM_INLINE void weigh_channels(const WeighArgs& args, const std::byte* tile, int r, int c,
                                  const Stretch& at_once) {
  for (; c + 16 * N <= args.head_dim; c += 16 * N) {
    weigh_floats<Float, R, N>(args, tile, r, c, at_once);
  }
  if constexpr (N > 2) {
    if (c < args.head_dim) weigh_channels<Float, R, N / 2>(args, tile, r, c, at_once);
  }
}

template <class Float, int R>
BANTAM_INLINE void weigh_float_rows(const WeighArgs& args, const std::byte* tile, int r,
                                    const Stretch& at_once) {
  constexpr int most = kFloatChannels / R;
  constexpr int N = most >= 16 ? 16 : most >= 8 ? 8 : most >= 4 ? 4 : 2;
  weigh_channels<Float, R, N>(args, tile, r, 0, at_once);
}

// R rows at a time from r on, while there are so many, and then fewer: first the positions that all
// of them see, then the others row by row.
template <class Float, int R>
BANTAM_INLINE void weigh_all_rows(const WeighArgs& args, const std::byte* tile, int r, bool ask) {
  for (; r + R <= args.n_rows; r += R) {
    const int32_t* visible = args.n_visible + r;
    int common = visible[0];
    for (int n = 1; n < R; ++n) common = visible[n] < common ? visible[n] : common;
    weigh_float_rows<Float, R>(args, tile, r, {0, common, ask && r == 0});
    for (int n = 0; R > 1 && n < R; ++n) {
      if (visible[n] == common) continue;
      weigh_float_rows<Float, 1>(args, tile, r + n, {common, visible[n], false});
    }
  }
  if constexpr (R > 1) {
    if (r < args.n_rows) weigh_all_rows<Float, (R > 4 ? 4 : R / 2)>(args, tile, r, ask);
  }
}

template <class Float>
void weigh_float_simd(const WeighArgs& args) {
  if (args.n_rows <= kFloatRowsInPlace) {
    return weigh_all_rows<Float, kFloatRowsInPlace>(args, args.tile, 0, true);
  }
  if constexpr (Float::bytes == 4) {
    weigh_all_rows<Float, kWeighFloatRows>(args, args.tile, 0, true);
  } else {
    const FloatTile<Float> tile(args.tile, *args.ahead, args.head_dim);
    weigh_all_rows<CodecOf<KvType::f32>, kWeighFloatRows>(args, tile.data(), 0, false);
  }
}

}  // namespace
}  // namespace bantam
