#include "cpu/teams.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/limits.h"

namespace bantam {

namespace {

// Nice values of the levels -1 (low) to 3 (highest).
constexpr int kNice[] = {10, 0, -5, -10, -20};

struct Team {
  int n_threads = 1;
  TeamSetup setup;
};

// The new limit is tried on this thread; going back down is always allowed.
bool system_lets_raise(int nice) {
  const id_t self = static_cast<id_t>(::syscall(SYS_gettid));
  const int before = ::getpriority(PRIO_PROCESS, self);
  if (::setpriority(PRIO_PROCESS, self, std::max(-20, before + nice)) != 0) return false;
  ::setpriority(PRIO_PROCESS, self, before);
  return true;
}

TeamWish joined(const TeamWish& batch, const TeamWish& team) {
  TeamWish all = batch;
  if (all.cpus.empty()) all.cpus = team.cpus;
  if (!all.strict) all.strict = team.strict;
  if (!all.prio) all.prio = team.prio;
  if (!all.poll) all.poll = team.poll;
  return all;
}

// n_threads 0: chosen.
Result<Team> make_team(const TeamWish& wish, int n_threads, const Topology& machine) {
  Team team;
  TeamSetup& setup = team.setup;
  setup.cpus = wish.cpus & machine.allowed;
  if (setup.cpus.empty() && !wish.cpus.empty()) {
    return refused("the CPU mask or range names the CPUs " + wish.cpus.text().substr(0, 80) +
                   ", but this process may only use " + machine.allowed.text().substr(0, 80));
  }
  const int chosen =
      setup.cpus.empty() ? machine.n_threads() : std::clamp(setup.cpus.count(), 1, kMaxThreads);
  team.n_threads = n_threads == 0 ? chosen : n_threads;
  if (team.n_threads < 1 || team.n_threads > kMaxThreads) {
    return refused("threads: got " + std::to_string(team.n_threads) + ", expected 1 to " +
                   std::to_string(kMaxThreads));
  }
  // Nobody waits for a thread on a little core while the big ones suffice.
  const bool has_little = !(machine.big == machine.allowed);
  if (setup.cpus.empty() && has_little && team.n_threads <= machine.big.count()) {
    setup.cpus = machine.big;
  }
  setup.strict = wish.strict.value_or(false);
  if (setup.strict && setup.cpus.empty()) setup.cpus = machine.allowed;
  setup.nice = kNice[std::clamp(wish.prio.value_or(0), -1, 3) + 1];
  setup.poll = std::clamp(wish.poll.value_or(50), 0, 100);
  setup.granted = machine.quota;
  return team;
}

void add_once(std::vector<std::string>& lines, std::string line) {
  if (std::find(lines.begin(), lines.end(), line) == lines.end()) lines.push_back(std::move(line));
}

// What can only be met in part.
void check_team(Team& team, const TeamWish& wish, const Topology& machine,
                const std::function<bool(int)>& may_raise, std::vector<std::string>& warnings) {
  TeamSetup& setup = team.setup;
  const CpuSet& cpus = setup.cpus.empty() ? machine.allowed : setup.cpus;
  if (!wish.cpus.empty() && !(wish.cpus == setup.cpus)) {
    add_once(warnings, "the CPU mask or range names the CPUs " + wish.cpus.text().substr(0, 80) +
                           ", of which this process may use " + setup.cpus.text().substr(0, 80));
  }
  if (team.n_threads > cpus.count()) {
    add_once(warnings, std::to_string(team.n_threads) + " threads share " +
                           std::to_string(cpus.count()) + (cpus.count() == 1 ? " CPU" : " CPUs") +
                           ": fewer threads would be faster");
  } else if (machine.quota > 0 && team.n_threads >= machine.quota + 1) {
    add_once(warnings, std::to_string(team.n_threads) + " threads share the time of " +
                           std::to_string(machine.quota).substr(0, 5) +
                           " CPUs that the cgroup grants: fewer threads would be faster");
  }
  if (setup.nice < 0 && !may_raise(setup.nice)) {
    add_once(warnings, "no permission for --prio " + std::to_string(*wish.prio) +
                           ": the threads keep their priority (needs CAP_SYS_NICE or RLIMIT_NICE)");
    setup.nice = 0;
  }
}

}  // namespace

Result<Teams> make_teams(const CpuOptions& options, const Topology& machine,
                         const std::function<bool(int)>& may_raise) {
  const TeamWish batch_wish = joined(options.batch, options.team);
  Result<Team> team = make_team(options.team, options.n_threads, machine);
  if (!team) return team.error();
  const bool own_cpus = !options.batch.cpus.empty();
  const int n_batch =
      options.n_threads_batch == 0 && !own_cpus ? team->n_threads : options.n_threads_batch;
  Result<Team> batch = make_team(batch_wish, n_batch, machine);
  if (!batch) return batch.error();
  Teams teams;
  check_team(*team, options.team, machine, may_raise, teams.warnings);
  check_team(*batch, batch_wish, machine, may_raise, teams.warnings);
  // Whoever lowered itself for a prompt must come back up for the answer.
  if (batch->setup.nice != team->setup.nice && !may_raise(-1)) {
    add_once(teams.warnings,
             "no permission to change priorities back and forth: --prio-batch has no effect");
    batch->setup.nice = team->setup.nice;
  }
  teams.n_threads = team->n_threads;
  teams.n_threads_batch = batch->n_threads;
  teams.setups.push_back(team->setup);
  if (!(batch->setup == team->setup)) teams.setups.push_back(batch->setup);
  return teams;
}

Result<Teams> make_teams(const CpuOptions& options) {
  return make_teams(options, this_machine(), system_lets_raise);
}

}  // namespace bantam
