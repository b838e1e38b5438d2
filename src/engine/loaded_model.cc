#include "engine/loaded_model.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <utility>

#include "base/limits.h"
#include "cpu/factory.h"

extern "C" {
extern const char bantam_builtin_model[] __attribute__((visibility("hidden")));
extern const char bantam_builtin_model_end[] __attribute__((visibility("hidden")));
}

namespace bantam {

namespace {

// Code, libraries, stacks, the event loop and its buffers (measured with /usr/bin/time on the empty
// server).
constexpr int64_t kProcessBytes = 7 << 20;

std::string format(const char* pattern, double a, double b = 0, double c = 0) {
  std::array<char, 256> text{};
  std::snprintf(text.data(), text.size(), pattern, a, b, c);
  return text.data();
}

double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

Result<MappedFile> open_model(const EngineOptions& options) {
  if (!options.model_path.empty()) return MappedFile::open(options.model_path);
  const auto* data = reinterpret_cast<const std::byte*>(bantam_builtin_model);
  const auto size = static_cast<size_t>(bantam_builtin_model_end - bantam_builtin_model);
  return MappedFile::from_memory({data, size}, "built-in");
}

std::string file_name(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

// Everything that planning finds out, before memory is taken.
struct Planned {
  ModelConfig config;
  ModelOptions model_options;
  AttentionPlan attention;
  std::unique_ptr<Backend> backend;
  ModelReport report;
};

int round_context(int64_t n) {
  return static_cast<int>((n + kPagePositions - 1) / kPagePositions * kPagePositions);
}

void describe_file(const Gguf& file, const EngineOptions& options, ModelReport& report) {
  report.model_path = file.file().path();
  report.file_bytes = static_cast<int64_t>(file.file().size());
  std::map<std::string, int> counts;
  for (const GgufTensor& tensor : file.tensors()) {
    ++counts[display_name(tensor.type)];
    const int64_t n = tensor.dims[0] * tensor.dims[1] * tensor.dims[2] * tensor.dims[3];
    report.n_params += n;
    const bool looked_up_only =
        tensor.name == "token_embd.weight" && file.find_tensor("output.weight") != nullptr;
    if (tensor.n_dims == 2 && !looked_up_only) {
      report.matrix_weights += n;
      report.matrix_bytes += static_cast<int64_t>(tensor.n_bytes);
    }
  }
  for (const auto& [name, n] : counts) {
    report.weight_types +=
        (report.weight_types.empty() ? "" : ", ") + name + " x " + std::to_string(n);
  }
  if (Result<std::string_view> text = file.text_or("tokenizer.chat_template", ""); text) {
    report.chat_template = std::string(*text);
  }
  report.id = options.alias;
  if (report.id.empty() && !options.model_path.empty()) report.id = file_name(options.model_path);
}

void describe_config(const ModelConfig& config, const EngineOptions& options, ModelReport& report) {
  report.name = config.name;
  if (report.id.empty()) report.id = config.name.empty() ? "model" : config.name;
  report.arch = config.arch;
  report.n_vocab = config.n_vocab;
  report.n_layers = config.n_layers;
  report.d_model = config.d_model;
  report.d_ff = config.d_ff;
  report.n_heads = config.n_heads;
  report.n_kv_heads = config.n_kv_heads;
  report.head_dim = config.head_dim;
  report.n_ctx_train = config.n_ctx_train;
  report.n_slots = options.n_slots;
  report.type_k = options.type_k;
  report.type_v = options.type_v;
  report.act = options.act;
}

// Rows computed together: as many as asked for, as long as the scratch stays small (the 24 MiB
// promise).
void choose_rows(const EngineOptions& options, Planned& planned) {
  constexpr int64_t kComputeBudget = 11 << 19;
  ModelOptions& o = planned.model_options;
  o.max_logit_rows = std::max(options.n_slots, options.n_logit_rows);
  const int most =
      std::max({1, options.n_slots, std::min({64, options.n_batch, options.n_ubatch})});
  o.max_rows = most;
  const auto bytes = [&] {
    const int64_t logits = int64_t{o.max_logit_rows} * planned.config.n_vocab * 4;
    return Model::compute_bytes(planned.config, o, *planned.backend) - logits;
  };
  const int step = planned.backend->row_step();
  while (o.max_rows > std::max(options.n_slots, 16) && bytes() > kComputeBudget) {
    o.max_rows = (o.max_rows - 1) / step * step;
  }
  o.max_rows = std::min(most, std::max(o.max_rows, options.n_slots));
}

int64_t tokenizer_bytes(const ModelConfig& config) { return int64_t{config.n_vocab} * 56; }

MemoryPlan memory_plan(const Planned& planned, int n_ctx) {
  MemoryPlan memory = planned.report.memory;
  memory.kv_bytes =
      Model::kv_bytes(planned.config, planned.attention, n_ctx, planned.model_options.n_seqs);
  return memory;
}

// The largest context of one slot that fits, 0 when even 256 positions do not.
int largest_context(const Planned& planned, int most) {
  const int64_t left = planned.report.memory.available_bytes - memory_plan(planned, 0).total();
  const int64_t page = Model::kv_bytes(planned.config, planned.attention, kPagePositions,
                                       planned.model_options.n_seqs);
  if (left < page) return 0;
  return static_cast<int>(std::min<int64_t>(left / page * kPagePositions, most));
}

Error too_large(const Planned& planned, const Backend& backend, int n_ctx) {
  const MemoryPlan memory = memory_plan(planned, n_ctx);
  std::string text = format("not enough memory: %.0f MiB needed, %.0f MiB available",
                            mib(memory.total()), mib(memory.available_bytes)) +
                     format(" (weights %.0f MiB, KV %.0f MiB, rest", mib(memory.weight_bytes),
                            mib(memory.kv_bytes)) +
                     format(" %.0f MiB)", mib(memory.compute_bytes + memory.rest_bytes));
  const int fits = largest_context(planned, n_ctx);
  const char* k = info(planned.attention.k()).name;
  const char* v = info(planned.attention.v()).name;
  text += fits > 0 ? "; -c " + std::to_string(fits * planned.model_options.n_seqs) +
                         " fits with K " + k + " and V " + v
                   : std::string("; no context fits with K ") + k + " and V " + v;
  std::string types;
  for (int i = 0; i < kNumKvTypes; ++i) {
    const KvType type = static_cast<KvType>(i);
    Result<AttentionPlan> plan = plan_attention(backend, type, type, planned.attention.shape());
    if (!plan) continue;
    const int64_t kv = Model::kv_bytes(planned.config, *plan, n_ctx, planned.model_options.n_seqs);
    if (memory_plan(planned, 0).total() + kv > memory.available_bytes) continue;
    types += (types.empty() ? "" : " ") + std::string(info(type).name);
  }
  text += types.empty() ? "; no KV type makes this context fit"
                        : "; this context fits with -ctk and -ctv one of: " + types;
  return refused(text);
}

// Context of one slot from the request, the training context and the memory.
Result<int> choose_context(const EngineOptions& options, const Planned& planned) {
  const int trained = round_context(planned.config.n_ctx_train);
  const int most = std::min(trained, kMaxContext);
  const bool enforce = planned.report.memory.available_bytes > 0;
  if (options.n_ctx == -1) {
    const int wanted = std::max(kPagePositions, round_context(most / options.n_slots));
    if (!enforce) return wanted;
    const int fits = largest_context(planned, wanted);
    if (fits == 0) return too_large(planned, *planned.backend, kPagePositions);
    return fits;
  }
  const int64_t total = options.n_ctx == 0 ? planned.config.n_ctx_train : options.n_ctx;
  const int n_ctx = round_context(std::max<int64_t>(1, total / options.n_slots));
  if (n_ctx > kMaxContext) {
    return refused("context " + std::to_string(n_ctx) + " is above the limit of " +
                   std::to_string(kMaxContext) + " positions");
  }
  if (enforce && memory_plan(planned, n_ctx).total() > planned.report.memory.available_bytes) {
    return too_large(planned, *planned.backend, n_ctx);
  }
  return n_ctx;
}

// What of the files may stay in the page cache: what is available beyond the plan, less an eighth
// for everything else that runs. On a PC that is the whole file and the next start is quick; on a
// small board it is little or nothing, and the weights are in memory once.
int64_t page_cache_room(const MemoryPlan& memory) {
  return memory.available_bytes - memory.available_bytes / 8 - memory.total();
}

Status check_options(const EngineOptions& options) {
  const auto wrong = [](const char* what, int64_t got, const std::string& expected) {
    return refused(std::string(what) + ": got " + std::to_string(got) + ", expected " + expected);
  };
  if (options.n_slots < 1 || options.n_slots > kMaxSequences) {
    return wrong("slots", options.n_slots, "1 to " + std::to_string(kMaxSequences));
  }
  if (options.n_ctx < -1) return wrong("context", options.n_ctx, "0 or more");
  if (options.n_batch < 1) return wrong("batch size", options.n_batch, "1 or more");
  if (options.n_ubatch < 1) return wrong("ubatch size", options.n_ubatch, "1 or more");
  if (options.n_logit_rows < 0 || options.n_logit_rows > 64) {
    return wrong("logit rows", options.n_logit_rows, "0 to 64");
  }
  return Ok{};
}

Result<Planned> make_plan(const Gguf& file, const EngineOptions& options) {
  if (Status status = check_options(options); !status) return status.error();
  Result<ModelConfig> config = read_config(file);
  if (!config) return config.error();
  std::vector<std::string> warnings;
  Result<std::unique_ptr<Backend>> backend = make_cpu_backend(
      {options.n_threads, options.n_threads_batch, options.isa, options.team, options.team_batch},
      &warnings);
  if (!backend) return backend.error();
  Result<AttentionPlan> attention =
      plan_attention(**backend, options.type_k, options.type_v,
                     {config->n_heads, config->n_kv_heads, config->head_dim});
  if (!attention) return attention.error();
  Planned planned{*config, {}, *attention, std::move(*backend), {}};
  Result<int64_t> weights = Model::weight_bytes(file, *config, *planned.backend);
  if (!weights) return weights.error();
  planned.model_options.type_k = options.type_k;
  planned.model_options.type_v = options.type_v;
  planned.model_options.n_seqs = options.n_slots;
  planned.model_options.act = options.act;
  planned.model_options.saves = options.saves;
  planned.model_options.shifts = options.context_shift;
  choose_rows(options, planned);
  describe_file(file, options, planned.report);
  describe_config(*config, options, planned.report);
  MemoryPlan& memory = planned.report.memory;
  memory.weight_bytes = *weights;
  memory.compute_bytes = Model::compute_bytes(*config, planned.model_options, *planned.backend);
  memory.rest_bytes = kProcessBytes + tokenizer_bytes(*config);
  memory.available_bytes = available_memory_bytes();
  Result<int> n_ctx = choose_context(options, planned);
  if (!n_ctx) return n_ctx.error();
  if (options.context_shift && *n_ctx < 2 * kPagePositions) {
    return refused("--context-shift moves whole pages of " + std::to_string(kPagePositions) +
                   " positions: got a context of " + std::to_string(*n_ctx) +
                   " in each slot, expected at least " + std::to_string(2 * kPagePositions));
  }
  planned.model_options.n_ctx = *n_ctx;
  memory = memory_plan(planned, *n_ctx);
  planned.model_options.load = {options.pack_cache, page_cache_room(memory)};
  ModelReport& report = planned.report;
  report.n_ctx = *n_ctx;
  const int64_t cells =
      int64_t{*n_ctx} / 32 * options.n_slots * config->n_layers * config->n_kv_heads;
  report.kv_bytes_k = cells * attention->tile_bytes_k();
  report.kv_bytes_v = cells * attention->tile_bytes_v();
  report.team = options.team;
  report.warnings = std::move(warnings);
  report.n_threads = planned.backend->n_threads();
  report.n_threads_batch = planned.backend->n_threads_batch();
  report.backend = planned.backend->name();
  report.isa = planned.backend->isa();
  report.cpu = planned.backend->device();
  report.attention = attention->describe();
  return planned;
}

}  // namespace

std::vector<std::string> report_lines(const ModelReport& r) {
  const MemoryPlan& m = r.memory;
  std::vector<std::string> lines;
  lines.push_back("model: " + r.id + " (" + r.arch +
                  format(", %.2f M parameters, file ", double(r.n_params) / 1e6) +
                  format("%.2f MiB), ", mib(r.file_bytes)) + r.weight_types);
  lines.push_back("device: CPU " + r.cpu + ", " + r.isa + ", " + std::to_string(r.n_threads) +
                  " threads (batch " + std::to_string(r.n_threads_batch) + ")");
  if (r.isa.starts_with("scalar")) {
    lines.push_back(r.isa + " runs, slowly: this CPU has no vector kernels here, or BANTAM_ISA " +
                    "forbids them");
  }
  lines.push_back("attention: " + r.attention);
  lines.push_back("context: " + std::to_string(r.n_ctx) + " positions in each of " +
                  std::to_string(r.n_slots) + (r.n_slots == 1 ? " slot" : " slots") +
                  ", trained for " + std::to_string(r.n_ctx_train));
  lines.push_back(format("CPU KV buffer size = %.2f MiB", mib(m.kv_bytes)));
  lines.push_back(format("KV self size = %.2f MiB (", mib(m.kv_bytes)) +
                  std::to_string(r.n_ctx * r.n_slots) + " cells, " + std::to_string(r.n_layers) +
                  " layers, " + std::to_string(r.n_slots) + " seqs), K (" + info(r.type_k).name +
                  "): " + format("%.2f MiB, V (", mib(r.kv_bytes_k)) + info(r.type_v).name +
                  "): " + format("%.2f MiB", mib(r.kv_bytes_v)));
  lines.push_back(format("compute buffer size = %.2f MiB", mib(m.compute_bytes)));
  lines.push_back(
      format("memory: weights %.2f + KV %.2f", mib(m.weight_bytes), mib(m.kv_bytes)) +
      format(" + compute %.2f + rest %.2f", mib(m.compute_bytes), mib(m.rest_bytes)) +
      format(" = %.2f MiB of %.0f MiB available", mib(m.total()), mib(m.available_bytes)));
  return lines;
}

std::string load_line(const ModelReport& r) {
  const double gb = static_cast<double>(r.load.read_bytes) / 1e9;
  std::string line = format("weights loaded in %.2f s", r.load.seconds);
  if (r.load.mapped.empty()) {
    return line + format(" (read %.2f GB, %.2f GB/s)", gb, gb / std::max(1e-9, r.load.seconds));
  }
  // The plan counts them like weights in memory: they must be resident to be fast.
  return line + ": mapped from '" + r.load.mapped +
         "', file-backed (counted in the plan, shared with other processes that map it)";
}

LoadedModel::LoadedModel() = default;
LoadedModel::~LoadedModel() = default;

Result<ModelReport> LoadedModel::plan(const EngineOptions& options) {
  Result<MappedFile> mapped = open_model(options);
  if (!mapped) return mapped.error();
  Result<Gguf> file = Gguf::parse(*mapped);
  if (!file) return file.error();
  Result<Planned> planned = make_plan(*file, options);
  if (!planned) return planned.error();
  return planned->report;
}

Result<Tokenizer> LoadedModel::tokenizer_of(const EngineOptions& options) {
  Result<MappedFile> mapped = open_model(options);
  if (!mapped) return mapped.error();
  Result<Gguf> file = Gguf::parse(*mapped);
  if (!file) return file.error();
  return Tokenizer::from_gguf(*file);
}

std::string instruction_sets() { return isa_names(); }

Result<std::unique_ptr<LoadedModel>> LoadedModel::load(
    const EngineOptions& options, const std::function<void(const ModelReport&)>& planned_sink,
    const LoadEvents& events) {
  Result<MappedFile> mapped = open_model(options);
  if (!mapped) return mapped.error();
  Result<Gguf> file = Gguf::parse(*mapped);
  if (!file) return file.error();
  Result<Planned> planned = make_plan(*file, options);
  if (!planned) return planned.error();
  if (planned_sink) planned_sink(planned->report);
  Result<Tokenizer> tokenizer = Tokenizer::from_gguf(*file);
  if (!tokenizer) return tokenizer.error();
  if (tokenizer->n_vocab() > planned->config.n_vocab) {
    return refused("the tokenizer has " + std::to_string(tokenizer->n_vocab()) +
                   " tokens, the embedding only " + std::to_string(planned->config.n_vocab) +
                   " rows");
  }
  std::unique_ptr<LoadedModel> loaded(new LoadedModel);
  loaded->report_ = planned->report;
  loaded->tokenizer_ = std::make_unique<Tokenizer>(std::move(*tokenizer));
  Result<std::unique_ptr<Model>> model =
      Model::load(*file, planned->config, planned->attention, planned->model_options,
                  std::move(planned->backend), events);
  if (!model) return model.error();
  loaded->model_ = std::move(*model);
  loaded->report_.load = loaded->model_->load_report();
  loaded->rows_.reserve(static_cast<size_t>(loaded->model_->options().max_rows));
  return loaded;
}

Status LoadedModel::eval(int seq, std::span<const int32_t> tokens, int chunk, bool all_logits,
                         const LogitsSink& on_logits, const std::function<bool()>& keep_going) {
  const ModelOptions& options = model_->options();
  const int start = model_->length(seq);
  if (start + static_cast<int64_t>(tokens.size()) > options.n_ctx) {
    return Error{ErrorKind::too_long, std::to_string(start + tokens.size()) +
                                          " tokens exceed the context of " +
                                          std::to_string(options.n_ctx)};
  }
  int step = chunk > 0 ? std::min(chunk, options.max_rows) : options.max_rows;
  if (all_logits) step = std::min(step, options.max_logit_rows);
  for (size_t done = 0; done < tokens.size();) {
    if (keep_going && !keep_going()) return Error{ErrorKind::cancelled, "cancelled"};
    const size_t n = std::min(static_cast<size_t>(step), tokens.size() - done);
    rows_.clear();
    for (size_t i = 0; i < n; ++i) {
      const bool last = done + i + 1 == tokens.size();
      rows_.push_back({tokens[done + i], seq, start + static_cast<int>(done + i),
                       on_logits && (all_logits || last)});
    }
    model_->step(rows_);
    int index = 0;
    for (const BatchRow& row : rows_) {
      if (row.want_logits) on_logits(row.pos, model_->logits(index++));
    }
    done += n;
  }
  return Ok{};
}

void LoadedModel::truncate(int seq, int n_keep) { model_->truncate(seq, n_keep); }
void LoadedModel::copy(int from, int to, int n) { model_->copy(from, to, n); }
void LoadedModel::repeat(int seq, int n) { model_->repeat(seq, n); }
void LoadedModel::shift(int seq, int n_keep, int n_discard) {
  model_->shift(seq, n_keep, n_discard);
}
int LoadedModel::length(int seq) const { return model_->length(seq); }

TeamSpeeds measure_machine(const ModelReport& report, const EngineOptions& options) {
  return measure_cpu(
      {report.n_threads, report.n_threads_batch, report.isa, options.team, options.team_batch});
}

}  // namespace bantam
