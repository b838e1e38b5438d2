// How the engine gets a CPU backend and the facts about this CPU. The only header of src/cpu that
// src/engine may include.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/cpu_set.h"
#include "base/result.h"

namespace bantam {

// What the user wants of a team of threads; what is not said keeps its default.
struct TeamWish {
  CpuSet cpus;                 // empty: not said
  std::optional<bool> strict;  // each thread on one CPU of them
  std::optional<int> prio;     // -1 low, 0 as the process, 1 medium, 2 high, 3 highest
  std::optional<int> poll;     // 0..100, 50: 50 us of spinning before sleep
};

struct CpuOptions {
  int n_threads = 0;        // 0: as many as `team` names CPUs, else default_threads()
  int n_threads_batch = 0;  // 0: as many as `batch` names CPUs, else n_threads
  std::string isa;          // empty: BANTAM_ISA or the best
  TeamWish team;
  TeamWish batch;  // for prompts; what is not said is as in `team`
};

// Refuses unknown instruction sets, thread counts outside 1..kMaxThreads, more threads than can be
// started and sets of CPUs of which this process may use none. warnings gets one sentence for each
// wish that can only be met in part.
Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuOptions& options,
                                                  std::vector<std::string>* warnings = nullptr);

// Physical big cores allowed by affinity and by the cgroup's quota, at least 1.
int default_threads();
std::string cpu_name();
std::string isa_names();  // supported here, space separated
// With the threads, CPUs and priorities of each team, measured once when both are alike. The
// options are those that a backend was made of.
TeamSpeeds measure_cpu(const CpuOptions& options);

}  // namespace bantam
