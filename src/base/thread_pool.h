// A fixed team of compute threads. run(f) calls f(thread, n_threads) once on each, the caller being
// thread 0, and returns when all are done; barrier() lets one run hold several phases. Waiting
// spins briefly (kSpinNs), then sleeps, so an idle server costs no CPU; a team larger than the CPUs
// it may use sleeps at once. A team may have several setups (where and how urgently its members
// run) and change between runs. Where threads cannot be started, the team is smaller than asked:
// size() says so. Refuses nested run() calls and barriers outside of run() (CHECK).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/cpu_set.h"

namespace bantam {

struct TeamSetup {
  CpuSet cpus;          // members stay on these; empty: those that the process was started with
  bool strict = false;  // each on one CPU of them, by turns
  int nice = 0;         // added to the nice value that the process was started with
  int poll = 50;        // length of spinning: 50 is kSpinNs, 0 none, 100 twice as long
  double granted = 0;   // CPUs' worth of time that the team gets; 0: no limit is known
  bool operator==(const TeamSetup&) const = default;
};

class ThreadPool {
 public:
  explicit ThreadPool(int n_threads, std::vector<TeamSetup> setups = {TeamSetup{}});
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

  // Chooses the setup of the runs that follow (at first 0) and places the calling thread, which
  // otherwise stays as it is: threads that only load a model keep their CPUs.
  void use(int setup);

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

  // One turn of a loop that waits for another thread: leaves the core to its other half.
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  static constexpr int64_t kSpinNs = 50'000;
  static constexpr int64_t kLineBytes = 128;  // adjacent lines are fetched in pairs on x86

 private:
  using Task = void (*)(void*, int, int);
  void run_raw(Task task, void* argument, int n_active);
  void work(int thread);
  void publish(int n_active);
  void place(int thread, int setup) const;

  // A larger team sleeps at once: its members would spin on CPUs that other members need.
  struct Spinning {
    double most_members;
    int64_t rounds;
  };
  const std::vector<TeamSetup> setups_;
  std::vector<Spinning> spinning_;           // of each setup
  std::vector<std::vector<CpuSet>> places_;  // [setup][thread]
  std::vector<std::thread> workers_;
  // One for each thread: 1 while it sleeps or is about to; the futex it sleeps on.
  std::unique_ptr<std::atomic<uint32_t>[]> parked_;
  bool placed_ = false;  // some setup asks for CPUs or a priority
  bool running_ = false;
  const uint64_t id_;  // of this pool among all there ever were

  // One line from thread 0 to the workers: the word says how many take part, so those who do not
  // never touch the rest, and need not answer. High bits count the tasks.
  alignas(kLineBytes) std::atomic<uint64_t> word_{0};
  Task task_ = nullptr;
  void* argument_ = nullptr;
  int64_t spins_ = 0;
  int n_active_ = 0;
  int setup_ = 0;
  uint32_t done_target_ = 0;
  // From the workers to thread 0: tasks ended since the start. Never reset, so thread 0 only reads.
  alignas(kLineBytes) std::atomic<uint32_t> done_{0};
  alignas(kLineBytes) std::atomic<int32_t> arrived_{0};
  alignas(kLineBytes) std::atomic<uint32_t> phase_{0};
  alignas(kLineBytes) std::atomic<int32_t> phase_sleepers_{0};
};

}  // namespace bantam
