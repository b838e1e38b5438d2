// Encoding of K and V rows with vectors (NUMERICS rule 7), the bytes of kv_codec.h: the range and
// the codes of a block in registers, then whole words into the tile. Includers choose the vector
// header first.
#pragma once

#include "cpu/attend_codes.inl"

namespace bantam {
namespace {

// Integers in the order of floats; -0 lies just below +0. Its own inverse.
BANTAM_INLINE Ints ordered(Floats x) {
  const Ints bits = i_bits(x);
  return i_xor(bits, i_and(i_shift_right<31>(bits), i_set(0x7fffffff)));
}
BANTAM_INLINE float of_ordered(int32_t x) {
  return float_of(static_cast<uint32_t>(x ^ (x >> 31 & 0x7fffffff)));
}

// The range of 32 finite values as range_of finds it: of equal ones the first counts.
template <bool Minimum>
BANTAM_INLINE BlockRange range_simd(const Floats* x, const float* values) {
  const Ints magnitude = i_set(0x7fffffff);
  const Ints a = i_and(i_bits(x[0]), magnitude), b = i_and(i_bits(x[1]), magnitude);
  const int32_t largest = i_largest(i_max(a, b));
  BlockRange range{0, 0, 0, largest < 0x7f800000};
  if constexpr (Minimum) {
    const Ints low = ordered(x[0]), high = ordered(x[1]);
    const Ints all = i_set(-1);
    range.highest = of_ordered(i_largest(i_max(low, high)));
    const int32_t least = ~i_largest(i_max(i_xor(low, all), i_xor(high, all)));
    // Zeros of both signs are equal, so the first of them is the lowest.
    const Floats lowest = f_set(of_ordered(least));
    range.lowest = values[m_first_of(m_equal(x[0], lowest), m_equal(x[1], lowest))];
  } else {
    const Ints top = i_set(largest);
    range.extreme = values[m_first_of(m_equal_ints(a, top), m_equal_ints(b, top))];
  }
  return range;
}

// rne(x / d) within the limits, which are applied before rounding: x / d may be any size.
BANTAM_INLINE Ints divided_codes(Floats x, float d, float lowest, float highest) {
  const Floats low = f_set(lowest), high = f_set(highest), ratio = f_div(x, f_set(d));
  const Floats above = f_select(m_less(low, ratio), ratio, low);
  return i_round(f_select(m_less(above, high), above, high));
}

// The nearest table value, of equally near ones the first.
BANTAM_INLINE Ints nearest_codes(Floats x, float d) {
  const Floats ratio = f_div(x, f_set(d));
  Floats distance = f_set(float_of(0x7f800000u)), best = f_zero();
  for (int i = 0; i < 16; ++i) {
    const Floats apart = f_abs(f_sub(ratio, f_set(static_cast<float>(kIq4Table[i]))));
    const Mask nearer = m_less(apart, distance);
    distance = f_select(nearer, apart, distance);
    best = f_select(nearer, f_set(static_cast<float>(i)), best);
  }
  return i_round(best);
}

template <class Codec>
BANTAM_INLINE void encode_simd(const float* values, KvBlock& out) {
  const Floats x[2] = {f_load(values), f_load(values + 16)};
  const BlockRange range = range_simd<Codec::minimum>(x, values);
  if (!range.finite) return Codec::encode(values, out);
  Codec::scales(range, out);
  const float d = f16_to_f32(out.d), m = f16_to_f32(out.m);
  if (d == 0.0f) return fill_block(out, Codec::zero, 0, out.m);
  Ints codes[2];
  for (int h = 0; h < 2; ++h) {
    if constexpr (kIsTable<Codec>) {
      codes[h] = nearest_codes(x[h], d);
    } else if constexpr (Codec::minimum) {
      codes[h] = divided_codes(f_sub(x[h], f_set(m)), d, 0, Codec::top);
    } else if constexpr (Codec::bits == 8) {
      codes[h] = i_and(divided_codes(x[h], d, -127, 127), i_set(255));
    } else {
      codes[h] = i_add(divided_codes(x[h], d, -Codec::bias, Codec::bias - 1), i_set(Codec::bias));
    }
  }
  i_store_32_bytes(out.code, codes[0], codes[1]);
}

BANTAM_INLINE uint32_t four_codes(const uint8_t* code) {
  uint32_t x;
  __builtin_memcpy(&x, code, 4);
  return x;
}

// Block b of a key: whole words of four channels; the fifth bits of four codes are a nibble.
template <class Codec>
BANTAM_INLINE void place_key(const KvBlock& block, const KvTileLayout& at, int pos, int b,
                             std::byte* tile) {
  if constexpr (Codec::bits == 8) {
    for (int i = 0; i < 8; ++i) {
      __builtin_memcpy(tile + (8 * b + i) * 128 + pos * 4, block.code + 4 * i, 4);
    }
    return;
  }
  for (int g = 0; g < 4; ++g) {
    const uint32_t low = four_codes(block.code + 8 * g), high = four_codes(block.code + 8 * g + 4);
    const uint32_t pair = (low & 0x0f0f0f0fu) | (high & 0x0f0f0f0fu) << 4;
    __builtin_memcpy(tile + (4 * b + g) * 128 + pos * 4, &pair, 4);
  }
  for (int i = 0; Codec::bits == 5 && i < 8; ++i) {
    const uint32_t bits = four_codes(block.code + 4 * i) >> 4 & 0x01010101u;
    const unsigned nibble = (bits | bits >> 7 | bits >> 14 | bits >> 21) & 15u;
    std::byte* plane = tile + at.high + (8 * b + i) * 16 + pos / 2;
    const int shift = pos % 2 * 4;
    put(plane, (byte_at(plane) & ~(15u << shift)) | nibble << shift);
  }
}

template <class Codec>
BANTAM_INLINE void place_value(const KvBlock& block, const KvTileLayout& at, int head_dim, int pos,
                               int b, std::byte* tile) {
  const int quad = pos / 4, k = pos % 4;
  if constexpr (Codec::bits == 8) {
    std::byte* to = tile + int64_t{quad} * head_dim * 4 + b * 128 + k;
    for (int j = 0; j < 32; ++j) put(to + 4 * j, block.code[j]);
    return;
  }
  std::byte* to = tile + int64_t{quad} * head_dim * 2 + b * 64 + k;
  for (int j = 0; j < 16; ++j) {
    put(to + 4 * j, (block.code[j] & 15u) | (block.code[16 + j] & 15u) << 4);
  }
  for (int part = 0; Codec::bits == 5 && part < 2; ++part) {
    std::byte* plane = tile + at.high + (int64_t{quad} * (head_dim / 16) + 2 * b + part) * 8;
    uint64_t word;
    __builtin_memcpy(&word, plane, 8);
    word &= ~(uint64_t{0x1111111111111111u} << k);
    for (int j = 0; j < 16; ++j) {
      word |= uint64_t{block.code[16 * part + j]} >> 4 << (4 * j + k);
    }
    __builtin_memcpy(plane, &word, 8);
  }
}

template <class Codec, bool IsKey>
void store_quant_simd(const float* row, int head_dim, int pos, std::byte* tile) {
  const KvTileLayout at = layout_of<Codec>(head_dim);
  for (int b = 0; b < head_dim / 32; ++b) {
    KvBlock block;
    encode_simd<Codec>(row + 32 * b, block);
    const int64_t index = (int64_t{b} * 32 + pos) * 2;
    __builtin_memcpy(tile + at.scales + index, &block.d, 2);
    if (Codec::minimum) __builtin_memcpy(tile + at.minima + index, &block.m, 2);
    if constexpr (IsKey) {
      place_key<Codec>(block, at, pos, b, tile);
    } else {
      place_value<Codec>(block, at, head_dim, pos, b, tile);
    }
  }
}

}  // namespace
}  // namespace bantam
