// Attention composed from the kernel slots as the CPU backend composes it, on guarded buffers. Tests only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "backend/plan.h"
#include "base/limits.h"
#include "codec/kv_layout.h"
#include "cpu/kernels.h"

namespace bantam {

struct AttendCase {
  KvType type_k, type_v;
  int head_dim, length, n_rows, group;  // rows are the last n_rows positions; group query heads of one KV head
  std::vector<float> q;                 // [n_rows][group][head_dim] after RoPE
  std::vector<float> k, v;              // [length][head_dim]
  bool garbage_after = false;
};

struct AttendRun {
  std::vector<float> out;               // [n_rows][group][head_dim]
  std::vector<std::byte> k_tiles, v_tiles;
  std::vector<float> q_rotated;         // [n_rows][group][head_dim]
  std::vector<int8_t> q8;
  std::vector<float> q_scale;           // d_q
  bool guards_intact = true;
};

inline AttendCase make_attend_case(KvType k, KvType v, int head_dim, int length, int n_rows, int group,
                                   std::mt19937& random) {
  AttendCase c{k, v, head_dim, length, n_rows, group, {}, {}, {}};
  std::normal_distribution<float> normal;
  c.q.resize(static_cast<size_t>(n_rows * group * head_dim));
  c.k.resize(static_cast<size_t>(length * head_dim));
  c.v.resize(c.k.size());
  for (float& x : c.q) x = normal(random);
  for (float& x : c.k) x = normal(random);
  for (float& x : c.v) x = normal(random);
  return c;
}

template <class T>
class Guarded {
 public:
  explicit Guarded(size_t n) : n_(n), data_(n * sizeof(T) + 2 * kGuard, std::byte{0xa5}) {
    std::memset(get(), 0, n * sizeof(T));
  }
  T* get() { return reinterpret_cast<T*>(data_.data() + kGuard); }
  bool intact() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (data_[i] != std::byte{0xa5} || data_[data_.size() - 1 - i] != std::byte{0xa5}) return false;
    }
    return true;
  }
  size_t size() const { return n_; }

 private:
  static constexpr size_t kGuard = 256;
  size_t n_;
  std::vector<std::byte> data_;
};

// Stores all rows of the case; queries prepared as rule 5 says.
inline void prepare_attend(const Kernels& kernels, const AttendCase& c, Guarded<std::byte>& k_tiles,
                           Guarded<std::byte>& v_tiles, AttendRun& run) {
  const int hd = c.head_dim, block = rotation_block(hd);
  const KvTypeInfo &ki = info(c.type_k), &vi = info(c.type_v);
  const KvKernels &kk = kernels.kv[static_cast<int>(c.type_k)], &vk = kernels.kv[static_cast<int>(c.type_v)];
  const int extra = c.garbage_after ? (c.length + 31) / 32 * 32 - c.length : 0;
  for (int pos = 0; pos < c.length + extra; ++pos) {
    std::vector<float> k(static_cast<size_t>(hd), std::nanf("")), v = k;
    if (pos < c.length) {
      k.assign(c.k.begin() + pos * hd, c.k.begin() + (pos + 1) * hd);
      v.assign(c.v.begin() + pos * hd, c.v.begin() + (pos + 1) * hd);
    }
    if (ki.quantized) kernels.rotate(k.data(), hd, block);
    if (vi.quantized) kernels.rotate(v.data(), hd, block);
    kk.store_k(k.data(), hd, pos % 32, k_tiles.get() + pos / 32 * kv_tile_bytes(ki.bytes_per_32, hd));
    vk.store_v(v.data(), hd, pos % 32, v_tiles.get() + pos / 32 * kv_tile_bytes(vi.bytes_per_32, hd));
  }
  run.q_rotated = c.q;
  run.q8.resize(c.q.size());
  run.q_scale.resize(static_cast<size_t>(c.n_rows * c.group));
}

inline AttendRun run_attend(const Kernels& kernels, const AttendCase& c) {
  const int hd = c.head_dim, n = c.n_rows * c.group, n_tiles = (c.length + 31) / 32;
  const KvTypeInfo &ki = info(c.type_k), &vi = info(c.type_v);
  const KvKernels &kk = kernels.kv[static_cast<int>(c.type_k)], &vk = kernels.kv[static_cast<int>(c.type_v)];
  const int64_t tk = kv_tile_bytes(ki.bytes_per_32, hd), tv = kv_tile_bytes(vi.bytes_per_32, hd);
  AttendRun run;
  Guarded<std::byte> k_tiles(static_cast<size_t>(n_tiles * tk)), v_tiles(static_cast<size_t>(n_tiles * tv));
  prepare_attend(kernels, c, k_tiles, v_tiles, run);
  std::vector<int16_t> sums16(static_cast<size_t>(n * hd / 16));
  std::vector<float> scale(static_cast<size_t>(n));
  const float inverse_root = static_cast<float>(1.0 / std::sqrt(static_cast<double>(hd)));
  for (int i = 0; i < n; ++i) {
    float* q = &run.q_rotated[static_cast<size_t>(i * hd)];
    int32_t sum = 0;
    if (ki.quantized) kernels.rotate(q, hd, rotation_block(hd));
    kernels.quantize(q, hd, hd, &run.q8[static_cast<size_t>(i * hd)], &run.q_scale[static_cast<size_t>(i)], &sum,
                     &sums16[static_cast<size_t>(i * hd / 16)]);
    scale[static_cast<size_t>(i)] = ki.quantized ? run.q_scale[static_cast<size_t>(i)] * inverse_root : inverse_root;
  }
  // Rows lie further apart than they are long, as in the backend; nothing may be written between them.
  const int s_stride = 256 + 16, acc_stride = hd + 16;
  Guarded<float> s(static_cast<size_t>(n * s_stride)), acc(static_cast<size_t>(n * acc_stride)), acc_page(acc.size());
  std::vector<float> m(static_cast<size_t>(n)), l(m), mp(m), lp(m);
  std::vector<int32_t> visible(static_cast<size_t>(n));
  const auto visible_of = [&](int i, int page) {
    return std::clamp(c.length - c.n_rows + i / c.group + 1 - 256 * page, 0, 256);
  };
  for (int page = 0; page * 256 < c.length; ++page) {
    const int tiles = (visible_of(n - 1, page) + 31) / 32;
    for (int t = 0; t < tiles; ++t) {
      ScoreArgs a{k_tiles.get() + (8 * page + t) * tk, hd, n, run.q8.data(), sums16.data(), run.q_rotated.data(),
                  scale.data(), s.get() + 32 * t, s_stride};
      kk.scores(a);
    }
    for (int i = 0; i < n; ++i) {
      if (visible_of(i, page) > 0) {
        kernels.softmax_page(s.get() + i * s_stride, visible_of(i, page), &mp[static_cast<size_t>(i)],
                             &lp[static_cast<size_t>(i)]);
      }
    }
    float* target = page == 0 ? acc.get() : acc_page.get();
    // What the first tile of a page must not read.
    for (int i = 0; i < n; ++i) std::fill_n(target + i * acc_stride, hd, std::nanf(""));
    for (int t = 0; t < tiles; ++t) {
      for (int i = 0; i < n; ++i) visible[static_cast<size_t>(i)] = std::clamp(visible_of(i, page) - 32 * t, 0, 32);
      WeighArgs a{v_tiles.get() + (8 * page + t) * tv, hd, n, s.get() + 32 * t, s_stride, visible.data(), target, acc_stride,
                  &kNoLines, t == 0};
      vk.weigh(a);
    }
    for (int i = 0; i < n; ++i) {
      const auto at = static_cast<size_t>(i);
      if (page == 0) {
        m[at] = mp[at];
        l[at] = lp[at];
      } else if (visible_of(i, page) > 0) {
        kernels.merge(hd, &m[at], &l[at], acc.get() + i * acc_stride, mp[at], lp[at], target + i * acc_stride);
      }
    }
  }
  Guarded<float> out(static_cast<size_t>(n * hd));
  for (int i = 0; i < n; ++i) {
    kernels.finish(hd, acc.get() + i * acc_stride, l[static_cast<size_t>(i)], out.get() + i * hd);
    if (vi.quantized) kernels.rotate(out.get() + i * hd, hd, rotation_block(hd));
  }
  run.out.assign(out.get(), out.get() + out.size());
  run.k_tiles.assign(k_tiles.get(), k_tiles.get() + k_tiles.size());
  run.v_tiles.assign(v_tiles.get(), v_tiles.get() + v_tiles.size());
  const auto gaps_intact = [&](Guarded<float>& rows, int used, int stride) {
    for (int i = 0; i < n * stride; ++i) {
      if (i % stride >= used && rows.get()[i] != 0.0f) return false;
    }
    return true;
  };
  run.guards_intact = gaps_intact(s, 256, s_stride) && gaps_intact(acc, hd, acc_stride) &&
                      gaps_intact(acc_page, hd, acc_stride) && k_tiles.intact() && v_tiles.intact() &&
                      s.intact() && acc.intact() && acc_page.intact() && out.intact();
  return run;
}

}  // namespace bantam
