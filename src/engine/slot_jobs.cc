#include "engine/slot_jobs.h"

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

bool SlotJobs::can_begin(const SlotJob& job) const {
  const Scheduler::Slot& slot = scheduler_.slots()[static_cast<size_t>(job.slot)];
  return slot.phase == Scheduler::Slot::Phase::idle;
}

bool SlotJobs::ready() const {
  const auto moves = [this](const SlotJob& job) {
    return can_begin(job) || (job.given_up && job.given_up());
  };
  if (std::any_of(waiting_.begin(), waiting_.end(), moves)) return true;
  const std::lock_guard lock(mutex_);
  return !mail_.empty() || !returned_.empty();
}

std::vector<EndedSlotJob> SlotJobs::run() {
  std::vector<EndedSlotJob> ended;
  std::deque<FileJob*> returned;
  {
    const std::lock_guard lock(mutex_);
    std::move(mail_.begin(), mail_.end(), std::back_inserter(waiting_));
    mail_.clear();
    returned.swap(returned_);
  }
  for (FileJob* file : returned) back(file, ended);
  // Jobs of one slot keep their order: while one cannot begin, none behind it can.
  for (auto job = waiting_.begin(); job != waiting_.end();) {
    if (job->given_up && job->given_up()) {
      end(*job, nobody_waits(), ended);
    } else if (can_begin(*job)) {
      begin(std::move(*job), ended);
    } else {
      ++job;
      continue;
    }
    job = waiting_.erase(job);
  }
  return ended;
}

void SlotJobs::begin(SlotJob job, std::vector<EndedSlotJob>& ended) {
  const std::vector<int32_t>& cached = scheduler_.slots()[static_cast<size_t>(job.slot)].cached;
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
  auto file = std::make_unique<FileJob>();
  if (job.action == SlotAction::save) file->tokens = cached;
  file->job = std::move(job);
  scheduler_.hold(file->job.slot);
  post(*file);
  files_.push_back(std::move(file));
}

void SlotJobs::post(FileJob& file) {
  CHECK(thread_ != nullptr);
  thread_->post([this, &file] {
    work(file);
    {
      const std::lock_guard lock(mutex_);
      returned_.push_back(&file);
    }
    wake_();
  });
}

bool SlotJobs::go_on(const SlotJob& job) const {
  return !ending_ && !(job.given_up && job.given_up());
}

// One step of a job, on the thread of the files: what may take as long as the disk does.
void SlotJobs::work(FileJob& file) {
  const SlotJob& job = file.job;
  if (!file.started) file.started = Clock::now();
  if (!go_on(job)) {
    file.status = nobody_waits();
    return;
  }
  Model& model = model_.model();
  const KeepGoing keep_going = [&] { return go_on(job); };
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
void SlotJobs::back(FileJob* file, std::vector<EndedSlotJob>& ended) {
  const int slot = file->job.slot;
  if (file->status && !file->done && !ending_) {
    // The file is good. Only now what the slot held goes, also for those who would begin with it.
    scheduler_.refill(slot, {});
    model_.model().make_room(slot, *file->saved);
    file->has_room = true;
    return post(*file);
  }
  end(file->job, settle(*file), ended);
  std::erase_if(files_, [file](const auto& one) { return one.get() == file; });
}

// Gives the slot back as the job leaves it.
Result<SlotDone> SlotJobs::settle(FileJob& file) {
  const int slot = file.job.slot;
  scheduler_.let_go(slot);
  const bool whole = file.status.ok() && file.done;
  if (file.has_room && !whole) model_.truncate(slot, 0);
  if (!file.status) return file.status.error();
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
  for (const auto& file : files_) end(file->job, settle(*file), ended);
  files_.clear();
  const std::lock_guard lock(mutex_);
  std::move(mail_.begin(), mail_.end(), std::back_inserter(waiting_));
  for (const SlotJob& job : waiting_) ended.push_back({job.sink, engine_ends()});
  n_jobs_ = 0;
  mail_.clear();
  waiting_.clear();
  return ended;
}

}  // namespace bantam
