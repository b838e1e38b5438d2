// Default threads on machines that are not here: trees of /sys and /proc made up under a folder of
// their own; and what becomes of the user's wishes on them.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/limits.h"
#include "cpu/teams.h"
#include "cpu/topology.h"

namespace bantam {
namespace {

class Machine {
 public:
  Machine() {
    static int count = 0;
    root_ = std::filesystem::temp_directory_path() /
            ("bantam_topology_" + std::to_string(getpid()) + "_" + std::to_string(count++));
  }
  ~Machine() { std::filesystem::remove_all(root_); }

  Machine& file(const std::string& path, const std::string& content) {
    const std::filesystem::path full = root_.string() + path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << content;
    return *this;
  }
  Machine& of_cpu(int cpu, const std::string& name, const std::string& content) {
    return file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/" + name, content + "\n");
  }
  // A CPU with its siblings, core and package, as current kernels show them.
  Machine& cpu(int cpu, const std::string& siblings, int core, int package = 0) {
    affinity_.add(cpu);
    of_cpu(cpu, "topology/core_cpus_list", siblings);
    of_cpu(cpu, "topology/thread_siblings_list", siblings);
    of_cpu(cpu, "topology/core_id", std::to_string(core));
    return of_cpu(cpu, "topology/physical_package_id", std::to_string(package));
  }
  Machine& plain(int n) {
    for (int i = 0; i < n; ++i) cpu(i, std::to_string(i), i);
    return file("/sys/devices/system/cpu/online", "0-" + std::to_string(n - 1) + "\n");
  }
  Machine& affinity(const std::string& list) {
    affinity_ = CpuSet::from_list(list);
    return *this;
  }
  Topology read() const { return read_topology({root_.string(), affinity_}); }
  int threads() const { return read().n_threads(); }

 private:
  std::filesystem::path root_;
  CpuSet affinity_;
};

Machine& intel_hybrid(Machine& m) {  // 6 P cores of 2 threads, 8 E cores
  for (int i = 0; i < 12; ++i) {
    m.cpu(i, std::to_string(i / 2 * 2) + "-" + std::to_string(i / 2 * 2 + 1), i / 2 * 4);
    m.of_cpu(i, "cpufreq/cpuinfo_max_freq", i < 4 ? "5000000" : "4800000");
  }
  for (int i = 12; i < 20; ++i) {
    m.cpu(i, std::to_string(i), 12 + i);
    m.of_cpu(i, "cpufreq/cpuinfo_max_freq", "3600000");
  }
  return m.file("/sys/devices/system/cpu/online", "0-19\n")
      .file("/sys/devices/cpu_core/cpus", "0-11\n")
      .file("/sys/devices/cpu_atom/cpus", "12-19\n");
}

// 4 A55 and 4 A76, in three clusters whose core ids repeat, as some kernels number them.
Machine& rk3588(Machine& m, bool capacities) {
  for (int i = 0; i < 8; ++i) {
    const int cluster = i < 4 ? 0 : i < 6 ? 1 : 2;
    m.cpu(i, std::to_string(i), i < 4 ? i : i % 2, 0);
    m.of_cpu(i, "topology/cluster_id", std::to_string(cluster));
    m.of_cpu(i, "cpufreq/cpuinfo_max_freq", i < 4 ? "1800000" : "2400000");
    if (capacities) m.of_cpu(i, "cpu_capacity", i < 4 ? "414" : "1024");
  }
  return m.file("/sys/devices/system/cpu/online", "0-7\n");
}

TEST(Topology, BoardsWithEqualCores) {
  Machine pi4, pi5, nano;
  pi4.plain(4);
  for (int i = 0; i < 4; ++i) pi4.of_cpu(i, "cpufreq/cpuinfo_max_freq", "1800000");
  EXPECT_EQ(pi4.threads(), 4);
  EXPECT_EQ(pi4.read().big, pi4.read().allowed);
  pi5.plain(4);
  for (int i = 0; i < 4; ++i) pi5.of_cpu(i, "cpu_capacity", "1024");
  EXPECT_EQ(pi5.threads(), 4);
  EXPECT_EQ(pi5.read().big, pi5.read().allowed);
  // JetPack 4.6 (Linux 4.9): no core_cpus_list, quota files of cgroup v1 without a limit.
  nano.affinity("0-3").file("/sys/devices/system/cpu/online", "0-3\n");
  for (int i = 0; i < 4; ++i) {
    nano.of_cpu(i, "topology/core_id", std::to_string(i));
    nano.of_cpu(i, "topology/physical_package_id", "0");
  }
  nano.file("/proc/self/cgroup", "4:cpu,cpuacct:/user.slice\n0::/user.slice\n")
      .file("/sys/fs/cgroup/cpu,cpuacct/user.slice/cpu.cfs_quota_us", "-1\n")
      .file("/sys/fs/cgroup/cpu,cpuacct/user.slice/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(nano.threads(), 4);
  EXPECT_EQ(nano.read().quota, 0);
}

TEST(Topology, HardwareThreadsShareACore) {
  Machine amd;  // 8 cores, CPU i and i + 8 on one core; two packages with the same core ids
  for (int i = 0; i < 16; ++i)
    amd.cpu(i, std::to_string(i % 8) + "," + std::to_string(i % 8 + 8), i % 4, i % 8 / 4);
  EXPECT_EQ(amd.threads(), 8);
  EXPECT_EQ(amd.affinity("0,8").threads(), 1);
  EXPECT_EQ(amd.affinity("0-3,8-9").threads(), 4);
  Machine old;  // core ids alone tell
  old.affinity("0-7");
  for (int i = 0; i < 8; ++i) {
    old.of_cpu(i, "topology/core_id", std::to_string(i % 2));
    old.of_cpu(i, "topology/physical_package_id", std::to_string(i / 4));
  }
  EXPECT_EQ(old.threads(), 4);
}

TEST(Topology, LittleCoresStayOut) {
  Machine intel;
  intel_hybrid(intel);
  EXPECT_EQ(intel.threads(), 6);
  EXPECT_EQ(intel.read().big.text(), "0-11");
  EXPECT_EQ(intel.affinity("10-19").threads(), 1);
  EXPECT_EQ(intel.affinity("12-19").threads(), 8) << "only little cores are allowed";
  EXPECT_EQ(intel.read().big, intel.read().allowed);
  Machine rk;
  rk3588(rk, true);
  EXPECT_EQ(rk.threads(), 4);
  EXPECT_EQ(rk.read().big.text(), "4-7");
  EXPECT_EQ(rk.affinity("0-3").threads(), 4);
  EXPECT_EQ(rk.affinity("3-4").read().big.text(), "4");
  Machine unsaid;  // 1.8 GHz against 2.4 alone does not make a core little
  rk3588(unsaid, false);
  EXPECT_EQ(unsaid.threads(), 8);
  Machine phone;  // 1 prime, 3 big, 4 little
  phone.plain(8);
  const char* capacity[] = {"250", "250", "250", "250", "760", "760", "760", "1024"};
  for (int i = 0; i < 8; ++i) phone.of_cpu(i, "cpu_capacity", capacity[i]);
  EXPECT_EQ(phone.read().big.text(), "4-7");
  Machine clock;  // the last hint, beyond any doubt
  clock.plain(4);
  for (int i = 0; i < 4; ++i)
    clock.of_cpu(i, "cpufreq/cpuinfo_max_freq", i < 2 ? "1400000" : "2800000");
  EXPECT_EQ(clock.read().big.text(), "2-3");
}

TEST(Topology, QuotaOfCgroups) {
  Machine m;
  m.plain(8).file("/proc/self/cgroup", "0::/a/b/c\n");
  EXPECT_EQ(m.threads(), 8);
  m.file("/sys/fs/cgroup/a/b/c/cpu.max", "max 100000\n");
  EXPECT_EQ(m.read().quota, 0);
  m.file("/sys/fs/cgroup/a/cpu.max", "150000 100000\n");
  EXPECT_DOUBLE_EQ(m.read().quota, 1.5);
  EXPECT_EQ(m.threads(), 2);
  m.file("/sys/fs/cgroup/a/b/cpu.max", "300000 100000\n");
  EXPECT_DOUBLE_EQ(m.read().quota, 1.5) << "the smallest counts";
  m.file("/sys/fs/cgroup/a/b/c/cpu.max", "100000 100000\n");
  EXPECT_EQ(m.threads(), 1);
  m.file("/sys/fs/cgroup/a/b/c/cpu.max", "10000 100000\n");
  EXPECT_EQ(m.threads(), 1);
  m.file("/sys/fs/cgroup/cpu.max", "5000 100000\n");
  EXPECT_DOUBLE_EQ(m.read().quota, 0.05) << "of the tree's root, as a container sees its own";
  Machine v1;
  v1.plain(8).file("/proc/self/cgroup",
                   "12:memory:/x\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/y\n");
  v1.file("/sys/fs/cgroup/cpu/docker/cpu.cfs_quota_us", "250000\n")
      .file("/sys/fs/cgroup/cpu/docker/cpu.cfs_period_us", "100000\n")
      .file("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "1000\n")
      .file("/sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(v1.threads(), 3);
  Machine inside;  // /proc still tells the outer path, the mount shows the container's own group
  inside.plain(4)
      .file("/proc/self/cgroup", "4:cpu:/docker/1\n")
      .file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n")
      .file("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(inside.threads(), 2);
  Machine outside;
  outside.plain(4).file("/proc/self/cgroup", "0::/../../etc\n").file("/etc/cpu.max", "1 100000\n");
  EXPECT_EQ(outside.threads(), 4);
}

TEST(Topology, OneCpuAndOfflineCpus) {
  Machine one;
  one.plain(8).affinity("5");
  EXPECT_EQ(one.threads(), 1);
  EXPECT_EQ(one.read().allowed.text(), "5");
  Machine offline;
  offline.plain(8).file("/sys/devices/system/cpu/online", "0-1,4\n");
  EXPECT_EQ(offline.threads(), 3);
  EXPECT_EQ(offline.read().allowed.text(), "0-1,4");
}

TEST(Topology, MissingFilesAndNonsense) {
  Machine empty;
  EXPECT_EQ(empty.threads(), 1) << "nothing is known at all";
  EXPECT_EQ(empty.affinity("0-5").threads(), 6) << "each CPU counts as a core";
  Machine odd;
  odd.affinity("0-3").file("/sys/devices/system/cpu/online", "\xff\xfe!?\n");
  for (int i = 0; i < 4; ++i) {
    odd.of_cpu(i, "topology/core_cpus_list", i == 0 ? "" : i == 1 ? "-7" : "900-100");
    odd.of_cpu(i, "topology/thread_siblings_list", "7");  // without the CPU itself
    odd.of_cpu(i, "topology/core_id", i == 0 ? "12abc" : "99999999999999999999");
    odd.of_cpu(i, "topology/physical_package_id", "-1");
    odd.of_cpu(i, "cpu_capacity", i == 3 ? "0" : "1024");
    odd.of_cpu(i, "cpufreq/cpuinfo_max_freq", i == 3 ? "<unsupported>" : "1");
  }
  odd.file("/proc/self/cgroup", ":::\nno colons\n0::\n0::relative\n:\n\n0::/a//b/\n")
      .file("/sys/fs/cgroup/cpu.max", "lots of time\n")
      .file("/sys/fs/cgroup/a/cpu.max", "-5 100000\n")
      .file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000\n")
      .file("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "0\n")
      .file("/sys/devices/cpu_core/cpus", "17-99999999\n");
  EXPECT_EQ(odd.threads(), 4);
  EXPECT_EQ(odd.read().quota, 0);
  EXPECT_EQ(odd.read().big, odd.read().allowed);
}

TEST(Topology, MoreThan1024Cpus) {
  Machine big;
  for (int i = 0; i < 1536; ++i)
    big.cpu(i, std::to_string(i % 768) + "," + std::to_string(i % 768 + 768), i % 768);
  big.file("/sys/devices/system/cpu/online", "0-1535\n");
  EXPECT_EQ(big.read().allowed.count(), 1536);
  EXPECT_EQ(big.read().big_cores, 768);
  EXPECT_EQ(big.threads(), kMaxThreads);
  EXPECT_EQ(big.affinity("1200-1203").threads(), 4);
}

Teams teams_of(const CpuOptions& options, const Topology& machine, bool may_raise = true) {
  Result<Teams> teams = make_teams(options, machine, [=](int) { return may_raise; });
  EXPECT_TRUE(teams.ok()) << (teams ? "" : teams.error().message);
  return teams ? *teams : Teams{};
}

TEST(Teams, Defaults) {
  Machine m;
  const Topology four = m.plain(4).read();
  const Teams teams = teams_of({}, four);
  EXPECT_EQ(teams.n_threads, 4);
  EXPECT_EQ(teams.n_threads_batch, 4);
  ASSERT_EQ(teams.setups.size(), 1u);
  EXPECT_TRUE(teams.setups[0] == TeamSetup{}) << "nobody is placed without need";
  EXPECT_TRUE(teams.warnings.empty());
  CpuOptions options;
  options.n_threads = 2;
  EXPECT_EQ(teams_of(options, four).n_threads_batch, 2);
  options.n_threads_batch = 3;
  EXPECT_EQ(teams_of(options, four).n_threads_batch, 3);
}

TEST(Teams, LittleCoresAreAvoidedAsASet) {
  Machine m;
  const Topology rk = rk3588(m, true).read();
  CpuOptions options;
  EXPECT_EQ(teams_of(options, rk).setups[0].cpus.text(), "4-7");
  EXPECT_FALSE(teams_of(options, rk).setups[0].strict);
  options.n_threads = 8;
  EXPECT_TRUE(teams_of(options, rk).setups[0].cpus.empty()) << "asked for all: all it gets";
  options.team.cpus = CpuSet::from_list("0-3");
  options.n_threads = 0;
  EXPECT_EQ(teams_of(options, rk).n_threads, 4);
  EXPECT_EQ(teams_of(options, rk).setups[0].cpus.text(), "0-3");
}

TEST(Teams, MasksAndTwins) {
  Machine m;
  const Topology eight = m.plain(8).read();
  CpuOptions options;
  options.team.cpus = CpuSet::from_list("2-4");
  options.team.poll = 0;
  options.team.strict = true;
  Teams teams = teams_of(options, eight);
  EXPECT_EQ(teams.n_threads, 3);
  EXPECT_EQ(teams.n_threads_batch, 3);
  ASSERT_EQ(teams.setups.size(), 1u);
  EXPECT_EQ(teams.setups[0].poll, 0);
  options.batch.cpus = CpuSet::from_list("0-7");
  options.batch.strict = false;
  teams = teams_of(options, eight);
  EXPECT_EQ(teams.n_threads_batch, 8);
  ASSERT_EQ(teams.setups.size(), 2u);
  EXPECT_EQ(teams.batch_setup(), 1);
  EXPECT_EQ(teams.setups[1].poll, 0) << "as for single tokens";
  EXPECT_FALSE(teams.setups[1].strict);
  EXPECT_TRUE(teams.warnings.empty());
  CpuOptions prompts;
  prompts.batch.prio = -1;
  EXPECT_EQ(teams_of(prompts, eight).setups[1].nice, 10);
  EXPECT_EQ(teams_of(prompts, eight).setups[0].nice, 0);
}

TEST(Teams, Warnings) {
  Machine m;
  Topology two = m.plain(2).read();
  const auto only = [&](const CpuOptions& options, bool may_raise) {
    const Teams teams = teams_of(options, two, may_raise);
    EXPECT_EQ(teams.warnings.size(), 1u);
    return teams.warnings.empty() ? "" : teams.warnings[0];
  };
  CpuOptions options;
  options.n_threads = 64;
  EXPECT_EQ(only(options, true), "64 threads share 2 CPUs: fewer threads would be faster");
  options.n_threads = 0;
  options.team.cpus = CpuSet::from_list("1,5");
  EXPECT_EQ(only(options, true),
            "the CPU mask or range names the CPUs 1,5, of which this process may use 1");
  options.team = {};
  options.team.prio = 2;
  EXPECT_TRUE(teams_of(options, two, true).warnings.empty());
  EXPECT_EQ(teams_of(options, two, true).setups[0].nice, -10);
  EXPECT_NE(only(options, false).find("no permission for --prio 2"), std::string::npos);
  EXPECT_EQ(teams_of(options, two, false).setups[0].nice, 0);
  CpuOptions prompts;
  prompts.batch.prio = -1;
  EXPECT_TRUE(teams_of(prompts, two, true).warnings.empty());
  EXPECT_EQ(only(prompts, false),
            "no permission to change priorities back and forth: --prio-batch has no effect");
  EXPECT_EQ(teams_of(prompts, two, false).setups.size(), 1u);
  two.quota = 1;
  options.team = {};
  options.n_threads = 2;
  EXPECT_EQ(only(options, true),
            "2 threads share the time of 1.000 CPUs that the cgroup grants: fewer threads would be "
            "faster");
}

TEST(Teams, Refusals) {
  Machine m;
  const Topology two = m.plain(2).read();
  const auto why = [&](const CpuOptions& options) {
    Result<Teams> teams = make_teams(options, two, [](int) { return true; });
    return teams ? "accepted" : teams.error().message;
  };
  CpuOptions options;
  options.n_threads = 10000;
  EXPECT_EQ(why(options), "threads: got 10000, expected 1 to 256");
  options.n_threads = -5;
  EXPECT_EQ(why(options), "threads: got -5, expected 1 to 256");
  options.n_threads = 0;
  options.team.cpus = CpuSet::from_list("4-7");
  EXPECT_EQ(why(options),
            "the CPU mask or range names the CPUs 4-7, but this process may only use 0-1");
  options.team.cpus = {};
  options.batch.cpus = CpuSet::from_list("2000");
  EXPECT_EQ(why(options),
            "the CPU mask or range names the CPUs 2000, but this process may only use 0-1");
}

TEST(Topology, ThisMachine) {
  EXPECT_GE(default_threads(), 1);
  EXPECT_LE(default_threads(), this_machine().allowed.count());
  EXPECT_EQ(this_machine().allowed, CpuSet::of_this_thread());
}

}  // namespace
}  // namespace bantam
