// The decode loops and prefill tiles of the ARM tables as functions of their own, for
// tools/arm_predict.py: compiled to assembly, never run. Each takes one group of 16 rows over one
// activation row, or over a tile of them.
#include "cpu/vec_neon.h"
//
#include "cpu/isa_simd.inl"

namespace bantam {
#if defined(BANTAM_I8MM)
#define BANTAM_TILE pair_tile
#else
#define BANTAM_TILE product_tile
#endif
#define BANTAM_LOOP(name, block, format)                                                         \
  void loop_##name(const MatmulArgs& args) { product_tile<format, block, 1, 1, 1>(args, 0, 0); } \
  void tile_##name(const MatmulArgs& args) {                                                     \
    BANTAM_TILE<format, block, format::tile, 8, 1>(args, 0, 0);                                  \
  }                                                                                              \
  extern const int rows_##name;                                                                  \
  const int rows_##name = format::tile;
typedef SimdSmall<2, 128, 1> SimdPQ2_0;
extern "C" {
BANTAM_LOOP(q1_0_128, 128, SimdQ1_0)
BANTAM_LOOP(q1_0_32, 32, SimdQ1_0)
BANTAM_LOOP(pq2_0_128, 128, SimdPQ2_0)
BANTAM_LOOP(q8_0_32, 32, SimdQ8_0)
BANTAM_LOOP(q4_1_32, 32, SimdQ4_1)
}
}  // namespace bantam
