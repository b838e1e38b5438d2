#include "base/thread_pool.h"

#include <linux/futex.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <system_error>

#include "base/check.h"
#include "base/cpu_set.h"

namespace bantam {

namespace {

constexpr int kActiveBits = 16;
constexpr uint64_t kActiveMask = (uint64_t{1} << kActiveBits) - 1;
constexpr uint64_t kStop = kActiveMask;

using Futex = std::atomic<uint32_t>;
static_assert(sizeof(Futex) == 4 && Futex::is_always_lock_free);

void futex_wait(Futex& word, uint32_t expected) {
  ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

void futex_wake(Futex& word, int n) {
  ::syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, n, nullptr, nullptr, 0);
}

// True when ready() came true within that many rounds. No clock is read: rounds are calibrated.
template <class Ready>
bool spin(int64_t rounds, const Ready& ready) {
  for (int64_t i = 0; i < rounds; ++i) {
    if (ready()) return true;
    ThreadPool::pause();
  }
  return ready();
}

uint64_t next_pool_id() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

int process_nice() {
  static const int nice = ::getpriority(PRIO_PROCESS, 0);
  return nice;
}

// How many rounds of spin() take kSpinNs; the fastest of a few tries, as others may interrupt.
int64_t measure_spin_rounds() {
  using Clock = std::chrono::steady_clock;
  constexpr int kTries = 5, kRounds = 200;
  const std::atomic<uint64_t> never{0};
  int64_t best_ns = INT64_MAX;
  for (int i = 0; i < kTries; ++i) {
    const auto start = Clock::now();
    spin(kRounds, [&] { return never.load(std::memory_order_acquire) != 0; });
    const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start);
    best_ns = std::min<int64_t>(best_ns, ns.count());
  }
  return ThreadPool::kSpinNs * kRounds / std::max<int64_t>(1, best_ns);
}

int64_t measured_spin_rounds() {
  static const int64_t rounds = measure_spin_rounds();
  return rounds;
}

// Sleeps until ready(). Whoever makes it true calls unpark() afterwards. Both sides write, then
// read what the other writes, in the one order of seq_cst: one of them sees the other.
template <class Ready>
void park(Futex& parked, const Ready& ready) {
  for (;;) {
    parked.store(1, std::memory_order_seq_cst);
    if (ready()) break;
    futex_wait(parked, 1);
    if (ready()) break;
  }
  parked.store(0, std::memory_order_relaxed);
}

void unpark(Futex& parked) {
  if (parked.load(std::memory_order_seq_cst) == 0) return;
  // A late clear is harmless: the sleeper then does not fall asleep, looks again and parks again.
  parked.store(0, std::memory_order_seq_cst);
  futex_wake(parked, 1);
}

}  // namespace

ThreadPool::ThreadPool(int n_threads, std::vector<TeamSetup> setups)
    : setups_(std::move(setups)), id_(next_pool_id()) {
  CHECK(n_threads >= 1 && static_cast<uint64_t>(n_threads) < kStop);
  CHECK(!setups_.empty());
  CpuSet::of_process();
  process_nice();
  for (const TeamSetup& setup : setups_) {
    placed_ |= !setup.cpus.empty() || setup.nice != 0;
    const CpuSet& cpus = setup.cpus.empty() ? CpuSet::of_process() : setup.cpus;
    const std::vector<int> list = cpus.list();
    std::vector<CpuSet>& places = places_.emplace_back(static_cast<size_t>(n_threads), cpus);
    for (size_t t = 0; setup.strict && !list.empty() && t < places.size(); ++t) {
      places[t] = CpuSet();
      places[t].add(list[t % list.size()]);
    }
    const double n = cpus.empty() ? std::thread::hardware_concurrency() : cpus.count();
    spinning_.push_back({setup.granted > 0 ? std::min(n, setup.granted) : n,
                         measured_spin_rounds() * setup.poll / 50});
  }
  parked_ = std::make_unique<Futex[]>(static_cast<size_t>(n_threads));
  workers_.reserve(static_cast<size_t>(n_threads - 1));
  try {
    for (int t = 1; t < n_threads; ++t) workers_.emplace_back([this, t] { work(t); });
  } catch (const std::system_error&) {
    // A limit of processes or memory: the team is those that could be started.
  }
}

ThreadPool::~ThreadPool() {
  publish(static_cast<int>(kStop));
  for (std::thread& worker : workers_) worker.join();
}

// The calling thread, as member `thread` of the team. What the kernel refuses stays as it is:
// whoever made the setup has asked before. Runs inside a token's step, so it allocates nothing.
void ThreadPool::place(int thread, int setup) const {
  const TeamSetup& to = setups_[static_cast<size_t>(setup)];
  places_[static_cast<size_t>(setup)][static_cast<size_t>(thread)].apply_to_this_thread();
  const int nice = std::clamp(process_nice() + to.nice, -20, 19);
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), nice);
}

void ThreadPool::use(int setup) {
  CHECK(!running_ && setup >= 0 && setup < static_cast<int>(setups_.size()));
  setup_ = setup;
  thread_local uint64_t placed_by = 0;  // 0: as it was started
  thread_local int placed_as = 0;
  if (placed_by == 0 && !placed_) return;
  if (placed_by == id_ && placed_as == setup) return;
  placed_by = id_;
  placed_as = setup;
  place(0, setup);
}

// Makes the next task visible to its workers and wakes those that sleep, and only those.
void ThreadPool::publish(int n_active) {
  const uint64_t count = (word_.load(std::memory_order_relaxed) >> kActiveBits) + 1;
  word_.store(count << kActiveBits | static_cast<uint64_t>(n_active), std::memory_order_seq_cst);
  const int n = std::min(n_active, size());
  for (int t = 1; t < n; ++t) unpark(parked_[static_cast<size_t>(t)]);
}

void ThreadPool::run_raw(Task task, void* argument, int n_active) {
  CHECK(!running_);
  const int n = n_active > 0 && n_active < size() ? n_active : size();
  running_ = true;
  n_active_ = n;
  if (n > 1) {
    task_ = task;
    argument_ = argument;
    const Spinning& spinning = spinning_[static_cast<size_t>(setup_)];
    spins_ = n <= spinning.most_members ? spinning.rounds : 0;
    done_target_ += static_cast<uint32_t>(n - 1);
    publish(n);
  }
  task(argument, 0, n);
  if (n > 1) {
    const uint32_t target = done_target_;
    const auto done = [&] { return done_.load(std::memory_order_seq_cst) == target; };
    if (!spin(spins_, done)) park(parked_[0], done);
  }
  running_ = false;
}

void ThreadPool::work(int thread) {
  Futex& parked = parked_[static_cast<size_t>(thread)];
  int setup = 0;
  // Also without a wish: the thread that made this one may have been placed by another team.
  place(thread, setup);
  uint64_t seen = 0;
  int64_t left = 0;  // rounds to spin before sleeping; tasks of others do not renew them
  for (;;) {
    const auto changed = [&] { return word_.load(std::memory_order_seq_cst) != seen; };
    while (!changed() && left > 0) {
      --left;
      ThreadPool::pause();
    }
    if (left == 0) park(parked, changed);
    seen = word_.load(std::memory_order_acquire);
    const uint64_t n_active = seen & kActiveMask;
    if (n_active == kStop) return;
    if (static_cast<uint64_t>(thread) >= n_active) continue;
    const uint32_t target = done_target_;
    left = spins_;
    if (setup_ != setup && placed_) {
      setup = setup_;
      place(thread, setup);
    }
    task_(argument_, thread, static_cast<int>(n_active));
    if (done_.fetch_add(1, std::memory_order_seq_cst) + 1 == target) unpark(parked_[0]);
  }
}

void ThreadPool::barrier() {
  CHECK(running_);
  const int n = n_active_;
  if (n == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  const auto over = [&] { return phase_.load(std::memory_order_seq_cst) != phase; };
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == n) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_seq_cst);
    if (phase_sleepers_.load(std::memory_order_seq_cst) > 0) futex_wake(phase_, n);
    return;
  }
  if (spin(spins_, over)) return;
  phase_sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (!over()) futex_wait(phase_, phase);
  phase_sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace bantam
