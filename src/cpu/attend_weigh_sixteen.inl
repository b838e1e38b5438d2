// Weighted sums of q8_0 and q4_1 for one or two rows, where sixteen registers hold their sums but
// not a block's codes as well: codes are multiplied where they are taken out. With more rows a
// block is taken out once for all (attend_weigh.inl, which includes this); so are the other types,
// whose signs and fifth bits want registers of their own.
//
// Zen 3, cycles for the values of a tile, head size 128, one and two rows, through memory -> in
// place: q8_0 500, 795 -> 426, 720; q4_1 400, 606 -> 398, 566; but q5_1 610, 810 -> 851, 1110; q4_0
// (flipped codes through memory) 387, 591 -> 528, 744; iq4_nl 616, 916 -> 600, 914.
// AVX-VNNI has the same registers and was not measured.
#pragma once

#include "cpu/attend_codes.inl"

namespace bantam {
namespace {

template <class Codec>
constexpr bool kWeighedInPlace = !Codec::negative_scale && Codec::bits != 5;

// Block b.
template <class Codec, int R>
BANTAM_INLINE void weigh_block_in_place(const WeighArgs& args, const KvTileLayout& at,
                                        const RowWeights<Codec>& weights, int b) {
  constexpr int most = kLargestValue<Codec>;
  const int hd = args.head_dim, n_blocks = hd / 32;
  ValueAcc<most> sums[R][2] = {};
  BANTAM_EACH_QUAD(i) {
    for (int h = 0; h < 2; ++h) {
      ask_for_value<Codec>(*args.ahead, hd, i, b, h);
      const Bytes values = value_codes<Codec>(args.tile, at, hd, i, b, h);
      for (int r = 0; r < R; ++r) {
        const Quad x = weight_quad(weights.u + (r * n_blocks + b) * 32 + 4 * i);
        value_add<most>(sums[r][h], i, values, x);
      }
    }
  }
  ask_for_rest<Codec>(*args.ahead, at, b);
  for (int r = 0; r < R; ++r) {
    const int pair = r * n_blocks + b;
    for (int h = 0; h < 2; ++h) {
      float* acc = args.acc + r * args.acc_stride + 32 * b + 16 * h;
      const Floats old = args.first ? f_zero() : f_load(acc);
      Floats out = f_fma(f_from_ints(value_sum<most>(sums[r][h])), f_set(weights.c[pair]), old);
      if constexpr (Codec::minimum) out = f_add(out, f_set(weights.minimum[pair]));
      f_store(acc, out);
    }
  }
}

// Whether it was done: not where scales are negative, which those of these types never should be. A
// row that sees nothing adds +0.
template <class Codec>
BANTAM_INLINE bool weigh_in_place(const WeighArgs& args, const KvTileLayout& at,
                                  const RowWeights<Codec>& weights) {
  const int rows = args.n_rows;
  if (rows > 2) return false;
  alignas(32) uint8_t sign[32];
  for (int b = 0; b < args.head_dim / 32; ++b) {
    if (sign_bytes(args.tile + at.scales + b * 64, sign)) return false;
  }
  for (int b = 0; b < args.head_dim / 32; ++b) {
    if (rows == 1) weigh_block_in_place<Codec, 1>(args, at, weights, b);
    if (rows == 2) weigh_block_in_place<Codec, 2>(args, at, weights, b);
  }
  return true;
}

}  // namespace
}  // namespace bantam
