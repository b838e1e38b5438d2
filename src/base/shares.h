// Shares: n items dealt to the threads of a team as one contiguous part each, so that every thread
// reads one long stream; a thread that is done takes from the end of the part that has most left.
// Owns the parts. Refuses (CHECK) more threads than it was made for and 2^32 items.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "base/check.h"

namespace bantam {

class Shares {
 public:
  struct Range {
    int64_t begin = 0, end = 0;
    int64_t part_begin = 0, part_end = 0;  // of the dealt part that it was taken from
  };

  explicit Shares(int n_threads)
      : parts_(std::make_unique<Part[]>(static_cast<size_t>(n_threads))), n_threads_(n_threads) {}

  // Before the team starts. A take() yields half of what its part has left, but at most `most` and,
  // where the part has them, at least `least` items (both at least 1; `least` wins): no smaller
  // rest is left, unless `most` is less than twice `least`. With `least` from 4 on takes are
  // multiples of 4, but for one where n is not.
  void deal(int64_t n, int team, int64_t least, int64_t most) {
    CHECK(team >= 1 && team <= n_threads_ && n >= 0 && n <= UINT32_MAX);
    team_ = team;
    least_ = least;
    unit_ = least >= 4 ? 4 : 1;
    most_ = std::max(least, most);
    for (int t = 0; t < team; ++t) {
      Part& part = parts_[static_cast<size_t>(t)];
      const int64_t end = t + 1 < team ? n * (t + 1) / team / unit_ * unit_ : n;
      part.whole = packed(n * t / team / unit_ * unit_, end);
      part.range.store(part.whole, std::memory_order_relaxed);
    }
  }

  // The next items of this thread, first those of its own part in their order. False: nothing is
  // left. Thread safe.
  bool take(int thread, Range& items) {
    if (take_from(parts_[static_cast<size_t>(thread)], true, items)) return true;
    for (;;) {
      int fullest = -1;
      int64_t most = 0;
      for (int t = 0; t < team_; ++t) {
        const int64_t left = size(parts_[static_cast<size_t>(t)].range.load());
        if (left > most) fullest = t, most = left;
      }
      if (fullest < 0) return false;
      if (take_from(parts_[static_cast<size_t>(fullest)], false, items)) return true;
    }
  }

 private:
  struct alignas(128) Part {  // adjacent lines are fetched in pairs on x86
    std::atomic<uint64_t> range{0};
    uint64_t whole = 0;
  };

  static uint64_t packed(int64_t begin, int64_t end) {
    return static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end);
  }
  static int64_t begin_of(uint64_t range) { return static_cast<int64_t>(range >> 32); }
  static int64_t end_of(uint64_t range) { return static_cast<int64_t>(range & UINT32_MAX); }
  static int64_t size(uint64_t range) { return end_of(range) - begin_of(range); }

  bool take_from(Part& part, bool front, Range& items) {
    uint64_t range = part.range.load(std::memory_order_relaxed);
    for (;;) {
      const int64_t begin = begin_of(range), end = end_of(range), left = end - begin;
      if (left <= 0) return false;
      const int64_t wanted = std::clamp(left / 2, least_, most_);
      int64_t n = std::min(left, (wanted + unit_ - 1) / unit_ * unit_);
      if (left - n < least_ && left <= most_) n = left;
      const uint64_t rest = front ? packed(begin + n, end) : packed(begin, end - n);
      if (!part.range.compare_exchange_weak(range, rest, std::memory_order_relaxed)) continue;
      items = {front ? begin : end - n, front ? begin + n : end, begin_of(part.whole),
               end_of(part.whole)};
      return true;
    }
  }

  std::unique_ptr<Part[]> parts_;
  int n_threads_;
  int team_ = 1;
  int64_t least_ = 1, most_ = 1, unit_ = 1;
};

}  // namespace bantam
