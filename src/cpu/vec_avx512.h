// The vocabulary of the SIMD kernels (rows_simd.inl, weights_simd.inl, attend_simd.inl) for AVX-512
// with VNNI, VBMI and GFNI. Every vector header offers the same names: 16 floats, 16 int32 and 64
// bytes at a time, whatever the registers are, so that one text of the kernels serves all CPUs with
// the same bits. Owns no memory, refuses nothing. Internal linkage: ISA files emit no weak symbols.
//
// Products. A `Quad` is four int8 activations repeated for 16 lanes; a lane of codes is the four
// codes of one row (or position, or channel). Three strengths, each with an accumulator of its own:
//   bit_*    codes are one bit of a word of planes        up to 32 quads to an accumulator
//   small_*  unsigned codes; code * quads <= 120           for example 15 x 8 quads, 3 x 32 quads
//   wide_*   codes of wide_code(signed bytes), biased by kWideBias, or unsigned up to 63
//   value_*  signed bytes against unsigned weights 0..255 (rule 5), up to 8 quads
//   code_*, wide_key_add  the same for keys of attention against queries: unsigned codes, wide_code
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "codec/half.h"
#include "codec/numerics.h"

namespace bantam {
namespace {

#define BANTAM_INLINE inline __attribute__((always_inline))
// The eight quads of a block of attention.
#define BANTAM_EACH_QUAD(i) for (int i = 0; i < 8; ++i)

typedef __m512 Floats;
typedef __m512i Ints;
typedef __m512i Bytes;
typedef __m512i Quad;
typedef __mmask16 Mask;

// Rows of activations that share one unpacked weight: as many accumulators as registers allow.
constexpr int kTileTokens = 24;
constexpr int kTileTokensSmall = 24;
constexpr int kTileTokensWide = 24;
// Whether several rows take the 2 x 2 matrix products of pairs_i8mm.inl.
constexpr bool kPairedRows = false;
// Independent chains of a single row, to cover the latency of the dot instruction.
constexpr int kChains = 4;
constexpr int kSumsInFlight = 16;  // chains of all sums together, with several rows
// Rows of u8 weights whose products overlap.
constexpr int kWeighRows = 2;
// Chains of a sum of eight products in attention: a single one fills the scheduler with products
// that wait. Xeon, one thread, 64 rows, 1, 2, 4 chains: q8_0 scores 148, 168, 158 GMAC/s, weighted
// sums (two rows overlap) 99 and 104.
constexpr int kSumChains = 2;
// Whether weights of head sizes 64 and 128 have code of their own.
constexpr bool kKnownPairs = true;
constexpr bool kKnownPairsOfMinima = true;
// Whether few rows of table values are flipped like codes (FewRows).
constexpr bool kFlipsTables = true;
// Whether sums of products in attention can start from any number (sum_start): then wide,
// code and value sums are of one type.
constexpr bool kSumsStartAnywhere = true;
constexpr int kExpsTogether = 4;
// Vectors of float keys and of float channels that are summed at a time.
constexpr int kFloatKeys = 16;
// Rows that share a float once it is in a register; with up to kFloatRowsInPlace rows 16-bit floats
// are converted where they are used, with more they are converted once for all.
constexpr int kFloatRows = 2;
constexpr int kWeighFloatRows = 6;  // the same of values
constexpr int kFloatRowsInPlace = 4;
constexpr int kFloatChannels = 24;
// From turned_from(head size, bytes of a float) rows on keys are turned, a position to a lane
// (attend_turned.inl), and shared by kTurnedRows rows. Zen 4, cycles for the keys of a tile, 16 and
// 64 rows, not turned -> turned: head size 64 f16 3460, 13000 -> 3460, 10600, f32 2990, 11300 ->
// 3150, 10200; 128 f16 5840, 21600 -> 6400, 19800, f32 4880, 18950 -> 6250, 20100. By these 48 rows
// gain there; larger heads were not measured.
#define BANTAM_TURNED_KEYS 1
constexpr int kTurnedRows = 4;
constexpr int kNeverTurned = 1 << 30;
struct Turned {
  int from_rows = 16;
  int most_float_bytes = 1 << 30;  // of a key
};
[[maybe_unused]] Turned turned;  // set once, by fill_avx512
BANTAM_INLINE int turned_from(int head_dim, int float_bytes) {
  return head_dim * float_bytes <= turned.most_float_bytes ? turned.from_rows : kNeverTurned;
}
// How far ahead of a single row the next bytes of the packed stream are asked for, and into which
// cache: 2 is L2. Measured on tg64 in tok/s. Xeon, 1.7B Q1_0, L1, 1, 2, 4, 8, 16 KiB: 56, 62, 71,
// 74, 73. Zen 4, SmolLM2 Q4_1, L2, none, 2, 8 KiB: 325, 341, 261; asking for L1 halves its speed.
struct Ahead {
  int bytes = 8192;
  int table_bytes = 8192;  // of products by tables
};
Ahead ahead;  // set once, by fill_avx512
constexpr int kPrefetchLevel = 2;
// Attention may ask for several streams (AheadLines); others know one tile to ask for.
#define BANTAM_AHEAD_STREAMS 1
BANTAM_INLINE int prefetch_bytes() { return ahead.bytes; }

// ---- floats

BANTAM_INLINE Floats f_zero() { return _mm512_setzero_ps(); }
BANTAM_INLINE Floats f_set(float x) { return _mm512_set1_ps(x); }
BANTAM_INLINE Floats f_load(const float* p) { return _mm512_loadu_ps(p); }
BANTAM_INLINE void f_store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
BANTAM_INLINE Mask m_first(int n) {
  return n >= 16 ? Mask(0xffff) : static_cast<Mask>((1u << (n < 0 ? 0 : n)) - 1);
}
BANTAM_INLINE Floats f_load_n(const float* p, int n) {
  return _mm512_maskz_loadu_ps(m_first(n), p);
}
BANTAM_INLINE void f_store_n(float* p, Floats x, int n) { _mm512_mask_storeu_ps(p, m_first(n), x); }
BANTAM_INLINE Floats f_add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
BANTAM_INLINE Floats f_sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
BANTAM_INLINE Floats f_mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
BANTAM_INLINE Floats f_div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
BANTAM_INLINE Floats f_max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
BANTAM_INLINE float f_largest(Floats a) { return _mm512_reduce_max_ps(a); }
// p * 2^n for integers n whose power is a normal float.
BANTAM_INLINE Floats f_scale(Floats p, Floats n) { return _mm512_scalef_ps(p, n); }
BANTAM_INLINE Floats f_fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
BANTAM_INLINE Mask m_less(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
BANTAM_INLINE Mask m_nan(Floats a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
// a where the mask is set, else b.
BANTAM_INLINE Floats f_select(Mask m, Floats a, Floats b) { return _mm512_mask_mov_ps(b, m, a); }
BANTAM_INLINE Mask m_not_less(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
// a where the mask is set, else +0.
BANTAM_INLINE Floats f_only(Mask m, Floats a) { return _mm512_maskz_mov_ps(m, a); }
BANTAM_INLINE Floats f_from_bits(Ints x) { return _mm512_castsi512_ps(x); }
BANTAM_INLINE Ints i_bits(Floats x) { return _mm512_castps_si512(x); }
BANTAM_INLINE Floats f_halves(const std::byte* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
BANTAM_INLINE Floats f_brains(const std::byte* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return f_from_bits(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
// Rule 2: lane j + lane j + 8, then + 4, + 2, + 1.
BANTAM_INLINE float f_tree(Floats x) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
// Butterfly of rule 6 inside the vector: partner lane = lane ^ Stride.
template <int Stride>
BANTAM_INLINE Floats f_butterfly(Floats x) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const Floats partner =
      _mm512_permutexvar_ps(_mm512_xor_si512(lane, _mm512_set1_epi32(Stride)), x);
  const Mask upper = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(Stride));
  return _mm512_mask_sub_ps(_mm512_add_ps(x, partner), upper, partner, x);
}
// Lanes 2 i and 2 i + 1 change places.
BANTAM_INLINE Floats f_neighbours(Floats x) { return _mm512_permute_ps(x, 0xb1); }
// Eight floats, each in two neighbouring lanes.
BANTAM_INLINE Floats f_twice(const float* p) {
  const __m512i lane = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return _mm512_permutexvar_ps(lane, _mm512_castps256_ps512(_mm256_loadu_ps(p)));
}

BANTAM_INLINE Mask m_equal(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
BANTAM_INLINE Mask m_equal_ints(Ints a, Ints b) { return _mm512_cmpeq_epi32_mask(a, b); }
// The first of 32 lanes that is set; 31 if none is (rows with NaN).
BANTAM_INLINE int m_first_of(Mask low, Mask high) {
  return __builtin_ctz(uint32_t{low} | uint32_t{high} << 16 | 0x80000000u);
}

// ---- int32

BANTAM_INLINE Ints i_zero() { return _mm512_setzero_si512(); }
BANTAM_INLINE Ints i_set(int32_t x) { return _mm512_set1_epi32(x); }
BANTAM_INLINE Ints i_add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
BANTAM_INLINE Ints i_sub(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
BANTAM_INLINE Ints i_mul(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
BANTAM_INLINE Ints i_and(Ints a, Ints b) { return _mm512_and_si512(a, b); }
BANTAM_INLINE Ints i_xor(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
BANTAM_INLINE Ints i_max(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
BANTAM_INLINE Ints i_max_unsigned(Ints a, Ints b) { return _mm512_max_epu32(a, b); }
template <int N>
BANTAM_INLINE Ints i_shift_left(Ints a) {
  return _mm512_slli_epi32(a, N);
}
template <int N>
BANTAM_INLINE Ints i_shift_right(Ints a) {  // arithmetic
  return _mm512_srai_epi32(a, N);
}
BANTAM_INLINE Floats f_from_ints(Ints a) { return _mm512_cvtepi32_ps(a); }
// float(Mult * dot - Bias * *sum), whose magnitude is at most Most.
template <int Mult, int Bias, int Most>
BANTAM_INLINE Floats f_of_dot(Ints dot, const int32_t* sum) {
  if constexpr (Mult == 2) dot = i_add(dot, dot);
  if constexpr (Bias != 0) dot = i_sub(dot, i_set(Bias * *sum));
  return f_from_ints(dot);
}
BANTAM_INLINE Ints i_round(Floats x) { return _mm512_cvtps_epi32(x); }
BANTAM_INLINE int32_t i_total(Ints a) { return _mm512_reduce_add_epi32(a); }
BANTAM_INLINE int32_t i_largest(Ints a) { return _mm512_reduce_max_epi32(a); }
BANTAM_INLINE void i_store(int32_t* p, Ints a) { _mm512_storeu_si512(p, a); }
// The low bytes of 16 lanes.
BANTAM_INLINE void i_store_bytes(void* p, Ints a) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
}
// The low bytes of 32 lanes; in 0..255, or what they are does not matter.
BANTAM_INLINE void i_store_32_bytes(void* p, Ints a, Ints b) {
  alignas(64) static constexpr uint8_t kLowBytes[64] = {
      0,  4,  8,  12, 16, 20, 24, 28, 32, 36,  40,  44,  48,  52,  56,  60,
      64, 68, 72, 76, 80, 84, 88, 92, 96, 100, 104, 108, 112, 116, 120, 124};
  const __m512i both = _mm512_permutex2var_epi8(a, _mm512_load_si512(kLowBytes), b);
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_castsi512_si256(both));
}
BANTAM_INLINE Ints i_load_bytes(const std::byte* p) {  // signed
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// ---- bytes

BANTAM_INLINE Bytes b_load(const std::byte* p) { return _mm512_loadu_si512(p); }
BANTAM_INLINE Bytes b_set(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
BANTAM_INLINE Bytes b_sub(Bytes a, Bytes b) { return _mm512_sub_epi8(a, b); }
BANTAM_INLINE Bytes b_or(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
BANTAM_INLINE void b_store(void* p, Bytes a) { _mm512_storeu_si512(p, a); }
// Codes of Bits bits, number K from the low end of each byte.
template <int Bits, int K>
BANTAM_INLINE Bytes b_field(Bytes a) {
  const Bytes part = K == 0 ? a : _mm512_srli_epi16(a, Bits * K);
  return _mm512_and_si512(part, b_set((1 << Bits) - 1));
}
template <int N>
BANTAM_INLINE Bytes b_shift_left(Bytes a) {  // no bit may leave its byte
  return _mm512_slli_epi16(a, N);
}
// 16 where the bit of the plane is set, bit n belonging to byte n.
BANTAM_INLINE Bytes b_fifth_bits(const std::byte* plane) {
  uint64_t bits;
  __builtin_memcpy(&bits, plane, 8);
  return _mm512_maskz_mov_epi8(_cvtu64_mask64(bits), b_set(16));
}
BANTAM_INLINE Bytes b_lookup(const int8_t* table16, Bytes index) {
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table16));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), index);
}
// a - Bias, negated where the flag byte (0 or -1) is set: ~a - ~Bias = Bias - a.
template <int Bias>
BANTAM_INLINE Bytes b_flip_below(Bytes a, Quad flags) {
  return b_sub(_mm512_xor_si512(a, flags), _mm512_xor_si512(flags, b_set(Bias)));
}
// The bits of every lane that are set in x change.
BANTAM_INLINE Bytes b_flip(Bytes a, Quad x) { return _mm512_xor_si512(a, x); }

BANTAM_INLINE Quad quad(const void* four) {
  int32_t x;
  __builtin_memcpy(&x, four, 4);
  return _mm512_set1_epi32(x);
}
// Quad number I of Together that lie side by side, as a factor of the products of weights.
template <int I, int Together>
BANTAM_INLINE Quad quad_of(const int8_t* first) {
  return quad(first + 4 * I);
}
// 0 or -1 for each of 32 fp16: its sign. Whether there is a negative one.
BANTAM_INLINE bool sign_bytes(const std::byte* halves, uint8_t* out) {
  const __mmask32 negative = _mm512_movepi16_mask(_mm512_loadu_si512(halves));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_movm_epi8(negative));
  return negative != 0;
}

// ---- products

struct BitAcc {
  __m512i v = _mm512_setzero_si512();
};
typedef BitAcc SmallAcc;
typedef BitAcc WideAcc;
template <int>
using CodeAcc = BitAcc;
template <int>
using ValueAcc = BitAcc;
constexpr int kBitMult = 1;  // of bit_sum, for values of -1 and 1
constexpr int kWideBias = 128;
constexpr bool kValueCorrection = false;
BANTAM_INLINE Ints value_correction(const Bytes*, int) { return _mm512_setzero_si512(); }

BANTAM_INLINE void dot_step(BitAcc& acc, Bytes unsigned_bytes, Bytes signed_bytes) {
  acc.v = _mm512_dpbusd_epi32(acc.v, unsigned_bytes, signed_bytes);
}
// Bit K of every byte as 0 or 2: one affine map over GF(2) whose only row picks that bit.
template <int K>
BANTAM_INLINE Bytes bit_code(Bytes word) {
  const __m512i pick = _mm512_set1_epi64(static_cast<int64_t>(uint64_t{1} << (48 + K)));
  return _mm512_gf2p8affine_epi64_epi8(word, pick, 0);
}
BANTAM_INLINE void bit_add(BitAcc& acc, Bytes code, Quad x) { dot_step(acc, code, x); }
BANTAM_INLINE Ints bit_sum(BitAcc acc) { return acc.v; }
// InOrder: vec_avx2_products.h.
template <bool = true>
BANTAM_INLINE void small_add(SmallAcc& acc, Bytes code, Quad x) {
  dot_step(acc, code, x);
}
BANTAM_INLINE Ints small_sum(SmallAcc acc) { return acc.v; }
BANTAM_INLINE Bytes wide_code(Bytes signed_codes) {
  return _mm512_xor_si512(signed_codes, b_set(0x80));
}
BANTAM_INLINE void wide_add(WideAcc& acc, Bytes code, Quad x) { dot_step(acc, code, x); }
// Codes from 0 to 63.
BANTAM_INLINE void six_bits_add(WideAcc& acc, Bytes code, Quad x) { dot_step(acc, code, x); }
BANTAM_INLINE Ints wide_sum(WideAcc acc) { return acc.v; }
// Products of attention: keys as signed bytes, as codes up to Largest, values up to Largest; of the
// quads i = 0 to 7 of a block in turn.
BANTAM_INLINE void wide_key_add(WideAcc& acc, Bytes code, Quad x) { dot_step(acc, code, x); }
template <int Largest>
BANTAM_INLINE void code_add(BitAcc& acc, int, Bytes code, Quad x) {
  dot_step(acc, code, x);
}
template <int Largest>
BANTAM_INLINE Ints code_sum(BitAcc acc) {
  return acc.v;
}
// Of the weights beside values up to Largest; where kSplitsWeights, those beside 128 are two half
// bytes.
constexpr bool kSplitsWeights = false;
template <int>
BANTAM_INLINE Quad weight_quad(const uint8_t* four, const uint8_t*) {
  return quad(four);
}
template <int Largest>
BANTAM_INLINE void value_add(BitAcc& acc, int, Bytes values, Quad weights) {
  dot_step(acc, weights, values);
}
BANTAM_INLINE BitAcc sum_start(int32_t x) { return {_mm512_set1_epi32(x)}; }
template <int Largest>
BANTAM_INLINE Ints value_sum(BitAcc acc) {
  return acc.v;
}

// A block's sign bytes (0 or -1) become the bits of a code that they flip, and factors Bias or
// Bias - 1 are stored.
template <int Bias>
BANTAM_INLINE void store_factors(uint8_t* signs, int8_t* out) {
  __m256i* flips = reinterpret_cast<__m256i*>(signs);
  const __m256i sign = _mm256_loadu_si256(flips);
  _mm256_storeu_si256(flips, _mm256_and_si256(sign, _mm256_set1_epi8(2 * Bias - 1)));
  _mm256_store_si256(reinterpret_cast<__m256i*>(out),
                     _mm256_add_epi8(sign, _mm256_set1_epi8(Bias)));
}
// The low bytes of four vectors of 0..255 (what NaN became does not matter): two times 32 weights.
BANTAM_INLINE Bytes weights_of(Ints a, Ints b, Ints c, Ints d) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(
      order, _mm512_packus_epi16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d)));
}
// out[k] = -(sum of weights * factors of its block) of N = 4 or 8 times 32 weights; 8 are written.
template <int N>
BANTAM_INLINE void weight_corrections(const Bytes* weights, const int8_t* factors,
                                      const int* blocks, int32_t* out) {
  const auto of_block = [&](int k) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(factors + 32 * blocks[k]));
  };
  __m512i v[4] = {};
  for (int i = 0; i < N / 2; ++i) {
    const __m512i both =
        _mm512_inserti64x4(_mm512_castsi256_si512(of_block(2 * i)), of_block(2 * i + 1), 1);
    v[i] = _mm512_dpbusd_epi32(v[i], weights[i], both);
  }
  for (int i = 0; i < 2; ++i) {
    const __m512i a = v[2 * i], b = v[2 * i + 1];
    v[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
  }
  const __m512i x =
      _mm512_add_epi32(_mm512_unpacklo_epi64(v[0], v[1]), _mm512_unpackhi_epi64(v[0], v[1]));
  const __m512i sums = _mm512_add_epi32(x, _mm512_shuffle_epi32(x, _MM_PERM_CDAB));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m512i totals =
      _mm512_permutexvar_epi32(order, _mm512_sub_epi32(_mm512_setzero_si512(), sums));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_castsi512_si256(totals));
}

// The trees of rule 2 for 16 vectors at once: lane k of the result is the sum of v[k]'s lanes.
BANTAM_INLINE Floats f_trees(Floats* v) {
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

// 16 rows of 16 floats, `stride` apart: v[k] becomes column k. Rows are put together by
// loads, for shuffles have one port on Intel.
BANTAM_INLINE void f_turn(const float* rows, int64_t stride, Floats* v) {
  for (int quad = 0; quad < 4; ++quad) {
    Floats w[4];
    for (int e = 0; e < 4; ++e) {
      const float* p = rows + e * stride + 4 * quad;
      Floats x = _mm512_castps128_ps512(_mm_loadu_ps(p));
      x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 4 * stride), 1);
      x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 8 * stride), 2);
      w[e] = _mm512_insertf32x4(x, _mm_loadu_ps(p + 12 * stride), 3);
    }
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(w[0], w[1]));
    const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(w[0], w[1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(w[2], w[3]));
    const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(w[2], w[3]));
    v[4 * quad] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    v[4 * quad + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    v[4 * quad + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    v[4 * quad + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
}

// For N = 4 or 8 vectors: sums and maxima of vector k are in this lane of the result.
template <int N>
BANTAM_INLINE constexpr int some_lane(int k) {
  return k % 4 * 4 + k / 4 * 2;
}
// Each of those lanes has a partner: f_partners copies them there, m_partners says which they are.
BANTAM_INLINE Floats f_partners(Floats x) { return x; }  // the last step of maxima made them equal
BANTAM_INLINE Mask m_partners() { return 0xaaaa; }
// The lanes of N vectors, one after the other; and their partners.
template <int N>
BANTAM_INLINE void f_store_some(float* p, Floats x) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m256 some = _mm512_castps512_ps256(_mm512_permutexvar_ps(order, x));
  N == 8 ? _mm256_storeu_ps(p, some) : _mm_storeu_ps(p, _mm256_castps256_ps128(some));
}
template <int N>
BANTAM_INLINE void f_store_partners(float* p, Floats x) {
  const __m512i order = _mm512_setr_epi32(1, 5, 9, 13, 3, 7, 11, 15, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m256 partners = _mm512_castps512_ps256(_mm512_permutexvar_ps(order, x));
  N == 8 ? _mm256_storeu_ps(p, partners) : _mm_storeu_ps(p, _mm256_castps256_ps128(partners));
}
// Single values of x are then broadcast by loads; out of registers each would take a shuffle.
template <class X>
BANTAM_INLINE void in_memory(X& x) {
  asm("" : "+m"(x));
}
template <int N>
BANTAM_INLINE Floats f_some_trees(Floats* v) {
  for (int i = 0; i < N / 2; ++i) {
    const __m512 a = v[2 * i], b = v[2 * i + 1];
    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
  for (int i = 0; i < N / 4; ++i) {
    const __m512 a = v[2 * i], b = v[2 * i + 1];
    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  const __m512d a = _mm512_castps_pd(v[0]), b = _mm512_castps_pd(v[N / 8]);
  const __m512 x = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                 _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  return _mm512_add_ps(x, _mm512_permute_ps(x, 0xb1));
}
// All lanes of each of N vectors into one by `join`.
template <int N, class Join>
BANTAM_INLINE Ints i_joined(Ints* v, Join join) {
  for (int i = 0; i < N / 2; ++i) {
    const __m512i a = v[2 * i], b = v[2 * i + 1];
    v[i] = join(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));
  }
  for (int i = 0; i < N / 4; ++i) {
    const __m512i a = v[2 * i], b = v[2 * i + 1];
    v[i] = join(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
  }
  const __m512i a = v[0], b = v[N / 8];
  const Ints x = join(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  return join(x, _mm512_shuffle_epi32(x, _MM_PERM_CDAB));
}
template <int N>
BANTAM_INLINE Ints i_largests(Ints* v) {  // unsigned
  return i_joined<N>(
      v, [](Ints a, Ints b) __attribute__((always_inline)) { return i_max_unsigned(a, b); });
}
template <int N>
BANTAM_INLINE Ints i_some_totals(Ints* v) {
  return i_joined<N>(
      v, [](Ints a, Ints b) __attribute__((always_inline)) { return i_add(a, b); });
}

}  // namespace
}  // namespace bantam
