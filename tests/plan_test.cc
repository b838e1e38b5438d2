// plan_attention over its whole space, the bytes of the cache, and page bookkeeping: counted, nothing skipped.
#include "backend/plan.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>

#include "base/limits.h"
#include "cpu/factory.h"
#include "model/kv_cache.h"

namespace bantam {
namespace {

std::unique_ptr<Backend> cpu(int n_threads = 1) {
  CpuOptions options;
  options.n_threads = n_threads;
  Result<std::unique_ptr<Backend>> backend = make_cpu_backend(options);
  CHECK(backend.ok());
  return std::move(*backend);
}

// Written apart from plan.cc: what DESIGN says a plan must accept.
bool expected_plan(int n_heads, int n_kv_heads, int head_dim) {
  return head_dim % 32 == 0 && head_dim >= 32 && head_dim <= 256 && n_heads % n_kv_heads == 0;
}

TEST(Plan, EveryPairAndEveryHeadSizeIsPlannedOrRefused) {
  const std::unique_ptr<Backend> backend = cpu();
  int planned = 0, refused_count = 0, cases = 0;
  for (int k = 0; k < kNumKvTypes; ++k) {
    for (int v = 0; v < kNumKvTypes; ++v) {
      for (int head_dim = 1; head_dim <= 512; ++head_dim) {
        for (int n_heads : {1, 4, 7, 8}) {
          for (int n_kv_heads : {1, 4}) {
            ++cases;
            Result<AttentionPlan> plan =
                plan_attention(*backend, static_cast<KvType>(k), static_cast<KvType>(v),
                               {n_heads, n_kv_heads, head_dim});
            ASSERT_EQ(plan.ok(), expected_plan(n_heads, n_kv_heads, head_dim)) << head_dim;
            if (!plan.ok()) {
              EXPECT_EQ(plan.error().kind, ErrorKind::refused);
              EXPECT_FALSE(plan.error().message.empty());
              ++refused_count;
              continue;
            }
            ++planned;
            EXPECT_EQ(plan->rotation_k() > 0, kKvTypes[k].quantized);
            EXPECT_EQ(plan->rotation_v() > 0, kKvTypes[v].quantized);
            EXPECT_EQ(plan->tile_bytes_k(), int64_t{kKvTypes[k].bytes_per_32} * head_dim);
          }
        }
      }
    }
  }
  EXPECT_EQ(cases, kNumKvTypes * kNumKvTypes * 512 * 8);
  EXPECT_EQ(planned + refused_count, cases);
  std::printf("plan: %d cases, %d planned, %d refused\n", cases, planned, refused_count);
}

TEST(Plan, RotationBlocks) {
  const int want[][2] = {{32, 32}, {64, 64}, {96, 32}, {128, 128}, {160, 32}, {192, 64}, {256, 256}};
  for (const auto& [head_dim, block] : want) EXPECT_EQ(rotation_block(head_dim), block);
}

TEST(Plan, CacheBytesOfTheReportedCommand) {
  const std::unique_ptr<Backend> backend = cpu();
  Result<AttentionPlan> plan = plan_attention(*backend, KvType::q8_0, KvType::q8_0, {32, 8, 128});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(KvCache::bytes(*plan, 36, 4096, 1), int64_t{306} << 20);
  plan = plan_attention(*backend, KvType::f16, KvType::f16, {32, 8, 128});
  EXPECT_EQ(KvCache::bytes(*plan, 36, 4096, 1), int64_t{576} << 20);
  plan = plan_attention(*backend, KvType::q4_0, KvType::q4_0, {32, 8, 128});
  EXPECT_EQ(KvCache::bytes(*plan, 36, 4096, 1), int64_t{162} << 20);
}

TEST(KvCache, PagesAreSharedOutAndComeBackClean) {
  const std::unique_ptr<Backend> backend = cpu(2);
  Result<AttentionPlan> plan = plan_attention(*backend, KvType::q4_0, KvType::f16, {4, 2, 64});
  ASSERT_TRUE(plan.ok());
  Result<std::unique_ptr<KvCache>> made = KvCache::create(*plan, 2, 768, 2, *backend);
  ASSERT_TRUE(made.ok());
  KvCache& cache = **made;
  cache.extend(0, 700);
  cache.extend(1, 300);
  EXPECT_EQ(cache.length(0), 700);
  EXPECT_NE(cache.pages(0)[2], cache.pages(1)[1]);
  const int64_t page_k = 2 * kPageTiles * plan->tile_bytes_k();
  const int32_t last = cache.pages(0)[2];
  std::memset(cache.k_pages(1) + last * page_k, 0x5a, static_cast<size_t>(page_k));
  cache.truncate(0, 512);
  EXPECT_EQ(cache.length(0), 512);
  cache.extend(1, 300);  // takes the page that was just freed
  ASSERT_EQ(cache.pages(1)[2], last);
  for (int64_t i = 0; i < page_k; ++i) ASSERT_EQ(cache.k_pages(1)[last * page_k + i], std::byte{0});
}

TEST(KvCache, TruncateErasesTheTailOfAPageOnly) {
  const std::unique_ptr<Backend> backend = cpu();
  Result<AttentionPlan> plan = plan_attention(*backend, KvType::f16, KvType::f16, {1, 1, 32});
  ASSERT_TRUE(plan.ok());
  Result<std::unique_ptr<KvCache>> made = KvCache::create(*plan, 1, 256, 1, *backend);
  ASSERT_TRUE(made.ok());
  KvCache& cache = **made;
  cache.extend(0, 256);
  const int64_t page = kPageTiles * plan->tile_bytes_k();
  std::memset(cache.k_pages(0), 0x11, static_cast<size_t>(page));
  cache.truncate(0, 70);
  for (int64_t i = 0; i < page; ++i) {
    const bool kept = i < 70 * 64;
    ASSERT_EQ(cache.k_pages(0)[i], kept ? std::byte{0x11} : std::byte{0}) << i;
  }
}

}  // namespace
}  // namespace bantam
