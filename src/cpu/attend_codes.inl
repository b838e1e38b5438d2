// Codes and floats of KV tiles in registers: unpacking only, no arithmetic of attention. Includers
// choose the vector header first.
#pragma once

#include "codec/kv_codec.h"
#include "cpu/attend_scalar.inl"
#include "cpu/rows_simd.inl"

namespace bantam {
namespace {

constexpr int kMostHeadDim = 256;
// Query rows that share what is worked out once for a tile: a block of the backend.
constexpr int kRowsTogether = 64;

template <class Codec>
constexpr bool kIsTable = Codec::bits == 4 && Codec::bias == 128;
// Codes that are signed bytes take the wide products; 4 and 5 bits stay unsigned.
template <class Codec>
constexpr bool kIsWide = Codec::bits == 8 || kIsTable<Codec>;

// The line to ask for in place of the one at `offset` of this tile.
BANTAM_INLINE const std::byte* line_ahead(const AheadLines& ahead, int64_t offset) {
#if defined(BANTAM_AHEAD_STREAMS)
  const auto at = static_cast<uint64_t>(offset);
  return ahead.eight[at / AheadLines::kEightBytes] + at % AheadLines::kEightBytes;
#else
  return ahead.eight[0] + offset;
#endif
}

// One by one between the products: a burst of requests would hold up what is read now.
BANTAM_INLINE void ask_for(const AheadLines& ahead, int64_t offset) {
  __builtin_prefetch(line_ahead(ahead, offset), 0, kPrefetchLevel);
}

// The same for line i of the codes of block b, which lie one after the other in K.
template <class Codec>
BANTAM_INLINE void ask_for_code(const AheadLines& ahead, int b, int i) {
  constexpr int eights = Codec::bits == 8 ? 2 : 1;
#if defined(BANTAM_AHEAD_STREAMS)
  __builtin_prefetch(ahead.eight[eights * b + i / 8] + i % 8 * 64, 0, kPrefetchLevel);
#else
  ask_for(ahead, eights * b * AheadLines::kEightBytes + i * 64);
#endif
}

// The lines of block b beside its codes: scales, minima, fifth bits (of all codes, a share).
template <class Codec>
BANTAM_INLINE void ask_for_rest(const AheadLines& ahead, const KvTileLayout& at, int b) {
  ask_for(ahead, at.scales + b * 64);
  if constexpr (Codec::minimum) ask_for(ahead, at.minima + b * 64);
  if constexpr (Codec::bits == 5) {
    ask_for(ahead, at.high + b * 128);
    ask_for(ahead, at.high + b * 128 + 64);
  }
}

template <class Codec>
BANTAM_INLINE Bytes nibble_codes(const std::byte* bytes, const std::byte* high, bool upper) {
  const Bytes pair = b_load(bytes);
  const Bytes codes = upper ? b_field<4, 1>(pair) : b_field<4, 0>(pair);
  if constexpr (Codec::bits == 5) return b_or(codes, b_fifth_bits(high));
  return codes;
}

// Where the codes of quad i and of the next one, for nibbles, lie.
template <class Codec>
BANTAM_INLINE int64_t key_offset(int i, int half) {
  return (Codec::bits == 8 ? i : i / 2) * 128 + half * 64;
}

// While half `half` of quad i of block b is taken out.
template <class Codec>
BANTAM_INLINE void ask_for_key(const AheadLines& ahead, int b, int i, int half) {
  if (Codec::bits != 8 && i % 2 != 0) return;
  ask_for_code<Codec>(ahead, b, Codec::bits == 8 ? 2 * i + half : i + half);
}

// 16 positions (half 0 or 1) x 4 channels of quad i, ready for the products of keys.
template <class Codec>
BANTAM_INLINE Bytes key_codes(const std::byte* tile, const KvTileLayout& at, int i, int half) {
  if constexpr (Codec::bits == 8) {
    return wide_code(b_load(tile + key_offset<Codec>(i, half)));
  } else {
    const std::byte* high = tile + at.high + i * 16 + half * 8;
    const Bytes codes = nibble_codes<Codec>(tile + key_offset<Codec>(i, half), high, i % 2 != 0);
    if constexpr (kIsTable<Codec>) return wide_code(b_lookup(kIq4Table, codes));
    return codes;
  }
}

template <class Codec>
BANTAM_INLINE int64_t value_offset(int head_dim, int i, int b, int half) {
  if constexpr (Codec::bits == 8) return int64_t{i} * head_dim * 4 + b * 128 + half * 64;
  return int64_t{i} * head_dim * 2 + b * 64;
}

// What is asked for of the values ahead while half `half` of quad i is taken out. In the order of
// their use lines lie 2 head_dim or 4 head_dim bytes apart. Zen 3 wants them one after the other:
// 1.7B at depth 8,192, medians of 8, q8_0 22.1 -> 24.1 tok/s, q5_1 32.2 -> 32.7, q4_0 37.3 -> 42.2.
// A Xeon does not mind. Zen 4, which asks in this order too, and NEON were not measured.
template <class Codec>
BANTAM_INLINE void ask_for_value(const AheadLines& ahead, [[maybe_unused]] int head_dim, int i,
                                 int b, int half) {
  if (Codec::bits != 8 && half != 0) return;
#if defined(BANTAM_SIXTEEN_REGISTERS) || defined(BANTAM_AHEAD_STREAMS)
  ask_for_code<Codec>(ahead, b, Codec::bits == 8 ? 2 * i + half : i);
#else
  ask_for(ahead, value_offset<Codec>(head_dim, i, b, half));
#endif
}

// Sixteen channels (half of block b) x 4 positions of quad i. 8-bit codes and table values are
// signed, others are unsigned and biased.
template <class Codec>
BANTAM_INLINE Bytes value_codes(const std::byte* tile, const KvTileLayout& at, int head_dim, int i,
                                int b, int half) {
  if constexpr (Codec::bits == 8) {
    return b_load(tile + value_offset<Codec>(head_dim, i, b, half));
  } else {
    const std::byte* high = tile + at.high + (int64_t{i} * (head_dim / 16) + b * 2 + half) * 8;
    const std::byte* bytes = tile + value_offset<Codec>(head_dim, i, b, half);
    const Bytes codes = nibble_codes<Codec>(bytes, high, half != 0);
    if constexpr (kIsTable<Codec>) return b_lookup(kIq4Table, codes);
    return codes;
  }
}

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
template <class Float>
struct FloatTile {
  alignas(64) float x[32 * kMostHeadDim];

  FloatTile(const std::byte* tile, const AheadLines& ahead, int head_dim) {
    for (int i = 0; i < 32 * head_dim; i += 32) {
      ask_for(ahead, int64_t{i} * Float::bytes);
      f_store(x + i, load_floats<Float>(tile + int64_t{i} * Float::bytes));
      f_store(x + i + 16, load_floats<Float>(tile + int64_t{i + 16} * Float::bytes));
    }
  }
  const std::byte* data() const { return reinterpret_cast<const std::byte*>(x); }
};

}  // namespace
}  // namespace bantam
