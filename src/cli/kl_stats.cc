#include "cli/kl_stats.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace bantam {

namespace {

struct Softmax {
  float highest;
  size_t top;      // the first of the highest
  double log_sum;  // ln of sum of exp(x - highest)
};

Softmax softmax_of(std::span<const float> logits) {
  Softmax s{logits[0], 0, 0};
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] <= s.highest) continue;
    s.highest = logits[i];
    s.top = i;
  }
  double sum = 0;
  for (const float x : logits) sum += std::exp(x - s.highest);
  s.log_sum = std::log(sum);
  return s;
}

double root(double x) { return x > 0 ? std::sqrt(x) : 0; }

}  // namespace

void MeanSum::add(double x) {
  ++n_;
  const double apart = x - mean_;
  mean_ += apart / static_cast<double>(n_);
  square_ += apart * (x - mean_);
}

Estimate MeanSum::mean() const {
  const auto n = static_cast<double>(n_);
  return {mean_, n_ > 1 ? root(square_ / n / (n - 1)) : 0};
}

Estimate perplexity_of(const Estimate& nll) {
  const double value = std::exp(nll.value);
  return {value, value * nll.error};
}

double nll_of(std::span<const float> logits, int32_t token) {
  const Softmax s = softmax_of(logits);
  return double(s.highest) + s.log_sum - logits[static_cast<size_t>(token)];
}

PositionDivergence divergence_of(std::span<const float> logits, std::span<const float> base_log_p,
                                 int32_t token) {
  CHECK(logits.size() == base_log_p.size());
  // What the file's range cannot hold is not counted, on either side.
  constexpr float kLeast = -16;
  const Softmax s = softmax_of(logits);
  const double norm = double(s.highest) + s.log_sum;
  PositionDivergence out;
  size_t top = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const float base = base_log_p[i];
    if (base > base_log_p[top]) top = i;
    if (base > kLeast) out.kld += double(std::exp(base)) * (base - (logits[i] - norm));
  }
  out.same_top = top == s.top;
  out.nll = norm - logits[static_cast<size_t>(token)];
  out.nll_base = -double(base_log_p[static_cast<size_t>(token)]);
  out.p_diff = std::exp(-out.nll) - std::exp(-out.nll_base);
  return out;
}

void KlStats::add(const PositionDivergence& p) {
  const double before = p.nll - nll_.mean().value;
  nll_.add(p.nll);
  nll_base_.add(p.nll_base);
  product_ += before * (p.nll_base - nll_base_.mean().value);
  kld_.add(p.kld);
  p_diff_.add(p.p_diff);
  p_diff2_.add(p.p_diff * p.p_diff);
  same_top_ += p.same_top ? 1 : 0;
  klds_.push_back(static_cast<float>(p.kld));
  p_diffs_.push_back(static_cast<float>(p.p_diff));
}

double KlStats::covariance() const {
  const auto n = static_cast<double>(count());
  return count() > 1 ? product_ / n / (n - 1) : 0;
}

Estimate KlStats::log_ratio() const {
  const Estimate q = nll_.mean(), base = nll_base_.mean();
  const double variance = q.error * q.error + base.error * base.error - 2 * covariance();
  return {q.value - base.value, root(variance)};
}

Estimate KlStats::difference() const {
  const Estimate q = ppl(), base = ppl_base();
  const double variance =
      q.error * q.error + base.error * base.error - 2 * q.value * base.value * covariance();
  return {q.value - base.value, root(variance)};
}

double KlStats::correlation() const {
  const double errors = nll_.mean().error * nll_base_.mean().error;
  return errors > 0 ? covariance() / errors : 0;
}

Estimate KlStats::p_diff_rms() const {
  const Estimate square = p_diff2_.mean();
  const double value = root(square.value);
  return {value, value > 0 ? 0.5 / value * square.error : 0};
}

Estimate KlStats::same_top() const {
  const auto n = static_cast<double>(count());
  if (count() == 0) return {};
  const double share = static_cast<double>(same_top_) / n;
  return {share, count() > 1 ? root(share * (1 - share) / (n - 1)) : 0};
}

double KlStats::percentile(const std::vector<float>& values, double fraction) {
  if (values.empty()) return 0;
  std::vector<float> sorted = values;
  std::sort(sorted.begin(), sorted.end());
  const double at = std::clamp(fraction, 0.0, 1.0) * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  const double part = at - static_cast<double>(low);
  return (1 - part) * sorted[low] + part * sorted[high];
}

}  // namespace bantam
