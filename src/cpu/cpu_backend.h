// Backend over the kernel table and a thread pool. Owns all memory of weights, cache and scratch,
// taken before ready. Answers never depend on the number of threads: every output element is
// computed in a fixed order, by one thread or, in attention, page by page by several in turn.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "base/limits.h"
#include "base/shares.h"
#include "base/thread_pool.h"
#include "cpu/attend_pieces.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/page_ahead.h"
#include "cpu/teams.h"

namespace bantam {

class CpuBackend final : public Backend {
 public:
  // Queries of one attention block: a K tile is unpacked once for all of them (64 KiB of scores
  // stay in L2).
  static constexpr int kBlockQueries = 64;
  // Rows of scores and sums are a line further apart than they are long: at powers of two they
  // would share few sets of the first-level cache.
  static constexpr int64_t kScoreStride = kPagePositions + 16;
  static constexpr int64_t acc_stride(int head_dim) { return head_dim + 16; }

  // Starts as many threads of the teams as it can.
  CpuBackend(const Isa& isa, const Teams& teams);
  ~CpuBackend() override;

  std::string name() const override { return "CPU"; }
  std::string isa() const override { return isa_.name; }
  std::string device() const override;
  int n_threads() const override { return n_threads_; }
  int n_threads_batch() const override { return n_threads_batch_; }
  int n_started() const { return pool_.size(); }

  Status attention_support(KvType k, KvType v, const AttentionShape& shape) const override;
  int64_t matrix_bytes(WeightType type, int rows, int cols) const override;
  int pack_version() const override { return kPackVersion; }
  int64_t scratch_bytes(const ComputeShape& shape) const override;
  int row_step() const override;

  Result<std::byte*> allocate(int64_t bytes, const char* what) override;
  Status reserve(const ComputeShape& shape) override;
  void zero(std::byte* data, int64_t bytes) override;
  void copy(std::byte* to, const std::byte* from, int64_t bytes) override;
  void transfer(std::byte* to, const std::byte* from, int64_t bytes) const override;
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
  // Quantized inputs of matrix products, [tiled_rows(max_rows)][max_cols] each.
  struct Inputs {
    int8_t* q;
    int8_t* low;  // int16 activations only, else null
    float* d;
    int32_t* sums;
    float* float_sums;
    int16_t* sums16;
  };
  // Queries after norm, RoPE and rotation, [kv_head][row][group][head_dim]; then, with shifts, the
  // same queries for the pages that shifts left behind.
  struct Queries {
    int8_t* q;
    float* scale;     // [kv_head][row][group]
    int16_t* sums16;  // [kv_head][row][group][head_dim / 16]
    float* qf;
    float *m, *l;  // [kv_head][row][group] of the pages added so far
  };
  // Of one thread: query_rows() queries against one page.
  struct ThreadScratch {
    float* s;           // [query rows][kScoreStride]
    float* acc;         // [query rows][acc_stride]
    float* m;           // [query rows]
    float* l;           // [query rows]
    int32_t* visible;   // [query rows]
    float* row;         // [max_cols] floats for unpacked rows
    float* normed;      // [max_cols]
    int8_t* codes;      // [2][max_cols] a quantized row before its quads are spread
    float* d;           // [max_cols / 32] of a row alone, as the next four
    int32_t* sums;      // [max_cols / 32]
    float* float_sums;  // [max_cols / 32]
    int16_t* sums16;    // [max_cols / 16]
    std::byte* tables;
  };
  // What products that share a pass want of their input.
  struct Rounding {
    int n, block, planes;
    bool wide, tables;
    SeveralRows several;
    bool sums16;
    bool by_four;  // a single row is looked up in four streams
  };
  // How the groups of products are shared out.
  struct Sharing {
    bool gated, by_four;
  };
  // What the kernels of one product read.
  struct Operand {
    int n_rows;
    const float* x;
    ActRows a;
  };
  typedef AttendPieces::Piece Piece;
  // The tiles of one page and KV head that are visible to somebody.
  struct PageView {
    const std::byte* k = nullptr;
    const std::byte* v = nullptr;
    int n_tiles = 0;
    bool kept = false;  // shifts left it behind: read by queries of their own
  };
  // What a thread computes, and what it is known to compute next.
  struct Upcoming {
    static constexpr int kMost = 2;
    Piece now, next[kMost];
    int n = 0;             // of next
    bool last = false;     // nothing comes after those
    int tiles = 0;         // how far ahead to ask where one stream is asked for
    PageView view;         // of the last of them
    bool streams = false;  // whether the page that is read asks for another one
    PageAhead ahead;
    AheadLines lines;  // for the tile that is read
  };

  void pack_piece(const PackPiece& piece, const std::byte* rows) const;
  // The team of the next run(); it also moves to that team's CPUs.
  int threads_for(int n_rows) {
    pool_.use(n_rows > 1 ? batch_setup_ : 0);
    return n_rows > 1 ? n_threads_batch_ : n_threads_;
  }
  bool looks_up() const;
  int64_t own_table_bytes(const ComputeShape& shape) const;
  Rounding rounding_of(std::span<const MatmulOut> outs, int n_rows, int64_t groups) const;
  void round_row(const Rounding& to, const float* x, const Inputs& out) const;
  Operand prepare_alone(const MatmulIn& in, const Rounding& to, ThreadScratch& scratch);
  void prepare_row(const MatmulIn& in, const Rounding& to, const Operand& pass, bool first, int row,
                   ThreadScratch& scratch);
  void put_in_tiles(const Rounding& to, int n_rows, int row, const ThreadScratch& scratch);
  Operand prepare_rows(const MatmulIn& in, const Rounding& to, bool first);
  void matmul_groups(const MatmulOut& out, const Operand& in, int begin, int end, int thread);
  void matmul_chunk(std::span<const MatmulOut> outs, const Operand& in, bool gated, int64_t begin,
                    int64_t left, int thread);
  void matmul_four(std::span<const MatmulOut> outs, const Operand& in, bool gated,
                   const Shares::Range& range);
  void matmul_shares(std::span<const MatmulOut> outs, const Operand& in, const Sharing& sharing,
                     int thread);
  void matmul_alike(std::span<const MatmulOut> outs, const MatmulIn& in, bool first);
  void prepare_query(const AttendStep& step, int row);
  void turn_query(const AttendStep& step, int row, int head, bool kept, float* x);
  void store_head(const AttendStep& step, int kv_head, bool values);
  void prepare_rows_and_stores(const AttendStep& step);
  int64_t make_blocks(const AttendStep& step);
  static int visible_in_page(const AttendStep& step, const AttendBlock& block, int row, int page);
  PageView view_page(const AttendStep& step, const AttendBlock& block, int page) const;
  static const std::byte* tile_ahead(const AttentionPlan& plan, const PageView& view,
                                     const Upcoming& upcoming, int i);
  void decide_next(const AttendStep& step, Upcoming& upcoming);
  const AheadLines* lines_ahead(const AttendStep& step, const PageView& view, int i,
                                Upcoming& upcoming);
  static void ask_some(Upcoming& upcoming);
  void score_page(const AttendStep& step, const PageView& view, float* s, Upcoming& upcoming);
  void attend_page(const AttendStep& step, ThreadScratch& scratch, Upcoming& upcoming);
  void add_page(const AttendStep& step, const Piece& piece, const ThreadScratch& scratch);
  void attend_pieces(const AttendStep& step, int thread);

  const Isa& isa_;
  const Kernels& kernels_;
  int n_threads_;
  int n_threads_batch_;
  int batch_setup_;
  ThreadPool pool_;
  std::vector<Region> regions_;
  ComputeShape shape_;
  Inputs inputs_{};
  Queries queries_{};
  std::vector<ThreadScratch> scratch_;
  AttendPieces pieces_;
  bool ask_streams_ = false;  // in the running step
  Shares shares_;
  std::atomic<int64_t> next_{0};
};

}  // namespace bantam
