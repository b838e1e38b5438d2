// From GGUF blocks to packed groups (docs/WEIGHT_LAYOUT.md): one text for every instruction set, in
// vectors of four 32-bit words that each compiler maps to its registers. A word of 64 bytes holds 4
// bytes of each of 16 rows, so packing is a permutation of bits inside 32-bit words (the same for
// all rows) and a transposition of words. tests/pack_test.cc holds the bytes against a packer that
// places one code at a time. Writes every byte of a group, reads no byte outside the blocks;
// refuses nothing.
#pragma once

#include "cpu/kernels.h"

namespace bantam {
namespace {

#define BANTAM_PACK_INLINE inline __attribute__((always_inline))

typedef uint32_t Words __attribute__((vector_size(16)));

BANTAM_PACK_INLINE Words load_words(const std::byte* p) {
  Words w;
  __builtin_memcpy(&w, p, sizeof(w));
  return w;
}

// Exchanges the bits under `mask` with those `Shift` above them.
template <int Shift, uint32_t Mask>
BANTAM_PACK_INLINE Words swap_bits(Words x) {
  const Words t = ((x >> Shift) ^ x) & Mask;
  return x ^ t ^ (t << Shift);
}

// Bit 4k + c goes to bit 8c + k. In the five bits of a bit's number that is a rotation by two, made
// of four exchanges of two of them.
BANTAM_PACK_INLINE Words planes_1(Words x) {
  x = swap_bits<14, 0x0000ccccu>(x);
  x = swap_bits<7, 0x00aa00aau>(x);
  x = swap_bits<2, 0x0c0c0c0cu>(x);
  return swap_bits<1, 0x22222222u>(x);
}
// Pair 4k + c of bits goes to pair 4c + k.
BANTAM_PACK_INLINE Words planes_2(Words x) {
  return swap_bits<6, 0x00cc00ccu>(swap_bits<12, 0x0000f0f0u>(x));
}

// Words w[i] of four rows, four words each -> row by row into four packed words, 64 bytes apart.
BANTAM_PACK_INLINE void put_transposed(const Words* row, std::byte* to) {
  const Words a = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
  const Words b = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
  const Words c = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
  const Words d = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
  const Words out[4] = {
      __builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
      __builtin_shufflevector(c, d, 0, 1, 4, 5), __builtin_shufflevector(c, d, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) __builtin_memcpy(to + 64 * i, &out[i], sizeof(Words));
}

constexpr uint32_t kLowNibbles = 0x0f0f0f0fu;
constexpr uint32_t kPairs = 0x03030303u;

// Eight words of nibbles -> four words of two quads: even words below, odd words above.
BANTAM_PACK_INLINE Words low_nibbles(Words first, Words second) {
  const Words even = __builtin_shufflevector(first, second, 0, 2, 4, 6);
  const Words odd = __builtin_shufflevector(first, second, 1, 3, 5, 7);
  return (even & kLowNibbles) | (odd & kLowNibbles) << 4;
}
BANTAM_PACK_INLINE Words high_nibbles(Words first, Words second) {
  const Words even = __builtin_shufflevector(first, second, 0, 2, 4, 6);
  const Words odd = __builtin_shufflevector(first, second, 1, 3, 5, 7);
  return (even >> 4 & kLowNibbles) | (odd & ~kLowNibbles);
}

// ---- formats: `words` makes packed words [4i, 4i + 4) of one row from its GGUF block.

// q1_0 and q2_0: fp16 d, then the codes, low bits first.
template <int Bits, int Values>
struct PackLowBits {
  static constexpr int values = Values, bytes = Values * Bits / 8 + 2;
  static constexpr int n_words = Values * Bits / 32, n_halves = 1, halves_at = 0, pad = 0;
  template <int I>
  static BANTAM_PACK_INLINE Words words(const std::byte* block) {
    const Words x = load_words(block + 2 + 16 * I);
    return Bits == 1 ? planes_1(x) : planes_2(x);
  }
};

struct PackQ8_0 {
  static constexpr int values = 32, bytes = 34, n_words = 8, n_halves = 1, halves_at = 0;
  static constexpr int pad = 0x80;  // the code of a missing row is stored as 0
  template <int I>
  static BANTAM_PACK_INLINE Words words(const std::byte* block) {
    return load_words(block + 2 + 16 * I) ^ 0x80808080u;
  }
};

// q4_0 and q4_1: value j in the low nibble of byte j, value j + 16 in the high one.
template <int Halves>
struct PackQ4 {
  static constexpr int values = 32, bytes = 16 + 2 * Halves, n_words = 4;
  static constexpr int n_halves = Halves, halves_at = 0, pad = 0;
  template <int I>
  static BANTAM_PACK_INLINE Words words(const std::byte* block) {
    const Words x = load_words(block + 2 * Halves);
    const Words low = low_nibbles(x, x), high = high_nibbles(x, x);
    return __builtin_shufflevector(low, high, 0, 1, 4, 5);
  }
};

// fp16 d and dmin, 12 bytes of sub-scales, then runs of 64 columns in 32 bytes: the first 32 in the
// low nibbles.
struct PackQ4_K {
  static constexpr int values = 256, bytes = 144, n_words = 32, n_halves = 2, halves_at = 0;
  static constexpr int pad = 0;
  template <int I>
  static BANTAM_PACK_INLINE Words words(const std::byte* block) {
    const std::byte* run = block + 16 + 32 * (I / 2);
    const Words first = load_words(run), second = load_words(run + 16);
    return I % 2 == 0 ? low_nibbles(first, second) : high_nibbles(first, second);
  }
};

// Halves of 128 columns, in each four runs of 32: low nibbles of 32 bytes, of the next 32, then the
// high ones; two more bits of all runs in 32 bytes; 16 sub-scales; fp16 d.
struct PackQ6_K {
  static constexpr int values = 256, bytes = 210, n_words = 48, n_halves = 1, halves_at = 208;
  static constexpr int pad = 0;
  template <int I>
  static BANTAM_PACK_INLINE Words words(const std::byte* block) {
    if constexpr (I < 8) {
      const std::byte* run = block + 64 * (I / 4) + 32 * (I % 2);
      const Words first = load_words(run), second = load_words(run + 16);
      return I % 4 < 2 ? low_nibbles(first, second) : high_nibbles(first, second);
    } else {
      constexpr int half = (I - 8) / 2, run = (I - 8) % 2 * 2;
      return pairs<run>(block + 128 + 32 * half);
    }
  }
  // Runs Run and Run + 1: a word of 16 columns for each half of 16 bytes.
  template <int Run>
  static BANTAM_PACK_INLINE Words pairs(const std::byte* high) {
    const Words x = load_words(high), y = load_words(high + 16);
    Words out = {};
    // Column 4j + c of a word is byte c of source word j: quads of all four words move together.
    const Words quad[4] = {
        __builtin_shufflevector(x, y, 0, 4, 0, 4), __builtin_shufflevector(x, y, 1, 5, 1, 5),
        __builtin_shufflevector(x, y, 2, 6, 2, 6), __builtin_shufflevector(x, y, 3, 7, 3, 7)};
    const Words shift = {2 * Run, 2 * Run, 2 * Run + 2, 2 * Run + 2};
    for (int j = 0; j < 4; ++j) out |= (quad[j] >> shift & kPairs) << (2 * j);
    return out;
  }
};

// ---- what a block has beside codes and halves

template <class Format>
struct PackRest {
  static constexpr int bytes = 0;
  static BANTAM_PACK_INLINE void put(const std::byte* const*, std::byte*) {}
};

// The 6-bit sub-scale (which 0) or minimum (1) number sub of a GGUF Q4_K block: the first four lie
// in the low bits of 4 bytes each, the last four are split over nibbles and the high bits of those.
BANTAM_PACK_INLINE unsigned q4_k_six_bits(const std::byte* source, int sub, int which) {
  const std::byte* s = source + 4;
  if (sub < 4) return static_cast<uint8_t>(s[4 * which + sub]) & 63u;
  const unsigned low = static_cast<uint8_t>(s[4 + sub]) >> (4 * which) & 15u;
  return low | static_cast<unsigned>(static_cast<uint8_t>(s[4 * which + sub - 4]) >> 6) << 4;
}

template <>
struct PackRest<PackQ4_K> {
  static constexpr int bytes = 192;
  static BANTAM_PACK_INLINE void put(const std::byte* const* rows, std::byte* to) {
    for (int r = 0; r < kGroupRows; ++r) {
      unsigned high[8];
      for (int sub = 0; sub < 8; ++sub) {
        const unsigned d = q4_k_six_bits(rows[r], sub, 0), m = q4_k_six_bits(rows[r], sub, 1);
        to[sub * 16 + r] = static_cast<std::byte>((d & 15) | (m & 15) << 4);
        high[sub] = d >> 4 | m >> 4 << 2;
      }
      for (int pair = 0; pair < 4; ++pair) {
        to[128 + pair * 16 + r] = static_cast<std::byte>(high[2 * pair] | high[2 * pair + 1] << 4);
      }
    }
  }
};

template <>
struct PackRest<PackQ6_K> {
  static constexpr int bytes = 256;
  static BANTAM_PACK_INLINE void put(const std::byte* const* rows, std::byte* to) {
    for (int r = 0; r < kGroupRows; ++r) {
      for (int s = 0; s < 16; ++s) to[s * 16 + r] = rows[r][192 + s];
    }
  }
};

// ---- groups

template <class Format, int N>
BANTAM_PACK_INLINE void put_words(const std::byte* const* rows, std::byte* to) {
  if constexpr (N > 0) {
    put_words<Format, N - 1>(rows, to);
    for (int r = 0; r < kGroupRows; r += 4) {
      const Words four[4] = {
          Format::template words<N - 1>(rows[r]), Format::template words<N - 1>(rows[r + 1]),
          Format::template words<N - 1>(rows[r + 2]), Format::template words<N - 1>(rows[r + 3])};
      put_transposed(four, to + 256 * (N - 1) + 4 * r);
    }
  }
}

template <class Format>
void pack_group(const std::byte* rows, int64_t row_bytes, int n_valid, int cols, std::byte* group) {
  // A missing row reads this block again and again: its codes and scales are stored as zeros.
  std::byte missing[Format::bytes];
  __builtin_memset(missing, Format::pad, sizeof(missing));
  __builtin_memset(missing + Format::halves_at, 0, 2 * Format::n_halves);
  const std::byte* row[kGroupRows];
  for (int r = 0; r < kGroupRows; ++r) row[r] = r < n_valid ? rows + r * row_bytes : missing;
  for (int b = 0; b < cols / Format::values; ++b) {
    put_words<Format, Format::n_words / 4>(row, group);
    group += 64 * Format::n_words;
    PackRest<Format>::put(row, group);
    group += PackRest<Format>::bytes;
    for (int h = 0; h < Format::n_halves; ++h) {
      for (int r = 0; r < kGroupRows; ++r) {
        __builtin_memcpy(group + 2 * r, row[r] + Format::halves_at + 2 * h, 2);
      }
      group += 2 * kGroupRows;
    }
    for (int r = 0; r < n_valid; ++r) row[r] += Format::bytes;
  }
}

// f32 and f16: the rows as they are.
void pack_plain(const std::byte* rows, int64_t row_bytes, int n_valid, int, std::byte* group) {
  const int64_t valid = n_valid * row_bytes;
  __builtin_memcpy(group, rows, static_cast<size_t>(valid));
  __builtin_memset(group + valid, 0, static_cast<size_t>(kGroupRows * row_bytes - valid));
}

void fill_pack(Kernels& table) {
  const auto at = [&](WeightType type) -> WeightKernels& {
    return table.weight[static_cast<int>(type)];
  };
  at(WeightType::f32).pack_group = at(WeightType::f16).pack_group = pack_plain;
  at(WeightType::q1_0).pack_group = pack_group<PackLowBits<1, 128>>;
  at(WeightType::q2_0).pack_group = pack_group<PackLowBits<2, 64>>;
  at(WeightType::pq2_0).pack_group = pack_group<PackLowBits<2, 128>>;
  at(WeightType::q8_0).pack_group = pack_group<PackQ8_0>;
  at(WeightType::q4_0).pack_group = pack_group<PackQ4<1>>;
  at(WeightType::q4_1).pack_group = pack_group<PackQ4<2>>;
  at(WeightType::q4_k).pack_group = pack_group<PackQ4_K>;
  at(WeightType::q6_k).pack_group = pack_group<PackQ6_K>;
}

#undef BANTAM_PACK_INLINE

}  // namespace
}  // namespace bantam
