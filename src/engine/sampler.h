// Logits -> token, in float on the host with a seeded generator of our own: the same on every
// machine (NUMERICS rule 9). Order: logit bias, penalties, top-k, top-p, min-p, temperature.
// temperature <= 0 is greedy (lowest id wins ties).
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/result.h"

namespace bantam {

struct SamplingParams {
  float temperature = 0.8f;
  int top_k = 40;  // <= 0: all
  float top_p = 0.95f;
  float min_p = 0.05f;
  float repeat_penalty = 1.0f;
  float frequency_penalty = 0.0f;
  float presence_penalty = 0.0f;
  int repeat_last_n = 64;  // -1: the whole context
  int64_t seed = -1;       // -1: random; the request's actual seed is reported back
  std::vector<std::pair<int32_t, float>> logit_bias;  // -inf forbids a token
};

// Refuses values that make no sense (NaN, top_p outside 0..1, min_p outside 0..1, repeat_penalty <=
// 0, unknown ids).
Status check_sampling(const SamplingParams& params, int n_vocab);

struct TokenProb {
  int32_t token = 0;
  float logprob = 0;
};

// Of the chosen token first, then the n_top best: natural logarithms of the softmax without
// temperature.
std::vector<TokenProb> log_probabilities(std::span<const float> logits, int32_t chosen, int n_top);

class Sampler {
 public:
  Sampler(const SamplingParams& params, uint64_t seed);

  // logits: [n_vocab], not changed. recent: the tokens before this one, oldest first.
  // -1 when no logit is finite, as they are or with bias and penalties.
  int32_t sample(std::span<const float> logits, std::span<const int32_t> recent);
  uint64_t seed() const { return seed_; }

 private:
  struct Candidate {
    float logit;
    int32_t token;
  };
  void gather(std::span<const float> logits, std::span<const int32_t> recent);
  void penalize(std::span<const float> logits, std::span<const int32_t> recent);
  double next_uniform();  // [0, 1)

  SamplingParams params_;
  uint64_t seed_;
  uint64_t state_[4];
  std::vector<Candidate> candidates_;
  std::vector<double> weights_;
  std::unordered_map<int32_t, float> adjusted_;  // logits changed by bias or penalties
};

}  // namespace bantam
