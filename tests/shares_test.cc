// Shares: every item is given out exactly once, the own part first and in its order, whatever the
// team and whoever is slow.
#include "base/shares.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/thread_pool.h"

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

// From a least of 4 on kernels get whole fours: one take at most is ragged, and none where n is not.
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
