// Backend over the kernel table and a thread pool. Owns all memory of weights, cache and scratch,
// taken before ready. Answers never depend on the number of threads: every output element is
// computed by one thread in a fixed order.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "base/thread_pool.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace bantam {

class CpuBackend final : public Backend {
 public:
  // Queries of one attention block: a K tile is unpacked once for all of them (64 KiB of scores
  // stay in L2).
  static constexpr int kBlockQueries = 64;

  CpuBackend(const Isa& isa, int n_threads, int n_threads_batch);
  ~CpuBackend() override;

  std::string name() const override { return "CPU"; }
  std::string isa() const override { return isa_.name; }
  std::string device() const override;
  int n_threads() const override { return n_threads_; }
  int n_threads_batch() const override { return n_threads_batch_; }

  Status attention_support(KvType k, KvType v, const AttentionShape& shape) const override;
  int64_t matrix_bytes(WeightType type, int rows, int cols) const override;
  int pack_version() const override { return kPackVersion; }
  int64_t scratch_bytes(const ComputeShape& shape) const override;

  Result<std::byte*> allocate(int64_t bytes, const char* what) override;
  Status reserve(const ComputeShape& shape) override;
  void zero(std::byte* data, int64_t bytes) override;
  Status pack(std::span<const PackPiece> pieces, const PackReader& read) override;

  void embed(const Matrix& table, std::span<const int32_t> tokens, float* x) override;
  void norm(const float* x, const float* w, float eps, int n_rows, int n, float* y) override;
  void matmul(std::span<const MatmulOut> outs, const MatmulIn& in) override;
  void silu_mul(float* gate, const float* up, int n_rows, int n) override;
  void attend(const AttendStep& step) override;
  void erase_tile(const AttentionPlan& plan, std::byte* k_tile, std::byte* v_tile,
                  int from) override;

 private:
  struct Region {
    std::byte* data;
    int64_t bytes;
  };
  // Quantized inputs of matrix products, [max_rows][max_cols] each.
  struct Inputs {
    int8_t* q;
    int8_t* low;  // int16 activations only, else null
    float* d;
    int32_t* sums;
    int16_t* sums16;
  };
  // Queries after norm, RoPE and rotation, [kv_head][row][group][head_dim].
  struct Queries {
    int8_t* q;
    float* scale;     // [kv_head][row][group]
    int16_t* sums16;  // [kv_head][row][group][head_dim / 16]
    float* qf;
  };
  // Of one thread: query_rows() queries against one page.
  struct ThreadScratch {
    float* s;          // [query rows][256]
    float* acc;        // [query rows][head_dim]
    float* acc_page;   // [query rows][head_dim]
    float* m;          // [query rows], then l, m_page, l_page
    int32_t* visible;  // [query rows]
    float* row;        // [max_cols] floats for unpacked rows
    int8_t* codes;     // [2][max_cols] a quantized row before its quads are spread
  };
  struct Block {  // query rows of one run and one KV head that are computed together
    int kv_head, first_row, n_rows;
  };

  void pack_piece(const PackPiece& piece, const std::byte* rows) const;
  int threads_for(int n_rows) const { return n_rows > 1 ? n_threads_batch_ : n_threads_; }
  void prepare_row(const MatmulIn& in, const MatmulOut& out, bool first, int row, int thread);
  void prepare_rows(const MatmulIn& in, const MatmulOut& out, bool first);
  void matmul_groups(const MatmulOut& out, const float* x, int n_rows, int begin, int end,
                     int thread);
  void matmul_chunk(std::span<const MatmulOut> outs, const MatmulIn& in, int64_t begin,
                    int64_t left, int thread);
  void gate_rows(std::span<const MatmulOut> outs, const MatmulIn& in, int begin, int end);
  void prepare_query(const AttendStep& step, int row);
  void store_head(const AttendStep& step, int kv_head, bool values);
  void attend_block(const AttendStep& step, const Block& block, ThreadScratch& scratch);
  void attend_page(const AttendStep& step, const Block& block, ThreadScratch& scratch, int page);
  void finish_block(const AttendStep& step, const Block& block, ThreadScratch& scratch);

  const Isa& isa_;
  const Kernels& kernels_;
  int n_threads_;
  int n_threads_batch_;
  ThreadPool pool_;
  std::vector<Region> regions_;
  ComputeShape shape_;
  Inputs inputs_{};
  Queries queries_{};
  std::vector<ThreadScratch> scratch_;
  std::vector<Block> blocks_;
  std::atomic<int64_t> next_{0};
};

}  // namespace bantam
