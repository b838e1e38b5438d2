// Weights and rows with AVX-512 VNNI. A vector lane is one of the 16 interleaved rows; the unsigned
// operand of VPDPBUSD is the weight (biased), the signed one four activations broadcast to all
// rows. Bits as scalar.
#pragma once

#include <immintrin.h>

#include "cpu/exp_avx512.inl"
#include "cpu/kernels.h"
#include "cpu/weights_scalar.inl"

namespace bantam {
namespace {

inline __m512 halves(const std::byte* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline __m512i broadcast4(const int8_t* q) {
  int32_t four;
  __builtin_memcpy(&four, q, 4);
  return _mm512_set1_epi32(four);
}

// ---- formats: `quad` is a group of 4 columns inside a packed block

struct VecQ1_0 {
  static constexpr int values = 128, block_bytes = 288, scales = 256;
  static constexpr bool minimum = false;
  static inline __m512i expand(const std::byte* block, int quad) {
    uint64_t bits;
    __builtin_memcpy(&bits, block + 8 * quad, 8);
    return _mm512_maskz_mov_epi8(_cvtu64_mask64(bits), _mm512_set1_epi8(1));
  }
  // 2 * (sum of the selected) - (sum of all)
  static inline __m512i finish(__m512i dot, int32_t sum) {
    return _mm512_sub_epi32(_mm512_add_epi32(dot, dot), _mm512_set1_epi32(sum));
  }
};

struct VecQ8_0 {
  static constexpr int values = 32, block_bytes = 544, scales = 512;
  static constexpr bool minimum = false;
  static inline __m512i expand(const std::byte* block, int quad) {
    return _mm512_loadu_si512(block + 64 * quad);
  }
  static inline __m512i finish(__m512i dot, int32_t sum) {
    return _mm512_sub_epi32(dot, _mm512_set1_epi32(128 * sum));
  }
};

inline __m512i nibbles(const std::byte* codes, int quad) {
  const __m512i pair = _mm512_loadu_si512(codes + quad / 2 * 64);
  const __m512i part = quad % 2 == 0 ? pair : _mm512_srli_epi16(pair, 4);
  return _mm512_and_si512(part, _mm512_set1_epi8(15));
}

struct VecQ4_0 {
  static constexpr int values = 32, block_bytes = 288, scales = 256;
  static constexpr bool minimum = false;
  static inline __m512i expand(const std::byte* block, int quad) { return nibbles(block, quad); }
  static inline __m512i finish(__m512i dot, int32_t sum) {
    return _mm512_sub_epi32(dot, _mm512_set1_epi32(8 * sum));
  }
};

struct VecQ4_1 {
  static constexpr int values = 32, block_bytes = 320, scales = 256;
  static constexpr bool minimum = true;
  static inline __m512i expand(const std::byte* block, int quad) { return nibbles(block, quad); }
  static inline __m512i finish(__m512i dot, int32_t) { return dot; }
};

inline void store_rows(const MatmulArgs& args, int group, int t, __m512 y) {
  const int row = group * kGroupRows;
  const int n = args.w->rows - row;
  const __mmask16 mask = n >= 16 ? __mmask16(0xffff) : static_cast<__mmask16>((1u << n) - 1);
  float* out = args.y + t * args.ldy + row;
  if (args.add) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), y);
  _mm512_mask_storeu_ps(out, mask, y);
}

// G groups of 16 rows times T activation rows, activation blocks of Block values.
template <class F, int Block, int G, int T>
inline void product_tile(const MatmulArgs& args, int group, int t0) {
  const int n = args.w->cols;
  const int64_t group_bytes = int64_t{n} / F::values * F::block_bytes;
  const std::byte* base = args.w->data + group * group_bytes;
  const ActRows& a = args.a;
  const int8_t* q = a.q + int64_t{t0} * n;
  const int64_t n_blocks = n / Block;
  __m512 y[G][T];
  for (int g = 0; g < G; ++g) {
    for (int t = 0; t < T; ++t) y[g][t] = _mm512_setzero_ps();
  }
  for (int c = 0; c < n; c += Block) {
    const int64_t offset = int64_t{c} / F::values * F::block_bytes;
    const int quad0 = c % F::values / 4;
    __m512i dot[G][T];
    for (int g = 0; g < G; ++g) {
      for (int t = 0; t < T; ++t) dot[g][t] = _mm512_setzero_si512();
    }
#pragma GCC unroll 8
    for (int i = 0; i < Block / 4; ++i) {
      __m512i w[G];
      for (int g = 0; g < G; ++g) w[g] = F::expand(base + g * group_bytes + offset, quad0 + i);
      for (int t = 0; t < T; ++t) {
        const __m512i x = broadcast4(q + int64_t{t} * n + c + 4 * i);
        for (int g = 0; g < G; ++g) dot[g][t] = _mm512_dpbusd_epi32(dot[g][t], w[g], x);
      }
    }
    for (int g = 0; g < G; ++g) {
      const std::byte* block = base + g * group_bytes + offset;
      const __m512 d_w = halves(block + F::scales);
      for (int t = 0; t < T; ++t) {
        const int64_t index = (t0 + t) * n_blocks + c / Block;
        const __m512 d_a = _mm512_set1_ps(a.d[index]);
        const __m512 s = _mm512_cvtepi32_ps(F::finish(dot[g][t], a.sums[index]));
        y[g][t] = _mm512_fmadd_ps(s, _mm512_mul_ps(d_w, d_a), y[g][t]);
        if constexpr (F::minimum) {
          const __m512 m = _mm512_mul_ps(halves(block + F::scales + 32), d_a);
          const __m512 sum = _mm512_set1_ps(static_cast<float>(a.sums[index]));
          y[g][t] = _mm512_fmadd_ps(sum, m, y[g][t]);
        }
      }
    }
  }
  for (int g = 0; g < G; ++g) {
    for (int t = 0; t < T; ++t) store_rows(args, group + g, t0 + t, y[g][t]);
  }
}

template <class F, int Block, int G>
inline void product_groups(const MatmulArgs& args, int group) {
  const int n_rows = args.a.n_rows;
  int t = 0;
  for (; t + 8 <= n_rows; t += 8) product_tile<F, Block, G, 8>(args, group, t);
  for (; t + 4 <= n_rows; t += 4) product_tile<F, Block, G, 4>(args, group, t);
  for (; t + 2 <= n_rows; t += 2) product_tile<F, Block, G, 2>(args, group, t);
  for (; t < n_rows; ++t) product_tile<F, Block, G, 1>(args, group, t);
}

template <class F, int Block>
void product_rows(const MatmulArgs& args) {
  int g = args.group_begin;
  if (args.a.n_rows == 1) {
    // Four groups: four independent chains of dot products, and their streams stay ahead of the
    // core.
    for (; g + 4 <= args.group_end; g += 4) product_tile<F, Block, 4, 1>(args, g, 0);
  }
  for (; g + 2 <= args.group_end; g += 2) product_groups<F, Block, 2>(args, g);
  for (; g < args.group_end; ++g) product_groups<F, Block, 1>(args, g);
}

void matmul_q1_0_avx512(const MatmulArgs& args) {
  if (args.a.block == 128) return product_rows<VecQ1_0, 128>(args);
  product_rows<VecQ1_0, 32>(args);
}

template <class F>
void matmul_avx512(const MatmulArgs& args) {
  product_rows<F, 32>(args);
}

// ---- Q6_K: int8 sub-scales for 16 columns, two of them in one activation block

inline __m512i q6_k_expand(const std::byte* block, int quad) {
  const __m512i low = nibbles(block, quad);
  const __m512i word = _mm512_loadu_si512(block + 2048 + quad / 4 * 64);
  const __m512i shifted = _mm512_srl_epi16(word, _mm_cvtsi32_si128(quad % 4 * 2));
  const __m512i high = _mm512_and_si512(shifted, _mm512_set1_epi8(3));
  return _mm512_or_si512(low, _mm512_slli_epi16(high, 4));
}

template <int T>
inline void q6_k_tile(const MatmulArgs& args, int group, int t0) {
  const int n = args.w->cols;
  const std::byte* base = args.w->data + group * (int64_t{n} / 256 * 3360);
  const ActRows& a = args.a;
  __m512 y[T];
  for (int t = 0; t < T; ++t) y[t] = _mm512_setzero_ps();
  for (int c = 0; c < n; c += 32) {
    const std::byte* block = base + int64_t{c} / 256 * 3360;
    __m512i s[T];
    for (int t = 0; t < T; ++t) s[t] = _mm512_setzero_si512();
    for (int sub = c % 256 / 16; sub < c % 256 / 16 + 2; ++sub) {
      const __m128i scales =
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 3072 + sub * 16));
      const __m512i scale = _mm512_cvtepi8_epi32(scales);
      const int column = c / 256 * 256 + sub * 16;
      for (int t = 0; t < T; ++t) {
        const int8_t* q = a.q + int64_t{t0 + t} * n + column;
        __m512i dot = _mm512_setzero_si512();
        for (int i = 0; i < 4; ++i) {
          dot = _mm512_dpbusd_epi32(dot, q6_k_expand(block, 4 * sub + i), broadcast4(q + 4 * i));
        }
        const int sum = a.sums16[int64_t{t0 + t} * (n / 16) + column / 16];
        dot = _mm512_sub_epi32(dot, _mm512_set1_epi32(32 * sum));
        s[t] = _mm512_add_epi32(s[t], _mm512_mullo_epi32(scale, dot));
      }
    }
    const __m512 d_w = halves(block + 3328);
    for (int t = 0; t < T; ++t) {
      const __m512 d_a = _mm512_set1_ps(a.d[int64_t{t0 + t} * (n / 32) + c / 32]);
      y[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[t]), _mm512_mul_ps(d_w, d_a), y[t]);
    }
  }
  for (int t = 0; t < T; ++t) store_rows(args, group, t0 + t, y[t]);
}

void matmul_q6_k_avx512(const MatmulArgs& args) {
  for (int g = args.group_begin; g < args.group_end; ++g) {
    int t = 0;
    for (; t + 8 <= args.a.n_rows; t += 8) q6_k_tile<8>(args, g, t);
    for (; t < args.a.n_rows; ++t) q6_k_tile<1>(args, g, t);
  }
}

// ---- float activations

inline __mmask16 tail_mask(int n) {
  return n >= 16 ? __mmask16(0xffff) : static_cast<__mmask16>((1u << n) - 1);
}

template <int T>
inline void dot_rows(const MatmulArgs& args, const float* w, int row, int t0) {
  const int n = args.w->cols;
  __m512 lanes[T];
  for (int t = 0; t < T; ++t) lanes[t] = _mm512_setzero_ps();
  for (int c = 0; c < n; c += 16) {
    const __mmask16 mask = tail_mask(n - c);
    const __m512 x = _mm512_maskz_loadu_ps(mask, w + c);
    for (int t = 0; t < T; ++t) {
      const __m512 a = _mm512_maskz_loadu_ps(mask, args.x + int64_t{t0 + t} * n + c);
      lanes[t] = _mm512_mask3_fmadd_ps(x, a, lanes[t], mask);
    }
  }
  for (int t = 0; t < T; ++t) put_result(args, t0 + t, row, sum_lanes_avx512(lanes[t]));
}

template <void (*Unpack)(const PackedMatrix&, int, float*)>
void matmul_f32_avx512(const MatmulArgs& args) {
  const int all = args.group_end * kGroupRows;
  const int end = all < args.w->rows ? all : args.w->rows;
  for (int row = args.group_begin * kGroupRows; row < end; ++row) {
    Unpack(*args.w, row, args.scratch);
    int t = 0;
    for (; t + 8 <= args.n_rows; t += 8) dot_rows<8>(args, args.scratch, row, t);
    for (; t < args.n_rows; ++t) dot_rows<1>(args, args.scratch, row, t);
  }
}

// ---- rows of floats; tails shorter than a vector are masked, absent lanes add nothing

void rms_norm_avx512(const float* x, const float* w, int n, float eps, float* y) {
  __m512 lanes = _mm512_setzero_ps();
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = tail_mask(n - i);
    const __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
    lanes = _mm512_mask3_fmadd_ps(v, v, lanes, mask);
  }
  const float mean = sum_lanes_avx512(lanes) / static_cast<float>(n);
  const __m512 r = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = tail_mask(n - i);
    const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), r);
    _mm512_mask_storeu_ps(y + i, mask, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, w + i)));
  }
}

inline int32_t quantize_block_avx512(const float* x, int n, int8_t* q, float* d, int16_t* sums16) {
  __m512i largest = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int i = 0; i < n; i += 16) {
    largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_loadu_si512(x + i), magnitude));
  }
  const uint32_t bits = _mm512_reduce_max_epu32(largest);
  const float absmax = float_of(bits);
  const bool finite = bits < 0x7f800000u;
  if (!finite || absmax < kTinyMagnitude) {
    *d = finite ? 0.0f : float_of(0x7fc00000u);
    __builtin_memset(q, 0, static_cast<size_t>(n));
    __builtin_memset(sums16, 0, static_cast<size_t>(n / 8));
    return 0;
  }
  *d = absmax / 127.0f;
  const __m512 divisor = _mm512_set1_ps(*d);
  int32_t total = 0;
  for (int i = 0; i < n; i += 16) {
    __m512i code = _mm512_cvtps_epi32(_mm512_div_ps(_mm512_loadu_ps(x + i), divisor));
    code =
        _mm512_max_epi32(_mm512_min_epi32(code, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i), _mm512_cvtepi32_epi8(code));
    const int32_t sum = _mm512_reduce_add_epi32(code);
    sums16[i / 16] = static_cast<int16_t>(sum);
    total += sum;
  }
  return total;
}

void quantize_avx512(const float* x, int n, int block, int8_t* q, float* d, int32_t* sums,
                     int16_t* sums16) {
  for (int b = 0; b < n / block; ++b) {
    const int at = b * block;
    sums[b] = quantize_block_avx512(x + at, block, q + at, d + b, sums16 + at / 16);
  }
}

void silu_mul_avx512(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = tail_mask(n - i);
    const __m512 y = silu_avx512(_mm512_maskz_loadu_ps(mask, gate + i));
    _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(y, _mm512_maskz_loadu_ps(mask, up + i)));
  }
}

template <class F>
void put_format(WeightKernels& slot, void (*matmul)(const MatmulArgs&)) {
  slot.matmul = matmul;
  slot.matmul_f32 = matmul_f32_avx512<unpack_row<F>>;
}

void fill_weights_avx512(Kernels& table) {
  const auto at = [&](WeightType type) -> WeightKernels& {
    return table.weight[static_cast<int>(type)];
  };
  at(WeightType::f32).matmul = at(WeightType::f32).matmul_f32 = matmul_f32_avx512<unpack_row_f32>;
  at(WeightType::f16).matmul = at(WeightType::f16).matmul_f32 = matmul_f32_avx512<unpack_row_f16>;
  put_format<FormatQ1_0>(at(WeightType::q1_0), matmul_q1_0_avx512);
  put_format<FormatQ8_0>(at(WeightType::q8_0), matmul_avx512<VecQ8_0>);
  put_format<FormatQ4_0>(at(WeightType::q4_0), matmul_avx512<VecQ4_0>);
  put_format<FormatQ4_1>(at(WeightType::q4_1), matmul_avx512<VecQ4_1>);
  put_format<FormatQ6_K>(at(WeightType::q6_k), matmul_q6_k_avx512);
  table.rms_norm = rms_norm_avx512;
  table.quantize = quantize_avx512;
  table.silu_mul = silu_mul_avx512;
}

}  // namespace
}  // namespace bantam
