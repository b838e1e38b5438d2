// The whole table of a vector header: included by each ISA file after it.
#pragma once

#include "cpu/attend_simd.inl"
#include "cpu/dot_rate_simd.inl"
#include "cpu/pack.inl"
#include "cpu/rows_simd.inl"
#include "cpu/weights_simd.inl"
#if defined(BANTAM_I8MM)
#include "cpu/pairs_i8mm.inl"
#endif

namespace bantam {
namespace {
void fill_simd(Kernels& table) {
  fill_rows_simd(table);
  fill_weights_simd(table);
  fill_pack(table);
  fill_attend_simd(table);
  fill_dot_rate_simd(table);
}
}  // namespace
}  // namespace bantam
