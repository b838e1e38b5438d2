// Read bandwidth and int8 peak of this machine, for shares that can be compared between runs.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/thread_pool.h"
#include "cpu/factory.h"
#include "cpu/teams.h"

namespace bantam {

namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kReadBytes = 768ll << 20;
constexpr int kReadRounds = 5;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Four vector sums over four streams inside the slice; the compiler's baseline vectors are enough
// to be bound by memory.
typedef uint64_t Vec8 __attribute__((vector_size(64)));

uint64_t read_forward(const std::byte* data, int64_t bytes) {
  const Vec8* v = reinterpret_cast<const Vec8*>(data);
  const int64_t n = bytes / 64 / 4 * 4;
  Vec8 a{}, b{}, c{}, d{};
  for (int64_t i = 0; i < n; i += 4) {
    __builtin_prefetch(v + i + 64);
    a += v[i];
    b += v[i + 1];
    c += v[i + 2];
    d += v[i + 3];
  }
  a += b + c + d;
  uint64_t sum = 0;
  for (int i = 0; i < 8; ++i) sum += a[i];
  return sum;
}

uint64_t read_streams(const std::byte* data, int64_t bytes) {
  const int64_t quarter = bytes / 4 / 256 * 256;
  const Vec8* v = reinterpret_cast<const Vec8*>(data);
  const int64_t step = quarter / 64;
  Vec8 a{}, b{}, c{}, d{};
  for (int64_t i = 0; i < step; ++i) {
    a += v[i];
    b += v[step + i];
    c += v[2 * step + i];
    d += v[3 * step + i];
  }
  a += b + c + d;
  uint64_t sum = 0;
  for (int i = 0; i < 8; ++i) sum += a[i];
  return sum;
}

double read_bandwidth(ThreadPool& pool) {
  void* memory =
      ::mmap(nullptr, kReadBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 0;
  ::madvise(memory, kReadBytes, MADV_HUGEPAGE);
  std::byte* data = static_cast<std::byte*>(memory);
  pool.run([&](int thread, int n) {
    const auto part = ThreadPool::split(kReadBytes / 4096, thread, n);
    std::memset(data + part.begin * 4096, 1, static_cast<size_t>((part.end - part.begin) * 4096));
  });
  double best = 0;
  volatile uint64_t sink = 0;
  for (int round = 0; round < 2 * kReadRounds; ++round) {
    const auto start = Clock::now();
    pool.run([&](int thread, int n) {
      const auto part = ThreadPool::split(kReadBytes / 4096, thread, n);
      const std::byte* slice = data + part.begin * 4096;
      const int64_t bytes = (part.end - part.begin) * 4096;
      sink = sink + (round % 2 == 0 ? read_forward(slice, bytes) : read_streams(slice, bytes));
    });
    best = std::max(best, static_cast<double>(kReadBytes) / seconds_since(start) / 1e9);
  }
  ::munmap(memory, kReadBytes);
  return best;
}

// Cycles per second from a chain of dependent additions, one cycle each: of registers, for some
// processors fold additions of constants while renaming (12 GHz seen where 3 was true).
double clock_ghz() {
  constexpr int64_t kSteps = 20'000'000;
  double best = 0;
  for (int round = 0; round < 5; ++round) {
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

}  // namespace

MachineSpeed measure_cpu(int n_threads, const std::string& isa, const TeamWish& team) {
  CpuOptions options;
  options.n_threads = n_threads;
  options.team = team;
  Result<Teams> teams = make_teams(options);
  CHECK(teams.ok());  // these threads have run on these CPUs
  ThreadPool pool(teams->n_threads, teams->setups);
  pool.use(0);
  MachineSpeed speed;
  speed.clock_ghz = clock_ghz();
  speed.read_gb_s = read_bandwidth(pool);
  // DESIGN section 1: two 64-wide dot units a core on AVX-512 VNNI.
  if (isa == "avx512") speed.int8_gmac_s = 2.0 * 64.0 * n_threads * speed.clock_ghz;
  return speed;
}

}  // namespace bantam
