// Rule 4 on AVX-512 VNNI: 16 weight rows in the lanes of one register, R groups x T activation rows
// in flight. A value never depends on R, T or the group range: sums of a block are exact, and every
// lane does the same float operations in the same order.
#pragma once

#include "cpu/weights_avx512_formats.inl"

namespace bantam {
namespace {
namespace w512 {

// Bytes ahead of the weight stream; far enough to hide memory, near enough to stay in L2.
constexpr int64_t kPrefetchBytes = 2304;

static inline __m512i four_values(const int8_t* q) {
  int32_t four;
  __builtin_memcpy(&four, q, sizeof(four));
  return _mm512_set1_epi32(four);
}

static inline __mmask16 rows_mask(int rows, int first) {
  const int left = rows - first;
  return static_cast<__mmask16>(left >= 16 ? 0xffff : left <= 0 ? 0 : (1 << left) - 1);
}

static inline void put_rows(const MatmulArgs& args, int group, int t, __m512 y) {
  const __mmask16 mask = rows_mask(args.w->rows, group * kGroupRows);
  float* out = args.y + t * args.ldy + group * kGroupRows;
  if (args.add) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), y);
  _mm512_mask_storeu_ps(out, mask, y);
}

// One activation block of a tile: where its weights and its activations start.
struct TileBlock {
  const std::byte* weights;  // the weight block of group 0 that holds it
  int64_t group_bytes;
  int quad;         // its first quad in the weight block
  const int8_t* q;  // of row 0
  int64_t q_stride;
};

// acc[r][t] += codes . q over `Quads` quads from `first` on.
template <class F, int Quads, int R, int T>
static inline void dot_quads(const TileBlock& in, int first, __m512i (&acc)[R][T]) {
  for (int i = 0; i < Quads; ++i) {
    __m512i codes[R];
    for (int r = 0; r < R; ++r) {
      codes[r] = F::quad(in.weights + r * in.group_bytes, in.quad + first + i);
    }
    for (int t = 0; t < T; ++t) {
      const __m512i q = four_values(in.q + t * in.q_stride + (first + i) * 4);
      for (int r = 0; r < R; ++r) acc[r][t] = _mm512_dpbusd_epi32(acc[r][t], codes[r], q);
    }
  }
}

template <class F, int Block, int R, int T>
static inline void dot_block(const TileBlock& in, const ActRows& a, int t0, int b,
                             __m512i (&s)[R][T]) {
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) s[r][t] = _mm512_setzero_si512();
  }
  for (int first = 0; first < Block / 4; first += 8) dot_quads<F, 8>(in, first, s);
  if constexpr (F::biased) {
    for (int t = 0; t < T; ++t) {
      const int64_t index = int64_t{t0 + t} * (a.n_cols / Block) + b;
      const __m512i total = _mm512_slli_epi32(_mm512_set1_epi32(a.sums[index]), F::bias_shift);
      for (int r = 0; r < R; ++r) s[r][t] = _mm512_sub_epi32(s[r][t], total);
    }
  }
}

// Formats with an integer scale for each 16 columns: two dot products to a block of 32.
template <class F, int R, int T>
static inline void dot_sub_blocks(const TileBlock& in, const ActRows& a, int t0, int b,
                                  __m512i (&s)[R][T]) {
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) s[r][t] = _mm512_setzero_si512();
  }
  for (int half = 0; half < 2; ++half) {
    __m512i acc[R][T];
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < T; ++t) acc[r][t] = _mm512_setzero_si512();
    }
    dot_quads<F, 4>(in, half * 4, acc);
    __m512i scale[R];
    for (int r = 0; r < R; ++r) {
      scale[r] = F::sub_scale(in.weights + r * in.group_bytes, in.quad / 4 + half);
    }
    for (int t = 0; t < T; ++t) {
      const int64_t index = int64_t{t0 + t} * (a.n_cols / 16) + b * 2 + half;
      const __m512i total = _mm512_slli_epi32(_mm512_set1_epi32(a.sums16[index]), F::bias_shift);
      for (int r = 0; r < R; ++r) {
        const __m512i dot = _mm512_sub_epi32(acc[r][t], total);
        s[r][t] = _mm512_add_epi32(s[r][t], _mm512_mullo_epi32(scale[r], dot));
      }
    }
  }
}

template <class F, int Block, int R, int T>
void product_tile(const MatmulArgs& args, int group, int t0) {
  const ActRows& a = args.a;
  const int n_blocks = a.n_cols / Block;
  TileBlock in;
  in.group_bytes = packed_group_bytes(args.w->type, args.w->cols);
  in.q_stride = a.n_cols;
  __m512 y[R][T];
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) y[r][t] = _mm512_setzero_ps();
  }
  for (int b = 0; b < n_blocks; ++b) {
    const int column = b * Block;
    in.weights = args.w->data + group * in.group_bytes + column / F::values * int64_t{F::bytes};
    in.quad = column % F::values / 4;
    in.q = a.q + int64_t{t0} * a.n_cols + column;
    if constexpr (T <= 4) {
      const int64_t from = F::bytes / (F::values / Block) * int64_t{in.quad * 4 / Block};
      for (int r = 0; r < R; ++r) {
        for (int i = 0; i < F::bytes / (F::values / Block); i += 64) {
          _mm_prefetch(in.weights + r * in.group_bytes + from + i + kPrefetchBytes, _MM_HINT_T0);
        }
      }
    }
    __m512i s[R][T];
    if constexpr (F::sub_scales) {
      dot_sub_blocks<F>(in, a, t0, b, s);
    } else {
      dot_block<F, Block>(in, a, t0, b, s);
    }
    for (int r = 0; r < R; ++r) {
      const __m512 d = F::scale(in.weights + r * in.group_bytes);
      for (int t = 0; t < T; ++t) {
        const int64_t index = int64_t{t0 + t} * n_blocks + b;
        const __m512 d_a = _mm512_set1_ps(a.d[index]);
        y[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[r][t]), _mm512_mul_ps(d, d_a), y[r][t]);
        if constexpr (F::minimum) {
          const __m512 m = _mm512_mul_ps(F::minima(in.weights + r * in.group_bytes), d_a);
          const __m512 sum = _mm512_cvtepi32_ps(_mm512_set1_epi32(a.sums[index]));
          y[r][t] = _mm512_fmadd_ps(sum, m, y[r][t]);
        }
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) put_rows(args, group + r, t0 + t, y[r][t]);
  }
}

// All rows [t, end) against R groups.
template <class F, int Block, int R>
void product_rows(const MatmulArgs& args, int group, int t, int end) {
  constexpr int kWide = R == 1 ? 8 : R == 2 ? 8 : 4;
  for (; end - t >= kWide; t += kWide) product_tile<F, Block, R, kWide>(args, group, t);
  if constexpr (kWide > 4) {
    for (; end - t >= 4; t += 4) product_tile<F, Block, R, 4>(args, group, t);
  }
  if (end - t == 3) product_tile<F, Block, R, 3>(args, group, t);
  if (end - t == 2) product_tile<F, Block, R, 2>(args, group, t);
  if (end - t == 1) product_tile<F, Block, R, 1>(args, group, t);
}

template <class F, int Block>
void product_groups(const MatmulArgs& args) {
  // Activation rows of one pass over the groups: they stay in L2.
  const int64_t fit = int64_t{384} * 1024 / args.a.n_cols / 8 * 8;
  const int pass = fit < 8 ? 8 : fit > 1 << 20 ? 1 << 20 : static_cast<int>(fit);
  for (int t = 0; t < args.a.n_rows; t += pass) {
    const int end = args.a.n_rows - t < pass ? args.a.n_rows : t + pass;
    int g = args.group_begin;
    for (; args.group_end - g >= 2; g += 2) product_rows<F, Block, 2>(args, g, t, end);
    if (g < args.group_end) product_rows<F, Block, 1>(args, g, t, end);
  }
}

template <class F>
void matmul(const MatmulArgs& args) {
  if constexpr (F::values == 128) {
    if (args.a.block == 128) return product_groups<F, 128>(args);
  }
  product_groups<F, 32>(args);
}

}  // namespace w512
}  // namespace
}  // namespace bantam
