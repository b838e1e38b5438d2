// A fixed team of compute threads. run(f) calls f(thread, n_threads) once on each, the caller being
// thread 0, and returns when all are done; barrier() lets one run hold several phases. Waiting
// spins briefly (kSpinNs), then sleeps, so an idle server costs no CPU; a team larger than the CPUs
// it may use sleeps at once. Refuses nested run() calls and barriers outside of run() (CHECK).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
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

  // Inside run(f), by every member of the team equally often: returns when all have come. What any
  // member wrote before it, every member sees after it.
  void barrier();

  // The contiguous part [begin, end) of n items for one thread of a team.
  struct Range {
    int64_t begin, end;
  };
  static Range split(int64_t n, int thread, int n_threads) {
    return {n * thread / n_threads, n * (thread + 1) / n_threads};
  }

  static constexpr int64_t kSpinNs = 50'000;
  static constexpr int64_t kLineBytes = 128;  // adjacent lines are fetched in pairs on x86

 private:
  using Task = void (*)(void*, int, int);
  void run_raw(Task task, void* argument, int n_active);
  void work(int thread);
  void publish(int n_active);

  std::vector<std::thread> workers_;
  // One for each thread: 1 while it sleeps or is about to; the futex it sleeps on.
  std::unique_ptr<std::atomic<uint32_t>[]> parked_;
  int64_t spin_rounds_;  // of a team that has a CPU for each member
  int cpus_;             // that this process may use
  bool running_ = false;

  // One line from thread 0 to the workers: the word says how many take part, so those who do not
  // never touch the rest, and need not answer. High bits count the tasks.
  alignas(kLineBytes) std::atomic<uint64_t> word_{0};
  Task task_ = nullptr;
  void* argument_ = nullptr;
  int64_t spins_ = 0;
  int n_active_ = 0;
  uint32_t done_target_ = 0;
  // From the workers to thread 0: tasks ended since the start. Never reset, so thread 0 only reads.
  alignas(kLineBytes) std::atomic<uint32_t> done_{0};
  alignas(kLineBytes) std::atomic<int32_t> arrived_{0};
  alignas(kLineBytes) std::atomic<uint32_t> phase_{0};
  alignas(kLineBytes) std::atomic<int32_t> phase_sleepers_{0};
};

}  // namespace bantam
