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

// How many tiles ahead the kernels ask the memory for. Zen 4, 2 rows, 2 threads, 36 GB/s read: q8_0
// 17.7 GB/s without, 25.7, 26.6, 24.2 with 1, 2, 4 tiles; q4_0 12.3, 20.0, 26.9, 29.9.
int tiles_ahead(const AttentionPlan& plan) {
  const int64_t bytes = std::max(plan.tile_bytes_k(), plan.tile_bytes_v());
  return static_cast<int>(std::clamp<int64_t>(9216 / bytes, 2, 4));
}

// Whether KV is better asked for a page ahead in four streams than some tiles ahead in one. A layer
// whose pages are 2 MiB will not be in a cache when its turn comes again; from caches, which answer
// soon, one stream is better: Xeon, q8_0 of SmolLM2 at depth 2,048 (0.8 MiB of each layer) 0.79 ms
// a token, in four streams 0.91. And L2 must have room for two pages: pages of 192 KiB (f32 beside
// f16, head size 128) 24.8 GB/s in one stream, 26.6 in four; of 256 KiB (f16, head size 256) 24.2
// and 22.7.
bool streams_are_better(const AttentionPlan& plan, int64_t n_pages) {
  const int64_t page_bytes = kPageTiles * (plan.tile_bytes_k() + plan.tile_bytes_v());
  return n_pages * page_bytes >= 2 << 20 && page_bytes <= 192 << 10;
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

CpuBackend::PageView CpuBackend::view_page(const AttendStep& step, const AttendBlock& block,
                                           int page) const {
  const AttentionPlan& plan = *step.plan;
  const AttendRow& last = step.rows[static_cast<size_t>(block.first_row + block.n_rows - 1)];
  const int visible = std::min(last.pos + 1 - page * kPagePositions, kPagePositions);
  const auto first_tile = [&](std::byte* pages, int64_t tile_bytes) {
    return tile_of(pages, tile_bytes, plan.shape().n_kv_heads, last.pages[page], block.kv_head, 0);
  };
  return {first_tile(step.k_pages, plan.tile_bytes_k()),
          first_tile(step.v_pages, plan.tile_bytes_v()),
          (visible + kTilePositions - 1) / kTilePositions, page < last.n_kept};
}

// Tile i of the K tiles and then the V tiles of a page and of the page after it, if that is known.
const std::byte* CpuBackend::tile_ahead(const AttentionPlan& plan, const PageView& view,
                                        const Upcoming& upcoming, int i) {
  if (i < view.n_tiles) return view.k + i * plan.tile_bytes_k();
  i -= view.n_tiles;
  if (i < view.n_tiles) return view.v + i * plan.tile_bytes_v();
  i -= view.n_tiles;
  const bool known = upcoming.n > 0 && i < upcoming.view.n_tiles;
  return known ? upcoming.view.k + i * plan.tile_bytes_k() : nullptr;
}

int CpuBackend::visible_in_page(const AttendStep& step, const AttendBlock& block, int row,
                                int page) {
  const int pos = step.rows[static_cast<size_t>(block.first_row + row)].pos;
  return std::clamp(pos + 1 - page * kPagePositions, 0, kPagePositions);
}

// What comes after all that is known to come.
void CpuBackend::decide_next(const AttendStep& step, Upcoming& upcoming) {
  if (upcoming.last || upcoming.n == Upcoming::kMost) return;
  const Piece next = pieces_.next(upcoming.n == 0 ? upcoming.now : upcoming.next[upcoming.n - 1]);
  upcoming.last = next.block == nullptr;
  if (upcoming.last) return;
  upcoming.next[upcoming.n++] = next;
  const PageView view = view_page(step, *next.block, next.page);
  upcoming.view = view;
  upcoming.ahead.start(view.k, view.n_tiles * step.plan->tile_bytes_k(), view.v,
                       view.n_tiles * step.plan->tile_bytes_v());
}

// What to ask for while tile i of the K tiles and then the V tiles of a page is read.
const AheadLines* CpuBackend::lines_ahead(const AttendStep& step, const PageView& view, int i,
                                          Upcoming& upcoming) {
  const AttentionPlan& plan = *step.plan;
  if (i == 0) {
    if (upcoming.n == 0) upcoming.ahead = {};
    upcoming.streams = ask_streams_ && (upcoming.n > 0 || pieces_.plenty_after(upcoming.now));
  }
  if (upcoming.streams) {
    // A page that few positions are visible of is soon asked for.
    if (upcoming.ahead.done()) decide_next(step, upcoming);
    const bool k = i < view.n_tiles;
    upcoming.ahead.take(k ? plan.tile_bytes_k() : plan.tile_bytes_v(), k ? view.k : view.v,
                        upcoming.lines);
    return &upcoming.lines;
  }
  const bool soon = i >= 2 * view.n_tiles - std::min(view.n_tiles, upcoming.tiles);
  if (soon && upcoming.n == 0) decide_next(step, upcoming);
  const std::byte* tile = tile_ahead(plan, view, upcoming, i + upcoming.tiles);
  if (tile == nullptr) tile = tile_ahead(plan, view, upcoming, i);
  upcoming.lines.of_tile(tile, i < view.n_tiles ? plan.tile_bytes_k() : plan.tile_bytes_v());
  return &upcoming.lines;
}

// Keeps the memory busy while weights are worked out. More lines at once hold up what is computed:
// Xeon, 1.7B at depth 16,384, f16 26.6, 27.0, 27.4, 26.3, 26.3 GB/s with 0, 8, 16, 32, 64 lines
// (then eight of a stream and more of others).
void CpuBackend::ask_some(Upcoming& upcoming) {
  if (!upcoming.streams || upcoming.ahead.done()) return;
  constexpr int kLines = 4;  // of each stream
  const std::byte* at[PageAhead::kStreams];
  upcoming.ahead.take_some(kLines * 64, at);
  for (const std::byte* lines : at) {
    for (int i = 0; i < kLines; ++i) __builtin_prefetch(lines + i * 64, 0, 2);
  }
}

void CpuBackend::score_page(const AttendStep& step, const PageView& view, float* s,
                            Upcoming& upcoming) {
  const AttentionPlan& plan = *step.plan;
  const AttendBlock& block = *upcoming.now.block;
  const int hd = plan.shape().head_dim, group = plan.group();
  const int64_t index =
      kept_index(step, view.kept) +
      (int64_t{block.kv_head} * static_cast<int64_t>(step.rows.size()) + block.first_row) * group;
  ScoreArgs score;
  score.head_dim = hd;
  score.n_rows = block.n_rows * group;
  score.q = queries_.q + index * hd;
  score.sums16 = queries_.sums16 + index * (hd / 16);
  score.qf = queries_.qf + index * hd;
  score.scale = queries_.scale + index;
  score.s_stride = kScoreStride;
  for (int t = 0; t < view.n_tiles; ++t) {
    score.tile = view.k + t * plan.tile_bytes_k();
    score.ahead = lines_ahead(step, view, t, upcoming);
    score.s = s + t * kTilePositions;
    kernels_.kv[static_cast<int>(plan.k())].scores(score);
  }
}

// The sums of one page for all queries of the block: acc, m and l of the queries that see it.
void CpuBackend::attend_page(const AttendStep& step, ThreadScratch& scratch, Upcoming& upcoming) {
  const AttentionPlan& plan = *step.plan;
  const Piece& piece = upcoming.now;
  const AttendBlock& block = *piece.block;
  const int hd = plan.shape().head_dim, group = plan.group(), n_queries = block.n_rows * group;
  const PageView view = view_page(step, block, piece.page);
  score_page(step, view, scratch.s, upcoming);
  ask_some(upcoming);
  for (int row = 0, i = 0; row < block.n_rows; ++row) {
    const int visible = visible_in_page(step, block, row, piece.page);
    for (const int end = i + group; i < end; ++i) {
      if (visible == 0) continue;
      kernels_.softmax_page(scratch.s + i * kScoreStride, visible, scratch.m + i, scratch.l + i);
    }
  }
  WeighArgs weigh;
  weigh.head_dim = hd;
  weigh.n_rows = n_queries;
  weigh.p_stride = kScoreStride;
  weigh.n_visible = scratch.visible;
  weigh.acc = scratch.acc;
  weigh.acc_stride = acc_stride(hd);
  // Rows of a run ascend: what the first one sees, all see.
  const bool whole = visible_in_page(step, block, 0, piece.page) == kPagePositions;
  if (whole) std::fill_n(scratch.visible, n_queries, kTilePositions);
  for (int t = 0; t < view.n_tiles; ++t) {
    for (int row = 0; row < block.n_rows && !whole; ++row) {
      const int visible = visible_in_page(step, block, row, piece.page);
      const int in_tile = std::clamp(visible - t * kTilePositions, 0, kTilePositions);
      std::fill_n(scratch.visible + row * group, group, in_tile);
    }
    weigh.tile = view.v + t * plan.tile_bytes_v();
    weigh.p = scratch.s + t * kTilePositions;
    weigh.first = t == 0;
    weigh.ahead = lines_ahead(step, view, view.n_tiles + t, upcoming);
    kernels_.kv[static_cast<int>(plan.v())].weigh(weigh);
  }
}

// Adds what attend_page left to the sums of the pages before it; the last page ends the block.
void CpuBackend::add_page(const AttendStep& step, const Piece& piece,
                          const ThreadScratch& scratch) {
  const AttentionPlan& plan = *step.plan;
  const AttendBlock& block = *piece.block;
  const int page = piece.page;
  const int hd = plan.shape().head_dim, group = plan.group();
  const bool last = page == block.n_pages - 1;
  const int64_t index =
      (int64_t{block.kv_head} * static_cast<int64_t>(step.rows.size()) + block.first_row) * group;
  for (int row = 0, i = 0; row < block.n_rows; ++row) {
    const bool sees = visible_in_page(step, block, row, page) > 0;
    float* out = step.out + (int64_t{block.first_row + row} * plan.shape().n_heads +
                             int64_t{block.kv_head} * group) *
                                hd;
    for (const int end = i + group; i < end; ++i, out += hd) {
      const float* acc = scratch.acc + i * acc_stride(hd);
      float *m = queries_.m + index + i, *l = queries_.l + index + i;
      // Queries are rounded elsewhere by now: sums lie there, for rows of the output are far apart.
      float* sum = step.q + (index + i) * hd;
      if (page == 0) {
        // The first page is every row's first: nothing is merged.
        *m = scratch.m[i];
        *l = scratch.l[i];
        std::memcpy(sum, acc, static_cast<size_t>(hd) * sizeof(float));
      } else if (sees) {
        kernels_.merge(hd, m, l, sum, scratch.m[i], scratch.l[i], acc);
      }
      if (!last) continue;
      kernels_.finish(hd, sum, *l, out);
      if (plan.rotation_v() > 0) kernels_.rotate(out, hd, plan.rotation_v());
    }
  }
}

void CpuBackend::attend_pieces(const AttendStep& step, int thread) {
  ThreadScratch& scratch = scratch_[static_cast<size_t>(thread)];
  Upcoming upcoming;
  upcoming.tiles = tiles_ahead(*step.plan);
  upcoming.now = pieces_.first(thread);
  while (upcoming.now.block != nullptr) {
    attend_page(step, scratch, upcoming);
    pieces_.await_turn(upcoming.now);
    add_page(step, upcoming.now, scratch);
    pieces_.added(upcoming.now);
    if (upcoming.n == 0) decide_next(step, upcoming);
    upcoming.now = upcoming.n == 0 ? Piece{} : upcoming.next[0];
    for (int i = 1; i < upcoming.n; ++i) upcoming.next[i - 1] = upcoming.next[i];
    upcoming.n = std::max(0, upcoming.n - 1);
  }
}

// Blocks of query rows of one run, as even as they can be, for each KV head. Returns how many pages
// of a head they read, each counted once.
int64_t CpuBackend::make_blocks(const AttendStep& step) {
  int64_t n_pages = 0;
  const int n_rows = static_cast<int>(step.rows.size());
  const int most = std::max(1, kBlockQueries / step.plan->group());
  pieces_.clear();
  for (int first = 0; first < n_rows;) {
    int end = first + 1;
    while (end < n_rows &&
           step.rows[static_cast<size_t>(end)].run == step.rows[static_cast<size_t>(first)].run) {
      ++end;
    }
    const int parts = (end - first + most - 1) / most;
    for (int part = 0; part < parts; ++part) {
      const auto range = ThreadPool::split(end - first, part, parts);
      const int last_pos = step.rows[static_cast<size_t>(first + range.end - 1)].pos;
      for (int kv_head = 0; kv_head < step.plan->shape().n_kv_heads; ++kv_head) {
        pieces_.add({kv_head, first + static_cast<int>(range.begin),
                     static_cast<int>(range.end - range.begin), last_pos / kPagePositions + 1});
      }
    }
    n_pages += int64_t{step.plan->shape().n_kv_heads} *
               (step.rows[static_cast<size_t>(end - 1)].pos / kPagePositions + 1);
    first = end;
  }
  return n_pages;
}

void CpuBackend::prepare_rows_and_stores(const AttendStep& step) {
  const int n_rows = static_cast<int>(step.rows.size());
  const int64_t n_stores = 2 * step.plan->shape().n_kv_heads;
  for (;;) {
    const int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
    if (item >= n_stores + n_rows) return;
    if (item < n_stores) {
      store_head(step, static_cast<int>(item / 2), item % 2 != 0);
    } else {
      prepare_query(step, static_cast<int>(item - n_stores));
    }
  }
}

void CpuBackend::attend(const AttendStep& step) {
  const int n_rows = static_cast<int>(step.rows.size());
  CHECK(n_rows <= shape_.max_rows);
  const int64_t n_pages = make_blocks(step);
  const int team = threads_for(n_rows);
  pieces_.share(team);
  ask_streams_ = kernels_.kv_streams && streams_are_better(*step.plan, n_pages);
  next_.store(0, std::memory_order_relaxed);
  pool_.run(
      [&](int thread, int) {
        prepare_rows_and_stores(step);
        pool_.barrier();
        attend_pieces(step, thread);
      },
      team);
}

void CpuBackend::erase_tile(const AttentionPlan& plan, std::byte* k_tile, std::byte* v_tile,
                            int from) {
  kernels_.kv[static_cast<int>(plan.k())].erase_k(plan.shape().head_dim, from, k_tile);
  kernels_.kv[static_cast<int>(plan.v())].erase_v(plan.shape().head_dim, from, v_tile);
}

}  // namespace bantam
