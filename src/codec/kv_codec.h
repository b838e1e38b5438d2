// The formats of the KV cache as codecs: encode a row block of 32 values (NUMERICS rule 7), the
// value of a code. kv_layout.h says where codes lie. Internal linkage: ISA files must not emit weak
// symbols. A block with a value that is not finite gets d = NaN (and m = NaN) with the code of
// zero; a scale beyond fp16 becomes the largest fp16, so that finite rows stay finite.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/half.h"
#include "codec/kv_layout.h"
#include "codec/numerics.h"
#include "codec/types.h"

namespace bantam {
namespace {

constexpr int8_t kIq4Table[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
constexpr uint16_t kHalfNan = 0x7e00;

struct KvBlock {
  uint8_t code[32];
  uint16_t d;
  uint16_t m;
};

uint16_t scale_to_half(float x) {
  const float limit = 65504.0f;
  return f32_to_f16(x > limit ? limit : x < -limit ? -limit : x);
}

struct BlockRange {
  float lowest, highest, extreme;  // extreme: the first value of largest magnitude
  bool finite;
};

BlockRange range_of(const float* x) {
  BlockRange range{x[0], x[0], x[0], true};
  float magnitude = -1.0f;
  for (int i = 0; i < 32; ++i) {
    const float a = float_of(bits_of(x[i]) & 0x7fffffffu);
    range.finite = range.finite && (bits_of(a) < 0x7f800000u);
    if (a > magnitude) {
      magnitude = a;
      range.extreme = x[i];
    }
    range.lowest = x[i] < range.lowest ? x[i] : range.lowest;
    range.highest = x[i] > range.highest ? x[i] : range.highest;
  }
  return range;
}

void fill_block(KvBlock& out, uint8_t code, uint16_t d, uint16_t m) {
  for (int i = 0; i < 32; ++i) out.code[i] = code;
  out.d = d;
  out.m = m;
}

// rne(x / d), clamped; x / d is below 2^22 because |x| <= 127 |extreme / d| and d is rounded at
// worst by half.
int divide_code(float x, float d, int lowest, int highest) {
  const float ratio = x / d;
  if (!(ratio > static_cast<float>(lowest))) return lowest;
  if (!(ratio < static_cast<float>(highest))) return highest;
  return static_cast<int>(round_even(ratio));
}

struct CodecQ8_0 {
  static constexpr int bits = 8, bias = 128, zero = 0;
  static constexpr bool minimum = false, negative_scale = false;
  static int value(unsigned code) { return static_cast<int8_t>(code); }
  static void scales(const BlockRange& range, KvBlock& out) {
    const float absmax = float_of(bits_of(range.extreme) & 0x7fffffffu);
    out.d = scale_to_half(absmax / 127.0f);
    out.m = 0;
  }
  static void encode(const float* x, KvBlock& out) {
    const BlockRange range = range_of(x);
    if (!range.finite) return fill_block(out, 0, kHalfNan, 0);
    scales(range, out);
    const float d = f16_to_f32(out.d);
    if (d == 0.0f) return fill_block(out, 0, 0, 0);
    for (int i = 0; i < 32; ++i)
      out.code[i] = static_cast<uint8_t>(divide_code(x[i], d, -127, 127));
  }
};

// q4_0 and q5_0: the extreme maps to the negative end, as in GGUF.
template <int Bits>
struct CodecSymmetric {
  static constexpr int bits = Bits, bias = 1 << (Bits - 1), zero = bias;
  static constexpr bool minimum = false, negative_scale = true;
  static int value(unsigned code) { return static_cast<int>(code) - bias; }
  static void scales(const BlockRange& range, KvBlock& out) {
    out.d = scale_to_half(range.extreme / static_cast<float>(-bias));
    out.m = 0;
  }
  static void encode(const float* x, KvBlock& out) {
    const BlockRange range = range_of(x);
    if (!range.finite) return fill_block(out, bias, kHalfNan, 0);
    scales(range, out);
    const float d = f16_to_f32(out.d);
    if (d == 0.0f) return fill_block(out, bias, 0, 0);
    for (int i = 0; i < 32; ++i) {
      out.code[i] = static_cast<uint8_t>(divide_code(x[i], d, -bias, bias - 1) + bias);
    }
  }
};

// q4_1 and q5_1: unsigned codes above a minimum.
template <int Bits>
struct CodecMinimum {
  static constexpr int bits = Bits, bias = 0, top = (1 << Bits) - 1, zero = 0;
  static constexpr bool minimum = true, negative_scale = false;
  static int value(unsigned code) { return static_cast<int>(code); }
  static void scales(const BlockRange& range, KvBlock& out) {
    // Halved first: the difference of two large floats must not become infinite.
    const float half_range = range.highest * 0.5f - range.lowest * 0.5f;
    out.d = scale_to_half(half_range / (static_cast<float>(top) * 0.5f));
    out.m = scale_to_half(range.lowest);
  }
  static void encode(const float* x, KvBlock& out) {
    const BlockRange range = range_of(x);
    if (!range.finite) return fill_block(out, 0, kHalfNan, kHalfNan);
    scales(range, out);
    const float d = f16_to_f32(out.d), m = f16_to_f32(out.m);
    if (d == 0.0f) return fill_block(out, 0, 0, out.m);
    for (int i = 0; i < 32; ++i)
      out.code[i] = static_cast<uint8_t>(divide_code(x[i] - m, d, 0, top));
  }
};

struct CodecIq4Nl {
  static constexpr int bits = 4, bias = 128, zero = 8;
  static constexpr bool minimum = false, negative_scale = true;
  static int value(unsigned code) { return kIq4Table[code]; }
  static uint8_t nearest(float ratio) {
    uint8_t best = 0;
    float distance = float_of(0x7f800000u);
    for (uint8_t i = 0; i < 16; ++i) {
      const float apart = float_of(bits_of(ratio - static_cast<float>(kIq4Table[i])) & 0x7fffffffu);
      if (apart < distance) {
        distance = apart;
        best = i;
      }
    }
    return best;
  }
  static void scales(const BlockRange& range, KvBlock& out) {
    out.d = scale_to_half(range.extreme / -127.0f);
    out.m = 0;
  }
  static void encode(const float* x, KvBlock& out) {
    const BlockRange range = range_of(x);
    if (!range.finite) return fill_block(out, 8, kHalfNan, 0);
    scales(range, out);
    const float d = f16_to_f32(out.d);
    if (d == 0.0f) return fill_block(out, 8, 0, 0);
    for (int i = 0; i < 32; ++i) out.code[i] = nearest(x[i] / d);
  }
};

// No primary definition: a row of kv_types.def without a codec does not compile.
template <KvType>
struct CodecOf;
template <>
struct CodecOf<KvType::q8_0> : CodecQ8_0 {};
template <>
struct CodecOf<KvType::q5_1> : CodecMinimum<5> {};
template <>
struct CodecOf<KvType::q5_0> : CodecSymmetric<5> {};
template <>
struct CodecOf<KvType::q4_1> : CodecMinimum<4> {};
template <>
struct CodecOf<KvType::q4_0> : CodecSymmetric<4> {};
template <>
struct CodecOf<KvType::iq4_nl> : CodecIq4Nl {};

// Float types: one value at a time.
struct FloatF32 {
  static constexpr int bytes = 4;
  static constexpr bool brain = false;
  static float load(const std::byte* p) {
    float x;
    __builtin_memcpy(&x, p, 4);
    return x;
  }
  static void store(float x, std::byte* p) { __builtin_memcpy(p, &x, 4); }
};
struct FloatF16 {
  static constexpr int bytes = 2;
  static constexpr bool brain = false;
  static float load(const std::byte* p) {
    uint16_t h;
    __builtin_memcpy(&h, p, 2);
    return f16_to_f32(h);
  }
  static void store(float x, std::byte* p) {
    const uint16_t h = f32_to_f16(x);
    __builtin_memcpy(p, &h, 2);
  }
};
struct FloatBf16 {
  static constexpr int bytes = 2;
  static constexpr bool brain = true;
  static float load(const std::byte* p) {
    uint16_t h;
    __builtin_memcpy(&h, p, 2);
    return bf16_to_f32(h);
  }
  static void store(float x, std::byte* p) {
    const uint16_t h = f32_to_bf16(x);
    __builtin_memcpy(p, &h, 2);
  }
};
template <>
struct CodecOf<KvType::f32> : FloatF32 {};
template <>
struct CodecOf<KvType::f16> : FloatF16 {};
template <>
struct CodecOf<KvType::bf16> : FloatBf16 {};

}  // namespace
}  // namespace bantam
