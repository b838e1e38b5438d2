// The canonical instruction set. isa_scalar_fma.cc compiles the same text with FMA instructions:
// same bits, no calls.
#include "cpu/isa_scalar.inl"

namespace bantam {
void fill_scalar(Kernels& table) { fill_all(table); }
}  // namespace bantam
