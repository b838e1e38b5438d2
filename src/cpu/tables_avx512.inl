// Products of 1-bit weights with one row of activations by looking sums up (kernels.h,
// table_bytes): VPERMB finds 64 sums of four activations at once, 256 multiply-adds for each pair
// of lookups, where VPDPBUSD does 64. Several rows: fives_avx512.inl.
// The idea of tables is T-MAC's (arXiv 2407.00088); these are exact: every sum is kept whole, in
// planes of bytes that are added up to eight (i16: four) times before they could overflow. Bits as
// weights_scalar.inl.
//
// Lookups and byte additions for 2048 weights: 16 + 14, and 2 dot products. Measured on a Zen 4
// (3.7 GHz, one thread, data in L2): 37 GB/s of weights where bits expanded for VPDPBUSD reach 16.
#pragma once

#include "cpu/weights_simd.inl"

namespace bantam {
namespace {

// ---- building

// Byte c of lane k to byte k of lane c: the quads that share a place in their four columns.
BANTAM_INLINE Bytes columns_by_place(const int8_t* x16) {
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x16));
  // VPDPBUSD wants the activations unsigned here: + 128, which sign_correction takes back.
  const __m128i places = _mm_shuffle_epi8(_mm_xor_si128(x, _mm_set1_epi8(-128)), order);
  return _mm512_broadcast_i32x4(places);
}

// Lane i: the signs of entry i as +-1 bytes, and -128 times their sum.
struct EntrySigns {
  Bytes signs;
  Ints correction;

  BANTAM_INLINE EntrySigns() {
    alignas(64) int8_t sign[64];
    alignas(64) int32_t sum[16];
    for (int i = 0; i < 16; ++i) {
      sum[i] = 0;
      for (int k = 0; k < 4; ++k) {
        sign[4 * i + k] = (i >> k & 1) != 0 ? 1 : -1;
        sum[i] -= 128 * sign[4 * i + k];
      }
    }
    signs = _mm512_load_si512(sign);
    correction = _mm512_load_si512(sum);
  }
};

// The 16 sums of each place: sums[c] lane i.
BANTAM_INLINE void table_sums(const int8_t* x16, const EntrySigns& entries, Ints* sums) {
  const Bytes places = columns_by_place(x16);
  sums[0] = _mm512_dpbusd_epi32(entries.correction, _mm512_shuffle_epi32(places, _MM_PERM_AAAA),
                                entries.signs);
  sums[1] = _mm512_dpbusd_epi32(entries.correction, _mm512_shuffle_epi32(places, _MM_PERM_BBBB),
                                entries.signs);
  sums[2] = _mm512_dpbusd_epi32(entries.correction, _mm512_shuffle_epi32(places, _MM_PERM_CCCC),
                                entries.signs);
  sums[3] = _mm512_dpbusd_epi32(entries.correction, _mm512_shuffle_epi32(places, _MM_PERM_DDDD),
                                entries.signs);
}

// Four vectors of int32 that fit int8 (or, Unsigned, uint8) to 64 bytes: entry 16c + i.
template <bool Unsigned>
BANTAM_INLINE Bytes entry_bytes(Bytes low_words, Bytes high_words) {
  const Bytes bytes = Unsigned ? _mm512_packus_epi16(low_words, high_words)
                               : _mm512_packs_epi16(low_words, high_words);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, bytes);
}

void build_tables_narrow(const int8_t* q, int n, std::byte* tables) {
  const EntrySigns entries;
  const Bytes low = _mm512_set1_epi16(31);
  for (int at = 0; at < n; at += 16, tables += 128) {
    Ints sum[4];
    table_sums(q + at, entries, sum);
    const Bytes a = _mm512_packs_epi32(sum[0], sum[1]), b = _mm512_packs_epi32(sum[2], sum[3]);
    _mm512_storeu_si512(tables,
                        entry_bytes<true>(_mm512_and_si512(a, low), _mm512_and_si512(b, low)));
    _mm512_storeu_si512(tables + 64,
                        entry_bytes<false>(_mm512_srai_epi16(a, 5), _mm512_srai_epi16(b, 5)));
  }
}

void build_tables_wide(const int8_t* q, const int8_t* low, int n, std::byte* tables) {
  const EntrySigns entries;
  const Ints mask = i_set(63);
  for (int at = 0; at < n; at += 16, tables += 192) {
    Ints sum[4], fine[4];
    table_sums(q + at, entries, sum);
    table_sums(low + at, entries, fine);
    for (int c = 0; c < 4; ++c) sum[c] = i_add(i_shift_left<8>(sum[c]), fine[c]);
    for (int p = 0; p < 3; ++p) {
      Ints part[4];
      for (int c = 0; c < 4; ++c) {
        part[c] = p == 2 ? sum[c] : i_and(sum[c], mask);
        sum[c] = i_shift_right<6>(sum[c]);
      }
      const Bytes a = _mm512_packs_epi32(part[0], part[1]),
                  b = _mm512_packs_epi32(part[2], part[3]);
      _mm512_storeu_si512(tables + 64 * p,
                          p == 2 ? entry_bytes<false>(a, b) : entry_bytes<true>(a, b));
    }
  }
}

void build_tables_avx512(const int8_t* q, const int8_t* low, int n, std::byte* tables) {
  if (low == nullptr) return build_tables_narrow(q, n, tables);
  build_tables_wide(q, low, n, tables);
}

// ---- products

// Tables that stay in L1 (32 KiB and more) beside the stream of weights. With those of one row in
// L2 the prefetchers follow the tables instead: 8.5 GB/s of weights for 6144 columns, one thread.
constexpr int kTableL1 = 16 << 10;
// Lookups that a plane of bytes can add before it overflows: 8 x 31 < 256, 8 x -16 = -128 with 5
// bits; 4 x 63 < 256, 4 x -32 = -128 with 6.
template <int Planes>
constexpr int kTableLookups = Planes == 2 ? 8 : 4;

// Byte sums of one activation row on their way to int32.
template <int Planes>
struct TableSums {
  Bytes plane[Planes];
  Ints low, high;  // sum = low + 64 * high for three planes

  template <bool First>
  BANTAM_INLINE void look_up(Bytes index, const Bytes* table) {
    for (int p = 0; p < Planes; ++p) {
      const Bytes found = _mm512_permutexvar_epi8(index, table[p]);
      plane[p] = First ? found : _mm512_add_epi8(plane[p], found);
    }
  }
  template <bool First>
  BANTAM_INLINE void look_up(Bytes index, const std::byte* table) {
    Bytes loaded[Planes];
    for (int p = 0; p < Planes; ++p) loaded[p] = b_load(table + 64 * p);
    look_up<First>(index, loaded);
  }
  template <bool First>
  BANTAM_INLINE void flush() {
    const Ints start = First ? i_zero() : low;
    low = _mm512_dpbusd_epi32(start, plane[0], b_set(1));
    if constexpr (Planes == 2) {
      low = _mm512_dpbusd_epi32(low, b_set(32), plane[1]);
    } else {
      low = _mm512_dpbusd_epi32(low, plane[1], b_set(64));
      high = _mm512_dpbusd_epi32(First ? i_zero() : high, b_set(64), plane[2]);
    }
  }
  BANTAM_INLINE Ints sum() const { return Planes == 2 ? low : i_add(low, i_shift_left<6>(high)); }
};

// One weight block (128 columns) of 16 rows; y in and out.
template <int Block, int Planes>
BANTAM_INLINE void table_block(const std::byte* block, const std::byte* tables, const float* d_a,
                               Floats& y) {
  constexpr int most = Block / 16 < kTableLookups<Planes> ? Block / 16 : kTableLookups<Planes>;
  const Bytes nibble = b_set(15), place = i_set(0x30201000);
  Bytes words[4];
  for (int i = 0; i < 4; ++i) words[i] = b_load(block + 64 * i);
  // The bytes of a stream must be asked for in their order: with the scale first Zen 4 reads 17
  // GB/s on one thread, with it last 28.
  asm volatile("" ::: "memory");
  const Floats d_w = f_halves(block + 256);
  TableSums<Planes> sums;
  unrolled<8>([&](auto step) __attribute__((always_inline)) {
    constexpr int j = decltype(step)::value;  // 16 columns
    // Bits 6 and 7 of an index are ignored: only the neighbour's bits must be cleared.
    const Bytes bits = j % 2 == 0 ? words[j / 2] : _mm512_srli_epi16(words[j / 2], 4);
    const Bytes index = _mm512_ternarylogic_epi32(bits, nibble, place, 0xea);
    sums.template look_up<j % most == 0>(index, tables + j * 64 * Planes);
    if constexpr (j % most == most - 1) sums.template flush<j % (Block / 16) == most - 1>();
    if constexpr (j % (Block / 16) == Block / 16 - 1) {
      y = f_fma(f_from_ints(sums.sum()), f_mul(d_w, f_set(d_a[j * 16 / Block])), y);
    }
  });
}

// Asks for the cache lines of a block. 1.7B tg128 on a Zen 4, long streams, read bandwidth 66 to 69
// GB/s, 2, 8, 16, 32 KiB ahead: 104, 147, 147, 125 tok/s; into L1 instead of L2 a third less.
BANTAM_INLINE void request(const std::byte* block) {
  for (int i = 0; i < 288; i += 64) __builtin_prefetch(block + i, 0, 2);
}

// A single row of activations whose tables fit L1: the weights are one stream from memory.
template <int Block, int Planes>
inline void table_row_alone(const MatmulArgs& args) {
  const ActRows& a = args.a;
  const int n_blocks = a.n_cols / 128;
  const std::byte* block = args.w->data + int64_t{args.group_begin} * n_blocks * 288;
  for (int g = args.group_begin; g < args.group_end; ++g) {
    const std::byte* tables = a.tables;
    const float* d = a.d;
    Floats y = f_zero();
    for (int b = 0; b < n_blocks; ++b) {
      request(block + ahead.table_bytes);
      table_block<Block, Planes>(block, tables, d, y);
      block += 288;
      tables += 512 * Planes;
      d += 128 / Block;
    }
    store_rows(args, g, 0, y);
  }
}

// One weight block of two groups of 16 rows: each table is loaded once for both.
template <int Block, int Planes>
BANTAM_INLINE void table_block_pair(const std::byte* const* blocks, const std::byte* tables,
                                    const float* d_a, Floats* y) {
  constexpr int most = Block / 16 < kTableLookups<Planes> ? Block / 16 : kTableLookups<Planes>;
  const Bytes nibble = b_set(15), place = i_set(0x30201000);
  Bytes words[2][4];
  Floats d_w[2];
  for (int g = 0; g < 2; ++g) {
    for (int i = 0; i < 4; ++i) words[g][i] = b_load(blocks[g] + 64 * i);
    asm volatile("" ::: "memory");
    d_w[g] = f_halves(blocks[g] + 256);
    asm volatile("" ::: "memory");
  }
  TableSums<Planes> sums[2];
  unrolled<8>([&](auto step) __attribute__((always_inline)) {
    constexpr int j = decltype(step)::value;  // 16 columns
    Bytes table[Planes];
    for (int p = 0; p < Planes; ++p) table[p] = b_load(tables + (j * Planes + p) * 64);
    unrolled<2>([&](auto group) __attribute__((always_inline)) {
      constexpr int g = decltype(group)::value;
      const Bytes bits = j % 2 == 0 ? words[g][j / 2] : _mm512_srli_epi16(words[g][j / 2], 4);
      const Bytes index = _mm512_ternarylogic_epi32(bits, nibble, place, 0xea);
      sums[g].template look_up<j % most == 0>(index, table);
      if constexpr (j % most == most - 1) sums[g].template flush<j % (Block / 16) == most - 1>();
      if constexpr (j % (Block / 16) == Block / 16 - 1) {
        y[g] = f_fma(f_from_ints(sums[g].sum()), f_mul(d_w[g], f_set(d_a[j * 16 / Block])), y[g]);
      }
    });
  });
}

// A single row whose tables do not fit L1: they pass by once for two groups.
template <int Block, int Planes>
inline void table_row_pairs(const MatmulArgs& args) {
  const ActRows& a = args.a;
  const int n_blocks = a.n_cols / 128;
  const int64_t bytes = int64_t{n_blocks} * 288;
  int g = args.group_begin;
  for (; g + 2 <= args.group_end; g += 2) {
    const std::byte* blocks[2] = {args.w->data + g * bytes, args.w->data + (g + 1) * bytes};
    const std::byte* tables = a.tables;
    const float* d = a.d;
    Floats y[2] = {f_zero(), f_zero()};
    for (int b = 0; b < n_blocks; ++b) {
      // The next pair as one stream (blocks of 32, two planes: 15.5 instead of 14.6 GB/s a thread).
      for (int k = 0; k < 2; ++k) request(args.w->data + (g + 2) * bytes + (2 * b + k) * 288);
      table_block_pair<Block, Planes>(blocks, tables, d, y);
      blocks[0] += 288;
      blocks[1] += 288;
      tables += 512 * Planes;
      d += 128 / Block;
    }
    store_rows(args, g, 0, y[0]);
    store_rows(args, g + 1, 0, y[1]);
  }
  if (g == args.group_end) return;
  MatmulArgs rest = args;
  rest.group_begin = g;
  table_row_alone<Block, Planes>(rest);
}

// A single row whose tables do not fit L1: tiles of as many columns as fit, each for kTileGroups
// groups; what lies four runs (of up to 4.5 KiB) ahead is asked for in the order of its use. Zen 4,
// two threads, 4,096 columns from memory: 15.5 GB/s each, with the tables passing by for two groups
// 12.8. For --act i16, whose lookups take longer, the two groups are 1 to 2 GB/s better at 2,048
// columns and alike beyond.
constexpr int kTileGroups = 32;
constexpr int kRunsAhead = 4;

template <int Block, int Planes>
inline void table_tile(const MatmulArgs& args, int group, int n_groups, int begin, int end,
                       const std::byte* after, float (*y)[16]) {
  const int64_t bytes = int64_t{args.a.n_cols} / 128 * 288;
  const std::byte* first = args.w->data + group * bytes + int64_t{begin} * 288;
  for (int i = 0; i < n_groups; ++i) {
    const int ahead_of = i + (kRunsAhead < n_groups ? kRunsAhead : n_groups);
    const std::byte* next =
        ahead_of < n_groups ? first + ahead_of * bytes : after + (ahead_of - n_groups) * bytes;
    const std::byte* block = first + i * bytes;
    const std::byte* tables = args.a.tables + int64_t{begin} * 512 * Planes;
    const float* d = args.a.d + int64_t{begin} * (128 / Block);
    Floats sum = f_load(y[i]);
    for (int b = begin; b < end; ++b) {
      request(next);
      table_block<Block, Planes>(block, tables, d, sum);
      next += 288;
      block += 288;
      tables += 512 * Planes;
      d += 128 / Block;
    }
    f_store(y[i], sum);
  }
}

template <int Block, int Planes>
inline void table_row_tiles(const MatmulArgs& args) {
  const int n_blocks = args.a.n_cols / 128;
  const int64_t bytes = int64_t{n_blocks} * 288;
  constexpr int fit = kTableL1 / (512 * Planes);
  const int n_tiles = (n_blocks + fit - 1) / fit;
  for (int g = args.group_begin; g < args.group_end; g += kTileGroups) {
    const int n = args.group_end - g < kTileGroups ? args.group_end - g : kTileGroups;
    alignas(64) float y[kTileGroups][16];
    for (int i = 0; i < n; ++i) f_store(y[i], f_zero());
    for (int tile = 0; tile < n_tiles; ++tile) {
      const int begin = n_blocks * tile / n_tiles, end = n_blocks * (tile + 1) / n_tiles;
      const std::byte* after =
          args.w->data + (tile + 1 < n_tiles ? g * bytes + int64_t{end} * 288 : (g + n) * bytes);
      table_tile<Block, Planes>(args, g, n, begin, end, after, y);
    }
    for (int i = 0; i < n; ++i) store_rows(args, g + i, 0, f_load(y[i]));
  }
}

// One row of activations.
template <int Block, int Planes>
inline void table_product(const MatmulArgs& args) {
  if (table_bytes(args.a.n_cols, Planes) <= kTableL1) return table_row_alone<Block, Planes>(args);
  if constexpr (Planes == 2) {
    table_row_tiles<Block, Planes>(args);
  } else {
    table_row_pairs<Block, Planes>(args);
  }
}

void matmul_quads(const MatmulArgs& args) {
  const ActRows& a = args.a;
  if (a.planes == 2) {
    return a.block == 128 ? table_product<128, 2>(args) : table_product<32, 2>(args);
  }
  return a.block == 128 ? table_product<128, 3>(args) : table_product<32, 3>(args);
}

}  // namespace
}  // namespace bantam
