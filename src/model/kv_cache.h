// The KV cache: pages of 256 positions for any number of sequences, one arena for each of K and V,
// taken once. Owns page tables, lengths and how many sequences hold each page. A page of several
// sequences is never written: whoever stores into it or erases from it gets a copy first. Cannot
// exist without an AttentionPlan. Refuses (CHECK) growth beyond a sequence's context.
//
// Pages never run out. There are as many as all page tables have entries together, so while a table
// has room for one more entry a page is free; and while one page stands in two tables, fewer pages
// are in use than entries, so its copy finds a free one too.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/plan.h"
#include "base/result.h"

namespace bantam {

class KvCache {
 public:
  static int64_t bytes(const AttentionPlan& plan, int n_layers, int n_ctx, int n_seqs);
  static Result<std::unique_ptr<KvCache>> create(const AttentionPlan& plan, int n_layers, int n_ctx,
                                                 int n_seqs, Backend& backend);

  int length(int seq) const { return sequences_[static_cast<size_t>(seq)].length; }
  int n_ctx() const { return n_ctx_; }
  // Makes room for n more positions and counts them in: they may be stored now.
  void extend(int seq, int n);
  // Keeps positions [0, n_keep); erased positions become zero bytes.
  void truncate(int seq, int n_keep);
  // Forgets the sequence.
  void erase(int seq) { truncate(seq, 0); }
  // Sequence `to` becomes the first n positions of `from`: whole pages are shared, and so is the
  // last one unless n ends inside what it holds.
  void copy(int from, int to, int n);
  // For measuring: a sequence of whole pages, at least one, grows to n positions by copies of them:
  // as many bytes to read as any others, without meaning.
  void repeat(int seq, int n);
  // Takes pages [n_keep, n_keep + n_discard), all of them full, out of the sequence; those behind
  // move forward and keep their bytes (NUMERICS rule 8). n_keep must be the same as in earlier
  // shifts of what the sequence holds.
  void shift(int seq, int n_keep, int n_discard);
  // How far a page has moved: K of a position in it was turned by RoPE for position + offset. The
  // pages kept in front have not moved, all others by the same.
  int offset(int seq, int page) const {
    const Sequence& sequence = sequences_[static_cast<size_t>(seq)];
    return page < sequence.n_kept ? 0 : sequence.moved;
  }
  int n_kept(int seq) const { return sequences_[static_cast<size_t>(seq)].n_kept; }
  int moved(int seq) const { return sequences_[static_cast<size_t>(seq)].moved; }

  // Pages as bytes, of one layer, for saved files: K, then V. Any thread may, while nobody changes
  // this sequence; what happens to the others does not matter, as its pages are written by nobody
  // else. Only pages that it shares with none may be written.
  std::span<const std::byte> read_page(int seq, int page, int layer,
                                       std::span<std::byte> out) const;
  void write_page(int seq, int page, int layer, std::span<const std::byte> bytes);
  // An empty sequence becomes one of n positions, all of it to be written by write_page
  // before it is used.
  void adopt(int seq, int n, int n_kept, int moved);
  int64_t page_bytes() const { return page_bytes_k_ + page_bytes_v_; }
  int n_layers() const { return n_layers_; }

  // Page numbers of a sequence, valid until the next change of that sequence.
  const int32_t* pages(int seq) const { return sequences_[static_cast<size_t>(seq)].pages.data(); }
  int n_pages(int seq) const {
    return static_cast<int>(sequences_[static_cast<size_t>(seq)].pages.size());
  }
  // How many sequences hold a page.
  int references(int32_t page) const { return references_[static_cast<size_t>(page)]; }
  int n_free() const { return static_cast<int>(free_.size()); }
  std::byte* k_pages(int layer) const { return k_ + layer * layer_bytes_k_; }
  std::byte* v_pages(int layer) const { return v_ + layer * layer_bytes_v_; }
  const AttentionPlan& plan() const { return plan_; }

 private:
  struct Sequence {
    std::vector<int32_t> pages;
    int length = 0;
    int n_kept = 0;  // pages in front that shifts left where they were
    int moved = 0;   // positions by which the others have moved
  };
  KvCache(const AttentionPlan& plan, int n_layers, int n_ctx, int n_seqs, Backend& backend);
  int32_t take_page(bool clean);
  void give_page(int32_t page);
  void own_page(Sequence& sequence, size_t index);
  static void settle(Sequence& sequence);
  void clean(int32_t page);
  void erase_in_page(int32_t page, int from);

  AttentionPlan plan_;
  int n_layers_;
  int n_ctx_;
  Backend& backend_;
  std::byte* k_ = nullptr;
  std::byte* v_ = nullptr;
  int64_t page_bytes_k_, page_bytes_v_;    // of one layer
  int64_t layer_bytes_k_, layer_bytes_v_;  // all pages of one layer
  std::vector<int32_t> free_;
  std::vector<bool> dirty_;
  std::vector<int32_t> references_;
  std::vector<Sequence> sequences_;
};

}  // namespace bantam
