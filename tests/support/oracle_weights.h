// The double-precision oracle of weights: decodes original GGUF blocks on its own (no kernel, no
// codec header of src/ but the type list) and forms products of exact values. Tests only.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "codec/types.h"

namespace bantam::oracle {

// A weight is product + minimum; the minimum is 0 for formats without one.
struct Row {
  std::vector<double> product;
  std::vector<double> minimum;
  double value(size_t i) const { return product[i] + minimum[i]; }
};

inline double half(const uint8_t* p) {
  const unsigned bits = p[0] | static_cast<unsigned>(p[1]) << 8;
  const int exponent = static_cast<int>(bits >> 10 & 31);
  const double fraction = bits & 1023;
  double magnitude = std::ldexp(fraction, -24);
  if (exponent == 31) magnitude = fraction != 0 ? std::nan("") : INFINITY;
  if (exponent > 0 && exponent < 31) magnitude = std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

inline void decode_q6_k(const uint8_t* p, double* out) {
  const uint8_t *low = p, *high = p + 128;
  const auto* scales = reinterpret_cast<const int8_t*>(p + 192);
  const double d = half(p + 208);
  for (int n = 0; n < 256; n += 128, low += 64, high += 32, scales += 8, out += 128) {
    for (int l = 0; l < 32; ++l) {
      const int is = l / 16;
      const int q1 = ((low[l] & 15) | (high[l] & 3) << 4) - 32;
      const int q2 = ((low[l + 32] & 15) | (high[l] >> 2 & 3) << 4) - 32;
      const int q3 = ((low[l] >> 4) | (high[l] >> 4 & 3) << 4) - 32;
      const int q4 = ((low[l + 32] >> 4) | (high[l] >> 6 & 3) << 4) - 32;
      out[l] = d * scales[is] * q1;
      out[l + 32] = d * scales[is + 2] * q2;
      out[l + 64] = d * scales[is + 4] * q3;
      out[l + 96] = d * scales[is + 6] * q4;
    }
  }
}

// Sub-scales and minima as the published layout of the 12 bytes has them.
inline void decode_q4_k(const uint8_t* p, double* product, double* minimum) {
  const double d = half(p), m = half(p + 2);
  const uint8_t* s = p + 4;
  for (int j = 0; j < 8; ++j) {
    const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    const int low = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | (s[j] >> 6) << 4;
    for (int l = 0; l < 32; ++l) {
      const uint8_t pair = p[16 + j / 2 * 32 + l];
      product[32 * j + l] = d * scale * (j % 2 == 0 ? pair & 15 : pair >> 4);
      minimum[32 * j + l] = -m * low;
    }
  }
}

inline void decode_block(WeightType type, const uint8_t* p, double* product, double* minimum) {
  switch (type) {
    case WeightType::f32: {
      float x;
      __builtin_memcpy(&x, p, 4);
      product[0] = x;
      return;
    }
    case WeightType::f16:
      product[0] = half(p);
      return;
    case WeightType::q4_0:
      for (int j = 0; j < 16; ++j) {
        product[j] = ((p[2 + j] & 15) - 8) * half(p);
        product[j + 16] = ((p[2 + j] >> 4) - 8) * half(p);
      }
      return;
    case WeightType::q4_1:
      for (int j = 0; j < 16; ++j) {
        product[j] = (p[4 + j] & 15) * half(p);
        product[j + 16] = (p[4 + j] >> 4) * half(p);
        minimum[j] = minimum[j + 16] = half(p + 2);
      }
      return;
    case WeightType::q8_0:
      for (int j = 0; j < 32; ++j) product[j] = static_cast<int8_t>(p[2 + j]) * half(p);
      return;
    case WeightType::q6_k:
      return decode_q6_k(p, product);
    case WeightType::q4_k:
      return decode_q4_k(p, product, minimum);
    case WeightType::q2_0:
    case WeightType::pq2_0:
      for (int j = 0; j < info(type).block_values; ++j) {
        product[j] = ((p[2 + j / 4] >> (j % 4 * 2) & 3) - 1) * half(p);
      }
      return;
    case WeightType::q1_0:
      for (int j = 0; j < 128; ++j) product[j] = p[2 + j / 8] >> (j % 8) & 1 ? half(p) : -half(p);
      return;
  }
  CHECK(false);
}

inline Row decode_row(WeightType type, const std::byte* bytes, int cols) {
  const auto n = static_cast<size_t>(cols);
  Row row{std::vector<double>(n, 0.0), std::vector<double>(n, 0.0)};
  const WeightTypeInfo& facts = info(type);
  const auto* p = reinterpret_cast<const uint8_t*>(bytes);
  for (int c = 0; c < cols; c += facts.block_values, p += facts.block_bytes) {
    decode_block(type, p, row.product.data() + c, row.minimum.data() + c);
  }
  return row;
}

// A product and the largest error that the float arithmetic of rules 2 and 4 may make on it.
struct Product {
  double value = 0;
  double bound = 0;
};

constexpr double kHalfUlp = 0x1p-24;

// q: codes of one activation row, d: one scale for each `block` of them. Each term is rounded when
// its scales are multiplied, when its integer becomes a float and when it is added; the product of
// q4_k's sub-scales is part of the integer.
inline Product quantized_dot(const Row& w, const int32_t* q, const float* d, int block) {
  Product out;
  double magnitude = 0;
  int terms = 0;
  for (size_t begin = 0; begin < w.product.size(); begin += static_cast<size_t>(block)) {
    const double scale = d[begin / static_cast<size_t>(block)];
    double product = 0, minimum = 0;
    for (size_t i = begin; i < begin + static_cast<size_t>(block); ++i) {
      product += w.product[i] * q[i];
      minimum += w.minimum[i] * q[i];
    }
    out.value += product * scale + minimum * scale;
    magnitude += std::fabs(product * scale) + std::fabs(minimum * scale);
    terms += 2;
  }
  // 2^-120: products of scales below the smallest normal float.
  out.bound = magnitude * (terms + 3) * kHalfUlp + terms * 0x1p-120;
  return out;
}

// Sixteen lanes, then four additions; the weight itself is rounded at most twice.
inline Product float_dot(const Row& w, const float* x) {
  Product out;
  double magnitude = 0;
  const size_t n = w.product.size();
  for (size_t i = 0; i < n; ++i) {
    out.value += w.value(i) * x[i];
    magnitude += (std::fabs(w.product[i]) + 2 * std::fabs(w.minimum[i])) * std::fabs(x[i]);
  }
  const double roundings = std::ceil(static_cast<double>(n) / 16) + 4 + 3;
  out.bound = magnitude * roundings * kHalfUlp + static_cast<double>(n) * 0x1p-140;
  return out;
}

}  // namespace bantam::oracle
