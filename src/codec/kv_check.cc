#include "codec/kv_check.h"

#include <algorithm>

#include "codec/kv_codec.h"
#include "codec/kv_layout.h"

namespace bantam {

namespace {

constexpr const char* kScale = "a scale is infinite or has the wrong sign";
constexpr const char* kCode = "a code lies outside the range of its type";
constexpr const char* kTail = "a position behind the end is not empty";

unsigned byte_at(const std::byte* p) { return static_cast<unsigned>(*p); }

// fp16, [n] of them: finite or the one NaN that is ever stored, and not negative where the type has
// no negative scales.
bool scales_fit(const std::byte* scales, int n, bool negative) {
  bool fit = true;
  for (int i = 0; i < n; ++i) {
    uint16_t half = 0;
    __builtin_memcpy(&half, scales + 2 * i, 2);
    const bool finite = (half & 0x7c00) != 0x7c00;
    fit = fit && (half == kHalfNan || (finite && (negative || (half & 0x8000) == 0)));
  }
  return fit;
}

bool scales_empty(const std::byte* scales, int n_blocks, int from) {
  unsigned any = 0;
  for (int b = 0; b < n_blocks; ++b) {
    for (int i = 2 * from; i < 2 * kKvTile; ++i) any |= byte_at(scales + b * 2 * kKvTile + i);
  }
  return any == 0;
}

// Codes by the byte: whose position it is follows from its place alone (kv_layout.h).
bool codes_empty(const std::byte* codes, int64_t n_bytes, bool key, int from) {
  const int64_t quad = n_bytes / (kKvTile / 4);  // V: bytes of four positions
  unsigned any = 0;
  for (int64_t i = 0; i < n_bytes; ++i) {
    const int64_t position = key ? i % 128 / 4 : i / quad * 4 + i % 4;
    if (position >= from) any |= byte_at(codes + i);
  }
  return any == 0;
}

// Fifth bits: a nibble of K is a position, a bit of a nibble of V is.
bool high_bits_empty(const std::byte* high, int64_t n_bytes, bool key, int from) {
  const int64_t quad = n_bytes / (kKvTile / 4);
  unsigned any = 0;
  for (int64_t i = 0; i < 8 * n_bytes; ++i) {
    const int64_t position = key ? i % 128 / 4 : i / (8 * quad) * 4 + i % 4;
    if (position >= from) any |= byte_at(high + i / 8) >> (i % 8) & 1u;
  }
  return any == 0;
}

template <KvType Type>
const char* fault(bool key, int head_dim, int n_positions, const std::byte* tile) {
  constexpr int kBytes = info(Type).bytes_per_32;
  if constexpr (!info(Type).quantized) {
    const int64_t used = int64_t{n_positions} * head_dim * kBytes / 32;
    const auto filled = [](std::byte x) { return x != std::byte{0}; };
    return std::any_of(tile + used, tile + int64_t{kBytes} * head_dim, filled) ? kTail : nullptr;
  } else {
    using Codec = CodecOf<Type>;
    const KvTileLayout at = kv_quant_layout(Codec::bits, Codec::minimum, head_dim);
    if (!scales_fit(tile + at.scales, head_dim, Codec::negative_scale)) return kScale;
    if (Codec::minimum && !scales_fit(tile + at.minima, head_dim, true)) return kScale;
    if (Codec::bits == 8) {
      unsigned lowest = 0;
      for (int i = 0; i < kKvTile * head_dim; ++i) {
        lowest |= byte_at(tile + i) == 0x80 ? 1u : 0u;
      }
      if (lowest != 0) return kCode;
    }
    if (n_positions == kKvTile) return nullptr;
    const int64_t codes = at.high >= 0 ? at.high : at.scales;
    const bool empty =
        codes_empty(tile, codes, key, n_positions) &&
        (at.high < 0 || high_bits_empty(tile + at.high, at.scales - at.high, key, n_positions)) &&
        scales_empty(tile + at.scales, head_dim / 32, n_positions) &&
        (at.minima < 0 || scales_empty(tile + at.minima, head_dim / 32, n_positions));
    return empty ? nullptr : kTail;
  }
}

using Fault = const char* (*)(bool, int, int, const std::byte*);
constexpr Fault kFaults[] = {
#define KV_TYPE(name, bytes32, quantized, minimum) fault<KvType::name>,
#include "codec/kv_types.def"
#undef KV_TYPE
};

}  // namespace

const char* kv_tile_fault(KvType type, bool key, int head_dim, int n_positions,
                          const std::byte* tile) {
  return kFaults[static_cast<int>(type)](key, head_dim, n_positions, tile);
}

}  // namespace bantam
