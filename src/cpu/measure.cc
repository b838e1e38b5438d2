// Read bandwidth and int8 peaks of this machine, for shares that can be compared between runs.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "base/thread_pool.h"
#include "cpu/factory.h"
#include "cpu/isa.h"
#include "cpu/teams.h"

namespace bantam {

namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kReadBytes = 512ll << 20;
constexpr int64_t kShareBytes = 2 << 20;
constexpr double kReadSeconds = 0.7;
// Short rounds: the best one falls between the turns of other programs.
constexpr double kDotSeconds = 0.003;
constexpr int kDotRounds = 50;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Vectors of the baseline are enough: from the second-level cache these loops read 100 GB/s on one
// core (Zen 4), three times what its memory gives both.
typedef uint64_t Vec8 __attribute__((vector_size(64)));
using ReadKernel = uint64_t (*)(const std::byte*, int64_t bytes);

uint64_t total(const Vec8* four) {
  const Vec8 v = four[0] + four[1] + four[2] + four[3];
  uint64_t sum = 0;
  for (int i = 0; i < 8; ++i) sum += v[i];
  return sum;
}

// Ahead: bytes between the line that is read and the line that is asked for; 0: left to the CPU.
template <int Ahead>
uint64_t read_forward(const std::byte* data, int64_t bytes) {
  Vec8 sum[4] = {};
  for (int64_t i = 0; i + 256 <= bytes; i += 256) {
    for (int k = 0; k < 4; ++k) {
      const std::byte* line = data + i + 64 * k;
      if constexpr (Ahead != 0) __builtin_prefetch(line + Ahead);
      sum[k] += *reinterpret_cast<const Vec8*>(line);
    }
  }
  return total(sum);
}

uint64_t read_streams(const std::byte* data, int64_t bytes) {
  const int64_t quarter = bytes / 256 * 64;
  Vec8 sum[4] = {};
  for (int64_t i = 0; i < quarter; i += 64) {
    for (int k = 0; k < 4; ++k) {
      sum[k] += *reinterpret_cast<const Vec8*>(data + k * quarter + i);
    }
  }
  return total(sum);
}

constexpr ReadKernel kReadKernels[] = {read_forward<0>,    read_forward<1024>, read_forward<2048>,
                                       read_forward<4096>, read_forward<8192>, read_streams};

// Once over the whole buffer on all threads: each its own slice, or pieces of 2 MiB in turn, which
// also lets a thread that is held up do less.
double read_once(ThreadPool& pool, const std::byte* data, ReadKernel kernel, bool in_turn) {
  std::atomic<int64_t> next{0};
  std::atomic<uint64_t> sink{0};  // keeps the sums alive
  const auto start = Clock::now();
  pool.run([&](int thread, int n) {
    uint64_t sum = 0;
    if (in_turn) {
      for (;;) {
        const int64_t at = next.fetch_add(kShareBytes, std::memory_order_relaxed);
        if (at >= kReadBytes) break;
        sum += kernel(data + at, kShareBytes);
      }
    } else {
      const auto part = ThreadPool::split(kReadBytes / 4096, thread, n);
      sum = kernel(data + part.begin * 4096, (part.end - part.begin) * 4096);
    }
    sink.fetch_add(sum, std::memory_order_relaxed);
  });
  return static_cast<double>(kReadBytes) / seconds_since(start) / 1e9;
}

double read_bandwidth(ThreadPool& pool) {
  void* memory =
      ::mmap(nullptr, kReadBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 0;
  ::madvise(memory, kReadBytes, MADV_HUGEPAGE);
  std::byte* data = static_cast<std::byte*>(memory);
  pool.run([&](int thread, int n) {
    const auto part = ThreadPool::split(kReadBytes / kShareBytes, thread, n);
    std::memset(data + part.begin * kShareBytes, 1,
                static_cast<size_t>((part.end - part.begin) * kShareBytes));
  });
  double best = 0;
  const auto start = Clock::now();
  do {
    for (const ReadKernel kernel : kReadKernels) {
      for (const bool in_turn : {false, true}) {
        best = std::max(best, read_once(pool, data, kernel, in_turn));
      }
    }
  } while (seconds_since(start) < kReadSeconds);
  ::munmap(memory, kReadBytes);
  return best;
}

// The instruction set's fastest dot products on all threads at once, from registers.
double dot_rate(ThreadPool& pool, const Kernels& kernels) {
  double best = 0;
  int64_t steps = 1 << 10;
  for (int round = 0; round < kDotRounds;) {
    std::atomic<int64_t> macs{0};
    const auto start = Clock::now();
    pool.run([&](int, int) { macs.fetch_add(kernels.dot_rate(steps), std::memory_order_relaxed); });
    const double seconds = seconds_since(start);
    best = std::max(best, static_cast<double>(macs.load()) / seconds / 1e9);
    if (seconds < kDotSeconds) {
      steps *= 2;
    } else {
      ++round;
    }
  }
  return best;
}

// Cycles per second from a chain of dependent additions, one cycle each: of registers, for some
// processors fold additions of constants while renaming (12 GHz seen where 3 was true).
double clock_ghz() {
  constexpr int64_t kSteps = 4'000'000;
  double best = 0;
  for (int round = 0; round < 25; ++round) {
    uint64_t x = 1, step = 3;
    const auto start = Clock::now();
    for (int64_t i = 0; i < kSteps; i += 8) {
#if defined(__x86_64__)
      asm volatile(
          "add %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\t"
          "add %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\tadd %1, %0"
          : "+r"(x)
          : "r"(step));
#else
      for (int k = 0; k < 8; ++k) asm volatile("add %0, %0, %1" : "+r"(x) : "r"(step));
#endif
    }
    best = std::max(best, static_cast<double>(kSteps) / seconds_since(start) / 1e9);
  }
  return best;
}

MachineSpeed measure_team(int n_threads, const TeamSetup& setup, const Isa& isa) {
  ThreadPool pool(n_threads, {setup});
  pool.use(0);
  MachineSpeed speed;
  speed.clock_ghz = clock_ghz();
  speed.read_gb_s = read_bandwidth(pool);
  speed.int8_gmac_s = double(isa.nominal_macs) * n_threads * speed.clock_ghz;
  speed.int8_measured_gmac_s = dot_rate(pool, kernels_of(isa));
  return speed;
}

}  // namespace

TeamSpeeds measure_cpu(const CpuOptions& options) {
  Result<Teams> teams = make_teams(options);
  CHECK(teams.ok());  // these threads have run on these CPUs
  Result<const Isa*> isa = choose_isa(options.isa.c_str());
  CHECK(isa);  // the name of a backend that runs
  TeamSpeeds speeds;
  speeds.single = speeds.batch = measure_team(teams->n_threads, teams->setups.front(), **isa);
  if (teams->n_threads_batch != teams->n_threads || teams->setups.size() > 1) {
    speeds.batch = measure_team(teams->n_threads_batch, teams->setups.back(), **isa);
  }
  return speeds;
}

}  // namespace bantam
