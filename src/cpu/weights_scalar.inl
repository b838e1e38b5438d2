// Canonical kernels of weights and rows (NUMERICS rules 1 to 4). Every other instruction set
// repeats these bit for bit. Reads the packed layout that kernels.h describes; refuses nothing.
#pragma once

#include "codec/half.h"
#include "codec/numerics.h"
#include "cpu/kernels.h"

namespace bantam {
namespace {

constexpr int kLanes = 16;

float half_at(const std::byte* p) {
  uint16_t h;
  __builtin_memcpy(&h, p, sizeof(h));
  return f16_to_f32(h);
}

uint8_t byte_at(const std::byte* p) { return static_cast<uint8_t>(*p); }
void put(std::byte* at, unsigned value) { *at = static_cast<std::byte>(value); }
void clear(std::byte* at, int64_t bytes) { __builtin_memset(at, 0, static_cast<size_t>(bytes)); }

// Rule 2: the fixed tree over 16 lanes.
float sum_lanes(const float* lane) {
  float a[8], b[4];
  for (int i = 0; i < 8; ++i) a[i] = lane[i] + lane[i + 8];
  for (int i = 0; i < 4; ++i) b[i] = a[i] + a[i + 4];
  return (b[0] + b[2]) + (b[1] + b[3]);
}

float dot_lanes(const float* a, const float* b, int n) {
  float lane[kLanes] = {};
  for (int i = 0; i < n; ++i) lane[i % kLanes] = __builtin_fmaf(a[i], b[i], lane[i % kLanes]);
  return sum_lanes(lane);
}

// ---- formats: how a code of a packed group is found. `block` points at the packed 16-row block.

// Codes of Bits bits in words of 64 bytes: byte 4r + c % 4, quads from the low end.
template <int Bits>
int word_code(const std::byte* words, int r, int c) {
  constexpr int columns = 32 / Bits;
  const uint8_t byte = byte_at(words + c / columns * 64 + 4 * r + c % 4);
  return byte >> (c % columns / 4 * Bits) & ((1 << Bits) - 1);
}

struct FormatQ1_0 {
  static constexpr int values = 128, bytes = 18;
  static int code(const std::byte* block, int r, int c) {
    return 2 * word_code<1>(block, r, c) - 1;
  }
  static float scale(const std::byte* block, int r) { return half_at(block + 256 + 2 * r); }
  static float minimum(const std::byte*, int) { return 0.0f; }
};

// Ternary: q2_0 in blocks of 64, pq2_0 of 128.
template <int Values>
struct FormatQ2_0 {
  static constexpr int values = Values, bytes = Values / 4 + 2;
  static int code(const std::byte* block, int r, int c) { return word_code<2>(block, r, c) - 1; }
  static float scale(const std::byte* block, int r) { return half_at(block + 4 * Values + 2 * r); }
  static float minimum(const std::byte*, int) { return 0.0f; }
};

struct FormatQ8_0 {
  static constexpr int values = 32, bytes = 34;
  static int code(const std::byte* block, int r, int c) {
    return static_cast<int>(byte_at(block + c / 4 * 64 + 4 * r + c % 4)) - 128;
  }
  static float scale(const std::byte* block, int r) { return half_at(block + 512 + 2 * r); }
  static float minimum(const std::byte*, int) { return 0.0f; }
};

struct FormatQ4_0 {
  static constexpr int values = 32, bytes = 18;
  static int code(const std::byte* block, int r, int c) { return word_code<4>(block, r, c) - 8; }
  static float scale(const std::byte* block, int r) { return half_at(block + 256 + 2 * r); }
  static float minimum(const std::byte*, int) { return 0.0f; }
};

struct FormatQ4_1 {
  static constexpr int values = 32, bytes = 20;
  static int code(const std::byte* block, int r, int c) { return word_code<4>(block, r, c); }
  static float scale(const std::byte* block, int r) { return half_at(block + 256 + 2 * r); }
  static float minimum(const std::byte* block, int r) { return half_at(block + 288 + 2 * r); }
};

// Sub-scales and minima of 6 bits for 32 columns each.
struct FormatQ4_K {
  static constexpr int values = 256, bytes = 144;
  static int code(const std::byte* block, int r, int c) { return word_code<4>(block, r, c); }
  static int six_bits(const std::byte* block, int r, int sub, int which) {
    const unsigned low = byte_at(block + 2048 + sub * 16 + r) >> (4 * which) & 15;
    const unsigned pair = byte_at(block + 2176 + sub / 2 * 16 + r) >> (sub % 2 * 4);
    return static_cast<int>(low | (pair >> (2 * which) & 3) << 4);
  }
  static int sub_scale(const std::byte* block, int r, int sub) {
    return six_bits(block, r, sub, 0);
  }
  static int sub_minimum(const std::byte* block, int r, int sub) {
    return six_bits(block, r, sub, 1);
  }
  static float scale(const std::byte* block, int r) { return half_at(block + 2240 + 2 * r); }
  static float minimum(const std::byte* block, int r) { return half_at(block + 2272 + 2 * r); }
};

struct FormatQ6_K {
  static constexpr int values = 256, bytes = 210;
  static int code(const std::byte* block, int r, int c) {
    return (word_code<4>(block, r, c) | word_code<2>(block + 2048, r, c) << 4) - 32;
  }
  static int sub_scale(const std::byte* block, int r, int sub) {
    return static_cast<int8_t>(byte_at(block + 3072 + sub * 16 + r));
  }
  static float scale(const std::byte* block, int r) { return half_at(block + 3328 + 2 * r); }
};

// ---- rows as floats

template <class Format>
const std::byte* block_of(const PackedMatrix& w, int row, int b) {
  const int64_t blocks = w.cols / Format::values;
  return w.data + (row / kGroupRows * blocks + b) * kGroupRows * Format::bytes;
}

template <class Format>
void unpack_row(const PackedMatrix& w, int row, float* out) {
  const int r = row % kGroupRows;
  for (int b = 0; b < w.cols / Format::values; ++b) {
    const std::byte* block = block_of<Format>(w, row, b);
    const float d = Format::scale(block, r), m = Format::minimum(block, r);
    for (int c = 0; c < Format::values; ++c) {
      const float product = static_cast<float>(Format::code(block, r, c)) * d;
      out[b * Format::values + c] = Format::bytes == 20 ? product + m : product;
    }
  }
}

template <>
void unpack_row<FormatQ6_K>(const PackedMatrix& w, int row, float* out) {
  const int r = row % kGroupRows;
  for (int b = 0; b < w.cols / 256; ++b) {
    const std::byte* block = block_of<FormatQ6_K>(w, row, b);
    const float d = FormatQ6_K::scale(block, r);
    for (int c = 0; c < 256; ++c) {
      const int code = FormatQ6_K::code(block, r, c) * FormatQ6_K::sub_scale(block, r, c / 16);
      out[b * 256 + c] = static_cast<float>(code) * d;
    }
  }
}

template <>
void unpack_row<FormatQ4_K>(const PackedMatrix& w, int row, float* out) {
  const int r = row % kGroupRows;
  for (int b = 0; b < w.cols / 256; ++b) {
    const std::byte* block = block_of<FormatQ4_K>(w, row, b);
    const float d = FormatQ4_K::scale(block, r), m = FormatQ4_K::minimum(block, r);
    for (int c = 0; c < 256; ++c) {
      const int code = FormatQ4_K::code(block, r, c) * FormatQ4_K::sub_scale(block, r, c / 32);
      const float low = static_cast<float>(FormatQ4_K::sub_minimum(block, r, c / 32)) * m;
      out[b * 256 + c] = static_cast<float>(code) * d - low;
    }
  }
}

void unpack_row_f32(const PackedMatrix& w, int row, float* out) {
  __builtin_memcpy(out, w.data + int64_t{row} * w.cols * 4, static_cast<size_t>(w.cols) * 4);
}

void unpack_row_f16(const PackedMatrix& w, int row, float* out) {
  const std::byte* source = w.data + int64_t{row} * w.cols * 2;
  for (int c = 0; c < w.cols; ++c) out[c] = half_at(source + 2 * c);
}

// ---- products

void put_result(const MatmulArgs& args, int t, int row, float y) {
  if (row >= args.w->rows) return;
  float* out = args.y + t * args.ldy + row;
  *out = args.add ? *out + y : y;
}

// Column c of row t as the integer that was rounded.
int act_value(const ActRows& a, int t, int c) {
  const int64_t i = act_offset(a.n_rows, a.n_cols, t, c);
  return a.low == nullptr ? a.q[i] : 256 * a.q[i] + a.low[i];
}

template <class Format>
float product_row(const PackedMatrix& w, const ActRows& a, int row, int t) {
  const int r = row % kGroupRows, n = w.cols;
  float y = 0.0f;
  for (int c = 0; c < n; c += a.block) {
    const std::byte* block = block_of<Format>(w, row, c / Format::values);
    int32_t s = 0;
    for (int i = c; i < c + a.block; ++i) {
      s += Format::code(block, r, i % Format::values) * act_value(a, t, i);
    }
    const int64_t index = int64_t{t} * (n / a.block) + c / a.block;
    y = __builtin_fmaf(static_cast<float>(s), Format::scale(block, r) * a.d[index], y);
    if (Format::bytes == 20) {
      const float scaled = Format::minimum(block, r) * a.d[index];
      y = __builtin_fmaf(static_cast<float>(a.sums[index]), scaled, y);
    }
  }
  return y;
}

template <>
float product_row<FormatQ6_K>(const PackedMatrix& w, const ActRows& a, int row, int t) {
  const int r = row % kGroupRows, n = w.cols;
  float y = 0.0f;
  for (int c = 0; c < n; c += 32) {
    const std::byte* block = block_of<FormatQ6_K>(w, row, c / 256);
    int32_t s = 0;
    for (int half = 0; half < 32; half += 16) {
      int32_t dot = 0;
      for (int i = c + half; i < c + half + 16; ++i)
        dot += FormatQ6_K::code(block, r, i % 256) * act_value(a, t, i);
      s += FormatQ6_K::sub_scale(block, r, (c + half) % 256 / 16) * dot;
    }
    const float d = FormatQ6_K::scale(block, r) * a.d[int64_t{t} * (n / 32) + c / 32];
    y = __builtin_fmaf(static_cast<float>(s), d, y);
  }
  return y;
}

template <>
float product_row<FormatQ4_K>(const PackedMatrix& w, const ActRows& a, int row, int t) {
  const int r = row % kGroupRows, n = w.cols;
  float y = 0.0f;
  for (int c = 0; c < n; c += 32) {
    const std::byte* block = block_of<FormatQ4_K>(w, row, c / 256);
    const int sub = c % 256 / 32;
    int32_t dot = 0;
    for (int i = c; i < c + 32; ++i) {
      dot += FormatQ4_K::code(block, r, i % 256) * act_value(a, t, i);
    }
    const int64_t index = int64_t{t} * (n / 32) + c / 32;
    const int32_t s = FormatQ4_K::sub_scale(block, r, sub) * dot;
    const int32_t low = FormatQ4_K::sub_minimum(block, r, sub) * a.sums[index];
    y = __builtin_fmaf(static_cast<float>(s), FormatQ4_K::scale(block, r) * a.d[index], y);
    y = __builtin_fmaf(static_cast<float>(low), -FormatQ4_K::minimum(block, r) * a.d[index], y);
  }
  return y;
}

template <class Format>
void matmul(const MatmulArgs& args) {
  const int end =
      args.group_end * kGroupRows < args.w->rows ? args.group_end * kGroupRows : args.w->rows;
  for (int row = args.group_begin * kGroupRows; row < end; ++row) {
    for (int t = 0; t < args.a.n_rows; ++t)
      put_result(args, t, row, product_row<Format>(*args.w, args.a, row, t));
  }
}

template <void (*Matmul)(const MatmulArgs&)>
void matmul_each(const MatmulArgs* four) {
  for (int i = 0; i < 4; ++i) Matmul(four[i]);
}

template <void (*Unpack)(const PackedMatrix&, int, float*)>
void matmul_f32(const MatmulArgs& args) {
  const int end =
      args.group_end * kGroupRows < args.w->rows ? args.group_end * kGroupRows : args.w->rows;
  for (int row = args.group_begin * kGroupRows; row < end; ++row) {
    Unpack(*args.w, row, args.scratch);
    for (int t = 0; t < args.n_rows; ++t) {
      put_result(args, t, row,
                 dot_lanes(args.scratch, args.x + int64_t{t} * args.w->cols, args.w->cols));
    }
  }
}

// ---- rows

void rms_norm(const float* x, const float* w, int n, float eps, float* y) {
  const float mean = dot_lanes(x, x, n) / static_cast<float>(n);
  const float r = 1.0f / __builtin_sqrtf(mean + eps);
  for (int i = 0; i < n; ++i) y[i] = x[i] * r * w[i];
}

// The scale of a block for codes up to `top`; 0 or NaN when every code is 0.
float scale_of_block(const float* x, int n, float top) {
  uint32_t largest = 0;
  for (int i = 0; i < n; ++i) {
    const uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  if (largest >= 0x7f800000u) return float_of(0x7fc00000u);
  const float absmax = float_of(largest);
  return absmax < kTinyMagnitude ? 0.0f : absmax / top;
}

int code_of(float x, float d, int top) {
  if (!(d > 0.0f)) return 0;
  const int code = static_cast<int>(round_even(x / d));
  return code > top ? top : code < -top ? -top : code;
}

void quantize(const float* x, int n, int block, int8_t* q, float* d, int32_t* sums,
              int16_t* sums16) {
  for (int b = 0; b < n / block; ++b) {
    d[b] = scale_of_block(x + b * block, block, 127.0f);
    sums[b] = 0;
    for (int i = b * block; i < (b + 1) * block; i += 16) {
      int sum = 0;
      for (int k = i; k < i + 16; ++k) {
        q[k] = static_cast<int8_t>(code_of(x[k], d[b], 127));
        sum += q[k];
      }
      if (sums16 != nullptr) sums16[i / 16] = static_cast<int16_t>(sum);
      sums[b] += sum;
    }
  }
}

void quantize16(const float* x, int n, int block, int8_t* high, int8_t* low, float* d,
                int32_t* sums) {
  for (int b = 0; b < n / block; ++b) {
    d[b] = scale_of_block(x + b * block, block, 32512.0f);
    sums[b] = 0;
    for (int i = b * block; i < (b + 1) * block; ++i) {
      const int code = code_of(x[i], d[b], 32512);
      const int upper = (code + 128) >> 8;
      high[i] = static_cast<int8_t>(upper);
      low[i] = static_cast<int8_t>(code - 256 * upper);
      sums[b] += code;
    }
  }
}

void build_tables(const int8_t* q, const int8_t* low, int n, std::byte* tables) {
  const int planes = low == nullptr ? 2 : 3, bits = low == nullptr ? 5 : 6;
  for (int at = 0; at < n; at += 16, tables += 64 * planes) {
    for (int entry = 0; entry < 64; ++entry) {
      int sum = 0;
      for (int k = 0; k < 4; ++k) {
        const int i = at + 4 * k + entry / 16;
        const int x = low == nullptr ? q[i] : 256 * q[i] + low[i];
        sum += (entry >> k & 1) != 0 ? x : -x;
      }
      for (int p = 0; p < planes - 1; ++p) {
        put(tables + 64 * p + entry, static_cast<unsigned>(sum) & ((1u << bits) - 1));
        sum >>= bits;
      }
      put(tables + 64 * (planes - 1) + entry, static_cast<unsigned>(sum) & 255u);
    }
  }
}

void silu_mul(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = silu_f32(gate[i]) * up[i];
}

template <class Format>
constexpr WeightKernels weight_kernels() {  // pack_group: fill_pack
  return {nullptr, unpack_row<Format>, matmul<Format>, matmul_f32<unpack_row<Format>>,
          matmul_each<matmul<Format>>};
}

[[maybe_unused]] void fill_weights_scalar(Kernels& table) {
  const auto at = [&](WeightType type) -> WeightKernels& {
    return table.weight[static_cast<int>(type)];
  };
  at(WeightType::f32) = {nullptr, unpack_row_f32, matmul_f32<unpack_row_f32>,
                         matmul_f32<unpack_row_f32>, matmul_each<matmul_f32<unpack_row_f32>>};
  at(WeightType::f16) = {nullptr, unpack_row_f16, matmul_f32<unpack_row_f16>,
                         matmul_f32<unpack_row_f16>, matmul_each<matmul_f32<unpack_row_f16>>};
  at(WeightType::q1_0) = weight_kernels<FormatQ1_0>();
  at(WeightType::q2_0) = weight_kernels<FormatQ2_0<64>>();
  at(WeightType::pq2_0) = weight_kernels<FormatQ2_0<128>>();
  at(WeightType::q4_k) = weight_kernels<FormatQ4_K>();
  at(WeightType::q8_0) = weight_kernels<FormatQ8_0>();
  at(WeightType::q4_0) = weight_kernels<FormatQ4_0>();
  at(WeightType::q4_1) = weight_kernels<FormatQ4_1>();
  at(WeightType::q6_k) = weight_kernels<FormatQ6_K>();
  table.rms_norm = rms_norm;
  table.quantize = quantize;
  table.quantize16 = quantize16;
  table.build_tables = build_tables;
  table.silu_mul = silu_mul;
}

}  // namespace
}  // namespace bantam
