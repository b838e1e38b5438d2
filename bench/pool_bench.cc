// The cost of handing out work: one empty run(), one run() of many barriers, one barrier.
// usage: pool_bench [threads] [rounds]   (build: cmake --build build/release --target pool_bench)
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "base/thread_pool.h"

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 200000;
  if (threads < 1 || threads > 256 || rounds < 1) return 2;
  bantam::ThreadPool pool(threads);
  const auto ns_each = [&](auto&& body) {
    double best = 1e18;
    for (int i = 0; i < 5; ++i) {
      const auto start = std::chrono::steady_clock::now();
      body();
      const std::chrono::duration<double, std::nano> spent =
          std::chrono::steady_clock::now() - start;
      if (spent.count() < best) best = spent.count();
    }
    return best / rounds;
  };
  const double run = ns_each([&] {
    for (int i = 0; i < rounds; ++i) pool.run([](int, int) {});
  });
  std::printf("threads %d: run() of nothing %.0f ns", threads, run);
#ifndef BANTAM_NO_BARRIER
  const double barrier = ns_each([&] {
    pool.run([&](int, int) {
      for (int i = 0; i < rounds; ++i) pool.barrier();
    });
  });
  std::printf(", barrier() %.0f ns", barrier);
#endif
  std::printf("\n");
}
