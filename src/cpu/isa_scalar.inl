// The scalar table: included by isa_scalar.cc and isa_scalar_fma.cc, in an anonymous namespace
// each.
#include "cpu/attend_scalar.inl"
#include "cpu/dot_rate_scalar.inl"
#include "cpu/kernels.h"
#include "cpu/pack.inl"
#include "cpu/weights_scalar.inl"

namespace bantam {
namespace {
void fill_all(Kernels& table) {
  fill_weights_scalar(table);
  fill_pack(table);
  fill_attend_scalar(table);
  fill_dot_rate_scalar(table);
}
}  // namespace
}  // namespace bantam
