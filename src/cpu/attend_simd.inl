// Attention with vectors, the bits of attend_scalar.inl: the slots of scores, weighted sums and
// stores. Includers choose the vector header first.
#pragma once

#include "cpu/attend_scores.inl"
#include "cpu/attend_weigh.inl"

namespace bantam {
namespace {

template <KvType Type>
void put_kv_simd(KvKernels& slot) {
  using Codec = CodecOf<Type>;
  if constexpr (info(Type).quantized) {
    slot.scores = scores_quant_simd<Codec>;
    slot.weigh = weigh_quant_simd<Codec>;
  } else {
    slot.scores = scores_float_simd<Codec>;
    slot.weigh = weigh_float_simd<Codec>;
  }
  // The stores are scalar text, compiled here once more with wider vectors: the same bits.
  const KvKernels scalar = kv_kernels<Type>();
  slot.store_k = scalar.store_k;
  slot.store_v = scalar.store_v;
}

void fill_attend_simd(Kernels& table) {
#define KV_TYPE(name, bytes32, quantized, minimum) \
  put_kv_simd<KvType::name>(table.kv[static_cast<int>(KvType::name)]);
#include "codec/kv_types.def"
#undef KV_TYPE
}

}  // namespace
}  // namespace bantam
