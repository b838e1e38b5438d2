// Products of 1-bit weights by looking sums up, for AVX2 without a dot instruction (kernels.h,
// table_bytes): VPSHUFB finds 32 sums of four activations by four weight bits, 128 multiply-adds
// for each pair of lookups. Each half of a VPSHUFB has one table of 16 entries, here the same, so
// all bytes of an index must be of the same four columns: two groups of 16 rows are taken apart by
// the places of their bytes first. Exact, and the bits of weights_scalar.inl: sums are kept whole
// in planes of bytes. The idea of tables is T-MAC's (arXiv 2407.00088).
//
// Zen 3 (3.24 GHz, one thread, 2,048 columns, weights in L2), multiply-adds a cycle, best of many,
// VPMADDUBSW -> lookups: one row 27 -> 40, 8 rows 38 -> 63, 64 rows 27 -> 64; blocks of 32: 19 ->
// 33, 23 -> 48, 24 -> 48. For 32 rows x 32 columns of one row 20 cycles are needed where nothing
// else is done, 5 of them to take the words apart; of several rows 10 and the ends.
#pragma once

#include "cpu/weights_simd.inl"

namespace bantam {
namespace {

// ---- building

// The signs of entries 4i to 4i + 3 in both halves, a byte for each of their four activations.
// Horizontal sums of pairs 0, 1 and of 2, 3 then leave the entries in order.
BANTAM_INLINE Quad entry_signs(int i) {
  alignas(32) int8_t signs[32];
  for (int k = 0; k < 16; ++k) {
    signs[k] = signs[16 + k] = ((4 * i + k / 4) >> k % 4 & 1) != 0 ? 1 : -1;
  }
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(signs));
}

struct EntrySigns {
  Quad signs[4];
  Quad correction[2];  // -128 times the sum of the signs of entries 8i to 8i + 7

  BANTAM_INLINE EntrySigns() {
    const Quad all = _mm256_set1_epi8(-128);
    for (int i = 0; i < 4; ++i) signs[i] = entry_signs(i);
    for (int i = 0; i < 2; ++i) {
      correction[i] = _mm256_sub_epi16(_mm256_setzero_si256(), sums(i, all));
    }
  }
  // Entries 8i to 8i + 7 of the quads of unsigned bytes in both halves.
  BANTAM_INLINE Quad sums(int i, Quad x) const {
    return _mm256_hadd_epi16(_mm256_maddubs_epi16(x, signs[2 * i]),
                             _mm256_maddubs_epi16(x, signs[2 * i + 1]));
  }
};

// The sums of places c (low half) and c + 1: sums[i] has entries 8i to 8i + 7, words.
BANTAM_INLINE void place_sums(const int8_t* x16, int c, const EntrySigns& entries, Quad* sums) {
  // VPMADDUBSW wants the activations unsigned: + 128, which the correction takes back.
  const Quad x =
      _mm256_xor_si256(_mm256_broadcastsi128_si256(load_16(x16)), _mm256_set1_epi8(-128));
  const __m256i first = _mm256_setr_epi32(0x0c080400, 0x0c080400, 0x0c080400, 0x0c080400,
                                          0x0d090501, 0x0d090501, 0x0d090501, 0x0d090501);
  const Quad quads = _mm256_shuffle_epi8(x, _mm256_add_epi8(first, _mm256_set1_epi8(char(c))));
  for (int i = 0; i < 2; ++i) {
    sums[i] = _mm256_add_epi16(entries.sums(i, quads), entries.correction[i]);
  }
}

BANTAM_INLINE void store_entries(std::byte* to, Quad bytes) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
}

// High: what the high plane's entries are above its int8.
template <int High>
BANTAM_INLINE void build_narrow(const int8_t* q, int n, std::byte* tables) {
  const EntrySigns entries;
  const Quad low = _mm256_set1_epi16(31), high = _mm256_set1_epi8(High);
  for (int at = 0; at < n; at += 16, tables += 128) {
    for (int c = 0; c < 4; c += 2) {
      Quad s[2];
      place_sums(q + at, c, entries, s);
      store_entries(tables + 16 * c,
                    _mm256_packus_epi16(_mm256_and_si256(s[0], low), _mm256_and_si256(s[1], low)));
      const Quad upper = _mm256_packs_epi16(_mm256_srai_epi16(s[0], 5), _mm256_srai_epi16(s[1], 5));
      store_entries(tables + 64 + 16 * c, _mm256_add_epi8(upper, high));
    }
  }
}

// 256 is a multiple of 64: the low six bits are those of the low parts' sum.
template <int High>
BANTAM_INLINE void build_wide(const int8_t* q, const int8_t* low, int n, std::byte* tables) {
  const EntrySigns entries;
  const Quad mask = _mm256_set1_epi16(63), above = _mm256_set1_epi8(High);
  for (int at = 0; at < n; at += 16, tables += 192) {
    for (int c = 0; c < 4; c += 2) {
      Quad s[2], fine[2], low_bits[2], middle[2], high[2];
      place_sums(q + at, c, entries, s);
      place_sums(low + at, c, entries, fine);
      for (int i = 0; i < 2; ++i) {
        low_bits[i] = _mm256_and_si256(fine[i], mask);
        const Quad rest =
            _mm256_add_epi16(_mm256_slli_epi16(s[i], 2), _mm256_srai_epi16(fine[i], 6));
        middle[i] = _mm256_and_si256(rest, mask);
        high[i] = _mm256_srai_epi16(rest, 6);
      }
      store_entries(tables + 16 * c, _mm256_packus_epi16(low_bits[0], low_bits[1]));
      store_entries(tables + 64 + 16 * c, _mm256_packus_epi16(middle[0], middle[1]));
      store_entries(tables + 128 + 16 * c,
                    _mm256_add_epi8(_mm256_packs_epi16(high[0], high[1]), above));
    }
  }
}

void build_tables_avx2(const int8_t* q, const int8_t* low, int n, std::byte* tables) {
  low == nullptr ? build_narrow<0>(q, n, tables) : build_wide<0>(q, low, n, tables);
}

// ---- indices

// A word (64 bytes) of each of two groups by the places of its bytes. In each half of place[c]:
// row r of the first group, row r of the second, for r = 0 to 3, then 8 to 11 (upper half: + 4).
BANTAM_INLINE void by_places(const std::byte* a, const std::byte* b, Quad* place) {
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  Quad low[2], high[2];  // places 0, 1 and 2, 3 of rows 0 to 7 and 8 to 15
  for (int i = 0; i < 2; ++i) {
    const Quad x = _mm256_shuffle_epi8(b_load(a).v[i], order);
    const Quad y = _mm256_shuffle_epi8(b_load(b).v[i], order);
    low[i] = _mm256_unpacklo_epi8(x, y);
    high[i] = _mm256_unpackhi_epi8(x, y);
  }
  place[0] = _mm256_unpacklo_epi64(low[0], low[1]);
  place[1] = _mm256_unpackhi_epi64(low[0], low[1]);
  place[2] = _mm256_unpacklo_epi64(high[0], high[1]);
  place[3] = _mm256_unpackhi_epi64(high[0], high[1]);
}

BANTAM_INLINE Quad load_table(const std::byte* entries) {
  return _mm256_broadcastsi128_si256(load_16(entries));
}

// ---- sums

// The sums of 32 rows: those of two groups in turn, rows 0 to 7 in half 0 and 8 to 15 in half 1.
// Planes of bytes are added up to so many lookups, then to words. The high plane is unsigned from
// 128 on: what its bytes start from (decode), or its tables are above (several rows).

// Bytes of two planes to words: low + by * high.
BANTAM_INLINE void add_words(Quad low, Quad high, int by, Quad* half) {
  const Quad factor = _mm256_set1_epi16(static_cast<int16_t>(1 | by << 8));
  half[0] =
      _mm256_add_epi16(half[0], _mm256_maddubs_epi16(_mm256_unpacklo_epi8(low, high), factor));
  half[1] =
      _mm256_add_epi16(half[1], _mm256_maddubs_epi16(_mm256_unpackhi_epi8(low, high), factor));
}

// Lanes of group g.
BANTAM_INLINE Ints group_lanes(const Quad* half, int g, int by) {
  const Quad factor = _mm256_set1_epi32(g == 0 ? by : by << 16);
  return {{_mm256_madd_epi16(half[0], factor), _mm256_madd_epi16(half[1], factor)}};
}

// Two planes of 5 bits: 8 x 31 < 256, and 8 x -16 = -128. The words of 128 columns wrap around on
// their way and come out right, for without what the high plane is above they fit.
struct NarrowSums {
  static constexpr int planes = 2, lookups = 8, above = 16;
  Quad plane[2];
  Quad half[2];

  template <int Words>
  BANTAM_INLINE void clear() {
    half[0] = half[1] = _mm256_set1_epi16(-32 * 128 * Words);
  }
  BANTAM_INLINE void flush(int) { add_words(plane[0], plane[1], 32, half); }
  BANTAM_INLINE Ints sum(int g) const { return group_lanes(half, g, 1); }
};

// Three of 6 bits: 4 x 63 < 256, and 4 x -32 = -128. Words hold the low two planes of 32 columns.
struct WideSums {
  static constexpr int planes = 3, lookups = 4, above = 32;
  Quad plane[3];
  Quad half[2], high[2];
  Ints total[2];  // of each group

  template <int Words>
  BANTAM_INLINE void clear() {
    for (int i = 0; i < 2; ++i) {
      half[i] = _mm256_setzero_si256();
      high[i] = _mm256_set1_epi16(-128 * 2 * Words);
      total[i] = i_zero();
    }
  }
  BANTAM_INLINE void flush(int step) {
    add_words(plane[0], plane[1], 64, half);
    const Quad none = _mm256_setzero_si256();
    high[0] = _mm256_add_epi16(high[0], _mm256_unpacklo_epi8(plane[2], none));
    high[1] = _mm256_add_epi16(high[1], _mm256_unpackhi_epi8(plane[2], none));
    if (step < 7) return;
    for (int g = 0; g < 2; ++g) total[g] = i_add(total[g], group_lanes(half, g, 1));
    half[0] = half[1] = none;
  }
  BANTAM_INLINE Ints sum(int g) const { return i_add(total[g], group_lanes(high, g, 4096)); }
};

// Finds the sums of one table, of which `step` are behind; start: of the high plane.
template <class Sums>
BANTAM_INLINE void look_up(Sums& sums, int step, Quad index, const std::byte* table, Quad start) {
  for (int p = 0; p < Sums::planes; ++p) {
    Quad found = _mm256_shuffle_epi8(load_table(table + 64 * p), index);
    if (step % Sums::lookups != 0) {
      found = _mm256_add_epi8(sums.plane[p], found);
    } else if (p + 1 == Sums::planes) {
      found = _mm256_add_epi8(start, found);
    }
    sums.plane[p] = found;
  }
}

// Where the table of a step of a word (32 columns: low half bytes of four places, high ones) lies.
template <class Sums>
constexpr int table_at(int step) {
  return (step / 4 * 4 * Sums::planes + step % 4) * 16;
}

template <class Sums>
BANTAM_INLINE void end_row(const Sums& sums, const Floats* d_w, float d_a, Floats* y) {
  for (int g = 0; g < 2; ++g) {
    y[g] = f_fma(f_from_ints(sums.sum(g)), f_mul(d_w[g], f_set(d_a)), y[g]);
  }
}

// ---- one row of activations

// What lies so far behind the pair that comes next is asked for, both streams of it as one.
constexpr int kLookAhead = 4096;

BANTAM_INLINE void request(const std::byte* block) {
  for (int i = 0; i < 288; i += 64) __builtin_prefetch(block + i, 0, kPrefetchLevel);
}

// One weight block (128 columns) of two groups; y[2] in and out.
template <class Sums, int Block>
BANTAM_INLINE void table_block(const std::byte* const* blocks, const std::byte* tables,
                               const float* d_a, Floats* y) {
  const Quad nibble = _mm256_set1_epi8(15), start = _mm256_set1_epi8(-128);
  const std::byte *a = blocks[0], *b = blocks[1];
  const Floats d_w[2] = {f_halves(a + 256), f_halves(b + 256)};
  Sums sums;
  if (Block == 128) sums.template clear<4>();
#pragma GCC unroll 1
  for (int w = 0; w < 4; ++w) {  // 32 columns
    if (Block == 32) sums.template clear<1>();
    Quad place[4];
    by_places(a, b, place);
    BANTAM_EACH_QUAD(i) {
      const Quad bits = i < 4 ? place[i % 4] : _mm256_srli_epi16(place[i % 4], 4);
      look_up(sums, i, _mm256_and_si256(bits, nibble), tables + table_at<Sums>(i), start);
      if (i % Sums::lookups == Sums::lookups - 1) sums.flush(i);
    }
    if (Block == 32) end_row(sums, d_w, d_a[w], y);
    a += 64, b += 64, tables += 128 * Sums::planes;
  }
  if (Block == 128) end_row(sums, d_w, *d_a, y);
}

template <class Sums, int Block>
inline void table_row(const MatmulArgs& args) {
  const ActRows& a = args.a;
  const int n_blocks = a.n_cols / 128;
  const int64_t bytes = int64_t{n_blocks} * 288;
  for (int g = args.group_begin; g < args.group_end; g += 2) {
    // A last group without a second one is its own.
    const bool both = g + 1 < args.group_end;
    const std::byte* first = args.w->data + g * bytes;
    const std::byte* blocks[2] = {first, both ? first + bytes : first};
    const std::byte* tables = a.tables;
    const float* d = a.d;
    Floats y[2] = {f_zero(), f_zero()};
    for (int b = 0; b < n_blocks; ++b) {
      for (int k = 0; k < 2; ++k) request(first + 2 * bytes + (2 * b + k) * 288 + kLookAhead);
      table_block<Sums, Block>(blocks, tables, d, y);
      blocks[0] += 288;
      blocks[1] += 288;
      tables += 512 * Sums::planes;
      d += 128 / Block;
    }
    store_rows(args, g, 0, y[0]);
    if (both) store_rows(args, g + 1, 0, y[1]);
  }
}

// ---- several rows of activations

// Pairs of groups that share each table, and rows of activations that share each index: the
// planes of their sums stay in registers.
constexpr int kLookPairs = 2;
constexpr int kLookGroups = 2 * kLookPairs;
template <class Sums>
constexpr int kLookTogether = Sums::planes == 2 ? 2 : 1;
// Rows whose tables of 128 columns (1 KiB, --act i16 1.5 KiB) stay in L1 while the groups of a pass
// go by; and groups of a pass, whose sums (64 KiB) lie on the stack.
constexpr int kLookRows = 16;
constexpr int kLookPass = 64;

// Four groups of one weight block: their indices in the order of the lookups, and scales.
struct LookBlock {
  alignas(32) Quad index[32][kLookPairs];
  Floats d_w[kLookGroups];

  BANTAM_INLINE explicit LookBlock(const std::byte* const* blocks) {
    const Quad nibble = _mm256_set1_epi8(15);
    for (int p = 0; p < kLookPairs; ++p) {
      for (int w = 0; w < 4; ++w) {
        Quad place[4];
        by_places(blocks[2 * p] + 64 * w, blocks[2 * p + 1] + 64 * w, place);
        for (int c = 0; c < 4; ++c) {
          index[8 * w + c][p] = _mm256_and_si256(place[c], nibble);
          index[8 * w + 4 + c][p] = _mm256_and_si256(_mm256_srli_epi16(place[c], 4), nibble);
        }
      }
    }
    for (int g = 0; g < kLookGroups; ++g) d_w[g] = f_halves(blocks[g] + 256);
  }
};

// R rows of activations times four groups; y[R][4][16] in and out. tables: of 128 columns, one row
// after the other.
template <class Sums, int Block, int R>
inline void look_rows(const LookBlock& block, const std::byte* tables, const float* d_a,
                      int64_t d_stride, float* y) {
  const Quad none = _mm256_setzero_si256();
  Sums sums[R][kLookPairs];
  const auto end = [&](int at) __attribute__((always_inline)) {
    for (int r = 0; r < R; ++r) {
      for (int p = 0; p < kLookPairs; ++p) {
        float* to = y + (kLookGroups * r + 2 * p) * 16;
        Floats both[2] = {f_load(to), f_load(to + 16)};
        end_row(sums[r][p], block.d_w + 2 * p, d_a[r * d_stride + at], both);
        f_store(to, both[0]);
        f_store(to + 16, both[1]);
      }
    }
  };
  const auto clear = [&]() __attribute__((always_inline)) {
    for (int r = 0; r < R; ++r) {
      for (int p = 0; p < kLookPairs; ++p) sums[r][p].template clear<Block / 32>();
    }
  };
  clear();
#pragma GCC unroll 1
  for (int w = 0; w < 4; ++w, tables += 128 * Sums::planes) {
    if (Block == 32 && w > 0) clear();
    BANTAM_EACH_QUAD(i) {
      const Quad* index = block.index[8 * w + i];
      for (int r = 0; r < R; ++r) {
        const std::byte* table = tables + r * 512 * Sums::planes + table_at<Sums>(i);
        for (int p = 0; p < kLookPairs; ++p) {
          look_up(sums[r][p], i, index[p], table, none);
          // Keeps the compiler from adding up lookups first, for which there are no registers.
          for (int k = 0; k < Sums::planes; ++k) asm("" : "+x"(sums[r][p].plane[k]));
          if (i % Sums::lookups == Sums::lookups - 1) sums[r][p].flush(i);
        }
      }
    }
    if (Block == 32) end(w);
  }
  if (Block == 128) end(0);
}

struct LookPass {
  int begin, end;  // groups, at most kLookPass
  int t0, n_rows;  // activation rows, at most kLookRows
};

// Column blocks outside: every thread builds the tables of one for itself.
template <class Sums, int Block>
inline void look_pass(const MatmulArgs& args, const LookPass& pass) {
  const ActRows& a = args.a;
  const int n = a.n_cols, n_fours = (pass.end - pass.begin + kLookGroups - 1) / kLookGroups;
  const int64_t group_bytes = int64_t{n} / 128 * 288, d_stride = n / Block;
  const float* d = a.d + pass.t0 * d_stride;
  constexpr int table_size = 512 * Sums::planes, together = kLookTogether<Sums>;
  alignas(64) std::byte tables[kLookRows * table_size];
  alignas(64) float y[kLookPass / kLookGroups][kLookRows * kLookGroups * 16];
  for (int i = 0; i < n_fours; ++i) {
    for (int k = 0; k < pass.n_rows * kLookGroups; ++k) f_store(y[i] + 16 * k, f_zero());
  }
  for (int c = 0; c < n; c += 128, d += 128 / Block) {
    for (int t = 0; t < pass.n_rows; ++t) {
      const int64_t at = int64_t{pass.t0 + t} * n + c;
      std::byte* to = tables + t * table_size;
      if constexpr (Sums::planes == 2) build_narrow<Sums::above>(a.q + at, 128, to);
      if constexpr (Sums::planes == 3) build_wide<Sums::above>(a.q + at, a.low + at, 128, to);
    }
    const std::byte* column = args.w->data + pass.begin * group_bytes + c / 128 * 288;
    for (int i = 0; i < n_fours; ++i) {
      // Groups that are not there repeat the last one; nobody reads their sums.
      const std::byte* blocks[kLookGroups];
      for (int k = 0; k < kLookGroups; ++k) {
        const int g = i * kLookGroups + k, most = pass.end - pass.begin - 1;
        blocks[k] = column + (g < most ? g : most) * group_bytes;
        // The next four groups; after the last ones the next columns of the first.
        request(i + 1 < n_fours ? blocks[k] + kLookGroups * group_bytes
                                : column + 288 + k * group_bytes);
      }
      const LookBlock block(blocks);
      int t = 0;
      for (; t + together <= pass.n_rows; t += together) {
        look_rows<Sums, Block, together>(block, tables + t * table_size, d + t * d_stride, d_stride,
                                         y[i] + t * kLookGroups * 16);
      }
      if (t < pass.n_rows) {
        look_rows<Sums, Block, 1>(block, tables + t * table_size, d + t * d_stride, d_stride,
                                  y[i] + t * kLookGroups * 16);
      }
    }
  }
  for (int g = pass.begin; g < pass.end; ++g) {
    const int k = g - pass.begin;
    const float* from = y[k / kLookGroups] + k % kLookGroups * 16;
    for (int t = 0; t < pass.n_rows; ++t) {
      store_rows(args, g, pass.t0 + t, f_load(from + t * kLookGroups * 16));
    }
  }
}

template <class Sums, int Block>
inline void look_product(const MatmulArgs& args) {
  const int n_rows = args.a.n_rows;
  for (int g = args.group_begin; g < args.group_end; g += kLookPass) {
    LookPass pass{g, args.group_end - g < kLookPass ? args.group_end : g + kLookPass, 0, 0};
    for (; pass.t0 < n_rows; pass.t0 += pass.n_rows) {
      const int left = n_rows - pass.t0;
      pass.n_rows = left < kLookRows ? left : kLookRows;
      look_pass<Sums, Block>(args, pass);
    }
  }
}

template <class Sums>
void matmul_looked_up(const MatmulArgs& args) {
  const bool whole = args.a.block == 128;
  if (args.a.tables != nullptr) {
    return whole ? table_row<Sums, 128>(args) : table_row<Sums, 32>(args);
  }
  whole ? look_product<Sums, 128>(args) : look_product<Sums, 32>(args);
}

void matmul_q1_0_avx2(const MatmulArgs& args) {
  const ActRows& a = args.a;
  if (a.tables == nullptr && a.order == ActOrder::panels) return matmul_simd<SimdQ1_0, 128>(args);
  const bool wide = a.tables != nullptr ? a.planes == 3 : a.low != nullptr;
  wide ? matmul_looked_up<WideSums>(args) : matmul_looked_up<NarrowSums>(args);
}

// Every thread builds the tables for its groups itself, as long as 3 to 4 groups take. Zen 3,
// blocks of 128, 2 and 8 rows, best of 60: 4 groups 0.9 and 1.0 times the speed of products, 8
// groups 1.1 and 1.2, 64 groups 1.5 and 1.7; blocks of 32 gain from 4 groups on. Of
// --act i16 only 16 and 64 rows were timed.
constexpr SeveralRows kLookUps{ActOrder::plain, 8, 2, 2, 64, 256};

void fill_tables_avx2(Kernels& table) {
  WeightKernels& q1_0 = table.weight[static_cast<int>(WeightType::q1_0)];
  q1_0.matmul = matmul_q1_0_avx2;
  q1_0.matmul_four = matmul_each<matmul_q1_0_avx2>;
  q1_0.tables = true;
  q1_0.several = kLookUps;
  q1_0.orders |= order_bit(ActOrder::plain);
  table.build_tables = build_tables_avx2;
}

}  // namespace
}  // namespace bantam
