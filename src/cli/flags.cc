#include "cli/flags.h"

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "base/limits.h"
#include "base/log.h"

namespace bantam {

namespace {

using Setter = std::function<Status(CliOptions&, std::string_view)>;

Error wrong_value(std::string_view got, const std::string& expected) {
  return refused("got '" + std::string(got.substr(0, 80)) + "', expected " + expected);
}

Result<int64_t> to_integer(std::string_view text, int64_t min, int64_t max) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < min || value > max) {
    return wrong_value(text,
                       "a whole number from " + std::to_string(min) + " to " + std::to_string(max));
  }
  return value;
}

Result<double> to_number(std::string_view text) {
  const std::string copy(text);
  char* end = nullptr;
  const double value = std::strtod(copy.c_str(), &end);
  if (copy.empty() || *end != '\0' || !std::isfinite(value)) return wrong_value(text, "a number");
  return value;
}

template <class Target>
Setter integer(Target target, int64_t min, int64_t max) {
  return [=](CliOptions& o, std::string_view text) -> Status {
    Result<int64_t> value = to_integer(text, min, max);
    if (!value) return value.error();
    target(o) = static_cast<std::remove_reference_t<decltype(target(o))>>(*value);
    return Ok{};
  };
}

template <class Target>
Setter number(Target target) {
  return [=](CliOptions& o, std::string_view text) -> Status {
    Result<double> value = to_number(text);
    if (!value) return value.error();
    target(o) = static_cast<float>(*value);
    return Ok{};
  };
}

template <class Target>
Setter text(Target target) {
  return [=](CliOptions& o, std::string_view value) -> Status {
    target(o) = std::string(value);
    return Ok{};
  };
}

template <class Target>
Setter toggle(Target target, bool on) {
  return [=](CliOptions& o, std::string_view) -> Status {
    target(o) = on;
    return Ok{};
  };
}

Setter kv_type(bool keys) {
  return [=](CliOptions& o, std::string_view name) -> Status {
    if (o.command == Command::bench) {
      (keys ? o.list_k : o.list_v) = std::string(name);
      return Ok{};
    }
    Result<KvType> type = parse_kv_type(name);
    if (!type) return type.error();
    (keys ? o.engine.type_k : o.engine.type_v) = *type;
    o.kv_given = true;
    return Ok{};
  };
}

// Harmless here: accepted with one line.
Setter no_effect(const char* reason) {
  return [=](CliOptions& o, std::string_view) -> Status {
    o.notes.push_back(reason);
    return Ok{};
  };
}

// Ignoring it would change answers or break a promise.
Setter refuse(const char* reason) {
  return [=](CliOptions&, std::string_view) -> Status { return refused(reason); };
}

Setter silent() {
  return [](CliOptions&, std::string_view) -> Status { return Ok{}; };
}

Status set_threads(CliOptions& o, std::string_view value, bool batch) {
  if (o.command == Command::bench && !batch) {
    o.list_threads = std::string(value);
    return Ok{};
  }
  if (value == "-1") return Ok{};  // llama.cpp's spelling of "choose"
  Result<int64_t> n = to_integer(value, 1, kMaxThreads);
  if (!n) return n.error();
  (batch ? o.engine.n_threads_batch : o.engine.n_threads) = static_cast<int>(*n);
  return Ok{};
}

Status set_context(CliOptions& o, std::string_view value) {
  Result<int64_t> n = to_integer(value, 0, int64_t{kMaxContext} * kMaxSequences);
  if (!n) return n.error();
  o.engine.n_ctx = static_cast<int>(*n);
  return Ok{};
}

Status set_slots(CliOptions& o, std::string_view value) {
  if (value == "-1") return Ok{};
  Result<int64_t> n = to_integer(value, 1, kMaxSequences);
  if (!n) return n.error();
  o.engine.n_slots = static_cast<int>(*n);
  return Ok{};
}

Status set_act(CliOptions& o, std::string_view value) {
  if (value == "i8") {
    o.engine.act = ActType::i8;
  } else if (value == "f32") {
    o.engine.act = ActType::f32;
  } else if (value == "i16") {
    return refused("activations i16 are not built yet; use i8 or f32");
  } else {
    return wrong_value(value, "i8 or f32");
  }
  return Ok{};
}

Status set_tokens(CliOptions& o, std::string_view value) {
  o.tokens.clear();
  while (!value.empty()) {
    const size_t comma = value.find(',');
    Result<int64_t> id = to_integer(value.substr(0, comma), 0, kMaxVocab);
    if (!id) return id.error();
    o.tokens.push_back(static_cast<int32_t>(*id));
    value = comma == std::string_view::npos ? std::string_view() : value.substr(comma + 1);
    if (comma != std::string_view::npos && value.empty())
      return wrong_value(",", "a token id after the comma");
  }
  return Ok{};
}

Status read_text_file(std::string_view path, std::string& out) {
  std::ifstream file{std::string(path), std::ios::binary};
  std::ostringstream content;
  if (!file || !(content << file.rdbuf()))
    return refused("cannot read '" + std::string(path) + "'");
  out = content.str();
  return Ok{};
}

Status set_api_keys(CliOptions& o, std::string_view value) {
  while (!value.empty()) {
    const size_t comma = value.find_first_of(",\n");
    const std::string_view key = value.substr(0, comma);
    if (!key.empty()) o.api_keys.emplace_back(key);
    value = comma == std::string_view::npos ? std::string_view() : value.substr(comma + 1);
  }
  return o.api_keys.empty() ? Status(refused("expected at least one key")) : Status(Ok{});
}

Status set_gpu_layers(CliOptions& o, std::string_view value) {
  if (value != "0") o.gpu_layers_given = true;
  return Ok{};
}

Status set_output(CliOptions& o, std::string_view value) {
  if (value != "md" && value != "json" && value != "jsonl" && value != "csv") {
    return wrong_value(value, "md, json, jsonl or csv");
  }
  o.output = std::string(value);
  return Ok{};
}

Status set_format(CliOptions& o, std::string_view value) {
  if (value != "json" && value != "f32") return wrong_value(value, "json or f32");
  o.format = std::string(value);
  return Ok{};
}

Status set_chunk(CliOptions& o, std::string_view value) {
  if (o.command == Command::logits && value == "all") {
    o.chunk = 0;
    return Ok{};
  }
  Result<int64_t> n = to_integer(value, 1, 1 << 20);
  if (!n) return n.error();
  o.chunk = o.engine.n_batch = static_cast<int>(*n);
  return Ok{};
}

#define FIELD(expression) \
  [](CliOptions & o) -> auto& { return o.expression; }

void add_model_flags(std::vector<Flag>& rows) {
  const unsigned run = kAll;
  rows.push_back({{"-m", "--model"},
                  "LLAMA_ARG_MODEL",
                  "FILE",
                  run,
                  text(FIELD(engine.model_path)),
                  "GGUF file; without it the built-in model"});
  rows.push_back({{"-a", "--alias"},
                  "LLAMA_ARG_ALIAS",
                  "NAME",
                  kServe,
                  text(FIELD(engine.alias)),
                  "name shown to clients"});
  rows.push_back({{"-c", "--ctx-size"},
                  "LLAMA_ARG_CTX_SIZE",
                  "N",
                  kRun,
                  set_context,
                  "context of all slots together; 0: as trained; default: what fits"});
  rows.push_back({{"-np", "--parallel"},
                  "LLAMA_ARG_N_PARALLEL",
                  "N",
                  kServe | kInfo,
                  set_slots,
                  "slots, each with its part of the context (default 1)"});
  rows.push_back({{"-ctk", "--cache-type-k"},
                  "LLAMA_ARG_CACHE_TYPE_K",
                  "TYPE",
                  run,
                  kv_type(true),
                  "type of the K cache (default q8_0; bench f16)"});
  rows.push_back({{"-ctv", "--cache-type-v"},
                  "LLAMA_ARG_CACHE_TYPE_V",
                  "TYPE",
                  run,
                  kv_type(false),
                  "type of the V cache (default q8_0; bench f16)"});
  rows.push_back({{"-t", "--threads"},
                  "LLAMA_ARG_THREADS",
                  "N",
                  run,
                  [](CliOptions& o, std::string_view v) { return set_threads(o, v, false); },
                  "threads for single tokens (default: physical cores)"});
  rows.push_back({{"-tb", "--threads-batch"},
                  "LLAMA_ARG_THREADS_BATCH",
                  "N",
                  run,
                  [](CliOptions& o, std::string_view v) { return set_threads(o, v, true); },
                  "threads for prompts (default: as -t)"});
  rows.push_back({{"-b", "--batch-size"},
                  "LLAMA_ARG_BATCH",
                  "N",
                  run,
                  set_chunk,
                  "prompt tokens of one step at most (logits: also 'all')"});
  rows.push_back({{"-ub", "--ubatch-size"},
                  "LLAMA_ARG_UBATCH",
                  "N",
                  run,
                  integer(FIELD(engine.n_ubatch), 1, 1 << 20),
                  "tokens computed together at most"});
  rows.push_back({{"--act"},
                  "BANTAM_ACT",
                  "TYPE",
                  run,
                  set_act,
                  "rounding of activations: i8 (default), f32 (exact, slow)"});
  rows.push_back({{"-ngl", "--gpu-layers", "--n-gpu-layers"},
                  "LLAMA_ARG_N_GPU_LAYERS",
                  "N",
                  run,
                  set_gpu_layers,
                  "accepted; this build has no GPU backend"});
}

void add_sampling_flags(std::vector<Flag>& rows) {
  const unsigned c = kServe | kChat;
  rows.push_back({{"-n", "--predict", "--n-predict"},
                  "LLAMA_ARG_N_PREDICT",
                  "N",
                  c,
                  integer(FIELD(n_predict), -1, 1 << 30),
                  "tokens to generate at most (-1: no limit)"});
  rows.push_back({{"--temp", "--temperature"},
                  "LLAMA_ARG_TEMP",
                  "X",
                  c,
                  number(FIELD(sampling.temperature)),
                  "temperature (0.8; 0: greedy)"});
  rows.push_back({{"--top-k"},
                  "LLAMA_ARG_TOP_K",
                  "N",
                  c,
                  integer(FIELD(sampling.top_k), -1, 1 << 30),
                  "top-k (40; 0: off)"});
  rows.push_back(
      {{"--top-p"}, "LLAMA_ARG_TOP_P", "X", c, number(FIELD(sampling.top_p)), "top-p (0.95)"});
  rows.push_back(
      {{"--min-p"}, "LLAMA_ARG_MIN_P", "X", c, number(FIELD(sampling.min_p)), "min-p (0.05)"});
  rows.push_back({{"-s", "--seed"},
                  "LLAMA_ARG_SEED",
                  "N",
                  c,
                  integer(FIELD(sampling.seed), -1, INT64_MAX),
                  "seed (-1: random)"});
  rows.push_back(
      {{"--repeat-penalty"}, "", "X", c, number(FIELD(sampling.repeat_penalty)), "1.0: off"});
  rows.push_back(
      {{"--repeat-last-n"}, "", "N", c, integer(FIELD(sampling.repeat_last_n), -1, 1 << 30), "64"});
  rows.push_back(
      {{"--frequency-penalty"}, "", "X", c, number(FIELD(sampling.frequency_penalty)), "0: off"});
  rows.push_back(
      {{"--presence-penalty"}, "", "X", c, number(FIELD(sampling.presence_penalty)), "0: off"});
}

void add_serve_flags(std::vector<Flag>& rows) {
  rows.push_back(
      {{"--host"}, "LLAMA_ARG_HOST", "ADDR", kServe, text(FIELD(host)), "address (127.0.0.1)"});
  rows.push_back({{"--port"},
                  "LLAMA_ARG_PORT",
                  "N",
                  kServe,
                  integer(FIELD(port), 0, 65535),
                  "port (8080; 0: any free one)"});
  rows.push_back(
      {{"--api-key"}, "LLAMA_API_KEY", "KEYS", kServe, set_api_keys, "keys, comma separated"});
  rows.push_back({{"--api-key-file"},
                  "",
                  "FILE",
                  kServe,
                  [](CliOptions& o, std::string_view path) -> Status {
                    std::string keys;
                    if (Status status = read_text_file(path, keys); !status) return status;
                    return set_api_keys(o, keys);
                  },
                  "keys, one on a line"});
  rows.push_back({{"-to", "--timeout"},
                  "LLAMA_ARG_TIMEOUT",
                  "S",
                  kServe,
                  integer(FIELD(timeout_s), 1, 86400),
                  "seconds without progress until a connection is closed (600)"});
  rows.push_back({{"--metrics"},
                  "LLAMA_ARG_ENDPOINT_METRICS",
                  "",
                  kServe,
                  toggle(FIELD(metrics), true),
                  "GET /metrics for Prometheus"});
  rows.push_back({{"--slots"},
                  "LLAMA_ARG_ENDPOINT_SLOTS",
                  "",
                  kServe,
                  toggle(FIELD(slots), true),
                  "GET /slots (default)"});
  rows.push_back({{"--no-slots"}, "", "", kServe, toggle(FIELD(slots), false), "no GET /slots"});
  rows.push_back(
      {{"--webui"}, "", "", kServe, toggle(FIELD(page), true), "the chat page at / (default)"});
  rows.push_back({{"--no-webui"}, "", "", kServe, toggle(FIELD(page), false), "no chat page"});
}

void add_chat_flags(std::vector<Flag>& rows) {
  rows.push_back(
      {{"-p", "--prompt"}, "", "TEXT", kChat, text(FIELD(prompt)), "one question; then exit"});
  rows.push_back({{"-f", "--file"},
                  "",
                  "FILE",
                  kChat | kTokenize | kLogits,
                  text(FIELD(file)),
                  "read the prompt (logits: token ids) from a file"});
  rows.push_back(
      {{"-sys", "--system-prompt"}, "", "TEXT", kChat, text(FIELD(system)), "system message"});
  rows.push_back({{"-st", "--single-turn"},
                  "",
                  "",
                  kChat,
                  toggle(FIELD(single_turn), true),
                  "one answer, then exit"});
  rows.push_back({{"--show-timings"},
                  "",
                  "",
                  kChat,
                  toggle(FIELD(show_timings), true),
                  "speeds after each answer"});
  rows.push_back(
      {{"--no-show-timings"}, "", "", kChat, toggle(FIELD(show_timings), false), "no speeds"});
}

void add_bench_flags(std::vector<Flag>& rows) {
  rows.push_back(
      {{"-p", "--n-prompt"}, "", "LIST", kBench, text(FIELD(list_prompt)), "prompt lengths (512)"});
  rows.push_back(
      {{"-n", "--n-gen"}, "", "LIST", kBench, text(FIELD(list_gen)), "tokens to generate (128)"});
  rows.push_back(
      {{"-pg"}, "", "PP,TG", kBench, text(FIELD(list_pg)), "prompt and generation in one test"});
  rows.push_back({{"-d", "--n-depth"},
                  "",
                  "LIST",
                  kBench,
                  text(FIELD(list_depth)),
                  "positions already in the cache (0)"});
  rows.push_back({{"-r", "--repetitions"},
                  "",
                  "N",
                  kBench,
                  integer(FIELD(repetitions), 1, 1000),
                  "runs of each test (5)"});
  rows.push_back({{"-o", "--output"}, "", "FMT", kBench, set_output, "md, json, jsonl, csv"});
  rows.push_back(
      {{"--progress"}, "", "", kBench, toggle(FIELD(progress), true), "say what runs, to stderr"});
}

void add_tool_flags(std::vector<Flag>& rows) {
  rows.push_back({{"--tokens"}, "", "IDS", kLogits, set_tokens, "token ids, comma separated"});
  rows.push_back(
      {{"--format"}, "", "FMT", kLogits, set_format, "json lines (default) or raw f32 rows"});
  rows.push_back({{"--beside"},
                  "",
                  "N",
                  kLogits,
                  integer(FIELD(beside), 0, 8),
                  "run N other sequences in the same batches"});
  rows.push_back({{"--json"}, "", "", kInfo, toggle(FIELD(json), true), "as JSON"});
}

void add_common_flags(std::vector<Flag>& rows) {
  rows.push_back(
      {{"-h", "--help", "--usage"}, "", "", kAll, toggle(FIELD(help), true), "this text"});
  rows.push_back({{"--version"},
                  "",
                  "",
                  kAll,
                  toggle(FIELD(version), true),
                  "version, commit, instruction sets"});
  rows.push_back({{"-lv", "--verbosity", "--log-verbosity"},
                  "LLAMA_LOG_VERBOSITY",
                  "N",
                  kAll,
                  integer(FIELD(log_level), 0, 10),
                  "0 nothing, 1 errors, 2 warnings, 3 info, 4 debug"});
  rows.push_back({{"-v", "--verbose"},
                  "",
                  "",
                  kAll,
                  [](CliOptions& o, std::string_view) -> Status {
                    o.log_level = 4;
                    return Ok{};
                  },
                  "debug log"});
  rows.push_back({{"--log-disable"},
                  "",
                  "",
                  kAll,
                  [](CliOptions& o, std::string_view) -> Status {
                    o.log_level = 1;
                    return Ok{};
                  },
                  "errors only"});
  rows.push_back({{"--log-file"},
                  "LLAMA_LOG_FILE",
                  "FILE",
                  kAll,
                  text(FIELD(log_file)),
                  "log to a file as well"});
}

#undef FIELD

// Flags of llama.cpp that need nothing here.
void add_accepted_flags(std::vector<Flag>& rows) {
  const auto quiet = [&](std::vector<const char*> names, const char* value) {
    rows.push_back({std::move(names), "", value, kAll, silent(), ""});
  };
  const auto note = [&](std::vector<const char*> names, const char* value, const char* reason) {
    rows.push_back({std::move(names), "", value, kAll, no_effect(reason), ""});
  };
  quiet({"-fa", "--flash-attn"}, "MODE");  // attention is always of this kind
  quiet({"--jinja"}, "");
  quiet({"-cb", "--cont-batching"}, "");
  quiet({"--mmap"}, "");
  quiet({"--no-mmap"}, "");
  quiet({"-mmp"}, "N");
  quiet({"--cache-prompt"}, "");
  quiet({"--log-colors"}, "MODE");
  quiet({"--log-prefix"}, "");
  quiet({"--log-timestamps"}, "");
  quiet({"--no-warmup"}, "");
  quiet({"--warmup"}, "");
  quiet({"-cnv", "--conversation"}, "");
  quiet({"--simple-io"}, "");
  quiet({"-co", "--color"}, "");
  quiet({"-e", "--escape"}, "");
  quiet({"--no-context-shift"}, "");
  quiet({"-cram", "--cache-ram"}, "N");
  quiet({"-kvu", "--kv-unified"}, "");
  quiet({"--chat-template-kwargs"}, "JSON");
  note({"--mlock"}, "", "--mlock has no effect yet: weights are anonymous memory already");
  note({"--threads-http"}, "N",
       "--threads-http has no effect: one event loop serves all connections");
  note({"--poll"}, "N", "--poll has no effect: waiting spins 50 us, then sleeps");
  note({"--prio"}, "N", "--prio has no effect yet");
  note({"-C", "--cpu-mask"}, "MASK", "--cpu-mask has no effect yet: use taskset");
  note({"-Cr", "--cpu-range"}, "RANGE", "--cpu-range has no effect yet: use taskset");
  note({"--cpu-strict"}, "N", "--cpu-strict has no effect yet");
  note({"--numa"}, "MODE", "--numa has no effect");
  note({"-sps", "--slot-prompt-similarity"}, "X",
       "--slot-prompt-similarity has no effect: fixed at 0.1");
  note({"--reasoning-format"}, "MODE",
       "--reasoning-format has no effect yet: thoughts stay in the content");
  note({"-rea", "--reasoning"}, "MODE", "--reasoning has no effect yet");
  note({"--reasoning-budget"}, "N", "--reasoning-budget has no effect yet");
  note({"--no-jinja"}, "", "--no-jinja has no effect: prompts are ChatML in this version");
  note({"--keep"}, "N", "--keep has no effect: the context is never shifted in this version");
  note({"-sm", "--split-mode"}, "MODE", "--split-mode has no effect: there is no GPU backend");
  note({"-mg", "--main-gpu"}, "N", "--main-gpu has no effect: there is no GPU backend");
  note({"-ts", "--tensor-split"}, "LIST", "--tensor-split has no effect: there is no GPU backend");
}

void add_refused_flags(std::vector<Flag>& rows) {
  const auto no = [&](std::vector<const char*> names, const char* value, const char* reason) {
    rows.push_back({std::move(names), "", value, kAll, refuse(reason), ""});
  };
  no({"--lora"}, "FILE", "adapters (--lora) are not supported");
  no({"--lora-scaled"}, "FILE", "adapters (--lora-scaled) are not supported");
  no({"--control-vector"}, "FILE", "control vectors are not supported");
  no({"--mmproj"}, "FILE", "images (--mmproj) are not supported");
  no({"--embedding", "--embeddings"}, "", "embeddings are not supported");
  no({"--reranking", "--rerank"}, "", "reranking is not supported");
  no({"--grammar"}, "TEXT", "grammars are not supported yet");
  no({"--grammar-file"}, "FILE", "grammars are not supported yet");
  no({"-j", "--json-schema"}, "JSON", "JSON schemas are not supported yet");
  no({"--chat-template"}, "NAME", "other chat templates are not supported yet: prompts are ChatML");
  no({"--chat-template-file"}, "FILE",
     "other chat templates are not supported yet: prompts are ChatML");
  no({"-md", "--model-draft"}, "FILE", "draft models are not supported");
  no({"-hf", "--hf-repo"}, "REPO",
     "downloads are not supported: fetch the GGUF file and pass it with -m");
  no({"-mu", "--model-url"}, "URL",
     "downloads are not supported: fetch the GGUF file and pass it with -m");
  no({"--context-shift"}, "",
     "--context-shift is not supported yet: generation ends when the context is full");
  no({"--slot-save-path"}, "DIR", "saving slots is not supported yet");
  no({"--override-kv"}, "TEXT", "--override-kv is not supported: it would change the model");
  no({"--rope-scaling"}, "MODE", "--rope-scaling is not supported: the file's own scaling is used");
  no({"--rope-freq-base"}, "X", "--rope-freq-base is not supported: the file's own base is used");
  no({"--rope-freq-scale"}, "X",
     "--rope-freq-scale is not supported: the file's own scale is used");
  no({"--yarn-orig-ctx"}, "N", "--yarn-orig-ctx is not supported: the file's own value is used");
  no({"--ssl-key-file"}, "FILE", "this server is built without SSL support: use a reverse proxy");
  no({"--ssl-cert-file"}, "FILE", "this server is built without SSL support: use a reverse proxy");
  no({"--samplers"}, "LIST", "--samplers is not supported yet: top-k, top-p, min-p, temperature");
  no({"--mirostat"}, "N", "mirostat is not supported");
}

}  // namespace

unsigned bit_of(Command command) { return 1u << static_cast<unsigned>(command); }

const std::vector<Flag>& flags() {
  static const std::vector<Flag> rows = [] {
    std::vector<Flag> all;
    add_model_flags(all);
    add_sampling_flags(all);
    add_serve_flags(all);
    add_chat_flags(all);
    add_bench_flags(all);
    add_tool_flags(all);
    add_common_flags(all);
    add_accepted_flags(all);
    add_refused_flags(all);
    return all;
  }();
  return rows;
}

}  // namespace bantam
