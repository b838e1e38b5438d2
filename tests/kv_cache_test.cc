// Sequences of the KV cache against a model of vectors: random stores, cuts, copies; every byte of every sequence, who
// holds which page, pages never run out. BANTAM_SEED=n repeats a run.
#include "model/kv_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "base/limits.h"
#include "cpu/factory.h"

namespace bantam {
namespace {

std::unique_ptr<Backend> cpu() {
  CpuOptions options;
  options.n_threads = 2;
  Result<std::unique_ptr<Backend>> backend = make_cpu_backend(options);
  CHECK(backend.ok());
  return std::move(*backend);
}

// f32 rows of one head: what a position holds can be written and read without a kernel.
constexpr int kHeadDim = 32, kLayers = 2;

class Sequences {
 public:
  Sequences(int n_ctx, int n_seqs) : backend_(cpu()), expected_(static_cast<size_t>(n_seqs)) {
    Result<AttentionPlan> plan = plan_attention(*backend_, KvType::f32, KvType::f32, {1, 1, kHeadDim});
    CHECK(plan.ok());
    Result<std::unique_ptr<KvCache>> made = KvCache::create(*plan, kLayers, n_ctx, n_seqs, *backend_);
    CHECK(made.ok());
    cache_ = std::move(*made);
    n_pages_ = n_ctx / kPagePositions * n_seqs;
  }

  KvCache& cache() { return *cache_; }
  int length(int seq) const { return static_cast<int>(expected_[static_cast<size_t>(seq)].size()); }

  // A value of its own in each of n new positions.
  void append(int seq, int n) {
    for (int i = 0; i < n; ++i) {
      const int pos = length(seq);
      cache_->extend(seq, 1);
      const float value = ++next_value_;
      expected_[static_cast<size_t>(seq)].push_back(value);
      for (int layer = 0; layer < kLayers; ++layer) {
        for (int ch = 0; ch < kHeadDim; ++ch) {
          *at(cache_->k_pages(layer), seq, pos, ch) = value + static_cast<float>(layer);
          *at(cache_->v_pages(layer), seq, pos, ch) = -value - static_cast<float>(layer);
        }
      }
    }
  }
  void truncate(int seq, int n) {
    cache_->truncate(seq, n);
    expected_[static_cast<size_t>(seq)].resize(static_cast<size_t>(n));
  }
  void repeat(int seq, int n) {
    std::vector<float>& values = expected_[static_cast<size_t>(seq)];
    const size_t source = values.size();
    cache_->repeat(seq, n);
    for (size_t i = source; i < static_cast<size_t>(n); ++i) values.push_back(values[i % source]);
  }
  void copy(int from, int to, int n) {
    cache_->copy(from, to, n);
    const std::vector<float>& source = expected_[static_cast<size_t>(from)];
    expected_[static_cast<size_t>(to)].assign(source.begin(), source.begin() + n);
  }

  // Lengths, all bytes of all pages (zero behind the end), reference counts, free pages.
  void check() {
    std::map<int32_t, int> held;
    for (size_t s = 0; s < expected_.size(); ++s) {
      const int seq = static_cast<int>(s), n = length(seq);
      ASSERT_EQ(cache_->length(seq), n);
      ASSERT_EQ(cache_->n_pages(seq), (n + kPagePositions - 1) / kPagePositions);
      for (int i = 0; i < cache_->n_pages(seq); ++i) ++held[cache_->pages(seq)[i]];
      for (int pos = 0; pos < cache_->n_pages(seq) * kPagePositions; ++pos) {
        const float value = pos < n ? expected_[s][static_cast<size_t>(pos)] : 0.0f;
        for (int layer = 0; layer < kLayers; ++layer) {
          const float shown = pos < n ? value + static_cast<float>(layer) : 0.0f;
          for (const int ch : {0, 13, kHeadDim - 1}) {
            ASSERT_EQ(*at(cache_->k_pages(layer), seq, pos, ch), shown) << "sequence " << seq << " position " << pos;
            ASSERT_EQ(*at(cache_->v_pages(layer), seq, pos, ch), -shown) << "sequence " << seq << " position " << pos;
          }
        }
      }
    }
    for (const auto& [page, n] : held) ASSERT_EQ(cache_->references(page), n) << "page " << page;
    ASSERT_EQ(cache_->n_free() + static_cast<int>(held.size()), n_pages_);
  }

 private:
  float* at(std::byte* pages, int seq, int pos, int channel) const {
    const int64_t page = cache_->pages(seq)[pos / kPagePositions];
    return reinterpret_cast<float*>(pages) + (page * kPagePositions + pos % kPagePositions) * kHeadDim + channel;
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<KvCache> cache_;
  std::vector<std::vector<float>> expected_;
  int n_pages_ = 0;
  float next_value_ = 0;
};

TEST(KvSequences, WholePagesAreSharedAndTheRestOfOneIsCopied) {
  Sequences s(1024, 2);
  s.append(0, 700);
  s.copy(0, 1, 600);
  s.check();
  EXPECT_EQ(s.cache().pages(0)[0], s.cache().pages(1)[0]);
  EXPECT_EQ(s.cache().pages(0)[1], s.cache().pages(1)[1]);
  EXPECT_NE(s.cache().pages(0)[2], s.cache().pages(1)[2]);
  EXPECT_EQ(s.cache().references(s.cache().pages(0)[0]), 2);
  s.copy(0, 1, 512);
  EXPECT_EQ(s.cache().n_pages(1), 2);
  s.copy(0, 1, 0);
  EXPECT_EQ(s.cache().n_pages(1), 0);
  s.check();
}

TEST(KvSequences, WritersGetTheirOwnPage) {
  Sequences s(1024, 3);
  s.append(0, 300);
  s.copy(0, 1, 300);
  s.copy(1, 2, 300);
  EXPECT_EQ(s.cache().references(s.cache().pages(0)[1]), 3);
  s.append(1, 1);  // stores behind the common end
  EXPECT_NE(s.cache().pages(0)[1], s.cache().pages(1)[1]);
  s.append(0, 5);
  s.check();
  s.truncate(2, 290);  // the last holder erases in place
  s.check();
  s.copy(0, 2, 256);
  s.truncate(2, 100);  // erases inside a page of another sequence
  s.check();
  s.cache().erase(0);
  EXPECT_EQ(s.cache().length(0), 0);
  EXPECT_EQ(s.cache().n_pages(0), 0);
}

// All sequences hold one full context; then each takes every page for itself.
TEST(KvSequences, CopiesOfPagesFillADepth) {
  Sequences all(5 * kPagePositions, 2);
  all.append(0, 2 * kPagePositions);
  all.copy(0, 1, 2 * kPagePositions);
  all.repeat(0, 4 * kPagePositions + 7);
  all.check();
  all.append(0, 1);
  all.check();
  all.repeat(1, 2 * kPagePositions);
  all.repeat(1, 5 * kPagePositions);
  all.check();
}

TEST(KvSequences, PagesNeverRunOut) {
  constexpr int kSeqs = 4, kContext = 1024;
  Sequences s(kContext, kSeqs);
  s.append(0, kContext - 1);
  for (int seq = 1; seq < kSeqs; ++seq) s.copy(0, seq, kContext - 1);
  EXPECT_EQ(s.cache().n_free(), (kSeqs - 1) * kContext / kPagePositions);
  for (int seq = 0; seq < kSeqs; ++seq) s.append(seq, 1);
  s.check();
  for (int at = kContext - 1; at > 0; at -= 200) {
    for (int seq = 0; seq < kSeqs; ++seq) s.truncate(seq, at);
    for (int seq = 1; seq < kSeqs; ++seq) s.copy(0, seq, at);
    for (int seq = kSeqs - 1; seq >= 0; --seq) s.append(seq, kContext - at);
    s.check();
  }
  EXPECT_EQ(s.cache().n_free(), 0);
}

// The pages of a saved sequence are written whole, so they come as they are; if that fails, whoever gets them next
// gets them clean.
TEST(KvSequences, AdoptedPagesAreCleanForTheNextOnly) {
  Sequences s(512, 2);
  s.append(0, 300);
  const int32_t page = s.cache().pages(0)[0];
  std::vector<std::byte> before(static_cast<size_t>(s.cache().page_bytes())), after = before;
  s.cache().read_page(0, 0, 1, before);
  s.truncate(0, 0);
  s.cache().adopt(1, 300, 0, 0);
  EXPECT_EQ(s.cache().length(1), 300);
  ASSERT_EQ(s.cache().n_pages(1), 2);
  ASSERT_EQ(s.cache().pages(1)[0], page);
  s.cache().read_page(1, 0, 1, after);
  EXPECT_EQ(after, before) << "cleaned for nothing";
  for (int layer = 0; layer < kLayers; ++layer) {  // and no further
    s.cache().write_page(1, 0, layer, std::vector<std::byte>(after.size(), std::byte{0x55}));
  }
  s.cache().erase(1);
  s.append(1, 10);
  EXPECT_EQ(s.cache().pages(1)[0], page);
  s.append(0, 260);
  s.check();
}

TEST(KvSequences, RandomOperationsEqualVectors) {
  const char* wanted = std::getenv("BANTAM_SEED");
  const uint64_t first = wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : 20261125;
  int appends = 0, cuts = 0, copies = 0;
  for (uint64_t round = 0; round < 12; ++round) {
    SCOPED_TRACE(testing::Message() << "BANTAM_SEED=" << first + round);
    std::mt19937_64 random(first + round);
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); };
    const int n_seqs = 1 + static_cast<int>(round % 5), n_ctx = 256 * (1 + static_cast<int>(round % 4));
    Sequences s(n_ctx, n_seqs);
    for (int i = 0; i < 120; ++i) {
      const int seq = below(n_seqs), what = below(10);
      if (what < 5) {
        s.append(seq, std::min(n_ctx - s.length(seq), 1 + below(below(3) == 0 ? 600 : 40)));
        ++appends;
      } else if (what < 7) {
        // Page edges and the ends as often as anything else.
        const int n = s.length(seq), edge = n / kPagePositions * kPagePositions;
        s.truncate(seq, std::vector<int>{below(n + 1), edge, n, 0}[static_cast<size_t>(below(4))]);
        ++cuts;
      } else if (n_seqs > 1) {
        const int to = (seq + 1 + below(n_seqs - 1)) % n_seqs, n = s.length(seq);
        s.copy(seq, to, std::vector<int>{below(n + 1), n, n / kPagePositions * kPagePositions}[static_cast<size_t>(below(3))]);
        ++copies;
      }
      s.check();
      if (HasFatalFailure()) return;
    }
  }
  std::printf("seed %llu: %d appends, %d cuts, %d copies\n", static_cast<unsigned long long>(first), appends, cuts, copies);
  EXPECT_GT(appends, 600);
  EXPECT_GT(cuts, 200);
  EXPECT_GT(copies, 200);
}

}  // namespace
}  // namespace bantam
