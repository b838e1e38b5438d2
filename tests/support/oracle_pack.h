// The plainest packer of docs/WEIGHT_LAYOUT.md: one code at a time, into a group that is cleared
// first. The oracle of pack_test; no kernel table holds it.
#pragma once

#include <cstring>

#include "cpu/kernels.h"

namespace bantam::oracle {

inline uint8_t byte_at(const std::byte* p) { return static_cast<uint8_t>(*p); }

inline void put(std::byte* at, unsigned value) { *at = static_cast<std::byte>(value); }
inline void put_bits(std::byte* at, unsigned bits) { *at |= static_cast<std::byte>(bits); }

inline void clear(std::byte* group, int64_t bytes) {
  std::memset(group, 0, static_cast<size_t>(bytes));
}

template <int Bits>
void put_code(std::byte* words, int r, int c, unsigned code) {
  constexpr int columns = 32 / Bits;
  put_bits(words + c / columns * 64 + 4 * r + c % 4, code << (c % columns / 4 * Bits));
}

// q1_0 and q2_0: GGUF keeps fp16 d, then the codes, low bits first.
template <int Bits, int Values>
void pack_low_bits(const std::byte* rows, int64_t row_bytes, int n_valid, int cols,
                   std::byte* group) {
  constexpr int source_bytes = Values * Bits / 8 + 2, block_bytes = kGroupRows * source_bytes;
  clear(group, int64_t{cols} / Values * block_bytes);
  for (int b = 0; b < cols / Values; ++b) {
    std::byte* block = group + int64_t{b} * block_bytes;
    for (int r = 0; r < n_valid; ++r) {
      const std::byte* source = rows + r * row_bytes + int64_t{b} * source_bytes;
      std::memcpy(block + 2 * Values * Bits + 2 * r, source, 2);
      for (int c = 0; c < Values; ++c) {
        const unsigned code = byte_at(source + 2 + c * Bits / 8) >> (c * Bits % 8);
        put_code<Bits>(block, r, c, code & ((1u << Bits) - 1));
      }
    }
  }
}

inline void pack_q8_0(const std::byte* rows, int64_t row_bytes, int n_valid, int cols,
                      std::byte* group) {
  clear(group, 16ll * cols / 32 * 34);
  for (int b = 0; b < cols / 32; ++b) {
    std::byte* block = group + b * 544;
    for (int r = 0; r < n_valid; ++r) {
      const std::byte* source = rows + r * row_bytes + b * 34;
      std::memcpy(block + 512 + 2 * r, source, 2);
      for (int c = 0; c < 32; ++c)
        put(block + c / 4 * 64 + 4 * r + c % 4, byte_at(source + 2 + c) ^ 0x80u);
    }
  }
}

// q4_0 and q4_1: GGUF keeps value j in the low nibble of byte j and value j + 16 in the high one.
inline void pack_nibbles(const std::byte* source, int r, std::byte* codes) {
  for (int c = 0; c < 32; ++c) {
    const unsigned pair = byte_at(source + c % 16);
    const unsigned code = c < 16 ? pair & 15 : pair >> 4;
    put_code<4>(codes, r, c, code);
  }
}

inline void pack_q4_0(const std::byte* rows, int64_t row_bytes, int n_valid, int cols,
                      std::byte* group) {
  clear(group, 16ll * cols / 32 * 18);
  for (int b = 0; b < cols / 32; ++b) {
    std::byte* block = group + b * 288;
    for (int r = 0; r < n_valid; ++r) {
      const std::byte* source = rows + r * row_bytes + b * 18;
      std::memcpy(block + 256 + 2 * r, source, 2);
      pack_nibbles(source + 2, r, block);
    }
  }
}

inline void pack_q4_1(const std::byte* rows, int64_t row_bytes, int n_valid, int cols,
                      std::byte* group) {
  clear(group, 16ll * cols / 32 * 20);
  for (int b = 0; b < cols / 32; ++b) {
    std::byte* block = group + b * 320;
    for (int r = 0; r < n_valid; ++r) {
      const std::byte* source = rows + r * row_bytes + b * 20;
      std::memcpy(block + 256 + 2 * r, source, 2);
      std::memcpy(block + 288 + 2 * r, source + 2, 2);
      pack_nibbles(source + 4, r, block);
    }
  }
}

// The 6-bit sub-scale (which 0) or minimum (1) number sub of a GGUF Q4_K block: the first four lie
// in the low bits of 4 bytes each, the last four are split over nibbles and the high bits of those.
inline unsigned q4_k_six_bits(const std::byte* source, int sub, int which) {
  const std::byte* s = source + 4;
  if (sub < 4) return byte_at(s + 4 * which + sub) & 63u;
  const unsigned low = byte_at(s + 4 + sub) >> (4 * which) & 15u;
  return low | static_cast<unsigned>(byte_at(s + 4 * which + sub - 4) >> 6) << 4;
}

inline void pack_q4_k(const std::byte* rows, int64_t row_bytes, int n_valid, int cols,
                      std::byte* group) {
  clear(group, 16ll * cols / 256 * 144);
  for (int b = 0; b < cols / 256; ++b) {
    std::byte* block = group + b * 2304;
    for (int r = 0; r < n_valid; ++r) {
      const std::byte* source = rows + r * row_bytes + b * 144;
      for (int c = 0; c < 256; ++c) {
        // Runs of 64 columns in 32 bytes: the first 32 in the low nibbles.
        const unsigned pair = byte_at(source + 16 + c / 64 * 32 + c % 32);
        put_code<4>(block, r, c, c % 64 < 32 ? pair & 15 : pair >> 4);
      }
      for (int sub = 0; sub < 8; ++sub) {
        const unsigned d = q4_k_six_bits(source, sub, 0), m = q4_k_six_bits(source, sub, 1);
        put(block + 2048 + sub * 16 + r, (d & 15) | (m & 15) << 4);
        put_bits(block + 2176 + sub / 2 * 16 + r, (d >> 4 | m >> 4 << 2) << (sub % 2 * 4));
      }
      std::memcpy(block + 2240 + 2 * r, source, 2);
      std::memcpy(block + 2272 + 2 * r, source + 2, 2);
    }
  }
}

// Code of value c of a GGUF Q6_K block: halves of 128, in each four runs of 32.
inline unsigned q6_k_code(const std::byte* source, int c) {
  const int half = c / 128, run = c % 128 / 32, l = c % 32;
  const unsigned low = byte_at(source + 64 * half + l + (run % 2) * 32);
  const unsigned high = byte_at(source + 128 + 32 * half + l) >> (2 * run) & 3;
  return (run < 2 ? low & 15 : low >> 4) | high << 4;
}

inline void pack_q6_k(const std::byte* rows, int64_t row_bytes, int n_valid, int cols,
                      std::byte* group) {
  clear(group, 16ll * cols / 256 * 210);
  for (int b = 0; b < cols / 256; ++b) {
    std::byte* block = group + b * 3360;
    for (int r = 0; r < n_valid; ++r) {
      const std::byte* source = rows + r * row_bytes + b * 210;
      for (int c = 0; c < 256; ++c) {
        const unsigned code = q6_k_code(source, c);
        put_code<4>(block, r, c, code & 15);
        put_code<2>(block + 2048, r, c, code >> 4);
      }
      for (int s = 0; s < 16; ++s) put(block + 3072 + s * 16 + r, byte_at(source + 192 + s));
      std::memcpy(block + 3328 + 2 * r, source + 208, 2);
    }
  }
}

inline void pack_plain(const std::byte* rows, int64_t row_bytes, int n_valid, int,
                       std::byte* group) {
  for (int r = 0; r < kGroupRows; ++r) {
    if (r < n_valid) {
      std::memcpy(group + r * row_bytes, rows + r * row_bytes, static_cast<size_t>(row_bytes));
    } else {
      clear(group + r * row_bytes, row_bytes);
    }
  }
}

// Every type of the list: a new one does not compile without its row.
inline void pack_group(WeightType type, const std::byte* rows, int64_t row_bytes, int n_valid,
                       int cols, std::byte* group) {
  switch (type) {
    case WeightType::f32:
    case WeightType::f16:
      return pack_plain(rows, row_bytes, n_valid, cols, group);
    case WeightType::q1_0:
      return pack_low_bits<1, 128>(rows, row_bytes, n_valid, cols, group);
    case WeightType::q2_0:
      return pack_low_bits<2, 64>(rows, row_bytes, n_valid, cols, group);
    case WeightType::pq2_0:
      return pack_low_bits<2, 128>(rows, row_bytes, n_valid, cols, group);
    case WeightType::q4_0:
      return pack_q4_0(rows, row_bytes, n_valid, cols, group);
    case WeightType::q4_1:
      return pack_q4_1(rows, row_bytes, n_valid, cols, group);
    case WeightType::q8_0:
      return pack_q8_0(rows, row_bytes, n_valid, cols, group);
    case WeightType::q4_k:
      return pack_q4_k(rows, row_bytes, n_valid, cols, group);
    case WeightType::q6_k:
      return pack_q6_k(rows, row_bytes, n_valid, cols, group);
  }
}

}  // namespace bantam::oracle
