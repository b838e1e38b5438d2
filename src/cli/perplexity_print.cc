// Running values and results of `bantam perplexity`: the lines that llama-perplexity's users know,
// or JSON.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/perplexity.h"
#include "cli/version.h"

namespace bantam {

namespace {

using Json = nlohmann::json;

// One percentile for each row; the median has a name of its own.
constexpr double kKldShares[] = {0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001};
constexpr double kDiffShares[] = {0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001};

void print_row(const char* name, const Estimate& e) {
  std::printf("%-30s: %10.6f ± %10.6f\n", name, e.value, e.error);
}

void print_percent(const char* name, const Estimate& e) {
  std::printf("%s: %6.3f ± %5.3f %%\n", name, 100 * e.value, 100 * e.error);
}

std::string share_name(double share) {
  if (share == 0.5) return "Median ";
  char text[16];
  std::snprintf(text, sizeof(text), "%4.1f%%  ", 100 * share);
  return text;
}

void print_statistics(const KlStats& s) {
  std::printf("\n====== Perplexity statistics ======\n");
  print_row("Mean PPL(Q)", s.ppl());
  print_row("Mean PPL(base)", s.ppl_base());
  std::printf("Cor(ln(PPL(Q)), ln(PPL(base))): %6.2f%%\n", 100 * s.correlation());
  print_row("Mean ln(PPL(Q)/PPL(base))", s.log_ratio());
  print_row("Mean PPL(Q)/PPL(base)", s.ratio());
  print_row("Mean PPL(Q)-PPL(base)", s.difference());
  std::printf("\n====== KL divergence statistics ======\n");
  std::printf("Mean    KLD: %10.6f ± %10.6f\n", s.kld().value, s.kld().error);
  std::printf("Maximum KLD: %10.6f\n", s.kld_percentile(1));
  for (const double share : kKldShares)
    std::printf("%s KLD: %10.6f\n", share_name(share).c_str(), s.kld_percentile(share));
  std::printf("Minimum KLD: %10.6f\n", s.kld_percentile(0));
  std::printf("\n====== Token probability statistics ======\n");
  print_percent("Mean    Δp", s.p_diff());
  std::printf("Maximum Δp: %6.3f%%\n", 100 * s.p_diff_percentile(1));
  for (const double share : kDiffShares)
    std::printf("%s Δp: %6.3f%%\n", share_name(share).c_str(), 100 * s.p_diff_percentile(share));
  std::printf("Minimum Δp: %6.3f%%\n", 100 * s.p_diff_percentile(0));
  print_percent("RMS Δp    ", s.p_diff_rms());
  print_percent("Same top p", s.same_top());
}

void print_divergence_row(const KlStats& s, int done) {
  if (done == 1) {
    std::printf(
        "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence           "
        "   Δp RMS            Same top p\n");
  }
  const Estimate ppl = s.ppl(), ratio = s.log_ratio(), kld = s.kld(), rms = s.p_diff_rms(),
                 top = s.same_top();
  std::printf("%4d    %9.4f ± %9.4f    %10.5f ± %10.5f    %10.5f ± %10.5f", done, ppl.value,
              ppl.error, ratio.value, ratio.error, kld.value, kld.error);
  std::printf("    %6.3f ± %6.3f %%    %6.3f ± %6.3f %%\n", 100 * rms.value, 100 * rms.error,
              100 * top.value, 100 * top.error);
}

void add_estimate(Json& json, const std::string& key, const Estimate& e) {
  json[key] = e.value;
  json[key + "_stderr"] = e.error;
}

Json percentiles(const KlStats& s, bool kld) {
  Json json = Json::object();
  const auto value = [&](double share) {
    return kld ? s.kld_percentile(share) : s.p_diff_percentile(share);
  };
  const std::span<const double> shares =
      kld ? std::span<const double>(kKldShares) : std::span<const double>(kDiffShares);
  for (const double share : shares) {
    char name[16];
    std::snprintf(name, sizeof(name), "%.1f", 100 * share);
    json[name] = value(share);
  }
  json["0.0"] = value(0);
  json["100.0"] = value(1);
  return json;
}

Json as_json(const Scores& scores) {
  const ModelReport& r = scores.report;
  constexpr const char* kActs[] = {"i8", "i16", "f32"};
  Json json = {{"build_commit", commit_text()},
               {"cpu_info", r.cpu},
               {"backends", r.backend},
               {"isa", r.isa},
               {"model_filename", r.model_path},
               {"model_size", r.memory.weight_bytes},
               {"model_n_params", r.n_params},
               {"n_threads", r.n_threads},
               {"n_threads_batch", r.n_threads_batch},
               {"type_k", info(r.type_k).name},
               {"type_v", info(r.type_v).name},
               {"act", kActs[static_cast<int>(r.act)]},
               {"n_ctx", scores.plan.n_ctx},
               {"n_chunks", scores.plan.n_chunks},
               {"stride", scores.plan.step},
               {"seconds", scores.seconds}};
  if (!scores.divergence) {
    json["n_scored"] = scores.nll.count();
    add_estimate(json, "nll", scores.nll.mean());
    add_estimate(json, "ppl", perplexity_of(scores.nll.mean()));
    return json;
  }
  const KlStats& s = scores.stats;
  json["n_scored"] = s.count();
  add_estimate(json, "ppl", s.ppl());
  add_estimate(json, "ppl_base", s.ppl_base());
  add_estimate(json, "ln_ppl_ratio", s.log_ratio());
  add_estimate(json, "ppl_ratio", s.ratio());
  add_estimate(json, "ppl_difference", s.difference());
  json["ln_ppl_correlation"] = s.correlation();
  add_estimate(json, "kld", s.kld());
  json["kld_percentiles"] = percentiles(s, true);
  json["kld_max"] = s.kld_percentile(1);
  json["kld_median"] = s.kld_percentile(0.5);
  add_estimate(json, "p_diff", s.p_diff());
  add_estimate(json, "p_diff_rms", s.p_diff_rms());
  json["p_diff_percentiles"] = percentiles(s, false);
  add_estimate(json, "same_top", s.same_top());
  return json;
}

}  // namespace

void print_chunk(const CliOptions& options, const Scores& scores, int done) {
  if (options.ppl_output != "text") return;
  if (scores.divergence) {
    print_divergence_row(scores.stats, done);
  } else if (options.lines == 0) {
    std::printf("[%d]%.4f,", done, perplexity_of(scores.nll.mean()).value);
  } else {
    const Estimate nll = scores.nll.mean();
    std::printf("%8d  %.4f  %4f  %4f\n", (done - 1) * scores.plan.step, perplexity_of(nll).value,
                nll.value, nll.error);
  }
  std::fflush(stdout);
}

void print_scores(const CliOptions& options, const Scores& scores) {
  if (options.ppl_output == "json") {
    std::printf("%s\n", Json::array({as_json(scores)}).dump(2).c_str());
  } else if (options.ppl_output == "jsonl") {
    std::printf("%s\n", as_json(scores).dump().c_str());
  } else if (scores.divergence) {
    print_statistics(scores.stats);
  } else {
    const Estimate ppl = perplexity_of(scores.nll.mean());
    std::printf("\nFinal estimate: PPL = %.4f +/- %.5f\n", ppl.value, ppl.error);
  }
}

}  // namespace bantam
