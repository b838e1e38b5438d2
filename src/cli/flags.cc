#include "cli/flags.h"

#include <sys/stat.h>

#include <charconv>
#include <cmath>
#include <cstdlib>

#include "base/limits.h"
#include "base/log.h"

namespace bantam {

Error wrong_value(std::string_view got, const std::string& expected) {
  return refused("got '" + std::string(got.substr(0, 80)) + "', expected " + expected);
}

Result<double> to_number(std::string_view text) {
  const std::string copy(text);
  char* end = nullptr;
  const double value = std::strtod(copy.c_str(), &end);
  const bool starts_well = !copy.empty() && copy[0] != ' ' && copy[0] != '\t';
  if (!starts_well || *end != '\0' || !std::isfinite(value)) return wrong_value(text, "a number");
  return value;
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

unsigned bit_of(Command command) { return 1u << static_cast<unsigned>(command); }

namespace {

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
Setter number(Target target, double min, double max, const char* range) {
  return [=](CliOptions& o, std::string_view text) -> Status {
    Result<double> value = to_number(text);
    if (!value || *value < min || *value > max) return wrong_value(text, range);
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
Setter toggle(Target target) {
  return [=](CliOptions& o, std::string_view value) -> Status {
    target(o) = value == "on";
    return Ok{};
  };
}

template <class Target>
Setter from_file(Target target) {
  return [=](CliOptions& o, std::string_view path) -> Status {
    Result<std::string> content = read_text_file(std::string(path));
    if (!content) return content.error();
    target(o) = std::move(*content);
    return Ok{};
  };
}

// For bench the list as typed, with every name checked.
Status set_kv_type(CliOptions& o, std::string_view names, bool keys) {
  if (o.command != Command::bench) {
    Result<KvType> type = parse_kv_type(names);
    if (!type) return type.error();
    (keys ? o.engine.type_k : o.engine.type_v) = *type;
    o.kv_given = true;
    return Ok{};
  }
  for (size_t at = 0; at <= names.size();) {
    const size_t comma = std::min(names.find(',', at), names.size());
    if (Result<KvType> type = parse_kv_type(names.substr(at, comma - at)); !type)
      return type.error();
    at = comma + 1;
  }
  (keys ? o.list_k : o.list_v) = std::string(names);
  return Ok{};
}

Status set_slots(CliOptions& o, std::string_view value) {
  if (value == "-1") return Ok{};
  Result<int64_t> n = to_integer(value, 1, kMaxSequences);
  if (!n) return n.error();
  o.engine.n_slots = static_cast<int>(*n);
  return Ok{};
}

Status set_batch(CliOptions& o, std::string_view value, bool micro) {
  constexpr int kMost = 1 << 20;
  if (o.command == Command::bench) {
    if (Result<std::vector<int>> list = parse_list("", std::string(value), 1, kMost); !list)
      return list.error();
    (micro ? o.list_ubatch : o.list_batch) = std::string(value);
    return Ok{};
  }
  if (o.command == Command::logits && !micro && (value == "all" || value == "0")) {
    o.chunk = 0;
    o.engine.n_batch = EngineOptions{}.n_batch;
    return Ok{};
  }
  Result<int64_t> n = to_integer(value, 1, kMost);
  if (!n) return n.error();
  (micro ? o.engine.n_ubatch : o.engine.n_batch) = static_cast<int>(*n);
  if (!micro) o.chunk = static_cast<int>(*n);
  return Ok{};
}

Status set_act(CliOptions& o, std::string_view value) {
  if (value == "i8") {
    o.engine.act = ActType::i8;
  } else if (value == "i16") {
    o.engine.act = ActType::i16;
  } else if (value == "f32") {
    o.engine.act = ActType::f32;
  } else {
    return wrong_value(value, "i8, i16 or f32");
  }
  return Ok{};
}

Status set_tokens(CliOptions& o, std::string_view value) {
  o.tokens.clear();
  for (size_t at = 0; at <= value.size();) {
    const size_t comma = std::min(value.find(',', at), value.size());
    Result<int64_t> id = to_integer(value.substr(at, comma - at), 0, kMaxVocab);
    if (!id) return id.error();
    o.tokens.push_back(static_cast<int32_t>(*id));
    at = comma + 1;
  }
  return Ok{};
}

// Keys of the command line replace those of the environment; several flags add up.
Status set_api_keys(CliOptions& o, std::string_view value) {
  if (o.keys_from_environment && !o.from_environment) o.api_keys.clear();
  o.keys_from_environment = o.from_environment;
  const size_t before = o.api_keys.size();
  for (size_t at = 0; at <= value.size();) {
    const size_t end = std::min(value.find_first_of(",\r\n", at), value.size());
    if (end > at) o.api_keys.emplace_back(value.substr(at, end - at));
    at = end + 1;
  }
  if (o.api_keys.size() == before) return refused("got no key, expected at least one");
  return Ok{};
}

Status set_api_key_file(CliOptions& o, std::string_view path) {
  Result<std::string> keys = read_text_file(std::string(path));
  if (!keys) return keys.error();
  return set_api_keys(o, *keys);
}

Status set_slot_save_path(CliOptions& o, std::string_view path) {
  struct stat info {};
  o.slot_save_path = std::string(path);
  while (o.slot_save_path.size() > 1 && o.slot_save_path.ends_with('/'))
    o.slot_save_path.pop_back();
  if (::stat(o.slot_save_path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode))
    return wrong_value(path, "a folder that exists");
  o.engine.saves = true;
  return Ok{};
}

Status set_prompt_cache(CliOptions& o, std::string_view path) {
  if (path.empty()) return wrong_value(path, "a file name");
  o.prompt_cache = std::string(path);
  o.engine.saves = true;
  return Ok{};
}

Status set_gpu_layers(CliOptions& o, std::string_view value) {
  if (value != "0") {
    o.notes.push_back(
        "-ngl has no effect: there is no GPU backend in this build, all layers run on the CPU");
  }
  return Ok{};
}

Setter choice(std::string CliOptions::*target, std::vector<std::string> values) {
  return [=](CliOptions& o, std::string_view got) -> Status {
    std::string expected;
    for (const std::string& value : values) {
      if (got == value) {
        o.*target = value;
        return Ok{};
      }
      expected += (expected.empty() ? "" : ", ") + value;
    }
    return wrong_value(got, "one of " + expected);
  };
}

#define FIELD(expression) \
  [](CliOptions & o) -> auto& { return o.expression; }

// Rows for the commands given at construction, so that a row stays two lines.
class Table {
 public:
  Table(std::vector<Flag>& rows, unsigned commands) : rows_(rows), commands_(commands) {}

  void add(std::vector<const char*> names, const char* env, const char* value, Setter set,
           const char* help) {
    rows_.push_back({std::move(names), env, value, commands_, std::move(set), help});
  }
  void on_off(std::vector<const char*> names, std::vector<const char*> off_names, const char* env,
              Setter set, const char* help) {
    rows_.push_back({std::move(names), env, "", commands_, std::move(set), help, off_names});
  }

 private:
  std::vector<Flag>& rows_;
  unsigned commands_;
};

void add_model_flags(std::vector<Flag>& rows) {
  Table all(rows, kAll);
  all.add({"-m", "--model"}, "LLAMA_ARG_MODEL", "FILE", text(FIELD(engine.model_path)),
          "GGUF file; without it the built-in model");
  const auto kv = [](bool keys) -> Setter {
    return [=](CliOptions& o, std::string_view name) { return set_kv_type(o, name, keys); };
  };
  all.add({"-ctk", "--cache-type-k"}, "LLAMA_ARG_CACHE_TYPE_K", "TYPE", kv(true),
          "type of the K cache (default q8_0; bench f16)");
  all.add({"-ctv", "--cache-type-v"}, "LLAMA_ARG_CACHE_TYPE_V", "TYPE", kv(false),
          "type of the V cache (default q8_0; bench f16)");
  const auto batch = [](bool micro) -> Setter {
    return [=](CliOptions& o, std::string_view value) { return set_batch(o, value, micro); };
  };
  all.add({"-b", "--batch-size"}, "LLAMA_ARG_BATCH", "N", batch(false),
          "prompt tokens of one step at most (2048; logits: also 'all')");
  all.add({"-ub", "--ubatch-size"}, "LLAMA_ARG_UBATCH", "N", batch(true),
          "tokens computed together at most (512; the plan may use fewer)");
  all.add({"--act"}, "BANTAM_ACT", "TYPE", set_act,
          "rounding of matrix inputs: i8 (default), i16 (near exact), f32 (exact, slow)");
  all.add({"-ngl", "--gpu-layers", "--n-gpu-layers"}, "LLAMA_ARG_N_GPU_LAYERS", "N", set_gpu_layers,
          "accepted; this build has no GPU backend");
  Table loading(rows, kServe | kChat | kBench | kLogits | kPerplexity);
  loading.add({"--pack-cache"}, "BANTAM_PACK_CACHE", "DIR", text(FIELD(engine.pack_cache)),
              "folder for packed weights: the first start writes them, later ones map them");
  Table run(rows, kRun & ~kPerplexity);
  run.add({"-c", "--ctx-size"}, "LLAMA_ARG_CTX_SIZE", "N",
          integer(FIELD(engine.n_ctx), 0, int64_t{kMaxContext} * kMaxSequences),
          "context of all slots together; 0: as trained; default: what fits");
  Table shifts(rows, kServe | kChat | kInfo);
  shifts.on_off({"--context-shift"}, {"--no-context-shift"}, "LLAMA_ARG_CONTEXT_SHIFT",
                toggle(FIELD(engine.context_shift)),
                "a full context drops whole pages of its middle and goes on (default off)");
  Table slots(rows, kServe | kInfo);
  slots.add({"-a", "--alias"}, "LLAMA_ARG_ALIAS", "NAME", text(FIELD(engine.alias)),
            "name shown to clients");
  slots.add({"-np", "--parallel"}, "LLAMA_ARG_N_PARALLEL", "N", set_slots,
            "slots, each with its part of the context (default 1)");
}

void add_sampling_flags(std::vector<Flag>& rows) {
  Table t(rows, kServe | kChat);
  constexpr int64_t kMost = 1 << 30;
  t.add({"-n", "--predict", "--n-predict"}, "LLAMA_ARG_N_PREDICT", "N",
        integer(FIELD(n_predict), -1, kMost), "tokens to generate at most (-1: no limit)");
  t.add({"--keep"}, "LLAMA_ARG_KEEP", "N", integer(FIELD(n_keep), -1, kMost),
        "prompt tokens that context shifts leave, in whole pages of 256, "
        "at most all pages of the context but two (0; -1: all)");
  t.add({"--temp", "--temperature"}, "LLAMA_ARG_TEMP", "X",
        number(FIELD(sampling.temperature), -1, 1e6, "a number from -1 to 1000000"),
        "temperature (0.8; 0: greedy)");
  t.add({"--top-k"}, "LLAMA_ARG_TOP_K", "N", integer(FIELD(sampling.top_k), -1, kMost),
        "top-k (40; 0: off)");
  t.add({"--top-p"}, "LLAMA_ARG_TOP_P", "X",
        number(FIELD(sampling.top_p), 0, 1, "a number from 0 to 1"), "top-p (0.95)");
  t.add({"--min-p"}, "LLAMA_ARG_MIN_P", "X",
        number(FIELD(sampling.min_p), 0, 1, "a number from 0 to 1"), "min-p (0.05)");
  t.add({"-s", "--seed"}, "LLAMA_ARG_SEED", "N", integer(FIELD(sampling.seed), -1, INT64_MAX),
        "seed (-1: random)");
  t.add({"--repeat-penalty"}, "LLAMA_ARG_REPEAT_PENALTY", "X",
        number(FIELD(sampling.repeat_penalty), 1e-3, 1e3, "a number from 0.001 to 1000"),
        "repeat penalty (1.0: off)");
  t.add({"--repeat-last-n"}, "LLAMA_ARG_REPEAT_LAST_N", "N",
        integer(FIELD(sampling.repeat_last_n), -1, kMost),
        "tokens that the penalties look at (64; -1: the context)");
  t.add({"--frequency-penalty"}, "LLAMA_ARG_FREQUENCY_PENALTY", "X",
        number(FIELD(sampling.frequency_penalty), -1e3, 1e3, "a number from -1000 to 1000"),
        "frequency penalty (0: off)");
  t.add({"--presence-penalty"}, "LLAMA_ARG_PRESENCE_PENALTY", "X",
        number(FIELD(sampling.presence_penalty), -1e3, 1e3, "a number from -1000 to 1000"),
        "presence penalty (0: off)");
}

void add_serve_flags(std::vector<Flag>& rows) {
  Table t(rows, kServe);
  t.add({"--host"}, "LLAMA_ARG_HOST", "ADDR", text(FIELD(host)), "address (127.0.0.1)");
  t.add({"--port"}, "LLAMA_ARG_PORT", "N", integer(FIELD(port), 0, 65535),
        "port (8080; 0: any free one)");
  t.add({"--api-key"}, "LLAMA_API_KEY", "KEYS", set_api_keys, "keys, comma separated");
  t.add({"--api-key-file"}, "LLAMA_ARG_API_KEY_FILE", "FILE", set_api_key_file,
        "keys, one on a line");
  t.add({"-to", "--timeout"}, "LLAMA_ARG_TIMEOUT", "S", integer(FIELD(timeout_s), 1, 86400),
        "seconds without progress until a connection is closed (600)");
  t.on_off({"--metrics"}, {}, "LLAMA_ARG_ENDPOINT_METRICS", toggle(FIELD(metrics)),
           "GET /metrics for Prometheus");
  t.on_off({"--slots"}, {"--no-slots"}, "LLAMA_ARG_ENDPOINT_SLOTS", toggle(FIELD(slots)),
           "GET /slots (default on)");
  t.add({"--slot-save-path"}, "LLAMA_ARG_SLOT_SAVE_PATH", "DIR", set_slot_save_path,
        "folder for POST /slots/N?action=save and restore");
  t.on_off({"--webui", "--ui"}, {"--no-webui", "--no-ui"}, "LLAMA_ARG_WEBUI", toggle(FIELD(page)),
           "the chat page at / (default on)");
}

void add_chat_flags(std::vector<Flag>& rows) {
  Table t(rows, kChat);
  t.add({"-p", "--prompt"}, "", "TEXT", text(FIELD(prompt)), "one question; then exit");
  t.add({"-f", "--file"}, "", "FILE", text(FIELD(prompt_file)), "one question from a file");
  t.add({"-sys", "--system-prompt"}, "", "TEXT", text(FIELD(system)), "system message");
  t.add({"-sysf", "--system-prompt-file"}, "", "FILE", from_file(FIELD(system)),
        "system message from a file");
  t.add({"--prompt-cache"}, "", "FILE", set_prompt_cache,
        "start with the conversation's cache of this file, if it exists; save it at the end");
  t.on_off({"-st", "--single-turn"}, {}, "", toggle(FIELD(single_turn)), "one answer, then exit");
  t.on_off({"--show-timings"}, {"--no-show-timings"}, "", toggle(FIELD(show_timings)),
           "speeds after each answer (default on)");
  t.on_off({"-e", "--escape"}, {"--no-escape"}, "", toggle(FIELD(escapes)),
           "\\n, \\t and the like in -p and -sys (default on)");
  t.on_off({"--ignore-eos"}, {}, "", toggle(FIELD(ignore_eos)), "never end by itself");
  t.add(
      {"-r", "--reverse-prompt"}, "", "TEXT",
      [](CliOptions& o, std::string_view value) -> Status {
        if (value.empty()) return refused("got an empty text, expected at least one character");
        o.stop.emplace_back(value);
        return Ok{};
      },
      "stop at this text; may be given several times");
}

void add_bench_flags(std::vector<Flag>& rows) {
  Table t(rows, kBench);
  const auto list = [](std::string CliOptions::*target, int min, int max = kMaxContext) -> Setter {
    return [=](CliOptions& o, std::string_view value) -> Status {
      if (Result<std::vector<int>> parsed = parse_list("", std::string(value), min, max); !parsed)
        return parsed.error();
      o.*target = std::string(value);
      return Ok{};
    };
  };
  t.add({"-p", "--n-prompt"}, "", "LIST", list(&CliOptions::list_prompt, 0),
        "prompt lengths (512)");
  t.add({"-n", "--n-gen"}, "", "LIST", list(&CliOptions::list_gen, 0), "tokens to generate (128)");
  t.add(
      {"-pg"}, "", "PP,TG",
      [](CliOptions& o, std::string_view value) -> Status {
        Result<std::vector<int>> pair = parse_list("", std::string(value), 1, kMaxContext);
        if (!pair || pair->size() != 2) return wrong_value(value, "two numbers as 512,128");
        o.list_pg += (o.list_pg.empty() ? "" : ";") + std::string(value);
        return Ok{};
      },
      "prompt and generation in one test; may be given several times");
  t.add({"-d", "--n-depth"}, "", "LIST", list(&CliOptions::list_depth, 0),
        "positions already in the cache (0)");
  t.on_off(
      {"--depth-copies"}, {"--no-depth-copies"}, "", toggle(FIELD(depth_copies)),
      "fill depths beyond 1,024 with copies of the first 1,024 positions: the same work, at once");
  t.add({"-npl", "--n-parallel"}, "", "LIST", list(&CliOptions::list_parallel, 1, kMaxSequences),
        "sequences that generate together, tok/s of all (1)");
  t.add({"-r", "--repetitions"}, "", "N", integer(FIELD(repetitions), 1, 1000),
        "runs of each test (5)");
  t.add({"-o", "--output"}, "", "FMT", choice(&CliOptions::output, {"md", "json", "jsonl", "csv"}),
        "md, json, jsonl, csv");
  t.on_off({"--progress"}, {}, "", toggle(FIELD(progress)), "say what runs, to stderr");
  t.on_off({"--warmup"}, {"--no-warmup"}, "", toggle(FIELD(warm_up)),
           "one run of each test that does not count (default on)");
}

void add_tool_flags(std::vector<Flag>& rows) {
  Table logits(rows, kLogits);
  logits.add({"--tokens"}, "", "IDS", set_tokens, "token ids, comma separated");
  logits.add({"-f", "--tokens-file", "--file"}, "", "FILE", text(FIELD(file)),
             "token ids from a file, separated by commas, spaces or lines");
  logits.add({"--format"}, "", "FMT", choice(&CliOptions::format, {"json", "f32"}),
             "json lines (default) or raw little-endian f32 rows");
  logits.add({"--beside"}, "", "N", integer(FIELD(beside), 0, 8),
             "run N other sequences in the same batches");
  Table tokenize(rows, kTokenize);
  tokenize.add({"-f", "--file"}, "", "FILE", text(FIELD(file)), "the text");
  Table info(rows, kInfo);
  info.on_off({"--json"}, {}, "", toggle(FIELD(json)), "as JSON");
}

void add_common_flags(std::vector<Flag>& rows) {
  Table t(rows, kAll);
  t.on_off({"-h", "--help", "--usage"}, {}, "", toggle(FIELD(help)), "this text");
  t.on_off({"--version"}, {}, "", toggle(FIELD(version)), "version, commit, instruction sets");
  t.add({"-lv", "--verbosity", "--log-verbosity"}, "LLAMA_LOG_VERBOSITY", "N",
        integer(FIELD(log_level), 0, 10), "0 nothing, 1 errors, 2 warnings, 3 info, 4 debug");
  const auto level = [](int value) -> Setter {
    return [=](CliOptions& o, std::string_view on) -> Status {
      if (on == "on") o.log_level = value;
      return Ok{};
    };
  };
  t.on_off({"-v", "--verbose", "--log-verbose"}, {}, "", level(4), "debug log");
  t.on_off({"--log-disable"}, {}, "", level(1), "errors only");
  t.add({"--log-file"}, "LLAMA_LOG_FILE", "FILE", text(FIELD(log_file)), "log to a file as well");
}

#undef FIELD

}  // namespace

const std::vector<Flag>& flags() {
  static const std::vector<Flag> rows = [] {
    std::vector<Flag> all;
    add_model_flags(all);
    add_thread_flags(all);
    add_sampling_flags(all);
    add_serve_flags(all);
    add_chat_flags(all);
    add_bench_flags(all);
    add_tool_flags(all);
    add_perplexity_flags(all);
    add_common_flags(all);
    add_accepted_flags(all);
    add_refused_flags(all);
    return all;
  }();
  return rows;
}

}  // namespace bantam
