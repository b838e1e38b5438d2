// Products of 1-bit weights with several rows of activations: VPERMW finds
// sums of five activations for 32 rows of weights, 160 multiply-adds for one lookup and one
// addition of words. A word holds the sum of a whole block, so nothing is widened on the way.
// Two groups of 16 rows are taken apart into the columns of their even and of their odd 16-bit
// lanes, which makes all 32 lanes of an index the same five columns. Bits as weights_scalar.inl.
//
// A table is loaded once for 64 rows of weights: with the table as memory operand of each VPERMW a
// Zen 4 takes 1.35 cycles for a lookup and its addition, with 8 rows of activations and two
// indices for each table 1.14.
#pragma once

#include "cpu/streams_avx512.inl"

namespace bantam {
namespace {

// ---- building

// A 16-bit lane of a packed word has the bits of 16 of its 32 columns, h being the lane's parity.
constexpr int five_column(int h, int bit) { return bit % 8 * 4 + 2 * h + bit / 8; }

// The columns (of 128) whose sums are looked up by the five bits of each index, in the order of the
// lookups. A word yields bits 0-4, 5-9, 10-14 of its even, then of its odd lanes; bit 15 of the
// lanes is gathered from the latest on: with blocks of 32 both of each word, else all eight at the
// end. Bytes 4i + k are bits 0, 1, 3, 4 of index i, `third` its bit 2. Tables that lack a column
// count it as 0.
template <int Block>
struct FiveOrder {
  static constexpr int n_tables = Block == 32 ? 28 : 26;
  alignas(64) uint8_t quad[128] = {};
  alignas(64) uint8_t third[64] = {};
  uint64_t has_quad[2] = {};
  uint64_t has_third = 0;

  constexpr FiveOrder() {
    int i = 0;
    for (int w = 0; w < 4; ++w) {
      for (int bit = 0; bit < 30; ++bit) put(i + bit / 5, bit % 5, w, bit / 15, bit % 15);
      i += 6;
      if (Block != 32) continue;
      put(i, 0, w, 1, 15);
      put(i, 1, w, 0, 15);
      ++i;
    }
    for (int bit = 0; Block != 32 && bit < 8; ++bit) {
      put(i + bit / 5, bit % 5, (7 - bit) / 2, bit % 2 == 0, 15);
    }
  }

 private:
  constexpr void put(int table, int k, int w, int h, int bit) {
    const auto column = static_cast<uint8_t>(32 * w + five_column(h, bit));
    if (k == 2) {
      third[table] = column;
      has_third |= uint64_t{1} << table;
    } else {
      const int at = 4 * table + k - (k > 2);
      quad[at] = column;
      has_quad[at / 64] |= uint64_t{1} << at % 64;
    }
  }
};

// The tables of 128 columns of one plane: entry e of a table is the sum of its activations, negated
// where bit k of e is 0. `step` bytes from one table to the next.
template <int Block>
BANTAM_INLINE void build_fives(const int8_t* q, std::byte* table, int64_t step) {
  static constexpr FiveOrder<Block> order;
  const Bytes a = _mm512_loadu_si512(q), b = _mm512_loadu_si512(q + 64);
  alignas(64) int32_t quads[32], thirds[32];
  for (int half = 0; half < 2; ++half) {
    // VPDPBUSD wants the activations unsigned: + 128, which the correction takes back.
    const Bytes quad = _mm512_maskz_permutex2var_epi8(order.has_quad[half], a,
                                                      _mm512_load_si512(order.quad + 64 * half), b);
    _mm512_store_si512(quads + 16 * half, _mm512_xor_si512(quad, b_set(0x80)));
  }
  const Bytes third =
      _mm512_maskz_permutex2var_epi8(order.has_third, a, _mm512_load_si512(order.third), b);
  _mm512_store_si512(thirds, _mm512_cvtepi8_epi32(_mm512_castsi512_si128(third)));
  _mm512_store_si512(thirds + 16, _mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(third, 1)));
  // Entries 8l + j (j < 4: bit 2 is 0) and 8l + 4 + j come from lane 4l + j: the order of
  // VPACKSSDW.
  const EntrySigns entries;
  for (int i = 0; i < order.n_tables; ++i, table += step) {
    const Ints sum = _mm512_dpbusd_epi32(entries.correction, i_set(quads[i]), entries.signs);
    const Ints x = i_set(thirds[i]);
    _mm512_store_si512(table, _mm512_packs_epi32(i_sub(sum, x), i_add(sum, x)));
  }
}

// ---- products

// Groups of 16 rows that share the tables of a tile, and pairs of groups, one to an index.
constexpr int kFivePairs = 2;
constexpr int kFiveGroups = 2 * kFivePairs;
// Tables (activation rows x planes) whose sums stay in registers beside those.
constexpr int kFiveTables = 8;
// Groups of a pass; their sums (64 KiB for 8 rows) lie on the stack.
constexpr int kPassGroups = 128;
// Columns whose tables stay in L1 (13 KiB for 128 columns of 8 rows) while the groups of a pass go
// by.
constexpr int kFiveColumns = 128;

// The sums of one block: word 2r of sum[p] belongs to row r of the pair's first group, word 2r + 1
// to row r of its second.
template <int Tables>
struct FiveSums {
  Bytes sum[kFivePairs][Tables];

  BANTAM_INLINE void clear() {
    for (int p = 0; p < kFivePairs; ++p) {
      for (int i = 0; i < Tables; ++i) sum[p][i] = i_zero();
    }
  }
  BANTAM_INLINE void look_up(const Bytes* index, const std::byte* tables) {
    unrolled<Tables>([&](auto number) __attribute__((always_inline)) {
      constexpr int i = decltype(number)::value;
      const Bytes table = b_load(tables + 64 * i);
      for (int p = 0; p < kFivePairs; ++p) {
        sum[p][i] = _mm512_add_epi16(sum[p][i], _mm512_permutexvar_epi16(index[p], table));
        // Keeps the compiler from adding up lookups first, for which there are no registers.
        asm("" : "+v"(sum[p][i]));
      }
    });
  }
};

// y[t][4][16] of four groups, in and out.
template <int T, int Planes>
BANTAM_INLINE void end_fives(const FiveSums<T * Planes>& sums, const std::byte* const* blocks,
                             const float* d_a, int64_t d_stride, float* y) {
  for (int p = 0; p < kFivePairs; ++p) {
    unrolled<2>([&](auto half) __attribute__((always_inline)) {
      constexpr int h = decltype(half)::value;
      const Floats d_w = f_halves(blocks[2 * p + h] + 256);
      const Ints one = i_set(1 << 16 * h), high = i_set(256 << 16 * h);
      unrolled<T>([&](auto row) __attribute__((always_inline)) {
        constexpr int t = decltype(row)::value;
        const Bytes* s = sums.sum[p] + t * Planes;
        Ints sum = _mm512_madd_epi16(s[0], Planes == 2 ? high : one);
        if constexpr (Planes == 2) sum = _mm512_dpwssd_epi32(sum, s[1], one);
        float* to = y + 64 * t + 16 * (2 * p + h);
        const Floats d = f_mul(d_w, f_set(d_a[t * d_stride]));
        f_store(to, f_fma(f_from_ints(sum), d, f_load(to)));
      });
    });
  }
}

// Words of the columns 4k + 2h and 4k + 2h + 1 (h = 0, 1) of both groups of a pair. Unaligned loads
// move a lane by one; shifts would have to share the ports of the lookups.
template <int H>
BANTAM_INLINE Bytes pair_words(const std::byte* a, const std::byte* b) {
  constexpr __mmask32 odd = 0xaaaaaaaa;
  return _mm512_mask_loadu_epi16(b_load(a + 2 * H), odd, b + 2 * H - 2);
}

// One weight block (128 columns) of four groups times T rows of activations; y[T][4][16] in and
// out.
template <int T, int Block, int Planes>
BANTAM_INLINE void five_block(const std::byte* const* blocks, const std::byte* tables,
                              const float* d_a, int64_t d_stride, float* y) {
  FiveSums<T * Planes> sums;
  Bytes last[kFivePairs];
  const auto look_up = [&](const Bytes* index) __attribute__((always_inline)) {
    sums.look_up(index, tables);
    tables += T * Planes * 64;
  };
  for (int p = 0; p < kFivePairs; ++p) last[p] = i_zero();
  sums.clear();
#pragma GCC unroll 1
  for (int w = 0; w < 4; ++w) {
    unrolled<2>([&](auto half) __attribute__((always_inline)) {
      Bytes index[kFivePairs];
      for (int p = 0; p < kFivePairs; ++p) {
        index[p] =
            pair_words<decltype(half)::value>(blocks[2 * p] + 64 * w, blocks[2 * p + 1] + 64 * w);
        last[p] = _mm512_shldi_epi16(last[p], index[p], 1);
      }
      look_up(index);
      for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < kFivePairs; ++p) index[p] = _mm512_srli_epi16(index[p], 5);
        look_up(index);
      }
    });
    if constexpr (Block == 32) {
      // Older bits 15 remain, and find what is the same for all their values.
      look_up(last);
      end_fives<T, Planes>(sums, blocks, d_a + w, d_stride, y);
      sums.clear();
    }
  }
  if constexpr (Block == 128) {
    look_up(last);
    for (int p = 0; p < kFivePairs; ++p) last[p] = _mm512_srli_epi16(last[p], 5);
    look_up(last);
    end_fives<T, Planes>(sums, blocks, d_a, d_stride, y);
  }
}

struct FivePass {
  int begin, end;  // groups, at most kPassGroups
  int t0;          // first activation row of the tile
};

// Column blocks outside: the tables of one (13 KiB for 8 rows) are built here, by each thread for
// itself, and stay in L1 while the groups go by. Shared ones, built once for all threads, cost more
// on the way between the cores: 10 % of the products
// of 1.7B instead of 4 % for 128 groups and 8 % for 64 (Zen 4, 2 threads).
template <int T, int Block, int Planes>
inline void five_rows(const MatmulArgs& args, const FivePass& pass) {
  const ActRows& a = args.a;
  const int n = a.n_cols, n_fours = (pass.end - pass.begin + kFiveGroups - 1) / kFiveGroups;
  const int64_t group_bytes = int64_t{n} / 128 * 288, d_stride = n / Block;
  const float* d = a.d + pass.t0 * d_stride;
  alignas(64) std::byte tables[FiveOrder<Block>::n_tables * T * Planes * 64];
  alignas(64) float y[kPassGroups / kFiveGroups][T * 64];
  for (int i = 0; i < n_fours; ++i) {
    for (int k = 0; k < T * 4; ++k) f_store(y[i] + 16 * k, f_zero());
  }
  for (int c = 0; c < n; c += 128, d += 128 / Block) {
    for (int t = 0; t < T; ++t) {
      const int64_t at = int64_t{pass.t0 + t} * n + c;
      build_fives<Block>(a.q + at, tables + t * Planes * 64, T * Planes * 64);
      if (Planes == 2) build_fives<Block>(a.low + at, tables + (2 * t + 1) * 64, T * Planes * 64);
    }
    const std::byte* column = args.w->data + pass.begin * group_bytes + c / 128 * 288;
    for (int i = 0; i < n_fours; ++i) {
      // Groups that are not there repeat the last one; nobody reads their sums.
      const std::byte* blocks[kFiveGroups];
      for (int k = 0; k < kFiveGroups; ++k) {
        const int g = i * kFiveGroups + k, most = pass.end - pass.begin - 1;
        blocks[k] = column + (g < most ? g : most) * group_bytes;
        // The next four groups; after the last ones the next columns of the first.
        request(i + 1 < n_fours ? blocks[k] + kFiveGroups * group_bytes
                                : column + 288 + k * group_bytes);
      }
      five_block<T, Block, Planes>(blocks, tables, d, d_stride, y[i]);
    }
  }
  for (int g = pass.begin; g < pass.end; ++g) {
    const float* from = y[(g - pass.begin) / kFiveGroups] + (g - pass.begin) % kFiveGroups * 16;
    for (int t = 0; t < T; ++t) store_rows(args, g, pass.t0 + t, f_load(from + 64 * t));
  }
}

template <int Block, int Planes>
inline void five_product(const MatmulArgs& args) {
  const int n_rows = args.a.n_rows;
  for (int g = args.group_begin; g < args.group_end; g += kPassGroups) {
    FivePass pass{g, args.group_end - g < kPassGroups ? args.group_end : g + kPassGroups, 0};
    constexpr int most = kFiveTables / Planes;
    for (; pass.t0 + most <= n_rows; pass.t0 += most) five_rows<most, Block, Planes>(args, pass);
    const int rest = n_rows - pass.t0;
    if constexpr (most > 4) {
      if ((rest & 4) != 0) five_rows<4, Block, Planes>(args, pass), pass.t0 += 4;
    }
    if ((rest & 2) != 0) five_rows<2, Block, Planes>(args, pass), pass.t0 += 2;
    if ((rest & 1) != 0) five_rows<1, Block, Planes>(args, pass);
  }
}

void matmul_fives(const MatmulArgs& args) {
  const ActRows& a = args.a;
  if (a.low == nullptr) {
    return a.block == 128 ? five_product<128, 1>(args) : five_product<32, 1>(args);
  }
  return a.block == 128 ? five_product<128, 2>(args) : five_product<32, 2>(args);
}

// Every thread builds the tables for its groups itself, which takes as long as 5 groups: many must
// share that work. From 8 groups a thread on it is worth it (1.16 times the speed of products, 64
// groups 1.73 times; Zen 4, 8 rows of activations).
constexpr SeveralRows kFiveRows{ActOrder::plain, 8, 2, 2, 64, 256};

void matmul_q1_0_avx512(const MatmulArgs& args) {
  if (args.a.tables != nullptr) return matmul_quads(args);
  args.a.order == ActOrder::plain ? matmul_fives(args) : matmul_simd<SimdQ1_0, 128>(args);
}

// Zen 4 looks sums up faster than it multiplies (a VPERMW and a VPADDW in 1.14 cycles, a VPDPBUSD
// in 1; the lookups do 2.5 times the work); by its pipes Zen 5 should too, not measured. Intel has
// one port for VPERMW and two for VPDPBUSD, so several rows are better multiplied there. A single
// row: Zen 4 is faster with one stream, 1.7B 95 tok/s, with four 79 (streams_avx512.inl), which
// Intel needs. Both kernels are in the table everywhere, for the tests. Pages of KV in four streams
// are no gain on Zen 4: 1.7B at depth 16,384, in one and in four, medians of 9, q8_0 22.4, 20.5,
// q4_0 34.9, 31.8, q5_1 27.2, 28.5, f16 13.1, 13.4 tok/s.
void fill_tables_avx512(Kernels& table) {
  WeightKernels& q1_0 = table.weight[static_cast<int>(WeightType::q1_0)];
  q1_0.matmul = matmul_q1_0_avx512;
  const bool amd = __builtin_cpu_is("amd") != 0;
  q1_0.tables = true;
  q1_0.orders |= order_bit(ActOrder::plain);
  if (amd) {
    q1_0.several = kFiveRows;
    ahead.bytes = 2048;
    turned = {48, 256};
  }
  q1_0.matmul_four = matmul_q1_0_four;
  q1_0.by_four = !amd;
  table.kv_streams = !amd;
  table.build_tables = build_tables_avx512;
}

}  // namespace
}  // namespace bantam
