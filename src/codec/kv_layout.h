// Where a value of the KV cache lies. A tile is 32 positions x head_dim channels of one KV head; a
// page is 8 tiles. One layout for every instruction set, for devices and for saved files;
// docs/KV_LAYOUT.md has the reasons. Refuses nothing: the plan has already checked that head_dim is
// a multiple of 32 up to 256.
//
//   f32 f16 bf16   K and V: row major [32 positions][head_dim]
//   q8_0           K: [head_dim/4 quads of channels][32 positions][4 channels] int8 codes
//                  V: [8 quads of positions][head_dim][4 positions] int8 codes
//   4 bits         K: [head_dim/8][32 positions][4] bytes; byte (g, p, c): low nibble channel 8g +
//   c, high 8g + 4 + c
//                  V: [8 quads][head_dim/32][16][4] bytes; byte (g, b, j, i): position 4g + i, low
//                  nibble
//                     channel 32b + j, high nibble channel 32b + 16 + j
//   5 bits         the 4-bit part, then the fifth bits:
//                  K: [head_dim/4 quads][128 bits]: bit 4p + c belongs to (position p, channel 4 *
//                  quad + c) V: [8 quads][head_dim/16][64 bits]: bit 4j + i belongs to (channel 16
//                  * part + j, position 4 * quad + i)
//   then the scales d: [head_dim/32][32 positions] fp16, and for q4_1, q5_1 the minima m in the
//   same shape.
// Bit k of a bit plane is bit k % 8 of byte k / 8. Erased and unwritten positions are zero bytes.
#pragma once

#include <cstdint>

namespace bantam {

static constexpr int kKvTile = 32;  // positions in a tile, and channels in a block with one scale

static constexpr int64_t kv_tile_bytes(int bytes_per_32, int head_dim) {
  return static_cast<int64_t>(bytes_per_32) * head_dim;
}

struct KvTileLayout {
  int64_t codes;   // byte offset of the codes (always 0)
  int64_t high;    // byte offset of the fifth bits, -1 when there are none
  int64_t scales;  // byte offset of d, -1 for float types
  int64_t minima;  // byte offset of m, -1 when there are none
  int64_t bytes;
};

// code_bits: 4, 5 or 8.
static constexpr KvTileLayout kv_quant_layout(int code_bits, bool has_minimum, int head_dim) {
  const int64_t nibbles = code_bits == 8 ? 32ll * head_dim : 16ll * head_dim;
  const int64_t high_bytes = code_bits == 5 ? 4ll * head_dim : 0;
  const int64_t scale_bytes = 2ll * head_dim;
  const int64_t scales = nibbles + high_bytes;
  return {0, code_bits == 5 ? nibbles : -1, scales, has_minimum ? scales + scale_bytes : -1,
          scales + scale_bytes * (has_minimum ? 2 : 1)};
}

static_assert(kv_quant_layout(8, false, 128).bytes == kv_tile_bytes(34, 128));
static_assert(kv_quant_layout(5, true, 128).bytes == kv_tile_bytes(24, 128));
static_assert(kv_quant_layout(5, false, 64).bytes == kv_tile_bytes(22, 64));
static_assert(kv_quant_layout(4, true, 96).bytes == kv_tile_bytes(20, 96));
static_assert(kv_quant_layout(4, false, 256).bytes == kv_tile_bytes(18, 256));

}  // namespace bantam
