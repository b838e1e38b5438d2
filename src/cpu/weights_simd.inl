// Weight kernels with vectors: a lane is one of the 16 interleaved rows, a quad of activations is
// broadcast to all lanes, so that no dot product needs a horizontal sum. A word of codes is
// unpacked once for a tile of activation rows. Bits as weights_scalar.inl. Includers choose the
// vector header first.
#pragma once

#include "cpu/formats_simd.inl"
#include "cpu/rows_simd.inl"
#include "cpu/weights_scalar.inl"

namespace bantam {
namespace {

// ---- the tile

// Where the activations of a tile start: one pointer for each panel and plane. The empty assembly
// keeps every pointer in a register of its own: the products then address their quads by constant
// offsets, for an indexed operand of VPDPBUSD costs a second issue slot (3.2 instead of 5.6
// products per ns, Xeon at 3 GHz).
template <int Panels, int Planes>
struct TilePointers {
  const int8_t* x[Planes][Panels];

  BANTAM_INLINE TilePointers(const ActRows& a, int64_t offset) {
    for (int p = 0; p < Planes; ++p) {
      for (int i = 0; i < Panels; ++i) {
        x[p][i] = (p == 0 ? a.q : a.low) + offset + int64_t{i} * kPanelRows * a.n_cols;
        asm("" : "+r"(x[p][i]));
      }
    }
  }
};

// Chains of each sum where few sums do not cover the latency of the dot instruction: a word's quads
// take turns. Short blocks end before that matters.
constexpr int chains_of(int quads_per_word, int block, int n_sums) {
  const int most = block > 32 ? kSumsInFlight / n_sums : 1;
  return most < 1 ? 1 : most < quads_per_word ? most : quads_per_word;
}

// One group of 16 rows times T rows of activations of Planes int8 planes, in panels of Width rows;
// activation blocks of Block.
template <class F, int Block, int T, int Width, int Planes>
inline void product_tile(const MatmulArgs& args, int group, int t0) {
  constexpr int Q = F::quads_per_word, W = Block / (4 * Q), R = T * Planes;
  constexpr int C = T == 1 ? (kChains + Planes - 1) / Planes : chains_of(Q, Block, R);
  const ActRows& a = args.a;
  const int n = args.w->cols;
  const std::byte* base = args.w->data + group * (int64_t{n} / F::values * F::block_bytes);
  const int64_t first = act_offset(a.n_rows, n, t0, 0);
  Floats y[T];
  for (int t = 0; t < T; ++t) y[t] = f_zero();
  for (int c = 0, index = 0; c < n; c += Block, ++index) {
    const std::byte* block = base + int64_t{c} / F::values * F::block_bytes;
    const std::byte* words = block + c % F::values / (4 * Q) * 64;
    typename F::Acc dot[R][C] = {};
    for (int w = 0; w < W; ++w) {
      const Bytes word = b_load(words + 64 * w);
      // Of several tiles the first asks for all. 1.7B, 4 and 8 sequences, Xeon without AMX: 146 and
      // 198 tok/s without, 186 and 207 where every tile asked, 177 and 226 now. AVX2 lost where all
      // asked (8 sequences: 74, 69); NEON was not measured.
      if (T == 1 || (kTileTokens > 8 && t0 == 0)) {
        __builtin_prefetch(words + 64 * w + prefetch_bytes(), 0, kPrefetchLevel);
      }
      const TilePointers<(T + Width - 1) / Width, Planes> at(
          a, first + int64_t{c + 4 * w * Q} * Width);
      unrolled<Q>([&](auto k) __attribute__((always_inline)) {
        constexpr int K = decltype(k)::value;
        const Bytes code = F::template code<K>(word);
        unrolled<R>([&](auto row) __attribute__((always_inline)) {
          constexpr int p = decltype(row)::value / T, t = decltype(row)::value % T;
          const auto x = quad_of<K * Width + t % Width, Q * Width>(at.x[p][t / Width]);
          F::add(dot[p * T + t][(Q == 1 ? w : K) % C], code, x);
        });
      });
    }
    Ints s[T];
    unrolled<T>([&](auto row) __attribute__((always_inline)) {
      constexpr int t = decltype(row)::value;
      Ints part[Planes];
      for (int p = 0; p < Planes; ++p) {
        part[p] = F::sum(dot[p * T + t][0]);
        for (int i = 1; i < C; ++i) part[p] = i_add(part[p], F::sum(dot[p * T + t][i]));
      }
      s[t] = Planes == 2 ? i_add(i_shift_left<8>(part[0]), part[Planes - 1]) : part[0];
    });
    constexpr int most = F::largest * (Planes == 2 ? 32512 : 128) * Block;
    end_block<F, Block, T, most>(a, block, t0, index, c % F::values / Block, s, y);
  }
  for (int t = 0; t < T; ++t) store_rows(args, group, t0 + t, y[t]);
}

// The same by 2 x 2 matrix products, and T rows times a q6_k sub-block of 16 columns:
// pairs_i8mm.inl.
template <class F, int Block, int T, int Width, int Planes>
inline void pair_tile(const MatmulArgs& args, int group, int t0);
template <int T, int Width>
BANTAM_INLINE void pair_sums_q6_k(const std::byte* block, int sub, const int8_t* x, Ints* s);

// One panel of Width rows.
template <class F, int Block, int Width, int Planes>
inline void product_panel(const MatmulArgs& args, int group, int t0) {
  constexpr int most = kPairedRows ? F::tile : F::tile / Planes;
  constexpr int T = Width < most ? Width : most;
  for (int t = t0; t < t0 + Width; t += T) {
    if constexpr (kPairedRows && T > 1) {
      pair_tile<F, Block, T, Width, Planes>(args, group, t);
    } else {
      product_tile<F, Block, T, Width, Planes>(args, group, t);
    }
  }
}

// All activation rows of one group, in the largest tiles that fit.
template <class F, int Block, int Planes>
inline void product_group(const MatmulArgs& args, int group) {
  constexpr int most = F::tile / Planes;
  const int n = args.a.n_rows;
  int t = 0;
  if constexpr (most >= 24) {
    // 32 rows are 16 and 16: with the 8 sums that 24 would leave, the dot units wait.
    for (; t + 24 <= n && n - t != 32; t += 24) {
      product_tile<F, Block, 24, 8, Planes>(args, group, t);
    }
  }
  if constexpr (most >= 16) {
    for (; t + 16 <= n; t += 16) product_tile<F, Block, 16, 8, Planes>(args, group, t);
  }
  for (; t + 8 <= n; t += 8) product_panel<F, Block, 8, Planes>(args, group, t);
  if (t + 4 <= n) {
    product_panel<F, Block, 4, Planes>(args, group, t);
    t += 4;
  }
  if (t + 2 <= n) {
    product_panel<F, Block, 2, Planes>(args, group, t);
    t += 2;
  }
  if (t < n) product_panel<F, Block, 1, Planes>(args, group, t);
}

template <class F, int Block>
inline void product_block(const MatmulArgs& args) {
  for (int g = args.group_begin; g < args.group_end; ++g) {
    if (args.a.low == nullptr) {
      product_group<F, Block, 1>(args, g);
    } else {
      product_group<F, Block, 2>(args, g);
    }
  }
}

// The whole block of the format, or 32 columns (the input of the down projection).
template <class F, int Whole>
void matmul_simd(const MatmulArgs& args) {
  if (Whole != 32 && args.a.block == Whole) return product_block<F, Whole>(args);
  product_block<F, 32>(args);
}

// ---- Q6_K: int8 sub-scales for 16 columns, two of them in one activation block; no i16

template <int K>
BANTAM_INLINE Bytes q6_k_code(const std::byte* block, int sub) {
  const Bytes low = b_field<4, K % 2>(b_load(block + (2 * sub + K / 2) * 64));
  const Bytes high = b_field<2, K>(b_load(block + 2048 + sub * 64));
  return b_or(low, b_shift_left<4>(high));
}

template <int T, int Width>
BANTAM_INLINE void q6_k_sums(const std::byte* block, int sub, const int8_t* x, Ints* s) {
  WideAcc dot[T] = {};
  unrolled<4>([&](auto k) __attribute__((always_inline)) {
    constexpr int K = decltype(k)::value;
    const Bytes code = q6_k_code<K>(block, sub);
    unrolled<T>([&](auto row) __attribute__((always_inline)) {
      constexpr int t = decltype(row)::value;
      six_bits_add(dot[t], code, quad_of<K * Width + t, 4 * Width>(x));
    });
  });
  for (int t = 0; t < T; ++t) s[t] = wide_sum(dot[t]);
}

template <int T, int Width>
inline void q6_k_tile(const MatmulArgs& args, int group, int t0) {
  const int n = args.w->cols;
  const std::byte* base = args.w->data + group * (int64_t{n} / 256 * 3360);
  const ActRows& a = args.a;
  const int64_t first = act_offset(a.n_rows, n, t0, 0);
  Floats y[T];
  for (int t = 0; t < T; ++t) y[t] = f_zero();
  for (int c = 0; c < n; c += 32) {
    const std::byte* block = base + int64_t{c} / 256 * 3360;
    Ints s[T];
    for (int t = 0; t < T; ++t) s[t] = i_zero();
    for (int sub = c % 256 / 16; sub < c % 256 / 16 + 2; ++sub) {
      const Ints scale = i_load_bytes(block + 3072 + sub * 16);
      const int column = c / 256 * 256 + sub * 16;  // of the row
      const TilePointers<1, 1> at(a, first + int64_t{column} * Width);
      Ints dot[T];
      if constexpr (kPairedRows && T > 1) {
        pair_sums_q6_k<T, Width>(block, sub, at.x[0][0], dot);
      } else {
        q6_k_sums<T, Width>(block, sub, at.x[0][0], dot);
      }
      for (int t = 0; t < T; ++t) {
        const int sum = a.sums16[int64_t{t0 + t} * (n / 16) + column / 16];
        s[t] = i_add(s[t], i_mul(scale, i_sub(dot[t], i_set(32 * sum))));
      }
    }
    const Floats d_w = f_halves(block + 3328);
    for (int t = 0; t < T; ++t) {
      const Floats d_a = f_set(a.d[int64_t{t0 + t} * (n / 32) + c / 32]);
      y[t] = f_fma(f_from_ints(s[t]), f_mul(d_w, d_a), y[t]);
    }
  }
  for (int t = 0; t < T; ++t) store_rows(args, group, t0 + t, y[t]);
}

template <int Width>
inline void q6_k_panel(const MatmulArgs& args, int group, int t0) {
  constexpr int T = Width < kTileTokensWide ? Width : kTileTokensWide;
  for (int t = t0; t < t0 + Width; t += T) q6_k_tile<T, Width>(args, group, t);
}

void matmul_q6_k_simd(const MatmulArgs& args) {
  for (int g = args.group_begin; g < args.group_end; ++g) {
    for (int t = 0; t < args.a.n_rows;) {
      const int width = panel_width(args.a.n_rows, t);
      if (width == 8) q6_k_panel<8>(args, g, t);
      if (width == 4) q6_k_panel<4>(args, g, t);
      if (width == 2) q6_k_panel<2>(args, g, t);
      if (width == 1) q6_k_panel<1>(args, g, t);
      t += width;
    }
  }
}

// ---- float activations

template <int T>
inline void dot_rows(const MatmulArgs& args, const float* w, int row, int t0) {
  const int n = args.w->cols;
  Floats lanes[T];
  for (int t = 0; t < T; ++t) lanes[t] = f_zero();
  int c = 0;
  for (; c + 16 <= n; c += 16) {
    const Floats x = f_load(w + c);
    for (int t = 0; t < T; ++t) {
      lanes[t] = f_fma(x, f_load(args.x + int64_t{t0 + t} * n + c), lanes[t]);
    }
  }
  // Absent lanes add fma(+0, +0, lane), which leaves every lane alone: none is -0.
  for (int t = 0; c < n && t < T; ++t) {
    lanes[t] =
        f_fma(f_load_n(w + c, n - c), f_load_n(args.x + int64_t{t0 + t} * n + c, n - c), lanes[t]);
  }
  for (int t = 0; t < T; ++t) put_result(args, t0 + t, row, f_tree(lanes[t]));
}

template <void (*Unpack)(const PackedMatrix&, int, float*)>
void matmul_f32_simd(const MatmulArgs& args) {
  const int all = args.group_end * kGroupRows;
  const int end = all < args.w->rows ? all : args.w->rows;
  for (int row = args.group_begin * kGroupRows; row < end; ++row) {
    Unpack(*args.w, row, args.scratch);
    int t = 0;
    for (; t + 4 <= args.n_rows; t += 4) dot_rows<4>(args, args.scratch, row, t);
    for (; t < args.n_rows; ++t) dot_rows<1>(args, args.scratch, row, t);
  }
}

template <class Format>
void put_format(WeightKernels& slot, void (*matmul)(const MatmulArgs&)) {
  slot.matmul = matmul;
  slot.matmul_f32 = matmul_f32_simd<unpack_row<Format>>;
}

void fill_weights_simd(Kernels& table) {
  const auto at = [&](WeightType type) -> WeightKernels& {
    return table.weight[static_cast<int>(type)];
  };
  at(WeightType::f32).matmul = at(WeightType::f32).matmul_f32 = matmul_f32_simd<unpack_row_f32>;
  at(WeightType::f16).matmul = at(WeightType::f16).matmul_f32 = matmul_f32_simd<unpack_row_f16>;
  put_format<FormatQ1_0>(at(WeightType::q1_0), matmul_simd<SimdQ1_0, 128>);
  put_format<FormatQ2_0<64>>(at(WeightType::q2_0), matmul_simd<SimdSmall<2, 64, 1>, 64>);
  put_format<FormatQ2_0<128>>(at(WeightType::pq2_0), matmul_simd<SimdSmall<2, 128, 1>, 128>);
  put_format<FormatQ8_0>(at(WeightType::q8_0), matmul_simd<SimdQ8_0, 32>);
  put_format<FormatQ4_0>(at(WeightType::q4_0), matmul_simd<SimdQ4_0, 32>);
  put_format<FormatQ4_1>(at(WeightType::q4_1), matmul_simd<SimdQ4_1, 32>);
  put_format<FormatQ4_K>(at(WeightType::q4_k), matmul_simd<SimdQ4_K, 32>);
  put_format<FormatQ6_K>(at(WeightType::q6_k), matmul_q6_k_simd);
}

}  // namespace
}  // namespace bantam
