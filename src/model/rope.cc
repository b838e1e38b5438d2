#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace bantam {

namespace {

// The dimension whose wave makes `rotations` turns over the original context (YaRN, section 3.2).
double yarn_dim(const ModelConfig& c, double rotations) {
  return c.rope_dims * std::log(c.rope_original_ctx / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(c.rope_base));
}

}  // namespace

Rope::Rope(const ModelConfig& config, const float* freqs) {
  const int half = config.rope_dims / 2;
  angle_.resize(static_cast<size_t>(half));
  const double low = std::max(0.0, std::floor(yarn_dim(config, config.yarn_beta_fast)));
  const double high =
      std::min(config.rope_dims - 1.0, std::ceil(yarn_dim(config, config.yarn_beta_slow)));
  for (int i = 0; i < half; ++i) {
    double angle = std::pow(config.rope_base, -2.0 * i / config.rope_dims);
    if (freqs != nullptr) angle /= static_cast<double>(freqs[i]);
    if (config.rope_scaling == RopeScaling::linear) angle /= config.rope_factor;
    if (config.rope_scaling == RopeScaling::yarn) {
      const double ramp = 1.0 - std::clamp((i - low) / std::max(0.001, high - low), 0.0, 1.0);
      angle = angle / config.rope_factor * (1.0 - ramp) + angle * ramp;
    }
    angle_[static_cast<size_t>(i)] = angle;
  }
  if (config.rope_scaling == RopeScaling::yarn) {
    scale_ = (1.0 + 0.1 * std::log(config.rope_factor)) * config.rope_attn_factor;
  }
}

void Rope::tables(int pos, float* cos, float* sin) const {
  for (size_t i = 0; i < angle_.size(); ++i) {
    const double theta = pos * angle_[i];
    cos[i] = static_cast<float>(std::cos(theta) * scale_);
    sin[i] = static_cast<float>(std::sin(theta) * scale_);
  }
}

}  // namespace bantam
