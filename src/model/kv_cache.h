// The KV cache: pages of 256 positions for any number of sequences, one arena for each of K and V,
// taken once. Owns page tables and lengths. Cannot exist without an AttentionPlan. Refuses (CHECK)
// growth beyond a sequence's context.
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
  // Makes room for n more positions and counts them in.
  void extend(int seq, int n);
  // Keeps positions [0, n_keep); erased positions become zero bytes.
  void truncate(int seq, int n_keep);
  // Page numbers of a sequence, valid until the next extend or truncate.
  const int32_t* pages(int seq) const { return sequences_[static_cast<size_t>(seq)].pages.data(); }
  std::byte* k_pages(int layer) const { return k_ + layer * layer_bytes_k_; }
  std::byte* v_pages(int layer) const { return v_ + layer * layer_bytes_v_; }
  const AttentionPlan& plan() const { return plan_; }

 private:
  struct Sequence {
    std::vector<int32_t> pages;
    int length = 0;
  };
  KvCache(const AttentionPlan& plan, int n_layers, int n_ctx, int n_seqs, Backend& backend);
  int32_t take_page();
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
  std::vector<Sequence> sequences_;
};

}  // namespace bantam
