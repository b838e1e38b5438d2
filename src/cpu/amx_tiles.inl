// Products of several rows of activations by AMX: TDPBSSD multiplies 16 rows of activations by 16
// rows of weights over 64 columns, 16,384 multiply-adds in 16 cycles, exactly in int32. Weights are
// taken apart into signed bytes, a quad of 16 rows to a tile's row (their packed order), for all
// activation rows of a pass; the ends of activation blocks are those of weights_simd.inl with the
// signed sums. Activations in tiles (ActOrder::tiles). Bits as weights_scalar.inl.
#pragma once

#include "cpu/formats_simd.inl"

namespace bantam {
namespace {

// ---- tiles. The compiler allocates none, so numbers are chosen here: sums in 0 to 3, activations
// in 4 and 5, weights in 6 and 7.

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

// A step takes up to `blocks` activation blocks of one group of 16 rows of weights for Tiles tiles
// of rows, with 8 KiB of sums and of weights taken apart at most, and kStepGroups groups take their
// steps over the same columns, whose activations so stay in L1 with 16 KiB of running sums for 64
// rows. Twice the blocks were 1 to 11 % slower, four times 40 to 45 % (Xeon, 64 rows, one thread, a
// neighbour in the same caches); with one tile two blocks instead of eight were 1 to 40 % slower.
template <int Block, int Planes, int Tiles>
struct TileShape {
  static constexpr int depth = Block < 64 ? Block : 64, slices = Block / depth;
  static constexpr int by_sums = 8 / (Tiles * Planes), most = Block == 32 ? 8 : 4;
  static constexpr int blocks = by_sums < 1 ? 1 : by_sums < most ? by_sums : most;
  static constexpr int code_bytes = Block * 16;  // of a block, taken apart
};
constexpr int kStepGroups = 4;

// Activation rows that share weights taken apart once.
constexpr int kPassTiles = 4;

inline void configure_tiles(int rows, int depth) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = static_cast<uint8_t>(i >= 6 ? depth / 4 : rows);
    config.row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? depth : 64);
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

// What belongs to one activation block of 16 rows of weights.
template <class F>
struct BlockScales {
  Floats d, m, sub_d, sub_m;

  BANTAM_INLINE void load(const std::byte* block, int sub) {
    d = f_halves(block + F::scales);
    if constexpr (F::minimum) m = f_halves(block + F::scales + 32);
    if constexpr (F::sub_scales) {
      sub_d = f_from_ints(q4_k_lanes(block, sub, 0));
      sub_m = f_from_ints(q4_k_lanes(block, sub, 1));
      m = f_sub(f_set(-0.0f), m);
    }
  }
  // y after this block; sum_a: the sum of the activations. As end_block.
  BANTAM_INLINE Floats end(Ints dot, Floats d_a, const float* sum_a, Floats y) const {
    Floats s = f_from_ints(dot);
    if constexpr (F::sub_scales) s = f_mul(s, sub_d);
    y = f_fma(s, f_mul(d, d_a), y);
    if constexpr (F::sub_scales) {
      y = f_fma(f_mul(sub_m, f_set(*sum_a)), f_mul(m, d_a), y);
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
  const float* sums;
  int rows;

  TileRows() = default;
  BANTAM_INLINE TileRows(const ActRows& a, int tile, int column) {
    rows = tile_rows(a.n_rows);
    const int64_t at = int64_t{tile} * rows * a.n_cols + int64_t{column} * rows;
    q = a.q + at;
    low = a.low == nullptr ? nullptr : a.low + at;
    d = a.d + at / a.block;
    sums = a.float_sums == nullptr ? nullptr : a.float_sums + at / a.block;
  }
};

// A step's sums: [Tiles][blocks][Planes][256]. The products come first, for all tiles of rows,
// then the ends of the blocks: while tiles are multiplied VMULPS, VFMADD and VCVTDQ2PS have one
// unit instead of two.
//
// The products of block B for Tiles tiles of rows. A product's sums (tile N % 4, two with --act
// i16) are stored after the next but one (the next) has begun: 22 cycles for load, product and
// store, 31 in pairs (Xeon, blocks of 32 columns, data in L1).
template <int Block, int Planes, int Tiles, int B>
BANTAM_INLINE void block_products(const TileRows* a, const std::byte* codes, int32_t* sums,
                                  bool last) {
  typedef TileShape<Block, Planes, Tiles> Shape;
  constexpr int late = Planes == 1 ? 2 : 1;
  tile_load<6>(codes, 64);
  if constexpr (Shape::slices == 2) tile_load<7>(codes + 1024, 64);
  const auto store = [&](auto sequence) __attribute__((always_inline)) {
    constexpr int n = decltype(sequence)::value;
    if constexpr (n >= 0) {
      int32_t* to = sums + (n % Tiles * Shape::blocks + n / Tiles) * Planes * 256;
      tile_store<Planes == 1 ? n % 4 : n % 2 * 2>(to);
      if constexpr (Planes == 2) tile_store<n % 2 * 2 + 1>(to + 256);
    }
  };
  unrolled<Tiles>([&](auto number) __attribute__((always_inline)) {
    constexpr int t = decltype(number)::value, n = B * Tiles + t;
    constexpr int c = Planes == 1 ? n % 4 : n % 2 * 2;
    const int slice = a[t].rows * Shape::depth, at = B * a[t].rows * Block;
    tile_load<4>(a[t].q + at, Shape::depth);
    if constexpr (Planes == 2) {
      tile_load<5>(a[t].low + at, Shape::depth);
    } else if constexpr (Shape::slices == 2) {
      tile_load<5>(a[t].q + at + slice, Shape::depth);
    }
    tile_zero<c>();
    tile_product<c, 4, 6>();
    if constexpr (Planes == 2) {
      tile_zero<c + 1>();
      tile_product<c + 1, 5, 6>();
      if constexpr (Shape::slices == 2) {
        tile_load<4>(a[t].q + at + slice, Shape::depth);
        tile_load<5>(a[t].low + at + slice, Shape::depth);
        tile_product<c, 4, 7>();
        tile_product<c + 1, 5, 7>();
      }
    } else if constexpr (Shape::slices == 2) {
      tile_product<c, 5, 7>();
    }
    store(Constant<n - late>());
  });
  if (!last) return;
  constexpr int end = (B + 1) * Tiles;
  if constexpr (late == 2) store(Constant<end - 2>());
  store(Constant<end - 1>());
}

// Ends one block of a tile of Rows rows (0: of `rows`); y[16], d_a and sum_a of the block.
template <class F, int Block, int Planes, int Rows>
BANTAM_INLINE void end_block_tile(const BlockScales<F>& scales, const int32_t* sums,
                                  const float* d_a, const float* sum_a, int rows, Floats* y) {
  static_assert(!F::sub_scales || F::largest * (Planes == 2 ? 32512 : 128) * Block < 1 << 24);
  const auto end = [&](int t) __attribute__((always_inline)) {
    Ints dot = _mm512_load_si512(sums + 16 * t);
    if constexpr (Planes == 2) {
      dot = i_add(i_shift_left<8>(dot), _mm512_load_si512(sums + 256 + 16 * t));
    }
    y[t] = scales.end(dot, f_set(d_a[t]), F::minimum ? sum_a + t : nullptr, y[t]);
  };
  if constexpr (Rows == 0) {
    for (int t = 0; t < rows; ++t) end(t);
  } else {
    unrolled<Rows>([&](auto t) __attribute__((always_inline)) { end(decltype(t)::value); });
  }
}

// One step: up to Shape::blocks activation blocks of one group.
template <class F, int Block, int Planes, int Tiles>
struct TileStep {
  typedef TileShape<Block, Planes, Tiles> Shape;
  alignas(64) std::byte codes[Shape::blocks][Shape::code_bytes];
  alignas(64) int32_t sums[Tiles * Shape::blocks * Planes * 256];
  BlockScales<F> scales[Shape::blocks];
  int n_blocks;

  // The weights from `column` on. ahead: bytes from the group to the one that is asked for
  // meanwhile.
  BANTAM_INLINE void load(const std::byte* group, int64_t ahead, int column, int n_cols) {
    n_blocks = (n_cols - column) / Block;
    if (n_blocks > Shape::blocks) n_blocks = Shape::blocks;
    unrolled<Shape::blocks>([&](auto number) __attribute__((always_inline)) {
      constexpr int b = decltype(number)::value;
      if (b >= n_blocks) return;
      const int c = column + b * Block, sub = c % F::values / Block;
      const std::byte* block = group + int64_t{c} / F::values * F::block_bytes;
      constexpr int bytes = Block * F::block_bytes / F::values;
      for (int at = sub * bytes; at < (sub + 1) * bytes; at += 64) {
        __builtin_prefetch(block + ahead + at, 0, 2);
      }
      take_apart<F, Block>(block + sub * (Block / (4 * F::quads_per_word) * 64), codes[b]);
      scales[b].load(block, sub);
    });
  }
  BANTAM_INLINE void products(const TileRows* a) {
    unrolled<Shape::blocks>([&](auto number) __attribute__((always_inline)) {
      constexpr int b = decltype(number)::value;
      if (b >= n_blocks) return;
      block_products<Block, Planes, Tiles, b>(a, codes[b], sums, b == n_blocks - 1);
    });
  }
  // y[Tiles * kTileRows][16] after this step; Rows of every tile (0: as many as a[0] says).
  template <int Rows>
  BANTAM_INLINE void end(const TileRows* a, float* y) const {
    for (int t = 0; t < Tiles; ++t, y += kTileRows * 16) {
      const int rows = Rows == 0 ? a[t].rows : Rows;
      Floats value[kTileRows];
      for (int i = 0; i < rows; ++i) value[i] = f_load(y + 16 * i);
      for (int b = 0; b < n_blocks; ++b) {
        const float* sum_a = F::minimum ? a[t].sums + b * rows : nullptr;
        end_block_tile<F, Block, Planes, Rows>(scales[b],
                                               sums + (t * Shape::blocks + b) * Planes * 256,
                                               a[t].d + b * rows, sum_a, rows, value);
      }
      for (int i = 0; i < rows; ++i) f_store(y + 16 * i, value[i]);
    }
  }
};

// All columns of the groups [group, group + n_groups) times the tiles of rows [begin, begin +
// Tiles), of Rows rows (0: one tile of all rows).
template <class F, int Block, int Planes, int Tiles, int Rows>
inline void tile_groups(const MatmulArgs& args, int group, int n_groups, int begin) {
  typedef TileShape<Block, Planes, Tiles> Shape;
  const int n = args.w->cols;
  const int64_t group_bytes = int64_t{n} / F::values * F::block_bytes;
  const std::byte* first = args.w->data + group * group_bytes;
  // Beyond the last groups it asks in vain.
  const int64_t ahead = kStepGroups * group_bytes;
  TileStep<F, Block, Planes, Tiles> step;
  constexpr int most_rows = Tiles * kTileRows;
  alignas(64) float y[kStepGroups * most_rows * 16];
  for (int i = 0; i < n_groups * most_rows; ++i) f_store(y + 16 * i, f_zero());
  for (int c = 0; c < n; c += Shape::blocks * Block) {
    TileRows a[Tiles];
    for (int t = 0; t < Tiles; ++t) a[t] = TileRows(args.a, begin + t, c);
    for (int g = 0; g < n_groups; ++g) {
      step.load(first + g * group_bytes, ahead, c, n);
      step.products(a);
      step.template end<Rows>(a, y + g * most_rows * 16);
    }
  }
  const int t0 = begin * kTileRows, n_rows = args.a.n_rows - t0;
  for (int t = 0; t < n_rows && t < most_rows; ++t) {
    for (int g = 0; g < n_groups; ++g) {
      store_rows(args, group + g, t0 + t, f_load(y + (g * most_rows + t) * 16));
    }
  }
}

template <class F, int Block, int Planes>
inline void tile_matmul(const MatmulArgs& args) {
  const int rows = tile_rows(args.a.n_rows), n_tiles = (args.a.n_rows + rows - 1) / rows;
  configure_tiles(rows, TileShape<Block, Planes, 1>::depth);
  for (int g = args.group_begin; g < args.group_end; g += kStepGroups) {
    const int left = args.group_end - g, n_groups = left < kStepGroups ? left : kStepGroups;
    for (int tile = 0; tile < n_tiles; tile += kPassTiles) {
      const int n = n_tiles - tile;
      if (rows < kTileRows) {
        tile_groups<F, Block, Planes, 1, 0>(args, g, n_groups, tile);
      } else if (n == 1) {
        tile_groups<F, Block, Planes, 1, kTileRows>(args, g, n_groups, tile);
      } else if (n == 2) {
        tile_groups<F, Block, Planes, 2, kTileRows>(args, g, n_groups, tile);
      } else if (n == 3) {
        tile_groups<F, Block, Planes, 3, kTileRows>(args, g, n_groups, tile);
      } else {
        tile_groups<F, Block, Planes, 4, kTileRows>(args, g, n_groups, tile);
      }
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

// A Xeon's G multiply-adds a second, one thread, rows in panels and in tiles. Q1_0, blocks of 128:
// 4 rows 189 and 172, 8 rows 245 and 374, 16 rows 286 and 584. Q2_0, blocks of 64: 4 rows 140 and
// 114, 8 rows 209 and 248. Blocks of 32: Q1_0, 8 rows 182 and 188, 16 rows 210 and 316; Q4_1, 8
// rows 160 and 133, 16 rows 171 and 215; more than 8 rows are two panels.
constexpr SeveralRows kSeveralByTiles{ActOrder::tiles, 1, 0, 10, 1, 32};

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
  configure_tiles(kTileRows, 64);
  tile_load<4>(ones, 64);
  tile_load<6>(ones, 64);
  tile_zero<0>();
  tile_zero<1>();
  for (int64_t i = 0; i < steps; ++i) {
    tile_product<0, 4, 6>();
    tile_product<1, 4, 6>();
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
