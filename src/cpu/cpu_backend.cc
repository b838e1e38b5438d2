#include "cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/limits.h"
#include "cpu/factory.h"

namespace bantam {

namespace {

constexpr int64_t kAlign = 64;

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int query_rows(const ComputeShape& shape) {
  return std::max(CpuBackend::kBlockQueries, shape.n_heads / std::max(1, shape.n_kv_heads));
}

int64_t input_bytes(const ComputeShape& s) {
  const int64_t values = int64_t{s.max_rows} * s.max_cols;
  return aligned(values) * (s.wide ? 2 : 1) + 2 * aligned(values / 32 * 4 + 64) +
         aligned(values / 16 * 2 + 64);
}

int64_t query_bytes(const ComputeShape& s) {
  const int64_t heads = int64_t{s.max_rows} * s.n_heads;
  const int64_t values = heads * s.head_dim;
  return aligned(values) + aligned(heads * 4) + aligned(values / 16 * 2) + aligned(values * 4);
}

int64_t thread_bytes(const ComputeShape& s) {
  const int64_t rows = query_rows(s);
  return aligned(rows * kPagePositions * 4) + 2 * aligned(rows * s.head_dim * 4) +
         aligned(rows * 16) + aligned(rows * 4) + aligned(int64_t{s.max_cols} * 4) +
         aligned(2 * int64_t{s.max_cols});
}

// Hands out 64-byte aligned pieces of one region.
class Carver {
 public:
  explicit Carver(std::byte* data) : next_(data) {}
  template <class T>
  T* take(int64_t n) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += aligned(n * static_cast<int64_t>(sizeof(T)));
    return piece;
  }

 private:
  std::byte* next_;
};

}  // namespace

CpuBackend::CpuBackend(const Isa& isa, int n_threads, int n_threads_batch)
    : isa_(isa),
      kernels_(kernels_of(isa)),
      n_threads_(n_threads),
      n_threads_batch_(n_threads_batch),
      pool_(std::max(n_threads, n_threads_batch)) {}

std::string CpuBackend::device() const { return cpu_name(); }

Status CpuBackend::attention_support(KvType k, KvType v, const AttentionShape&) const {
  const KvKernels& keys = kernels_.kv[static_cast<int>(k)];
  const KvKernels& values = kernels_.kv[static_cast<int>(v)];
  CHECK(keys.scores != nullptr && keys.store_k != nullptr);
  CHECK(values.weigh != nullptr && values.store_v != nullptr);
  return Ok{};
}

int64_t CpuBackend::matrix_bytes(WeightType type, int rows, int cols) const {
  return n_groups(rows) * packed_group_bytes(type, cols);
}

int64_t CpuBackend::scratch_bytes(const ComputeShape& shape) const {
  return input_bytes(shape) + query_bytes(shape) + thread_bytes(shape) * pool_.size();
}

Status CpuBackend::reserve(const ComputeShape& shape) {
  CHECK(scratch_.empty());
  Result<std::byte*> memory = allocate(scratch_bytes(shape), "scratch");
  if (!memory) return memory.error();
  shape_ = shape;
  Carver carver(*memory);
  const int64_t values = int64_t{shape.max_rows} * shape.max_cols;
  inputs_.q = carver.take<int8_t>(values);
  if (shape.wide) inputs_.low = carver.take<int8_t>(values);
  inputs_.d = carver.take<float>(values / 32 + 16);
  inputs_.sums = carver.take<int32_t>(values / 32 + 16);
  inputs_.sums16 = carver.take<int16_t>(values / 16 + 32);
  const int64_t heads = int64_t{shape.max_rows} * shape.n_heads;
  queries_.q = carver.take<int8_t>(heads * shape.head_dim);
  queries_.scale = carver.take<float>(heads);
  queries_.sums16 = carver.take<int16_t>(heads * shape.head_dim / 16);
  queries_.qf = carver.take<float>(heads * shape.head_dim);
  const int64_t rows = query_rows(shape);
  scratch_.resize(static_cast<size_t>(pool_.size()));
  for (ThreadScratch& scratch : scratch_) {
    scratch.s = carver.take<float>(rows * kPagePositions);
    scratch.acc = carver.take<float>(rows * shape.head_dim);
    scratch.acc_page = carver.take<float>(rows * shape.head_dim);
    scratch.m = carver.take<float>(rows * 4);
    scratch.visible = carver.take<int32_t>(rows);
    scratch.row = carver.take<float>(shape.max_cols);
    scratch.codes = carver.take<int8_t>(2 * int64_t{shape.max_cols});
  }
  const int rows_per_block = std::max(1, kBlockQueries * shape.n_kv_heads / shape.n_heads);
  // Runs may end inside a block, hence one more block for each row at worst.
  blocks_.reserve(static_cast<size_t>(shape.n_kv_heads) *
                  (shape.max_rows / rows_per_block + 1 + shape.max_rows));
  return Ok{};
}

void CpuBackend::embed(const Matrix& table, std::span<const int32_t> tokens, float* x) {
  const PackedMatrix packed{table.type, table.rows, table.cols, table.data};
  const WeightKernels& kernels = kernels_.weight[static_cast<int>(table.type)];
  for (size_t i = 0; i < tokens.size(); ++i) {
    CHECK(tokens[i] >= 0 && tokens[i] < table.rows);
    kernels.unpack_row(packed, tokens[i], x + static_cast<int64_t>(i) * table.cols);
  }
}

void CpuBackend::norm(const float* x, const float* w, float eps, int n_rows, int n, float* y) {
  const auto rows = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) kernels_.rms_norm(x + r * n, w, n, eps, y + r * n);
  };
  if (n_rows == 1) return rows(0, 1);
  pool_.run(
      [&](int thread, int team) {
        const auto part = ThreadPool::split(n_rows, thread, team);
        rows(part.begin, part.end);
      },
      threads_for(n_rows));
}

// One row on its way into the products: normed (once), rounded, its quads spread.
void CpuBackend::prepare_row(const MatmulIn& in, const MatmulOut& out, bool first, int row,
                             int thread) {
  const int n = out.w->cols, block = out.act_block;
  const float* x = in.x + int64_t{row} * n;
  if (in.norm != nullptr) {
    float* y = in.normed + int64_t{row} * n;
    if (first) kernels_.rms_norm(x, in.norm, n, in.norm_eps, y);
    x = y;
  }
  if (block == 0) return;
  const bool alone = in.n_rows == 1;
  int8_t* codes = alone ? inputs_.q : scratch_[static_cast<size_t>(thread)].codes;
  int8_t* low = alone ? inputs_.low : codes + shape_.max_cols;
  float* d = inputs_.d + int64_t{row} * (n / block);
  int32_t* sums = inputs_.sums + int64_t{row} * (n / block);
  if (out.wide) {
    kernels_.quantize16(x, n, block, codes, low, d, sums);
  } else {
    kernels_.quantize(x, n, block, codes, d, sums, inputs_.sums16 + int64_t{row} * (n / 16));
  }
  if (alone) return;
  const int step = 4 * panel_width(in.n_rows, row);
  int64_t to = act_offset(in.n_rows, n, row, 0);
  for (int c = 0; c < n; c += 4, to += step) {
    std::memcpy(inputs_.q + to, codes + c, 4);
    if (out.wide) std::memcpy(inputs_.low + to, low + c, 4);
  }
}

void CpuBackend::prepare_rows(const MatmulIn& in, const MatmulOut& out, bool first) {
  CHECK(out.w->cols <= shape_.max_cols && in.n_rows <= shape_.max_rows);
  CHECK(out.act_block == 0 || out.w->cols % out.act_block == 0);
  if (out.act_block == 0 && (in.norm == nullptr || !first)) return;
  if (in.n_rows == 1) return prepare_row(in, out, first, 0, 0);
  pool_.run(
      [&](int thread, int team) {
        const auto part = ThreadPool::split(in.n_rows, thread, team);
        for (int64_t r = part.begin; r < part.end; ++r) {
          prepare_row(in, out, first, static_cast<int>(r), thread);
        }
      },
      threads_for(in.n_rows));
}

void CpuBackend::matmul_groups(const MatmulOut& out, const float* x, int n_rows, int begin, int end,
                               int thread) {
  const PackedMatrix packed{out.w->type, out.w->rows, out.w->cols, out.w->data};
  MatmulArgs args;
  args.w = &packed;
  args.group_begin = begin;
  args.group_end = end;
  args.x = x;
  args.n_rows = n_rows;
  args.y = out.y;
  args.ldy = out.ldy;
  args.add = out.add;
  args.scratch = scratch_[static_cast<size_t>(thread)].row;
  const WeightKernels& kernels = kernels_.weight[static_cast<int>(packed.type)];
  if (out.act_block == 0) return kernels.matmul_f32(args);
  args.a = {n_rows,    packed.cols,  out.act_block,  inputs_.q,
            inputs_.d, inputs_.sums, inputs_.sums16, out.wide ? inputs_.low : nullptr};
  kernels.matmul(args);
}

void CpuBackend::gate_rows(std::span<const MatmulOut> outs, const MatmulIn& in, int begin,
                           int end) {
  const int first = begin * kGroupRows;
  const int n = std::min(end * kGroupRows, outs[0].w->rows) - first;
  for (int64_t t = 0; t < in.n_rows; ++t) {
    float* gate = outs[0].y + t * outs[0].ldy + first;
    kernels_.silu_mul(gate, outs[1].y + t * outs[1].ldy + first, n, gate);
  }
}

// Groups [begin, begin + left) of all products laid end to end.
void CpuBackend::matmul_chunk(std::span<const MatmulOut> outs, const MatmulIn& in, int64_t begin,
                              int64_t left, int thread) {
  const float* x = in.norm != nullptr ? in.normed : in.x;
  if (in.gated) {
    const int first = static_cast<int>(begin), last = static_cast<int>(begin + left);
    for (const MatmulOut& out : outs) matmul_groups(out, x, in.n_rows, first, last, thread);
    return gate_rows(outs, in, first, last);
  }
  for (size_t i = 0; i < outs.size() && left > 0; ++i) {
    const int64_t groups = n_groups(outs[i].w->rows);
    if (begin >= groups) {
      begin -= groups;
      continue;
    }
    const int64_t end = std::min(groups, begin + left);
    matmul_groups(outs[i], x, in.n_rows, static_cast<int>(begin), static_cast<int>(end), thread);
    left -= end - begin;
    begin = 0;
  }
}

void CpuBackend::matmul(std::span<const MatmulOut> outs, const MatmulIn& in) {
  size_t first = 0;
  while (first < outs.size()) {
    // Neighbours that want the same rounding share one pass; the buffers hold one rounding at a
    // time.
    const MatmulOut& out = outs[first];
    size_t last = first + 1;
    while (last < outs.size() && outs[last].act_block == out.act_block &&
           outs[last].wide == out.wide) {
      ++last;
    }
    CHECK(!in.gated || (last == 2 && outs.size() == 2 && outs[0].w->rows == outs[1].w->rows));
    prepare_rows(in, out, first == 0);
    int64_t total = 0;
    for (size_t i = first; i < (in.gated ? 1 : last); ++i) total += n_groups(outs[i].w->rows);
    const int team = threads_for(in.n_rows);
    const int64_t chunk = std::clamp<int64_t>(total / (team * 8), 1, 32);
    const auto products = outs.subspan(first, last - first);
    next_.store(0, std::memory_order_relaxed);
    pool_.run(
        [&](int thread, int) {
          for (;;) {
            const int64_t begin = next_.fetch_add(chunk, std::memory_order_relaxed);
            if (begin >= total) return;
            matmul_chunk(products, in, begin, std::min(chunk, total - begin), thread);
          }
        },
        team);
    first = last;
  }
}

void CpuBackend::silu_mul(float* gate, const float* up, int n_rows, int n) {
  pool_.run(
      [&](int thread, int members) {
        const auto part = ThreadPool::split(n_rows, thread, members);
        for (int64_t r = part.begin; r < part.end; ++r) {
          kernels_.silu_mul(gate + r * n, up + r * n, n, gate + r * n);
        }
      },
      threads_for(n_rows));
}

Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuOptions& options) {
  const char* forced = options.isa.empty() ? std::getenv("BANTAM_ISA") : options.isa.c_str();
  Result<const Isa*> isa = choose_isa(forced);
  if (!isa) return isa.error();
  const int n_threads = options.n_threads == 0 ? default_threads() : options.n_threads;
  const int n_batch = options.n_threads_batch == 0 ? n_threads : options.n_threads_batch;
  for (const int n : {n_threads, n_batch}) {
    if (n >= 1 && n <= kMaxThreads) continue;
    return refused("threads: got " + std::to_string(n) + ", expected 1 to " +
                   std::to_string(kMaxThreads));
  }
  return std::unique_ptr<Backend>(new CpuBackend(**isa, n_threads, n_batch));
}

}  // namespace bantam
