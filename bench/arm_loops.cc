// The decode loops of the ARM tables as functions of their own, for tools/arm_predict.py: compiled to
// assembly, never run. Each takes one group of 16 rows over one activation row.
#include "cpu/vec_neon.h"
//
#include "cpu/isa_simd.inl"

namespace bantam {
extern "C" {
void loop_q1_0_128(const MatmulArgs& args) { product_tile<SimdQ1_0, 128, 1, 1, 1>(args, 0, 0); }
void loop_q1_0_32(const MatmulArgs& args) { product_tile<SimdQ1_0, 32, 1, 1, 1>(args, 0, 0); }
void loop_pq2_0_128(const MatmulArgs& args) {
  product_tile<SimdSmall<2, 128, 1>, 128, 1, 1, 1>(args, 0, 0);
}
void loop_q8_0_32(const MatmulArgs& args) { product_tile<SimdQ8_0, 32, 1, 1, 1>(args, 0, 0); }
void loop_q4_1_32(const MatmulArgs& args) { product_tile<SimdQ4_1, 32, 1, 1, 1>(args, 0, 0); }
}
}  // namespace bantam
