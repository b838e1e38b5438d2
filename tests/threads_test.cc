// ThreadPool: every member runs each task once, barriers order the phases of one run, waiting ends
// in sleep, teams larger than the machine make progress.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <numeric>
#include <thread>
#include <vector>

#include "base/cpu_set.h"
#include "base/thread.h"
#include "base/thread_pool.h"
#include "no_threads.h"

namespace bantam {
namespace {

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define BANTAM_TSAN 1
#endif
#endif

#ifdef BANTAM_TSAN
constexpr int kRounds = 2000;
#else
constexpr int kRounds = 20000;
#endif

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto s = [](const timeval& t) { return double(t.tv_sec) + double(t.tv_usec) * 1e-6; };
  return s(usage.ru_utime) + s(usage.ru_stime);
}

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

TEST(ThreadPool, EachMemberRunsOnce) {
  for (const int size : {1, 2, 3, 5, 8}) {
    ThreadPool pool(size);
    ASSERT_EQ(pool.size(), size);
    std::vector<int> runs(static_cast<size_t>(size));  // plain: TSan sees a missing order
    std::vector<int> expected(runs.size());
    for (int i = 0; i < kRounds / 10; ++i) {
      const int asked = i % (size + 2);  // 0 and more than there are mean all
      const int active = asked == 0 || asked > size ? size : asked;
      for (int t = 0; t < active; ++t) ++expected[static_cast<size_t>(t)];
      pool.run(
          [&](int thread, int n) {
            ASSERT_EQ(n, active);
            ++runs[static_cast<size_t>(thread)];
          },
          asked);
      ASSERT_EQ(runs, expected) << "size " << size << " round " << i;
    }
  }
}

TEST(ThreadPool, ResultsAreVisibleToTheCaller) {
  ThreadPool pool(2);
  std::vector<int64_t> part(2);
  for (int64_t i = 0; i < kRounds; ++i) {
    pool.run([&](int thread, int) { part[static_cast<size_t>(thread)] = i * 2 + thread; });
    ASSERT_EQ(part[0] + part[1], i * 4 + 1);
  }
}

// Every member adds what its neighbour wrote in the phase before: one missing barrier and the sums
// (or TSan) tell.
void phases(ThreadPool& pool, int active, int n_phases) {
  std::vector<int64_t> from(static_cast<size_t>(active), 1), to(from.size());
  pool.run(
      [&](int thread, int n) {
        std::vector<int64_t>* a = &from;
        std::vector<int64_t>* b = &to;
        for (int phase = 0; phase < n_phases; ++phase) {
          const size_t next = static_cast<size_t>((thread + 1) % n);
          (*b)[static_cast<size_t>(thread)] = (*a)[next] + 1;
          pool.barrier();
          std::swap(a, b);
        }
      },
      active);
  const std::vector<int64_t>& last = n_phases % 2 == 0 ? from : to;
  for (const int64_t value : last) ASSERT_EQ(value, 1 + n_phases);
}

TEST(Barrier, OrdersPhases) {
  for (const int size : {1, 2, 3, 4, 7}) {
    ThreadPool pool(size);
    for (int active = 1; active <= size; ++active) phases(pool, active, kRounds / 10);
    for (int i = 0; i < kRounds / 20; ++i) phases(pool, 1 + i % size, 1 + i % 5);
  }
}

TEST(Barrier, ThousandsOfTimes) {
  ThreadPool pool(2);
  phases(pool, 2, kRounds * 10);
}

// Members that come late find the others asleep: the wake-ups must not be lost.
TEST(Barrier, WakesSleepers) {
  ThreadPool pool(3);
  for (int i = 0; i < 60; ++i) {
    std::vector<int> value(3);
    pool.run([&](int thread, int n) {
      for (int phase = 0; phase < 3; ++phase) {
        if ((thread + i + phase) % n == 0) sleep_ms(1);
        value[static_cast<size_t>(thread)] = phase;
        pool.barrier();
        for (const int v : value) ASSERT_EQ(v, phase);
        pool.barrier();
      }
    });
  }
}

TEST(ThreadPool, WakesSleepers) {
  ThreadPool pool(2);
  for (int i = 0; i < 100; ++i) {
    int sum[2] = {0, 0};
    if (i % 3 == 0) sleep_ms(1);  // the worker sleeps
    pool.run([&](int thread, int) {
      if (thread == 1 && i % 2 == 0) sleep_ms(1);  // thread 0 sleeps
      sum[thread] = thread + 1;
    });
    ASSERT_EQ(sum[0] + sum[1], 3);
  }
}

// Whoever is not part of the team may neither work nor be waited for, however long it slept.
TEST(ThreadPool, SmallTeamThenLarge) {
  ThreadPool pool(4);
  for (int i = 0; i < 50; ++i) {
    int count = 0;
    for (int k = 0; k < 100; ++k) {
      pool.run([&](int thread, int) { thread == 0 ? ++count : 0; }, 1 + k % 2);
    }
    ASSERT_EQ(count, 100);
    std::vector<int> seen(4);
    pool.run([&](int thread, int) { seen[static_cast<size_t>(thread)] = 1; });
    ASSERT_EQ(std::accumulate(seen.begin(), seen.end(), 0), 4);
  }
}

TEST(ThreadPool, IdleCostsNothing) {
  ThreadPool pool(4);
  for (int i = 0; i < 100; ++i) pool.run([&](int, int) { pool.barrier(); });
  const double before = cpu_seconds();
  sleep_ms(500);
  EXPECT_LT(cpu_seconds() - before, 0.020);
}

// Only thread 0 works: the others may not spin for as long as it does.
TEST(ThreadPool, WaitingForOneMemberCostsNothing) {
  ThreadPool pool(4);
  const double before = cpu_seconds();
  pool.run([&](int thread, int) {
    if (thread == 0) sleep_ms(300);
    pool.barrier();
    if (thread == 1) sleep_ms(200);
  });
  EXPECT_LT(cpu_seconds() - before, 0.020);
}

// CPU time of 400 waits of 1 ms, the least of three tries; spinning at full length adds 40 ms.
double cost_of_waiting(const TeamSetup& setup) {
  double least = 1e9;
  for (int attempt = 0; attempt < 3; ++attempt) {
    ThreadPool pool(2, {setup});
    const double before = cpu_seconds();
    for (int i = 0; i < 400; ++i) {
      pool.run([&](int thread, int) {
        if (thread == 1) sleep_ms(1);
      });
    }
    least = std::min(least, cpu_seconds() - before);
  }
  return least;
}

// More threads than CPUs: waiting sleeps at once instead of burning what the others need.
TEST(ThreadPool, OversubscribedTeamsSleep) {
  const std::vector<int> allowed = CpuSet::of_process().list();
  ASSERT_FALSE(allowed.empty());
  TeamSetup lazy, eager, crowded, poor;
  lazy.poll = 0;
  eager.poll = crowded.poll = poor.poll = 100;
  crowded.cpus.add(allowed.front());
  poor.granted = 1.5;
  const double least = cost_of_waiting(lazy);
  EXPECT_LT(cost_of_waiting(crowded), least + 0.020);
  EXPECT_LT(cost_of_waiting(poor), least + 0.020);
  if (allowed.size() > 1) {
    EXPECT_GT(cost_of_waiting(eager), least + 0.020);
  } else {
    std::printf("not run: the cost of spinning: on one CPU no team of 2 spins\n");
  }
}

// The CPUs of every member in each of two setups, as the kernel tells.
TEST(ThreadPool, SetupsPlaceTheMembers) {
  const CpuSet all = CpuSet::of_process();
  const std::vector<int> list = all.list();
  TeamSetup first, second;
  first.cpus.add(list.front());
  second.cpus = all;
  second.strict = true;
  second.nice = 1;  // lowering needs no permission
  CpuSet seen[3];
  int nice[3] = {0, 0, 0};
  const auto look = [&](int thread, int) {
    seen[thread] = CpuSet::of_this_thread();
    nice[thread] = getpriority(PRIO_PROCESS, 0);
  };
  // The calling thread is placed too, so not the one of the other tests.
  std::thread caller([&] {
    const int base = getpriority(PRIO_PROCESS, 0);
    ThreadPool pool(3, {first, second, TeamSetup{}});
    pool.run(look);
    EXPECT_EQ(seen[0], all) << "placed without use()";
    for (int t = 1; t < 3; ++t) EXPECT_EQ(seen[t], first.cpus);
    pool.use(1);
    pool.run(look);
    for (size_t t = 0; t < 3; ++t) {
      EXPECT_EQ(seen[t].list(), std::vector<int>{list[t % list.size()]});
      EXPECT_EQ(nice[t], std::min(19, base + 1));
    }
    pool.use(2);
    pool.run(look);
    for (const CpuSet& cpus : seen) EXPECT_EQ(cpus, all);
    pool.use(0);
    pool.run(look);
    for (const CpuSet& cpus : seen) EXPECT_EQ(cpus, first.cpus);
    // A pool made by a placed thread does not inherit the place.
    ThreadPool other(2);
    other.run(look);
    EXPECT_EQ(seen[0], first.cpus);
    EXPECT_EQ(seen[1], all);
    other.use(0);
    EXPECT_EQ(CpuSet::of_this_thread(), all) << "placed by a team that it left";
  });
  caller.join();
  EXPECT_EQ(CpuSet::of_this_thread(), all);
}

TEST(Worker, DoesAllInOrder) {
  for (int round = 0; round < 50; ++round) {
    std::vector<int> done;  // plain: TSan sees a missing order
    {
      Result<std::unique_ptr<Worker>> worker = Worker::start("a worker");
      ASSERT_TRUE(worker.ok());
      for (int i = 0; i < round; ++i) (*worker)->post([&done, i] { done.push_back(i); });
    }
    ASSERT_EQ(static_cast<int>(done.size()), round);
    for (int i = 0; i < round; ++i) ASSERT_EQ(done[static_cast<size_t>(i)], i);
  }
}

TEST(Thread, IsJoinedWhenItGoes) {
  int done = 0;
  {
    Result<Thread> thread = Thread::start("a thread", [&] {
      sleep_ms(20);
      ++done;
    });
    ASSERT_TRUE(thread.ok());
    const Thread moved = std::move(*thread);
  }
  EXPECT_EQ(done, 1);
}

TEST(Thread, RefusedByTheKernelIsAnError) {
  const auto check = [](bool) {
    const Result<Thread> thread = Thread::start("the thread of the test", [] {});
    if (thread.ok()) return 11;
    const std::string& why = thread.error().message;
    const bool clear = thread.error().kind == ErrorKind::failed && why.starts_with("cannot start the thread of the test: ") &&
                       why.find("unavailable") != std::string::npos;
    return clear && !Worker::start("a worker").ok() ? 0 : 12;
  };
  without_threads([] { return true; }, check);
}

TEST(CpuSet, MasksAndRanges) {
  const auto mask = [](const char* text) {
    Result<CpuSet> set = CpuSet::from_mask(text);
    return set ? set->text() : "refused: " + set.error().message;
  };
  EXPECT_EQ(mask("0xF0"), "4-7");
  EXPECT_EQ(mask("1"), "0");
  EXPECT_EQ(mask("0X5b"), "0-1,3-4,6");
  EXPECT_EQ(mask(("1" + std::string(500, '0')).c_str()), "2000");
  for (const char* bad : {"", "0x", "0", "0x0", "xyz", "0x1g", "-1", "1 ", "+1"}) {
    EXPECT_TRUE(mask(bad).starts_with("refused: got '" + std::string(bad) + "', expected"))
        << mask(bad);
  }
  EXPECT_FALSE(CpuSet::from_mask(std::string(1 << 20, 'f')));
  const auto range = [](const char* text) {
    Result<CpuSet> set = CpuSet::from_range(text);
    return set ? set->text() : "refused";
  };
  EXPECT_EQ(range("2-5"), "2-5");
  EXPECT_EQ(range("7-7"), "7");
  EXPECT_EQ(range("-3"), "0-3");
  EXPECT_EQ(range("65530-"), "65530-65535");
  for (const char* bad : {"", "-", "5", "5-2", "a-b", "1-2-3", "1-2,4", "0-65536", "-1-2", "1- 2"})
    EXPECT_EQ(range(bad), "refused") << bad;
  EXPECT_EQ(CpuSet::from_list("0-3,8,1500-1501\n").text(), "0-3,8,1500-1501");
  EXPECT_EQ(CpuSet::from_list("garbage").text(), "none");
  EXPECT_EQ(CpuSet::from_list("3,99999999999").text(), "3");
  EXPECT_EQ(CpuSet::from_mask("0x1f03")->mask(), "0x1f03");
  EXPECT_EQ(CpuSet{}.mask(), "0x0");
}

TEST(ThreadPoolDeathTest, NestedRunIsAProgrammerError) {
  for (const int size : {1, 2}) {
    EXPECT_DEATH(
        {
          ThreadPool pool(size);
          pool.run([&](int, int) { pool.run([](int, int) {}); });
        },
        "running_");
  }
  EXPECT_DEATH(
      {
        ThreadPool pool(2);
        pool.barrier();
      },
      "running_");
}

}  // namespace
}  // namespace bantam
