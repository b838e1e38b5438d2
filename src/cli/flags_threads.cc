// How many threads compute, where, how urgently, and how long they spin: llama.cpp's flags, each
// with a twin for prompts. What is not said for prompts is as for single tokens.
#include "base/limits.h"
#include "cli/flags.h"

namespace bantam {

namespace {

TeamWish& wish(CliOptions& o, bool batch) { return batch ? o.engine.team_batch : o.engine.team; }

// 0 and -1 are llama.cpp's ways to say "choose".
Status set_threads(CliOptions& o, std::string_view value, bool batch) {
  if (o.command == Command::bench && !batch) {
    if (value == "-1") value = "0";
    if (Result<std::vector<int>> list = parse_list("", std::string(value), 0, kMaxThreads); !list)
      return list.error();
    o.list_threads = std::string(value);
    return Ok{};
  }
  Result<int64_t> n = value == "-1" ? Result<int64_t>(0) : to_integer(value, 0, kMaxThreads);
  if (!n) return n.error();
  (batch ? o.engine.n_threads_batch : o.engine.n_threads) = static_cast<int>(*n);
  return Ok{};
}

// Masks and ranges add up.
Status set_cpus(CliOptions& o, std::string_view value, bool batch, bool range) {
  Result<CpuSet> cpus = range ? CpuSet::from_range(value) : CpuSet::from_mask(value);
  if (!cpus) return cpus.error();
  wish(o, batch).cpus = wish(o, batch).cpus | *cpus;
  return Ok{};
}

Status set_strict(CliOptions& o, std::string_view value, bool batch) {
  Result<int64_t> n = to_integer(value, 0, 1);
  if (!n) return n.error();
  wish(o, batch).strict = *n == 1;
  return Ok{};
}

Status set_prio(CliOptions& o, std::string_view value, bool batch) {
  Result<int64_t> n = to_integer(value, -1, 3);
  if (!n) return n.error();
  wish(o, batch).prio = static_cast<int>(*n);
  return Ok{};
}

Status set_poll(CliOptions& o, std::string_view value, bool batch) {
  Result<int64_t> n = to_integer(value, 0, 100);
  if (!n) return n.error();
  wish(o, batch).poll = static_cast<int>(*n);
  return Ok{};
}

}  // namespace

void add_thread_flags(std::vector<Flag>& rows) {
  const auto add = [&](std::vector<const char*> names, const char* env, const char* value,
                       Setter set, const char* help) {
    rows.push_back({std::move(names), env, value, kAll, std::move(set), help});
  };
  const auto of = [](Status (*set)(CliOptions&, std::string_view, bool), bool batch) -> Setter {
    return [=](CliOptions& o, std::string_view value) { return set(o, value, batch); };
  };
  const auto cpus = [](bool batch, bool range) -> Setter {
    return [=](CliOptions& o, std::string_view value) { return set_cpus(o, value, batch, range); };
  };
  add({"-t", "--threads"}, "LLAMA_ARG_THREADS", "N", of(set_threads, false),
      "threads for single tokens (default, also 0 and -1: physical big cores, or the CPUs of -C)");
  add({"-tb", "--threads-batch"}, "LLAMA_ARG_THREADS_BATCH", "N", of(set_threads, true),
      "threads for prompts (default: as -t, or the CPUs of -Cb)");
  add({"-C", "--cpu-mask"}, "", "MASK", cpus(false, false),
      "CPUs of the threads, hexadecimal: 0xF0 is CPUs 4 to 7; adds to -Cr");
  add({"-Cr", "--cpu-range"}, "", "LO-HI", cpus(false, true), "CPUs of the threads; adds to -C");
  add({"--cpu-strict"}, "", "0|1", of(set_strict, false), "one thread on one CPU (0)");
  add({"--prio"}, "", "N", of(set_prio, false),
      "priority: -1 low, 0 as started, 1 medium, 2 high, 3 highest (nice +10, -5, -10, -20)");
  add({"--poll"}, "", "0..100", of(set_poll, false),
      "spinning before a waiting thread sleeps: 0 none, 50 (default) 50 us");
  add({"-Cb", "--cpu-mask-batch"}, "", "MASK", cpus(true, false), "-C for prompts");
  add({"-Crb", "--cpu-range-batch"}, "", "LO-HI", cpus(true, true), "-Cr for prompts");
  add({"--cpu-strict-batch"}, "", "0|1", of(set_strict, true), "--cpu-strict for prompts");
  add({"--prio-batch"}, "", "N", of(set_prio, true), "--prio for prompts");
  add({"--poll-batch"}, "", "0..100", of(set_poll, true), "--poll for prompts");
}

}  // namespace bantam
