// Context shift (NUMERICS rule 8): attention after a shift against an oracle that turns queries in double for each page's
// offset and reads the tile bytes by itself; stored bytes never change; the bits do not depend on threads or batches.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numbers>
#include <random>
#include <vector>

#include "base/limits.h"
#include "cpu/factory.h"
#include "model/kv_cache.h"
#include "model/rope.h"
#include "tests/support/oracle_attend.h"

namespace bantam {
namespace {

constexpr int kHeads = 4, kKvHeads = 2, kMaxRows = 48;

uint32_t seed() {
  const char* given = std::getenv("BANTAM_SEED");
  return given != nullptr ? static_cast<uint32_t>(std::strtoul(given, nullptr, 10)) : 20261125u;
}

struct Shape {
  KvType k = KvType::f32, v = KvType::f32;
  int head_dim = 64;
  bool interleaved = false, yarn = false;
};

ModelConfig config_of(const Shape& shape) {
  ModelConfig c;
  c.head_dim = c.rope_dims = shape.head_dim;
  c.rope_base = 10000.0;
  c.rope_original_ctx = 256;
  if (shape.yarn) {
    c.rope_scaling = RopeScaling::yarn;
    c.rope_factor = 4.0;
  }
  return c;
}

// Rows before norm, RoPE and rotation of one position.
struct Row {
  std::vector<float> q, k, v;
};

std::vector<Row> random_rows(int n, int head_dim, uint32_t with) {
  std::mt19937 random(with);
  std::normal_distribution<float> normal;
  std::vector<Row> rows(static_cast<size_t>(n));
  for (Row& row : rows) {
    row.q.resize(static_cast<size_t>(kHeads * head_dim));
    row.k.resize(static_cast<size_t>(kKvHeads * head_dim));
    row.v.resize(row.k.size());
    for (float& x : row.q) x = normal(random);
    for (float& x : row.k) x = normal(random);
    for (float& x : row.v) x = normal(random);
  }
  return rows;
}

// A backend and a cache of one layer, driven as Model drives them.
class Layer {
 public:
  Layer(const Shape& shape, int n_ctx, int n_threads = 2) : shape_(shape), rope_(config_of(shape), nullptr) {
    CpuOptions options;
    options.n_threads = n_threads;
    Result<std::unique_ptr<Backend>> made = make_cpu_backend(options);
    CHECK(made.ok());
    backend_ = std::move(*made);
    Result<AttentionPlan> plan = plan_attention(*backend_, shape.k, shape.v, {kHeads, kKvHeads, shape.head_dim});
    CHECK(plan.ok());
    ComputeShape compute{kMaxRows, kHeads * shape.head_dim, kHeads, kKvHeads, shape.head_dim};
    compute.shifts = true;
    CHECK(backend_->reserve(compute).ok());
    Result<std::unique_ptr<KvCache>> cache = KvCache::create(*plan, 1, n_ctx, 1, *backend_);
    CHECK(cache.ok());
    cache_ = std::move(*cache);
  }

  KvCache& cache() { return *cache_; }

  // Appends rows in steps of `batch`; their outputs.
  std::vector<float> append(std::span<const Row> rows, int batch = kMaxRows) {
    std::vector<float> out;
    for (size_t at = 0; at < rows.size(); at += static_cast<size_t>(batch)) {
      step(rows.subspan(at, std::min(static_cast<size_t>(batch), rows.size() - at)), out);
    }
    return out;
  }
  std::vector<std::byte> page(int i) {
    std::vector<std::byte> bytes(static_cast<size_t>(cache_->page_bytes()));
    cache_->read_page(0, i, 0, bytes);
    return bytes;
  }

  // Output of one head for a row at the end of the sequence, in double from the bytes. moved: whether offsets count.
  std::vector<double> oracle(const Row& row, int head, bool moved) {
    const int hd = shape_.head_dim, n = cache_->length(0), kv_head = head / (kHeads / kKvHeads);
    std::vector<double> p(static_cast<size_t>(n)), out(static_cast<size_t>(hd)), q;
    double top = -INFINITY, total = 0;
    for (int pos = 0; pos < n; ++pos) {
      if (pos % kPagePositions == 0) q = query(row, head, n - 1 + (moved ? cache_->offset(0, pos / kPagePositions) : 0));
      double s = 0;
      for (int ch = 0; ch < hd; ++ch) s += q[static_cast<size_t>(ch)] * at(true, pos, kv_head, ch);
      p[static_cast<size_t>(pos)] = s / std::sqrt(static_cast<double>(hd));
      top = std::max(top, p[static_cast<size_t>(pos)]);
    }
    for (double& x : p) total += x = std::exp(x - top);
    for (int pos = 0; pos < n; ++pos) {
      for (int ch = 0; ch < hd; ++ch) out[static_cast<size_t>(ch)] += p[static_cast<size_t>(pos)] / total * at(false, pos, kv_head, ch);
    }
    if (info(shape_.v).quantized) oracle_rotate(out, rotation_block(hd));
    return out;
  }

 private:
  void step(std::span<const Row> rows, std::vector<float>& out) {
    const int hd = shape_.head_dim, half = hd / 2;
    const auto n = rows.size();
    std::vector<float> q, k, v, cos(n * static_cast<size_t>(half)), sin(cos), kept_cos(cos), kept_sin(cos);
    std::vector<AttendRow> at;
    for (size_t i = 0; i < n; ++i) {
      const int pos = cache_->length(0);
      cache_->extend(0, 1);
      at.push_back({pos, 0, nullptr, cache_->n_kept(0)});
      const size_t place = i * static_cast<size_t>(half);
      rope_.tables(pos + cache_->offset(0, pos / kPagePositions), &cos[place], &sin[place]);
      rope_.tables(pos, &kept_cos[place], &kept_sin[place]);
      q.insert(q.end(), rows[i].q.begin(), rows[i].q.end());
      k.insert(k.end(), rows[i].k.begin(), rows[i].k.end());
      v.insert(v.end(), rows[i].v.begin(), rows[i].v.end());
    }
    for (AttendRow& row : at) row.pages = cache_->pages(0);
    AttendStep step;
    step.plan = &cache_->plan();
    step.rows = at;
    step.k_pages = cache_->k_pages(0);
    step.v_pages = cache_->v_pages(0);
    step.q = q.data();
    step.k = k.data();
    step.v = v.data();
    step.cos = cos.data();
    step.sin = sin.data();
    step.kept_cos = kept_cos.data();
    step.kept_sin = kept_sin.data();
    step.rope_dims = hd;
    step.rope_interleaved = shape_.interleaved;
    std::vector<float> result(q.size());
    step.out = result.data();
    backend_->attend(step);
    out.insert(out.end(), result.begin(), result.end());
  }

  // The query turned for a position, rotated and rounded as rule 5 says, in double.
  std::vector<double> query(const Row& row, int head, int position) const {
    const int hd = shape_.head_dim, half = hd / 2;
    std::vector<double> x(row.q.begin() + head * hd, row.q.begin() + (head + 1) * hd);
    const double magnitude = shape_.yarn ? 1.0 + 0.1 * std::log(4.0) : 1.0;
    for (int i = 0; i < half; ++i) {
      double turn = std::pow(10000.0, -2.0 * i / hd);
      if (shape_.yarn) {
        // https://arxiv.org/abs/2309.00071, section 3.2: by how often a pair turns over 256 positions.
        const auto dim = [&](double turns) { return hd * std::log(256 / (turns * 2 * std::numbers::pi)) / (2 * std::log(10000.0)); };
        const double low = std::max(0.0, std::floor(dim(32))), high = std::min(hd - 1.0, std::ceil(dim(1)));
        const double slow = std::clamp((i - low) / (high - low), 0.0, 1.0);
        turn *= slow / 4.0 + 1.0 - slow;
      }
      double& a = x[static_cast<size_t>(shape_.interleaved ? 2 * i : i)];
      double& b = x[static_cast<size_t>(shape_.interleaved ? 2 * i + 1 : i + half)];
      const double cos = std::cos(position * turn) * magnitude, sin = std::sin(position * turn) * magnitude;
      const double x0 = a, x1 = b;
      a = x0 * cos - x1 * sin;
      b = x0 * sin + x1 * cos;
    }
    if (!info(shape_.k).quantized) return x;
    oracle_rotate(x, rotation_block(hd));
    double top = 0;
    for (const double value : x) top = std::max(top, std::abs(value));
    for (double& value : x) value = std::nearbyint(value / (top / 127)) * (top / 127);
    return x;
  }
  double at(bool key, int pos, int kv_head, int channel) {
    const AttentionPlan& plan = cache_->plan();
    const int64_t tile = (int64_t{cache_->pages(0)[pos / kPagePositions]} * kKvHeads + kv_head) * kPageTiles +
                         pos % kPagePositions / kTilePositions;
    const std::byte* bytes = key ? cache_->k_pages(0) + tile * plan.tile_bytes_k() : cache_->v_pages(0) + tile * plan.tile_bytes_v();
    return oracle_value(bytes, key ? plan.k() : plan.v(), key, shape_.head_dim, pos % kTilePositions, channel).value();
  }

  Shape shape_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<KvCache> cache_;
  Rope rope_;
};

double nmse(const std::vector<double>& want, const float* got) {
  double difference = 0, energy = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (want[i] - static_cast<double>(got[i])) * (want[i] - static_cast<double>(got[i]));
    energy += want[i] * want[i];
  }
  return difference / energy;
}

// Float sums alone, or the rounding of the weights to u8 (attend_test.cc) and queries that lie on a rounding tie.
double limit_of(const Shape& shape) {
  const double weights = info(shape.v).quantized ? (info(shape.v).has_minimum ? 2e-3 : 2e-4) : 1e-9;
  return weights + (info(shape.k).quantized ? 2e-4 : 0);
}

// Appends the row and compares it; the oracle must also tell offsets from none.
void expect_oracle(Layer& layer, const Shape& shape, const Row& row, const char* when) {
  const std::vector<float> out = layer.append({&row, 1});
  double worst = 0, unmoved = 0;
  for (int head = 0; head < kHeads; ++head) {
    worst = std::max(worst, nmse(layer.oracle(row, head, true), &out[static_cast<size_t>(head * shape.head_dim)]));
    unmoved = std::max(unmoved, nmse(layer.oracle(row, head, false), &out[static_cast<size_t>(head * shape.head_dim)]));
  }
  EXPECT_LE(worst, limit_of(shape)) << when << ": " << info(shape.k).name << "/" << info(shape.v).name
                                    << (shape.interleaved ? " interleaved" : " halves") << (shape.yarn ? " yarn" : "");
  EXPECT_GT(unmoved, 0.05) << when << ": without the offsets the oracle must differ";
}

TEST(Shift, EveryTypeAndRopeMatchesTheOracle) {
  std::printf("seed %u\n", seed());
  int cases = 0;
  for (int k = 0; k < kNumKvTypes; ++k) {
    for (const bool interleaved : {false, true}) {
      for (const bool yarn : {false, true}) {
        const Shape shape{static_cast<KvType>(k), static_cast<KvType>((cases + cases / kNumKvTypes) % kNumKvTypes), 64, interleaved, yarn};
        Layer layer(shape, 1024);
        const std::vector<Row> rows = random_rows(1300, shape.head_dim, seed() + static_cast<uint32_t>(cases));
        layer.append({rows.data(), 1024});
        layer.cache().shift(0, 1, 1);
        expect_oracle(layer, shape, rows[1024], "first position of a new page");
        layer.append({rows.data() + 1025, 255});
        layer.cache().shift(0, 1, 2);
        EXPECT_EQ(layer.cache().offset(0, 0), 0);
        EXPECT_EQ(layer.cache().offset(0, 1), 768);
        expect_oracle(layer, shape, rows[1280], "after a second shift");
        ++cases;
        if (HasFailure()) return;
      }
    }
  }
  EXPECT_EQ(cases, kNumKvTypes * 4);
}

// Keys that a shift moved count as if they had been stored at their new positions.
TEST(Shift, EqualsKeysStoredWhereTheyStandNow) {
  for (const bool interleaved : {false, true}) {
    for (const bool yarn : {false, true}) {
      for (const int n_keep : {0, 1}) {
        const Shape shape{KvType::f32, KvType::f32, 64, interleaved, yarn};
        const std::vector<Row> rows = random_rows(1040, 64, seed() + 77);
        Layer shifted(shape, 1024), fresh(shape, 1024);
        shifted.append({rows.data(), 1024});
        shifted.cache().shift(0, n_keep, 2);
        fresh.append({rows.data(), static_cast<size_t>(256 * n_keep)});
        fresh.append({rows.data() + 256 * (n_keep + 2), static_cast<size_t>(1024 - 256 * (n_keep + 2))});
        ASSERT_EQ(shifted.cache().length(0), fresh.cache().length(0));
        const std::vector<float> a = shifted.append({rows.data() + 1024, 16}), b = fresh.append({rows.data() + 1024, 16});
        EXPECT_LE(nmse(std::vector<double>(b.begin(), b.end()), a.data()), 1e-9) << n_keep;
      }
    }
  }
}

void shift_many_times(const Shape& shape, int n_shifts) {
  SCOPED_TRACE(testing::Message() << info(shape.k).name << "/" << info(shape.v).name);
  Layer layer(shape, 1024, 1);
  const std::vector<Row> rows = random_rows(1024, shape.head_dim, seed() + 5);
  layer.append(rows);
  const std::vector<std::byte> kept = layer.page(0);
  for (int i = 0; i < n_shifts; ++i) {
    const std::vector<std::byte> second = layer.page(2), third = layer.page(3);
    layer.cache().shift(0, 1, 1);
    ASSERT_EQ(layer.page(1), second);
    ASSERT_EQ(layer.page(2), third);
    const size_t from = static_cast<size_t>(i) * 131 % 768;
    layer.append({rows.data() + from, 256});
    ASSERT_EQ(layer.page(1), second);
  }
  EXPECT_EQ(layer.page(0), kept);
  EXPECT_EQ(layer.cache().moved(0), 256 * n_shifts);
  layer.cache().shift(0, 1, 1);
  expect_oracle(layer, shape, rows[3], "after many shifts");
}

// One pair for the whole time, each type as keys and as values for a hundred (BANTAM_FULL=1: for the whole time too).
TEST(Shift, AThousandShiftsLeaveStoredBytesAlone) {
  shift_many_times({KvType::q8_0, KvType::q4_0, 32, false, true}, 1000);
  const char* full = std::getenv("BANTAM_FULL");
  for (int k = 0; k < kNumKvTypes; ++k) {
    const Shape shape{static_cast<KvType>(k), static_cast<KvType>((k + 4) % kNumKvTypes), 32, k % 2 != 0, k % 3 != 0};
    shift_many_times(shape, full != nullptr && full[0] == '1' ? 1000 : 100);
    if (HasFailure()) return;
  }
}

// The same bits with any number of threads and any batches; the same bytes too.
TEST(Shift, ThreadsAndBatchesChangeNothing) {
  for (const KvType k : {KvType::f16, KvType::q8_0, KvType::q5_1}) {
    const Shape shape{k, KvType::q8_0, 64, false, false};
    const std::vector<Row> rows = random_rows(1100, shape.head_dim, seed() + 9);
    std::vector<float> first;
    std::vector<std::byte> page;
    for (const auto& [n_threads, batch] : {std::pair{1, 1}, std::pair{2, 48}, std::pair{3, 7}, std::pair{1, 33}}) {
      Layer layer(shape, 1024, n_threads);
      layer.append({rows.data(), 1024}, batch);
      layer.cache().shift(0, 1, 1);
      const std::vector<float> out = layer.append({rows.data() + 1024, 70}, batch);
      if (first.empty()) {
        first = out;
        page = layer.page(3);
      }
      EXPECT_EQ(std::memcmp(first.data(), out.data(), out.size() * sizeof(float)), 0) << n_threads << " threads, batches of " << batch;
      EXPECT_EQ(layer.page(3), page);
    }
  }
}

// Cutting and copying what was shifted.
TEST(Shift, OffsetsFollowTheirPages) {
  const Shape shape;
  CpuOptions options;
  options.n_threads = 1;
  const std::unique_ptr<Backend> backend = std::move(*make_cpu_backend(options));
  const Result<AttentionPlan> plan = plan_attention(*backend, shape.k, shape.v, {1, 1, 32});
  const std::unique_ptr<KvCache> cache = std::move(*KvCache::create(*plan, 1, 1280, 2, *backend));
  cache->extend(0, 1280);
  cache->shift(0, 2, 1);
  EXPECT_EQ(cache->length(0), 1024);
  EXPECT_EQ(cache->n_free(), 6);
  cache->copy(0, 1, 600);
  EXPECT_EQ(cache->n_kept(1), 2);
  EXPECT_EQ(cache->offset(1, 2), 256);
  cache->copy(0, 1, 512);  // kept pages alone: as never shifted
  EXPECT_EQ(cache->moved(1), 0);
  cache->extend(1, 300);
  EXPECT_EQ(cache->offset(1, 2), 0);
  cache->truncate(0, 513);
  EXPECT_EQ(cache->offset(0, 2), 256);
  cache->truncate(0, 512);
  EXPECT_EQ(cache->moved(0), 0);
  cache->extend(0, 768);
  cache->shift(0, 0, 4);  // another number of kept pages is fine now
  EXPECT_EQ(cache->offset(0, 0), 1024);
  cache->erase(0);
  EXPECT_EQ(cache->moved(0), 0);
}

}  // namespace
}  // namespace bantam
