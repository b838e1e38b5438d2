// A fixed team of compute threads. run(f) calls f(thread, n_threads) once on each, the caller being
// thread 0, and returns when all are done. Waiting spins briefly (kSpinNs), then sleeps, so an idle
// server costs no CPU. Refuses nested run() calls (CHECK).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace bantam {

class ThreadPool {
 public:
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // f(int thread, int n_threads); n_active caps the team for this call (0 = all).
  template <class F>
  void run(F&& f, int n_active = 0) {
    run_raw([](void* g, int t, int n) { (*static_cast<std::remove_reference_t<F>*>(g))(t, n); },
            const_cast<void*>(static_cast<const void*>(&f)), n_active);
  }

  // The contiguous part [begin, end) of n items for one thread of a team.
  struct Range {
    int64_t begin, end;
  };
  static Range split(int64_t n, int thread, int n_threads) {
    return {n * thread / n_threads, n * (thread + 1) / n_threads};
  }

  static constexpr int64_t kSpinNs = 50'000;

 private:
  using Task = void (*)(void*, int, int);
  void run_raw(Task task, void* argument, int n_active);
  void work(int thread);

  std::vector<std::thread> workers_;
  Task task_ = nullptr;
  void* argument_ = nullptr;
  int n_active_ = 1;
  bool running_ = false;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int32_t> pending_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace bantam
