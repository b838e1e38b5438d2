// Products of several rows of activations by AMX: TDPBSSD multiplies 16 rows of activations by 16
// rows of weights over 64 columns, 16,384 multiply-adds in 16 cycles, exactly in int32. Weights are
// taken apart into signed bytes, a quad of 16 rows to a tile's row (their packed order), for all
// activation rows of a pass; the ends of activation blocks are those of weights_simd.inl with the
// signed sums. Activations in tiles (ActOrder::tiles). Bits as weights_scalar.inl.
#pragma once

#include "cpu/formats_simd.inl"

namespace bantam {
namespace {

// ---- tiles. The compiler allocates none, so numbers are chosen here: sums in 0 and 1, activations
// in 2 and 3, weights from 4 on.

// The operand of LDTILECFG (Intel's manual, volume 1, section 18.3).
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

template <int Tile>
BANTAM_INLINE void tile_load(const void* first_row, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
               :
               : "r"(first_row), "r"(stride), "i"(Tile)
               : "memory");
}
template <int Tile>
BANTAM_INLINE void tile_store(void* first_row) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
               :
               : "r"(first_row), "r"(int64_t{64}), "i"(Tile)
               : "memory");
}
template <int Tile>
BANTAM_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
template <int Sums, int Activations, int Weights>
BANTAM_INLINE void tile_product() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0"
               :
               : "i"(Sums), "i"(Activations), "i"(Weights));
}

// ---- shapes

// A step takes up to four tiles of weights, 4 to 7, which stay while the activation rows go by:
// with blocks of 128 columns one block of two groups (--act i16: of one), each two tiles deep, with
// smaller ones up to four blocks of one group.
template <int Block, int Planes>
struct TileShape {
  static constexpr int depth = Block < 64 ? Block : 64, slices = Block / depth;
  static constexpr int groups = Planes == 1 && slices == 2 ? 2 : 1;
  static constexpr int blocks = slices == 2 ? 1 : 4;
  static constexpr int weights = groups * blocks * slices;
  static constexpr int code_bytes = Block * 16;  // of one block of 16 rows, taken apart
  static constexpr int sums = groups * blocks * Planes * 256;  // of a step and a tile of rows
};

// Activation rows that share weights taken apart once.
constexpr int kPassRows = 64;

inline void configure_tiles(int rows, int depth, int n_weights) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    const bool sums = i < 2, weights = i >= 4 && i < 4 + n_weights;
    config.rows[i] = static_cast<uint8_t>(weights ? depth / 4 : rows);
    config.row_bytes[i] = static_cast<uint16_t>(sums || weights ? 64 : depth);
  }
  asm volatile("ldtilecfg %0" : : "m"(config));
}
// After every product: a thread's tiles are 8 KiB of its state.
BANTAM_INLINE void release_tiles() { asm volatile("tilerelease"); }

// ---- weights

// Quad K of a word as signed bytes.
template <class F, int K>
BANTAM_INLINE Bytes signed_code(Bytes word) {
  if constexpr (F::bits == 1) {
    // 1 or -1 by one affine map over GF(2): bits 1 to 7 of the result are the code's complement,
    // its lowest bit is 1.
    constexpr uint64_t pick = uint64_t{1} << K;
    return _mm512_gf2p8affine_epi64_epi8(
        word, _mm512_set1_epi64(static_cast<int64_t>(pick * 0x0001010101010101u)), 0xff);
  }
  const Bytes code = F::template code<K>(word);
  return F::bias == 0 ? code : b_sub(code, b_set(F::bias));
}

// One activation block of 16 rows: Block / 4 rows of 64 bytes.
template <class F, int Block>
BANTAM_INLINE void take_apart(const std::byte* words, std::byte* out) {
  constexpr int Q = F::quads_per_word;
  unrolled<Block / (4 * Q)>([&](auto number) __attribute__((always_inline)) {
    constexpr int w = decltype(number)::value;
    const Bytes word = b_load(words + 64 * w);
    unrolled<Q>([&](auto quad) __attribute__((always_inline)) {
      constexpr int k = decltype(quad)::value;
      _mm512_store_si512(out + 64 * (w * Q + k), signed_code<F, k>(word));
    });
  });
}

// ---- ends of activation blocks

// float(x) for |x| < 2^22 by additions: 0x4b400000 are the bits of 1.5 x 2^23. While tiles are
// multiplied only one unit is left for VCVTDQ2PS, VMULPS and VFMADD (1.1 cycles each instead of
// 0.5, Xeon with AMX), additions keep two.
BANTAM_INLINE Floats f_by_addition(Ints x) {
  return f_sub(f_from_bits(i_add(x, i_set(0x4b400000))), f_set(12582912.0f));
}

// What belongs to one activation block of 16 rows of weights.
template <class F>
struct BlockScales {
  Floats d, m;
  Ints sub_d, sub_m;

  BANTAM_INLINE void load(const std::byte* block, int sub) {
    d = f_halves(block + F::scales);
    if constexpr (F::minimum) m = f_halves(block + F::scales + 32);
    if constexpr (F::sub_scales) {
      sub_d = q4_k_lanes(block, sub, 0);
      sub_m = q4_k_lanes(block, sub, 1);
      m = f_sub(f_set(-0.0f), m);
    }
  }
  // y after this block. Small: |dot| < 2^22. sum_a: the sum of the activations, as F wants it.
  template <bool Small>
  BANTAM_INLINE Floats end(Ints dot, Floats d_a, const float* sum_a, Floats y) const {
    if constexpr (F::sub_scales) dot = i_mul(dot, sub_d);
    // Worth its second instruction only where there are two products and two sums.
    const bool by_addition = Small && F::minimum && !F::sub_scales;
    y = f_fma(by_addition ? f_by_addition(dot) : f_from_ints(dot), f_mul(d, d_a), y);
    if constexpr (F::sub_scales) {
      const Ints minimum = i_mul(sub_m, i_bits(f_set(*sum_a)));
      y = f_fma(f_from_ints(minimum), f_mul(m, d_a), y);
    } else if constexpr (F::minimum) {
      y = f_fma(f_set(*sum_a), f_mul(m, d_a), y);
    }
    return y;
  }
};

// ---- products

// Where the activations of one tile of rows start at a column.
struct TileRows {
  const int8_t* q;
  const int8_t* low;
  const float* d;
  const int32_t* sums;
  int rows;

  BANTAM_INLINE TileRows(const ActRows& a, int tile, int column) : rows(tile_rows(a.n_rows)) {
    const int64_t at = int64_t{tile} * rows * a.n_cols + int64_t{column} * rows;
    q = a.q + at;
    low = a.low == nullptr ? nullptr : a.low + at;
    d = a.d + at / a.block;
    sums = a.sums == nullptr ? nullptr : a.sums + at / a.block;
  }
};

// The sums of block B and group G of a step, whose weights are in tiles, for one tile of rows:
// sums[Planes][256].
template <int Block, int Planes, int G, int B>
BANTAM_INLINE void tile_sums(const TileRows& a, int32_t* sums) {
  typedef TileShape<Block, Planes> Shape;
  constexpr int depth = Shape::depth, weights = 4 + (G * Shape::blocks + B) * Shape::slices;
  const int slice = a.rows * depth;
  const int8_t* q = a.q + B * a.rows * Block;
  if constexpr (Planes == 1 && Shape::slices == 2) {
    if (G == 0) tile_load<2>(q, depth);
    if (G == 0) tile_load<3>(q + slice, depth);
    tile_zero<G>();
    tile_product<G, 2, weights>();
    tile_product<G, 3, weights + 1>();
    tile_store<G>(sums);
  } else if constexpr (Planes == 1) {
    constexpr int x = 2 + B % 2, c = B % 2;
    tile_load<x>(q, depth);
    tile_zero<c>();
    tile_product<c, x, weights>();
    tile_store<c>(sums);
  } else {
    const int8_t* low = a.low + B * a.rows * Block;
    tile_load<2>(q, depth);
    tile_load<3>(low, depth);
    tile_zero<0>();
    tile_zero<1>();
    tile_product<0, 2, weights>();
    tile_product<1, 3, weights>();
    if constexpr (Shape::slices == 2) {
      tile_load<2>(q + slice, depth);
      tile_load<3>(low + slice, depth);
      tile_product<0, 2, weights + 1>();
      tile_product<1, 3, weights + 1>();
    }
    tile_store<0>(sums);
    tile_store<1>(sums + 256);
  }
}

// Ends one block of a tile of Rows rows (0: of a.rows); y[16], d_a and sum_a of the block.
template <class F, int Block, int Planes, int Rows>
BANTAM_INLINE void end_block_tile(const BlockScales<F>& scales, const int32_t* sums,
                                  const float* d_a, const int32_t* sum_a, int rows, Floats* y) {
  constexpr bool small = int64_t{F::largest} * (Planes == 2 ? 32512 : 128) * Block < 1 << 22;
  // Sums as floats, for all rows at once; those of Q4_K are multiplied as integers first.
  alignas(64) float sums_a[kTileRows];
  if constexpr (F::minimum) {
    const Ints x = rows == kTileRows
                       ? _mm512_loadu_si512(sum_a)
                       : i_bits(f_load_n(reinterpret_cast<const float*>(sum_a), rows));
    f_store(sums_a, F::sub_scales ? f_from_bits(x) : f_from_ints(x));
    // To be broadcast by loads, not by shuffles.
    asm volatile("" : : "r"(sums_a) : "memory");
  }
  const auto end = [&](int t) __attribute__((always_inline)) {
    Ints dot = _mm512_load_si512(sums + 16 * t);
    if constexpr (Planes == 2) {
      dot = i_add(i_shift_left<8>(dot), _mm512_load_si512(sums + 256 + 16 * t));
    }
    y[t] = scales.template end<small>(dot, f_set(d_a[t]), sums_a + t, y[t]);
  };
  if constexpr (Rows == 0) {
    for (int t = 0; t < rows; ++t) end(t);
  } else {
    unrolled<Rows>([&](auto t) __attribute__((always_inline)) { end(decltype(t)::value); });
  }
}

// One step: up to Shape::blocks activation blocks from `column` on of up to Shape::groups groups.
template <class F, int Block, int Planes>
struct TileStep {
  typedef TileShape<Block, Planes> Shape;
  static constexpr int n = Shape::groups * Shape::blocks;
  alignas(64) std::byte codes[n][Shape::code_bytes];
  alignas(64) int32_t sums[2][n][Planes * 256];
  BlockScales<F> scales[n];
  int column, n_blocks;

  BANTAM_INLINE void load(const std::byte* const* groups, int64_t group_bytes, int first_column,
                          int n_cols) {
    column = first_column;
    n_blocks = (n_cols - column) / Block;
    if (n_blocks > Shape::blocks) n_blocks = Shape::blocks;
    unrolled<n>([&](auto number) __attribute__((always_inline)) {
      constexpr int i = decltype(number)::value, tile = 4 + i * Shape::slices;
      if (i % Shape::blocks >= n_blocks) return;
      const int c = column + i % Shape::blocks * Block, sub = c % F::values / Block;
      const std::byte* block = groups[i / Shape::blocks] + int64_t{c} / F::values * F::block_bytes;
      // As many bytes of the groups that follow; beyond the last ones it asks in vain.
      constexpr int bytes = Block * F::block_bytes / F::values;
      for (int at = sub * bytes; at < (sub + 1) * bytes; at += 64) {
        __builtin_prefetch(block + Shape::groups * group_bytes + at, 0, 2);
      }
      take_apart<F, Block>(block + sub * (Block / (4 * F::quads_per_word) * 64), codes[i]);
      scales[i].load(block, sub);
      tile_load<tile>(codes[i], 64);
      if constexpr (Shape::slices == 2) tile_load<tile + 1>(codes[i] + 1024, 64);
    });
  }
  // Ends one tile of rows, y[groups][kPassRows][16], while the products of the next are under way:
  // in turns, for what waits for a product holds what follows it.
  template <int Rows, bool Now, bool Next>
  BANTAM_INLINE void turn(const ActRows& a, int tile, float* y) {
    const TileRows now(a, Now ? tile : tile + 1, column);
    const TileRows next(a, Next ? tile + 1 : tile, column);
    unrolled<Shape::groups>([&](auto group) __attribute__((always_inline)) {
      constexpr int g = decltype(group)::value;
      float* to = y + g * kPassRows * 16;
      Floats value[16];
      const int rows = Rows == 0 ? now.rows : Rows;
      for (int t = 0; Now && t < rows; ++t) value[t] = f_load(to + 16 * t);
      unrolled<Shape::blocks>([&](auto number) __attribute__((always_inline)) {
        constexpr int b = decltype(number)::value, i = g * Shape::blocks + b;
        if (b >= n_blocks) return;
        if constexpr (Next) tile_sums<Block, Planes, g, b>(next, sums[(tile + 1) & 1][i]);
        if constexpr (!Now) return;
        const int32_t* sum_a = F::minimum ? now.sums + b * now.rows : nullptr;
        end_block_tile<F, Block, Planes, Rows>(scales[i], sums[tile & 1][i], now.d + b * now.rows,
                                               sum_a, now.rows, value);
      });
      for (int t = 0; Now && t < rows; ++t) f_store(to + 16 * t, value[t]);
    });
  }
  // The tiles of rows [begin, end); y of `begin` first.
  template <int Rows>
  BANTAM_INLINE void run(const ActRows& a, int begin, int end, float* y) {
    turn<Rows, false, true>(a, begin - 1, y);
    for (int tile = begin; tile + 1 < end; ++tile, y += kTileRows * 16) {
      turn<Rows, true, true>(a, tile, y);
    }
    turn<Rows, true, false>(a, end - 1, y);
  }
};

// All columns of up to TileShape::groups groups from `group` on times the tiles of rows [begin,
// end).
template <class F, int Block, int Planes>
inline void tile_groups(const MatmulArgs& args, int group, int begin, int end) {
  typedef TileShape<Block, Planes> Shape;
  const int n = args.w->cols;
  const int64_t group_bytes = int64_t{n} / F::values * F::block_bytes;
  const int left = args.group_end - group, n_groups = left < Shape::groups ? left : Shape::groups;
  TileStep<F, Block, Planes> step;
  alignas(64) float y[Shape::groups * kPassRows * 16];
  for (int i = 0; i < Shape::groups * kPassRows; ++i) f_store(y + 16 * i, f_zero());
  // A group that is not there repeats the last one; nobody reads its sums.
  const std::byte* groups[Shape::groups];
  for (int g = 0; g < Shape::groups; ++g) {
    groups[g] = args.w->data + (group + (g < n_groups ? g : n_groups - 1)) * group_bytes;
  }
  for (int c = 0; c < n; c += Shape::blocks * Block) {
    step.load(groups, group_bytes, c, n);
    if (args.a.n_rows >= kTileRows) {
      step.template run<kTileRows>(args.a, begin, end, y);
    } else {
      step.template run<0>(args.a, begin, end, y);
    }
  }
  const int t0 = begin * kTileRows, n_rows = args.a.n_rows - t0;
  for (int g = 0; g < n_groups; ++g) {
    for (int t = 0; t < n_rows && t < kPassRows; ++t) {
      store_rows(args, group + g, t0 + t, f_load(y + (g * kPassRows + t) * 16));
    }
  }
}

template <class F, int Block, int Planes>
inline void tile_matmul(const MatmulArgs& args) {
  typedef TileShape<Block, Planes> Shape;
  const int rows = tile_rows(args.a.n_rows), n_tiles = (args.a.n_rows + rows - 1) / rows;
  constexpr int pass = kPassRows / kTileRows;
  configure_tiles(rows, Shape::depth, Shape::weights);
  for (int g = args.group_begin; g < args.group_end; g += Shape::groups) {
    for (int tile = 0; tile < n_tiles; tile += pass) {
      tile_groups<F, Block, Planes>(args, g, tile, tile + pass < n_tiles ? tile + pass : n_tiles);
    }
  }
  release_tiles();
}

// The kernels of avx512, for a single row and for rows in panels.
void (*panels_of[kNumWeightTypes])(const MatmulArgs&);  // set once, by fill_amx

// The whole activation block of the format, or 32 columns (the input of the down projection).
template <class F, WeightType Type, int Whole, bool Wide>
void matmul_tiles(const MatmulArgs& args) {
  if (args.a.order != ActOrder::tiles) return panels_of[static_cast<int>(Type)](args);
  const bool whole = Whole != 32 && args.a.block == Whole;
  if constexpr (Wide) {
    if (args.a.low != nullptr) {
      return whole ? tile_matmul<F, Whole, 2>(args) : tile_matmul<F, 32, 2>(args);
    }
  }
  whole ? tile_matmul<F, Whole, 1>(args) : tile_matmul<F, 32, 1>(args);
}

// A Xeon's G multiply-adds a second, two threads, rows in panels and in tiles. Q1_0, blocks of 128:
// 3 rows 352 and 342, 4 rows 456 and 424, 5 rows 434 and 486, 8 rows 602 and 740, 64 rows 501 and
// 1,222; PQ2_0 alike; Q2_0, blocks of 64: 4 rows 486 and 320, 6 rows 448 and 428, 8 rows 526 and
// 536. Blocks of 32: Q1_0, 12 rows 394 and 415, 16 rows 377 and 497, 64 rows 385 and 594; Q4_1, 12
// rows 367 and 328, 16 rows 329 and 397.
constexpr SeveralRows kSeveralByTiles{ActOrder::tiles, 1, 0, 16, 4, 32};

template <class F, WeightType Type, int Whole, bool Wide>
void put_tiles(Kernels& table) {
  WeightKernels& slot = table.weight[static_cast<int>(Type)];
  panels_of[static_cast<int>(Type)] = slot.matmul;
  slot.matmul = matmul_tiles<F, Type, Whole, Wide>;
  slot.orders |= order_bit(ActOrder::tiles);
  slot.several = kSeveralByTiles;
  slot.several.from_rows = Whole == 64 ? 8 : 5;
}

// ---- the peak

int64_t dot_rate_tiles(int64_t steps) {
  alignas(64) static constexpr int8_t ones[1024] = {1, 1, 1};
  configure_tiles(kTileRows, 64, 4);
  tile_load<2>(ones, 64);
  tile_load<4>(ones, 64);
  tile_zero<0>();
  tile_zero<1>();
  for (int64_t i = 0; i < steps; ++i) {
    tile_product<0, 2, 4>();
    tile_product<1, 2, 4>();
  }
  release_tiles();
  return steps * 2 * 16384;
}

void fill_tiles(Kernels& table) {
  put_tiles<SimdQ1_0, WeightType::q1_0, 128, true>(table);
  put_tiles<SimdSmall<2, 64, 1>, WeightType::q2_0, 64, true>(table);
  put_tiles<SimdSmall<2, 128, 1>, WeightType::pq2_0, 128, true>(table);
  put_tiles<SimdQ4_0, WeightType::q4_0, 32, true>(table);
  put_tiles<SimdQ4_1, WeightType::q4_1, 32, true>(table);
  put_tiles<SimdQ4_K, WeightType::q4_k, 32, true>(table);
  put_tiles<SimdQ8_0, WeightType::q8_0, 32, false>(table);
  table.dot_rate = dot_rate_tiles;
}

}  // namespace
}  // namespace bantam
