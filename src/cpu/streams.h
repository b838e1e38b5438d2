// Where the four streams of a product with a single row of activations read (matmul_four of
// kernels.h). An item is one group of each stream, and a stream is a quarter of what a thread was
// dealt, so that its next items go on where the last ones ended. Two matrices of gated products
// are read side by side, two streams each. Owns nothing; ranges come from Shares.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/shares.h"

namespace bantam {

struct StreamPart {
  int matrix = 0;
  int64_t begin = 0, end = 0;  // its groups; none where the quarters go beyond the last group
};

// Items of n groups: those of all matrices, or of each of two if gated.
static inline int64_t stream_items(int64_t n_groups, bool gated) {
  const int streams = gated ? 2 : 4;
  return (n_groups + streams - 1) / streams;
}

// The items of `range` from `at` on: as many as lie before its end and before the end of any
// stream's matrix. Returns their number. groups_of(i): the groups of matrix i.
template <class GroupsOf>
int64_t next_streams(int n_matrices, const GroupsOf& groups_of, bool gated,
                     const Shares::Range& range, int64_t at, StreamPart* four) {
  const int64_t streams = gated ? 2 : 4, quarter = range.part_end - range.part_begin;
  int64_t n = range.end - at;
  for (int s = 0; s < 4; ++s) {
    StreamPart& part = four[s];
    part.matrix = gated ? s / 2 : 0;
    part.begin = streams * range.part_begin + s % streams * quarter + at - range.part_begin;
    while (!gated && part.matrix + 1 < n_matrices && part.begin >= groups_of(part.matrix)) {
      part.begin -= groups_of(part.matrix++);
    }
    part.end = groups_of(part.matrix);
    part.begin = std::min(part.begin, part.end);
    if (part.begin < part.end) n = std::min(n, part.end - part.begin);
  }
  for (int s = 0; s < 4; ++s) four[s].end = std::min(four[s].end, four[s].begin + n);
  return n;
}

}  // namespace bantam
