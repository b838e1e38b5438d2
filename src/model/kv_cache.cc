#include "model/kv_cache.h"

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

int32_t KvCache::take_page() {
  CHECK(!free_.empty());
  const int32_t page = free_.back();
  free_.pop_back();
  if (dirty_[static_cast<size_t>(page)]) clean(page);
  dirty_[static_cast<size_t>(page)] = true;
  return page;
}

void KvCache::extend(int seq, int n) {
  Sequence& sequence = sequences_[static_cast<size_t>(seq)];
  CHECK(n >= 0 && sequence.length + n <= n_ctx_);
  sequence.length += n;
  while (static_cast<int>(sequence.pages.size()) * kPagePositions < sequence.length) {
    sequence.pages.push_back(take_page());
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
    free_.push_back(sequence.pages.back());
    sequence.pages.pop_back();
  }
  if (n_keep % kPagePositions != 0) erase_in_page(sequence.pages.back(), n_keep % kPagePositions);
  sequence.length = n_keep;
}

}  // namespace bantam
