// `bantam perplexity`: llama-perplexity's measure of a text, and of a distribution against a base.
// One sequence, whole batches; logits come by a few rows at a time, so that the memory of 150,000
// tokens' logits stays within the plan.
#include "cli/perplexity.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>

#include "base/limits.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/logits_file.h"

namespace bantam {

namespace {

using Clock = std::chrono::steady_clock;
using LogitsOf = std::function<Status(int pos, std::span<const float> logits)>;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The positions [first, n - 1) of one chunk, in ascending order.
Status score_chunk(LoadedModel& loaded, std::span<const int32_t> tokens, int first,
                   const LogitsOf& sink) {
  Model& model = loaded.model();
  const ModelOptions& options = model.options();
  const int n = static_cast<int>(tokens.size()) - 1;  // what follows the last one is not known
  model.truncate(0, 0);
  std::vector<BatchRow> rows;
  for (int at = 0; at < n; at += static_cast<int>(rows.size())) {
    if (interrupts() != 0) return Error{ErrorKind::cancelled, "cancelled"};
    const int end = std::min(n, at + options.max_rows);
    rows.clear();
    for (int i = at; i < end; ++i) rows.push_back({tokens[static_cast<size_t>(i)], 0, i, false});
    model.step(rows);
    for (int i = std::max(first, at); i < end; i += options.max_logit_rows) {
      const int window = std::min(options.max_logit_rows, end - i);
      model.project(i - at, window);
      for (int j = 0; j < window; ++j) {
        if (Status status = sink(i + j, model.logits(j)); !status) return status;
      }
    }
  }
  return Ok{};
}

std::string duration_text(double seconds) {
  const auto s = static_cast<int64_t>(std::ceil(seconds));
  if (s >= 3600) return fmt::format("{} h {:02} min", s / 3600, s % 3600 / 60);
  return s >= 60 ? fmt::format("{} min {:02} s", s / 60, s % 60) : fmt::format("{} s", s);
}

// A line on stderr after the first chunk and then not more often than every ten seconds.
class TimeLeft {
 public:
  explicit TimeLeft(int total) : total_(total) {}
  void done(int n) {
    const double elapsed = seconds_since(start_);
    if (n == total_ || (n > 1 && elapsed < next_)) return;
    next_ = elapsed + 10;
    // Not into the row of running values, where both are the same terminal.
    if (::isatty(1) == 1 && ::isatty(2) == 1 && log_level() >= LogLevel::info) std::puts("");
    log_info("chunk {} of {}: {:.2f} s each, {} left", n, total_, elapsed / n,
             duration_text(elapsed / n * (total_ - n)));
  }

 private:
  const int total_;
  const Clock::time_point start_ = Clock::now();
  double next_ = 0;
};

// All chunks; score gets the chunk, the position, the logits and the token that came.
using Score = std::function<Status(int, int, std::span<const float>, int32_t)>;
Status run_chunks(LoadedModel& loaded, const CliOptions& options, std::span<const int32_t> tokens,
                  Scores& scores, const Score& score) {
  const ScorePlan& plan = scores.plan;
  const Tokenizer& tokenizer = loaded.tokenizer();
  TimeLeft left(plan.n_chunks);
  const auto start = Clock::now();
  for (int chunk = 0; chunk < plan.n_chunks; ++chunk) {
    const auto part = tokens.subspan(static_cast<size_t>(chunk) * static_cast<size_t>(plan.step),
                                     static_cast<size_t>(plan.n_ctx));
    std::vector<int32_t> fed(part.begin(), part.end());
    if (tokenizer.add_bos() && tokenizer.bos() >= 0) fed[0] = tokenizer.bos();
    const auto sink = [&](int pos, std::span<const float> logits) {
      return score(chunk, pos, logits, part[static_cast<size_t>(pos) + 1]);
    };
    if (Status status = score_chunk(loaded, fed, plan.first, sink); !status) return status;
    scores.seconds = seconds_since(start);
    print_chunk(options, scores, chunk + 1);
    left.done(chunk + 1);
  }
  return Ok{};
}

Status check_finite(double nll) {
  return std::isfinite(nll) ? Status(Ok{})
                            : Status(failed("the model gave logits that are not finite"));
}

Status measure_text(LoadedModel& loaded, const CliOptions& options, const std::string& text,
                    Scores& scores) {
  const std::vector<int32_t> tokens = loaded.tokenizer().encode(text, true, false);
  if (Status status =
          count_chunks(scores.plan, static_cast<int64_t>(tokens.size()), options.n_chunks);
      !status)
    return status;
  std::unique_ptr<LogitsWriter> writer;
  if (!options.base_file.empty()) {
    const LogitsShape shape{scores.plan.n_ctx, loaded.report().n_vocab, scores.plan.n_chunks};
    const size_t n = static_cast<size_t>(shape.tokens_bytes() / 4);
    Result<std::unique_ptr<LogitsWriter>> created =
        LogitsWriter::create(options.base_file, shape, std::span(tokens).first(n));
    if (!created) return created.error();
    writer = std::move(*created);
    log_info("writing {:.1f} MiB of log-probabilities to '{}'",
             static_cast<double>(shape.file_bytes()) / (1 << 20), options.base_file);
  }
  const auto score = [&](int, int, std::span<const float> logits, int32_t token) -> Status {
    const double nll = nll_of(logits, token);
    if (Status status = check_finite(nll); !status) return status;
    scores.nll.add(nll);
    return writer ? writer->add_row(logits) : Status(Ok{});
  };
  if (Status status = run_chunks(loaded, options, tokens, scores, score); !status) return status;
  return writer ? writer->finish() : Status(Ok{});
}

Status measure_divergence(LoadedModel& loaded, const CliOptions& options, LogitsReader& base,
                          Scores& scores) {
  std::vector<float> row(static_cast<size_t>(base.shape().n_vocab));
  int64_t next = 0;
  const auto score = [&](int, int, std::span<const float> logits, int32_t token) -> Status {
    if (Status status = base.read_row(next++, row); !status) return status;
    const PositionDivergence position = divergence_of(logits, row, token);
    if (Status status = check_finite(position.nll); !status) return status;
    scores.stats.add(position);
    return Ok{};
  };
  return run_chunks(loaded, options, base.tokens(), scores, score);
}

// What can be said before the model is loaded.
struct Input {
  std::string text;
  std::unique_ptr<LogitsReader> base;
  ScorePlan plan;
};

Result<Input> open_input(const CliOptions& options) {
  Input in;
  if (!options.divergence) {
    Result<ScorePlan> plan = plan_scores(options);
    if (!plan) return plan.error();
    in.plan = *plan;
    if (options.stride > 0 && !options.base_file.empty())
      return refused("--kl-divergence-base holds chunks side by side: leave --ppl-stride away");
    if (options.file.empty() == options.prompt.empty())
      return refused("pass one text: -f FILE or -p TEXT");
    in.text = options.prompt;
    if (options.file.empty()) return in;
    Result<std::string> text = read_text_file(options.file);
    if (!text) return text.error();
    in.text = std::move(*text);
    // One line end at the end is no part of the text, as in llama.cpp.
    if (in.text.ends_with('\n')) in.text.pop_back();
    return in;
  }
  if (options.base_file.empty())
    return refused("--kl-divergence needs --kl-divergence-base FILE, which is read");
  if (options.stride > 0) return refused("--kl-divergence has the file's chunks, not --ppl-stride");
  Result<std::unique_ptr<LogitsReader>> base = LogitsReader::open(options.base_file);
  if (!base) return base.error();
  in.base = std::move(*base);
  const LogitsShape& shape = in.base->shape();
  in.plan = {shape.n_ctx, shape.n_ctx, shape.first(), shape.n_chunk};
  if (options.n_chunks > 0) in.plan.n_chunks = std::min(in.plan.n_chunks, options.n_chunks);
  if (!options.file.empty() || !options.prompt.empty())
    log_warn("the text has no effect: --kl-divergence runs on the tokens of the base file");
  if (options.engine.n_ctx > 0 && options.engine.n_ctx != shape.n_ctx)
    log_warn("-c has no effect: the base file has chunks of {} tokens", shape.n_ctx);
  return in;
}

// Rows of logits in one piece of at most 4 MiB.
Status choose_logit_rows(EngineOptions& engine) {
  constexpr int64_t kMost = 4 << 20;
  Result<ModelReport> plan = LoadedModel::plan(engine);
  if (!plan) return plan.error();
  const int64_t rows = kMost / (int64_t{plan->n_vocab} * 4);
  engine.n_logit_rows = static_cast<int>(std::clamp<int64_t>(rows, 1, 64));
  return Ok{};
}

Status run(CliOptions& options, Scores& scores) {
  Result<Input> input = open_input(options);
  if (!input) return input.error();
  scores.plan = input->plan;
  scores.divergence = options.divergence;
  options.engine.n_ctx = input->plan.n_ctx;
  options.engine.n_slots = 1;
  if (Status status = choose_logit_rows(options.engine); !status) return status;
  Result<std::unique_ptr<LoadedModel>> loaded = load_with_progress(options);
  install_interrupts();
  if (!loaded) return loaded.error();
  scores.report = (*loaded)->report();
  if (input->plan.n_ctx > scores.report.n_ctx_train) {
    log_warn("the model was trained on {} positions, the chunks have {}", scores.report.n_ctx_train,
             input->plan.n_ctx);
  }
  if (!input->base) return measure_text(**loaded, options, input->text, scores);
  if (input->base->shape().n_vocab != scores.report.n_vocab) {
    return refused(
        fmt::format("'{}' is of another vocabulary: got {} tokens, expected {} as the "
                    "model has",
                    options.base_file, input->base->shape().n_vocab, scores.report.n_vocab));
  }
  return measure_divergence(**loaded, options, *input->base, scores);
}

}  // namespace

Result<ScorePlan> plan_scores(const CliOptions& options) {
  const int n_ctx = options.engine.n_ctx > 0 ? options.engine.n_ctx : 512;
  if (options.n_chunks == 0) return refused("--chunks: got 0, expected -1 or at least 1");
  if (options.stride == 0) return ScorePlan{n_ctx, n_ctx, n_ctx / 2, 0};
  // llama-perplexity widens the chunk by half a stride.
  const int wide = n_ctx + options.stride / 2;
  if (options.stride >= wide || wide > kMaxContext) {
    return refused(fmt::format("--ppl-stride: got {}, expected less than twice the context of {}",
                               options.stride, n_ctx));
  }
  return ScorePlan{wide, options.stride, wide - options.stride - 1, 0};
}

Status count_chunks(ScorePlan& plan, int64_t n_tokens, int most) {
  if (n_tokens < 2 * int64_t{plan.n_ctx}) {
    return refused(fmt::format(
        "the text is too short: got {} tokens, expected at least {} for chunks of {} (-c)",
        n_tokens, 2 * int64_t{plan.n_ctx}, plan.n_ctx));
  }
  const bool overlap = plan.step < plan.n_ctx;
  const int64_t all =
      overlap ? (n_tokens - plan.n_ctx + plan.step - 1) / plan.step : n_tokens / plan.n_ctx;
  const int64_t limit = std::min<int64_t>(all, most > 0 ? most : 1 << 20);
  plan.n_chunks = static_cast<int>(limit);
  return Ok{};
}

int run_perplexity(const CliOptions& given) {
  CliOptions options = given;
  exit_on_signals(130);
  Scores scores;
  if (Status status = run(options, scores); !status) {
    if (status.error().kind == ErrorKind::cancelled) return 130;
    std::fflush(stdout);
    return report_error(status.error());
  }
  print_scores(options, scores);
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
    return report_error(failed("cannot write the result to stdout"));
  return 0;
}

}  // namespace bantam
