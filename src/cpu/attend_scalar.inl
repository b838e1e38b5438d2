// Canonical kernels of the KV cache and of attention (NUMERICS rules 2, 5, 6, 7). Every other
// instruction set repeats these bit for bit. Tile layout: codec/kv_layout.h. Refuses nothing.
#pragma once

#include "codec/kv_codec.h"
#include "codec/numerics.h"
#include "cpu/kernels.h"
#include "cpu/weights_scalar.inl"

namespace bantam {
namespace {

// ---- where codes lie

template <class Codec>
constexpr KvTileLayout layout_of(int head_dim) {
  return kv_quant_layout(Codec::bits, Codec::minimum, head_dim);
}

template <class Codec, bool IsKey>
struct Place {
  int64_t byte;  // of the code or its nibble
  int shift;     // 0 or 4 for nibbles
  int64_t high;  // byte of the fifth bit, relative to the bit plane
  int high_bit;

  Place(int head_dim, int pos, int channel) : byte(0), shift(0), high(0), high_bit(0) {
    if constexpr (Codec::bits == 8) {
      byte = IsKey ? channel / 4 * 128 + pos * 4 + channel % 4
                   : int64_t{pos / 4} * head_dim * 4 + channel * 4 + pos % 4;
    } else if constexpr (IsKey) {
      byte = channel / 8 * 128 + pos * 4 + channel % 4;
      shift = channel % 8 < 4 ? 0 : 4;
    } else {
      byte = int64_t{pos / 4} * head_dim * 2 + channel / 32 * 64 + channel % 16 * 4 + pos % 4;
      shift = channel % 32 < 16 ? 0 : 4;
    }
    const int bit = IsKey ? 4 * pos + channel % 4 : 4 * (channel % 16) + pos % 4;
    const int64_t word =
        IsKey ? int64_t{channel / 4} * 16 : (int64_t{pos / 4} * (head_dim / 16) + channel / 16) * 8;
    high = word + bit / 8;
    high_bit = bit % 8;
  }
};

template <class Codec, bool IsKey>
void put_code(std::byte* tile, const KvTileLayout& at, int head_dim, int pos, int channel,
              unsigned code) {
  const Place<Codec, IsKey> place(head_dim, pos, channel);
  if constexpr (Codec::bits == 8) {
    put(tile + place.byte, code);
    return;
  }
  const unsigned keep = byte_at(tile + place.byte) & (place.shift == 0 ? 0xf0u : 0x0fu);
  put(tile + place.byte, keep | (code & 15) << place.shift);
  if constexpr (Codec::bits == 5) {
    std::byte* plane = tile + at.high + place.high;
    const unsigned others = byte_at(plane) & ~(1u << place.high_bit);
    put(plane, others | (code >> 4) << place.high_bit);
  }
}

template <class Codec, bool IsKey>
unsigned get_code(const std::byte* tile, const KvTileLayout& at, int head_dim, int pos,
                  int channel) {
  const Place<Codec, IsKey> place(head_dim, pos, channel);
  if constexpr (Codec::bits == 8) return byte_at(tile + place.byte);
  unsigned code = byte_at(tile + place.byte) >> place.shift & 15;
  if constexpr (Codec::bits == 5) {
    code |= (byte_at(tile + at.high + place.high) >> place.high_bit & 1u) << 4;
  }
  return code;
}

// ---- quantized types

template <class Codec, bool IsKey>
void store_quant(const float* row, int head_dim, int pos, std::byte* tile) {
  const KvTileLayout at = layout_of<Codec>(head_dim);
  KvBlock block;
  for (int b = 0; b < head_dim / 32; ++b) {
    Codec::encode(row + 32 * b, block);
    const int64_t index = (int64_t{b} * 32 + pos) * 2;
    __builtin_memcpy(tile + at.scales + index, &block.d, 2);
    if (Codec::minimum) __builtin_memcpy(tile + at.minima + index, &block.m, 2);
    for (int i = 0; i < 32; ++i) {
      put_code<Codec, IsKey>(tile, at, head_dim, pos, 32 * b + i, block.code[i]);
    }
  }
}

template <class Codec, bool IsKey>
void erase_quant(int head_dim, int from, std::byte* tile) {
  const KvTileLayout at = layout_of<Codec>(head_dim);
  if (from == 0) return clear(tile, at.bytes);
  for (int pos = from; pos < 32; ++pos) {
    for (int c = 0; c < head_dim; ++c) put_code<Codec, IsKey>(tile, at, head_dim, pos, c, 0);
    for (int b = 0; b < head_dim / 32; ++b) {
      clear(tile + at.scales + (b * 32 + pos) * 2, 2);
      if (Codec::minimum) clear(tile + at.minima + (b * 32 + pos) * 2, 2);
    }
  }
}

template <class Codec>
void scores_quant(const ScoreArgs& args) {
  const int hd = args.head_dim;
  const KvTileLayout at = layout_of<Codec>(hd);
  for (int r = 0; r < args.n_rows; ++r) {
    const int8_t* q = args.q + int64_t{r} * hd;
    const int16_t* sums = args.sums16 + int64_t{r} * (hd / 16);
    for (int pos = 0; pos < 32; ++pos) {
      float s = 0.0f;
      for (int b = 0; b < hd / 32; ++b) {
        int32_t dot = 0;
        for (int c = 32 * b; c < 32 * b + 32; ++c) {
          dot += Codec::value(get_code<Codec, true>(args.tile, at, hd, pos, c)) * q[c];
        }
        const int64_t index = (int64_t{b} * 32 + pos) * 2;
        s = __builtin_fmaf(static_cast<float>(dot), half_at(args.tile + at.scales + index), s);
        if (Codec::minimum) {
          const float sum = static_cast<float>(sums[2 * b] + sums[2 * b + 1]);
          s = __builtin_fmaf(sum, half_at(args.tile + at.minima + index), s);
        }
      }
      args.s[r * args.s_stride + pos] = s * args.scale[r];
    }
  }
}

// The u8 weights of one row, tile and block (rule 5). c = 0 when nothing is to be added; NaN
// weights give c = NaN.
struct TileWeights {
  int u[32];
  float c;
};

TileWeights tile_weights(const float* p, const std::byte* scales, int n_visible) {
  TileWeights out;
  float w[32];
  uint32_t largest = 0;
  for (int i = 0; i < 32; ++i) {
    const float d = float_of(bits_of(half_at(scales + 2 * i)) & 0x7fffffffu);
    w[i] = i < n_visible ? p[i] * d : 0.0f;
    const uint32_t magnitude = bits_of(w[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float x = float_of(largest);
  for (int i = 0; i < 32; ++i) out.u[i] = 0;
  out.c = largest < 0x7f800000u ? 0.0f : float_of(0x7fc00000u);
  if (largest >= 0x7f800000u || x < kTinyMagnitude) return out;
  const float r = 255.0f / x;
  out.c = x / 255.0f;
  for (int i = 0; i < 32; ++i) out.u[i] = static_cast<int>(round_even(w[i] * r));
  return out;
}

template <class Codec>
void weigh_block(const WeighArgs& args, const KvTileLayout& at, int r, int b) {
  const int hd = args.head_dim, n_visible = args.n_visible[r];
  const float* p = args.p + r * args.p_stride;
  float* acc = args.acc + r * args.acc_stride + 32 * b;
  for (int c = 0; args.first && c < 32; ++c) acc[c] = 0.0f;
  const std::byte* scales = args.tile + at.scales + b * 64;
  const TileWeights w = tile_weights(p, scales, n_visible);
  if (!(w.c == 0.0f)) {
    for (int c = 0; c < 32; ++c) {
      int32_t sum = 0;
      for (int pos = 0; pos < 32; ++pos) {
        const int value = Codec::value(get_code<Codec, false>(args.tile, at, hd, pos, 32 * b + c));
        const bool negative = (byte_at(scales + 2 * pos + 1) & 0x80) != 0;
        sum += w.u[pos] * (negative ? -value : value);
      }
      acc[c] = __builtin_fmaf(static_cast<float>(sum), w.c, acc[c]);
    }
  }
  if (!Codec::minimum) return;
  float lane[kLanes] = {};
  for (int pos = 0; pos < n_visible; ++pos) {
    const float m = half_at(args.tile + at.minima + (b * 32 + pos) * 2);
    lane[pos % kLanes] = __builtin_fmaf(p[pos], m, lane[pos % kLanes]);
  }
  const float sum = sum_lanes(lane);
  for (int c = 0; c < 32; ++c) acc[c] = acc[c] + sum;
}

template <class Codec>
void weigh_quant(const WeighArgs& args) {
  const KvTileLayout at = layout_of<Codec>(args.head_dim);
  for (int r = 0; r < args.n_rows; ++r) {
    if (args.n_visible[r] == 0) continue;
    for (int b = 0; b < args.head_dim / 32; ++b) weigh_block<Codec>(args, at, r, b);
  }
}

// ---- float types

template <class Float>
void store_float(const float* row, int head_dim, int pos, std::byte* tile) {
  for (int c = 0; c < head_dim; ++c) {
    Float::store(row[c], tile + (int64_t{pos} * head_dim + c) * Float::bytes);
  }
}

template <class Float>
void erase_float(int head_dim, int from, std::byte* tile) {
  clear(tile + int64_t{from} * head_dim * Float::bytes,
        int64_t{32 - from} * head_dim * Float::bytes);
}

template <class Float>
void scores_float(const ScoreArgs& args) {
  const int hd = args.head_dim;
  float key[256];
  for (int pos = 0; pos < 32; ++pos) {
    for (int c = 0; c < hd; ++c) {
      key[c] = Float::load(args.tile + (int64_t{pos} * hd + c) * Float::bytes);
    }
    for (int r = 0; r < args.n_rows; ++r) {
      args.s[r * args.s_stride + pos] =
          dot_lanes(args.qf + int64_t{r} * hd, key, hd) * args.scale[r];
    }
  }
}

template <class Float>
void weigh_float(const WeighArgs& args) {
  const int hd = args.head_dim;
  for (int r = 0; r < args.n_rows; ++r) {
    float* acc = args.acc + r * args.acc_stride;
    for (int c = 0; args.first && c < hd; ++c) acc[c] = 0.0f;
    for (int pos = 0; pos < args.n_visible[r]; ++pos) {
      const float p = args.p[r * args.p_stride + pos];
      for (int c = 0; c < hd; ++c) {
        const float v = Float::load(args.tile + (int64_t{pos} * hd + c) * Float::bytes);
        acc[c] = __builtin_fmaf(p, v, acc[c]);
      }
    }
  }
}

// ---- rows

void rope(float* x, int rope_dims, bool interleaved, const float* cos, const float* sin) {
  const int half = rope_dims / 2;
  for (int i = 0; i < half; ++i) {
    float& a = interleaved ? x[2 * i] : x[i];
    float& b = interleaved ? x[2 * i + 1] : x[i + half];
    const float x0 = a, x1 = b;
    a = x0 * cos[i] - x1 * sin[i];
    b = x0 * sin[i] + x1 * cos[i];
  }
}

float rotation_norm(int block) {
  // float(1 / sqrt(n)) from double, for the powers of two that head sizes allow.
  const double root = __builtin_sqrt(static_cast<double>(block));
  return static_cast<float>(1.0 / root);
}

void rotate(float* x, int n, int block) {
  const float norm = rotation_norm(block);
  for (int start = 0; start < n; start += block) {
    float* y = x + start;
    for (int stride = 1; stride < block; stride *= 2) {
      for (int i = 0; i < block; i += 2 * stride) {
        for (int j = i; j < i + stride; ++j) {
          const float a = y[j], b = y[j + stride];
          y[j] = a + b;
          y[j + stride] = a - b;
        }
      }
    }
    for (int i = 0; i < block; ++i) y[i] = y[i] * norm;
  }
}

void softmax_page(float* s, int n_visible, float* m, float* l) {
  float top = s[0];
  for (int i = 1; i < n_visible; ++i) top = s[i] > top ? s[i] : top;
  float lane[kLanes] = {};
  for (int i = 0; i < n_visible; ++i) {
    s[i] = exp_f32(s[i] - top);
    lane[i % kLanes] = lane[i % kLanes] + s[i];
  }
  for (int i = n_visible; i < 256; ++i) s[i] = 0.0f;
  *m = top;
  *l = sum_lanes(lane);
}

void merge(int head_dim, float* m, float* l, float* acc, float m_p, float l_p, const float* acc_p) {
  const float top = m_p > *m ? m_p : *m;
  const float a = exp_f32(*m - top), b = exp_f32(m_p - top);
  for (int i = 0; i < head_dim; ++i) acc[i] = acc[i] * a + acc_p[i] * b;
  *l = *l * a + l_p * b;
  *m = top;
}

void finish(int head_dim, const float* acc, float l, float* out) {
  for (int i = 0; i < head_dim; ++i) out[i] = acc[i] / l;
}

template <KvType Type>
constexpr KvKernels kv_kernels() {
  using Codec = CodecOf<Type>;
  if constexpr (info(Type).quantized) {
    return {store_quant<Codec, true>,  store_quant<Codec, false>, erase_quant<Codec, true>,
            erase_quant<Codec, false>, scores_quant<Codec>,       weigh_quant<Codec>};
  } else {
    return {store_float<Codec>, store_float<Codec>,  erase_float<Codec>,
            erase_float<Codec>, scores_float<Codec>, weigh_float<Codec>};
  }
}

[[maybe_unused]] void fill_attend_scalar(Kernels& table) {
#define KV_TYPE(name, bytes32, quantized, minimum) \
  table.kv[static_cast<int>(KvType::name)] = kv_kernels<KvType::name>();
#include "codec/kv_types.def"
#undef KV_TYPE
  table.rope = rope;
  table.rotate = rotate;
  table.softmax_page = softmax_page;
  table.merge = merge;
  table.finish = finish;
}

}  // namespace
}  // namespace bantam
