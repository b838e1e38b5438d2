#include "model/model.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "model/kv_cache.h"
#include "model/loader.h"
#include "model/pack_cache.h"
#include "model/rope.h"
#include "model/weights.h"

namespace bantam {

namespace {

constexpr int64_t kAlign = 64;
int64_t padded(int64_t floats) { return (floats * 4 + kAlign - 1) / kAlign * kAlign / 4; }

ComputeShape compute_shape(const ModelConfig& c, const ModelOptions& o) {
  const int widest = std::max({c.d_model, c.d_ff, c.n_heads * c.head_dim});
  return {std::max(o.max_rows, o.max_logit_rows),
          widest,
          c.n_heads,
          c.n_kv_heads,
          c.head_dim,
          o.act == ActType::i16,
          o.shifts};
}

// Floats of the row buffers. Attention and feed-forward are never live together and share one
// piece.
struct BufferSizes {
  int64_t x, y, attention, ffn, rope, logits;

  BufferSizes(const ModelConfig& c, const ModelOptions& o) {
    const int64_t rows = std::max(o.max_rows, o.max_logit_rows);
    const int64_t q_dim = int64_t{c.n_heads} * c.head_dim,
                  kv_dim = int64_t{c.n_kv_heads} * c.head_dim;
    x = padded(rows * c.d_model);
    y = padded(rows * c.d_model);
    attention = 2 * padded(rows * q_dim) + 2 * padded(rows * kv_dim);
    ffn = 2 * padded(rows * c.d_ff);
    rope = (o.shifts ? 4 : 2) * padded(rows * c.rope_dims / 2);
    logits = padded(int64_t{o.max_logit_rows} * c.n_vocab);
  }
  int64_t total() const { return x + y + std::max(attention, ffn) + rope + logits; }
};

}  // namespace

struct Model::Impl {
  Impl(const ModelConfig& c, const ModelOptions& o, std::unique_ptr<Backend> b)
      : config(c), options(o), backend(std::move(b)) {}

  void bind_buffers(float* memory);
  int act_block(const Matrix& w) const;
  MatmulOut product(const Matrix& w, float* y, bool add = false) const;
  void attention(const LayerWeights& layer, int index, int n_rows);
  void feed_forward(const LayerWeights& layer, int n_rows);
  void prepare(std::span<const BatchRow> rows);
  void output(std::span<const BatchRow> rows);
  void norm_row(int row, int n);
  void project(int n);
  Status identify(const Gguf& file);

  ModelConfig config;
  ModelOptions options;
  std::unique_ptr<Backend> backend;
  ModelWeights weights;
  LoadedWeights loaded;
  std::unique_ptr<KvCache> cache;
  std::unique_ptr<Rope> rope;
  SequenceIdentity identity;
  std::vector<AttendRow> attend_rows;
  std::vector<int32_t> tokens;

  float* x = nullptr;         // [rows][d_model] residual stream
  float* y = nullptr;         // [rows][d_model] normed
  float* q = nullptr;         // [rows][n_heads * head_dim]
  float* heads = nullptr;     // [rows][n_heads * head_dim] attention output
  float* k = nullptr;         // [rows][n_kv_heads * head_dim]
  float* v = nullptr;         // [rows][n_kv_heads * head_dim]
  float* gate = nullptr;      // [rows][d_ff], over q
  float* up = nullptr;        // [rows][d_ff]
  float* cos = nullptr;       // [rows][rope_dims / 2]
  float* sin = nullptr;       // [rows][rope_dims / 2]
  float* kept_cos = nullptr;  // as cos and sin, for pages that shifts left behind
  float* kept_sin = nullptr;
  float* logits = nullptr;  // [max_logit_rows][n_vocab]
};

void Model::Impl::bind_buffers(float* memory) {
  const BufferSizes sizes(config, options);
  const int64_t rows = std::max(options.max_rows, options.max_logit_rows);
  x = memory;
  y = x + sizes.x;
  q = y + sizes.y;
  heads = q + padded(rows * config.n_heads * config.head_dim);
  k = heads + padded(rows * config.n_heads * config.head_dim);
  v = k + padded(rows * config.n_kv_heads * config.head_dim);
  gate = q;
  up = gate + padded(rows * config.d_ff);
  cos = q + std::max(sizes.attention, sizes.ffn);
  const int64_t table = padded(rows * config.rope_dims / 2);
  sin = cos + table;
  kept_cos = options.shifts ? sin + table : nullptr;
  kept_sin = options.shifts ? kept_cos + table : nullptr;
  logits = cos + sizes.rope;
}

int Model::Impl::act_block(const Matrix& w) const {
  return options.act == ActType::f32 ? 0 : info(w.type).act_block;
}

MatmulOut Model::Impl::product(const Matrix& w, float* out, bool add) const {
  return {&w, out, w.rows, add, act_block(w), options.act == ActType::i16 && info(w.type).act_i16};
}

void Model::Impl::attention(const LayerWeights& layer, int index, int n_rows) {
  const MatmulOut qkv[] = {product(layer.q, q), product(layer.k, k), product(layer.v, v)};
  backend->matmul(qkv, {x, n_rows, layer.attn_norm, config.norm_eps, y});
  AttendStep step;
  step.plan = &cache->plan();
  step.rows = attend_rows;
  step.k_pages = cache->k_pages(index);
  step.v_pages = cache->v_pages(index);
  step.q = q;
  step.k = k;
  step.v = v;
  step.q_norm = layer.q_norm;
  step.k_norm = layer.k_norm;
  step.norm_eps = config.norm_eps;
  step.cos = cos;
  step.sin = sin;
  step.kept_cos = kept_cos;
  step.kept_sin = kept_sin;
  step.rope_dims = config.rope_dims;
  step.rope_interleaved = config.rope_interleaved;
  step.out = heads;
  backend->attend(step);
  const MatmulOut out[] = {product(layer.o, x, true)};
  backend->matmul(out, {heads, n_rows});
}

void Model::Impl::feed_forward(const LayerWeights& layer, int n_rows) {
  const MatmulOut in[] = {product(layer.gate, gate), product(layer.up, up)};
  const bool alike = in[0].act_block == in[1].act_block && in[0].wide == in[1].wide;
  backend->matmul(in, {x, n_rows, layer.ffn_norm, config.norm_eps, y, alike});
  if (!alike) backend->silu_mul(gate, up, n_rows, config.d_ff);
  MatmulOut down = product(layer.down, x, true);
  // NUMERICS rule 3: rounding here costs most of the accuracy, so this input keeps blocks of 32.
  down.act_block = std::min(down.act_block, 32);
  backend->matmul({&down, 1}, {gate, n_rows});
}

void Model::Impl::prepare(std::span<const BatchRow> rows) {
  CHECK(!rows.empty() && static_cast<int>(rows.size()) <= options.max_rows);
  const int half = config.rope_dims / 2;
  tokens.clear();
  attend_rows.clear();
  int run = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const BatchRow& row = rows[i];
    CHECK(row.seq >= 0 && row.seq < options.n_seqs && row.pos == cache->length(row.seq));
    if (i > 0 && rows[i - 1].seq != row.seq) ++run;
    cache->extend(row.seq, 1);
    tokens.push_back(row.token);
    const int64_t at = static_cast<int64_t>(i) * half;
    const int n_kept = cache->n_kept(row.seq);
    attend_rows.push_back({row.pos, run, nullptr, n_kept});
    // K goes into its page with that page's offset, and so do queries for it (NUMERICS rule 8).
    const int offset = cache->offset(row.seq, row.pos / kPagePositions);
    rope->tables(row.pos + offset, cos + at, sin + at);
    if (n_kept > 0) rope->tables(row.pos, kept_cos + at, kept_sin + at);
  }
  for (size_t i = 0; i < rows.size(); ++i) attend_rows[i].pages = cache->pages(rows[i].seq);
}

void Model::Impl::output(std::span<const BatchRow> rows) {
  int n = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!rows[i].want_logits) continue;
    norm_row(static_cast<int>(i), n++);
  }
  if (n > 0) project(n);
}

// Row of the step -> row n of what project() multiplies.
void Model::Impl::norm_row(int row, int n) {
  CHECK(n < options.max_logit_rows);
  backend->norm(x + int64_t{row} * config.d_model, weights.output_norm, config.norm_eps, 1,
                config.d_model, y + int64_t{n} * config.d_model);
}

void Model::Impl::project(int n) {
  const Matrix& w = config.tied_output ? weights.embedding : weights.output;
  const MatmulOut out[] = {product(w, logits)};
  backend->matmul(out, {y, n});
}

Status Model::Impl::identify(const Gguf& file) {
  if (!options.saves) return Ok{};
  const Result<uint64_t> fingerprint = model_fingerprint(file);
  if (!fingerprint) return fingerprint.error();
  std::span<const float> freqs;
  if (weights.rope_freqs != nullptr) {
    freqs = {weights.rope_freqs, static_cast<size_t>(config.rope_dims / 2)};
  }
  identity = sequence_identity(config, cache->plan(), options.act, freqs, *fingerprint);
  return Ok{};
}

Result<int64_t> Model::weight_bytes(const Gguf& file, const ModelConfig& config,
                                    const Backend& backend) {
  ModelWeights weights;
  Result<std::vector<BoundTensor>> bound = bind_weights(file, config, weights);
  if (!bound) return bound.error();
  return bound_bytes(*bound, backend);
}

int64_t Model::kv_bytes(const ModelConfig& config, const AttentionPlan& plan, int n_ctx,
                        int n_seqs) {
  return KvCache::bytes(plan, config.n_layers, n_ctx, n_seqs);
}

int64_t Model::compute_bytes(const ModelConfig& config, const ModelOptions& options,
                             const Backend& backend) {
  return BufferSizes(config, options).total() * 4 +
         backend.scratch_bytes(compute_shape(config, options));
}

Model::Model() = default;
Model::~Model() = default;

Result<std::unique_ptr<Model>> Model::load(const Gguf& file, const ModelConfig& config,
                                           const AttentionPlan& plan, const ModelOptions& options,
                                           std::unique_ptr<Backend> backend,
                                           const LoadEvents& events) {
  std::unique_ptr<Model> model(new Model);
  model->impl_ = std::make_unique<Impl>(config, options, std::move(backend));
  Impl& impl = *model->impl_;
  Result<std::vector<BoundTensor>> bound = bind_weights(file, config, impl.weights);
  if (!bound) return bound.error();
  if (Status status = impl.backend->reserve(compute_shape(config, options)); !status) {
    return status.error();
  }
  Result<LoadedWeights> loaded = load_weights(file, *bound, *impl.backend, options.load, events);
  if (!loaded) return loaded.error();
  impl.loaded = std::move(*loaded);
  Result<std::unique_ptr<KvCache>> cache =
      KvCache::create(plan, config.n_layers, options.n_ctx, options.n_seqs, *impl.backend);
  if (!cache) return cache.error();
  impl.cache = std::move(*cache);
  impl.rope = std::make_unique<Rope>(config, impl.weights.rope_freqs);
  if (Status status = impl.identify(file); !status) return status.error();
  Result<std::byte*> buffers =
      impl.backend->allocate(BufferSizes(config, options).total() * 4, "row buffers");
  if (!buffers) return buffers.error();
  impl.bind_buffers(reinterpret_cast<float*>(*buffers));
  impl.attend_rows.reserve(static_cast<size_t>(options.max_rows));
  impl.tokens.reserve(static_cast<size_t>(options.max_rows));
  return model;
}

const ModelConfig& Model::config() const { return impl_->config; }
const ModelOptions& Model::options() const { return impl_->options; }
const LoadReport& Model::load_report() const { return impl_->loaded.report; }

void Model::step(std::span<const BatchRow> rows) {
  impl_->prepare(rows);
  const int n_rows = static_cast<int>(rows.size());
  impl_->backend->embed(impl_->weights.embedding, impl_->tokens, impl_->x);
  for (int i = 0; i < impl_->config.n_layers; ++i) {
    const LayerWeights& layer = impl_->weights.layers[static_cast<size_t>(i)];
    impl_->attention(layer, i, n_rows);
    impl_->feed_forward(layer, n_rows);
  }
  impl_->output(rows);
}

void Model::project(int first, int n) {
  CHECK(first >= 0 && n > 0 && first + n <= static_cast<int>(impl_->tokens.size()));
  for (int i = 0; i < n; ++i) impl_->norm_row(first + i, i);
  impl_->project(n);
}

std::span<const float> Model::logits(int i) const {
  CHECK(i >= 0 && i < impl_->options.max_logit_rows);
  return {impl_->logits + int64_t{i} * impl_->config.n_vocab,
          static_cast<size_t>(impl_->config.n_vocab)};
}

int Model::length(int seq) const { return impl_->cache->length(seq); }
void Model::truncate(int seq, int n_keep) { impl_->cache->truncate(seq, n_keep); }
void Model::repeat(int seq, int n) { impl_->cache->repeat(seq, n); }

void Model::shift(int seq, int n_keep, int n_discard) {
  CHECK(impl_->options.shifts && n_keep % kPagePositions == 0 && n_discard % kPagePositions == 0);
  impl_->cache->shift(seq, n_keep / kPagePositions, n_discard / kPagePositions);
}
Result<int64_t> Model::save(int seq, std::span<const int32_t> tokens, const std::string& path,
                            const KeepGoing& keep_going) const {
  CHECK(impl_->options.saves);
  return save_sequence(path, impl_->identity, tokens, *impl_->cache, seq, keep_going);
}
Result<SavedSequence> Model::open_saved(const std::string& path,
                                        const KeepGoing& keep_going) const {
  CHECK(impl_->options.saves);
  return SavedSequence::open(path, impl_->identity, impl_->options.shifts, impl_->options.n_ctx,
                             keep_going);
}
void Model::make_room(int seq, const SavedSequence& saved) { saved.make_room(*impl_->cache, seq); }
Status Model::fill(int seq, const SavedSequence& saved, const KeepGoing& keep_going) {
  return saved.fill(*impl_->cache, seq, keep_going);
}
void Model::copy(int from, int to, int n) { impl_->cache->copy(from, to, n); }

}  // namespace bantam
