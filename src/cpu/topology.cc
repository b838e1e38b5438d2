#include "cpu/topology.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "cpu/factory.h"
#include "cpu/isa.h"

namespace bantam {

namespace {

// Of the largest capacity, as the kernel scales it: an A55 beside an A76 has about 40 %.
constexpr double kBigCapacity = 0.6;
// Clock rates tell less: cores of one kind differ by a tenth, and little ones are slower per cycle.
constexpr double kBigClock = 0.65;

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// The whole text as one number.
std::optional<int64_t> number(std::string_view text) {
  while (!text.empty() && (text.back() == ' ' || text.back() == '\r')) text.remove_suffix(1);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string cpu_file(const std::string& root, int cpu, const char* name) {
  return root + "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/" + name;
}

// Names a core by numbers that its hardware threads share and no other core has. Core ids alone
// repeat in each cluster of some ARM kernels, so lists of siblings come first.
std::pair<int64_t, int64_t> core_of(const std::string& root, int cpu) {
  for (const char* name : {"topology/core_cpus_list", "topology/thread_siblings_list"}) {
    const CpuSet siblings = CpuSet::from_list(first_line(cpu_file(root, cpu, name)));
    if (siblings.has(cpu)) return {-1, siblings.list().front()};
  }
  const auto core = number(first_line(cpu_file(root, cpu, "topology/core_id")));
  const auto package = number(first_line(cpu_file(root, cpu, "topology/physical_package_id")));
  if (!core || *core < 0) return {-1, cpu};
  return {package && *package >= 0 ? *package : 0, *core};
}

// The CPUs whose value is at least that share of the largest; all unless each has a value.
CpuSet largest(const std::string& root, const CpuSet& cpus, const char* name, double share) {
  std::vector<std::pair<int, int64_t>> values;
  int64_t most = 0;
  for (const int cpu : cpus.list()) {
    const auto value = number(first_line(cpu_file(root, cpu, name)));
    if (!value || *value <= 0) return cpus;
    values.emplace_back(cpu, *value);
    most = std::max(most, *value);
  }
  CpuSet kept;
  for (const auto& [cpu, value] : values) {
    if (static_cast<double>(value) >= share * static_cast<double>(most)) kept.add(cpu);
  }
  return kept;
}

CpuSet big_cpus(const std::string& root, const CpuSet& allowed) {
  const CpuSet capable = largest(root, allowed, "cpu_capacity", kBigCapacity);
  if (!(capable == allowed)) return capable;
  // Intel's hybrids name their big cores.
  const CpuSet named = CpuSet::from_list(first_line(root + "/sys/devices/cpu_core/cpus")) & allowed;
  if (!named.empty()) return named;
  return largest(root, allowed, "cpufreq/cpuinfo_max_freq", kBigClock);
}

// CPUs' worth of time in one folder of cgroup v2 ("150000 100000", "max 100000") or v1.
std::optional<double> quota_in(const std::string& folder) {
  std::istringstream line(first_line(folder + "/cpu.max"));
  std::string quota, period;
  if (!(line >> quota >> period)) {
    quota = first_line(folder + "/cpu.cfs_quota_us");
    period = first_line(folder + "/cpu.cfs_period_us");
  }
  const auto q = number(quota), p = number(period);
  if (!q || !p || *q <= 0 || *p <= 0) return std::nullopt;
  return static_cast<double>(*q) / static_cast<double>(*p);
}

struct Cgroup {
  std::string path;
  std::vector<const char*> mounts;  // where its tree may be
};

// Lines of /proc/self/cgroup: "0::/a/b" (v2) and "4:cpu,cpuacct:/a/b" (v1).
std::vector<Cgroup> cgroups(const std::string& root) {
  const std::vector<const char*> v2 = {"", "/unified"},
                                 v1 = {"/cpu", "/cpu,cpuacct", "/cpuacct,cpu"};
  // The trees' roots count in any case: containers find their own group there.
  std::vector<Cgroup> groups = {{"", v2}, {"", v1}};
  std::ifstream file(root + "/proc/self/cgroup");
  std::string line;
  while (std::getline(file, line)) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string names = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    // A path that climbs out of the visible tree does not say where in it we are.
    if (path.find("/..") != std::string::npos) continue;
    if (names == ",,") groups.push_back({path, v2});
    if (names.find(",cpu,") != std::string::npos) groups.push_back({path, v1});
  }
  return groups;
}

double tightest_quota(const std::string& root) {
  double least = 0;
  for (const Cgroup& group : cgroups(root)) {
    for (std::string path = group.path;; path.resize(path.find_last_of('/'))) {
      for (const char* mount : group.mounts) {
        const auto quota = quota_in(root + "/sys/fs/cgroup" + mount + path);
        if (quota && (least == 0 || *quota < least)) least = *quota;
      }
      if (path.find('/') == std::string::npos) break;
    }
  }
  return least;
}

int cores_of(const std::string& root, const CpuSet& cpus) {
  std::set<std::pair<int64_t, int64_t>> cores;
  for (const int cpu : cpus.list()) cores.insert(core_of(root, cpu));
  return static_cast<int>(cores.size());
}

}  // namespace

int Topology::n_threads() const {
  const double granted = quota > 0 ? std::ceil(quota) : kMaxThreads;
  return static_cast<int>(std::clamp<double>(std::min<double>(big_cores, granted), 1, kMaxThreads));
}

Topology read_topology(const TopologySource& source) {
  const CpuSet online =
      CpuSet::from_list(first_line(source.root + "/sys/devices/system/cpu/online"));
  Topology found;
  found.allowed = source.affinity & online;
  if (found.allowed.empty()) found.allowed = source.affinity.empty() ? online : source.affinity;
  if (found.allowed.empty()) found.allowed.add(0);
  found.big = big_cpus(source.root, found.allowed);
  found.big_cores = cores_of(source.root, found.big);
  found.quota = tightest_quota(source.root);
  return found;
}

const Topology& this_machine() {
  static const Topology machine = read_topology({"", CpuSet::of_process()});
  return machine;
}

int default_threads() { return this_machine().n_threads(); }

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
