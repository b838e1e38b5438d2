// Attention with AVX-512 VNNI, the bits of attend_scalar.inl. For K a vector lane is a position,
// for V a channel, so that no dot product needs a horizontal sum. A tile's block is unpacked once
// for all query rows.
#pragma once

#include <immintrin.h>

#include "codec/kv_codec.h"
#include "cpu/attend_scalar.inl"
#include "cpu/exp_avx512.inl"
#include "cpu/kernels.h"

namespace bantam {
namespace {

// ---- codes as bytes

// Sixteen codes of 4 bits widened by their fifth bit and mapped to bytes: biased (unsigned) for K,
// signed for V.
template <class Codec>
inline __m512i iq4_bytes(__m512i codes, bool biased) {
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kIq4Table));
  const __m512i signed_bytes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes);
  return biased ? _mm512_xor_si512(signed_bytes, _mm512_set1_epi8(static_cast<char>(0x80)))
                : signed_bytes;
}

template <class Codec>
inline __m512i nibble_codes(const std::byte* bytes, const std::byte* high, bool upper) {
  const __m512i pair = _mm512_loadu_si512(bytes);
  const __m512i part = upper ? _mm512_srli_epi16(pair, 4) : pair;
  const __m512i codes = _mm512_and_si512(part, _mm512_set1_epi8(15));
  if constexpr (Codec::bits != 5) return codes;
  uint64_t bits;
  __builtin_memcpy(&bits, high, 8);
  return _mm512_or_si512(codes, _mm512_maskz_mov_epi8(_cvtu64_mask64(bits), _mm512_set1_epi8(16)));
}

template <class Codec>
constexpr bool kIsTable = Codec::bits == 4 && Codec::bias == 128;

// 16 positions (half 0 or 1) x 4 channels of quad, as u8 = value + bias.
template <class Codec>
inline __m512i key_bytes(const std::byte* tile, const KvTileLayout& at, int quad, int half) {
  if constexpr (Codec::bits == 8) {
    const __m512i codes = _mm512_loadu_si512(tile + quad * 128 + half * 64);
    return _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80)));
  } else {
    const std::byte* high = tile + at.high + quad * 16 + half * 8;
    const __m512i codes =
        nibble_codes<Codec>(tile + quad / 2 * 128 + half * 64, high, quad % 2 != 0);
    if constexpr (kIsTable<Codec>) return iq4_bytes<Codec>(codes, true);
    return codes;
  }
}

// 16 channels (half of block b) x 4 positions of quad, as signed values.
template <class Codec>
inline __m512i value_bytes(const std::byte* tile, const KvTileLayout& at, int head_dim, int quad,
                           int b, int half) {
  if constexpr (Codec::bits == 8) {
    return _mm512_loadu_si512(tile + int64_t{quad} * head_dim * 4 + b * 128 + half * 64);
  } else {
    const std::byte* high = tile + at.high + (int64_t{quad} * (head_dim / 16) + b * 2 + half) * 8;
    const std::byte* bytes = tile + int64_t{quad} * head_dim * 2 + b * 64;
    const __m512i codes = nibble_codes<Codec>(bytes, high, half != 0);
    if constexpr (kIsTable<Codec>) return iq4_bytes<Codec>(codes, false);
    return _mm512_sub_epi8(codes, _mm512_set1_epi8(Codec::bias));
  }
}

inline __m512 half_vector(const std::byte* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline __m512i broadcast_quad(const void* four_bytes) {
  int32_t four;
  __builtin_memcpy(&four, four_bytes, 4);
  return _mm512_set1_epi32(four);
}

// ---- scores, quantized K

// Block b of the tile for all rows: s accumulates in args.s.
template <class Codec>
inline void score_block(const ScoreArgs& args, const KvTileLayout& at, int b) {
  const int hd = args.head_dim;
  __m512i keys[8][2];
  for (int i = 0; i < 8; ++i) {
    for (int h = 0; h < 2; ++h) keys[i][h] = key_bytes<Codec>(args.tile, at, 8 * b + i, h);
  }
  __m512 d[2], m[2] = {};
  for (int h = 0; h < 2; ++h) {
    d[h] = half_vector(args.tile + at.scales + b * 64 + h * 32);
    if (Codec::minimum) m[h] = half_vector(args.tile + at.minima + b * 64 + h * 32);
  }
  for (int r = 0; r < args.n_rows; ++r) {
    const int8_t* q = args.q + int64_t{r} * hd + 32 * b;
    const int16_t* sums = args.sums16 + int64_t{r} * (hd / 16) + 2 * b;
    const int32_t sum = sums[0] + sums[1];
    __m512i even[2], odd[2];
    for (int h = 0; h < 2; ++h) {
      even[h] = _mm512_set1_epi32(-Codec::bias * sum);
      odd[h] = _mm512_setzero_si512();
    }
    for (int i = 0; i < 8; i += 2) {
      const __m512i x = broadcast_quad(q + 4 * i), y = broadcast_quad(q + 4 * i + 4);
      for (int h = 0; h < 2; ++h) {
        even[h] = _mm512_dpbusd_epi32(even[h], keys[i][h], x);
        odd[h] = _mm512_dpbusd_epi32(odd[h], keys[i + 1][h], y);
      }
    }
    float* out = args.s + r * args.s_stride;
    for (int h = 0; h < 2; ++h) {
      const __m512 dot = _mm512_cvtepi32_ps(_mm512_add_epi32(even[h], odd[h]));
      __m512 s = b == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(out + 16 * h);
      s = _mm512_fmadd_ps(dot, d[h], s);
      if (Codec::minimum) s = _mm512_fmadd_ps(_mm512_set1_ps(static_cast<float>(sum)), m[h], s);
      if (b == hd / 32 - 1) s = _mm512_mul_ps(s, _mm512_set1_ps(args.scale[r]));
      _mm512_storeu_ps(out + 16 * h, s);
    }
  }
}

template <class Codec>
void scores_quant_avx512(const ScoreArgs& args) {
  const KvTileLayout at = layout_of<Codec>(args.head_dim);
  for (int b = 0; b < args.head_dim / 32; ++b) score_block<Codec>(args, at, b);
}

// ---- scores, float K

template <class Float>
inline __m512 load_floats(const std::byte* p) {
  if constexpr (Float::bytes == 4) {
    return _mm512_loadu_ps(p);
  } else if constexpr (Float::brain) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  } else {
    return half_vector(p);
  }
}

// The trees of rule 2 for 16 vectors at once: element k of the result is the sum of v[k]'s lanes.
inline __m512 sum_lanes_16(__m512* v) {
  for (int i = 0; i < 8; ++i) {
    const __m512 a = v[2 * i], b = v[2 * i + 1];
    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 a = v[2 * i], b = v[2 * i + 1];
    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  for (int i = 0; i < 2; ++i) {
    const __m512d a = _mm512_castps_pd(v[2 * i]), b = _mm512_castps_pd(v[2 * i + 1]);
    v[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const __m512 sums =
      _mm512_add_ps(_mm512_shuffle_ps(v[0], v[1], 0x88), _mm512_shuffle_ps(v[0], v[1], 0xdd));
  // Lane 4c + e holds vector 4e + c.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_ps(order, sums);
}

template <class Float>
void scores_float_avx512(const ScoreArgs& args) {
  const int hd = args.head_dim;
  for (int half = 0; half < 2; ++half) {
    const std::byte* keys = args.tile + int64_t{16 * half} * hd * Float::bytes;
    for (int r = 0; r < args.n_rows; ++r) {
      const float* q = args.qf + int64_t{r} * hd;
      __m512 lanes[16];
      for (int k = 0; k < 16; ++k) lanes[k] = _mm512_setzero_ps();
      for (int c = 0; c < hd; c += 16) {
        const __m512 x = _mm512_loadu_ps(q + c);
        for (int k = 0; k < 16; ++k) {
          const __m512 key = load_floats<Float>(keys + (int64_t{k} * hd + c) * Float::bytes);
          lanes[k] = _mm512_fmadd_ps(x, key, lanes[k]);
        }
      }
      const __m512 s = _mm512_mul_ps(sum_lanes_16(lanes), _mm512_set1_ps(args.scale[r]));
      _mm512_storeu_ps(args.s + r * args.s_stride + 16 * half, s);
    }
  }
}

// ---- weighted sums, quantized V

// Rule 5: u8 weights of one row and block into u[32]; returns c (0: nothing to add, NaN: not
// finite).
inline float tile_weights_avx512(const float* p, const __m512* d, uint32_t visible, uint8_t* u) {
  const __mmask16 low = static_cast<__mmask16>(visible),
                  high = static_cast<__mmask16>(visible >> 16);
  const __m512 w0 = _mm512_maskz_mul_ps(low, _mm512_loadu_ps(p), d[0]);
  const __m512 w1 = _mm512_maskz_mul_ps(high, _mm512_loadu_ps(p + 16), d[1]);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512i top = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(w0), magnitude),
                                       _mm512_and_si512(_mm512_castps_si512(w1), magnitude));
  const uint32_t largest = _mm512_reduce_max_epu32(top);
  const __m256i zero = _mm256_setzero_si256();
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(u), zero);
  if (largest >= 0x7f800000u) return float_of(0x7fc00000u);
  const float x = float_of(largest);
  if (x < kTinyMagnitude) return 0.0f;
  const __m512 r = _mm512_set1_ps(255.0f / x);
  const __m512i u0 = _mm512_cvtps_epi32(_mm512_mul_ps(w0, r));
  const __m512i u1 = _mm512_cvtps_epi32(_mm512_mul_ps(w1, r));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(u), _mm512_cvtepi32_epi8(u0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(u + 16), _mm512_cvtepi32_epi8(u1));
  return x / 255.0f;
}

// Block b of the tile, values unpacked once with the signs of their scales.
template <class Codec>
struct ValueBlock {
  __m512i values[8][2];
  __m512 d[2];  // |d_v|
  __m512 m[2];

  ValueBlock(const std::byte* tile, const KvTileLayout& at, int head_dim, int b) {
    const std::byte* scales = tile + at.scales + b * 64;
    const __m512 magnitude = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff));
    for (int h = 0; h < 2; ++h) {
      d[h] = _mm512_and_ps(half_vector(scales + 32 * h), magnitude);
      m[h] = Codec::minimum ? half_vector(tile + at.minima + b * 64 + 32 * h) : _mm512_setzero_ps();
    }
    uint8_t sign[32];
    const __mmask32 negative = _mm512_movepi16_mask(_mm512_loadu_si512(scales));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sign), _mm256_movm_epi8(negative));
    for (int quad = 0; quad < 8; ++quad) {
      const __m512i flip = broadcast_quad(sign + 4 * quad);
      for (int h = 0; h < 2; ++h) {
        const __m512i v = value_bytes<Codec>(tile, at, head_dim, quad, b, h);
        // The scalar text flips by the sign bit of any type; without negative scales there is none.
        values[quad][h] = _mm512_sub_epi8(_mm512_xor_si512(v, flip), flip);
      }
    }
  }
};

template <class Codec>
inline void weigh_row(const ValueBlock<Codec>& block, const float* p, int n_visible, float* acc) {
  const uint32_t visible = n_visible >= 32 ? 0xffffffffu : (1u << n_visible) - 1;
  alignas(32) uint8_t u[32];
  const float c = tile_weights_avx512(p, block.d, visible, u);
  __m512 out[2] = {_mm512_loadu_ps(acc), _mm512_loadu_ps(acc + 16)};
  if (!(c == 0.0f)) {
    __m512i even[2], odd[2];
    for (int h = 0; h < 2; ++h) even[h] = odd[h] = _mm512_setzero_si512();
    for (int quad = 0; quad < 8; quad += 2) {
      const __m512i x = broadcast_quad(u + 4 * quad), y = broadcast_quad(u + 4 * quad + 4);
      for (int h = 0; h < 2; ++h) {
        even[h] = _mm512_dpbusd_epi32(even[h], x, block.values[quad][h]);
        odd[h] = _mm512_dpbusd_epi32(odd[h], y, block.values[quad + 1][h]);
      }
    }
    for (int h = 0; h < 2; ++h) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(even[h], odd[h]));
      out[h] = _mm512_fmadd_ps(sum, _mm512_set1_ps(c), out[h]);
    }
  }
  if constexpr (Codec::minimum) {
    const __mmask16 low = static_cast<__mmask16>(visible),
                    high = static_cast<__mmask16>(visible >> 16);
    __m512 lanes = _mm512_maskz_fmadd_ps(low, _mm512_loadu_ps(p), block.m[0], _mm512_setzero_ps());
    lanes = _mm512_mask3_fmadd_ps(_mm512_loadu_ps(p + 16), block.m[1], lanes, high);
    const __m512 sum = _mm512_set1_ps(sum_lanes_avx512(lanes));
    for (int h = 0; h < 2; ++h) out[h] = _mm512_add_ps(out[h], sum);
  }
  _mm512_storeu_ps(acc, out[0]);
  _mm512_storeu_ps(acc + 16, out[1]);
}

template <class Codec>
void weigh_quant_avx512(const WeighArgs& args) {
  const int hd = args.head_dim;
  const KvTileLayout at = layout_of<Codec>(hd);
  for (int b = 0; b < hd / 32; ++b) {
    const ValueBlock<Codec> block(args.tile, at, hd, b);
    for (int r = 0; r < args.n_rows; ++r) {
      if (args.n_visible[r] == 0) continue;
      weigh_row<Codec>(block, args.p + r * args.p_stride, args.n_visible[r],
                       args.acc + int64_t{r} * hd + 32 * b);
    }
  }
}

// ---- weighted sums, float V

template <class Float, int N>
inline void weigh_floats(const std::byte* tile, int head_dim, int c, const float* p, int n_visible,
                         float* acc) {
  __m512 sum[N];
  for (int i = 0; i < N; ++i) sum[i] = _mm512_loadu_ps(acc + 16 * i);
  for (int pos = 0; pos < n_visible; ++pos) {
    const std::byte* row = tile + (int64_t{pos} * head_dim + c) * Float::bytes;
    const __m512 weight = _mm512_set1_ps(p[pos]);
    for (int i = 0; i < N; ++i) {
      sum[i] = _mm512_fmadd_ps(weight, load_floats<Float>(row + 16 * i * Float::bytes), sum[i]);
    }
  }
  for (int i = 0; i < N; ++i) _mm512_storeu_ps(acc + 16 * i, sum[i]);
}

template <class Float>
void weigh_float_avx512(const WeighArgs& args) {
  const int hd = args.head_dim;
  for (int r = 0; r < args.n_rows; ++r) {
    const float* p = args.p + r * args.p_stride;
    float* acc = args.acc + int64_t{r} * hd;
    int c = 0;
    for (; c + 128 <= hd; c += 128)
      weigh_floats<Float, 8>(args.tile, hd, c, p, args.n_visible[r], acc + c);
    for (; c < hd; c += 32) weigh_floats<Float, 2>(args.tile, hd, c, p, args.n_visible[r], acc + c);
  }
}

// ---- rows

void softmax_page_avx512(float* s, int n_visible, float* m, float* l) {
  // The scalar comparison skips NaN unless it comes first; a row with a NaN ends as NaN either way.
  __m512 top = _mm512_set1_ps(s[0]);
  for (int i = 0; i < n_visible; i += 16) {
    const int left = n_visible - i;
    const __mmask16 mask =
        left >= 16 ? __mmask16(0xffff) : static_cast<__mmask16>((1u << left) - 1);
    const __m512 x = _mm512_mask_loadu_ps(top, mask, s + i);
    top = _mm512_mask_mov_ps(top, _mm512_cmp_ps_mask(x, top, _CMP_GT_OQ), x);
  }
  const float largest = _mm512_reduce_max_ps(top);
  const __m512 peak = _mm512_set1_ps(largest);
  __m512 lanes = _mm512_setzero_ps();
  for (int i = 0; i < 256; i += 16) {
    const int left = n_visible - i;
    if (left <= 0) {
      _mm512_storeu_ps(s + i, _mm512_setzero_ps());
      continue;
    }
    const __mmask16 mask =
        left >= 16 ? __mmask16(0xffff) : static_cast<__mmask16>((1u << left) - 1);
    const __m512 x = _mm512_maskz_loadu_ps(mask, s + i);
    const __m512 p = _mm512_maskz_mov_ps(mask, exp_avx512(_mm512_sub_ps(x, peak)));
    lanes = _mm512_mask_add_ps(lanes, mask, lanes, p);
    _mm512_storeu_ps(s + i, p);
  }
  *m = largest;
  *l = sum_lanes_avx512(lanes);
}

void merge_avx512(int head_dim, float* m, float* l, float* acc, float m_p, float l_p,
                  const float* acc_p) {
  const float top = m_p > *m ? m_p : *m;
  const float a = exp_f32(*m - top), b = exp_f32(m_p - top);
  const __m512 va = _mm512_set1_ps(a), vb = _mm512_set1_ps(b);
  for (int i = 0; i < head_dim; i += 16) {
    const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(acc + i), va);
    _mm512_storeu_ps(acc + i, _mm512_add_ps(x, _mm512_mul_ps(_mm512_loadu_ps(acc_p + i), vb)));
  }
  *l = *l * a + l_p * b;
  *m = top;
}

void finish_avx512(int head_dim, const float* acc, float l, float* out) {
  const __m512 divisor = _mm512_set1_ps(l);
  for (int i = 0; i < head_dim; i += 16) {
    _mm512_storeu_ps(out + i, _mm512_div_ps(_mm512_loadu_ps(acc + i), divisor));
  }
}

// Strides below 16 inside a vector: the partner comes by a shuffle, its sum or difference by a
// mask.
template <int Stride>
inline __m512 butterfly(__m512 x) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512 partner =
      _mm512_permutexvar_ps(_mm512_xor_si512(lane, _mm512_set1_epi32(Stride)), x);
  const __mmask16 upper = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(Stride));
  return _mm512_mask_sub_ps(_mm512_add_ps(x, partner), upper, partner, x);
}

void rotate_avx512(float* x, int n, int block) {
  const __m512 norm = _mm512_set1_ps(rotation_norm(block));
  for (int start = 0; start < n; start += block) {
    __m512 v[16];
    const int n_vectors = block / 16;
    for (int i = 0; i < n_vectors; ++i) {
      v[i] = _mm512_loadu_ps(x + start + 16 * i);
      v[i] = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(v[i]))));
    }
    for (int stride = 1; stride < n_vectors; stride *= 2) {
      for (int i = 0; i < n_vectors; i += 2 * stride) {
        for (int j = i; j < i + stride; ++j) {
          const __m512 a = v[j], b = v[j + stride];
          v[j] = _mm512_add_ps(a, b);
          v[j + stride] = _mm512_sub_ps(a, b);
        }
      }
    }
    for (int i = 0; i < n_vectors; ++i) {
      _mm512_storeu_ps(x + start + 16 * i, _mm512_mul_ps(v[i], norm));
    }
  }
}

template <KvType Type>
void put_kv_avx512(KvKernels& slot) {
  using Codec = CodecOf<Type>;
  if constexpr (info(Type).quantized) {
    slot.scores = scores_quant_avx512<Codec>;
    slot.weigh = weigh_quant_avx512<Codec>;
  } else {
    slot.scores = scores_float_avx512<Codec>;
    slot.weigh = weigh_float_avx512<Codec>;
  }
  // The stores are scalar text, compiled here once more with wider vectors: the same bits.
  const KvKernels scalar = kv_kernels<Type>();
  slot.store_k = scalar.store_k;
  slot.store_v = scalar.store_v;
}

void fill_attend_avx512(Kernels& table) {
#define KV_TYPE(name, bytes32, quantized, minimum) \
  put_kv_avx512<KvType::name>(table.kv[static_cast<int>(KvType::name)]);
#include "codec/kv_types.def"
#undef KV_TYPE
  table.softmax_page = softmax_page_avx512;
  table.merge = merge_avx512;
  table.finish = finish_avx512;
  table.rotate = rotate_avx512;
}

}  // namespace
}  // namespace bantam
