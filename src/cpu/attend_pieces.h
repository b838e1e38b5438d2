// How attention is shared between the threads of a team: pieces, each one page of a block. Every
// page of every block is given out once. What comes next is told before a piece is computed, so
// that the memory can be asked for it. Refuses more blocks and threads than were
// reserved (CHECK).
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "base/thread_pool.h"

namespace bantam {

struct AttendBlock {  // query rows of one run and one KV head that are computed together
  int kv_head, first_row, n_rows;
  int n_pages;  // at least 1
};

class AttendPieces {
 public:
  struct Piece {
    const AttendBlock* block = nullptr;  // null: nothing is left
    int page = 0;
    int thread = 0;
    int n_done = 0;  // blocks that this thread has found without pages left
  };
  // With fewer blocks than this for each thread, pages are shared out and not blocks.
  static constexpr int kManyBlocks = 8;

  void reserve(size_t most_blocks, int most_threads);

  // One thread: a step's blocks, and then how many threads share them.
  void clear() { blocks_.clear(); }
  void add(const AttendBlock& block) {
    CHECK(blocks_.size() < blocks_.capacity());
    blocks_.push_back(block);
  }
  void share(int team);

  // A thread's first piece, then what it computes after `at`.
  Piece first(int thread) { return next({nullptr, 0, thread, 0}); }
  Piece next(const Piece& at) { return few_ ? next_of_few(at) : next_of_many(at); }
  // Whether a thread may take another piece long before it computes it: others still find work.
  bool plenty_after(const Piece& at) const;
  // Returns when all pages of the block before this one are added; whoever added one says so. The
  // sums of a block then do not depend on who computed what.
  void await_turn(const Piece& piece);
  void added(const Piece& piece);

 private:
  // Of a block whose pages are shared out, on a cache line of its own.
  struct alignas(ThreadPool::kLineBytes) Turns {
    std::atomic<int32_t> taken{0};
    std::atomic<int32_t> added{0};
  };
  Turns& turns_of(const AttendBlock& block) {
    return turns_[static_cast<size_t>(&block - blocks_.data())];
  }
  Piece next_of_many(const Piece& at);
  Piece next_of_few(const Piece& at);

  std::vector<AttendBlock> blocks_;
  std::vector<Turns> turns_;
  bool few_ = false;
  int team_ = 1;
  std::atomic<int64_t> n_taken_{0};  // blocks, where they are many
};

}  // namespace bantam
