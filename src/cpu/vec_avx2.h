// The vocabulary of vec_avx512.h for AVX2 with FMA and F16C, and, where the including file says
// BANTAM_AVX_VNNI, the 256-bit VPDPBUSD. Two registers hold what a 512-bit one holds. Without VNNI
// products are exact by 16-bit sums: VPMADDUBSW saturates with two 8-bit factors, so wide codes
// of weights lend their sign to the activations, queries theirs to the keys, and weights of
// attention are split into half bytes where values are wide.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "codec/half.h"
#include "codec/numerics.h"

namespace bantam {
namespace {

#define BANTAM_INLINE inline __attribute__((always_inline))
#define BANTAM_SIXTEEN_REGISTERS 1
// The eight quads of a block of attention. Left to itself the compiler keeps a loop where there are
// fifth bits, with a branch for every nibble.
// So are the steps of a word (tables_avx2.inl). Sanitizers keep the loop:
// their checks are then compiled once.
#if __has_feature(address_sanitizer) || __has_feature(undefined_behavior_sanitizer)
#define BANTAM_EACH_QUAD(i) for (int i = 0; i < 8; ++i)
#else
#define BANTAM_EACH_QUAD(i) _Pragma("GCC unroll 8") for (int i = 0; i < 8; ++i)
#endif
// Both registers of a pair.
#define BANTAM_BOTH(expression) \
  for (int i = 0; i < 2; ++i) expression

struct Floats {
  __m256 v[2];
};
struct Ints {
  __m256i v[2];
};
typedef Ints Bytes;
typedef __m256i Quad;
typedef Floats Mask;

constexpr int kTileTokens = 4;
constexpr int kTileTokensSmall = 4;
constexpr int kTileTokensWide = 4;
constexpr int kChains = 2;
constexpr int kSumsInFlight = 1;
constexpr bool kPairedRows = false;  // products of several rows: pairs_i8mm.inl
constexpr int kWeighRows = 1;
constexpr int kSumChains = 1;
// Whether weights of head sizes 64 and 128 have code of their own.
constexpr bool kKnownPairs = true;
constexpr bool kKnownPairsOfMinima = false;
constexpr bool kFlipsTables = true;
#if defined(BANTAM_AVX_VNNI)
constexpr bool kSumsStartAnywhere = true;
#else
constexpr bool kSumsStartAnywhere = false;  // 16-bit sums
#endif
constexpr int kExpsTogether = 2;
constexpr int kFloatKeys = 4;
// Rows that share a float once it is in a register; with up to kFloatRowsInPlace rows 16-bit floats
// are converted where they are used, with more they are converted once for all.
constexpr int kFloatRows = 2;
constexpr int kWeighFloatRows = 2;  // the same of values
constexpr int kFloatRowsInPlace = 2;
constexpr int kFloatChannels = 4;
// From so many rows on keys are turned (attend_turned.inl), kTurnedRows at a time. Zen 4 by AVX2,
// cycles for the keys of a tile, 16, 32 and 64 rows, not turned -> turned: head size 64 f16 3620,
// 7200, 13940 -> 3480, 6010, 10990, f32 3660, 7350, 14640 -> 3320, 5830, 10790; head size 128,
// where trees weigh less and L1 is too small, 64 rows f16 22600 -> 25300, f32 23100 -> 24300.
// AVX-VNNI was not measured.
#define BANTAM_TURNED_KEYS 1
constexpr int kTurnedRows = 2;
constexpr int kNeverTurned = 1 << 30;
BANTAM_INLINE int turned_from(int head_dim, int) { return head_dim <= 64 ? 16 : kNeverTurned; }
BANTAM_INLINE int prefetch_bytes() { return 2048; }
constexpr int kPrefetchLevel = 2;

// ---- floats

BANTAM_INLINE Floats f_set(float x) { return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
BANTAM_INLINE Floats f_zero() { return f_set(0.0f); }
BANTAM_INLINE Floats f_load(const float* p) {
  return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}};
}
BANTAM_INLINE void f_store(float* p, Floats x) { BANTAM_BOTH(_mm256_storeu_ps(p + 8 * i, x.v[i])); }
BANTAM_INLINE Mask m_first(int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {{_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane)),
           _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane))}};
}
BANTAM_INLINE Floats f_load_n(const float* p, int n) {
  const Mask m = m_first(n);
  Floats out;
  BANTAM_BOTH(out.v[i] = _mm256_maskload_ps(p + 8 * i, _mm256_castps_si256(m.v[i])));
  return out;
}
BANTAM_INLINE void f_store_n(float* p, Floats x, int n) {
  const Mask m = m_first(n);
  BANTAM_BOTH(_mm256_maskstore_ps(p + 8 * i, _mm256_castps_si256(m.v[i]), x.v[i]));
}
#define BANTAM_PAIR(Type, name, intrinsic)             \
  BANTAM_INLINE Type name(Type a, Type b) {            \
    Type out;                                          \
    BANTAM_BOTH(out.v[i] = intrinsic(a.v[i], b.v[i])); \
    return out;                                        \
  }
BANTAM_PAIR(Floats, f_add, _mm256_add_ps)
BANTAM_PAIR(Floats, f_sub, _mm256_sub_ps)
BANTAM_PAIR(Floats, f_mul, _mm256_mul_ps)
BANTAM_PAIR(Floats, f_div, _mm256_div_ps)
BANTAM_PAIR(Floats, f_max, _mm256_max_ps)
BANTAM_INLINE float f_largest(Floats a) {
  const __m256 s = _mm256_max_ps(a.v[0], a.v[1]);
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
BANTAM_INLINE Floats f_fma(Floats a, Floats b, Floats c) {
  BANTAM_BOTH(c.v[i] = _mm256_fmadd_ps(a.v[i], b.v[i], c.v[i]));
  return c;
}
BANTAM_INLINE Mask m_less(Floats a, Floats b) {
  BANTAM_BOTH(a.v[i] = _mm256_cmp_ps(a.v[i], b.v[i], _CMP_LT_OQ));
  return a;
}
BANTAM_INLINE Mask m_nan(Floats a) {
  BANTAM_BOTH(a.v[i] = _mm256_cmp_ps(a.v[i], a.v[i], _CMP_UNORD_Q));
  return a;
}
BANTAM_INLINE Floats f_select(Mask m, Floats a, Floats b) {
  BANTAM_BOTH(b.v[i] = _mm256_blendv_ps(b.v[i], a.v[i], m.v[i]));
  return b;
}
BANTAM_INLINE Mask m_not_less(Floats a, Floats b) {
  BANTAM_BOTH(a.v[i] = _mm256_cmp_ps(a.v[i], b.v[i], _CMP_NLT_UQ));
  return a;
}
BANTAM_PAIR(Floats, f_only, _mm256_and_ps)
BANTAM_INLINE Floats f_from_bits(Ints x) {
  return {{_mm256_castsi256_ps(x.v[0]), _mm256_castsi256_ps(x.v[1])}};
}
BANTAM_INLINE Ints i_bits(Floats x) {
  return {{_mm256_castps_si256(x.v[0]), _mm256_castps_si256(x.v[1])}};
}
BANTAM_INLINE __m128i load_16(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
BANTAM_INLINE Floats f_halves(const std::byte* p) {
  return {{_mm256_cvtph_ps(load_16(p)), _mm256_cvtph_ps(load_16(p + 16))}};
}
BANTAM_INLINE Floats f_brains(const std::byte* p) {
  Ints x;
  BANTAM_BOTH(x.v[i] = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16(p + 16 * i)), 16));
  return f_from_bits(x);
}
// Rule 2: lane j + lane j + 8, then + 4, + 2, + 1.
BANTAM_INLINE float f_tree(Floats x) {
  const __m256 a = _mm256_add_ps(x.v[0], x.v[1]);
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
// The same of eight vectors at once, `op` in place of +: lane k is of v[k].
template <class Op>
BANTAM_INLINE __m256 eight_trees(const Floats* v, Op&& op) {
  __m256 a[8], b[4];
  for (int k = 0; k < 8; ++k) a[k] = op(v[k].v[0], v[k].v[1]);
  for (int k = 0; k < 4; ++k) {  // lanes 0 to 3 of k and k + 4
    b[k] = op(_mm256_permute2f128_ps(a[k], a[k + 4], 0x20),
              _mm256_permute2f128_ps(a[k], a[k + 4], 0x31));
  }
  __m256 c[2];
  for (int k = 0; k < 2; ++k) {
    const __m256d x = _mm256_castps_pd(b[2 * k]), y = _mm256_castps_pd(b[2 * k + 1]);
    c[k] =
        op(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
  }
  return op(_mm256_shuffle_ps(c[0], c[1], 0x88), _mm256_shuffle_ps(c[0], c[1], 0xdd));
}
// Of N = 4 or 8.
template <int N, class Op>
BANTAM_INLINE __m256 some_trees(const Floats* v, Op&& op) {
  if constexpr (N == 8) return eight_trees(v, op);
  const Floats again[8] = {v[0], v[1], v[2], v[3], v[0], v[1], v[2], v[3]};
  return eight_trees(again, op);
}
BANTAM_INLINE __m256 plus(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
BANTAM_INLINE Floats f_trees(Floats* v) {
  return {{eight_trees(v, plus), eight_trees(v + 8, plus)}};
}
// For N = 4 or 8 vectors: sums and maxima of vector k are in this lane of the result.
template <int N>
BANTAM_INLINE constexpr int some_lane(int k) {
  return k;
}
// Each of those lanes has a partner: f_partners copies them there, m_partners says which they are.
BANTAM_INLINE Floats f_partners(Floats x) { return {{x.v[0], x.v[0]}}; }
BANTAM_INLINE Mask m_partners() {
  return {{_mm256_setzero_ps(), _mm256_castsi256_ps(_mm256_set1_epi32(-1))}};
}
// The lanes of N vectors, one after the other; and their partners.
template <int N>
BANTAM_INLINE void f_store_some(float* p, Floats x) {
  N == 8 ? _mm256_storeu_ps(p, x.v[0]) : _mm_storeu_ps(p, _mm256_castps256_ps128(x.v[0]));
}
template <int N>
BANTAM_INLINE void f_store_partners(float* p, Floats x) {
  N == 8 ? _mm256_storeu_ps(p, x.v[1]) : _mm_storeu_ps(p, _mm256_castps256_ps128(x.v[1]));
}
template <class X>
BANTAM_INLINE void in_memory(X&) {}
// Compilers would rather keep eight multiples of a step in memory than add it.
BANTAM_INLINE void in_register(const std::byte*& p) { asm("" : "+r"(p)); }
template <int N>
BANTAM_INLINE Floats f_some_trees(Floats* v) {
  return {{some_trees<N>(v, plus), _mm256_setzero_ps()}};
}
// 16 rows of 16 floats, `stride` apart: v[k] becomes column k.
BANTAM_INLINE void f_turn(const float* rows, int64_t stride, Floats* v) {
  for (int half = 0; half < 2; ++half, rows += 8 * stride) {
    for (int quad = 0; quad < 4; ++quad) {
      __m256 w[4];
      for (int e = 0; e < 4; ++e) {
        const float* p = rows + e * stride + 4 * quad;
        w[e] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)),
                                    _mm_loadu_ps(p + 4 * stride), 1);
      }
      const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(w[0], w[1]));
      const __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(w[0], w[1]));
      const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(w[2], w[3]));
      const __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(w[2], w[3]));
      v[4 * quad].v[half] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
      v[4 * quad + 1].v[half] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
      v[4 * quad + 2].v[half] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
      v[4 * quad + 3].v[half] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
    }
  }
}
template <int Stride>
BANTAM_INLINE Floats f_butterfly(Floats x) {
  if constexpr (Stride == 8) {
    return {{_mm256_add_ps(x.v[0], x.v[1]), _mm256_sub_ps(x.v[0], x.v[1])}};
  } else {
    constexpr int upper = Stride == 1 ? 0xaa : Stride == 2 ? 0xcc : 0xf0;
    for (int i = 0; i < 2; ++i) {
      const __m256 a = x.v[i];
      const __m256 partner = Stride == 4   ? _mm256_permute2f128_ps(a, a, 1)
                             : Stride == 2 ? _mm256_permute_ps(a, 0x4e)
                                           : _mm256_permute_ps(a, 0xb1);
      x.v[i] = _mm256_blend_ps(_mm256_add_ps(a, partner), _mm256_sub_ps(partner, a), upper);
    }
    return x;
  }
}

// Lanes 2 i and 2 i + 1 change places.
BANTAM_INLINE Floats f_neighbours(Floats x) {
  return {{_mm256_permute_ps(x.v[0], 0xb1), _mm256_permute_ps(x.v[1], 0xb1)}};
}
// Eight floats, each in two neighbouring lanes.
BANTAM_INLINE Floats f_twice(const float* p) {
  const __m256i lane = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  const auto half = [&](const float* at) {
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(at)), lane);
  };
  return {{half(p), half(p + 4)}};
}

// ---- int32

BANTAM_INLINE Ints i_set(int32_t x) { return {{_mm256_set1_epi32(x), _mm256_set1_epi32(x)}}; }
BANTAM_INLINE Ints i_zero() { return i_set(0); }
BANTAM_PAIR(Ints, i_add, _mm256_add_epi32)
BANTAM_PAIR(Ints, i_sub, _mm256_sub_epi32)
BANTAM_PAIR(Ints, i_mul, _mm256_mullo_epi32)
BANTAM_PAIR(Ints, i_and, _mm256_and_si256)
BANTAM_PAIR(Ints, i_xor, _mm256_xor_si256)
BANTAM_PAIR(Ints, i_max, _mm256_max_epi32)
BANTAM_PAIR(Ints, i_max_unsigned, _mm256_max_epu32)
template <int N>
BANTAM_INLINE Ints i_shift_left(Ints a) {
  return {{_mm256_slli_epi32(a.v[0], N), _mm256_slli_epi32(a.v[1], N)}};
}
template <int N>
BANTAM_INLINE Ints i_shift_right(Ints a) {
  return {{_mm256_srai_epi32(a.v[0], N), _mm256_srai_epi32(a.v[1], N)}};
}
BANTAM_INLINE Mask m_equal(Floats a, Floats b) {
  BANTAM_BOTH(a.v[i] = _mm256_cmp_ps(a.v[i], b.v[i], _CMP_EQ_OQ));
  return a;
}
BANTAM_INLINE Mask m_equal_ints(Ints a, Ints b) {
  BANTAM_BOTH(a.v[i] = _mm256_cmpeq_epi32(a.v[i], b.v[i]));
  return f_from_bits(a);
}
// The first of 32 lanes that is set; 31 if none is (rows with NaN).
BANTAM_INLINE int m_first_of(Mask low, Mask high) {
  const int bits = _mm256_movemask_ps(low.v[0]) | _mm256_movemask_ps(low.v[1]) << 8 |
                   _mm256_movemask_ps(high.v[0]) << 16;
  const unsigned top = static_cast<unsigned>(_mm256_movemask_ps(high.v[1])) << 24;
  return __builtin_ctz(static_cast<unsigned>(bits) | top | 0x80000000u);
}
BANTAM_INLINE Floats f_from_ints(Ints a) {
  return {{_mm256_cvtepi32_ps(a.v[0]), _mm256_cvtepi32_ps(a.v[1])}};
}
// float(Mult * dot - Bias * *sum), whose magnitude is at most Most.
template <int Mult, int Bias, int Most>
BANTAM_INLINE Floats f_of_dot(Ints dot, const int32_t* sum) {
  if constexpr (Mult == 2) dot = i_add(dot, dot);
  if constexpr (Bias != 0) dot = i_sub(dot, i_set(Bias * *sum));
  return f_from_ints(dot);
}
BANTAM_INLINE Ints i_round(Floats x) {
  return {{_mm256_cvtps_epi32(x.v[0]), _mm256_cvtps_epi32(x.v[1])}};
}
// p * 2^n for integers n whose power is a normal float.
BANTAM_INLINE Floats f_scale(Floats p, Floats n) {
  const Ints exponent = i_add(i_round(n), i_set(127));
  return f_mul(p, f_from_bits(i_shift_left<23>(exponent)));
}
BANTAM_INLINE int32_t i_total(Ints a) {
  const __m256i s = _mm256_add_epi32(a.v[0], a.v[1]);
  __m128i x = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
BANTAM_INLINE int32_t i_largest(Ints a) {
  const __m256i s = _mm256_max_epi32(a.v[0], a.v[1]);
  __m128i x = _mm_max_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
BANTAM_INLINE void i_store(int32_t* p, Ints a) {
  BANTAM_BOTH(_mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8 * i), a.v[i]));
}
BANTAM_INLINE void i_store_bytes(void* p, Ints a) {
  const __m256i low = _mm256_set1_epi32(255);
  const __m256i a16 =
      _mm256_packus_epi32(_mm256_and_si256(a.v[0], low), _mm256_and_si256(a.v[1], low));
  const __m256i a8 = _mm256_packus_epi16(a16, a16);  // 32-bit parts: 0-3, 8-11, .. | 4-7, 12-15
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0);
  _mm_storeu_si128(static_cast<__m128i*>(p),
                   _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(a8, order)));
}
BANTAM_INLINE __m256i low_bytes(Ints a, Ints b) {
  const __m256i words =
      _mm256_packus_epi16(_mm256_packus_epi32(a.v[0], a.v[1]), _mm256_packus_epi32(b.v[0], b.v[1]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return _mm256_permutevar8x32_epi32(words, order);
}
BANTAM_INLINE void i_store_32_bytes(void* p, Ints a, Ints b) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), low_bytes(a, b));
}
// One integer of each of N vectors by `op`, which may take lanes in any order.
template <int N, class Op>
BANTAM_INLINE Ints i_some(const Ints* v, Op&& op) {
  Floats lanes[N];
  for (int k = 0; k < N; ++k) lanes[k] = f_from_bits(v[k]);
  const auto bits = [&](__m256 a, __m256 b) __attribute__((always_inline)) {
    return _mm256_castsi256_ps(op(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  };
  return {{_mm256_castps_si256(some_trees<N>(lanes, bits)), _mm256_setzero_si256()}};
}
template <int N>
BANTAM_INLINE Ints i_largests(Ints* v) {  // unsigned
  return i_some<N>(
      v,
      [](__m256i a, __m256i b) __attribute__((always_inline)) { return _mm256_max_epu32(a, b); });
}
template <int N>
BANTAM_INLINE Ints i_some_totals(Ints* v) {
  return i_some<N>(
      v,
      [](__m256i a, __m256i b) __attribute__((always_inline)) { return _mm256_add_epi32(a, b); });
}
BANTAM_INLINE Ints i_load_bytes(const std::byte* p) {
  const __m128i x = load_16(p);
  return {{_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))}};
}

// ---- bytes

BANTAM_INLINE Bytes b_load(const std::byte* p) {
  Bytes out;
  BANTAM_BOTH(out.v[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32 * i)));
  return out;
}
BANTAM_INLINE Bytes b_set(int x) {
  const __m256i v = _mm256_set1_epi8(static_cast<char>(x));
  return {{v, v}};
}
BANTAM_PAIR(Bytes, b_sub, _mm256_sub_epi8)
BANTAM_PAIR(Bytes, b_or, _mm256_or_si256)
BANTAM_INLINE void b_store(void* p, Bytes a) {
  BANTAM_BOTH(_mm256_storeu_si256(static_cast<__m256i*>(p) + i, a.v[i]));
}
template <int Bits, int K>
BANTAM_INLINE Bytes b_field(Bytes a) {
  if constexpr (K != 0) BANTAM_BOTH(a.v[i] = _mm256_srli_epi16(a.v[i], Bits * K));
  return i_and(a, b_set((1 << Bits) - 1));
}
template <int N>
BANTAM_INLINE Bytes b_shift_left(Bytes a) {
  BANTAM_BOTH(a.v[i] = _mm256_slli_epi16(a.v[i], N));
  return a;
}
// -1 where the bit is set: 32 bits to 32 bytes.
BANTAM_INLINE __m256i bit_bytes(const std::byte* bits) {
  const __m256i place =
      _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i pick = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  __m256 all = _mm256_broadcast_ss(reinterpret_cast<const float*>(bits));
  // Since few of the bytes are looked at the compiler would load four and permute them.
  asm("" : "+x"(all));
  const __m256i spread = _mm256_shuffle_epi8(_mm256_castps_si256(all), place);
  return _mm256_cmpeq_epi8(_mm256_and_si256(spread, pick), pick);
}
BANTAM_INLINE Bytes b_fifth_bits(const std::byte* plane) {
  Bytes out;
  BANTAM_BOTH(out.v[i] = _mm256_and_si256(bit_bytes(plane + 4 * i), _mm256_set1_epi8(16)));
  return out;
}
BANTAM_INLINE Bytes b_lookup(const int8_t* table16, Bytes index) {
  const __m256i table = _mm256_broadcastsi128_si256(load_16(table16));
  BANTAM_BOTH(index.v[i] = _mm256_shuffle_epi8(table, index.v[i]));
  return index;
}
template <int Bias>
BANTAM_INLINE Bytes b_flip_below(Bytes a, Quad flags) {
  const __m256i below = _mm256_xor_si256(flags, _mm256_set1_epi8(Bias));
  BANTAM_BOTH(a.v[i] = _mm256_sub_epi8(_mm256_xor_si256(a.v[i], flags), below));
  return a;
}
BANTAM_INLINE Bytes b_flip(Bytes a, Quad x) {
  BANTAM_BOTH(a.v[i] = _mm256_xor_si256(a.v[i], x));
  return a;
}
BANTAM_INLINE Quad quad(const void* four) {
  int32_t x;
  __builtin_memcpy(&x, four, 4);
  return _mm256_set1_epi32(x);
}
// The same by one load, here and now: in the loops of attention compilers would load several quads
// into other registers first.
BANTAM_INLINE Quad quad_now(const void* four) {
#if __has_feature(address_sanitizer)
  return quad(four);  // whose access is checked
#else
  Quad out;
  asm("vpbroadcastd %1, %0" : "=x"(out) : "m"(*static_cast<const char(*)[4]>(four)));
  return out;
#endif
}
// Quad number I of Together that lie side by side, as a factor of the products of weights.
template <int I, int Together>
BANTAM_INLINE Quad quad_of(const int8_t* first) {
  return quad(first + 4 * I);
}
BANTAM_INLINE bool sign_bytes(const std::byte* halves, uint8_t* out) {
  const Bytes x = b_load(halves);
  const __m256i packed =
      _mm256_packs_epi16(_mm256_srai_epi16(x.v[0], 15), _mm256_srai_epi16(x.v[1], 15));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute4x64_epi64(packed, 0xd8));
  return _mm256_movemask_epi8(packed) != 0;
}

}  // namespace
}  // namespace bantam

#include "cpu/vec_avx2_products.h"
