// AMX (TILE, INT8) beside AVX-512 (Sapphire Rapids and later): products of several rows of
// activations. Everything else is avx512.
#if defined(__x86_64__)
#include "cpu/vec_avx512.h"
//
#include "cpu/amx_tiles.inl"

namespace bantam {
void fill_amx(Kernels& table) {
  fill_avx512(table);
  fill_tiles(table);
}
}  // namespace bantam
#endif
