// The measured dot rate of the scalar tables: multiply-adds of single integers, eight chains.
#pragma once

#include "cpu/kernels.h"

namespace bantam {
namespace {

int64_t dot_rate_scalar(int64_t steps) {
  constexpr int kDotChains = 8;
  uint32_t acc[kDotChains] = {}, x = 3, code = 1;
  for (int64_t i = 0; i < steps; ++i) {
    asm("" : "+r"(code));
#pragma GCC unroll 8
    for (int k = 0; k < kDotChains; ++k) {
      // A new value for the compiler, so that it can neither share nor drop a product.
      asm("" : "+r"(x));
      acc[k] += code * x;
    }
  }
  uint32_t total = 0;
  for (int k = 0; k < kDotChains; ++k) total += acc[k];
  asm volatile("" : "+r"(total));
  return steps * kDotChains;
}

void fill_dot_rate_scalar(Kernels& table) { table.dot_rate = dot_rate_scalar; }

}  // namespace
}  // namespace bantam
