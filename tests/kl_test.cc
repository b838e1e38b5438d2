// Statistics of perplexity and divergence against sums in long double, and the file of
// log-probabilities against rows made by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "cli/kl_stats.h"
#include "cli/logits_file.h"

namespace bantam {
namespace {

using Real = long double;

struct Two {
  Real mean, error;
};

Two two_pass(const std::vector<Real>& x) {
  Real mean = 0, square = 0;
  const Real n = static_cast<Real>(x.size());
  for (const Real v : x) mean += v / n;
  for (const Real v : x) square += (v - mean) * (v - mean);
  return {mean, std::sqrt(square / n / (n - 1))};
}

Real covariance(const std::vector<Real>& x, const std::vector<Real>& y) {
  const Real n = static_cast<Real>(x.size());
  Real sum = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    sum += (x[i] - two_pass(x).mean) * (y[i] - two_pass(y).mean);
  }
  return sum / n / (n - 1);
}

void near(Real got, Real want, Real relative = 1e-9L) {
  EXPECT_NEAR(static_cast<double>(got), static_cast<double>(want),
              static_cast<double>(relative * std::max<Real>(1, std::fabs(want))));
}

TEST(KlStats, SumsAreThoseOfTwoPasses) {
  std::mt19937 rng(11);
  std::gamma_distribution<double> loss(2, 1.5);
  std::normal_distribution<double> apart(0, 0.2);
  KlStats stats;
  std::vector<Real> nll, base, kld, diff, square, top;
  for (int i = 0; i < 400; ++i) {
    PositionDivergence p;
    p.nll = loss(rng);
    p.nll_base = p.nll + apart(rng);
    p.kld = std::fabs(apart(rng)) * 0.01;
    p.p_diff = std::exp(-p.nll) - std::exp(-p.nll_base);
    p.same_top = rng() % 10 != 0;
    stats.add(p);
    nll.push_back(p.nll);
    base.push_back(p.nll_base);
    kld.push_back(p.kld);
    diff.push_back(p.p_diff);
    square.push_back(Real(p.p_diff) * p.p_diff);
    top.push_back(p.same_top ? 1 : 0);
  }
  const Two q = two_pass(nll), b = two_pass(base), s = two_pass(square), t = two_pass(top);
  const Real shared = covariance(nll, base);
  near(stats.ppl().value, std::exp(q.mean));
  near(stats.ppl().error, std::exp(q.mean) * q.error);
  near(stats.ppl_base().value, std::exp(b.mean));
  near(stats.correlation(), shared / (q.error * b.error));
  near(stats.log_ratio().value, q.mean - b.mean);
  const Real variance = q.error * q.error + b.error * b.error - 2 * shared;
  near(stats.log_ratio().error, std::sqrt(variance));
  near(stats.ratio().value, std::exp(q.mean - b.mean));
  near(stats.difference().value, std::exp(q.mean) - std::exp(b.mean));
  const Real pq = std::exp(q.mean), pb = std::exp(b.mean);
  near(stats.difference().error,
       std::sqrt(pq * pq * q.error * q.error + pb * pb * b.error * b.error - 2 * pq * pb * shared));
  near(stats.kld().value, two_pass(kld).mean);
  near(stats.kld().error, two_pass(kld).error);
  near(stats.p_diff().value, two_pass(diff).mean);
  near(stats.p_diff().error, two_pass(diff).error);
  near(stats.p_diff_rms().value, std::sqrt(s.mean));
  near(stats.p_diff_rms().error, s.error / (2 * std::sqrt(s.mean)));
  near(stats.same_top().value, t.mean);
  near(stats.same_top().error, t.error);
}

TEST(KlStats, PercentilesInterpolate) {
  KlStats stats;
  for (const double x : {0.5, 0.1, 0.4, 0.2, 0.3}) {
    PositionDivergence p;
    p.kld = x;
    p.p_diff = -x;
    stats.add(p);
  }
  EXPECT_FLOAT_EQ(stats.kld_percentile(0), 0.1f);
  EXPECT_FLOAT_EQ(stats.kld_percentile(1), 0.5f);
  EXPECT_FLOAT_EQ(stats.kld_percentile(0.5), 0.3f);
  EXPECT_NEAR(stats.kld_percentile(0.9), 0.46, 1e-7);
  EXPECT_NEAR(stats.p_diff_percentile(0.1), -0.46, 1e-7);
}

TEST(KlStats, NothingAndOnePosition) {
  KlStats stats;
  EXPECT_EQ(stats.kld_percentile(0.5), 0);
  EXPECT_EQ(stats.same_top().value, 0);
  stats.add({});
  EXPECT_EQ(stats.kld().error, 0);
  EXPECT_EQ(stats.p_diff_rms().error, 0);
}

std::vector<float> some_logits(int n, unsigned seed, float spread) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> x(3, spread);
  std::vector<float> logits(static_cast<size_t>(n));
  for (float& v : logits) v = x(rng);
  return logits;
}

std::vector<Real> log_p(const std::vector<float>& logits) {
  Real sum = 0;
  for (const float x : logits) sum += std::exp(Real(x));
  std::vector<Real> out;
  for (const float x : logits) out.push_back(x - std::log(sum));
  return out;
}

TEST(KlStats, OnePositionInLongDouble) {
  const std::vector<float> q = some_logits(997, 1, 3), b = some_logits(997, 2, 3);
  const std::vector<Real> log_q = log_p(q), log_b = log_p(b);
  std::vector<float> base(log_b.begin(), log_b.end());
  Real kld = 0;
  for (size_t i = 0; i < q.size(); ++i) {
    if (log_b[i] > -16) kld += std::exp(log_b[i]) * (log_b[i] - log_q[i]);
  }
  const PositionDivergence got = divergence_of(q, base, 17);
  near(got.kld, kld, 1e-6L);
  near(got.nll, -log_q[17], 1e-6L);
  near(got.nll_base, -log_b[17], 1e-6L);
  near(got.p_diff, std::exp(log_q[17]) - std::exp(log_b[17]), 1e-7L);
  EXPECT_FALSE(got.same_top);
  EXPECT_TRUE(divergence_of(b, base, 17).same_top);
  near(divergence_of(b, base, 17).kld, 0, 1e-6L);
  near(nll_of(q, 996), -log_q[996], 1e-6L);
}

TEST(LogitsFile, RowsKeepWhatTheFormatHolds) {
  for (const int n : {1, 2, 31, 1024}) {
    const LogitsShape shape{8, n, 1};
    EXPECT_EQ(shape.row_bytes(), static_cast<uint64_t>(8 + (n + 1) / 2 * 4));
    const std::vector<float> logits = some_logits(n, 5, 6);
    const std::vector<Real> want = log_p(logits);
    const Real highest = *std::max_element(want.begin(), want.end());
    std::vector<std::byte> row(shape.row_bytes(), std::byte{7});
    ASSERT_TRUE(encode_logits_row(logits, row).ok());
    if (n % 2 == 1) EXPECT_EQ(row.back(), std::byte{0});
    std::vector<float> got(static_cast<size_t>(n));
    ASSERT_TRUE(decode_logits_row(row, got).ok());
    for (size_t i = 0; i < got.size(); ++i) {
      // Half a code; below the range everything is its lower end.
      near(got[i], std::max(want[i], highest - 16), 16.0L / 65535 / 2 + 2e-6L);
    }
  }
}

TEST(LogitsFile, RowsThatAreNoDistribution) {
  std::vector<std::byte> row(LogitsShape{8, 64, 1}.row_bytes());
  std::vector<float> out(64);
  const std::vector<float> good = some_logits(64, 3, 2);
  const auto changed = [&](size_t at, float value) {
    EXPECT_TRUE(encode_logits_row(good, row).ok());
    std::memcpy(row.data() + at, &value, 4);
    return decode_logits_row(row, out).ok();
  };
  float lowest = 0;
  EXPECT_TRUE(encode_logits_row(good, row).ok());
  std::memcpy(&lowest, row.data() + 4, 4);
  EXPECT_TRUE(changed(4, lowest));
  for (const float wrong : {-1e-4f, 17.0f, 0.01f, NAN, INFINITY}) EXPECT_FALSE(changed(0, wrong));
  for (const float wrong : {1.0f, lowest - 1, lowest + 1, -1e9f, NAN, -INFINITY})
    EXPECT_FALSE(changed(4, wrong));
  std::vector<float> bad = good;
  bad[9] = NAN;
  EXPECT_FALSE(encode_logits_row(bad, row).ok());
}

TEST(LogitsFile, HeadersThatDoNotFit) {
  const LogitsShape shape{16, 100, 3};
  std::byte head[kLogitsHeaderBytes];
  const auto parse = [&](int n_ctx, int n_vocab, int n_chunk, int64_t more = 0) {
    const int32_t numbers[3] = {n_ctx, n_vocab, n_chunk};
    std::memcpy(head, "_logits_", 8);
    std::memcpy(head + 8, numbers, sizeof(numbers));
    return parse_logits_header(head, shape.file_bytes() + static_cast<uint64_t>(more)).ok();
  };
  // 20 + 3 * 16 tokens * 4 + 3 * 7 rows * 208
  EXPECT_EQ(shape.file_bytes(), 20u + 192u + 21u * 208u);
  EXPECT_TRUE(parse(16, 100, 3));
  EXPECT_FALSE(parse(16, 100, 3, 1));
  EXPECT_FALSE(parse(16, 100, 3, -1));
  for (const int wrong : {0, -1, 1, 15, 17, 1 << 21, INT32_MAX, INT32_MIN}) {
    EXPECT_FALSE(parse(wrong, 100, 3));
    if (wrong != 100) EXPECT_FALSE(parse(16, wrong, 3));
    EXPECT_FALSE(parse(16, 100, wrong));
  }
  head[0] = std::byte{'x'};
  EXPECT_FALSE(parse_logits_header(head, shape.file_bytes()).ok());
  EXPECT_FALSE(parse_logits_header({}, 0).ok());
  const std::vector<int32_t> tokens(48, 99);
  EXPECT_TRUE(parse_logits_tokens(std::as_bytes(std::span(tokens)), shape).ok());
  for (const int32_t wrong : {100, -1, INT32_MAX}) {
    std::vector<int32_t> bad = tokens;
    bad[47] = wrong;
    EXPECT_FALSE(parse_logits_tokens(std::as_bytes(std::span(bad)), shape).ok());
  }
}

}  // namespace
}  // namespace bantam
