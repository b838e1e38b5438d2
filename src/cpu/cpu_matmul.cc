// Matrix products of CpuBackend: how inputs are normed and rounded on their way in, and how groups
// of rows are shared between threads. The arithmetic is in the kernels.
#include <algorithm>
#include <cstring>

#include "cpu/cpu_backend.h"
#include "cpu/streams.h"

namespace bantam {

namespace {

// Groups that a thread takes at a time. With several rows of activations at most so many that their
// weights (kMostBytes) stay in L2 while all rows pass. For a single row the weights are one long
// stream: by turns of at most 32 groups, 1.7B decoded 122 tok/s instead of 151 (Zen 4, read
// bandwidth 68 GB/s). At the end one group at a time: with four, prompts of SmolLM2 waited for the
// slower thread (Xeon with neighbours, tiles, median of 80: 1974 tok/s with one, 1828 with four).
constexpr int64_t kMostGroups = 32;
constexpr int64_t kMostBytes = 384 << 10;
constexpr int64_t kLeastGroups = 1;
constexpr int64_t kLeastAlone = 2;
// Streams want something to read: with fewer groups for each thread there is one stream, not four.
constexpr int64_t kFewestByFour = 8;

}  // namespace

// Of products that have `groups` groups for each thread.
CpuBackend::Rounding CpuBackend::rounding_of(std::span<const MatmulOut> outs, int n_rows,
                                             int64_t groups) const {
  const MatmulOut& out = outs[0];
  const bool rounded = out.act_block != 0;
  Rounding r{out.w->cols, out.act_block, out.wide ? 3 : 2, out.wide, false, {}, false, true};
  r.tables = rounded && n_rows == 1;
  r.several = kernels_.weight[static_cast<int>(out.w->type)].several;
  for (const MatmulOut& each : outs) {
    const WeightKernels& kernels = kernels_.weight[static_cast<int>(each.w->type)];
    r.tables = r.tables && kernels.tables;
    r.by_four = r.by_four && kernels.by_four && each.w->type == out.w->type;
    const SeveralRows& several = kernels.several;
    const int from = out.act_block == 32 ? several.from_rows_32 : several.from_rows;
    const bool enough = n_rows > 1 && n_rows >= from && groups >= several.from_groups;
    if (!rounded || !enough || several.order != r.several.order) r.several = {};
    // Only Q6_K has scales for 16 columns.
    r.sums16 = r.sums16 || each.w->type == WeightType::q6_k;
  }
  r.by_four = r.by_four && r.tables && groups >= kFewestByFour;
  return r;
}

// x rounded, in plain order.
void CpuBackend::round_row(const Rounding& to, const float* x, const Inputs& out) const {
  if (to.wide) {
    kernels_.quantize16(x, to.n, to.block, out.q, out.low, out.d, out.sums);
  } else {
    kernels_.quantize(x, to.n, to.block, out.q, out.d, out.sums, to.sums16 ? out.sums16 : nullptr);
  }
  for (int b = 0; b < to.n / to.block; ++b) out.float_sums[b] = static_cast<float>(out.sums[b]);
}

// One row alone: every thread prepares its own copy, which costs less than waiting for another
// thread's and fetching it from that core's cache.
CpuBackend::Operand CpuBackend::prepare_alone(const MatmulIn& in, const Rounding& to,
                                              ThreadScratch& scratch) {
  const int n = to.n;
  Operand operand{1, in.x, {}};
  if (in.norm != nullptr) {
    kernels_.rms_norm(in.x, in.norm, n, in.norm_eps, scratch.normed);
    operand.x = scratch.normed;
  }
  if (to.block == 0) return operand;
  int8_t* low = to.wide ? scratch.codes + shape_.max_cols : nullptr;
  round_row(to, operand.x,
            {scratch.codes, low, scratch.d, scratch.sums, scratch.float_sums, scratch.sums16});
  operand.a = {
      1,  n, to.block, scratch.codes, scratch.d, scratch.sums, scratch.float_sums, scratch.sums16,
      low};
  if (to.tables) {
    kernels_.build_tables(scratch.codes, low, n, scratch.tables);
    operand.a.tables = scratch.tables;
    operand.a.planes = to.planes;
  }
  return operand;
}

// Row `row`: normed (once), rounded, put where the kernels want it.
void CpuBackend::prepare_row(const MatmulIn& in, const Rounding& to, const Operand& pass,
                             bool first, int row, ThreadScratch& scratch) {
  const int n = to.n, block = to.block;
  const float* x = in.x + int64_t{row} * n;
  if (in.norm != nullptr) {
    float* y = in.normed + int64_t{row} * n;
    if (first) kernels_.rms_norm(x, in.norm, n, in.norm_eps, y);
    x = y;
  }
  if (block == 0) return;
  const bool plain = to.several.order == ActOrder::plain;
  const bool tiles = to.several.order == ActOrder::tiles;
  const int64_t at = int64_t{row} * n, b = at / block;
  int8_t* codes = plain ? inputs_.q + at : scratch.codes;
  int8_t* low = nullptr;
  if (to.wide) low = plain ? inputs_.low + at : codes + shape_.max_cols;
  Inputs out{codes,
             low,
             inputs_.d + b,
             inputs_.sums + b,
             inputs_.float_sums + b,
             inputs_.sums16 + at / 16};
  if (tiles) out = {codes, low, scratch.d, scratch.sums, scratch.float_sums, scratch.sums16};
  round_row(to, x, out);
  if (plain) return;
  if (tiles) return put_in_tiles(to, pass.n_rows, row, scratch);
  const int step = 4 * panel_width(pass.n_rows, row);
  int64_t place = act_offset(pass.n_rows, n, row, 0);
  for (int c = 0; c < n; c += 4, place += step) {
    std::memcpy(inputs_.q + place, codes + c, 4);
    if (low != nullptr) std::memcpy(inputs_.low + place, low + c, 4);
  }
}

// A rounded row of n_rows to its tile.
void CpuBackend::put_in_tiles(const Rounding& to, int n_rows, int row,
                              const ThreadScratch& scratch) {
  const int n = to.n, depth = tile_depth(to.block), rows = tile_rows(n_rows);
  CHECK(depth == 32 || depth == 64);
  // Of constant size, or each is a call.
  const auto copy = [&](int8_t* out, const int8_t* codes) {
    depth == 32 ? std::memcpy(out, codes, 32) : std::memcpy(out, codes, 64);
  };
  int64_t place = tile_offset(n_rows, n, depth, row, 0);
  for (int c = 0; c < n; c += depth, place += int64_t{rows} * depth) {
    copy(inputs_.q + place, scratch.codes + c);
    if (to.wide) copy(inputs_.low + place, scratch.codes + shape_.max_cols + c);
  }
  place = tile_offset(n_rows, n / to.block, 1, row, 0);
  for (int b = 0; b < n / to.block; ++b, place += rows) {
    inputs_.d[place] = scratch.d[b];
    inputs_.float_sums[place] = scratch.float_sums[b];
  }
}

CpuBackend::Operand CpuBackend::prepare_rows(const MatmulIn& in, const Rounding& to, bool first) {
  const int n_rows = in.n_rows;
  Operand pass{n_rows, in.norm != nullptr ? in.normed : in.x, {}};
  if (to.block == 0 && (in.norm == nullptr || !first)) return pass;
  if (to.block != 0) {
    pass.a = {n_rows,
              to.n,
              to.block,
              inputs_.q,
              inputs_.d,
              inputs_.sums,
              inputs_.float_sums,
              inputs_.sums16,
              to.wide ? inputs_.low : nullptr};
    pass.a.order = to.several.order;
    // Tiles have no others.
    if (to.several.order == ActOrder::tiles) pass.a.sums = nullptr, pass.a.sums16 = nullptr;
  }
  pool_.run(
      [&](int thread, int team) {
        const auto part = ThreadPool::split(n_rows, thread, team);
        for (int64_t r = part.begin; r < part.end; ++r) {
          prepare_row(in, to, pass, first, static_cast<int>(r),
                      scratch_[static_cast<size_t>(thread)]);
        }
      },
      threads_for(in.n_rows));
  return pass;
}

void CpuBackend::matmul_groups(const MatmulOut& out, const Operand& in, int begin, int end,
                               int thread) {
  const PackedMatrix packed{out.w->type, out.w->rows, out.w->cols, out.w->data};
  MatmulArgs args;
  args.w = &packed;
  args.group_begin = begin;
  args.group_end = end;
  args.a = in.a;
  args.x = in.x;
  args.n_rows = in.n_rows;
  args.y = out.y;
  args.ldy = out.ldy;
  args.add = out.add;
  args.scratch = scratch_[static_cast<size_t>(thread)].row;
  const WeightKernels& kernels = kernels_.weight[static_cast<int>(packed.type)];
  (out.act_block == 0 ? kernels.matmul_f32 : kernels.matmul)(args);
}

// Groups [begin, begin + left) of all products laid end to end.
void CpuBackend::matmul_chunk(std::span<const MatmulOut> outs, const Operand& in, bool gated,
                              int64_t begin, int64_t left, int thread) {
  if (gated) {
    const int first = static_cast<int>(begin), last = static_cast<int>(begin + left);
    for (const MatmulOut& out : outs) matmul_groups(out, in, first, last, thread);
    const int row = first * kGroupRows;
    const int n = std::min(last * kGroupRows, outs[0].w->rows) - row;
    for (int64_t t = 0; t < in.n_rows; ++t) {
      float* gate = outs[0].y + t * outs[0].ldy + row;
      kernels_.silu_mul(gate, outs[1].y + t * outs[1].ldy + row, n, gate);
    }
    return;
  }
  for (size_t i = 0; i < outs.size() && left > 0; ++i) {
    const int64_t groups = n_groups(outs[i].w->rows);
    if (begin >= groups) {
      begin -= groups;
      continue;
    }
    const int64_t end = std::min(groups, begin + left);
    matmul_groups(outs[i], in, static_cast<int>(begin), static_cast<int>(end), thread);
    left -= end - begin;
    begin = 0;
  }
}

// Items of a single row's product in four streams.
void CpuBackend::matmul_four(std::span<const MatmulOut> outs, const Operand& in, bool gated,
                             const Shares::Range& range) {
  const auto groups_of = [&](int i) { return n_groups(outs[static_cast<size_t>(i)].w->rows); };
  int64_t n = 0;
  for (int64_t at = range.begin; at < range.end; at += n) {
    StreamPart parts[4];
    n = next_streams(static_cast<int>(outs.size()), groups_of, gated, range, at, parts);
    PackedMatrix packed[4];
    MatmulArgs four[4];
    for (int s = 0; s < 4; ++s) {
      const MatmulOut& out = outs[static_cast<size_t>(parts[s].matrix)];
      packed[s] = {out.w->type, out.w->rows, out.w->cols, out.w->data};
      four[s].w = &packed[s];
      four[s].group_begin = static_cast<int>(parts[s].begin);
      four[s].group_end = static_cast<int>(parts[s].end);
      four[s].a = in.a;
      four[s].y = out.y;
      four[s].ldy = out.ldy;
      four[s].add = out.add;
    }
    kernels_.weight[static_cast<int>(packed[0].type)].matmul_four(four);
    for (int s = 0; gated && s < 2; ++s) {
      const int row = four[s].group_begin * kGroupRows;
      const int end = std::min(four[s].group_end * kGroupRows, packed[s].rows);
      if (row < end) {
        kernels_.silu_mul(outs[0].y + row, outs[1].y + row, end - row, outs[0].y + row);
      }
    }
  }
}

// Products that read the same rounding of the same rows.
void CpuBackend::matmul_alike(std::span<const MatmulOut> outs, const MatmulIn& in, bool first) {
  int64_t total = 0;
  for (const MatmulOut& out : outs.first(in.gated ? 1 : outs.size())) {
    total += n_groups(out.w->rows);
  }
  const int team = threads_for(in.n_rows);
  const Rounding to = rounding_of(outs, in.n_rows, total / team);
  if (in.n_rows == 1) {
    if (to.by_four) {
      shares_.deal(stream_items(total, in.gated), team, 1, total);
    } else {
      shares_.deal(total, team, kLeastAlone, total);
    }
    pool_.run(
        [&](int thread, int) {
          const Operand operand = prepare_alone(in, to, scratch_[static_cast<size_t>(thread)]);
          matmul_shares(outs, operand, {in.gated, to.by_four}, thread);
        },
        team);
    return;
  }
  const int64_t bytes = packed_group_bytes(outs[0].w->type, outs[0].w->cols);
  const int64_t most = std::clamp(kMostBytes / bytes, kLeastGroups, kMostGroups);
  const Operand operand = prepare_rows(in, to, first);
  const bool panels = to.several.order == ActOrder::panels;
  shares_.deal(total, team, panels ? kLeastGroups : to.several.least,
               panels ? most : to.several.most);
  pool_.run(
      [&](int thread, int) {
        matmul_shares(outs, operand, {in.gated, false}, thread);
      },
      team);
}

void CpuBackend::matmul_shares(std::span<const MatmulOut> outs, const Operand& in,
                               const Sharing& sharing, int thread) {
  for (Shares::Range range; shares_.take(thread, range);) {
    if (sharing.by_four) {
      matmul_four(outs, in, sharing.gated, range);
    } else {
      matmul_chunk(outs, in, sharing.gated, range.begin, range.end - range.begin, thread);
    }
  }
}

void CpuBackend::matmul(std::span<const MatmulOut> outs, const MatmulIn& in) {
  CHECK(in.n_rows >= 1 && in.n_rows <= shape_.max_rows);
  // Neighbours that want the same rounding share one pass; the buffers hold one rounding at a time.
  const auto alike = [&](const MatmulOut& a, const MatmulOut& b) {
    return a.act_block == b.act_block && a.wide == b.wide;
  };
  for (size_t first = 0; first < outs.size();) {
    const MatmulOut& out = outs[first];
    CHECK(out.w->cols <= shape_.max_cols);
    CHECK(out.act_block == 0 || out.w->cols % out.act_block == 0);
    size_t last = first + 1;
    while (last < outs.size() && alike(outs[last], out)) ++last;
    CHECK(!in.gated || (last == 2 && outs.size() == 2 && outs[0].w->rows == outs[1].w->rows));
    matmul_alike(outs.subspan(first, last - first), in, first == 0);
    first = last;
  }
}

}  // namespace bantam
