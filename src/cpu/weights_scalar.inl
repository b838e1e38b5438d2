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

struct FormatQ1_0 {
  static constexpr int values = 128, bytes = 18, bias = 0;
  static int code(const std::byte* block, int r, int c) {
    const int bit = 4 * r + c % 4;
    return byte_at(block + c / 4 * 8 + bit / 8) >> (bit % 8) & 1 ? 1 : -1;
  }
  static float scale(const std::byte* block, int r) { return half_at(block + 256 + 2 * r); }
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

int nibble(const std::byte* codes, int r, int c) {
  const uint8_t pair = byte_at(codes + c / 8 * 64 + 4 * r + c % 4);
  return c % 8 < 4 ? pair & 15 : pair >> 4;
}

struct FormatQ4_0 {
  static constexpr int values = 32, bytes = 18;
  static int code(const std::byte* block, int r, int c) { return nibble(block, r, c) - 8; }
  static float scale(const std::byte* block, int r) { return half_at(block + 256 + 2 * r); }
  static float minimum(const std::byte*, int) { return 0.0f; }
};

struct FormatQ4_1 {
  static constexpr int values = 32, bytes = 20;
  static int code(const std::byte* block, int r, int c) { return nibble(block, r, c); }
  static float scale(const std::byte* block, int r) { return half_at(block + 256 + 2 * r); }
  static float minimum(const std::byte* block, int r) { return half_at(block + 288 + 2 * r); }
};

struct FormatQ6_K {
  static constexpr int values = 256, bytes = 210;
  static int code(const std::byte* block, int r, int c) {
    const uint8_t high =
        byte_at(block + 2048 + c / 16 * 64 + 4 * r + c % 4) >> (c % 16 / 4 * 2) & 3;
    return (nibble(block, r, c) | high << 4) - 32;
  }
  static int sub_scale(const std::byte* block, int r, int sub) {
    return static_cast<int8_t>(byte_at(block + 3072 + sub * 16 + r));
  }
  static float scale(const std::byte* block, int r) { return half_at(block + 3328 + 2 * r); }
};

// ---- packing

void put(std::byte* at, unsigned value) { *at = static_cast<std::byte>(value); }
void put_bits(std::byte* at, unsigned bits) { *at |= static_cast<std::byte>(bits); }

void clear(std::byte* group, int64_t bytes) {
  __builtin_memset(group, 0, static_cast<size_t>(bytes));
}

void pack_q1_0(const std::byte* rows, int64_t row_bytes, int n_valid, int cols, std::byte* group) {
  clear(group, 16ll * cols / 128 * 18);
  for (int r = 0; r < n_valid; ++r) {
    for (int b = 0; b < cols / 128; ++b) {
      const std::byte* source = rows + r * row_bytes + b * 18;
      std::byte* block = group + b * 288;
      __builtin_memcpy(block + 256 + 2 * r, source, 2);
      for (int i = 0; i < 16; ++i) {
        const unsigned bits = byte_at(source + 2 + i);
        const int shift = r % 2 * 4;
        put_bits(block + 2 * i * 8 + r / 2, (bits & 15) << shift);
        put_bits(block + (2 * i + 1) * 8 + r / 2, bits >> 4 << shift);
      }
    }
  }
}

void pack_q8_0(const std::byte* rows, int64_t row_bytes, int n_valid, int cols, std::byte* group) {
  clear(group, 16ll * cols / 32 * 34);
  for (int b = 0; b < cols / 32; ++b) {
    std::byte* block = group + b * 544;
    for (int r = 0; r < n_valid; ++r) {
      const std::byte* source = rows + r * row_bytes + b * 34;
      __builtin_memcpy(block + 512 + 2 * r, source, 2);
      for (int c = 0; c < 32; ++c)
        put(block + c / 4 * 64 + 4 * r + c % 4, byte_at(source + 2 + c) ^ 0x80u);
    }
  }
}

// q4_0 and q4_1: GGUF keeps value j in the low nibble of byte j and value j + 16 in the high one.
void pack_nibbles(const std::byte* source, int r, std::byte* codes) {
  for (int c = 0; c < 32; ++c) {
    const unsigned pair = byte_at(source + c % 16);
    const unsigned code = c < 16 ? pair & 15 : pair >> 4;
    put_bits(codes + c / 8 * 64 + 4 * r + c % 4, c % 8 < 4 ? code : code << 4);
  }
}

void pack_q4_0(const std::byte* rows, int64_t row_bytes, int n_valid, int cols, std::byte* group) {
  clear(group, 16ll * cols / 32 * 18);
  for (int b = 0; b < cols / 32; ++b) {
    std::byte* block = group + b * 288;
    for (int r = 0; r < n_valid; ++r) {
      const std::byte* source = rows + r * row_bytes + b * 18;
      __builtin_memcpy(block + 256 + 2 * r, source, 2);
      pack_nibbles(source + 2, r, block);
    }
  }
}

void pack_q4_1(const std::byte* rows, int64_t row_bytes, int n_valid, int cols, std::byte* group) {
  clear(group, 16ll * cols / 32 * 20);
  for (int b = 0; b < cols / 32; ++b) {
    std::byte* block = group + b * 320;
    for (int r = 0; r < n_valid; ++r) {
      const std::byte* source = rows + r * row_bytes + b * 20;
      __builtin_memcpy(block + 256 + 2 * r, source, 2);
      __builtin_memcpy(block + 288 + 2 * r, source + 2, 2);
      pack_nibbles(source + 4, r, block);
    }
  }
}

// Code of value c of a GGUF Q6_K block: halves of 128, in each four runs of 32.
unsigned q6_k_code(const std::byte* source, int c) {
  const int half = c / 128, run = c % 128 / 32, l = c % 32;
  const unsigned low = byte_at(source + 64 * half + l + (run % 2) * 32);
  const unsigned high = byte_at(source + 128 + 32 * half + l) >> (2 * run) & 3;
  return (run < 2 ? low & 15 : low >> 4) | high << 4;
}

void pack_q6_k(const std::byte* rows, int64_t row_bytes, int n_valid, int cols, std::byte* group) {
  clear(group, 16ll * cols / 256 * 210);
  for (int b = 0; b < cols / 256; ++b) {
    std::byte* block = group + b * 3360;
    for (int r = 0; r < n_valid; ++r) {
      const std::byte* source = rows + r * row_bytes + b * 210;
      for (int c = 0; c < 256; ++c) {
        const unsigned code = q6_k_code(source, c);
        put_bits(block + c / 8 * 64 + 4 * r + c % 4, c % 8 < 4 ? code & 15 : (code & 15) << 4);
        put_bits(block + 2048 + c / 16 * 64 + 4 * r + c % 4, code >> 4 << (c % 16 / 4 * 2));
      }
      for (int s = 0; s < 16; ++s) put(block + 3072 + s * 16 + r, byte_at(source + 192 + s));
      __builtin_memcpy(block + 3328 + 2 * r, source + 208, 2);
    }
  }
}

void pack_plain(const std::byte* rows, int64_t row_bytes, int n_valid, int, std::byte* group) {
  for (int r = 0; r < kGroupRows; ++r) {
    if (r < n_valid) {
      __builtin_memcpy(group + r * row_bytes, rows + r * row_bytes, static_cast<size_t>(row_bytes));
    } else {
      clear(group + r * row_bytes, row_bytes);
    }
  }
}

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

template <class Format>
float product_row(const PackedMatrix& w, const ActRows& a, int row, int t) {
  const int r = row % kGroupRows, n = w.cols;
  const int8_t* q = a.q + int64_t{t} * n;
  float y = 0.0f;
  for (int c = 0; c < n; c += a.block) {
    const std::byte* block = block_of<Format>(w, row, c / Format::values);
    int32_t s = 0;
    for (int i = c; i < c + a.block; ++i) {
      s += Format::code(block, r, i % Format::values) * q[i];
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
  const int8_t* q = a.q + int64_t{t} * n;
  float y = 0.0f;
  for (int c = 0; c < n; c += 32) {
    const std::byte* block = block_of<FormatQ6_K>(w, row, c / 256);
    int32_t s = 0;
    for (int half = 0; half < 32; half += 16) {
      int32_t dot = 0;
      for (int i = c + half; i < c + half + 16; ++i)
        dot += FormatQ6_K::code(block, r, i % 256) * q[i];
      s += FormatQ6_K::sub_scale(block, r, (c + half) % 256 / 16) * dot;
    }
    const float d = FormatQ6_K::scale(block, r) * a.d[int64_t{t} * (n / 32) + c / 32];
    y = __builtin_fmaf(static_cast<float>(s), d, y);
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

void quantize_block(const float* x, int n, int8_t* q, float* d) {
  uint32_t largest = 0;
  for (int i = 0; i < n; ++i) {
    const uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float absmax = float_of(largest);
  const bool finite = largest < 0x7f800000u;
  if (!finite || absmax < kTinyMagnitude) {
    *d = finite ? 0.0f : float_of(0x7fc00000u);
    __builtin_memset(q, 0, static_cast<size_t>(n));
    return;
  }
  *d = absmax / 127.0f;
  for (int i = 0; i < n; ++i) {
    const int code = static_cast<int>(round_even(x[i] / *d));
    q[i] = static_cast<int8_t>(code > 127 ? 127 : code < -127 ? -127 : code);
  }
}

void quantize(const float* x, int n, int block, int8_t* q, float* d, int32_t* sums,
              int16_t* sums16) {
  for (int b = 0; b < n / block; ++b) {
    quantize_block(x + b * block, block, q + b * block, d + b);
    sums[b] = 0;
    for (int i = b * block; i < (b + 1) * block; i += 16) {
      int sum = 0;
      for (int k = 0; k < 16; ++k) sum += q[i + k];
      sums16[i / 16] = static_cast<int16_t>(sum);
      sums[b] += sum;
    }
  }
}

void silu_mul(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = silu_f32(gate[i]) * up[i];
}

template <class Format>
constexpr WeightKernels weight_kernels(void (*pack)(const std::byte*, int64_t, int, int,
                                                    std::byte*)) {
  return {pack, unpack_row<Format>, matmul<Format>, matmul_f32<unpack_row<Format>>};
}

[[maybe_unused]] void fill_weights_scalar(Kernels& table) {
  const auto at = [&](WeightType type) -> WeightKernels& {
    return table.weight[static_cast<int>(type)];
  };
  at(WeightType::f32) = {pack_plain, unpack_row_f32, matmul_f32<unpack_row_f32>,
                         matmul_f32<unpack_row_f32>};
  at(WeightType::f16) = {pack_plain, unpack_row_f16, matmul_f32<unpack_row_f16>,
                         matmul_f32<unpack_row_f16>};
  at(WeightType::q1_0) = weight_kernels<FormatQ1_0>(pack_q1_0);
  at(WeightType::q8_0) = weight_kernels<FormatQ8_0>(pack_q8_0);
  at(WeightType::q4_0) = weight_kernels<FormatQ4_0>(pack_q4_0);
  at(WeightType::q4_1) = weight_kernels<FormatQ4_1>(pack_q4_1);
  at(WeightType::q6_k) = weight_kernels<FormatQ6_K>(pack_q6_k);
  table.rms_norm = rms_norm;
  table.quantize = quantize;
  table.silu_mul = silu_mul;
}

}  // namespace
}  // namespace bantam
