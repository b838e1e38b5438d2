// A token's step allocates nothing: every operator new of the process is counted, on all threads.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include "engine/loaded_model.h"

namespace {

std::atomic<int64_t> n_allocations{0};

void* counted(size_t bytes, size_t alignment) {
  n_allocations.fetch_add(1, std::memory_order_relaxed);
  const size_t whole = (bytes / alignment + 1) * alignment;
  void* p = alignment <= alignof(std::max_align_t) ? std::malloc(bytes + 1)
                                                   : std::aligned_alloc(alignment, whole);
  if (p == nullptr) std::abort();
  return p;
}

}  // namespace

// All forms of them, so that a sanitizer's own never meet these. GCC, inlining, would take free()
// for a mismatch.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif
void* operator new(size_t n) { return counted(n, 1); }
void* operator new[](size_t n) { return counted(n, 1); }
void* operator new(size_t n, const std::nothrow_t&) noexcept { return counted(n, 1); }
void* operator new[](size_t n, const std::nothrow_t&) noexcept { return counted(n, 1); }
void* operator new(size_t n, std::align_val_t a) { return counted(n, size_t(a)); }
void* operator new[](size_t n, std::align_val_t a) { return counted(n, size_t(a)); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { std::free(p); }

namespace bantam {
namespace {

constexpr int kTokens = 300;  // over the end of a page of the cache
constexpr int kFew = 30;      // where each step waits for its members to move

// Of `work` alone, the second time: the first warms up.
template <class Work>
int64_t allocations(LoadedModel& model, Work&& work) {
  work();
  model.truncate(0, 0);
  const int64_t before = n_allocations.load();
  work();
  const int64_t count = n_allocations.load() - before;
  model.truncate(0, 0);
  return count;
}

void expect_none(const EngineOptions& options, int n_tokens = kTokens) {
  Result<std::unique_ptr<LoadedModel>> loaded = LoadedModel::load(options);
  ASSERT_TRUE(loaded) << loaded.error().message;
  LoadedModel& model = **loaded;
  EXPECT_EQ(allocations(model,
                        [&] {
                          for (int i = 0; i < n_tokens; ++i) {
                            const BatchRow row{i % 50, 0, i, true};
                            model.model().step({&row, 1});
                          }
                        }),
            0)
      << "steps of one token";
  // Prompts of two tokens in between: the team changes its setup and back each time.
  float sum = 0;
  const LoadedModel::LogitsSink sink = [&](int, std::span<const float> logits) {
    sum += logits[0];
  };
  const std::vector<int32_t> tokens{1, 2};
  EXPECT_EQ(allocations(model,
                        [&] {
                          for (int i = 0; i < n_tokens; i += 3) {
                            EXPECT_TRUE(model.eval(0, tokens, 0, false, sink));
                            EXPECT_TRUE(model.eval(0, {tokens.data(), 1}, 0, false, sink));
                          }
                        }),
            0)
      << "eval of two tokens, then of one";
  EXPECT_NE(sum, 0);
}

// The token that follows a shared beginning is stored into a copy of the last page.
void expect_none_after_copies(LoadedModel& model) {
  EXPECT_EQ(allocations(model,
                        [&] {
                          for (int i = 0; i < 300; ++i) {
                            const BatchRow row{i % 50, 0, i, false};
                            model.model().step({&row, 1});
                          }
                          for (int n : {300, 290, 256, 299}) {
                            model.copy(0, 1, n);
                            const BatchRow row{7, 1, n, true};
                            model.model().step({&row, 1});
                          }
                        }),
            0)
      << "copied sequences";
  EXPECT_EQ(allocations(model,
                        [&] {
                          for (int i = 0; i < 850; ++i) {
                            if (model.length(0) == 768) model.model().shift(0, 256, 256);
                            const BatchRow row{i % 50, 0, model.length(0), true};
                            model.model().step({&row, 1});
                          }
                        }),
            0)
      << "shifted sequences";
}

EngineOptions options_of(int n_threads, int n_threads_batch) {
  EngineOptions options;  // the built-in model
  options.n_ctx = 512;
  options.n_threads = n_threads;
  options.n_threads_batch = n_threads_batch;
  return options;
}

TEST(Allocations, AreCounted) {
  const int64_t before = n_allocations.load();
  ::operator delete(::operator new(100));
  EXPECT_EQ(n_allocations.load(), before + 1);
  std::vector<int> few(3);
  EXPECT_EQ(n_allocations.load(), before + 2);
}

TEST(Allocations, NoneInAStep) {
  expect_none(options_of(1, 1));
  expect_none(options_of(2, 2));
}

TEST(Allocations, NoneForSharedBeginningsAndShifts) {
  EngineOptions options = options_of(2, 2);
  options.n_slots = 2;
  options.n_ctx = 2 * 768;
  options.context_shift = true;
  Result<std::unique_ptr<LoadedModel>> loaded = LoadedModel::load(options);
  ASSERT_TRUE(loaded) << loaded.error().message;
  expect_none_after_copies(**loaded);
}

TEST(Allocations, NoneWithAnotherTeamForPrompts) {
  expect_none(options_of(1, 2));
  expect_none(options_of(3, 2));
}

TEST(Allocations, NoneWhereTheTeamMoves) {
  const CpuSet all = CpuSet::of_process();
  ASSERT_FALSE(all.empty());
  EngineOptions options = options_of(2, 3);
  options.team.cpus.add(all.list().front());
  options.team.poll = 0;
  options.team_batch.cpus = all;
  options.team_batch.poll = 50;
  for (const bool strict : {false, true}) {
    options.team.strict = options.team_batch.strict = strict;
    expect_none(options, kFew);
  }
}

}  // namespace
}  // namespace bantam
