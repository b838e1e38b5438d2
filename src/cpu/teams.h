// From the user's wishes and the machine to the two teams of threads: how many, where, how urgent.
// Refuses thread counts outside 1..kMaxThreads and sets without a CPU that may be used.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/thread_pool.h"
#include "cpu/factory.h"
#include "cpu/topology.h"

namespace bantam {

struct Teams {
  int n_threads = 1;  // for single tokens
  int n_threads_batch = 1;
  std::vector<TeamSetup> setups;  // the first, and a second when prompts are computed differently
  std::vector<std::string> warnings;
  int size() const { return n_threads > n_threads_batch ? n_threads : n_threads_batch; }
  int batch_setup() const { return static_cast<int>(setups.size()) - 1; }
};

// may_raise: whether the system lets this process have that (negative) nice value.
Result<Teams> make_teams(const CpuOptions& options, const Topology& machine,
                         const std::function<bool(int nice)>& may_raise);
Result<Teams> make_teams(const CpuOptions& options);  // on this machine

}  // namespace bantam
