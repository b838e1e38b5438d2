// Attention of CpuBackend: how rows, heads and pages are shared between threads. The arithmetic is
// in the kernels.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/limits.h"
#include "cpu/cpu_backend.h"

namespace bantam {

namespace {

std::byte* tile_of(std::byte* pages, int64_t tile_bytes, int n_kv_heads, int page, int kv_head,
                   int tile) {
  return pages + ((int64_t{page} * n_kv_heads + kv_head) * kPageTiles + tile) * tile_bytes;
}

// Where the queries for the pages that shifts left behind start, among all queries of a step.
int64_t kept_index(const AttendStep& step, bool kept) {
  return kept ? step.plan->shape().n_heads * static_cast<int64_t>(step.rows.size()) : 0;
}

}  // namespace

void CpuBackend::prepare_query(const AttendStep& step, int row) {
  const AttentionPlan& plan = *step.plan;
  const int hd = plan.shape().head_dim;
  for (int head = 0; head < plan.shape().n_heads; ++head) {
    float* x = step.q + (int64_t{row} * plan.shape().n_heads + head) * hd;
    if (step.q_norm != nullptr) kernels_.rms_norm(x, step.q_norm, hd, step.norm_eps, x);
    if (step.rows[static_cast<size_t>(row)].n_kept > 0) {
      alignas(64) float kept[kMaxHeadDim];
      std::memcpy(kept, x, static_cast<size_t>(hd) * sizeof(float));
      turn_query(step, row, head, true, kept);
    }
    turn_query(step, row, head, false, x);
  }
}

// RoPE, rotation and rounding of a normed query, for the pages that moved or for those kept.
void CpuBackend::turn_query(const AttendStep& step, int row, int head, bool kept, float* x) {
  const AttentionPlan& plan = *step.plan;
  const int hd = plan.shape().head_dim, group = plan.group();
  const int64_t n_rows = static_cast<int64_t>(step.rows.size()), half = step.rope_dims / 2;
  const float c = static_cast<float>(1.0 / std::sqrt(static_cast<double>(hd)));
  kernels_.rope(x, step.rope_dims, step.rope_interleaved,
                (kept ? step.kept_cos : step.cos) + row * half,
                (kept ? step.kept_sin : step.sin) + row * half);
  const int64_t index =
      kept_index(step, kept) + (head / group * n_rows + row) * group + head % group;
  if (plan.rotation_k() == 0) {
    std::memcpy(queries_.qf + index * hd, x, static_cast<size_t>(hd) * sizeof(float));
    queries_.scale[index] = c;
    return;
  }
  kernels_.rotate(x, hd, plan.rotation_k());
  float d = 0;
  int32_t sum = 0;
  kernels_.quantize(x, hd, hd, queries_.q + index * hd, &d, &sum,
                    queries_.sums16 + index * (hd / 16));
  queries_.scale[index] = d * c;
}

void CpuBackend::store_head(const AttendStep& step, int kv_head, bool values) {
  const AttentionPlan& plan = *step.plan;
  const int hd = plan.shape().head_dim, n_kv_heads = plan.shape().n_kv_heads,
            half = step.rope_dims / 2;
  for (size_t row = 0; row < step.rows.size(); ++row) {
    const AttendRow& at = step.rows[row];
    const int page = at.pages[at.pos / kPagePositions];
    const int tile = at.pos % kPagePositions / kTilePositions, slot = at.pos % kTilePositions;
    const int64_t offset = (static_cast<int64_t>(row) * n_kv_heads + kv_head) * hd;
    if (values) {
      float* x = step.v + offset;
      if (plan.rotation_v() > 0) kernels_.rotate(x, hd, plan.rotation_v());
      kernels_.kv[static_cast<int>(plan.v())].store_v(
          x, hd, slot, tile_of(step.v_pages, plan.tile_bytes_v(), n_kv_heads, page, kv_head, tile));
      continue;
    }
    float* x = step.k + offset;
    if (step.k_norm != nullptr) kernels_.rms_norm(x, step.k_norm, hd, step.norm_eps, x);
    kernels_.rope(x, step.rope_dims, step.rope_interleaved,
                  step.cos + static_cast<int64_t>(row) * half,
                  step.sin + static_cast<int64_t>(row) * half);
    if (plan.rotation_k() > 0) kernels_.rotate(x, hd, plan.rotation_k());
    kernels_.kv[static_cast<int>(plan.k())].store_k(
        x, hd, slot, tile_of(step.k_pages, plan.tile_bytes_k(), n_kv_heads, page, kv_head, tile));
  }
}

void CpuBackend::attend_page(const AttendStep& step, const Block& block, ThreadScratch& scratch,
                             int page) {
  const AttentionPlan& plan = *step.plan;
  const int hd = plan.shape().head_dim, n_kv_heads = plan.shape().n_kv_heads, group = plan.group();
  const int n_queries = block.n_rows * group;
  const AttendRow* rows = &step.rows[static_cast<size_t>(block.first_row)];
  const int64_t index =
      kept_index(step, page < rows->n_kept) +
      (int64_t{block.kv_head} * static_cast<int64_t>(step.rows.size()) + block.first_row) * group;
  const auto visible_of = [&](int query) {
    return std::clamp(rows[query / group].pos + 1 - page * kPagePositions, 0, kPagePositions);
  };
  const int n_tiles = (visible_of(n_queries - 1) + kTilePositions - 1) / kTilePositions;
  const int physical = rows[block.n_rows - 1].pages[page];

  ScoreArgs score;
  score.head_dim = hd;
  score.n_rows = n_queries;
  score.q = queries_.q + index * hd;
  score.sums16 = queries_.sums16 + index * (hd / 16);
  score.qf = queries_.qf + index * hd;
  score.scale = queries_.scale + index;
  score.s_stride = kPagePositions;
  for (int t = 0; t < n_tiles; ++t) {
    score.tile = tile_of(step.k_pages, plan.tile_bytes_k(), n_kv_heads, physical, block.kv_head, t);
    score.s = scratch.s + t * kTilePositions;
    kernels_.kv[static_cast<int>(plan.k())].scores(score);
  }

  const int64_t cap = std::max(kBlockQueries, group);
  float *m = scratch.m, *l = m + cap, *m_page = l + cap, *l_page = m_page + cap;
  for (int i = 0; i < n_queries; ++i) {
    if (visible_of(i) == 0) continue;
    kernels_.softmax_page(scratch.s + int64_t{i} * kPagePositions, visible_of(i), m_page + i,
                          l_page + i);
  }

  // The first page is every row's first: its sums are the accumulator, nothing is merged.
  float* acc = page == 0 ? scratch.acc : scratch.acc_page;
  std::memset(acc, 0, static_cast<size_t>(n_queries) * static_cast<size_t>(hd) * sizeof(float));
  WeighArgs weigh;
  weigh.head_dim = hd;
  weigh.n_rows = n_queries;
  weigh.p_stride = kPagePositions;
  weigh.n_visible = scratch.visible;
  weigh.acc = acc;
  for (int t = 0; t < n_tiles; ++t) {
    for (int i = 0; i < n_queries; ++i) {
      scratch.visible[i] = std::clamp(visible_of(i) - t * kTilePositions, 0, kTilePositions);
    }
    weigh.tile = tile_of(step.v_pages, plan.tile_bytes_v(), n_kv_heads, physical, block.kv_head, t);
    weigh.p = scratch.s + t * kTilePositions;
    kernels_.kv[static_cast<int>(plan.v())].weigh(weigh);
  }
  for (int i = 0; i < n_queries; ++i) {
    if (page == 0) {
      m[i] = m_page[i];
      l[i] = l_page[i];
    } else if (visible_of(i) > 0) {
      kernels_.merge(hd, m + i, l + i, scratch.acc + int64_t{i} * hd, m_page[i], l_page[i],
                     acc + int64_t{i} * hd);
    }
  }
}

void CpuBackend::finish_block(const AttendStep& step, const Block& block, ThreadScratch& scratch) {
  const AttentionPlan& plan = *step.plan;
  const int hd = plan.shape().head_dim, group = plan.group();
  const float* l = scratch.m + std::max(kBlockQueries, group);
  for (int i = 0; i < block.n_rows * group; ++i) {
    const int64_t row = block.first_row + i / group;
    const int64_t head = int64_t{block.kv_head} * group + i % group;
    float* out = step.out + (row * plan.shape().n_heads + head) * hd;
    kernels_.finish(hd, scratch.acc + int64_t{i} * hd, l[i], out);
    if (plan.rotation_v() > 0) kernels_.rotate(out, hd, plan.rotation_v());
  }
}

void CpuBackend::attend_block(const AttendStep& step, const Block& block, ThreadScratch& scratch) {
  const AttendRow& last = step.rows[static_cast<size_t>(block.first_row + block.n_rows - 1)];
  for (int page = 0; page <= last.pos / kPagePositions; ++page)
    attend_page(step, block, scratch, page);
  finish_block(step, block, scratch);
}

void CpuBackend::attend(const AttendStep& step) {
  const AttentionShape& shape = step.plan->shape();
  const int n_rows = static_cast<int>(step.rows.size());
  CHECK(n_rows <= shape_.max_rows);
  const int rows_per_block = std::max(1, kBlockQueries / step.plan->group());
  blocks_.clear();
  for (int first = 0; first < n_rows;) {
    int end = first + 1;
    while (end < n_rows && end - first < rows_per_block &&
           step.rows[static_cast<size_t>(end)].run == step.rows[static_cast<size_t>(first)].run) {
      ++end;
    }
    for (int kv_head = 0; kv_head < shape.n_kv_heads; ++kv_head) {
      blocks_.push_back({kv_head, first, end - first});
    }
    first = end;
  }
  const int team = threads_for(n_rows);
  const int64_t n_stores = 2 * shape.n_kv_heads;
  next_.store(0, std::memory_order_relaxed);
  next_block_.store(0, std::memory_order_relaxed);
  pool_.run(
      [&](int thread, int) {
        for (;;) {
          const int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
          if (item >= n_stores + n_rows) break;
          if (item < n_stores) {
            store_head(step, static_cast<int>(item / 2), item % 2 != 0);
          } else {
            prepare_query(step, static_cast<int>(item - n_stores));
          }
        }
        pool_.barrier();
        for (;;) {
          // From the back: late rows see more pages, so the longest work starts first.
          const int64_t item = static_cast<int64_t>(blocks_.size()) - 1 -
                               next_block_.fetch_add(1, std::memory_order_relaxed);
          if (item < 0) return;
          attend_block(step, blocks_[static_cast<size_t>(item)],
                       scratch_[static_cast<size_t>(thread)]);
        }
      },
      team);
}

void CpuBackend::erase_tile(const AttentionPlan& plan, std::byte* k_tile, std::byte* v_tile,
                            int from) {
  kernels_.kv[static_cast<int>(plan.k())].erase_k(plan.shape().head_dim, from, k_tile);
  kernels_.kv[static_cast<int>(plan.v())].erase_v(plan.shape().head_dim, from, v_tile);
}

}  // namespace bantam
