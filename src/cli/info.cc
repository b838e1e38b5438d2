// `bantam info` and `bantam tokenize`: what a file holds and would need, and its tokens; neither
// loads weights.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "cli/commands.h"

namespace bantam {

namespace {

nlohmann::json as_json(const ModelReport& r) {
  return {{"model", r.id},
          {"path", r.model_path},
          {"name", r.name},
          {"architecture", r.arch},
          {"weight_types", r.weight_types},
          {"n_params", r.n_params},
          {"file_bytes", r.file_bytes},
          {"n_vocab", r.n_vocab},
          {"n_layers", r.n_layers},
          {"d_model", r.d_model},
          {"d_ff", r.d_ff},
          {"n_heads", r.n_heads},
          {"n_kv_heads", r.n_kv_heads},
          {"head_dim", r.head_dim},
          {"n_ctx_train", r.n_ctx_train},
          {"n_ctx", r.n_ctx},
          {"n_slots", r.n_slots},
          {"type_k", info(r.type_k).name},
          {"type_v", info(r.type_v).name},
          {"attention", r.attention},
          {"backend", r.backend},
          {"isa", r.isa},
          {"instruction_sets", instruction_sets()},
          {"cpu", r.cpu},
          {"n_threads", r.n_threads},
          {"n_threads_batch", r.n_threads_batch},
          {"act", r.act == ActType::i8    ? "i8"
                  : r.act == ActType::i16 ? "i16"
                                          : "f32"},
          {"chat_template", !r.chat_template.empty()},
          {"weight_bytes", r.memory.weight_bytes},
          {"kv_bytes", r.memory.kv_bytes},
          {"kv_bytes_k", r.kv_bytes_k},
          {"kv_bytes_v", r.kv_bytes_v},
          {"compute_bytes", r.memory.compute_bytes},
          {"rest_bytes", r.memory.rest_bytes},
          {"total_bytes", r.memory.total()},
          {"available_bytes", r.memory.available_bytes}};
}

}  // namespace

int run_info(const CliOptions& options) {
  Result<ModelReport> report = LoadedModel::plan(options.engine);
  if (!report) return report_error(report.error());
  for (const std::string& line : report->warnings) log_warn("{}", line);
  if (options.json) {
    const auto replace = nlohmann::json::error_handler_t::replace;
    std::printf("%s\n", as_json(*report).dump(2, ' ', false, replace).c_str());
    return 0;
  }
  for (const std::string& line : report_lines(*report)) std::printf("%s\n", line.c_str());
  std::printf("shape: %d layers, d_model %d, d_ff %d, %d heads, %d KV heads of %d, vocabulary %d\n",
              report->n_layers, report->d_model, report->d_ff, report->n_heads, report->n_kv_heads,
              report->head_dim, report->n_vocab);
  std::printf("chat template: %s\n", report->chat_template.empty() ? "none" : "in the file");
  std::printf("instruction sets here: %s\n", instruction_sets().c_str());
  return 0;
}

int run_tokenize(const CliOptions& options) {
  if (options.file.empty()) return report_error(refused("no text: pass a file with -f"));
  Result<std::string> text = read_text_file(options.file);
  if (!text) return report_error(text.error());
  Result<Tokenizer> tokenizer = LoadedModel::tokenizer_of(options.engine);
  if (!tokenizer) return report_error(tokenizer.error());
  const std::vector<int32_t> tokens = tokenizer->encode(*text, false, false);
  std::printf("%s\n", nlohmann::json(tokens).dump().c_str());
  return 0;
}

}  // namespace bantam
