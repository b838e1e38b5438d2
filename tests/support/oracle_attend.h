// The oracle of attention: double precision, decodes tile bytes from docs/KV_LAYOUT.md by its own code. In no kernel table.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "tests/support/attend_compose.h"

namespace bantam {

inline double oracle_half(const std::byte* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  const int e = (h >> 10) & 31, f = h & 1023;
  const double sign = h >> 15 != 0 ? -1.0 : 1.0;
  if (e == 31) return f != 0 ? std::nan("") : sign * INFINITY;
  return e == 0 ? sign * std::ldexp(f, -24) : sign * std::ldexp(1024 + f, e - 25);
}

// A decoded value as code * d + m, so that the oracle can repeat the integer roundings.
struct OracleValue {
  double code, d, m;
  double value() const { return code * d + m; }
};

inline OracleValue oracle_value(const std::byte* tile, KvType type, bool key, int hd, int pos, int ch) {
  const auto byte = [&](int64_t i) { return static_cast<unsigned>(tile[i]); };
  const std::string name = info(type).name;
  const int64_t flat = int64_t{pos} * hd + ch;
  if (name == "f32") {
    float x;
    std::memcpy(&x, tile + flat * 4, 4);
    return {x, 1, 0};
  }
  if (name == "f16") return {oracle_half(tile + flat * 2), 1, 0};
  if (name == "bf16") {
    float x = 0;
    std::memcpy(reinterpret_cast<std::byte*>(&x) + 2, tile + flat * 2, 2);
    return {x, 1, 0};
  }
  const int bits = name == "q8_0" ? 8 : name[1] == '5' ? 5 : 4;
  const int64_t low_bytes = bits == 8 ? 32 * hd : 16 * hd, high_bytes = bits == 5 ? 4 * hd : 0;
  unsigned code = 0;
  if (bits == 8) {
    code = key ? byte((ch / 4) * 128 + pos * 4 + ch % 4) : byte((pos / 4) * hd * 4 + ch * 4 + pos % 4);
  } else if (key) {
    code = byte((ch / 8) * 128 + pos * 4 + ch % 4) >> (ch % 8 >= 4 ? 4 : 0) & 15;
  } else {
    code = byte((pos / 4) * hd * 2 + (ch / 32) * 64 + (ch % 16) * 4 + pos % 4) >> (ch % 32 >= 16 ? 4 : 0) & 15;
  }
  if (bits == 5) {
    const int bit = key ? (ch / 4) * 128 + 4 * pos + ch % 4
                        : ((pos / 4) * (hd / 16) + ch / 16) * 64 + 4 * (ch % 16) + pos % 4;
    code |= (byte(low_bytes + bit / 8) >> (bit % 8) & 1) << 4;
  }
  const int64_t scale_at = low_bytes + high_bytes + (ch / 32 * 32 + pos) * 2;
  const double d = oracle_half(tile + scale_at);
  static const int table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  if (name == "q8_0") return {static_cast<double>(static_cast<int8_t>(code)), d, 0};
  if (name == "iq4_nl") return {static_cast<double>(table[code]), d, 0};
  if (name == "q4_0") return {code - 8.0, d, 0};
  if (name == "q5_0") return {code - 16.0, d, 0};
  return {static_cast<double>(code), d, oracle_half(tile + scale_at + 2 * hd)};
}

inline void oracle_rotate(std::vector<double>& x, int block) {
  std::vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t start = i / static_cast<size_t>(block) * static_cast<size_t>(block);
    for (int j = 0; j < block; ++j) {
      const int sign = __builtin_popcount(static_cast<unsigned>(i - start) & static_cast<unsigned>(j)) % 2 != 0 ? -1 : 1;
      y[i] += sign * x[start + static_cast<size_t>(j)] / std::sqrt(static_cast<double>(block));
    }
  }
  x = y;
}

struct OracleErrors {
  double same_rounding = 0;  // int8 queries and u8 weights rounded as rule 5 says
  double decoded = 0;        // exact attention over the decoded bytes, int8 queries
  double unquantized = 0;    // exact attention over the rows before storing
};

// Output of one query in double. mode 0: same rounding, 1: decoded bytes, 2: unquantized.
// ties: energy that weights within float error of a rounding tie could move the other way.
inline std::vector<double> oracle_row(const AttendCase& c, const AttendRun& run, int index, int mode, double& ties) {
  const int hd = c.head_dim, visible = c.length - c.n_rows + index / c.group + 1;
  const bool qk = info(c.type_k).quantized && mode != 2, qv = info(c.type_v).quantized && mode != 2;
  const int64_t tk = kv_tile_bytes(info(c.type_k).bytes_per_32, hd), tv = kv_tile_bytes(info(c.type_v).bytes_per_32, hd);
  const auto key = [&](int pos, int ch) {
    if (mode == 2) return static_cast<double>(c.k[static_cast<size_t>(pos * hd + ch)]);
    return oracle_value(run.k_tiles.data() + pos / 32 * tk, c.type_k, true, hd, pos % 32, ch).value();
  };
  const auto value = [&](int pos, int ch) {
    if (mode == 2) return OracleValue{c.v[static_cast<size_t>(pos * hd + ch)], 1, 0};
    return oracle_value(run.v_tiles.data() + pos / 32 * tv, c.type_v, false, hd, pos % 32, ch);
  };
  std::vector<double> p(static_cast<size_t>(visible)), out(static_cast<size_t>(hd)), moved(out);
  for (int pos = 0; pos < visible; ++pos) {
    double s = 0;
    for (int ch = 0; ch < hd; ++ch) {
      const auto at = static_cast<size_t>(index * hd + ch);
      const double q = qk ? run.q8[at] * static_cast<double>(run.q_scale[static_cast<size_t>(index)])
                          : static_cast<double>(c.q[at]);
      s += q * key(pos, ch);
    }
    p[static_cast<size_t>(pos)] = s / std::sqrt(static_cast<double>(hd));
  }
  double total = 0;
  std::vector<double> page_top;
  for (int pos = 0; pos < visible; ++pos) {
    if (pos % 256 == 0) page_top.push_back(-INFINITY);
    page_top.back() = std::max(page_top.back(), p[static_cast<size_t>(pos)]);
  }
  const double top = *std::max_element(page_top.begin(), page_top.end());
  for (int first = 0; first < visible; first += 32) {
    const int last = std::min(first + 32, visible);
    const double page = page_top[static_cast<size_t>(first / 256)], weight = std::exp(page - top);
    std::vector<double> e(32);
    for (int pos = first; pos < last; ++pos) {
      e[static_cast<size_t>(pos - first)] = std::exp(p[static_cast<size_t>(pos)] - page);
      total += weight * e[static_cast<size_t>(pos - first)];
    }
    for (int b = 0; b < hd / 32; ++b) {
      double x = 0;
      for (int pos = first; pos < last; ++pos) x = std::max(x, e[static_cast<size_t>(pos - first)] * std::abs(value(pos, 32 * b).d));
      for (int ch = 32 * b; ch < 32 * b + 32; ++ch) {
        for (int pos = first; pos < last; ++pos) {
          const OracleValue v = value(pos, ch);
          const double probability = e[static_cast<size_t>(pos - first)];
          double product = probability * v.code * v.d;
          if (qv && mode == 0) {
            const double w = x < 0x1p-100 ? 0 : probability * std::abs(v.d) * 255.0 / x;
            const double u = std::nearbyint(w);
            if (std::abs(std::abs(w - u) - 0.5) < 1e-3) {
              moved[static_cast<size_t>(ch)] += weight * std::abs(v.code) * x / 255.0;
            }
            product = u * v.code * (v.d < 0 ? -1 : 1) * x / 255.0;
          }
          out[static_cast<size_t>(ch)] += weight * (product + probability * v.m);
        }
      }
    }
  }
  for (double& x : out) x /= total;
  for (const double x : moved) ties += (x / total) * (x / total);
  if (qv) oracle_rotate(out, rotation_block(hd));
  return out;
}

inline OracleErrors oracle_errors(const AttendCase& c, const AttendRun& run) {
  OracleErrors errors;
  double* targets[] = {&errors.same_rounding, &errors.decoded, &errors.unquantized};
  for (int mode = 0; mode < 3; ++mode) {
    double difference = 0, energy = 0, ties = 0;
    for (int i = 0; i < c.n_rows * c.group; ++i) {
      const std::vector<double> want = oracle_row(c, run, i, mode, ties);
      for (int ch = 0; ch < c.head_dim; ++ch) {
        const double got = run.out[static_cast<size_t>(i * c.head_dim + ch)];
        difference += (got - want[static_cast<size_t>(ch)]) * (got - want[static_cast<size_t>(ch)]);
        energy += want[static_cast<size_t>(ch)] * want[static_cast<size_t>(ch)];
      }
    }
    const double certain = std::max(0.0, std::sqrt(difference) - std::sqrt(ties));
    *targets[mode] = certain * certain / energy;
  }
  return errors;
}

}  // namespace bantam
