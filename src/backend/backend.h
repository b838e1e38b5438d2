// What a model may ask of a device: memory, packed weights, and a dozen operations on rows of
// floats. Owns nothing of the model. Refuses at planning time (attention_support); operations
// themselves cannot fail.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "backend/plan.h"
#include "base/result.h"
#include "codec/types.h"

namespace bantam {

// Inputs of matrix products: rounded to int8 or int16 (NUMERICS rule 3) or left as floats (tests,
// measuring the cache alone).
enum class ActType { i8, i16, f32 };

// A packed matrix in device memory, y = W x with W (rows, cols).
struct Matrix {
  WeightType type = WeightType::f32;
  int rows = 0;
  int cols = 0;
  std::byte* data = nullptr;
};

// Rows [row0, row0 + n_rows) of a matrix on their way into memory; row0 a multiple of 16.
struct PackPiece {
  const Matrix* w = nullptr;
  int row0 = 0;
  int n_rows = 0;
};
// Fills `rows` with the GGUF blocks of piece number i.
using PackReader = std::function<Status(size_t i, std::span<std::byte> rows)>;

// One product of a matmul call: y[row * ldy + r] (+)= w[r] . x[row].
struct MatmulOut {
  const Matrix* w = nullptr;
  float* y = nullptr;
  int64_t ldy = 0;
  bool add = false;
  int act_block = 0;  // 0: unrounded floats, else values sharing one scale
  bool wide = false;  // int16 instead of int8
};

// What a matmul call reads, and what is done to it on the way, in the same passes.
struct MatmulIn {
  const float* x = nullptr;  // [n_rows][cols of the matrices]
  int n_rows = 0;
  const float* norm = nullptr;  // [cols]: the products read rms_norm(x) * norm
  float norm_eps = 0;
  float* normed = nullptr;  // [n_rows][cols], where those rows go
  bool gated = false;       // two products of one shape: the first becomes silu(first) * second
};

// A row of a batch as attention sees it.
struct AttendRow {
  int32_t pos = 0;  // position in its sequence
  int32_t run = 0;  // rows of one sequence in one batch are one run, contiguous and ascending
  const int32_t* pages = nullptr;  // page numbers of the sequence, [pos / 256 + 1] at least
  int32_t n_kept = 0;  // pages in front whose K a shift left behind: read by queries of kept_cos
};

struct AttendStep {
  const AttentionPlan* plan = nullptr;
  std::span<const AttendRow> rows;
  std::byte* k_pages = nullptr;  // this layer: page n at n * kv_heads * 8 * tile_bytes_k
  std::byte* v_pages = nullptr;
  float* q = nullptr;             // [rows][n_heads * head_dim], overwritten
  float* k = nullptr;             // [rows][n_kv_heads * head_dim], overwritten
  float* v = nullptr;             // [rows][n_kv_heads * head_dim], overwritten
  const float* q_norm = nullptr;  // [head_dim] or null
  const float* k_norm = nullptr;
  float norm_eps = 0;
  const float* cos = nullptr;  // [rows][rope_dims / 2]
  const float* sin = nullptr;
  const float* kept_cos = nullptr;  // as cos and sin, of the rows with n_kept > 0
  const float* kept_sin = nullptr;
  int rope_dims = 0;
  bool rope_interleaved = false;
  float* out = nullptr;  // [rows][n_heads * head_dim]
};

// The largest shapes a model will ask for, to reserve scratch once.
struct ComputeShape {
  int max_rows = 0;
  int max_cols = 0;  // widest matrix input
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  bool wide = false;    // int16 activations
  bool shifts = false;  // rows may have n_kept > 0
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string name() const = 0;    // "CPU"
  virtual std::string isa() const = 0;     // "avx512"
  virtual std::string device() const = 0;  // the processor's own name
  virtual int n_threads() const = 0;
  virtual int n_threads_batch() const = 0;

  // ---- planning
  virtual Status attention_support(KvType k, KvType v, const AttentionShape& shape) const = 0;
  virtual int64_t matrix_bytes(WeightType type, int rows, int cols) const = 0;
  // Counts the changes of the packed layout: packed bytes of another version are of no use.
  virtual int pack_version() const = 0;
  virtual int64_t scratch_bytes(const ComputeShape& shape) const = 0;
  // Products are best of a multiple of so many rows.
  virtual int row_step() const = 0;

  // ---- memory: zeroed, resident, 64-byte aligned, freed with the backend
  virtual Result<std::byte*> allocate(int64_t bytes, const char* what) = 0;
  virtual Status reserve(const ComputeShape& shape) = 0;
  virtual void zero(std::byte* data, int64_t bytes) = 0;
  // Either side may be host memory; they do not overlap.
  virtual void copy(std::byte* to, const std::byte* from, int64_t bytes) = 0;
  // The same by the calling thread alone: any thread may, also while a step runs that leaves these
  // bytes alone.
  virtual void transfer(std::byte* to, const std::byte* from, int64_t bytes) const = 0;
  // Reads and packs all pieces. `read` is called for one piece after the other, by one thread at a
  // time but not always the same; meanwhile the others pack. Stops at the first error of `read`.
  virtual Status pack(std::span<const PackPiece> pieces, const PackReader& read) = 0;

  // ---- operations
  virtual void embed(const Matrix& table, std::span<const int32_t> tokens, float* x) = 0;
  // y[row] = rms_norm(x[row]) * w, rows of n values
  virtual void norm(const float* x, const float* w, float eps, int n_rows, int n, float* y) = 0;
  // All products read the same rows, which none of them writes.
  virtual void matmul(std::span<const MatmulOut> outs, const MatmulIn& in) = 0;
  // gate[row] = silu(gate[row]) * up[row], for pairs of differently rounded inputs
  virtual void silu_mul(float* gate, const float* up, int n_rows, int n) = 0;
  // QK norm, RoPE, rotation, store of K and V, then attention of every row over its sequence.
  virtual void attend(const AttendStep& step) = 0;
  // Erases positions [from, 32) of one tile of K and V.
  virtual void erase_tile(const AttentionPlan& plan, std::byte* k_tile, std::byte* v_tile,
                          int from) = 0;
};

// Read bandwidth and int8 peak of a machine, measured now (DESIGN section 1).
struct MachineSpeed {
  double read_gb_s = 0;
  double int8_gmac_s = 0;           // nominal: multiply-adds a cycle x cores x clock
  double int8_measured_gmac_s = 0;  // dot instructions on registers alone, on all threads
  double clock_ghz = 0;
  bool operator==(const MachineSpeed&) const = default;
};

// Of the team for single tokens and of the one for several rows together.
struct TeamSpeeds {
  MachineSpeed single, batch;
};

}  // namespace bantam
