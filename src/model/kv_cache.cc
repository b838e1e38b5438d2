#include "model/kv_cache.h"

#include <algorithm>

#include "base/limits.h"

namespace bantam {

int64_t KvCache::bytes(const AttentionPlan& plan, int n_layers, int n_ctx, int n_seqs) {
  return plan.page_bytes() * (n_ctx / kPagePositions) * n_layers * n_seqs;
}

KvCache::KvCache(const AttentionPlan& plan, int n_layers, int n_ctx, int n_seqs, Backend& backend)
    : plan_(plan), n_layers_(n_layers), n_ctx_(n_ctx), backend_(backend) {
  const int64_t tiles = int64_t{plan.shape().n_kv_heads} * kPageTiles;
  const int n_pages = n_ctx / kPagePositions * n_seqs;
  page_bytes_k_ = tiles * plan.tile_bytes_k();
  page_bytes_v_ = tiles * plan.tile_bytes_v();
  layer_bytes_k_ = page_bytes_k_ * n_pages;
  layer_bytes_v_ = page_bytes_v_ * n_pages;
  dirty_.assign(static_cast<size_t>(n_pages), false);
  references_.assign(static_cast<size_t>(n_pages), 0);
  free_.reserve(static_cast<size_t>(n_pages));
  for (int page = n_pages - 1; page >= 0; --page) free_.push_back(page);
  sequences_.resize(static_cast<size_t>(n_seqs));
  for (Sequence& sequence : sequences_) {
    sequence.pages.reserve(static_cast<size_t>(n_ctx / kPagePositions));
  }
}

Result<std::unique_ptr<KvCache>> KvCache::create(const AttentionPlan& plan, int n_layers, int n_ctx,
                                                 int n_seqs, Backend& backend) {
  CHECK(n_ctx > 0 && n_ctx % kPagePositions == 0 && n_seqs > 0 && n_seqs <= kMaxSequences);
  std::unique_ptr<KvCache> cache(new KvCache(plan, n_layers, n_ctx, n_seqs, backend));
  Result<std::byte*> k = backend.allocate(cache->layer_bytes_k_ * n_layers, "the K cache");
  if (!k) return k.error();
  Result<std::byte*> v = backend.allocate(cache->layer_bytes_v_ * n_layers, "the V cache");
  if (!v) return v.error();
  cache->k_ = *k;
  cache->v_ = *v;
  // Touched now, so that a machine short of memory says so at the start and not in the middle of an
  // answer.
  backend.zero(cache->k_, cache->layer_bytes_k_ * n_layers);
  backend.zero(cache->v_, cache->layer_bytes_v_ * n_layers);
  return cache;
}

void KvCache::clean(int32_t page) {
  for (int layer = 0; layer < n_layers_; ++layer) {
    backend_.zero(k_pages(layer) + page * page_bytes_k_, page_bytes_k_);
    backend_.zero(v_pages(layer) + page * page_bytes_v_, page_bytes_v_);
  }
}

int32_t KvCache::take_page(bool cleaned) {
  CHECK(!free_.empty());
  const int32_t page = free_.back();
  free_.pop_back();
  if (cleaned && dirty_[static_cast<size_t>(page)]) clean(page);
  dirty_[static_cast<size_t>(page)] = true;
  references_[static_cast<size_t>(page)] = 1;
  return page;
}

void KvCache::give_page(int32_t page) {
  int32_t& n = references_[static_cast<size_t>(page)];
  CHECK(n > 0);
  if (--n == 0) free_.push_back(page);
}

// Before anything is written into a page of the sequence.
void KvCache::own_page(Sequence& sequence, size_t index) {
  const int32_t shared = sequence.pages[index];
  if (references(shared) == 1) return;
  const int32_t own = take_page(false);
  for (int layer = 0; layer < n_layers_; ++layer) {
    std::byte *k = k_pages(layer), *v = v_pages(layer);
    backend_.copy(k + own * page_bytes_k_, k + shared * page_bytes_k_, page_bytes_k_);
    backend_.copy(v + own * page_bytes_v_, v + shared * page_bytes_v_, page_bytes_v_);
  }
  give_page(shared);
  sequence.pages[index] = own;
}

void KvCache::extend(int seq, int n) {
  Sequence& sequence = sequences_[static_cast<size_t>(seq)];
  CHECK(n >= 0 && sequence.length + n <= n_ctx_);
  if (n > 0 && sequence.length % kPagePositions != 0) own_page(sequence, sequence.pages.size() - 1);
  sequence.length += n;
  while (static_cast<int>(sequence.pages.size()) * kPagePositions < sequence.length) {
    sequence.pages.push_back(take_page(true));
  }
}

void KvCache::erase_in_page(int32_t page, int from) {
  const int64_t tile_k = plan_.tile_bytes_k(), tile_v = plan_.tile_bytes_v();
  for (int layer = 0; layer < n_layers_; ++layer) {
    std::byte* k = k_pages(layer) + page * page_bytes_k_;
    std::byte* v = v_pages(layer) + page * page_bytes_v_;
    for (int head = 0; head < plan_.shape().n_kv_heads; ++head) {
      for (int tile = from / kTilePositions; tile < kPageTiles; ++tile) {
        const int first = tile == from / kTilePositions ? from % kTilePositions : 0;
        const int64_t index = int64_t{head} * kPageTiles + tile;
        backend_.erase_tile(plan_, k + index * tile_k, v + index * tile_v, first);
      }
    }
  }
}

void KvCache::truncate(int seq, int n_keep) {
  Sequence& sequence = sequences_[static_cast<size_t>(seq)];
  CHECK(n_keep >= 0 && n_keep <= sequence.length);
  if (n_keep == sequence.length) return;
  const size_t n_pages = static_cast<size_t>((n_keep + kPagePositions - 1) / kPagePositions);
  while (sequence.pages.size() > n_pages) {
    give_page(sequence.pages.back());
    sequence.pages.pop_back();
  }
  if (n_keep % kPagePositions != 0) {
    own_page(sequence, n_pages - 1);
    erase_in_page(sequence.pages.back(), n_keep % kPagePositions);
  }
  sequence.length = n_keep;
  settle(sequence);
}

// Without moved pages a sequence is as if it had never been shifted.
void KvCache::settle(Sequence& sequence) {
  if (static_cast<int>(sequence.pages.size()) > sequence.n_kept) return;
  sequence.n_kept = 0;
  sequence.moved = 0;
}

void KvCache::shift(int seq, int n_keep, int n_discard) {
  Sequence& sequence = sequences_[static_cast<size_t>(seq)];
  CHECK(n_keep >= 0 && n_discard > 0 && n_keep + n_discard <= sequence.length / kPagePositions);
  CHECK(sequence.moved == 0 || sequence.n_kept == n_keep);
  const int by = n_discard * kPagePositions;
  CHECK(sequence.moved <= kMaxMoved - by);
  const auto first = sequence.pages.begin() + n_keep;
  for (auto page = first; page != first + n_discard; ++page) give_page(*page);
  sequence.pages.erase(first, first + n_discard);
  sequence.length -= by;
  sequence.n_kept = n_keep;
  sequence.moved += by;
  settle(sequence);
}

std::span<const std::byte> KvCache::read_page(int seq, int page, int layer,
                                              std::span<std::byte> out) const {
  CHECK(page < n_pages(seq) && static_cast<int64_t>(out.size()) >= page_bytes());
  const int32_t physical = pages(seq)[page];
  backend_.transfer(out.data(), k_pages(layer) + physical * page_bytes_k_, page_bytes_k_);
  backend_.transfer(out.data() + page_bytes_k_, v_pages(layer) + physical * page_bytes_v_,
                    page_bytes_v_);
  return out.first(static_cast<size_t>(page_bytes()));
}

void KvCache::write_page(int seq, int page, int layer, std::span<const std::byte> bytes) {
  CHECK(page < n_pages(seq) && static_cast<int64_t>(bytes.size()) == page_bytes());
  const int32_t physical = pages(seq)[page];
  CHECK(references(physical) == 1);
  backend_.transfer(k_pages(layer) + physical * page_bytes_k_, bytes.data(), page_bytes_k_);
  backend_.transfer(v_pages(layer) + physical * page_bytes_v_, bytes.data() + page_bytes_k_,
                    page_bytes_v_);
}

void KvCache::repeat(int seq, int n) {
  const int n_source = n_pages(seq);
  CHECK(n_source > 0 && length(seq) % kPagePositions == 0);
  std::vector<std::byte> bytes(static_cast<size_t>(page_bytes()));
  extend(seq, n - length(seq));
  for (int page = n_source; page < n_pages(seq); ++page) {
    for (int layer = 0; layer < n_layers_; ++layer) {
      write_page(seq, page, layer, read_page(seq, page % n_source, layer, bytes));
    }
  }
  if (n % kPagePositions != 0) erase_in_page(pages(seq)[n_pages(seq) - 1], n % kPagePositions);
}

void KvCache::adopt(int seq, int n, int n_kept, int moved) {
  CHECK(length(seq) == 0 && moved >= 0 && moved <= kMaxMoved && moved % kPagePositions == 0);
  CHECK(n >= 0 && n <= n_ctx_);
  Sequence& sequence = sequences_[static_cast<size_t>(seq)];
  sequence.length = n;
  // As they are: write_page covers a whole page, and whoever gets them before that gets them clean.
  while (static_cast<int>(sequence.pages.size()) * kPagePositions < n) {
    sequence.pages.push_back(take_page(false));
  }
  CHECK(n_kept >= 0 && n_kept <= n_pages(seq));
  sequence.n_kept = n_kept;
  sequence.moved = moved;
  settle(sequence);
}

void KvCache::copy(int from, int to, int n) {
  CHECK(from != to && n >= 0 && n <= length(from));
  erase(to);
  const Sequence& source = sequences_[static_cast<size_t>(from)];
  Sequence& target = sequences_[static_cast<size_t>(to)];
  const int n_pages = (n + kPagePositions - 1) / kPagePositions;
  for (int i = 0; i < n_pages; ++i) {
    const int32_t page = source.pages[static_cast<size_t>(i)];
    ++references_[static_cast<size_t>(page)];
    target.pages.push_back(page);
  }
  target.length = std::min(n_pages * kPagePositions, source.length);
  target.n_kept = source.n_kept;
  target.moved = source.moved;
  truncate(to, n);
  settle(target);
}

}  // namespace bantam
