// Speed of the weight kernels: for each instruction set and weight type GB/s of packed weights and
// G weights/s with 1, 4 and 64 activation rows, on one thread and on all; for 64 rows also the
// share of the int8 peak (2 x 64 multiply-adds x cores x measured clock). Usage: kernels_bench
// [threads] [isa] [type] [activation rows] [decode MiB]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "cpu/isa.h"

namespace bantam {
namespace {

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

// GHz of a chain of dependent additions, one a cycle.
double measured_clock() {
  double best = 0;
  for (int round = 0; round < 20; ++round) {
    constexpr int kSteps = 4'000'000;
    uint64_t x = 1;
    const double start = now();
    for (int i = 0; i < kSteps; i += 8) {
#if defined(__x86_64__)
      asm volatile(
          "add $1, %0\n add $3, %0\n add $1, %0\n add $3, %0\n"
          "add $1, %0\n add $3, %0\n add $1, %0\n add $3, %0\n"
          : "+r"(x));
#else
      asm volatile(
          "add %0, %0, #1\n add %0, %0, #3\n add %0, %0, #1\n add %0, %0, #3\n"
          "add %0, %0, #1\n add %0, %0, #3\n add %0, %0, #1\n add %0, %0, #3\n"
          : "+r"(x));
#endif
    }
    best = std::max(best, kSteps / (now() - start) * 1e-9);
  }
  return best;
}

struct FreeAligned {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Aligned = std::unique_ptr<T[], FreeAligned>;

template <class T>
Aligned<T> aligned(int64_t n) {
  const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64;
  void* p = std::aligned_alloc(64, bytes);
  std::memset(p, 0, bytes);
  return Aligned<T>(static_cast<T*>(p));
}

// A matrix of about `bytes` packed bytes with random codes and small scales.
struct Matrix {
  PackedMatrix w;
  Aligned<std::byte> data;
  int64_t packed_bytes = 0;
  double pack_seconds = 0;
};

Matrix make_matrix(const Kernels& kernels, WeightType type, int cols, int64_t bytes) {
  Matrix m;
  const int64_t row_bytes = packed_row_bytes(type, cols);
  const int groups = static_cast<int>(bytes / (row_bytes * kGroupRows) / 8 * 8);
  m.packed_bytes = groups * packed_group_bytes(type, cols);
  m.data = aligned<std::byte>(m.packed_bytes);
  Aligned<std::byte> source = aligned<std::byte>(row_bytes * kGroupRows);
  std::mt19937 random(1);
  for (int64_t i = 0; i < row_bytes * kGroupRows; ++i) {
    // Bytes below 0x40 keep every fp16 and float in it finite.
    source[static_cast<size_t>(i)] = static_cast<std::byte>(random() % 0x3c);
  }
  const double start = now();
  for (int g = 0; g < groups; ++g) {
    kernels.weight[static_cast<int>(type)].pack_group(source.get(), row_bytes, kGroupRows, cols,
                                                      m.data.get() + g * row_bytes * kGroupRows);
  }
  m.pack_seconds = now() - start;
  m.w = {type, groups * kGroupRows, cols, m.data.get()};
  return m;
}

struct Activations {
  Aligned<float> x, d, y;
  Aligned<int8_t> q;
  Aligned<int32_t> sums;
  Aligned<int16_t> sums16;
  ActRows rows;
};

Activations make_activations(const Kernels& kernels, int n_rows, int cols, int block,
                             int64_t out_rows) {
  Activations a;
  const int64_t n = int64_t{n_rows} * cols;
  a.x = aligned<float>(n);
  a.d = aligned<float>(n / block);
  a.q = aligned<int8_t>(n);
  a.sums = aligned<int32_t>(n / block);
  a.sums16 = aligned<int16_t>(n / 16);
  a.y = aligned<float>(n_rows * out_rows);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < n; ++i) a.x[static_cast<size_t>(i)] = normal(random);
  kernels.quantize(a.x.get(), static_cast<int>(n), block, a.q.get(), a.d.get(), a.sums.get(),
                   a.sums16.get());
  a.rows = {n_rows, cols, block, a.q.get(), a.d.get(), a.sums.get(), a.sums16.get()};
  return a;
}

double seconds_of(ThreadPool& pool, int threads, const WeightKernels& kernel, const Matrix& m,
                  const Activations& a, bool floats) {
  std::vector<std::vector<float>> scratch(static_cast<size_t>(threads),
                                          std::vector<float>(static_cast<size_t>(m.w.cols)));
  double best = 1e9;
  const double stop = now() + 0.4;
  int rounds = 0;
  while (rounds < 2 || (now() < stop && rounds < 50)) {
    const double start = now();
    pool.run(
        [&](int thread, int n) {
          const ThreadPool::Range part = ThreadPool::split(n_groups(m.w.rows), thread, n);
          MatmulArgs args;
          args.w = &m.w;
          args.group_begin = static_cast<int>(part.begin);
          args.group_end = static_cast<int>(part.end);
          args.a = a.rows;
          args.x = a.x.get();
          args.n_rows = a.rows.n_rows;
          args.y = a.y.get();
          args.ldy = m.w.rows;
          args.scratch = scratch[static_cast<size_t>(thread)].data();
          (floats ? kernel.matmul_f32 : kernel.matmul)(args);
        },
        threads);
    best = std::min(best, now() - start);
    ++rounds;
  }
  return best;
}

struct Options {
  int threads = 2;
  const char* isa = "";
  const char* type = "";
  int rows = 0;
  int64_t decode_mib = 256;
};

void bench_type(const Isa& isa, WeightType type, int block, const Options& options,
                ThreadPool& pool, double clock) {
  const Kernels& kernels = kernels_of(isa);
  const WeightKernels& kernel = kernels.weight[static_cast<int>(type)];
  const bool slow = std::strncmp(isa.name, "scalar", 6) == 0;
  const bool float_type = info(type).act_block == 0;
  const int cols = 2048;
  const Matrix decode = make_matrix(kernels, type, cols, slow ? 1 << 20 : options.decode_mib << 20);
  const Matrix prefill = make_matrix(kernels, type, cols, slow ? 1 << 16 : 4 << 20);
  std::printf("%-10s %-5s act %3d  pack %.2f GB/s\n", isa.name, info(type).name, block,
              static_cast<double>(decode.packed_bytes) / decode.pack_seconds * 1e-9);
  for (const int n_rows : {1, 2, 3, 4, 8, 64}) {
    if (options.rows != 0 && options.rows != n_rows) continue;
    const Matrix& m = n_rows <= 4 ? decode : prefill;
    const Activations a = make_activations(kernels, n_rows, cols, block, m.w.rows);
    for (int floats = float_type ? 1 : 0; floats < 2; ++floats) {
      for (int threads = 1; threads <= options.threads; ++threads) {
        const double seconds = seconds_of(pool, threads, kernel, m, a, floats != 0);
        const double macs = static_cast<double>(m.w.rows) * cols * n_rows;
        const double peak = 2.0 * 64 * threads * clock;  // G multiply-adds a second
        std::printf("  %-4s rows %2d threads %d: %7.2f GB/s %8.1f G weights/s",
                    floats ? "f32" : "i8", n_rows, threads,
                    static_cast<double>(m.packed_bytes) / seconds * 1e-9,
                    macs / n_rows / seconds * 1e-9);
        std::printf("  %8.1f GMAC/s = %4.1f %% of int8 peak\n", macs / seconds * 1e-9,
                    100 * macs / seconds * 1e-9 / peak);
      }
    }
  }
}

int run(const Options& options) {
  ThreadPool pool(options.threads);
  const double clock = measured_clock();
  std::printf("clock %.2f GHz\n", clock);
  for (const Isa& isa : all_isas()) {
    if (!isa.supported() || (options.isa[0] != 0 && std::strcmp(options.isa, isa.name) != 0)) {
      continue;
    }
    for (int i = 0; i < kNumWeightTypes; ++i) {
      if (options.type[0] != 0 && std::strcmp(options.type, kWeightTypes[i].name) != 0) continue;
      const auto type = static_cast<WeightType>(i);
      const int block = info(type).act_block == 0 ? 32 : info(type).act_block;
      bench_type(isa, type, block, options, pool, clock);
      if (block != 32) bench_type(isa, type, 32, options, pool, clock);
    }
  }
  return 0;
}

}  // namespace
}  // namespace bantam

int main(int argc, char** argv) {
  bantam::Options options;
  if (argc > 1) options.threads = std::max(1, std::atoi(argv[1]));
  if (argc > 2) options.isa = argv[2];
  if (argc > 3) options.type = argv[3];
  if (argc > 4) options.rows = std::atoi(argv[4]);
  if (argc > 5) options.decode_mib = std::max(1, std::atoi(argv[5]));
  return bantam::run(options);
}
