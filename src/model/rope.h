// RoPE angles (plain, linear, YaRN: https://arxiv.org/abs/2309.00071), in double on the host,
// stored as float.
#pragma once

#include <vector>

#include "model/config.h"

namespace bantam {

class Rope {
 public:
  // freqs: [rope_dims / 2] divisors of the angles (llama 3) or null.
  Rope(const ModelConfig& config, const float* freqs);
  // cos, sin: [rope_dims / 2], scaled by YaRN's attention factor.
  void tables(int pos, float* cos, float* sin) const;

 private:
  std::vector<double> angle_;  // per position, [rope_dims / 2]
  double scale_ = 1.0;
};

}  // namespace bantam
