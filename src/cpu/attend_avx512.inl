#pragma once
#include "cpu/kernels.h"
namespace bantam {
namespace {
void fill_attend_avx512(Kernels&) {}
}  // namespace
}  // namespace bantam
