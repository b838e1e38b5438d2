#include "engine/slot_jobs.h"

#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace bantam {

namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

Error nobody_waits() { return {ErrorKind::cancelled, "the client left"}; }
Error engine_ends() { return {ErrorKind::cancelled, "the engine ends"}; }
Error bad_values(int slot) {
  return refused("slot " + std::to_string(slot) +
                 " may hold values that are no numbers, as a request that began alike has failed: "
                 "it is not saved; erase it, or let it answer another request first");
}

}  // namespace

SlotJobs::SlotJobs(LoadedModel& model, Scheduler& scheduler, std::function<void()> wake)
    : model_(model), scheduler_(scheduler), wake_(std::move(wake)) {}

SlotJobs::~SlotJobs() { ending_ = true; }

Status SlotJobs::start() {
  if (!model_.model().options().saves) return Ok{};
  Result<std::unique_ptr<Worker>> thread = Worker::start("the thread that saves slots");
  if (!thread) return thread.error();
  thread_ = std::move(*thread);
  return Ok{};
}

Status SlotJobs::add(SlotJob job) {
  const int most = 2 * static_cast<int>(scheduler_.slots().size()) + 16;
  int n_before = 0;
  {
    const std::lock_guard lock(mutex_);
    n_before = n_jobs_;
    if (n_before < most) {
      ++n_jobs_;
      mail_.push_back(std::move(job));
    }
  }
  // Also when there is no room: jobs that nobody waits for any more are then seen and make some.
  wake_();
  if (n_before < most) return Ok{};
  return Error{ErrorKind::busy,
               std::to_string(n_before) + " changes of slots are waiting already; try again later"};
}

// Jobs of one slot keep their order. A job for the thread of the files holds no slot while it only
// waits for another's file.
bool SlotJobs::can_begin(Waiting job) const {
  const Scheduler::Slot& slot = scheduler_.slots()[static_cast<size_t>(job->slot)];
  if (slot.phase != Scheduler::Slot::Phase::idle) return false;
  if (job->action != SlotAction::erase && file_) return false;
  return std::none_of(waiting_.begin(), job,
                      [job](const SlotJob& earlier) { return earlier.slot == job->slot; });
}

bool SlotJobs::ready() const {
  for (Waiting job = waiting_.begin(); job != waiting_.end(); ++job) {
    if (can_begin(job) || (job->given_up && job->given_up())) return true;
  }
  const std::lock_guard lock(mutex_);
  return !mail_.empty() || returned_;
}

std::vector<EndedSlotJob> SlotJobs::run() {
  std::vector<EndedSlotJob> ended;
  bool returned = false;
  {
    const std::lock_guard lock(mutex_);
    std::move(mail_.begin(), mail_.end(), std::back_inserter(waiting_));
    mail_.clear();
    returned = std::exchange(returned_, false);
  }
  const int let_go = returned ? back(ended) : -1;
  for (auto job = waiting_.begin(); job != waiting_.end();) {
    // First a request may have the slot; the next run() need not know.
    const bool yields =
        job->action != SlotAction::erase && job->slot == let_go && scheduler_.n_queued() > 0;
    if (job->given_up && job->given_up()) {
      end(*job, nobody_waits(), ended);
    } else if (!yields && can_begin(job)) {
      begin(std::move(*job), ended);
    } else {
      ++job;
      continue;
    }
    job = waiting_.erase(job);
  }
  return ended;
}

void SlotJobs::failed() {
  // What a slot held before it is restored does not matter.
  if (!file_ || file_->job.action != SlotAction::save) return;
  if (scheduler_.slots()[static_cast<size_t>(file_->job.slot)].bad) file_->bad = true;
}

void SlotJobs::begin(SlotJob job, std::vector<EndedSlotJob>& ended) {
  const Scheduler::Slot& slot = scheduler_.slots()[static_cast<size_t>(job.slot)];
  const std::vector<int32_t>& cached = slot.cached;
  const int n_cached = static_cast<int>(cached.size());
  if (job.action == SlotAction::erase) {
    model_.truncate(job.slot, 0);
    scheduler_.refill(job.slot, {});
    return end(job, SlotDone{job.slot, n_cached}, ended);
  }
  if (job.action == SlotAction::save && cached.empty()) {
    return end(job,
               refused("slot " + std::to_string(job.slot) + " is empty: there is nothing to save"),
               ended);
  }
  if (job.action == SlotAction::save && slot.bad) return end(job, bad_values(job.slot), ended);
  file_ = std::make_unique<FileJob>();
  if (job.action == SlotAction::save) file_->tokens = cached;
  file_->job = std::move(job);
  scheduler_.hold(file_->job.slot);
  post(*file_);
}

void SlotJobs::post(FileJob& file) {
  CHECK(thread_ != nullptr);
  thread_->post([this, &file] {
    work(file);
    {
      const std::lock_guard lock(mutex_);
      returned_ = true;
    }
    wake_();
  });
}

bool SlotJobs::go_on(const FileJob& file) const {
  return !ending_ && !file.bad && !(file.job.given_up && file.job.given_up());
}

Error SlotJobs::gave_up() const { return ending_ ? engine_ends() : nobody_waits(); }

// One step of a job, on the thread of the files: what may take as long as the disk does.
void SlotJobs::work(FileJob& file) {
  const SlotJob& job = file.job;
  if (!file.started) file.started = Clock::now();
  if (!go_on(file)) {
    file.status = gave_up();
    return;
  }
  Model& model = model_.model();
  const KeepGoing keep_going = [&] { return go_on(file); };
  if (job.action == SlotAction::save) {
    const Result<int64_t> written = model.save(job.slot, file.tokens, job.path, keep_going);
    file.done = true;
    if (!written) {
      file.status = written.error();
    } else {
      file.n_bytes = *written;
    }
  } else if (!file.saved) {
    Result<SavedSequence> saved = model.open_saved(job.path, keep_going);
    if (!saved) {
      file.status = saved.error();
    } else {
      file.saved.emplace(std::move(*saved));
    }
  } else {
    file.status = model.fill(job.slot, *file.saved, keep_going);
    file.done = true;
  }
}

// From the thread of the files: the next step, or the end.
int SlotJobs::back(std::vector<EndedSlotJob>& ended) {
  const int slot = file_->job.slot;
  if (file_->status && !file_->done && !ending_) {
    // The file is good. Only now what the slot held goes, also for those who would begin with it.
    scheduler_.refill(slot, {});
    model_.model().make_room(slot, *file_->saved);
    file_->has_room = true;
    post(*file_);
    return -1;
  }
  end(file_->job, settle(*file_), ended);
  file_.reset();
  return slot;
}

// Gives the slot back as the job leaves it.
Result<SlotDone> SlotJobs::settle(FileJob& file) {
  const int slot = file.job.slot;
  scheduler_.let_go(slot);
  const bool whole = file.status.ok() && file.done;
  if (file.has_room && !whole) model_.truncate(slot, 0);
  if (file.job.action == SlotAction::save && scheduler_.slots()[static_cast<size_t>(slot)].bad) {
    // Known only after the file got its name: whoever restored it would not be warned.
    if (whole) ::unlink(file.job.path.c_str());
    return bad_values(slot);
  }
  if (!file.status) {
    const bool given_up = file.status.error().kind == ErrorKind::cancelled;
    return given_up && ending_ ? engine_ends() : file.status.error();
  }
  if (!whole) return engine_ends();
  SlotDone done{slot, static_cast<int>(file.tokens.size()), file.n_bytes};
  if (file.job.action == SlotAction::restore) {
    done.n_tokens = static_cast<int>(file.saved->tokens().size());
    done.n_bytes = file.saved->n_bytes();
    scheduler_.refill(slot, file.saved->tokens(), file.saved->n_exact());
  }
  done.ms = ms_since(*file.started);
  return done;
}

void SlotJobs::end(const SlotJob& job, Result<SlotDone> result, std::vector<EndedSlotJob>& ended) {
  {
    const std::lock_guard lock(mutex_);
    --n_jobs_;
  }
  ended.push_back({job.sink, std::move(result)});
}

std::vector<EndedSlotJob> SlotJobs::end_all() {
  ending_ = true;
  thread_.reset();
  std::vector<EndedSlotJob> ended;
  if (file_) end(file_->job, settle(*file_), ended);
  file_.reset();
  const std::lock_guard lock(mutex_);
  std::move(mail_.begin(), mail_.end(), std::back_inserter(waiting_));
  for (const SlotJob& job : waiting_) ended.push_back({job.sink, engine_ends()});
  n_jobs_ = 0;
  mail_.clear();
  waiting_.clear();
  return ended;
}

}  // namespace bantam
