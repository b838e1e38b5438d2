// Products of 1-bit weights with one row of activations by looking sums up, four streams of groups
// side by side: each table vector is loaded once for the four. Tables and bits as
// tables_avx512.inl.
//
// What a core of an Intel server reads from memory is bound by its misses in flight, and its
// prefetchers follow a stream no further than 4 KiB pages. Xeon (Granite Rapids class, 3.5 GHz, two
// threads, 2,048 columns from memory): one stream 23 GB/s, four 29 to 31, eight 26, plain reading
// 28 to 31; 1.7B tg128 with 1, 2, 3, 4, 6 streams: 82, 85, 85, 95, 89 tok/s. Four that jump every
// group, each having every fourth, 92. Tables of any width pass by once for four groups, from L2
// where L1 is too small for them: 6,144 and 12,288 columns are read as fast as 2,048, and tiles of
// columns are not needed.
#pragma once

#include "cpu/tables_avx512.inl"

namespace bantam {
namespace {

constexpr int kStreams = 4;
// How far ahead of each stream lines are asked for, into L1: between 0.5 and 4 KiB all alike, with
// another request into L2 further ahead too.
constexpr int kStreamAhead = 4 * 288;

// One weight block (128 columns) of a group of each of S streams; y[S] in and out.
template <int S, int Block, int Planes>
BANTAM_INLINE void table_block_streams(const std::byte* const* blocks, const std::byte* tables,
                                       const float* d_a, Floats* y) {
  constexpr int most = Block / 16 < kTableLookups<Planes> ? Block / 16 : kTableLookups<Planes>;
  const Bytes nibble = b_set(15), place = i_set(0x30201000);
  Bytes words[S];
  TableSums<Planes> sums[S];
  unrolled<8>([&](auto step) __attribute__((always_inline)) {
    constexpr int j = decltype(step)::value;  // 16 columns
    Bytes table[Planes];
    for (int p = 0; p < Planes; ++p) table[p] = b_load(tables + (j * Planes + p) * 64);
    unrolled<S>([&](auto stream) __attribute__((always_inline)) {
      constexpr int s = decltype(stream)::value;
      if constexpr (j % 2 == 0) words[s] = b_load(blocks[s] + 32 * j);
      const Bytes bits = j % 2 == 0 ? words[s] : _mm512_srli_epi16(words[s], 4);
      const Bytes index = _mm512_ternarylogic_epi32(bits, nibble, place, 0xea);
      sums[s].template look_up<j % most == 0>(index, table);
      if constexpr (j % most == most - 1) sums[s].template flush<j % (Block / 16) == most - 1>();
      if constexpr (j % (Block / 16) == Block / 16 - 1) {
        const Floats d = f_mul(f_halves(blocks[s] + 256), f_set(d_a[j * 16 / Block]));
        y[s] = f_fma(f_from_ints(sums[s].sum()), d, y[s]);
      }
    });
  });
}

template <int Block, int Planes>
inline void table_row_four(const MatmulArgs* four) {
  // With three planes the sums of four streams do not fit the registers: 93 instead of 95 tok/s.
  constexpr int side = Planes == 2 ? kStreams : 2;
  const ActRows& a = four[0].a;
  const int n_blocks = a.n_cols / 128;
  const std::byte* blocks[kStreams];
  int n = four[0].group_end - four[0].group_begin;
  for (int s = 0; s < kStreams; ++s) {
    const int own = four[s].group_end - four[s].group_begin;
    n = own < n ? own : n;
    blocks[s] = four[s].w->data + int64_t{four[s].group_begin} * n_blocks * 288;
  }
  for (int i = 0; i < n; ++i) {
    const std::byte* tables = a.tables;
    const float* d = a.d;
    Floats y[kStreams];
    for (Floats& sum : y) sum = f_zero();
    for (int b = 0; b < n_blocks; ++b) {
      for (int s = 0; s < kStreams; ++s) {
        for (int k = 0; k < 288; k += 64) __builtin_prefetch(blocks[s] + kStreamAhead + k, 0, 3);
      }
      for (int s = 0; s < kStreams; s += side) {
        table_block_streams<side, Block, Planes>(blocks + s, tables, d, y + s);
      }
      for (const std::byte*& block : blocks) block += 288;
      tables += 512 * Planes;
      d += 128 / Block;
    }
    for (int s = 0; s < kStreams; ++s) store_rows(four[s], four[s].group_begin + i, 0, y[s]);
  }
  // What some streams have more than the shortest.
  for (int s = 0; s < kStreams; ++s) {
    MatmulArgs rest = four[s];
    rest.group_begin += n;
    if (rest.group_begin < rest.group_end) table_product<Block, Planes>(rest);
  }
}

void matmul_q1_0_four(const MatmulArgs* four) {
  const ActRows& a = four[0].a;
  if (a.planes == 2)
    return a.block == 128 ? table_row_four<128, 2>(four) : table_row_four<32, 2>(four);
  return a.block == 128 ? table_row_four<128, 3>(four) : table_row_four<32, 3>(four);
}

}  // namespace
}  // namespace bantam
