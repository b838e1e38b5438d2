#include "base/thread_pool.h"

#include <chrono>

#include "base/check.h"

namespace bantam {

namespace {

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until value differs from old: spins for kSpinNs, then sleeps in the kernel.
template <class T>
void wait_change(const std::atomic<T>& value, T old) {
  const auto start = std::chrono::steady_clock::now();
  for (;;) {
    for (int i = 0; i < 64; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      pause_briefly();
    }
    const auto waited = std::chrono::steady_clock::now() - start;
    if (std::chrono::duration_cast<std::chrono::nanoseconds>(waited).count() > ThreadPool::kSpinNs)
      break;
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int n_threads) {
  CHECK(n_threads >= 1);
  workers_.reserve(static_cast<size_t>(n_threads - 1));
  for (int t = 1; t < n_threads; ++t) workers_.emplace_back([this, t] { work(t); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_raw(Task task, void* argument, int n_active) {
  CHECK(!running_);
  const int n = n_active > 0 && n_active < size() ? n_active : size();
  if (n == 1) {
    task(argument, 0, 1);
    return;
  }
  running_ = true;
  task_ = task;
  argument_ = argument;
  n_active_ = n;
  // Every worker answers each generation, also those beyond n_active, so no one can miss a task.
  pending_.store(size() - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  task(argument, 0, n);
  for (;;) {
    const int32_t left = pending_.load(std::memory_order_acquire);
    if (left == 0) break;
    wait_change(pending_, left);
  }
  running_ = false;
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    wait_change(generation_, seen);
    seen = generation_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_acquire)) return;
    if (thread < n_active_) task_(argument_, thread, n_active_);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
  }
}

}  // namespace bantam
