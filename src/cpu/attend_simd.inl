// Attention with vectors, the bits of attend_scalar.inl: the slots of scores, weighted sums and
// stores. Includers choose the vector header first.
#pragma once

#include "cpu/attend_scores.inl"
#include "cpu/attend_store.inl"
#include "cpu/attend_weigh.inl"

namespace bantam {
namespace {

template <KvType Type>
void put_kv_simd(KvKernels& slot) {
  using Codec = CodecOf<Type>;
  if constexpr (info(Type).quantized) {
    slot.scores = scores_quant_simd<Codec>;
    slot.weigh = weigh_quant_simd<Codec>;
    slot.store_k = store_quant_simd<Codec, true>;
    slot.store_v = store_quant_simd<Codec, false>;
  } else {
    slot.scores = scores_float_simd<Codec>;
    slot.weigh = weigh_float_simd<Codec>;
    // Scalar text, compiled here once more with wider vectors: the same bits.
    slot.store_k = store_float<Codec>;
    slot.store_v = store_float<Codec>;
  }
}

void fill_attend_simd(Kernels& table) {
#define KV_TYPE(name, bytes32, quantized, minimum) \
  put_kv_simd<KvType::name>(table.kv[static_cast<int>(KvType::name)]);
#include "codec/kv_types.def"
#undef KV_TYPE
}

}  // namespace
}  // namespace bantam
