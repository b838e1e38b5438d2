// Scores of quantized keys where sixteen registers hold the sums of one or two rows, or some of a
// block's codes, but not both: with up to two rows codes are multiplied where they are taken out,
// with more they wait in memory. attend_scores.inl, which includes this, has the same for 32
// registers; its loop is another text only because compilers make other code of one with a function
// for its end, and that code has its figures.
//
// Zen 3, cycles for the keys of a tile, head size 128, one and two rows, through memory -> in
// place: q8_0 337, 557 -> 221, 412; q5_0 550, 720 -> 380, 489; q4_0 284, 437 -> 176, 315.
// AVX-VNNI has the same registers and was not measured.
#pragma once

#include "cpu/attend_codes.inl"

namespace bantam {
namespace {

// What the ends of block b of a tile need.
template <class Codec>
struct KeyScales {
  Floats d[2], m[2];

  BANTAM_INLINE KeyScales(const ScoreArgs& args, const KvTileLayout& at, int b) {
    for (int h = 0; h < 2; ++h) {
      d[h] = f_halves(args.tile + at.scales + b * 64 + h * 32);
      if (Codec::minimum) m[h] = f_halves(args.tile + at.minima + b * 64 + h * 32);
    }
  }
};

// Block b of row r: s accumulates in args.s.
template <class Codec>
BANTAM_INLINE void end_scores(const ScoreArgs& args, const KeyScales<Codec>& scales,
                              const QuerySums<Codec>& sums, int b, int r,
                              const KeyDot<Codec>* dots) {
  const int blocks = args.head_dim / 32;
  const bool first = b == 0, last = b == blocks - 1;
  float* out = args.s + r * args.s_stride;
  for (int h = 0; h < 2; ++h) {
    Ints dot = dots[h].sum();
    if constexpr (KeyDot<Codec>::bias != 0 && !kSumsStartAnywhere) {
      dot = i_add(dot, i_set(sums.start[r * blocks + b]));
    }
    Floats s = first ? f_zero() : f_load(out + 16 * h);
    s = f_fma(f_from_ints(dot), scales.d[h], s);
    if constexpr (Codec::minimum) s = f_fma(f_set(sums.sum[r * blocks + b]), scales.m[h], s);
    if (last) s = f_mul(s, f_set(args.scale[r]));
    f_store(out + 16 * h, s);
  }
}

// Block b of the tile for all rows.
template <class Codec>
BANTAM_INLINE void score_block(const ScoreArgs& args, const KvTileLayout& at,
                               const QuerySums<Codec>& sums, int b) {
  const int hd = args.head_dim;
  Bytes keys[8][2];
  BANTAM_EACH_QUAD(i) {
    for (int h = 0; h < 2; ++h) {
      ask_for_key<Codec>(*args.ahead, b, i, h);
      keys[i][h] = key_codes<Codec>(args.tile, at, 8 * b + i, h);
    }
  }
  ask_for_rest<Codec>(*args.ahead, at, b);
  const KeyScales<Codec> scales(args, at, b);
  for (int r = 0; r < args.n_rows; ++r) {
    const int8_t* q = args.q + int64_t{r} * hd + 32 * b;
    KeyDot<Codec> dots[2];
    if constexpr (KeyDot<Codec>::bias != 0 && kSumsStartAnywhere) {
      for (int h = 0; h < 2; ++h) dots[h].acc = sum_start(sums.start[r * (hd / 32) + b]);
    }
    BANTAM_EACH_QUAD(i) {
      const Quad x = quad_now(q + 4 * i);
      for (int h = 0; h < 2; ++h) dots[h].add(i, keys[i][h], x);
    }
    end_scores<Codec>(args, scales, sums, b, r, dots);
  }
}

// The same for R rows whose sums stay in registers: codes are used where they are taken out.
template <class Codec, int R>
BANTAM_INLINE void score_block_in_place(const ScoreArgs& args, const KvTileLayout& at,
                                        const QuerySums<Codec>& sums, int b) {
  const int hd = args.head_dim;
  KeyDot<Codec> dots[R][2];
  for (int r = 0; r < R; ++r) {
    if constexpr (KeyDot<Codec>::bias != 0 && kSumsStartAnywhere) {
      for (int h = 0; h < 2; ++h) dots[r][h].acc = sum_start(sums.start[r * (hd / 32) + b]);
    }
  }
  BANTAM_EACH_QUAD(i) {
    for (int h = 0; h < 2; ++h) {
      ask_for_key<Codec>(*args.ahead, b, i, h);
      const Bytes key = key_codes<Codec>(args.tile, at, 8 * b + i, h);
      for (int r = 0; r < R; ++r) {
        dots[r][h].add(i, key, quad_now(args.q + int64_t{r} * hd + 32 * b + 4 * i));
      }
    }
  }
  ask_for_rest<Codec>(*args.ahead, at, b);
  const KeyScales<Codec> scales(args, at, b);
  for (int r = 0; r < R; ++r) end_scores<Codec>(args, scales, sums, b, r, dots[r]);
}

template <class Codec, int R>
BANTAM_INLINE void scores_in_place(const ScoreArgs& args, const KvTileLayout& at) {
  const int blocks = args.head_dim / 32;
  const QuerySums<Codec> sums(args.sums16, R * blocks);
  for (int b = 0; b < blocks; ++b) score_block_in_place<Codec, R>(args, at, sums, b);
}

}  // namespace
}  // namespace bantam
