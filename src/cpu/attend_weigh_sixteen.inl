// Weighted sums of 8-bit values where sixteen registers hold the sums of two rows, but not a
// block's codes as well: codes are multiplied where they are read, half a block at a time. The
// other types are taken out once for all rows (attend_weigh.inl, which includes this): signs,
// nibbles and fifth bits cost more than their way through memory.
//
// Zen 4 by AVX2, cycles for the values of a tile of q8_0, head size 128, 1, 2, 4 and 64 rows, both
// halves at once (sums in memory, half bytes of weights taken apart each time) -> this: 487, 870,
// 1540, 20300 -> 423, 645, 1180, 17000. In place, too, q4_0 460, 595, 1170, through memory 400,
// 550, 900; q5_1 666, 920, 1880 and 625, 825, 1220. AVX-VNNI has the same registers and was not
// measured.
#pragma once

#include "cpu/attend_codes.inl"

namespace bantam {
namespace {

template <class Codec>
constexpr int kRowsInPlace = Codec::bits == 8 ? (kSplitsWeights ? kRowsTogether : 2) : 0;

// Half h of block b of R rows from r on; the first rows ask for the memory ahead. By pointers, for
// these loops have few registers of either kind.
template <class Codec, int R, bool Ask>
BANTAM_INLINE void weigh_half_in_place(const WeighArgs& args, const RowWeights<Codec>& weights,
                                       int b, int h, int r) {
  constexpr int most = kLargestValue<Codec>;
  const int hd = args.head_dim, n_blocks = hd / 32, pair = r * n_blocks + b;
  const std::byte* codes = args.tile + value_offset<Codec>(hd, 0, b, h);
  const uint8_t* u[R];
  for (int n = 0; n < R; ++n) u[n] = weights.u + (pair + n * n_blocks) * 32;
  ValueAcc<most> sums[R] = {};
  BANTAM_EACH_QUAD(i) {
    if constexpr (Ask) ask_for_code<Codec>(*args.ahead, b, 8 * h + i);
    const Bytes values = b_load(codes);
    if (i < 7) codes += value_offset<Codec>(hd, 1, 0, 0);
    in_register(codes);
    for (int n = 0; n < R; ++n) {
      value_add<most>(sums[n], i, values, weights.template quad_at<most>(u[n] + 4 * i));
    }
  }
  for (int n = 0; n < R; ++n) {
    float* acc = args.acc + (r + n) * args.acc_stride + 32 * b + 16 * h;
    const Floats old = args.first ? f_zero() : f_load(acc);
    const Floats c = f_set(weights.c[pair + n * n_blocks]);
    f_store(acc, f_fma(f_from_ints(value_sum<most>(sums[n])), c, old));
  }
}

template <class Codec, bool Ask>
BANTAM_INLINE void weigh_rows_in_place(const WeighArgs& args, const RowWeights<Codec>& weights,
                                       int b, int r) {
  for (int h = 0; h < 2; ++h) {
    if (r + 1 < args.n_rows) {
      weigh_half_in_place<Codec, 2, Ask>(args, weights, b, h, r);
    } else {
      weigh_half_in_place<Codec, 1, Ask>(args, weights, b, h, r);
    }
  }
}

// Whether it was done: not where scales are negative, which those of q8_0 never should be. A row
// that sees nothing adds +0.
template <class Codec>
BANTAM_INLINE bool weigh_in_place(const WeighArgs& args, const KvTileLayout& at,
                                  const RowWeights<Codec>& weights) {
  if (args.n_rows > kRowsInPlace<Codec>) return false;
  alignas(32) uint8_t sign[32];
  for (int b = 0; b < args.head_dim / 32; ++b) {
    if (sign_bytes(args.tile + at.scales + b * 64, sign)) return false;
  }
  for (int b = 0; b < args.head_dim / 32; ++b) {
    weigh_rows_in_place<Codec, true>(args, weights, b, 0);
    for (int r = 2; r < args.n_rows; r += 2) {
      weigh_rows_in_place<Codec, false>(args, weights, b, r);
    }
    ask_for_rest<Codec>(*args.ahead, at, b);
  }
  return true;
}

}  // namespace
}  // namespace bantam
