// What is asked of a slot's cache besides requests: saving, restoring and erasing it. Owns the jobs
// that wait for their slots, and the thread that writes and reads their files while the engine goes
// on, one at a time. Such a slot is held meanwhile: its pages stay as they are without a copy, and
// need none, since requests for it wait and whoever shares a page takes a copy before writing.
// Refuses more jobs than a bound, and to save what may hold values that are no numbers.
//
// All but add() is for the engine's thread.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/thread.h"
#include "engine/loaded_model.h"
#include "engine/scheduler.h"

namespace bantam {

// What is done to a slot's cache between steps, once the slot is idle.
enum class SlotAction { save, restore, erase };

struct SlotDone {
  int slot = 0;
  int n_tokens = 0;     // saved, restored or erased
  int64_t n_bytes = 0;  // of the file
  double ms = 0;        // from when its file's turn came
};

using SlotSink = std::function<void(const Result<SlotDone>&)>;
// True once nobody waits for the answer. Asked while the job waits, and by the thread of the files
// before each piece of one; must not call the engine. May be empty.
using GivenUp = std::function<bool()>;

struct SlotJob {
  SlotAction action = SlotAction::save;
  int slot = 0;
  std::string path;
  SlotSink sink;
  GivenUp given_up;
};

struct EndedSlotJob {
  SlotSink sink;
  Result<SlotDone> result;
};

class SlotJobs {
 public:
  // wake: called on any thread when ready() may have become true.
  SlotJobs(LoadedModel& model, Scheduler& scheduler, std::function<void()> wake);
  ~SlotJobs();
  // Takes the thread of the files, if slots will be saved at all.
  Status start();

  // Any thread. Refusal: busy.
  Status add(SlotJob job);
  bool ready() const;
  // Begins what can begin, ends what is done; before a waiting request takes the slot, but not
  // twice in a row.
  std::vector<EndedSlotJob> run();
  // After Scheduler::fail(): what is being saved may be bad.
  void failed();
  // Ends all. A file that is not whole yet is given up.
  std::vector<EndedSlotJob> end_all();

 private:
  // A job with its slot held, at the thread of the files or on its way back.
  struct FileJob {
    SlotJob job;
    std::vector<int32_t> tokens;         // to be saved
    std::optional<SavedSequence> saved;  // to be restored, once checked
    Status status = Ok{};
    int64_t n_bytes = 0;
    bool has_room = false;         // restore: the slot's pages are the file's
    bool done = false;             // the file's part is over
    std::atomic<bool> bad{false};  // to be saved: not worth it any more
    std::optional<std::chrono::steady_clock::time_point> started;
  };

  using Waiting = std::deque<SlotJob>::const_iterator;
  bool can_begin(Waiting job) const;
  void begin(SlotJob job, std::vector<EndedSlotJob>& ended);
  void post(FileJob& file);
  void work(FileJob& file);
  bool go_on(const FileJob& file) const;
  Error gave_up() const;
  // The slot that has been let go, or -1.
  int back(std::vector<EndedSlotJob>& ended);
  Result<SlotDone> settle(FileJob& file);
  void end(const SlotJob& job, Result<SlotDone> result, std::vector<EndedSlotJob>& ended);

  LoadedModel& model_;
  Scheduler& scheduler_;
  std::function<void()> wake_;
  std::deque<SlotJob> waiting_;    // for their slots, or for the thread of the files
  std::unique_ptr<FileJob> file_;  // its slot is held
  std::atomic<bool> ending_{false};

  mutable std::mutex mutex_;
  std::deque<SlotJob> mail_;        // guarded by mutex_
  bool returned_ = false;           // guarded by mutex_: a step of file_ is over
  int n_jobs_ = 0;                  // guarded by mutex_: added and not yet ended
  std::unique_ptr<Worker> thread_;  // the last member: it uses the others
};

}  // namespace bantam
