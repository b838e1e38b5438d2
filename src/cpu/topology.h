// What the machine grants this process: CPUs, which of them share a core, which cores are big, and
// the cgroup's quota. Every file is read below a root that tests replace. Refuses nothing: missing
// files and nonsense in them count as not said.
#pragma once

#include <string>

#include "base/cpu_set.h"

namespace bantam {

struct TopologySource {
  std::string root;  // before /sys and /proc; empty for the machine itself
  CpuSet affinity;   // of this process
};

struct Topology {
  CpuSet allowed;         // by affinity, and online; at least one CPU
  CpuSet big;             // of these, the CPUs of big cores; all when the cores are alike
  int big_cores = 1;      // physical cores of `big`
  double quota = 0;       // CPUs' worth of time by the tightest cgroup above; 0: no limit
  int n_threads() const;  // the default: big cores within the quota, 1..kMaxThreads
};

Topology read_topology(const TopologySource& source);
const Topology& this_machine();

}  // namespace bantam
