// Loops that are laid out at compile time, with their index as a constant. Includers choose the
// vector header first.
#pragma once

namespace bantam {
namespace {

// A compile-time number, for lambdas that need one.
template <int V>
struct Constant {
  static constexpr int value = V;
};
template <int N, class Body>
BANTAM_INLINE void unrolled(Body&& body) {
  if constexpr (N > 0) {
    unrolled<N - 1>(body);
    body(Constant<N - 1>{});
  }
}

}  // namespace
}  // namespace bantam
