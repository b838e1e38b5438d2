// The canonical text once more, compiled for x86 with FMA instructions: the same bits without calls
// to fma().
#if defined(__x86_64__)
#include "cpu/isa_scalar.inl"

namespace bantam {
void fill_scalar_fma(Kernels& table) { fill_all(table); }
}  // namespace bantam
#endif
