// ModelConfig: the numbers of one architecture, read from GGUF metadata and checked. Refuses
// unknown architectures by name and values the decoder cannot honour, with found / expected.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "gguf/gguf.h"

namespace bantam {

enum class RopeScaling { none, linear, yarn };

struct ModelConfig {
  std::string arch;
  std::string name;
  int n_layers = 0;
  int d_model = 0;
  int d_ff = 0;
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int n_vocab = 0;
  int n_ctx_train = 0;
  float norm_eps = 1e-6f;
  bool qk_norm = false;           // per-head RMSNorm of q and k before RoPE (qwen3)
  bool tied_output = false;       // no output.weight: the token embedding is used
  bool rope_interleaved = false;  // pairs (2i, 2i + 1) (llama) instead of (i, i + n/2)
  int rope_dims = 0;
  double rope_base = 10000.0;
  RopeScaling rope_scaling = RopeScaling::none;
  double rope_factor = 1.0;
  int rope_original_ctx = 0;
  double rope_attn_factor = 1.0;
  double yarn_beta_fast = 32.0;
  double yarn_beta_slow = 1.0;
};

Result<ModelConfig> read_config(const Gguf& file);

}  // namespace bantam
