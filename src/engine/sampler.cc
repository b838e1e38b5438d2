#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <unordered_map>

#include "base/check.h"

namespace bantam {

namespace {

uint64_t splitmix(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

uint64_t rotate_left(uint64_t x, int k) { return x << k | x >> (64 - k); }

// exp for x <= 0 from additions and products only, so that every machine draws the same token.
double exp_negative(double x) {
  if (!(x > -700.0)) return 0.0;
  const double n = std::nearbyint(x * 1.4426950408889634);
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = 1.0;
  for (int k = 13; k >= 1; --k) p = 1.0 + p * r / k;
  return std::ldexp(p, static_cast<int>(n));
}

}  // namespace

Status check_sampling(const SamplingParams& p, int n_vocab) {
  const auto wrong = [](const char* name, double got, const char* expected) {
    return refused(std::string(name) + " is " + std::to_string(got) + ", expected " + expected);
  };
  if (!std::isfinite(p.temperature)) return wrong("temperature", p.temperature, "a finite number");
  if (!(p.top_p >= 0.0f && p.top_p <= 1.0f)) return wrong("top_p", p.top_p, "0 to 1");
  if (!(p.min_p >= 0.0f && p.min_p <= 1.0f)) return wrong("min_p", p.min_p, "0 to 1");
  if (!(p.repeat_penalty > 0.0f) || !std::isfinite(p.repeat_penalty)) {
    return wrong("repeat_penalty", p.repeat_penalty, "a number above 0");
  }
  if (!std::isfinite(p.frequency_penalty))
    return wrong("frequency_penalty", p.frequency_penalty, "finite");
  if (!std::isfinite(p.presence_penalty))
    return wrong("presence_penalty", p.presence_penalty, "finite");
  if (p.repeat_last_n < -1) return wrong("repeat_last_n", p.repeat_last_n, "-1 or more");
  for (const auto& [token, bias] : p.logit_bias) {
    if (token < 0 || token >= n_vocab)
      return wrong("logit_bias token", token, "a token of the vocabulary");
    if (std::isnan(bias)) return wrong("logit_bias", bias, "a number");
  }
  return Ok{};
}

Sampler::Sampler(const SamplingParams& params, uint64_t seed) : params_(params), seed_(seed) {
  uint64_t state = seed;
  for (uint64_t& word : state_) word = splitmix(state);
}

// xoshiro256** 1.0 (Blackman and Vigna, 2018): 53 high bits.
double Sampler::next_uniform() {
  const uint64_t result = rotate_left(state_[1] * 5, 7) * 9;
  const uint64_t t = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= t;
  state_[3] = rotate_left(state_[3], 45);
  return static_cast<double>(result >> 11) * 0x1p-53;
}

void Sampler::gather(std::span<const float> logits, std::span<const int32_t> recent) {
  adjusted_.clear();
  for (const auto& [token, bias] : params_.logit_bias) {
    adjusted_.try_emplace(token, logits[static_cast<size_t>(token)]).first->second += bias;
  }
  penalize(logits, recent);
  // Only the best top_k + 1 candidates are ever held: a vocabulary of 152k floats is not copied.
  const auto n = logits.size();
  const size_t keep = params_.temperature <= 0.0f ? 1
                      : params_.top_k > 0 ? std::min<size_t>(n, static_cast<size_t>(params_.top_k))
                                          : n;
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  candidates_.clear();
  float weakest = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < n; ++i) {
    float logit = logits[i];
    if (!adjusted_.empty()) {
      const auto it = adjusted_.find(static_cast<int32_t>(i));
      if (it != adjusted_.end()) logit = it->second;
    }
    if (!(logit > weakest) || std::isinf(logit)) continue;  // NaN and infinities are never chosen
    candidates_.push_back({logit, static_cast<int32_t>(i)});
    if (keep == n || candidates_.size() < 2 * keep + 64) continue;
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<ptrdiff_t>(keep) - 1,
                     candidates_.end(), better);
    candidates_.resize(keep);
    weakest = candidates_[keep - 1].logit;
  }
  std::sort(candidates_.begin(), candidates_.end(), better);
  if (candidates_.size() > keep) candidates_.resize(keep);
}

void Sampler::penalize(std::span<const float> logits, std::span<const int32_t> recent) {
  if (params_.repeat_penalty == 1.0f && params_.frequency_penalty == 0.0f &&
      params_.presence_penalty == 0.0f) {
    return;
  }
  if (params_.repeat_last_n >= 0 && recent.size() > static_cast<size_t>(params_.repeat_last_n)) {
    recent = recent.last(static_cast<size_t>(params_.repeat_last_n));
  }
  std::unordered_map<int32_t, int> counts;
  for (const int32_t token : recent) {
    if (token >= 0 && static_cast<size_t>(token) < logits.size()) ++counts[token];
  }
  for (const auto& [token, count] : counts) {
    float& logit = adjusted_.try_emplace(token, logits[static_cast<size_t>(token)]).first->second;
    logit = logit > 0.0f ? logit / params_.repeat_penalty : logit * params_.repeat_penalty;
    logit -= static_cast<float>(count) * params_.frequency_penalty + params_.presence_penalty;
  }
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> recent) {
  gather(logits, recent);
  if (candidates_.empty()) return -1;
  if (params_.temperature <= 0.0f) return candidates_[0].token;
  // Probabilities without temperature decide top-p and min-p; temperature comes last.
  weights_.clear();
  double total = 0.0;
  for (const Candidate& c : candidates_) {
    weights_.push_back(exp_negative(static_cast<double>(c.logit) - candidates_[0].logit));
    total += weights_.back();
  }
  size_t n = candidates_.size();
  double sum = 0.0;
  for (size_t i = 0; i < n; ++i) {
    sum += weights_[i];
    if (sum < static_cast<double>(params_.top_p) * total) continue;
    n = params_.top_p < 1.0f ? i + 1 : n;
    break;
  }
  while (n > 1 && weights_[n - 1] < static_cast<double>(params_.min_p) * weights_[0]) --n;
  total = 0.0;
  for (size_t i = 0; i < n; ++i) {
    const double gap = static_cast<double>(candidates_[i].logit) - candidates_[0].logit;
    weights_[i] = exp_negative(gap / params_.temperature);
    total += weights_[i];
  }
  double target = next_uniform() * total;
  for (size_t i = 0; i < n; ++i) {
    target -= weights_[i];
    if (target < 0.0) return candidates_[i].token;
  }
  return candidates_[n - 1].token;
}

std::vector<TokenProb> log_probabilities(std::span<const float> logits, int32_t chosen, int n_top) {
  float top = -std::numeric_limits<float>::infinity();
  for (const float x : logits) top = x > top ? x : top;
  double sum = 0.0;
  for (const float x : logits) sum += x == x ? exp_negative(static_cast<double>(x) - top) : 0.0;
  const double shift = static_cast<double>(top) + std::log(sum);
  std::vector<TokenProb> out;
  const auto entry = [&](int32_t token) {
    return TokenProb{token, static_cast<float>(logits[static_cast<size_t>(token)] - shift)};
  };
  out.push_back(entry(chosen));
  std::vector<int32_t> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  const auto n = static_cast<ptrdiff_t>(
      std::min<size_t>(order.size(), static_cast<size_t>(std::max(0, n_top))));
  const auto at = [&](int32_t i) {
    const float x = logits[static_cast<size_t>(i)];
    return x == x ? x : -std::numeric_limits<float>::infinity();
  };
  std::partial_sort(order.begin(), order.begin() + n, order.end(),
                    [&](int32_t a, int32_t b) { return at(a) != at(b) ? at(a) > at(b) : a < b; });
  for (ptrdiff_t i = 0; i < n; ++i) out.push_back(entry(order[static_cast<size_t>(i)]));
  return out;
}

}  // namespace bantam
