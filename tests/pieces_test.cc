// AttendPieces: every page of every block is given out once and its sums are added in order,
// whatever the team, the number of blocks and whoever is slow.
#include "cpu/attend_pieces.h"

#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "base/thread_pool.h"

namespace bantam {
namespace {

typedef AttendPieces::Piece Piece;

std::vector<int> random_pages(int n_blocks, std::mt19937& random) {
  std::vector<int> pages;
  for (int i = 0; i < n_blocks; ++i) pages.push_back(1 + static_cast<int>(random() % 9));
  return pages;
}

void deal(AttendPieces& pieces, const std::vector<int>& pages, int team) {
  pieces.clear();
  for (size_t i = 0; i < pages.size(); ++i) pieces.add({static_cast<int>(i), 0, 1, pages[i]});
  pieces.share(team);
}

// Members take turns in a random order: those of a block come in order, each once.
TEST(AttendPieces, EveryPageIsGivenOutOnceAndInOrder) {
  std::mt19937 random(20261126);
  AttendPieces pieces;
  pieces.reserve(100, 6);
  int n_dealt = 0;
  for (const int team : {1, 2, 3, 5, 6}) {
    for (const int n_blocks : {0, 1, 2, 3, 8, 15, 16, 17, 39, 40, 47, 48, 100}) {
      const std::vector<int> pages = random_pages(n_blocks, random);
      deal(pieces, pages, team);
      std::vector<int> next_page(pages.size(), 0);
      std::vector<Piece> at;
      for (int thread = 0; thread < team; ++thread) at.push_back(pieces.first(thread));
      // In the order in which they were taken: what a member holds was counted when it took it.
      const auto count = [&](const Piece& piece) {
        if (piece.block == nullptr) return;
        EXPECT_EQ(piece.page, next_page[static_cast<size_t>(piece.block->kv_head)]++);
      };
      for (const Piece& piece : at) count(piece);
      for (int left = team; left > 0;) {
        Piece& piece = at[random() % at.size()];
        if (piece.block == nullptr) {
          left = 0;
          for (const Piece& other : at) left += other.block != nullptr ? 1 : 0;
          continue;
        }
        piece = pieces.next(piece);
        count(piece);
      }
      EXPECT_EQ(next_page, pages) << team << " threads, " << n_blocks << " blocks";
      ++n_dealt;
    }
  }
  EXPECT_EQ(n_dealt, 5 * 13);
}

TEST(AttendPieces, OwnBlocksComeFirst) {
  AttendPieces pieces;
  pieces.reserve(8, 2);
  deal(pieces, {2, 1, 2, 1}, 2);
  const std::vector<std::pair<int, int>> expected = {{2, 0}, {2, 1}, {3, 0},
                                                     {1, 0}, {0, 0}, {0, 1}};
  Piece piece = pieces.first(1);
  for (const auto& [block, page] : expected) {
    ASSERT_NE(piece.block, nullptr);
    EXPECT_EQ(piece.block->kv_head, block);
    EXPECT_EQ(piece.page, page);
    piece = pieces.next(piece);
  }
  EXPECT_EQ(piece.block, nullptr);
  EXPECT_EQ(pieces.next(piece).block, nullptr);
  EXPECT_EQ(pieces.first(0).block, nullptr);
}

// As the backend does it: the next piece or the next two are taken before the sums of this one are
// added. In every other round some pages take long, so that a thread that did not wait would add a
// later page first.
TEST(AttendPieces, SumsAreAddedInOrder) {
  constexpr int most_threads = 9;
  std::mt19937 random(7);
  ThreadPool pool(most_threads);
  ASSERT_EQ(pool.size(), most_threads);
  AttendPieces pieces;
  pieces.reserve(80, most_threads);
  for (int round = 0; round < 400; ++round) {
    const int team = 1 + static_cast<int>(random() % most_threads);
    const int n_blocks = static_cast<int>(random() % (random() % 2 == 0 ? 4 : 81));
    const std::vector<int> pages = random_pages(n_blocks, random);
    std::vector<std::vector<int>> added(pages.size());
    deal(pieces, pages, team);
    pool.run(
        [&](int thread, int) {
          const bool two = round % 3 == 0;
          Piece piece = pieces.first(thread);
          Piece next = two && piece.block != nullptr ? pieces.next(piece) : Piece{};
          while (piece.block != nullptr) {
            Piece last = two ? next : piece;
            if (last.block != nullptr) last = pieces.next(last);
            if (!two) next = last;
            if (round % 2 == 0 && (piece.page + thread) % 3 == 0) {
              std::this_thread::sleep_for(std::chrono::microseconds(50));
            }
            pieces.await_turn(piece);
            added[static_cast<size_t>(piece.block->kv_head)].push_back(piece.page);
            pieces.added(piece);
            piece = next;
            next = last;
          }
        },
        team);
    for (size_t i = 0; i < pages.size(); ++i) {
      ASSERT_EQ(static_cast<int>(added[i].size()), pages[i]);
      for (int page = 0; page < pages[i]; ++page)
        ASSERT_EQ(added[i][static_cast<size_t>(page)], page);
    }
  }
}

// While a thread has blocks of its own to come, or pages enough for all are left of this one.
TEST(AttendPieces, ManyPagesAreLeftBeforeTheLastOnes) {
  AttendPieces pieces;
  pieces.reserve(8, 2);
  deal(pieces, {6, 2, 6}, 2);
  Piece piece = pieces.first(0);
  ASSERT_EQ(piece.block->kv_head, 0);
  for (const bool plenty : {true, true, false, false, false, false}) {
    EXPECT_EQ(pieces.plenty_after(piece), plenty) << piece.page;
    piece = pieces.next(piece);
  }
  piece = pieces.first(1);
  EXPECT_EQ(piece.block->kv_head, 1);
  EXPECT_TRUE(pieces.plenty_after(piece));
  piece = pieces.next(pieces.next(piece));
  EXPECT_EQ(piece.block->kv_head, 2);
  EXPECT_EQ(piece.page, 1);  // the other thread has taken the first one
  EXPECT_TRUE(pieces.plenty_after(piece));
  EXPECT_FALSE(pieces.plenty_after(pieces.next(piece)));
  // Where blocks are many they stay with a thread whole.
  deal(pieces, {1}, 1);
  EXPECT_TRUE(pieces.plenty_after(pieces.first(0)));
}

TEST(AttendPiecesDeathTest, RefusesWhatWasNotReserved) {
  AttendPieces pieces;
  pieces.reserve(1, 2);
  pieces.add({0, 0, 1, 1});
  EXPECT_DEATH(pieces.add({1, 0, 1, 1}), "capacity");
  EXPECT_DEATH(pieces.share(3), "kManyBlocks");
}

}  // namespace
}  // namespace bantam
