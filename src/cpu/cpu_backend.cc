#include "cpu/cpu_backend.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/limits.h"
#include "cpu/factory.h"

namespace bantam {

namespace {

constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kAlign = 64;

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int query_rows(const ComputeShape& shape) {
  return std::max(CpuBackend::kBlockQueries, shape.n_heads / std::max(1, shape.n_kv_heads));
}

int64_t input_bytes(const ComputeShape& s) {
  const int64_t values = int64_t{s.max_rows} * s.max_cols;
  return aligned(values) + 2 * aligned(values / 32 * 4 + 64) + aligned(values / 16 * 2 + 64);
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
         aligned(s.max_cols);
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

CpuBackend::~CpuBackend() {
  for (const Region& region : regions_) ::munmap(region.data, static_cast<size_t>(region.bytes));
}

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

Result<std::byte*> CpuBackend::allocate(int64_t bytes, const char* what) {
  CHECK(bytes >= 0);
  const int64_t unit = bytes >= kHugePage ? kHugePage : 4096;
  const int64_t size = std::max<int64_t>(1, (bytes + unit - 1) / unit) * unit;
  void* data = ::mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return failed("out of memory: cannot take " + std::to_string(bytes >> 20) + " MiB for " + what);
  }
  if (bytes >= kHugePage) ::madvise(data, static_cast<size_t>(size), MADV_HUGEPAGE);
  regions_.push_back({static_cast<std::byte*>(data), size});
  return static_cast<std::byte*>(data);
}

Status CpuBackend::reserve(const ComputeShape& shape) {
  CHECK(scratch_.empty());
  Result<std::byte*> memory = allocate(scratch_bytes(shape), "scratch");
  if (!memory) return memory.error();
  shape_ = shape;
  Carver carver(*memory);
  const int64_t values = int64_t{shape.max_rows} * shape.max_cols;
  inputs_.q = carver.take<int8_t>(values);
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
    scratch.codes = carver.take<int8_t>(shape.max_cols);
  }
  const int rows_per_block = std::max(1, kBlockQueries * shape.n_kv_heads / shape.n_heads);
  // Runs may end inside a block, hence one more block for each row at worst.
  blocks_.reserve(static_cast<size_t>(shape.n_kv_heads) *
                  (shape.max_rows / rows_per_block + 1 + shape.max_rows));
  return Ok{};
}

void CpuBackend::zero(std::byte* data, int64_t bytes) {
  pool_.run([&](int thread, int n) {
    const auto part = ThreadPool::split(bytes, thread, n);
    std::memset(data + part.begin, 0, static_cast<size_t>(part.end - part.begin));
  });
}

void CpuBackend::pack(const Matrix& w, int row0, int n_rows, const std::byte* rows) {
  CHECK(row0 % kGroupRows == 0 && row0 + n_rows <= w.rows);
  const int64_t group_bytes = packed_group_bytes(w.type, w.cols);
  const int64_t row_bytes = packed_row_bytes(w.type, w.cols);
  const WeightKernels& kernels = kernels_.weight[static_cast<int>(w.type)];
  pool_.run([&](int thread, int n) {
    const auto part = ThreadPool::split(n_groups(n_rows), thread, n);
    for (int64_t g = part.begin; g < part.end; ++g) {
      const int first = static_cast<int>(g) * kGroupRows;
      kernels.pack_group(rows + first * row_bytes, row_bytes, std::min(kGroupRows, n_rows - first),
                         w.cols, w.data + (row0 / kGroupRows + g) * group_bytes);
    }
  });
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

ActRows CpuBackend::quantize_rows(const float* x, int n_rows, int n, int block) {
  CHECK(n % block == 0 && n <= shape_.max_cols && n_rows <= shape_.max_rows);
  const int64_t blocks = n / block, halves = n / 16;
  const auto rows = [&](int64_t begin, int64_t end, int thread) {
    for (int64_t r = begin; r < end; ++r) {
      int8_t* codes = n_rows == 1 ? inputs_.q : scratch_[static_cast<size_t>(thread)].codes;
      kernels_.quantize(x + r * n, n, block, codes, inputs_.d + r * blocks,
                        inputs_.sums + r * blocks, inputs_.sums16 + r * halves);
      if (n_rows == 1) continue;
      const int t = static_cast<int>(r), step = 4 * panel_width(n_rows, t);
      int8_t* to = inputs_.q + act_offset(n_rows, n, t, 0);
      for (int c = 0; c < n; c += 4, to += step) std::memcpy(to, codes + c, 4);
    }
  };
  if (n_rows == 1) {
    rows(0, 1, 0);
  } else {
    pool_.run(
        [&](int thread, int team) {
          const auto part = ThreadPool::split(n_rows, thread, team);
          rows(part.begin, part.end, thread);
        },
        threads_for(n_rows));
  }
  return {n_rows, n, block, inputs_.q, inputs_.d, inputs_.sums, inputs_.sums16};
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
  args.a = {n_rows, packed.cols, out.act_block, inputs_.q, inputs_.d, inputs_.sums,
            inputs_.sums16};
  kernels.matmul(args);
}

void CpuBackend::matmul(std::span<const MatmulOut> outs, const float* x, int n_rows) {
  size_t first = 0;
  while (first < outs.size()) {
    // Neighbours that want the same rounding share one pass; the buffers hold one rounding at a
    // time.
    size_t last = first + 1;
    while (last < outs.size() && outs[last].act_block == outs[first].act_block) ++last;
    if (outs[first].act_block > 0)
      quantize_rows(x, n_rows, outs[first].w->cols, outs[first].act_block);
    int64_t total = 0;
    for (size_t i = first; i < last; ++i) total += n_groups(outs[i].w->rows);
    const int team = threads_for(n_rows);
    const int64_t chunk = std::clamp<int64_t>(total / (team * 8), 1, 32);
    next_.store(0, std::memory_order_relaxed);
    pool_.run(
        [&](int thread, int) {
          for (;;) {
            int64_t begin = next_.fetch_add(chunk, std::memory_order_relaxed);
            int64_t left = std::min(chunk, total - begin);
            for (size_t i = first; i < last && left > 0; ++i) {
              const int64_t groups = n_groups(outs[i].w->rows);
              if (begin >= groups) {
                begin -= groups;
                continue;
              }
              const int64_t end = std::min(groups, begin + left);
              matmul_groups(outs[i], x, n_rows, static_cast<int>(begin), static_cast<int>(end),
                            thread);
              left -= end - begin;
              begin = 0;
            }
            if (next_.load(std::memory_order_relaxed) >= total) return;
          }
        },
        team);
    first = last;
  }
}

void CpuBackend::silu_mul(float* gate, const float* up, int n_rows, int n) {
  const int64_t total = int64_t{n_rows} * n / 32;
  const int team = threads_for(n_rows);
  pool_.run(
      [&](int thread, int members) {
        const auto part = ThreadPool::split(total, thread, members);
        const int64_t begin = part.begin * 32;
        const int64_t end = thread + 1 == members ? int64_t{n_rows} * n : part.end * 32;
        kernels_.silu_mul(gate + begin, up + begin, static_cast<int>(end - begin), gate + begin);
      },
      team);
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
