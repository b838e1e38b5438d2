#include "model/config.h"

#include <cmath>
#include <string>
#include <utility>

#include "base/limits.h"

namespace bantam {

namespace {

struct Arch {
  const char* name;
  bool qk_norm;
  bool rope_interleaved;
};

constexpr Arch kArchs[] = {
#define ARCH(name, qk_norm, interleaved) {#name, qk_norm, interleaved},
#include "model/archs.def"
#undef ARCH
};

// Collects the first error of a series of look-ups, so that reading a config stays one line for
// each value.
class Reader {
 public:
  Reader(const Gguf& file, std::string arch) : file_(file), arch_(std::move(arch)) {}

  int integer(const char* key, int64_t min, int64_t max) {
    return static_cast<int>(keep(file_.integer(full(key), min, max), int64_t{0}));
  }
  int integer_or(const char* key, int64_t missing, int64_t min, int64_t max) {
    return static_cast<int>(keep(file_.integer_or(full(key), missing, min, max), missing));
  }
  double number_or(const char* key, double missing) {
    return keep(file_.number_or(full(key), missing), missing);
  }
  double number(const char* key) { return keep(file_.number(full(key)), 0.0); }
  std::string text_or(const char* key, std::string_view missing) {
    return std::string(keep(file_.text_or(full(key), missing), missing));
  }
  bool has(const char* key) const { return file_.has(full(key)); }
  std::string full(const char* key) const { return arch_ + "." + key; }
  void fail(std::string message) {
    if (!failed_) error_ = refused(std::move(message));
    failed_ = true;
  }
  bool failed() const { return failed_; }
  const Error& error() const { return error_; }

 private:
  template <class T>
  T keep(Result<T> result, T missing) {
    if (result) return *result;
    if (!failed_) error_ = result.error();
    failed_ = true;
    return missing;
  }

  const Gguf& file_;
  std::string arch_;
  bool failed_ = false;
  Error error_;
};

void read_rope(Reader& reader, ModelConfig& config) {
  config.rope_dims = reader.integer_or("rope.dimension_count", config.head_dim, 2, kMaxHeadDim);
  if (config.rope_dims > config.head_dim || config.rope_dims % 2 != 0) {
    reader.fail(reader.full("rope.dimension_count") + " is " + std::to_string(config.rope_dims) +
                ", expected an even number up to the head size " + std::to_string(config.head_dim));
  }
  config.rope_base = reader.number_or("rope.freq_base", 10000.0);
  if (!(config.rope_base > 1.0)) reader.fail(reader.full("rope.freq_base") + " must be above 1");
  const std::string scaling = reader.text_or("rope.scaling.type", "none");
  if (scaling == "linear") {
    config.rope_scaling = RopeScaling::linear;
  } else if (scaling == "yarn") {
    config.rope_scaling = RopeScaling::yarn;
  } else if (scaling != "none") {
    reader.fail("rope scaling '" + scaling +
                "' is not supported; this build runs none, linear and yarn");
  }
  config.rope_factor = reader.number_or("rope.scaling.factor", 1.0);
  if (!(config.rope_factor > 0.0))
    reader.fail(reader.full("rope.scaling.factor") + " must be positive");
  config.rope_original_ctx =
      reader.integer_or("rope.scaling.original_context_length", config.n_ctx_train, 1, 1 << 30);
  config.rope_attn_factor = reader.number_or("rope.scaling.attn_factor", 1.0);
  config.yarn_beta_fast = reader.number_or("rope.scaling.yarn_beta_fast", 32.0);
  config.yarn_beta_slow = reader.number_or("rope.scaling.yarn_beta_slow", 1.0);
}

void read_shape(Reader& reader, ModelConfig& config) {
  config.n_layers = reader.integer("block_count", 1, kMaxLayers);
  config.d_model = reader.integer("embedding_length", 32, kMaxDim);
  config.d_ff = reader.integer("feed_forward_length", 32, kMaxDim);
  config.n_heads = reader.integer("attention.head_count", 1, kMaxHeads);
  if (reader.failed()) return;
  config.n_kv_heads = reader.integer_or("attention.head_count_kv", config.n_heads, 1, kMaxHeads);
  config.n_ctx_train = reader.integer("context_length", 1, 1 << 30);
  if (!reader.has("attention.key_length") && config.d_model % config.n_heads != 0) {
    reader.fail("embedding length " + std::to_string(config.d_model) + " is not a multiple of " +
                std::to_string(config.n_heads) +
                " heads and the file gives no attention.key_length");
    return;
  }
  config.head_dim =
      reader.integer_or("attention.key_length", config.d_model / config.n_heads, 1, 1 << 16);
  const int value_length = reader.integer_or("attention.value_length", config.head_dim, 1, 1 << 16);
  if (value_length != config.head_dim) {
    reader.fail("attention.value_length is " + std::to_string(value_length) + ", expected " +
                std::to_string(config.head_dim) + " (the key length)");
  }
  config.norm_eps = static_cast<float>(reader.number("attention.layer_norm_rms_epsilon"));
  if (!(config.norm_eps >= 0.0f))
    reader.fail("attention.layer_norm_rms_epsilon must not be negative");
  if (reader.integer_or("expert_count", 0, 0, 1 << 20) != 0) {
    reader.fail("mixture-of-experts models are not supported (" + reader.full("expert_count") +
                ")");
  }
  if (reader.has("attention.sliding_window")) {
    reader.fail("sliding-window attention is not supported (" +
                reader.full("attention.sliding_window") + ")");
  }
}

}  // namespace

Result<ModelConfig> read_config(const Gguf& file) {
  Result<std::string_view> arch = file.text("general.architecture");
  if (!arch) return arch.error();
  ModelConfig config;
  std::string known;
  for (const Arch& row : kArchs) {
    known += (known.empty() ? "" : " ") + std::string(row.name);
    if (*arch != row.name) continue;
    config.arch = row.name;
    config.qk_norm = row.qk_norm;
    config.rope_interleaved = row.rope_interleaved;
  }
  if (config.arch.empty()) {
    return refused("architecture '" + std::string(arch->substr(0, 64)) +
                   "' is not supported; this build runs " + known);
  }
  Result<std::string_view> name = file.text_or("general.name", "");
  if (!name) return name.error();
  config.name = std::string(*name);
  Reader reader(file, config.arch);
  read_shape(reader, config);
  if (!reader.failed()) read_rope(reader, config);
  if (reader.failed()) return reader.error();
  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr) return refused("tensor 'token_embd.weight' is missing");
  if (embedding->dims[1] < 1 || embedding->dims[1] > kMaxVocab) {
    return refused("'token_embd.weight' has " + std::to_string(embedding->dims[1]) +
                   " rows, expected 1 to " + std::to_string(kMaxVocab));
  }
  config.n_vocab = static_cast<int>(embedding->dims[1]);
  config.tied_output = file.find_tensor("output.weight") == nullptr;
  return config;
}

}  // namespace bantam
