// Attention with vectors, the bits of attend_scalar.inl. For K a lane is a position, for V a
// channel, so that no dot product needs a horizontal sum. A tile's block is unpacked once for all
// query rows. Includers choose the vector header first.
#pragma once

#include "codec/kv_codec.h"
#include "cpu/attend_scalar.inl"
#include "cpu/rows_simd.inl"

namespace bantam {
namespace {

template <class Codec>
constexpr bool kIsTable = Codec::bits == 4 && Codec::bias == 128;
// Codes that are signed bytes take the wide products; 4 and 5 bits stay unsigned.
template <class Codec>
constexpr bool kIsWide = Codec::bits == 8 || kIsTable<Codec>;

template <class Codec>
BANTAM_INLINE Bytes nibble_codes(const std::byte* bytes, const std::byte* high, bool upper) {
  const Bytes pair = b_load(bytes);
  const Bytes codes = upper ? b_field<4, 1>(pair) : b_field<4, 0>(pair);
  if constexpr (Codec::bits == 5) return b_or(codes, b_fifth_bits(high));
  return codes;
}

// 16 positions (half 0 or 1) x 4 channels of quad i, ready for key_add.
template <class Codec>
BANTAM_INLINE Bytes key_codes(const std::byte* tile, const KvTileLayout& at, int i, int half) {
  if constexpr (Codec::bits == 8) {
    return wide_code(b_load(tile + i * 128 + half * 64));
  } else {
    const std::byte* high = tile + at.high + i * 16 + half * 8;
    const Bytes codes = nibble_codes<Codec>(tile + i / 2 * 128 + half * 64, high, i % 2 != 0);
    if constexpr (kIsTable<Codec>) return wide_code(b_lookup(kIq4Table, codes));
    return codes;
  }
}

template <class Codec, bool Wide = Codec::bits != 4 || kIsTable<Codec>>
struct KeyDot {
  WideAcc acc = {};
  static constexpr int bias = kIsWide<Codec> ? kWideBias : Codec::bias;
  BANTAM_INLINE void add(Bytes code, Quad x) { wide_add(acc, code, x); }
  BANTAM_INLINE Ints sum() const { return wide_sum(acc); }
};
template <class Codec>
struct KeyDot<Codec, false> {
  SmallAcc acc = {};
  static constexpr int bias = Codec::bias;
  BANTAM_INLINE void add(Bytes code, Quad x) { small_add(acc, code, x); }
  BANTAM_INLINE Ints sum() const { return small_sum(acc); }
};

// Sixteen channels (half of block b) x 4 positions of quad i, as signed values.
template <class Codec>
BANTAM_INLINE Bytes value_codes(const std::byte* tile, const KvTileLayout& at, int head_dim, int i,
                                int b, int half) {
  if constexpr (Codec::bits == 8) {
    return b_load(tile + int64_t{i} * head_dim * 4 + b * 128 + half * 64);
  } else {
    const std::byte* high = tile + at.high + (int64_t{i} * (head_dim / 16) + b * 2 + half) * 8;
    const std::byte* bytes = tile + int64_t{i} * head_dim * 2 + b * 64;
    const Bytes codes = nibble_codes<Codec>(bytes, high, half != 0);
    if constexpr (kIsTable<Codec>) return b_lookup(kIq4Table, codes);
    return b_sub(codes, b_set(Codec::bias));
  }
}

// ---- scores, quantized K

// Block b of the tile for all rows: s accumulates in args.s.
template <class Codec>
inline void score_block(const ScoreArgs& args, const KvTileLayout& at, int b) {
  const int hd = args.head_dim;
  Bytes keys[8][2];
  for (int i = 0; i < 8; ++i) {
    for (int h = 0; h < 2; ++h) keys[i][h] = key_codes<Codec>(args.tile, at, 8 * b + i, h);
  }
  Floats d[2], m[2];
  for (int h = 0; h < 2; ++h) {
    d[h] = f_halves(args.tile + at.scales + b * 64 + h * 32);
    if (Codec::minimum) m[h] = f_halves(args.tile + at.minima + b * 64 + h * 32);
  }
  for (int r = 0; r < args.n_rows; ++r) {
    const int8_t* q = args.q + int64_t{r} * hd + 32 * b;
    const int16_t* sums = args.sums16 + int64_t{r} * (hd / 16) + 2 * b;
    const int32_t sum = sums[0] + sums[1];
    // Two chains cover the latency of the products.
    KeyDot<Codec> even[2], odd[2];
    for (int i = 0; i < 8; i += 2) {
      const Quad x = quad(q + 4 * i), y = quad(q + 4 * i + 4);
      for (int h = 0; h < 2; ++h) {
        even[h].add(keys[i][h], x);
        odd[h].add(keys[i + 1][h], y);
      }
    }
    const Ints bias = i_set(KeyDot<Codec>::bias * sum);
    float* out = args.s + r * args.s_stride;
    for (int h = 0; h < 2; ++h) {
      Ints dot = i_add(even[h].sum(), odd[h].sum());
      if constexpr (KeyDot<Codec>::bias != 0) dot = i_sub(dot, bias);
      Floats s = b == 0 ? f_zero() : f_load(out + 16 * h);
      s = f_fma(f_from_ints(dot), d[h], s);
      if (Codec::minimum) s = f_fma(f_set(static_cast<float>(sum)), m[h], s);
      if (b == hd / 32 - 1) s = f_mul(s, f_set(args.scale[r]));
      f_store(out + 16 * h, s);
    }
  }
}

template <class Codec>
void scores_quant_simd(const ScoreArgs& args) {
  const KvTileLayout at = layout_of<Codec>(args.head_dim);
  for (int b = 0; b < args.head_dim / 32; ++b) score_block<Codec>(args, at, b);
}

// ---- scores, float K

template <class Float>
BANTAM_INLINE Floats load_floats(const std::byte* p) {
  if constexpr (Float::bytes == 4) {
    return f_load(reinterpret_cast<const float*>(p));
  } else if constexpr (Float::brain) {
    return f_brains(p);
  } else {
    return f_halves(p);
  }
}

// A tile of 16-bit floats as floats, for several rows of queries: every row would convert it anew.
constexpr int kMostHeadDim = 256;
template <class Float>
struct FloatTile {
  alignas(64) float x[32 * kMostHeadDim];

  FloatTile(const std::byte* tile, int n_positions, int head_dim) {
    for (int i = 0; i < n_positions * head_dim; i += 16) {
      f_store(x + i, load_floats<Float>(tile + int64_t{i} * Float::bytes));
    }
  }
  const std::byte* data() const { return reinterpret_cast<const std::byte*>(x); }
};

template <class Float>
inline void score_floats(const ScoreArgs& args, const std::byte* tile) {
  const int hd = args.head_dim;
  for (int first = 0; first < 32; first += 16) {
    const std::byte* keys = tile + int64_t{first} * hd * Float::bytes;
    for (int r = 0; r < args.n_rows; ++r) {
      const float* q = args.qf + int64_t{r} * hd;
      Floats lanes[16];
      for (int k0 = 0; k0 < 16; k0 += kFloatKeys) {
        for (int k = k0; k < k0 + kFloatKeys; ++k) lanes[k] = f_zero();
        for (int c = 0; c < hd; c += 16) {
          const Floats x = f_load(q + c);
          for (int k = k0; k < k0 + kFloatKeys; ++k) {
            const Floats key = load_floats<Float>(keys + (int64_t{k} * hd + c) * Float::bytes);
            lanes[k] = f_fma(x, key, lanes[k]);
          }
        }
      }
      f_store(args.s + r * args.s_stride + first, f_mul(f_trees(lanes), f_set(args.scale[r])));
    }
  }
}

template <class Float>
void scores_float_simd(const ScoreArgs& args) {
  if (Float::bytes == 4 || args.n_rows == 1) return score_floats<Float>(args, args.tile);
  const FloatTile<Float> tile(args.tile, 32, args.head_dim);
  score_floats<CodecOf<KvType::f32>>(args, tile.data());
}

// ---- weighted sums, quantized V

// Rule 5: u8 weights of one row and block into u[32]; returns c (0: nothing to add, NaN: not
// finite).
BANTAM_INLINE float tile_weights_simd(const float* p, const Floats* d, int n_visible, uint8_t* u) {
  const Floats w0 = f_select(m_first(n_visible), f_mul(f_load(p), d[0]), f_zero());
  const Floats w1 = f_select(m_first(n_visible - 16), f_mul(f_load(p + 16), d[1]), f_zero());
  const Ints magnitude = i_set(0x7fffffff);
  const uint32_t largest = static_cast<uint32_t>(
      i_largest(i_max(i_and(i_bits(w0), magnitude), i_and(i_bits(w1), magnitude))));
  if (largest >= 0x7f800000u) {
    __builtin_memset(u, 0, 32);
    return float_of(0x7fc00000u);
  }
  const float x = float_of(largest);
  if (x < kTinyMagnitude) return 0.0f;
  const Floats r = f_set(255.0f / x);
  i_store_bytes(u, i_round(f_mul(w0, r)));
  i_store_bytes(u + 16, i_round(f_mul(w1, r)));
  return x / 255.0f;
}

// Block b of the tile, values unpacked once with the signs of their scales.
template <class Codec>
struct ValueBlock {
  Bytes values[8][2];
  Ints correction[2];
  Floats d[2];  // |d_v|
  Floats m[2];

  BANTAM_INLINE ValueBlock(const std::byte* tile, const KvTileLayout& at, int head_dim, int b) {
    const std::byte* scales = tile + at.scales + b * 64;
    alignas(32) uint8_t sign[32];
    sign_bytes(scales, sign);
    for (int h = 0; h < 2; ++h) {
      d[h] = f_abs(f_halves(scales + 32 * h));
      if (Codec::minimum) m[h] = f_halves(tile + at.minima + b * 64 + 32 * h);
    }
    for (int i = 0; i < 8; ++i) {
      const Quad flip = quad(sign + 4 * i);
      for (int h = 0; h < 2; ++h) {
        values[i][h] = b_flip(value_codes<Codec>(tile, at, head_dim, i, b, h), flip);
      }
    }
    if constexpr (kValueCorrection) {
      for (int h = 0; h < 2; ++h) correction[h] = value_correction(&values[0][h], 2);
    }
  }
};

template <class Codec>
BANTAM_INLINE void weigh_row(const ValueBlock<Codec>& block, const float* p, int n_visible,
                             float* acc) {
  alignas(32) uint8_t u[32];
  const float c = tile_weights_simd(p, block.d, n_visible, u);
  Floats out[2] = {f_load(acc), f_load(acc + 16)};
  if (!(c == 0.0f)) {
    ValueAcc even[2] = {}, odd[2] = {};
    for (int i = 0; i < 8; i += 2) {
      const Quad x = weight_quad(u + 4 * i), y = weight_quad(u + 4 * i + 4);
      for (int h = 0; h < 2; ++h) {
        value_add<Codec::bits == 8 || kIsTable<Codec> ? 8 : 5>(even[h], block.values[i][h], x);
        value_add<Codec::bits == 8 || kIsTable<Codec> ? 8 : 5>(odd[h], block.values[i + 1][h], y);
      }
    }
    for (int h = 0; h < 2; ++h) {
      Ints sum = i_add(value_sum(even[h]), value_sum(odd[h]));
      if constexpr (kValueCorrection) sum = i_add(sum, block.correction[h]);
      out[h] = f_fma(f_from_ints(sum), f_set(c), out[h]);
    }
  }
  if constexpr (Codec::minimum) {
    const Mask low = m_first(n_visible), high = m_first(n_visible - 16);
    Floats lanes = f_select(low, f_fma(f_load(p), block.m[0], f_zero()), f_zero());
    lanes = f_select(high, f_fma(f_load(p + 16), block.m[1], lanes), lanes);
    const Floats sum = f_set(f_tree(lanes));
    for (int h = 0; h < 2; ++h) out[h] = f_add(out[h], sum);
  }
  f_store(acc, out[0]);
  f_store(acc + 16, out[1]);
}

template <class Codec>
void weigh_quant_simd(const WeighArgs& args) {
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
BANTAM_INLINE void weigh_floats(const std::byte* tile, int head_dim, int c, const float* p,
                                int n_visible, float* acc) {
  Floats sum[N];
  for (int i = 0; i < N; ++i) sum[i] = f_load(acc + 16 * i);
  for (int pos = 0; pos < n_visible; ++pos) {
    const std::byte* row = tile + (int64_t{pos} * head_dim + c) * Float::bytes;
    const Floats weight = f_set(p[pos]);
    for (int i = 0; i < N; ++i) {
      sum[i] = f_fma(weight, load_floats<Float>(row + 16 * i * Float::bytes), sum[i]);
    }
  }
  for (int i = 0; i < N; ++i) f_store(acc + 16 * i, sum[i]);
}

template <class Float>
inline void weigh_rows(const WeighArgs& args, const std::byte* tile) {
  const int hd = args.head_dim;
  for (int r = 0; r < args.n_rows; ++r) {
    const float* p = args.p + r * args.p_stride;
    float* acc = args.acc + int64_t{r} * hd;
    int c = 0;
    for (; c + 16 * kFloatChannels <= hd; c += 16 * kFloatChannels)
      weigh_floats<Float, kFloatChannels>(tile, hd, c, p, args.n_visible[r], acc + c);
    for (; c < hd; c += 32) weigh_floats<Float, 2>(tile, hd, c, p, args.n_visible[r], acc + c);
  }
}

template <class Float>
void weigh_float_simd(const WeighArgs& args) {
  if (Float::bytes == 4 || args.n_rows == 1) return weigh_rows<Float>(args, args.tile);
  const FloatTile<Float> tile(args.tile, 32, args.head_dim);
  weigh_rows<CodecOf<KvType::f32>>(args, tile.data());
}

template <KvType Type>
void put_kv_simd(KvKernels& slot) {
  using Codec = CodecOf<Type>;
  if constexpr (info(Type).quantized) {
    slot.scores = scores_quant_simd<Codec>;
    slot.weigh = weigh_quant_simd<Codec>;
  } else {
    slot.scores = scores_float_simd<Codec>;
    slot.weigh = weigh_float_simd<Codec>;
  }
  // The stores are scalar text, compiled here once more with wider vectors: the same bits.
  const KvKernels scalar = kv_kernels<Type>();
  slot.store_k = scalar.store_k;
  slot.store_v = scalar.store_v;
}

void fill_attend_simd(Kernels& table) {
#define KV_TYPE(name, bytes32, quantized, minimum) \
  put_kv_simd<KvType::name>(table.kv[static_cast<int>(KvType::name)]);
#include "codec/kv_types.def"
#undef KV_TYPE
}

}  // namespace
}  // namespace bantam
