// `bantam logits`: what the model says before sampling, for oracles and for comparing engines.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "base/limits.h"
#include "base/log.h"
#include "cli/commands.h"

namespace bantam {

namespace {

void print_json(int pos, int32_t token, std::span<const float> logits, std::string& buffer) {
  buffer.clear();
  fmt::format_to(std::back_inserter(buffer), "{{\"pos\": {}, \"token\": {}, \"logits\": [", pos,
                 token);
  for (size_t i = 0; i < logits.size(); ++i) {
    if (i > 0) buffer += ", ";
    // fmt's shortest form reads back as the same float.
    if (std::isfinite(logits[i])) {
      fmt::format_to(std::back_inserter(buffer), "{}", logits[i]);
    } else {
      buffer += "null";
    }
  }
  buffer += "]}\n";
  std::fwrite(buffer.data(), 1, buffer.size(), stdout);
}

Status read_token_file(const std::string& path, std::vector<int32_t>& tokens) {
  Result<std::string> text = read_text_file(path);
  if (!text) return text.error();
  constexpr const char* kGaps = " ,\r\n\t[]";
  for (size_t at = 0; (at = text->find_first_not_of(kGaps, at)) != std::string::npos;) {
    const size_t end = std::min(text->find_first_of(kGaps, at), text->size());
    int32_t id = 0;
    const auto [last, error] = std::from_chars(text->data() + at, text->data() + end, id);
    if (error != std::errc() || last != text->data() + end || id < 0) {
      return refused("'" + path + "' holds '" + text->substr(at, std::min<size_t>(end - at, 40)) +
                     "', expected token ids");
    }
    tokens.push_back(id);
    at = end;
  }
  return Ok{};
}

// The main sequence and `beside` others, shifted by some tokens, through the same batches.
Status eval_beside(LoadedModel& loaded, std::span<const int32_t> tokens, int beside, int chunk,
                   const LoadedModel::LogitsSink& sink) {
  Model& model = loaded.model();
  const int rows_each =
      std::max(1, std::min(chunk > 0 ? chunk : 1 << 20, model.options().max_rows / (beside + 1)));
  std::vector<BatchRow> rows;
  for (int done = 0; done < static_cast<int>(tokens.size());) {
    const int n = std::min(rows_each, static_cast<int>(tokens.size()) - done);
    rows.clear();
    for (int s = 0; s <= beside; ++s) {
      const int seq = (s + 1) % (beside + 1);  // the watched sequence 0 comes last
      for (int i = 0; i < n; ++i) {
        const auto at = static_cast<size_t>((done + i + 7 * seq) % static_cast<int>(tokens.size()));
        rows.push_back({tokens[at], seq, done + i, seq == 0});
      }
    }
    model.step(rows);
    for (int i = 0; i < n; ++i) sink(done + i, model.logits(i));
    done += n;
  }
  return Ok{};
}

}  // namespace

int run_logits(const CliOptions& given) {
  CliOptions options = given;
  if (!options.file.empty()) {
    if (Status status = read_token_file(options.file, options.tokens); !status)
      return report_error(status.error());
  }
  if (options.tokens.empty())
    return report_error(refused("no tokens: pass --tokens 1,2,3 or -f FILE"));
  if (options.tokens.size() > kMaxContext) {
    return report_error(refused("got " + std::to_string(options.tokens.size()) +
                                " tokens, expected at most " + std::to_string(kMaxContext)));
  }
  options.engine.n_logit_rows = 64;
  options.engine.n_slots = options.beside + 1;
  const int64_t n_tokens = static_cast<int64_t>(options.tokens.size());
  if (options.engine.n_ctx < 0) {
    options.engine.n_ctx = static_cast<int>((n_tokens + 255) / 256 * 256 * options.engine.n_slots);
  }
  Result<std::unique_ptr<LoadedModel>> loaded = load_with_progress(options);
  if (!loaded) return report_error(loaded.error());
  for (const int32_t token : options.tokens) {
    if (token < (*loaded)->report().n_vocab) continue;
    return report_error(refused("token " + std::to_string(token) +
                                " is outside the vocabulary of " +
                                std::to_string((*loaded)->report().n_vocab)));
  }
  if (n_tokens > (*loaded)->report().n_ctx) {
    return report_error(refused(std::to_string(n_tokens) + " tokens exceed the context of " +
                                std::to_string((*loaded)->report().n_ctx)));
  }
  std::string buffer;
  const auto sink = [&](int pos, std::span<const float> logits) {
    if (options.format == "f32") {
      std::fwrite(logits.data(), sizeof(float), logits.size(), stdout);
    } else {
      print_json(pos, options.tokens[static_cast<size_t>(pos)], logits, buffer);
    }
  };
  const Status status =
      options.beside > 0
          ? eval_beside(**loaded, options.tokens, options.beside, options.chunk, sink)
          : (*loaded)->eval(0, options.tokens, options.chunk, true, sink,
                            [] { return std::ferror(stdout) == 0; });
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
    return report_error(failed("cannot write the logits to stdout"));
  return status ? 0 : report_error(status.error());
}

}  // namespace bantam
