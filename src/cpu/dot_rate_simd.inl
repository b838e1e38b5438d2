// How fast this CPU multiplies bytes when nothing else is to be done: the products of 1-bit codes
// (the fastest of every vector header) on registers alone. The measured dot rate of `bantam bench`:
// a ceiling for products that multiply, not for those that look sums up in tables
// (tables_avx512.inl, tables_avx2.inl), where a lookup and an addition can stand for more
// multiply-adds a cycle than a product: more than 100 % is then normal. Includers choose the vector
// header first.
#pragma once

#include "cpu/weights_simd.inl"

namespace bantam {
namespace {

// All accumulators in registers beside the code and the quad, and more chains than the latency of
// the dot instruction asks for.
constexpr int kDotChains = sizeof(Quad) == 64 ? 12 : 6;

// The compiler takes x for a new value, so that it can neither share nor drop a product.
BANTAM_INLINE void renew(Quad& x) {
#if defined(__aarch64__)
  asm("" : "+w"(x));
#else
  asm("" : "+v"(x));
#endif
}

int64_t dot_rate_simd(int64_t steps) {
  const int8_t four[4] = {1, 2, 3, 4};
  Quad x = quad(four);
  // From memory that the compiler cannot see through: registers of one vector stay different.
  alignas(64) std::byte bits[64] = {};
  const std::byte* bits_at = bits;
  asm volatile("" : "+r"(bits_at) : : "memory");
  const Bytes code = bit_code<0>(b_load(bits_at));
  BitAcc acc[kDotChains];
  for (int64_t i = 0; i < steps; ++i) {
    unrolled<kDotChains>([&](auto chain) __attribute__((always_inline)) {
      renew(x);
      bit_add(acc[decltype(chain)::value], code, x);
    });
  }
  Ints sum = i_zero();
  for (int k = 0; k < kDotChains; ++k) sum = i_add(sum, bit_sum(acc[k]));
  int32_t total = i_total(sum);
  asm volatile("" : "+r"(total));
  return steps * kDotChains * 64;
}

void fill_dot_rate_simd(Kernels& table) { table.dot_rate = dot_rate_simd; }

}  // namespace
}  // namespace bantam
