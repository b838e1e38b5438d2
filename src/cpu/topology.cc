#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <string>
#include <utility>

#include "base/limits.h"
#include "cpu/factory.h"
#include "cpu/isa.h"

namespace bantam {

namespace {

int read_int(const std::string& path, int missing) {
  std::ifstream file(path);
  int value = missing;
  return file >> value ? value : missing;
}

// Distinct (package, core) pairs among the CPUs this process may run on.
int physical_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return 1;
  std::set<std::pair<int, int>> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const std::string base = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    const int core = read_int(base + "core_id", -1);
    const int package = read_int(base + "physical_package_id", 0);
    // Without topology files every CPU counts as a core of its own.
    cores.insert(core < 0 ? std::pair{-1, cpu} : std::pair{package, core});
  }
  return std::max<int>(1, static_cast<int>(cores.size()));
}

// CPUs granted by the cgroup v2 quota, rounded up; a large number when unlimited.
int quota_cpus() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (!(file >> quota >> period) || period <= 0) return kMaxThreads;
  return std::max(1, static_cast<int>(std::ceil(quota / period)));
}

}  // namespace

int default_threads() { return std::min({physical_cores(), quota_cpus(), kMaxThreads}); }

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    const bool named = line.starts_with("model name") || line.starts_with("Model");
    const size_t colon = line.find(": ");
    if (named && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown CPU";
}

std::string isa_names() {
  std::string names;
  for (const Isa& isa : all_isas()) {
    if (!isa.supported()) continue;
    if (!names.empty()) names += ' ';
    names += isa.name;
  }
  return names;
}

}  // namespace bantam
