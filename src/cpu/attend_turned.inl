// Scores of float K for many query rows, the bits of attend_scalar.inl: the tile is turned once, so
// that a lane is a position and the virtual lanes of rule 2 are registers. Their tree then needs no
// shuffles, and a key is loaded once for several rows. Included by attend_scores.inl where the
// vector header has f_turn.
#pragma once

#include "cpu/attend_codes.inl"

namespace bantam {
namespace {

// x[virtual lane][channels of it][position] of a tile of floats.
struct TurnedTile {
  alignas(64) float x[32 * kMostHeadDim];

  BANTAM_INLINE void turn(const float* tile, const AheadLines* ahead, int head_dim) {
    int64_t asked = 0;
    for (int c = 0; c < head_dim; c += 16) {
      for (int first = 0; first < 32; first += 16) {
        for (int i = 0; ahead != nullptr && i < 16; ++i, asked += 64) ask_for(*ahead, asked);
        Floats v[16];
        f_turn(tile + first * head_dim + c, head_dim, v);
        for (int k = 0; k < 16; ++k) {
          f_store(x + (k * (head_dim / 16) + c / 16) * 32 + first, v[k]);
        }
      }
    }
  }
};

// Virtual lane j of R rows and 32 positions. HeadDim: known, or 0.
template <int R, int HeadDim>
BANTAM_INLINE void turned_lane(const float* keys, const float* q, int head_dim, int j,
                               Floats (*sum)[2]) {
  for (int n = 0; n < R; ++n) sum[n][0] = sum[n][1] = f_zero();
  const int hd = HeadDim == 0 ? head_dim : HeadDim;
  keys += 2 * j * hd;
  for (int c = 0; c < hd; c += 16) {
    const Floats key[2] = {f_load(keys + 2 * c), f_load(keys + 2 * c + 16)};
    for (int n = 0; n < R; ++n) {
      const Floats x = f_set(q[n * hd + c + j]);
      for (int h = 0; h < 2; ++h) sum[n][h] = f_fma(x, key[h], sum[n][h]);
    }
  }
}

// Lanes j and j + 8.
template <int R, int HeadDim>
BANTAM_INLINE void turned_pair(const float* keys, const float* q, int head_dim, int j,
                               Floats (*sum)[2]) {
  Floats high[R][2];
  turned_lane<R, HeadDim>(keys, q, head_dim, j, sum);
  turned_lane<R, HeadDim>(keys, q, head_dim, j + 8, high);
  for (int n = 0; n < R; ++n) {
    for (int h = 0; h < 2; ++h) sum[n][h] = f_add(sum[n][h], high[n][h]);
  }
}

// R rows from r on against the tile.
template <int R, int HeadDim>
BANTAM_INLINE void score_turned_rows(const ScoreArgs& args, const float* keys, int r) {
  const int hd = args.head_dim;
  const float* q = args.qf + int64_t{r} * hd;
  Floats quarter[4][R][2];
  for (int j = 0; j < 4; ++j) {
    Floats low[R][2], high[R][2];
    turned_pair<R, HeadDim>(keys, q, hd, j, low);
    turned_pair<R, HeadDim>(keys, q, hd, j + 4, high);
    for (int n = 0; n < R; ++n) {
      for (int h = 0; h < 2; ++h) quarter[j][n][h] = f_add(low[n][h], high[n][h]);
    }
  }
  for (int n = 0; n < R; ++n) {
    float* s = args.s + (r + n) * args.s_stride;
    const Floats scale = f_set(args.scale[r + n]);
    for (int h = 0; h < 2; ++h) {
      const Floats even = f_add(quarter[0][n][h], quarter[2][n][h]);
      const Floats odd = f_add(quarter[1][n][h], quarter[3][n][h]);
      f_store(s + 16 * h, f_mul(f_add(even, odd), scale));
    }
  }
}

// R rows at a time from r on, while there are so many, and then fewer.
template <int R, int HeadDim>
BANTAM_INLINE void score_turned_from(const ScoreArgs& args, const float* keys, int r) {
  for (; r + R <= args.n_rows; r += R) score_turned_rows<R, HeadDim>(args, keys, r);
  if constexpr (R > 1) score_turned_from<R / 2, HeadDim>(args, keys, r);
}

template <int HeadDim>
void score_turned_tile(const ScoreArgs& args, const float* keys) {
  score_turned_from<kTurnedRows, HeadDim>(args, keys, 0);
}

template <class Float>
void score_turned(const ScoreArgs& args) {
  TurnedTile turned;
  if constexpr (Float::bytes == 4) {
    turned.turn(reinterpret_cast<const float*>(args.tile), args.ahead, args.head_dim);
  } else {
    const FloatTile<Float> tile(args.tile, *args.ahead, args.head_dim);
    turned.turn(tile.x, nullptr, args.head_dim);
  }
  if (args.head_dim == 64) return score_turned_tile<64>(args, turned.x);
  if (args.head_dim == 128) return score_turned_tile<128>(args, turned.x);
  score_turned_tile<0>(args, turned.x);
}

}  // namespace
}  // namespace bantam
