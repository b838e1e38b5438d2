// Dot products of unpacked weights by rule 2 on AVX-512: one register is the 16 lanes. A chunk of
// 16 rows is turned into floats once and used for up to kTokens activation rows; lanes are carried
// from chunk to chunk, so that chunking changes no bit.
#pragma once

#include "cpu/weights_avx512_formats.inl"
#include "cpu/weights_avx512_products.inl"

namespace bantam {
namespace {
namespace w512 {

constexpr int kTokens = 64;
constexpr int kChunk = 256;  // columns; a multiple of every block size

struct alignas(64) FloatChunk {
  float rows[kGroupRows][kChunk];
};
struct alignas(64) LaneSums {
  float lane[kTokens][kGroupRows][16];
};

static inline __m512i four_quads(const std::byte* codes, int r) {
  int32_t dword[4];
  for (int i = 0; i < 4; ++i) __builtin_memcpy(&dword[i], codes + i * 64 + r * 4, 4);
  return _mm512_cvtepu8_epi32(_mm_setr_epi32(dword[0], dword[1], dword[2], dword[3]));
}

// The integer values of 16 columns of row r as floats; `s` counts runs of 16 columns.
template <class F>
static inline __m512 code_values(const std::byte* block, const std::byte* codes, int s, int r) {
  __m512i code = four_quads(codes + s * 256, r);
  if constexpr (F::biased) {
    code = _mm512_sub_epi32(code, _mm512_set1_epi32(1 << F::bias_shift));
  }
  if constexpr (F::sub_scales) {
    const int scale = static_cast<int8_t>(block[3072 + s * 16 + r]);
    code = _mm512_mullo_epi32(code, _mm512_set1_epi32(scale));
  }
  return _mm512_cvtepi32_ps(code);
}

template <class F>
void unpack_block(const std::byte* block, int column, FloatChunk& out) {
  alignas(64) std::byte codes[F::values / 4 * 64];
  for (int first = 0; first < F::values / 4; first += 4) {
    for (int i = 0; i < 4; ++i) {
      _mm512_store_si512(codes + (first + i) * 64, F::quad(block, first + i));
    }
  }
  alignas(64) float d[16], m[16] = {};
  _mm512_store_ps(d, F::scale(block));
  if constexpr (F::minimum) _mm512_store_ps(m, F::minima(block));
  for (int r = 0; r < kGroupRows; ++r) {
    const __m512 scale = _mm512_set1_ps(d[r]);
    for (int s = 0; s < F::values / 16; ++s) {
      __m512 value = _mm512_mul_ps(code_values<F>(block, codes, s, r), scale);
      if constexpr (F::minimum) value = _mm512_add_ps(value, _mm512_set1_ps(m[r]));
      _mm512_store_ps(&out.rows[r][column + s * 16], value);
    }
  }
}

template <class F>
void unpack_chunk(const PackedMatrix& w, int group, int column, int n, FloatChunk& out) {
  const std::byte* data = w.data + group * packed_group_bytes(w.type, w.cols);
  for (int c = 0; c < n; c += F::values) {
    unpack_block<F>(data + (column + c) / F::values * int64_t{F::bytes}, c, out);
  }
}

// Plain formats; columns beyond n are zero.
static inline void unpack_chunk_f32(const PackedMatrix& w, int group, int column, int n,
                                    FloatChunk& out) {
  for (int r = 0; r < kGroupRows; ++r) {
    const std::byte* row = w.data + ((int64_t{group} * kGroupRows + r) * w.cols + column) * 4;
    for (int c = 0; c < n; c += 16) {
      _mm512_store_ps(&out.rows[r][c], _mm512_maskz_loadu_ps(rows_mask(n, c), row + c * 4));
    }
  }
}

static inline void unpack_chunk_f16(const PackedMatrix& w, int group, int column, int n,
                                    FloatChunk& out) {
  for (int r = 0; r < kGroupRows; ++r) {
    const std::byte* row = w.data + ((int64_t{group} * kGroupRows + r) * w.cols + column) * 2;
    for (int c = 0; c < n; c += 16) {
      const __m256i halves = _mm256_maskz_loadu_epi16(rows_mask(n, c), row + c * 2);
      _mm512_store_ps(&out.rows[r][c], _mm512_cvtph_ps(halves));
    }
  }
}

// lanes of R rows x T tokens += chunk . x
template <int R, int T>
void dot_chunk(const FloatChunk& w, int row, const float* x, int64_t x_stride, int n,
               LaneSums& sums, int token) {
  __m512 acc[R][T];
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) acc[r][t] = _mm512_load_ps(sums.lane[token + t][row + r]);
  }
  int c = 0;
  for (; c + 16 <= n; c += 16) {
    __m512 value[T];
    for (int t = 0; t < T; ++t) value[t] = _mm512_loadu_ps(x + t * x_stride + c);
    for (int r = 0; r < R; ++r) {
      const __m512 weight = _mm512_load_ps(&w.rows[row + r][c]);
      for (int t = 0; t < T; ++t) acc[r][t] = _mm512_fmadd_ps(weight, value[t], acc[r][t]);
    }
  }
  if (c < n) {
    // Lanes without an element keep even the sign of a zero.
    const __mmask16 mask = rows_mask(n, c);
    for (int t = 0; t < T; ++t) {
      const __m512 value = _mm512_maskz_loadu_ps(mask, x + t * x_stride + c);
      for (int r = 0; r < R; ++r) {
        const __m512 weight = _mm512_load_ps(&w.rows[row + r][c]);
        acc[r][t] = _mm512_mask3_fmadd_ps(weight, value, acc[r][t], mask);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) _mm512_store_ps(sums.lane[token + t][row + r], acc[r][t]);
  }
}

// The tree of rule 2 (lane j + lane j + 8, + 4, + 2, + 1) for 16 rows at once.
static inline __m512 fold_halves(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
static inline __m512 fold_quarters(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
static inline __m512 fold_pairs(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
static inline __m512 fold_last(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

static inline __m512 sum_16_rows(const float (&lane)[kGroupRows][16]) {
  __m512 half[8], quarter[4];
  for (int i = 0; i < 8; ++i) {
    half[i] = fold_halves(_mm512_load_ps(lane[2 * i]), _mm512_load_ps(lane[2 * i + 1]));
  }
  for (int i = 0; i < 4; ++i) quarter[i] = fold_quarters(half[2 * i], half[2 * i + 1]);
  const __m512 low = fold_pairs(quarter[0], quarter[1]);
  const __m512 high = fold_pairs(quarter[2], quarter[3]);
  // Now 128-bit part i holds rows i, 4 + i, 8 + i, 12 + i.
  const __m512 mixed = fold_last(low, high);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_ps(order, mixed);
}

static inline void dot_tokens(const FloatChunk& w, const float* x, int64_t x_stride, int n,
                              int tokens, LaneSums& sums) {
  int t = 0;
  for (; t + 4 <= tokens; t += 4) {
    for (int r = 0; r < kGroupRows; r += 4) {
      dot_chunk<4, 4>(w, r, x + t * x_stride, x_stride, n, sums, t);
    }
  }
  for (; t < tokens; ++t) {
    for (int r = 0; r < kGroupRows; r += 8) {
      dot_chunk<8, 1>(w, r, x + t * x_stride, x_stride, n, sums, t);
    }
  }
}

using UnpackChunk = void (*)(const PackedMatrix&, int, int, int, FloatChunk&);

template <UnpackChunk Unpack>
void matmul_f32(const MatmulArgs& args) {
  FloatChunk chunk;
  LaneSums sums;
  const int cols = args.w->cols;
  for (int t = 0; t < args.n_rows; t += kTokens) {
    const int tokens = args.n_rows - t < kTokens ? args.n_rows - t : kTokens;
    const float* x = args.x + int64_t{t} * cols;
    for (int group = args.group_begin; group < args.group_end; ++group) {
      __builtin_memset(&sums, 0, static_cast<size_t>(tokens) * sizeof(sums.lane[0]));
      for (int c = 0; c < cols; c += kChunk) {
        const int n = cols - c < kChunk ? cols - c : kChunk;
        Unpack(*args.w, group, c, n, chunk);
        dot_tokens(chunk, x + c, cols, n, tokens, sums);
      }
      for (int i = 0; i < tokens; ++i) put_rows(args, group, t + i, sum_16_rows(sums.lane[i]));
    }
  }
}

}  // namespace w512
}  // namespace
}  // namespace bantam
