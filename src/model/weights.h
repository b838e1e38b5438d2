// Strict binding: each tensor of the architecture by name, type and shape; tensors the decoder
// would not use are refused, because leaving one out would change the answer. Owns the list, not
// the memory.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "base/result.h"
#include "gguf/gguf.h"
#include "model/config.h"

namespace bantam {

struct LayerWeights {
  const float* attn_norm = nullptr;  // [d_model]
  const float* q_norm = nullptr;     // [head_dim] or null
  const float* k_norm = nullptr;
  const float* ffn_norm = nullptr;  // [d_model]
  Matrix q, k, v, o;                // (heads * head_dim, d_model), ..., (d_model, heads * head_dim)
  Matrix gate, up, down;            // (d_ff, d_model) twice, (d_model, d_ff)
};

struct ModelWeights {
  Matrix embedding;  // (n_vocab, d_model)
  Matrix output;     // (n_vocab, d_model); the embedding again when tied
  const float* output_norm = nullptr;
  const float* rope_freqs = nullptr;  // [rope_dims / 2] or null; host memory
  std::vector<LayerWeights> layers;
};

// One entry of the binding, in the order of the file's use.
struct BoundTensor {
  const GgufTensor* source = nullptr;
  Matrix* matrix = nullptr;  // or
  const float** vector = nullptr;
};

// Fills shapes and types of `weights` (no memory yet) and lists what to load.
Result<std::vector<BoundTensor>> bind_weights(const Gguf& file, const ModelConfig& config,
                                              ModelWeights& weights);

}  // namespace bantam
