#include "cpu/attend_pieces.h"

#include <thread>

namespace bantam {

namespace {
constexpr int kMostSpins = 1000;  // of a thread that waits for its turn, before it yields
}

void AttendPieces::reserve(size_t most_blocks, int most_threads) {
  blocks_.reserve(most_blocks);
  turns_ = std::vector<Turns>(static_cast<size_t>(kManyBlocks * most_threads));
}

void AttendPieces::share(int team) {
  CHECK(static_cast<size_t>(kManyBlocks * team) <= turns_.size());
  team_ = team;
  few_ = team > 1 && blocks_.size() < static_cast<size_t>(kManyBlocks * team);
  n_taken_.store(0, std::memory_order_relaxed);
  for (size_t i = 0; few_ && i < blocks_.size(); ++i) {
    turns_[i].taken.store(0, std::memory_order_relaxed);
    turns_[i].added.store(0, std::memory_order_relaxed);
  }
}

// Whole blocks stay with a thread, from the back: late rows see more pages, so the longest work
// starts first.
AttendPieces::Piece AttendPieces::next_of_many(const Piece& at) {
  Piece next = at;
  if (at.block != nullptr && at.page + 1 < at.block->n_pages) {
    ++next.page;
    return next;
  }
  const int64_t item =
      static_cast<int64_t>(blocks_.size()) - 1 - n_taken_.fetch_add(1, std::memory_order_relaxed);
  next.block = item < 0 ? nullptr : &blocks_[static_cast<size_t>(item)];
  next.page = 0;
  return next;
}

// Where blocks are few, each thread takes the pages of its own ones, so that their sums stay with
// its core, and then those that others have not come to: of the thread before it, from the back.
AttendPieces::Piece AttendPieces::next_of_few(const Piece& at) {
  const auto n_blocks = static_cast<int>(blocks_.size());
  const ThreadPool::Range own = ThreadPool::split(n_blocks, at.thread, team_);
  const auto begin = static_cast<int>(own.begin), n_own = static_cast<int>(own.end) - begin;
  Piece next = at;
  for (; next.n_done < n_blocks; ++next.n_done) {
    const int i = next.n_done < n_own ? begin + next.n_done : begin - 1 - (next.n_done - n_own);
    next.block = &blocks_[static_cast<size_t>(i < 0 ? i + n_blocks : i)];
    std::atomic<int32_t>& taken = turns_of(*next.block).taken;
    if (taken.load(std::memory_order_relaxed) >= next.block->n_pages) continue;
    next.page = taken.fetch_add(1, std::memory_order_acq_rel);
    if (next.page < next.block->n_pages) return next;
  }
  next.block = nullptr;
  return next;
}

bool AttendPieces::plenty_after(const Piece& at) const {
  if (!few_) return true;
  const auto n_blocks = static_cast<int>(blocks_.size());
  const ThreadPool::Range own = ThreadPool::split(n_blocks, at.thread, team_);
  if (at.n_done + 1 < static_cast<int>(own.end - own.begin)) return true;
  const auto block = static_cast<size_t>(at.block - blocks_.data());
  return turns_[block].taken.load(std::memory_order_relaxed) + 2 * team_ <= at.block->n_pages;
}

// The pages of a block are taken in order, and each thread computes what it took in that order: of
// all pages taken and not yet added, the first taken is being computed and waits for none. That
// there is a first one needs takes from different blocks in an order that all threads agree on:
// hence acquire and release.
void AttendPieces::await_turn(const Piece& piece) {
  if (!few_) return;
  const std::atomic<int32_t>& added = turns_of(*piece.block).added;
  for (int spins = 0; added.load(std::memory_order_acquire) != piece.page;) {
    if (spins == kMostSpins) {
      std::this_thread::yield();
    } else {
      ++spins;
      ThreadPool::pause();
    }
  }
}

void AttendPieces::added(const Piece& piece) {
  if (few_) turns_of(*piece.block).added.store(piece.page + 1, std::memory_order_release);
}

}  // namespace bantam
