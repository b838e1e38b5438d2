// How the engine gets a CPU backend and the facts about this CPU. The only header of src/cpu that
// src/engine may include.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"
#include "base/result.h"

namespace bantam {

struct CpuOptions {
  int n_threads = 0;        // 0: default_threads()
  int n_threads_batch = 0;  // 0: n_threads
  std::string isa;          // empty: BANTAM_ISA or the best
};

// Refuses unknown instruction sets and thread counts outside 1..kMaxThreads.
Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuOptions& options);

// Physical cores allowed by affinity and by the cgroup's quota, at least 1.
int default_threads();
std::string cpu_name();
std::string isa_names();  // supported here, space separated
MachineSpeed measure_cpu(int n_threads, const std::string& isa);

}  // namespace bantam
