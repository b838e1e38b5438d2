// Shares: every item is given out exactly once, the own part first and in its order, whatever the
// team and whoever is slow.
#include "base/shares.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/thread_pool.h"
#include "cpu/streams.h"

namespace bantam {
namespace {

using Range = Shares::Range;

std::vector<Range> all_of(Shares& shares, int thread) {
  std::vector<Range> taken;
  for (Range range; shares.take(thread, range);) taken.push_back(range);
  return taken;
}

TEST(Shares, OwnPartComesFirstAndInOrder) {
  Shares shares(3);
  shares.deal(100, 3, 2, 1000);
  Range range;
  int64_t at = 33, n_own = 0;
  while (at < 66) {
    ASSERT_TRUE(shares.take(1, range));
    EXPECT_EQ(range.begin, at);
    EXPECT_LE(range.end, 66);
    at = range.end;
    ++n_own;
  }
  EXPECT_EQ(n_own, 5);  // 16, 8, 4, 2, 3 of 33: halves, at least 2, never one left behind
}

TEST(Shares, LimitsHold) {
  Shares shares(2);
  shares.deal(1000, 2, 4, 32);
  int64_t n = 0;
  for (const Range& range : all_of(shares, 0)) {
    EXPECT_LE(range.end - range.begin, 32);
    EXPECT_GE(range.end - range.begin, 1);
    n += range.end - range.begin;
  }
  EXPECT_EQ(n, 1000);
  Range range;
  EXPECT_FALSE(shares.take(1, range));
}

// From a least of 4 on kernels get whole fours: one take at most is ragged, and none where n is
// not.
TEST(Shares, TakesAreMultiplesOfFour) {
  int n_takes = 0;
  for (const int64_t n : {1, 5, 64, 129, 768, 1003}) {
    for (const int team : {1, 2, 3, 5, 6}) {
      for (const int64_t least : {4, 16, 64}) {
        Shares shares(6);
        shares.deal(n, team, least, 4 * least);
        int64_t given = 0;
        int ragged = 0;
        for (int thread = 0; thread < team; ++thread) {
          for (const Range& range : all_of(shares, thread)) {
            given += range.end - range.begin;
            ragged += (range.end - range.begin) % 4 != 0;
            ++n_takes;
          }
        }
        EXPECT_EQ(given, n);
        EXPECT_EQ(ragged, n % 4 != 0) << n << " items, team " << team << ", least " << least;
      }
    }
  }
  EXPECT_GT(n_takes, 500);
}

TEST(Shares, StealsFromTheEndOfTheFullestPart) {
  Shares shares(3);
  shares.deal(90, 3, 1, 1000);
  Range range;
  ASSERT_TRUE(shares.take(2, range));  // leaves 15 to thread 2
  for (int64_t left = 30; left > 0; left -= range.end - range.begin) {
    ASSERT_TRUE(shares.take(0, range));
  }
  ASSERT_TRUE(shares.take(0, range));  // 30 lie with thread 1
  EXPECT_EQ(range.begin, 45);
  EXPECT_EQ(range.end, 60);
}

TEST(Shares, LessThanTheLeast) {
  Shares shares(2);
  shares.deal(1, 2, 2, 1);
  Range range;
  ASSERT_TRUE(shares.take(0, range));
  EXPECT_EQ(range.begin, 0);
  EXPECT_EQ(range.end, 1);
  EXPECT_FALSE(shares.take(1, range));
}

// What a thread takes from its own part one after the other is contiguous in each of four streams;
// every group of every matrix is computed once, those of gated pairs in the same call.
TEST(Shares, StreamsCoverEveryGroupOnce) {
  int n_calls = 0;
  for (const std::vector<int64_t>& groups : std::vector<std::vector<int64_t>>{
           {1}, {3}, {9}, {128}, {130}, {128, 64, 64}, {7, 1, 2}, {5, 90, 33}}) {
    for (const bool gated : {false, true}) {
      const std::vector<int64_t> each = gated ? std::vector<int64_t>{groups[0], groups[0]} : groups;
      int64_t total = 0;
      for (const int64_t n : gated ? std::vector<int64_t>{each[0]} : each) total += n;
      for (const int team : {1, 2, 3, 8}) {
        std::vector<std::vector<int>> count;
        for (const int64_t n : each) count.emplace_back(static_cast<size_t>(n));
        Shares shares(8);
        shares.deal(stream_items(total, gated), team, 1, total);
        for (int thread = team - 1; thread >= 0; --thread) {
          for (Range range; shares.take(thread, range);) {
            int64_t n = 0;
            for (int64_t at = range.begin; at < range.end; at += n) {
              StreamPart four[4];
              n = next_streams(
                  static_cast<int>(each.size()),
                  [&](int i) { return each[static_cast<size_t>(i)]; }, gated, range, at, four);
              ASSERT_GE(n, 1);
              ASSERT_LE(n, range.end - at);
              for (const StreamPart& part : four) {
                ASSERT_TRUE(part.end - part.begin == n ||
                            part.end == each[static_cast<size_t>(part.matrix)]);
                for (int64_t g = part.begin; g < part.end; ++g) {
                  ++count[static_cast<size_t>(part.matrix)][static_cast<size_t>(g)];
                }
              }
              for (int s = 0; gated && s < 2; ++s) {
                ASSERT_EQ(four[s].begin, four[s + 2].begin);
                ASSERT_EQ(four[s].end, four[s + 2].end);
              }
              ++n_calls;
            }
          }
        }
        for (const std::vector<int>& matrix : count) {
          for (const int n : matrix) ASSERT_EQ(n, 1) << total << " groups, team " << team;
        }
      }
    }
  }
  EXPECT_GT(n_calls, 300);
}

// Of the own part in its order: each stream goes on where it ended.
TEST(Shares, StreamsGoOn) {
  Shares shares(2);
  shares.deal(stream_items(256, false), 2, 1, 256);
  StreamPart last[4];
  Range range;
  int n_takes = 0;
  for (; n_takes < 3; ++n_takes) {
    ASSERT_TRUE(shares.take(1, range));
    StreamPart four[4];
    const auto groups_of = [](int) { return 256; };
    ASSERT_EQ(next_streams(1, groups_of, false, range, range.begin, four), range.end - range.begin);
    for (int s = 0; s < 4; ++s) {
      EXPECT_EQ(four[s].begin, n_takes == 0 ? 128 + 32 * s : last[s].end);
      last[s] = four[s];
    }
  }
}

TEST(Shares, EveryItemOnce) {
  constexpr int kThreads = 4;
  ThreadPool pool(kThreads);
  Shares shares(kThreads);
  int n_cases = 0;
  for (int team = 1; team <= kThreads; ++team) {
    for (const int64_t n : {0, 1, 2, 3, 5, 64, 1000, 40000}) {
      for (const int64_t least : {1, 2, 7}) {
        std::vector<std::vector<Range>> taken(kThreads);
        shares.deal(n, team, least, 32);
        pool.run(
            [&](int thread, int) { taken[static_cast<size_t>(thread)] = all_of(shares, thread); },
            team);
        std::vector<int> count(static_cast<size_t>(n));
        for (const std::vector<Range>& ranges : taken) {
          for (const Range& range : ranges) {
            for (int64_t i = range.begin; i < range.end; ++i) ++count[static_cast<size_t>(i)];
          }
        }
        for (int64_t i = 0; i < n; ++i) ASSERT_EQ(count[static_cast<size_t>(i)], 1) << i;
        ++n_cases;
      }
    }
  }
  EXPECT_EQ(n_cases, 4 * 8 * 3);
}

}  // namespace
}  // namespace bantam
