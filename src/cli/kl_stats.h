// Statistics of perplexity and of the divergence from a base, as llama-perplexity defines them.
// Owns the sums and the values of every position; refuses nothing. A standard error is that of a
// mean of independent positions (variance / (n - 1)); percentiles interpolate between neighbours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace bantam {

struct Estimate {
  double value = 0;
  double error = 0;  // one standard error
};

// Mean of values added one by one.
class MeanSum {
 public:
  void add(double x);
  int64_t count() const { return n_; }
  Estimate mean() const;

 private:
  int64_t n_ = 0;
  double mean_ = 0, square_ = 0;  // square_: sum of squared distances from the mean
};

// exp of a mean of negative log-likelihoods, its error by the first derivative.
Estimate perplexity_of(const Estimate& nll);

// Of one position, the model's distribution (logits, not normalized) against the base (ln p).
struct PositionDivergence {
  double nll = 0, nll_base = 0;  // of the token that came
  double kld = 0;                // sum of p_base (ln p_base - ln p)
  double p_diff = 0;             // p - p_base of the token that came
  bool same_top = false;
};
double nll_of(std::span<const float> logits, int32_t token);
PositionDivergence divergence_of(std::span<const float> logits, std::span<const float> base_log_p,
                                 int32_t token);

class KlStats {
 public:
  void add(const PositionDivergence& position);

  int64_t count() const { return nll_.count(); }
  Estimate ppl() const { return perplexity_of(nll_.mean()); }
  Estimate ppl_base() const { return perplexity_of(nll_base_.mean()); }
  Estimate log_ratio() const;  // ln(PPL(Q) / PPL(base))
  Estimate ratio() const { return perplexity_of(log_ratio()); }
  Estimate difference() const;  // PPL(Q) - PPL(base)
  double correlation() const;   // of ln PPL(Q) and ln PPL(base)
  Estimate kld() const { return kld_.mean(); }
  Estimate p_diff() const { return p_diff_.mean(); }
  Estimate p_diff_rms() const;
  Estimate same_top() const;
  // fraction 0: the smallest, 1: the largest.
  double kld_percentile(double fraction) const { return percentile(klds_, fraction); }
  double p_diff_percentile(double fraction) const { return percentile(p_diffs_, fraction); }

 private:
  static double percentile(const std::vector<float>& values, double fraction);
  double covariance() const;

  MeanSum nll_, nll_base_, kld_, p_diff_, p_diff2_;
  double product_ = 0;  // sum of (nll - mean) * (nll_base - mean)
  int64_t same_top_ = 0;
  std::vector<float> klds_, p_diffs_;
};

}  // namespace bantam
