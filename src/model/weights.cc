#include "model/weights.h"

#include <string>
#include <unordered_set>

namespace bantam {

namespace {

std::string shape_text(const GgufTensor& tensor) {
  std::string text = "[" + std::to_string(tensor.dims[0]);
  for (int i = 1; i < tensor.n_dims; ++i)
    text += ", " + std::to_string(tensor.dims[static_cast<size_t>(i)]);
  return text + "]";
}

class Binder {
 public:
  Binder(const Gguf& file, std::vector<BoundTensor>& bound) : file_(file), bound_(bound) {}

  void matrix(const std::string& name, int64_t rows, int64_t cols, Matrix& matrix) {
    const GgufTensor* tensor = find(name);
    if (tensor == nullptr) return;
    if (tensor->n_dims > 2 || tensor->dims[0] != cols || tensor->dims[1] != rows) {
      return fail("tensor '" + name + "' has shape " + shape_text(*tensor) + ", expected [" +
                  std::to_string(cols) + ", " + std::to_string(rows) + "]");
    }
    if (cols % 32 != 0) {
      return fail("tensor '" + name + "' has " + std::to_string(cols) +
                  " columns, expected a multiple of 32");
    }
    matrix = {tensor->type, static_cast<int>(rows), static_cast<int>(cols), nullptr};
    bound_.push_back({tensor, &matrix, nullptr});
  }

  void vector(const std::string& name, int64_t n, const float*& vector) {
    const GgufTensor* tensor = find(name);
    if (tensor == nullptr) return;
    if (tensor->type != WeightType::f32 || tensor->n_dims != 1 || tensor->dims[0] != n) {
      return fail("tensor '" + name + "' is " + display_name(tensor->type) + " " +
                  shape_text(*tensor) + ", expected F32 [" + std::to_string(n) + "]");
    }
    bound_.push_back({tensor, nullptr, &vector});
  }

  bool present(const std::string& name) const { return file_.find_tensor(name) != nullptr; }
  bool failed() const { return failed_; }
  const Error& error() const { return error_; }

 private:
  const GgufTensor* find(const std::string& name) {
    const GgufTensor* tensor = file_.find_tensor(name);
    if (tensor == nullptr) fail("tensor '" + name + "' is missing");
    return tensor;
  }
  void fail(std::string message) {
    if (!failed_) error_ = refused(std::move(message));
    failed_ = true;
  }

  const Gguf& file_;
  std::vector<BoundTensor>& bound_;
  bool failed_ = false;
  Error error_;
};

void bind_layer(Binder& binder, const ModelConfig& c, int index, LayerWeights& layer) {
  const std::string p = "blk." + std::to_string(index) + ".";
  const int64_t q_dim = int64_t{c.n_heads} * c.head_dim,
                kv_dim = int64_t{c.n_kv_heads} * c.head_dim;
  binder.vector(p + "attn_norm.weight", c.d_model, layer.attn_norm);
  binder.matrix(p + "attn_q.weight", q_dim, c.d_model, layer.q);
  binder.matrix(p + "attn_k.weight", kv_dim, c.d_model, layer.k);
  binder.matrix(p + "attn_v.weight", kv_dim, c.d_model, layer.v);
  if (c.qk_norm) {
    binder.vector(p + "attn_q_norm.weight", c.head_dim, layer.q_norm);
    binder.vector(p + "attn_k_norm.weight", c.head_dim, layer.k_norm);
  }
  binder.matrix(p + "attn_output.weight", c.d_model, q_dim, layer.o);
  binder.vector(p + "ffn_norm.weight", c.d_model, layer.ffn_norm);
  binder.matrix(p + "ffn_gate.weight", c.d_ff, c.d_model, layer.gate);
  binder.matrix(p + "ffn_up.weight", c.d_ff, c.d_model, layer.up);
  binder.matrix(p + "ffn_down.weight", c.d_model, c.d_ff, layer.down);
}

Status refuse_unused(const Gguf& file, const std::vector<BoundTensor>& bound,
                     const std::string& arch) {
  std::unordered_set<const GgufTensor*> used;
  for (const BoundTensor& tensor : bound) used.insert(tensor.source);
  for (const GgufTensor& tensor : file.tensors()) {
    if (used.contains(&tensor)) continue;
    return refused("tensor '" + std::string(tensor.name) + "' is not part of the '" + arch +
                   "' decoder; running without it would change the answers");
  }
  return Ok{};
}

}  // namespace

Result<std::vector<BoundTensor>> bind_weights(const Gguf& file, const ModelConfig& config,
                                              ModelWeights& weights) {
  std::vector<BoundTensor> bound;
  Binder binder(file, bound);
  weights.layers.assign(static_cast<size_t>(config.n_layers), {});
  binder.matrix("token_embd.weight", config.n_vocab, config.d_model, weights.embedding);
  for (int i = 0; i < config.n_layers && !binder.failed(); ++i) {
    bind_layer(binder, config, i, weights.layers[static_cast<size_t>(i)]);
  }
  binder.vector("output_norm.weight", config.d_model, weights.output_norm);
  if (!config.tied_output) {
    binder.matrix("output.weight", config.n_vocab, config.d_model, weights.output);
  }
  if (binder.present("rope_freqs.weight")) {
    binder.vector("rope_freqs.weight", config.rope_dims / 2, weights.rope_freqs);
  }
  if (binder.failed()) return binder.error();
  if (Status status = refuse_unused(file, bound, config.arch); !status) return status.error();
  return bound;
}

}  // namespace bantam
