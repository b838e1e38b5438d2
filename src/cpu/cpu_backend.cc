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
  const int64_t values = int64_t{tiled_rows(s.max_rows)} * s.max_cols;
  return aligned(values) * (s.wide ? 2 : 1) + 3 * aligned(values / 32 * 4 + 64) +
         aligned(values / 16 * 2 + 64);
}

int64_t query_bytes(const ComputeShape& s) {
  const int64_t heads = int64_t{s.max_rows} * s.n_heads * (s.shifts ? 2 : 1);
  const int64_t values = heads * s.head_dim;
  return aligned(values) + 3 * aligned(heads * 4) + aligned(values / 16 * 2) + aligned(values * 4);
}

int64_t thread_bytes(const ComputeShape& s, int64_t tables) {
  const int64_t rows = query_rows(s);
  return aligned(rows * CpuBackend::kScoreStride * 4) +
         aligned(rows * CpuBackend::acc_stride(s.head_dim) * 4) + 3 * aligned(rows * 4) +
         2 * aligned(int64_t{s.max_cols} * 4) + aligned(2 * int64_t{s.max_cols}) +
         3 * aligned(int64_t{s.max_cols} / 32 * 4 + 64) +
         aligned(int64_t{s.max_cols} / 16 * 2 + 64) + aligned(tables);
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

CpuBackend::CpuBackend(const Isa& isa, const Teams& teams)
    : isa_(isa),
      kernels_(kernels_of(isa)),
      n_threads_(teams.n_threads),
      n_threads_batch_(teams.n_threads_batch),
      batch_setup_(teams.batch_setup()),
      pool_(teams.size(), teams.setups),
      shares_(pool_.size()) {}

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

bool CpuBackend::looks_up() const {
  return std::any_of(std::begin(kernels_.weight), std::end(kernels_.weight),
                     [](const WeightKernels& slot) { return slot.tables; });
}

// Of one row alone, for each thread.
int64_t CpuBackend::own_table_bytes(const ComputeShape& shape) const {
  return looks_up() ? table_bytes(shape.max_cols, shape.wide ? 3 : 2) : 0;
}

// A tile of which half the rows are missing costs as much as a whole one. Xeon with AMX, prompts,
// tok/s: 1.7B, 56 and 48 rows 376, 354, 381, 380 and 434, 319, 418, 370; 8B, 24 and 16 rows 94, 83,
// 82 and 92, 104, 87.
int CpuBackend::row_step() const {
  const SeveralRows& several = kernels_.weight[static_cast<int>(WeightType::q1_0)].several;
  return several.order == ActOrder::tiles ? kTileRows : 8;
}

int64_t CpuBackend::scratch_bytes(const ComputeShape& shape) const {
  return input_bytes(shape) + query_bytes(shape) +
         thread_bytes(shape, own_table_bytes(shape)) * pool_.size();
}

Status CpuBackend::reserve(const ComputeShape& shape) {
  CHECK(scratch_.empty());
  Result<std::byte*> memory = allocate(scratch_bytes(shape), "scratch");
  if (!memory) return memory.error();
  shape_ = shape;
  Carver carver(*memory);
  const int64_t values = int64_t{tiled_rows(shape.max_rows)} * shape.max_cols;
  inputs_.q = carver.take<int8_t>(values);
  if (shape.wide) inputs_.low = carver.take<int8_t>(values);
  inputs_.d = carver.take<float>(values / 32 + 16);
  inputs_.sums = carver.take<int32_t>(values / 32 + 16);
  inputs_.float_sums = carver.take<float>(values / 32 + 16);
  inputs_.sums16 = carver.take<int16_t>(values / 16 + 32);
  const int64_t heads = int64_t{shape.max_rows} * shape.n_heads * (shape.shifts ? 2 : 1);
  queries_.q = carver.take<int8_t>(heads * shape.head_dim);
  queries_.scale = carver.take<float>(heads);
  queries_.sums16 = carver.take<int16_t>(heads * shape.head_dim / 16);
  queries_.qf = carver.take<float>(heads * shape.head_dim);
  queries_.m = carver.take<float>(heads);
  queries_.l = carver.take<float>(heads);
  const int64_t rows = query_rows(shape);
  scratch_.resize(static_cast<size_t>(pool_.size()));
  for (ThreadScratch& scratch : scratch_) {
    scratch.s = carver.take<float>(rows * kScoreStride);
    scratch.acc = carver.take<float>(rows * acc_stride(shape.head_dim));
    scratch.m = carver.take<float>(rows);
    scratch.l = carver.take<float>(rows);
    scratch.visible = carver.take<int32_t>(rows);
    scratch.row = carver.take<float>(shape.max_cols);
    scratch.normed = carver.take<float>(shape.max_cols);
    scratch.codes = carver.take<int8_t>(2 * int64_t{shape.max_cols});
    scratch.d = carver.take<float>(shape.max_cols / 32 + 16);
    scratch.sums = carver.take<int32_t>(shape.max_cols / 32 + 16);
    scratch.float_sums = carver.take<float>(shape.max_cols / 32 + 16);
    scratch.sums16 = carver.take<int16_t>(shape.max_cols / 16 + 32);
    scratch.tables = carver.take<std::byte>(own_table_bytes(shape));
  }
  const int rows_per_block = std::max(1, kBlockQueries * shape.n_kv_heads / shape.n_heads);
  // Runs may end inside a block, hence one more block for each row at worst.
  const size_t most_blocks = static_cast<size_t>(shape.n_kv_heads) *
                             (shape.max_rows / rows_per_block + 1 + shape.max_rows);
  pieces_.reserve(most_blocks, pool_.size());
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

Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuOptions& options,
                                                  std::vector<std::string>* warnings) {
  const char* forced = options.isa.empty() ? std::getenv("BANTAM_ISA") : options.isa.c_str();
  Result<const Isa*> isa = choose_isa(forced);
  if (!isa) return isa.error();
  Result<Teams> teams = make_teams(options);
  if (!teams) return teams.error();
  if (warnings != nullptr) *warnings = teams->warnings;
  std::unique_ptr<CpuBackend> backend(new CpuBackend(**isa, *teams));
  if (const int got = backend->n_started(); got < teams->size()) {
    return refused("cannot start " + std::to_string(teams->size()) + " threads (got " +
                   std::to_string(got) + "): lower -t or raise the limit of processes");
  }
  return std::unique_ptr<Backend>(std::move(backend));
}

}  // namespace bantam
