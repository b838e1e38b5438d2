// Flags of `bantam perplexity`: llama-perplexity's. Its scores of multiple-choice sets are refused.
#include "base/limits.h"
#include "cli/flags.h"

namespace bantam {

namespace {

Setter integer(int CliOptions::*target, int64_t min, int64_t max) {
  return [=](CliOptions& o, std::string_view text) -> Status {
    Result<int64_t> value = to_integer(text, min, max);
    if (!value) return value.error();
    o.*target = static_cast<int>(*value);
    return Ok{};
  };
}

Setter text(std::string CliOptions::*target) {
  return [=](CliOptions& o, std::string_view value) -> Status {
    if (value.empty()) return refused("got nothing, expected a name or a text");
    o.*target = std::string(value);
    return Ok{};
  };
}

Status set_context(CliOptions& o, std::string_view text) {
  Result<int64_t> value = to_integer(text, 4, kMaxContext);
  if (!value) return value.error();
  o.engine.n_ctx = static_cast<int>(*value);
  return Ok{};
}

Status set_output(CliOptions& o, std::string_view value) {
  if (value != "text" && value != "json" && value != "jsonl")
    return wrong_value(value, "one of text, json, jsonl");
  o.ppl_output = std::string(value);
  return Ok{};
}

}  // namespace

void add_perplexity_flags(std::vector<Flag>& rows) {
  const auto add = [&](std::vector<const char*> names, const char* env, const char* value,
                       Setter set, const char* help) {
    rows.push_back({std::move(names), env, value, kPerplexity, std::move(set), help});
  };
  add({"-f", "--file"}, "", "FILE", text(&CliOptions::file), "the text");
  add({"-p", "--prompt"}, "", "TEXT", text(&CliOptions::prompt), "the text itself");
  add({"-c", "--ctx-size"}, "LLAMA_ARG_CTX_SIZE", "N", set_context,
      "tokens of a chunk (512); its second half is scored");
  add({"--chunks"}, "", "N", integer(&CliOptions::n_chunks, -1, 1 << 20),
      "chunks at most (-1: the whole text)");
  add({"--ppl-stride"}, "", "N", integer(&CliOptions::stride, 0, kMaxContext),
      "chunks overlap: each scores its last N tokens (0: off)");
  add({"--ppl-output-type"}, "", "N", integer(&CliOptions::lines, 0, 1),
      "0: running values in a row, 1: a line each");
  add({"--kl-divergence-base", "--save-all-logits"}, "", "FILE", text(&CliOptions::base_file),
      "write the log-probabilities to FILE; with --kl-divergence read them (llama.cpp's format)");
  const auto on = [](CliOptions& o, std::string_view value) -> Status {
    o.divergence = value == "on";
    return Ok{};
  };
  add({"--kl-divergence"}, "", "", on, "divergence from the base file, on the tokens in it");
  add({"-o", "--output", "--output-format"}, "", "FMT", set_output, "text (default), json, jsonl");
  const auto no = [&](const char* name, const char* value) {
    const auto refuse = [](CliOptions&, std::string_view) -> Status {
      return refused("not supported: only perplexity and KL divergence are computed");
    };
    rows.push_back({{name}, "", value, kPerplexity, refuse, ""});
  };
  for (const char* name : {"--hellaswag", "--winogrande", "--multiple-choice"}) no(name, "");
  for (const char* name : {"--hellaswag-tasks", "--winogrande-tasks", "--multiple-choice-tasks"}) {
    no(name, "N");
  }
}

}  // namespace bantam
