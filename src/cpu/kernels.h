// The kernel table: one function pointer for each thing a CPU does, filled first with `scalar`
// (canonical arithmetic of docs/NUMERICS.md), then overwritten by an instruction set. No slot is
// ever null. Kernels trust their arguments: shapes are checked when planning. Every slot equals
// scalar bit for bit; tests/weights_test.cc and tests/attend_test.cc run each row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/types.h"

namespace bantam {

// A weight matrix packed in groups of 16 rows: one layout for every instruction set, described in
// docs/WEIGHT_LAYOUT.md (kPackVersion counts its changes). The last group is padded with zero
// bytes. Inside a group, blocks follow each other by ascending column; a block of 16 rows has
// exactly 16 x the GGUF block's bytes: words of 64 bytes, byte 4r + c of a word holding codes of
// row r, column c of each of its quads (4 columns), the first quad in the low bits; then the
// scales.
//   q1_0   4 words of 8 quads; 16 fp16 d                                     (128 columns)
//   q2_0   4 words of 4 quads; 16 fp16 d   (pq2_0: 8 words)                  (64 and 128 columns)
//   q4_0   4 words of 2 quads; 16 fp16 d   (q4_1: then 16 fp16 m)            (32 columns)
//   q8_0   8 words of 1 quad, codes + 128 as u8; 16 fp16 d                   (32 columns)
//   q4_k   32 words of 2 quads; low nibbles of 8 sub-scales (low) and minima (high) [sub][row];
//          their 2 + 2 high bits, nibbles of two subs to a byte [sub / 2][row]; 16 fp16 d, dmin
//   q6_k   32 words of 2 quads (low nibbles); 16 words of 4 quads (2 high bits); 16 x 16 int8
//          sub-scales [sub][row]; 16 fp16 d                                  (256 columns)
//   f16, f32: the 16 rows one after the other, unchanged
struct PackedMatrix {
  WeightType type = WeightType::f32;
  int rows = 0;
  int cols = 0;
  const std::byte* data = nullptr;  // [ceil(rows / 16)][packed_group_bytes(type, cols)]
};

static constexpr int kPackVersion = 2;
static constexpr int kGroupRows = 16;
static inline int64_t packed_row_bytes(WeightType type, int cols) {
  return static_cast<int64_t>(cols) / info(type).block_values * info(type).block_bytes;
}
static inline int64_t packed_group_bytes(WeightType type, int cols) {
  return kGroupRows * packed_row_bytes(type, cols);
}
static inline int n_groups(int rows) { return (rows + kGroupRows - 1) / kGroupRows; }

// How several rows of activations lie. Panels are for every kernel, the others for those that name
// them (WeightKernels::orders).
enum class ActOrder {
  panels,  // act_offset
  plain,   // one after the other
  tiles,   // tile_offset; d and float_sums [tile][n_cols / block][row], no other sums
};

static constexpr unsigned order_bit(ActOrder order) { return 1u << static_cast<int>(order); }

// Quantized activations (rule 3), n_rows rows of n_cols (a multiple of block). 64-byte aligned.
// With `low`, a value is 256 * q + low (--act i16), and sums are of those values.
struct ActRows {
  int n_rows = 0;
  int n_cols = 0;
  int block = 0;                  // 32, 64 or 128 values share one scale
  const int8_t* q = nullptr;      // n_rows x n_cols, places by `order`
  const float* d = nullptr;       // [n_rows][n_cols / block]
  const int32_t* sums = nullptr;  // [n_rows][n_cols / block] sum of q over the block
  // The same as floats, for the vector kernels of formats with minima.
  const float* float_sums = nullptr;
  const int16_t* sums16 = nullptr;  // [n_rows][n_cols / 16] sum of q over 16 values; not with low
  const int8_t* low = nullptr;      // as q, or null
  // [table_bytes(n_cols, planes)], or null: the values of a single row as sums to look up, in place
  // of q and low. Only for kernels with `tables`.
  const std::byte* tables = nullptr;
  int planes = 2;  // of the tables: 3 for --act i16
  ActOrder order = ActOrder::panels;
};

// Sums of four activations with every choice of signs, to be looked up by four weight bits: for
// each 16 columns `planes` vectors of 64 bytes, entry 16c + i being the sum over k of x[4k + c],
// negated where bit k of i is 0. Plane 0 holds its low 5 bits, plane 1 the rest as int8; for
// --act i16 three planes of 6, 6 and the remaining bits. One half of a byte of packed bits is such
// an i, and the place of that byte in its row's quad is c.
static inline int64_t table_bytes(int n_cols, int planes) { return int64_t{n_cols} * 4 * planes; }

// Where column c of row t lies in q and low: panels of 8 rows, then of 4, 2 and 1 for the rest; in
// a panel the quads of its rows lie side by side, so that a tile of rows reads its activations as
// one stream at constant offsets. One row alone is contiguous.
static constexpr int kPanelRows = 8;
static inline int panel_width(int n_rows, int t) {
  const int full = n_rows / kPanelRows * kPanelRows, rest = n_rows - full;
  if (t < full) return kPanelRows;
  if ((rest & 4) != 0 && t - full < 4) return 4;
  return (rest & 2) != 0 && t - full - (rest & 4) < 2 ? 2 : 1;
}
static inline int panel_start(int n_rows, int t) {
  const int width = panel_width(n_rows, t);
  return width == kPanelRows ? t / kPanelRows * kPanelRows : n_rows & ~(2 * width - 1);
}
static inline int64_t act_offset(int n_rows, int n_cols, int t, int c) {
  const int start = panel_start(n_rows, t);
  return int64_t{start} * n_cols + 4 * (int64_t{c / 4} * panel_width(n_rows, t) + t - start) +
         c % 4;
}

// Where column c of row t lies in tiles of 16 rows (one tile of all rows, if there are fewer): the
// columns of a tile in slices of `depth`, min(block, 64). The last tile has room for 16 rows, too;
// what lies in rows that are not there does not matter.
static constexpr int kTileRows = 16;
static inline int tile_rows(int n_rows) { return n_rows < kTileRows ? n_rows : kTileRows; }
static inline int tiled_rows(int n_rows) {  // with those that are not there
  return n_rows < kTileRows ? n_rows : (n_rows + kTileRows - 1) / kTileRows * kTileRows;
}
static inline int tile_depth(int block) { return block < 64 ? block : 64; }
static inline int64_t tile_offset(int n_rows, int n_cols, int depth, int t, int c) {
  const int rows = tile_rows(n_rows);
  return int64_t{t / rows} * rows * n_cols + int64_t{c / depth} * rows * depth + t % rows * depth +
         c % depth;
}

// y[t * ldy + r] (+)= w[r] . a[t] for the rows r of groups [group_begin, group_end) and all rows t.
struct MatmulArgs {
  const PackedMatrix* w = nullptr;
  int group_begin = 0;
  int group_end = 0;
  ActRows a;                 // integer path
  const float* x = nullptr;  // float path: [n_rows][w->cols]
  int n_rows = 0;            // float path
  float* y = nullptr;        // [n_rows][ldy]
  int64_t ldy = 0;
  bool add = false;          // y = y + product instead of y = product
  float* scratch = nullptr;  // float path: w->cols floats of this thread
};

// Lines of memory that a kernel asks for, one for each line of the tile it reads: eight neighbours
// for each eight of its own.
struct AheadLines {
  static constexpr int kEightBytes = 512;
  static constexpr int kMost = 32 * 256 * 4 / kEightBytes;  // of floats, head size 256
  const std::byte* eight[kMost] = {};

  void of_tile(const std::byte* tile, int64_t tile_bytes) {
    for (int64_t i = 0; i * kEightBytes < tile_bytes; ++i) eight[i] = tile + i * kEightBytes;
  }
};
// To ask for nothing that matters.
static constexpr std::byte kNothing[AheadLines::kEightBytes] = {};
static constexpr AheadLines kNoLines = [] {
  AheadLines lines;
  for (const std::byte*& eight : lines.eight) eight = kNothing;
  return lines;
}();

// One tile of K against n_rows query rows (rows x heads of the group, in any order). Neither
// queries nor signed codes of K are -128: encoders do not make it, and files that hold it are
// refused.
struct ScoreArgs {
  const std::byte* tile = nullptr;
  int head_dim = 0;
  int n_rows = 0;
  const int8_t* q = nullptr;        // quantized K: [n_rows][head_dim], 64-byte aligned
  const int16_t* sums16 = nullptr;  // quantized K: [n_rows][head_dim / 16]
  const float* qf = nullptr;        // float K: [n_rows][head_dim]
  const float* scale = nullptr;     // [n_rows]: d_q * c for quantized K, c for float K
  float* s = nullptr;  // [n_rows][s_stride], 32 values of each row are written, visible or not
  int64_t s_stride = 0;
  const AheadLines* ahead = &kNoLines;  // what to ask the memory for while this tile is read
};

// acc[row][d] += sum over the tile's visible positions of p * v (rule 5).
struct WeighArgs {
  const std::byte* tile = nullptr;
  int head_dim = 0;
  int n_rows = 0;
  const float* p = nullptr;  // [n_rows][p_stride], 32 of each row are read; none is negative
  int64_t p_stride = 0;
  const int32_t* n_visible = nullptr;  // [n_rows] 0..32: positions [0, n) are visible; 0 leaves the
                                       // row alone (but see `first`)
  // [n_rows][acc_stride], head_dim of each are summed. Never -0: sums start from +0.
  float* acc = nullptr;
  int64_t acc_stride = 0;
  const AheadLines* ahead = &kNoLines;  // as for scores
  // The first tile of a page: acc counts as +0 whatever it holds. What rows that see nothing of it
  // hold afterwards is not said.
  bool first = false;
};

// The order in which products of several rows are fastest, from so many groups of weights for each
// thread and so many rows of activations on.
struct SeveralRows {
  ActOrder order = ActOrder::panels;
  int from_groups = 0;
  int from_rows = 0;
  int from_rows_32 = 0;  // with activation blocks of 32
  int least = 0;         // groups that a thread should take at a time, if not panels
  int most = 0;
};

struct WeightKernels {
  // 16 rows of GGUF blocks (row_bytes apart, n_valid of them present) -> one packed group.
  void (*pack_group)(const std::byte* rows, int64_t row_bytes, int n_valid, int cols,
                     std::byte* group);
  // Exact float values of one row: float(code) * d, then + m as a separate addition.
  void (*unpack_row)(const PackedMatrix& w, int row, float* out);
  // Rule 4. For f32 and f16 matrices this slot is the float path.
  void (*matmul)(const MatmulArgs& args);
  // Unrounded activations: dot of the unpacked row with x by rule 2.
  void (*matmul_f32)(const MatmulArgs& args);
  // What `matmul` does for each of `four`, side by side: the weights are read as four streams. All
  // have the same type and the same single row of activations, with a.tables if the kernel has
  // them; matrices, groups and their numbers may differ.
  void (*matmul_four)(const MatmulArgs* four);
  // Whether `matmul` of one row is faster looking sums up in a.tables.
  bool tables = false;
  // Whether a single row is looked up faster by matmul_four; without it nobody calls that slot.
  bool by_four = false;
  SeveralRows several{};
  unsigned orders = order_bit(ActOrder::panels);  // those that `matmul` takes
};

struct KvKernels {
  // Encodes one row of head_dim floats (already normed, roped, rotated) at position pos (0..31) of
  // a tile.
  void (*store_k)(const float* row, int head_dim, int pos, std::byte* tile);
  void (*store_v)(const float* row, int head_dim, int pos, std::byte* tile);
  // Makes positions [from, 32) zero bytes again.
  void (*erase_k)(int head_dim, int from, std::byte* tile);
  void (*erase_v)(int head_dim, int from, std::byte* tile);
  void (*scores)(const ScoreArgs& args);
  void (*weigh)(const WeighArgs& args);
};

struct Kernels {
  const char* name;
  WeightKernels weight[kNumWeightTypes];
  KvKernels kv[kNumKvTypes];
  // Whether KV is asked for a page ahead in four streams, not some tiles ahead in one.
  bool kv_streams = false;

  // y = (x * r) * w, r = 1 / sqrt(sum x^2 / n + eps); n values. x == y allowed.
  void (*rms_norm)(const float* x, const float* w, int n, float eps, float* y);
  // Rule 3; n a multiple of block, block a multiple of 16. sums and sums16 as in ActRows; sums16
  // may be null.
  void (*quantize)(const float* x, int n, int block, int8_t* q, float* d, int32_t* sums,
                   int16_t* sums16);
  // Rule 3, --act i16: value = 256 * high + low; sums of the values.
  void (*quantize16)(const float* x, int n, int block, int8_t* high, int8_t* low, float* d,
                     int32_t* sums);
  // The tables of one row of n rounded values in plain order (a multiple of 16); low may be null.
  void (*build_tables)(const int8_t* q, const int8_t* low, int n, std::byte* tables);
  // out = silu(gate) * up; n values, any alias.
  void (*silu_mul)(const float* gate, const float* up, int n, float* out);
  // In place on one head of head_dim values; the first rope_dims are rotated. cos, sin: [rope_dims
  // / 2]. Interleaved: pairs (2i, 2i + 1) (llama); otherwise (i, i + rope_dims / 2) (qwen).
  void (*rope)(float* x, int rope_dims, bool interleaved, const float* cos, const float* sin);
  // Rule 6, in place: blocks of `block` (a power of two, 32..256) over n values.
  void (*rotate)(float* x, int n, int block);
  // s[0..n_visible) scores -> p in place, s[n_visible..256) -> 0; m = maximum, l = sum (rule 5).
  // n_visible 1..256.
  void (*softmax_page)(float* s, int n_visible, float* m, float* l);
  // Merges page results (m_p, l_p, acc_p) into (m, l, acc) by rule 5.
  void (*merge)(int head_dim, float* m, float* l, float* acc, float m_p, float l_p,
                const float* acc_p);
  // out = acc / l
  void (*finish)(int head_dim, const float* acc, float l, float* out);

  // Products of bytes on registers alone, some for each step: multiply-adds done. For measuring.
  int64_t (*dot_rate)(int64_t steps);
};

// One function for each instruction set, in its own file; the only external symbol of that file.
void fill_scalar(Kernels& table);
#if defined(__aarch64__)
void fill_neon(Kernels& table);
void fill_dotprod(Kernels& table);
void fill_i8mm(Kernels& table);
#endif
#if defined(__x86_64__)
void fill_scalar_fma(Kernels& table);
void fill_avx2(Kernels& table);
void fill_avxvnni(Kernels& table);
void fill_avx512(Kernels& table);
void fill_amx(Kernels& table);
#endif

}  // namespace bantam
