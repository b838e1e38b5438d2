// Sampler and StopMatcher: against brute force in double, chi-square, stored sequences, every
// split.
#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "engine/stop.h"

namespace bantam {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

SamplingParams plain() {
  SamplingParams p;
  p.temperature = 1.0f;
  p.top_k = 0;
  p.top_p = 1.0f;
  p.min_p = 0.0f;
  return p;
}

SamplingParams greedy() {
  SamplingParams p = plain();
  p.temperature = 0.0f;
  return p;
}

std::vector<float> random_logits(int n, uint32_t seed, float scale = 2.0f) {
  std::mt19937 random(seed);
  std::vector<float> logits;
  for (int i = 0; i < n; ++i) {
    logits.push_back(scale * (static_cast<float>(random() % 20001) / 10000.0f - 1.0f));
  }
  return logits;
}

// What DESIGN says, slowly and in double: token -> probability.
std::map<int, double> expected(std::vector<double> logits, const SamplingParams& p,
                               const std::vector<int32_t>& recent) {
  for (const auto& [token, bias] : p.logit_bias) logits[static_cast<size_t>(token)] += bias;
  std::map<int, int> counts;
  const size_t n_last = p.repeat_last_n < 0
                            ? recent.size()
                            : std::min(recent.size(), static_cast<size_t>(p.repeat_last_n));
  for (size_t i = recent.size() - n_last; i < recent.size(); ++i) ++counts[recent[i]];
  for (const auto& [token, count] : counts) {
    double& x = logits[static_cast<size_t>(token)];
    x = x > 0 ? x / p.repeat_penalty : x * p.repeat_penalty;
    x -= count * p.frequency_penalty + p.presence_penalty;
  }
  std::vector<int> order;
  for (int i = 0; i < static_cast<int>(logits.size()); ++i) {
    if (std::isfinite(logits[static_cast<size_t>(i)])) order.push_back(i);
  }
  const auto at = [&](int i) { return logits[static_cast<size_t>(i)]; };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return at(a) > at(b); });
  if (p.top_k > 0 && order.size() > static_cast<size_t>(p.top_k)) {
    order.resize(static_cast<size_t>(p.top_k));
  }
  const double top = at(order[0]);
  double total = 0, sum = 0;
  for (const int i : order) total += std::exp(at(i) - top);
  size_t keep = 0;
  while (keep < order.size()) {
    sum += std::exp(at(order[keep++]) - top) / total;
    if (p.top_p < 1.0f && sum >= p.top_p) break;
  }
  order.resize(keep);
  std::erase_if(order, [&](int i) { return i != order[0] && std::exp(at(i) - top) < p.min_p; });
  std::map<int, double> out;
  double weight = 0;
  for (const int i : order) weight += out[i] = std::exp((at(i) - top) / p.temperature);
  for (auto& [token, probability] : out) probability /= weight;
  return out;
}

// Draws n times and compares with `expected`: no token outside the set, chi-square below its mean
// plus six deviations.
void check_distribution(const std::vector<float>& logits, const SamplingParams& p,
                        const std::vector<int32_t>& recent, uint64_t seed, int n = 20000) {
  const std::map<int, double> want =
      expected(std::vector<double>(logits.begin(), logits.end()), p, recent);
  Sampler sampler(p, seed);
  std::map<int, int> got;
  for (int i = 0; i < n; ++i) ++got[sampler.sample(logits, recent)];
  for (const auto& [token, count] : got) {
    ASSERT_TRUE(want.contains(token)) << "token " << token << " drawn " << count << " times";
  }
  double chi = 0, pooled_want = 0, pooled_got = 0;
  int cells = 0;
  for (const auto& [token, probability] : want) {
    const double count = got.contains(token) ? got[token] : 0;
    if (probability * n < 8) {  // too rare for a cell of its own
      pooled_want += probability * n;
      pooled_got += count;
      continue;
    }
    chi += (count - probability * n) * (count - probability * n) / (probability * n);
    ++cells;
  }
  if (pooled_want >= 8) {
    chi += (pooled_got - pooled_want) * (pooled_got - pooled_want) / pooled_want;
    ++cells;
  }
  const double freedom = std::max(1, cells - 1);
  EXPECT_LT(chi, freedom + 6 * std::sqrt(2 * freedom)) << cells << " cells";
}

TEST(Sampler, GreedyTakesTheHighestAndTheLowestIdOfATie) {
  Sampler sampler(greedy(), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{0, 3, 1, 3, 2}, {}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>(50, 0.25f), {}), 0);
  EXPECT_EQ(sampler.sample(std::vector<float>{-5, -4, -4}, {}), 1);
  // Many equal maxima, more than any internal buffer holds.
  std::vector<float> logits(5000, 1.0f);
  for (size_t i = 1000; i < 5000; ++i) logits[i] = 2.0f;
  EXPECT_EQ(sampler.sample(logits, {}), 1000);
  const std::vector<float> noise = random_logits(50000, 3);
  EXPECT_EQ(sampler.sample(noise, {}),
            std::max_element(noise.begin(), noise.end()) - noise.begin());
}

TEST(Sampler, NanAndForbiddenTokensAreNeverChosen) {
  SamplingParams hot = plain();
  hot.temperature = 5.0f;
  for (const SamplingParams& p : {greedy(), hot}) {
    Sampler sampler(p, 7);
    for (int i = 0; i < 200; ++i) {
      EXPECT_EQ(sampler.sample(std::vector<float>{kNan, -kInf, 0.5f, kNan, -kInf}, {}), 2);
    }
    EXPECT_EQ(sampler.sample(std::vector<float>(10, kNan), {}), -1);
    EXPECT_EQ(sampler.sample(std::vector<float>(10, -kInf), {}), -1);
  }
}

TEST(Sampler, TopKTiesKeepTheLowestIds) {
  SamplingParams p = plain();
  p.top_k = 3;
  Sampler sampler(p, 9);
  std::set<int> seen;
  for (int i = 0; i < 300; ++i) seen.insert(sampler.sample(std::vector<float>(1000, 1.5f), {}));
  EXPECT_EQ(seen, (std::set<int>{0, 1, 2}));
}

TEST(Sampler, AllEqualIsUniform) {
  check_distribution(std::vector<float>(64, -3.0f), plain(), {}, 11);
}

TEST(Sampler, SetsAndProbabilitiesEqualBruteForce) {
  uint32_t seed = 20;
  for (const int n_vocab : {5, 300, 2000}) {
    for (const int top_k : {0, 1, 7, 40}) {
      for (const float top_p : {1.0f, 0.9f, 0.3f, 0.0f}) {
        for (const float min_p : {0.0f, 0.05f, 0.6f}) {
          SamplingParams p = plain();
          p.top_k = top_k;
          p.top_p = top_p;
          p.min_p = min_p;
          p.temperature = seed % 2 == 0 ? 0.7f : 1.6f;
          SCOPED_TRACE(testing::Message() << n_vocab << " k " << top_k << " p " << top_p << " min "
                                          << min_p << " seed " << seed);
          check_distribution(random_logits(n_vocab, seed, 5.0f), p, {}, seed,
                             n_vocab > 1000 ? 500 : 2000);
          ++seed;
        }
      }
    }
  }
}

TEST(Sampler, DefaultsChiSquare) {
  check_distribution(random_logits(5000, 77, 6.0f), SamplingParams{}, {}, 123, 100000);
}

TEST(Sampler, PenaltiesAndBias) {
  SamplingParams p = greedy();
  p.repeat_penalty = 2.0f;
  const std::vector<float> logits = {4.0f, 3.0f, -1.0f};
  const std::vector<int32_t> recent = {0, 2};
  EXPECT_EQ(Sampler(p, 1).sample(logits, recent), 1);  // 2, 3, -2
  p.repeat_last_n = 1;                                 // only token 2
  EXPECT_EQ(Sampler(p, 1).sample(logits, recent), 0);
  p.repeat_last_n = 0;
  EXPECT_EQ(Sampler(p, 1).sample(logits, recent), 0);
  p.repeat_last_n = -1;
  EXPECT_EQ(Sampler(p, 1).sample(logits, recent), 1);
  p = greedy();
  p.frequency_penalty = 0.6f;
  EXPECT_EQ(Sampler(p, 1).sample(logits, std::vector<int32_t>{0}), 0);
  EXPECT_EQ(Sampler(p, 1).sample(logits, std::vector<int32_t>{0, 0}), 1);
  p = greedy();
  p.presence_penalty = 0.9f;
  EXPECT_EQ(Sampler(p, 1).sample(logits, std::vector<int32_t>{0, 0, 0}), 0);
  p.presence_penalty = 1.1f;
  EXPECT_EQ(Sampler(p, 1).sample(logits, std::vector<int32_t>{0}), 1);
  p = greedy();
  p.logit_bias = {{0, -kInf}, {2, 4.5f}};
  EXPECT_EQ(Sampler(p, 1).sample(logits, {}), 2);  // -inf, 3, 3.5
  // Bias comes before the penalties: -1 + 4.5 is positive and divided.
  p.repeat_penalty = 2.0f;
  EXPECT_EQ(Sampler(p, 1).sample(logits, std::vector<int32_t>{2}), 1);
}

TEST(Sampler, PenaltiesAgainstBruteForce) {
  for (uint32_t seed = 0; seed < 12; ++seed) {
    SamplingParams p;
    p.repeat_penalty = 1.3f;
    p.frequency_penalty = 0.2f;
    p.presence_penalty = 0.4f;
    p.repeat_last_n = static_cast<int>(seed % 3 == 0 ? -1 : seed * 5);
    p.logit_bias = {{3, 2.0f}, {17, -kInf}, {40, -1.0f}};
    std::mt19937 random(seed);
    std::vector<int32_t> recent;
    for (int i = 0; i < 50; ++i) recent.push_back(static_cast<int32_t>(random() % 100));
    check_distribution(random_logits(100, seed, 3.0f), p, recent, seed, 4000);
  }
}

// Changing these numbers changes the answers of every user's seed.
TEST(Sampler, StoredSequences) {
  const std::vector<float> logits = random_logits(1000, 5, 4.0f);
  const auto draw = [&](const SamplingParams& p, uint64_t seed) {
    Sampler sampler(p, seed);
    std::vector<int32_t> tokens;
    for (int i = 0; i < 8; ++i) tokens.push_back(sampler.sample(logits, tokens));
    return tokens;
  };
  EXPECT_EQ(draw(SamplingParams{}, 42), draw(SamplingParams{}, 42));
  EXPECT_NE(draw(SamplingParams{}, 42), draw(SamplingParams{}, 43));
  EXPECT_EQ(draw(SamplingParams{}, 42),
            (std::vector<int32_t>{5, 666, 354, 552, 905, 451, 820, 885}));
  EXPECT_EQ(draw(plain(), 0), (std::vector<int32_t>{564, 772, 164, 741, 601, 509, 770, 237}));
}

TEST(Sampler, LogProbabilities) {
  const std::vector<float> logits = random_logits(500, 8, 6.0f);
  double total = 0;
  for (const float x : logits) total += std::exp(static_cast<double>(x));
  const std::vector<TokenProb> probs = log_probabilities(logits, 123, 5);
  ASSERT_EQ(probs.size(), 6u);
  EXPECT_EQ(probs[0].token, 123);
  for (const TokenProb& p : probs) {
    EXPECT_NEAR(p.logprob, logits[static_cast<size_t>(p.token)] - std::log(total), 1e-5);
  }
  for (size_t i = 2; i < probs.size(); ++i) EXPECT_GE(probs[i - 1].logprob, probs[i].logprob);
  EXPECT_EQ(probs[1].token, std::max_element(logits.begin(), logits.end()) - logits.begin());
  EXPECT_EQ(log_probabilities(logits, 0, 0).size(), 1u);
  EXPECT_EQ(log_probabilities(logits, 0, 1000).size(), 501u);
}

TEST(Sampler, ChecksValues) {
  EXPECT_TRUE(check_sampling(SamplingParams{}, 10).ok());
  const auto wrong = [](auto change) {
    SamplingParams p;
    change(p);
    const Status status = check_sampling(p, 10);
    return !status.ok() && status.error().kind == ErrorKind::refused;
  };
  for (const float bad : {kNan, kInf, -kInf}) {
    EXPECT_TRUE(wrong([&](auto& p) { p.temperature = bad; }));
    EXPECT_TRUE(wrong([&](auto& p) { p.top_p = bad; }));
    EXPECT_TRUE(wrong([&](auto& p) { p.min_p = bad; }));
    EXPECT_TRUE(wrong([&](auto& p) { p.repeat_penalty = bad; }));
    EXPECT_TRUE(wrong([&](auto& p) { p.frequency_penalty = bad; }));
    EXPECT_TRUE(wrong([&](auto& p) { p.presence_penalty = bad; }));
  }
  EXPECT_TRUE(wrong([](auto& p) { p.top_p = 1.01f; }));
  EXPECT_TRUE(wrong([](auto& p) { p.min_p = -0.1f; }));
  EXPECT_TRUE(wrong([](auto& p) { p.repeat_penalty = 0.0f; }));
  EXPECT_TRUE(wrong([](auto& p) { p.repeat_last_n = -2; }));
  EXPECT_TRUE(wrong([](auto& p) { p.logit_bias = {{10, 1.0f}}; }));
  EXPECT_TRUE(wrong([](auto& p) { p.logit_bias = {{-1, 1.0f}}; }));
  EXPECT_TRUE(wrong([](auto& p) { p.logit_bias = {{1, kNan}}; }));
}

struct Shown {
  std::string text, word;
  bool operator==(const Shown&) const = default;
};

// Bit i of `cuts`: a new piece starts at byte i + 1.
Shown show(const std::vector<std::string>& stops, const std::string& text, uint32_t cuts) {
  StopMatcher matcher(stops);
  Shown shown;
  std::string piece;
  for (size_t i = 0; i < text.size(); ++i) {
    piece.push_back(text[i]);
    if (i + 1 < text.size() && (cuts >> i & 1) == 0) continue;
    shown.text += matcher.push(piece);
    piece.clear();
    // Never shows a stop string.
    for (const std::string& stop : stops) {
      EXPECT_TRUE(stop.empty() || shown.text.find(stop) == std::string::npos);
    }
  }
  shown.text += matcher.flush();
  shown.word = matcher.word();
  return shown;
}

TEST(StopMatcher, EverySplitShowsTheSame) {
  const std::vector<std::vector<std::string>> sets = {
      {"abcd", "bc"}, {"aab"}, {"aa", "aaa"}, {"b", "ab"}, {"ba", "aba", ""}, {"abab", "bb"}, {}};
  const std::vector<std::string> texts = {"abcd",     "aaab",     "xaabaab",  "ababab",
                                          "aabbaabb", "xyzabcxa", "bbbababa", "aba"};
  for (const auto& stops : sets) {
    for (const std::string& text : texts) {
      const Shown whole = show(stops, text, 0);
      for (uint32_t cuts = 1; cuts < 1u << (text.size() - 1); ++cuts) {
        ASSERT_EQ(show(stops, text, cuts), whole) << text << " cuts " << cuts;
      }
      // The first stop string to be complete, found the slow way.
      Shown slow{text, ""};
      for (size_t end = 1; end <= text.size() && slow.word.empty(); ++end) {
        for (const std::string& stop : stops) {
          if (stop.empty() || stop.size() > end || stop.size() <= slow.word.size()) continue;
          if (text.compare(end - stop.size(), stop.size(), stop) != 0) continue;
          slow = {text.substr(0, end - stop.size()), stop};
        }
      }
      EXPECT_EQ(whole, slow) << text;
    }
  }
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStop) {
  StopMatcher matcher({"\n\nUser:"});
  EXPECT_EQ(matcher.push("Hello\n"), "Hello");
  EXPECT_EQ(matcher.push("\nUs"), "");
  EXPECT_EQ(matcher.push("a"), "\n\nUsa");
  EXPECT_EQ(matcher.push("!\n\nUser: x"), "!");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.word(), "\n\nUser:");
  EXPECT_EQ(matcher.push("more"), "");
  EXPECT_EQ(matcher.flush(), "");
}

}  // namespace
}  // namespace bantam
