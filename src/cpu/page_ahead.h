// Which lines of a page of KV a thread asks the memory for while it computes another one: four
// streams, each a quarter of its K and V tiles. A core's prefetchers follow each of them within
// 4 KiB, where one stream alone leaves most of the misses that a core may have in flight unused.
// Owns nothing; refuses nothing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"

namespace bantam {

class PageAhead {
 public:
  static constexpr unsigned kStreams = 4;

  // k_bytes of tiles at k, then v_bytes at v, multiples of 64.
  void start(const std::byte* k, int64_t k_bytes, const std::byte* v, int64_t v_bytes) {
    k_ = k;
    v_ = v;
    k_bytes_ = k_bytes;
    left_ = k_bytes + v_bytes;
    const int64_t quarter = (left_ + 511) / 512 * 128;
    for (unsigned i = 0; i < kStreams; ++i) at_[i] = i * quarter;
  }

  bool done() const { return left_ <= 0; }

  // So many bytes of each stream: where they lie.
  void take_some(int64_t bytes, const std::byte** out) {
    for (unsigned i = 0; i < kStreams; ++i) out[i] = next(i, bytes);
    left_ -= kStreams * bytes;
  }

  // As many lines as a tile of tile_bytes has: of `idle`, which the core has already, if all is
  // asked for. Where a stream ends or goes on from K to V within eight lines, others are asked for.
  void take(int64_t tile_bytes, const std::byte* idle, AheadLines& out) {
    if (done()) return out.of_tile(idle, tile_bytes);
    left_ -= tile_bytes;
    for (unsigned i = 0; tile_bytes > 0; ++i, tile_bytes -= AheadLines::kEightBytes) {
      out.eight[i] =
          next((first_ + i) % kStreams, std::min<int64_t>(tile_bytes, AheadLines::kEightBytes));
    }
    // Every stream comes first once in four tiles, so that all get the same.
    ++first_;
  }

 private:
  const std::byte* next(unsigned stream, int64_t bytes) {
    const int64_t at = at_[stream];
    at_[stream] += bytes;
    return at < k_bytes_ ? k_ + at : v_ + (at - k_bytes_);
  }

  const std::byte *k_ = nullptr, *v_ = nullptr;
  int64_t k_bytes_ = 0, left_ = 0;
  int64_t at_[kStreams] = {};
  unsigned first_ = 0;  // the stream whose turn it is
};

}  // namespace bantam
