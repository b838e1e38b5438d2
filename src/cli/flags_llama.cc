// Flags of llama.cpp that are not ours: those that need nothing here are accepted (silently where
// the behaviour is the same, else with one line), those whose loss would change answers or break a
// promise are refused with one sentence.
#include "cli/flags.h"

namespace bantam {

namespace {

Setter silent() {
  return [](CliOptions&, std::string_view) -> Status { return Ok{}; };
}

// One line, however often it is given.
Setter note(const char* name, const char* reason) {
  return [=](CliOptions& o, std::string_view) -> Status {
    const std::string line = std::string(name) + " has no effect" + reason;
    for (const std::string& known : o.notes) {
      if (known == line) return Ok{};
    }
    o.notes.push_back(line);
    return Ok{};
  };
}

Setter refuse(const char* reason) {
  return [=](CliOptions&, std::string_view value) -> Status {
    return value == "off" ? Status(Ok{}) : refused(reason);
  };
}

// The value that switches a sampler off is fine, any other is refused.
Setter only(double neutral, const char* what) {
  return [=](CliOptions&, std::string_view text) -> Status {
    Result<double> value = to_number(text);
    if (!value) return value.error();
    if (*value == neutral) return Ok{};
    return refused(std::string(what) + " is not supported yet; it would change the answers");
  };
}

void add_needless_flags(std::vector<Flag>& rows) {
  const auto same = [&](std::vector<const char*> names, const char* env, const char* value,
                        std::vector<const char*> off = {}) {
    rows.push_back({std::move(names), env, value, kAll, silent(), "", std::move(off)});
  };
  // Attention is always fused, the file is always read, every prompt is cached, ChatML is built in.
  same({"-fa", "--flash-attn"}, "LLAMA_ARG_FLASH_ATTN", "[MODE]");
  same({"--jinja"}, "LLAMA_ARG_JINJA", "");
  same({"-cb", "--cont-batching"}, "LLAMA_ARG_CONT_BATCHING", "");
  same({"--mmap"}, "LLAMA_ARG_MMAP", "", {"--no-mmap"});
  same({"-mmp"}, "", "N");
  same({"--cache-prompt"}, "LLAMA_ARG_CACHE_PROMPT", "");
  same({"--log-colors"}, "", "[MODE]");
  same({"--log-prefix"}, "LLAMA_LOG_PREFIX", "");
  same({"--log-timestamps"}, "LLAMA_LOG_TIMESTAMPS", "");
  same({"-cnv", "--conversation"}, "", "");
  same({"--simple-io"}, "", "");
  same({"-co", "--color"}, "", "[MODE]");
  same({"-mli", "--multiline-input"}, "", "");
  same({"--display-prompt"}, "", "", {"--no-display-prompt"});
  same({"-kvu", "--kv-unified"}, "LLAMA_ARG_KV_UNIFIED", "", {"-no-kvu", "--no-kv-unified"});
  same({"--check-tensors"}, "", "");
  same({"--offline"}, "LLAMA_OFFLINE", "");
  same({"-oe", "--output-err"}, "", "FMT");
  same({"--perf"}, "LLAMA_ARG_PERF", "", {"--no-perf"});
  rows.push_back({{"--warmup"}, "LLAMA_ARG_WARMUP", "", kRun, silent(), "", {"--no-warmup"}});
}

void add_ignored_flags(std::vector<Flag>& rows) {
  const auto none = [&](std::vector<const char*> names, const char* env, const char* value,
                        const char* reason) {
    Setter set = note(names.back(), reason);
    rows.push_back({std::move(names), env, value, kAll, std::move(set), ""});
  };
  none({"--mlock"}, "LLAMA_ARG_MLOCK", "", ": weights are anonymous memory already");
  none({"--threads-http"}, "LLAMA_ARG_THREADS_HTTP", "N",
       ": one event loop serves all connections");
  none({"--numa"}, "LLAMA_ARG_NUMA", "MODE", ": use numactl");
  none({"--delay"}, "", "S", ": tests follow each other at once");
  none({"-cram", "--cache-ram"}, "LLAMA_ARG_CACHE_RAM", "N",
       " yet: each slot keeps its last prompt and nothing else");
  none({"--cache-reuse"}, "LLAMA_ARG_CACHE_REUSE", "N", " yet: only common beginnings are reused");
  none({"-sps", "--slot-prompt-similarity"}, "", "X", ": it is fixed at 0.1");
  none({"--sleep-idle-seconds"}, "", "N", " yet: the model stays loaded");
  none({"--reasoning-format"}, "LLAMA_ARG_THINK", "MODE", " yet: thoughts stay in the content");
  none({"-rea", "--reasoning"}, "LLAMA_ARG_REASONING", "MODE",
       " yet: prompts are ChatML without a thinking mark");
  none({"--reasoning-budget"}, "LLAMA_ARG_THINK_BUDGET", "N",
       " yet: prompts are ChatML without a thinking mark");
  none({"--reasoning-budget-message"}, "LLAMA_ARG_THINK_BUDGET_MESSAGE", "TEXT",
       " yet: there is no thinking budget");
  none({"--chat-template-kwargs"}, "LLAMA_CHAT_TEMPLATE_KWARGS", "JSON",
       " yet: prompts are ChatML without template variables");
  none({"--no-jinja"}, "", "", ": prompts are ChatML in this version");
  none({"-no-cnv", "--no-conversation"}, "", "", ": chat only; raw text goes to POST /completion");
  none({"--no-cache-prompt"}, "", "", " yet: send cache_prompt false in the request");
  none({"-nocb", "--no-cont-batching"}, "", "", ": slots always share batches");
  none({"--props"}, "LLAMA_ARG_ENDPOINT_PROPS", "", ": GET /props is always on, POST is not built");
  none({"--swa-full"}, "LLAMA_ARG_SWA_FULL", "", ": there is no sliding window");
  none({"--ctx-checkpoints"}, "LLAMA_ARG_CTX_CHECKPOINTS", "N", ": the cache needs none");
  none({"--no-repack", "-nr"}, "LLAMA_ARG_NO_REPACK", "", ": weights are always packed");
  none({"-fit", "--fit"}, "LLAMA_ARG_FIT", "MODE", ": without -c the context is what fits");
  none({"-fitt", "--fit-target"}, "LLAMA_ARG_FIT_TARGET", "N",
       ": without -c the context is what fits");
  none({"-fitc", "--fit-ctx"}, "LLAMA_ARG_FIT_CTX", "N", ": without -c the context is what fits");
  none({"-sm", "--split-mode"}, "LLAMA_ARG_SPLIT_MODE", "MODE", ": there is no GPU backend");
  none({"-mg", "--main-gpu"}, "LLAMA_ARG_MAIN_GPU", "N", ": there is no GPU backend");
  none({"-ts", "--tensor-split"}, "LLAMA_ARG_TENSOR_SPLIT", "LIST", ": there is no GPU backend");
  none({"-dev", "--device"}, "LLAMA_ARG_DEVICE", "LIST", ": there is no GPU backend");
  none({"-ot", "--override-tensor"}, "", "TEXT", ": there is no GPU backend");
  none({"-nkvo", "--no-kv-offload"}, "LLAMA_ARG_NO_KV_OFFLOAD", "[N]", ": there is no GPU backend");
  none({"--op-offload"}, "", "", ": there is no GPU backend");
  none({"--no-op-offload"}, "", "[N]", ": there is no GPU backend");
  none({"--no-host"}, "", "[N]", ": there is no GPU backend");
  none({"-cmoe", "--cpu-moe"}, "LLAMA_ARG_CPU_MOE", "", ": there is no GPU backend");
  none({"-ncmoe", "--n-cpu-moe"}, "LLAMA_ARG_N_CPU_MOE", "N", ": there is no GPU backend");
}

void add_refused_models(std::vector<Flag>& rows) {
  const auto no = [&](std::vector<const char*> names, const char* env, const char* value,
                      const char* reason) {
    rows.push_back({std::move(names), env, value, kAll, refuse(reason), ""});
  };
  no({"--lora"}, "", "FILE", "adapters are not supported; merge it into the model file");
  no({"--lora-scaled"}, "", "FILE", "adapters are not supported; merge it into the model file");
  no({"--control-vector"}, "", "FILE", "control vectors are not supported");
  no({"--control-vector-scaled"}, "", "FILE", "control vectors are not supported");
  no({"-mm", "--mmproj"}, "LLAMA_ARG_MMPROJ", "FILE", "images are not supported");
  no({"-mmu", "--mmproj-url"}, "LLAMA_ARG_MMPROJ_URL", "URL", "images are not supported");
  no({"--image"}, "", "FILE", "images are not supported");
  no({"--audio"}, "", "FILE", "sound is not supported");
  no({"-mv", "--model-vocoder"}, "", "FILE", "speech is not supported");
  no({"--embedding", "--embeddings"}, "LLAMA_ARG_EMBEDDINGS", "", "embeddings are not supported");
  no({"--pooling"}, "LLAMA_ARG_POOLING", "MODE", "embeddings are not supported");
  no({"--reranking", "--rerank"}, "LLAMA_ARG_RERANKING", "", "reranking is not supported");
  no({"--grammar"}, "", "TEXT", "grammars are not supported yet");
  no({"--grammar-file"}, "", "FILE", "grammars are not supported yet");
  no({"-j", "--json-schema"}, "", "JSON", "JSON schemas are not supported yet");
  no({"-jf", "--json-schema-file"}, "", "FILE", "JSON schemas are not supported yet");
  no({"--chat-template"}, "LLAMA_ARG_CHAT_TEMPLATE", "NAME",
     "other chat templates are not supported yet: prompts are ChatML");
  no({"--chat-template-file"}, "LLAMA_ARG_CHAT_TEMPLATE_FILE", "FILE",
     "other chat templates are not supported yet: prompts are ChatML");
  no({"-md", "--model-draft"}, "LLAMA_ARG_MODEL_DRAFT", "FILE", "draft models are not supported");
  no({"--spec-type"}, "", "NAME", "speculative decoding is not supported");
  no({"-hf", "-hfr", "--hf-repo"}, "LLAMA_ARG_HF_REPO", "REPO",
     "downloads are not supported: fetch the GGUF file and pass it with -m");
  no({"-hff", "--hf-file"}, "LLAMA_ARG_HF_FILE", "FILE",
     "downloads are not supported: fetch the GGUF file and pass it with -m");
  no({"-mu", "--model-url"}, "LLAMA_ARG_MODEL_URL", "URL",
     "downloads are not supported: fetch the GGUF file and pass it with -m");
  no({"--override-kv"}, "", "TEXT", "overriding metadata is not supported");
  no({"--rope-scaling"}, "LLAMA_ARG_ROPE_SCALING_TYPE", "MODE",
     "not supported: the file's own RoPE scaling is used");
  no({"--rope-scale"}, "LLAMA_ARG_ROPE_SCALE", "X",
     "not supported: the file's own RoPE scaling is used");
}

void add_refused_features(std::vector<Flag>& rows) {
  const auto no = [&](std::vector<const char*> names, const char* env, const char* value,
                      const char* reason) {
    rows.push_back({std::move(names), env, value, kAll, refuse(reason), ""});
  };
  no({"--rope-freq-base"}, "LLAMA_ARG_ROPE_FREQ_BASE", "X",
     "not supported: the file's own RoPE base is used");
  no({"--rope-freq-scale"}, "LLAMA_ARG_ROPE_FREQ_SCALE", "X",
     "not supported: the file's own RoPE scaling is used");
  no({"--yarn-orig-ctx"}, "LLAMA_ARG_YARN_ORIG_CTX", "N",
     "not supported: the file's own YaRN values are used");
  no({"--yarn-ext-factor"}, "LLAMA_ARG_YARN_EXT_FACTOR", "X",
     "not supported: the file's own YaRN values are used");
  no({"--yarn-attn-factor"}, "LLAMA_ARG_YARN_ATTN_FACTOR", "X",
     "not supported: the file's own YaRN values are used");
  no({"-gan", "--grp-attn-n"}, "LLAMA_ARG_GRP_ATTN_N", "N", "self-extend is not supported");
  no({"--kv-mean-center"}, "", "FILE", "K means from files are not supported: K is rotated here");
  no({"--ssl-key-file"}, "LLAMA_ARG_SSL_KEY_FILE", "FILE",
     "this server is built without SSL: use a reverse proxy");
  no({"--ssl-cert-file"}, "LLAMA_ARG_SSL_CERT_FILE", "FILE",
     "this server is built without SSL: use a reverse proxy");
  no({"--path"}, "LLAMA_ARG_STATIC_PATH", "DIR", "other pages than the built-in are not served");
  no({"--api-prefix"}, "LLAMA_ARG_API_PREFIX", "TEXT", "a path prefix is not supported yet");
  no({"--rpc"}, "LLAMA_ARG_RPC", "LIST", "other machines cannot be used");
  no({"--tools"}, "", "LIST", "built-in tools are not supported");
  no({"-sp", "--special"}, "", "", "printing control tokens is not supported yet");
  no({"--samplers"}, "", "LIST",
     "not supported yet: the order is penalties, top-k, top-p, min-p, temperature");
  no({"--sampling-seq", "--sampler-seq"}, "", "TEXT",
     "not supported yet: the order is penalties, top-k, top-p, min-p, temperature");
  no({"-l", "--logit-bias"}, "", "TEXT", "send logit_bias in the request instead");
  rows.push_back({{"--ignore-eos"},
                  "",
                  "",
                  kAll & ~kChat,
                  refuse("send ignore_eos in the request instead"),
                  ""});
  const auto off = [&](const char* name, double neutral, const char* what) {
    rows.push_back({{name}, "", "X", kAll, only(neutral, what), ""});
  };
  off("--mirostat", 0, "mirostat");
  off("--dry-multiplier", 0, "DRY");
  off("--xtc-probability", 0, "XTC");
  off("--dynatemp-range", 0, "dynamic temperature");
  off("--top-n-sigma", -1, "top-n-sigma");
  off("--top-nsigma", -1, "top-n-sigma");
  off("--typical", 1, "typical sampling");
  off("--typical-p", 1, "typical sampling");
}

}  // namespace

void add_accepted_flags(std::vector<Flag>& rows) {
  add_needless_flags(rows);
  add_ignored_flags(rows);
}

void add_refused_flags(std::vector<Flag>& rows) {
  add_refused_models(rows);
  add_refused_features(rows);
}

}  // namespace bantam
