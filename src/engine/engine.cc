#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <utility>

#include "base/limits.h"
#include "base/thread.h"
#include "engine/scheduler.h"
#include "engine/slot_jobs.h"
#include "engine/stop.h"
#include "text/utf8_stream.h"

namespace bantam {

namespace {

using Clock = std::chrono::steady_clock;
constexpr double kStepMs =
    250.0;  // a prompt chunk is sized to this, so that a cancel is seen in time

double ms_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double, std::milli>(b - a).count();
}

// A request on the engine thread.
struct Running {
  Running(GenRequest r, GenSink s, uint64_t seed)
      : request(std::move(r)),
        sink(std::move(s)),
        sampler(request.sampling, seed),
        stop(request.stop) {}

  GenRequest request;
  GenSink sink;
  Sampler sampler;
  StopMatcher stop;
  Utf8Stream utf8;
  std::vector<int32_t> held_tokens;  // drawn, their text not yet shown
  std::vector<TokenProb> held_probs;
  Timings timings;
  Clock::time_point started{};
  Clock::time_point prompt_done{};
  bool begun = false;
};

}  // namespace

struct Engine::Impl {
  Impl(LoadedModel& loaded, int max_queue, std::function<void(const std::string&)> log)
      : model(loaded),
        scheduler(loaded.report().n_slots, loaded.report().n_ctx, max_queue,
                  loaded.model().options().shifts),
        slot_jobs(loaded, scheduler,
                  [this] {
                    { const std::lock_guard lock(mutex); }
                    wake.notify_all();
                  }),
        note(std::move(log)),
        // Few rows first: how long one takes on this machine is not known yet.
        row_budget(std::min(8, loaded.model().options().max_rows)) {
    const Tokenizer& tokenizer = loaded.tokenizer();
    for (int32_t token = 0; token < tokenizer.n_vocab(); ++token) {
      if (tokenizer.is_end(token)) end_tokens.push_back(token);
    }
  }

  void loop();
  void take_mail();
  void begin(uint64_t id, GenRequest request, GenSink sink);
  void end(uint64_t id, StopReason reason);
  void change_cache(const StepPlan& plan);
  void note_shift(const CacheChange& shift);
  void run_step();
  void note_step(const StepPlan& plan, double ms);
  void draw(const StepPlan& plan);
  void draw_one(int slot, std::span<const float> logits);
  void fail_slot(int slot, Error error, bool bad_cache);
  void emit(Running& running, int slot, std::string text);
  void publish();

  void run_slot_jobs();

  struct Mail {
    uint64_t id;
    bool is_cancel;
    GenRequest request;
    GenSink sink;
  };

  mutable std::mutex mutex;
  std::condition_variable wake;

  LoadedModel& model;
  Scheduler scheduler;
  SlotJobs slot_jobs;
  std::function<void(const std::string&)> note;
  std::map<uint64_t, Running> running;
  std::vector<BatchRow> rows;
  std::vector<int32_t> end_tokens;
  int row_budget;

  std::deque<Mail> mail;             // guarded by mutex
  std::vector<SlotInfo> slot_infos;  // guarded by mutex
  EngineMetrics totals;              // guarded by mutex
  int n_waiting = 0;                 // guarded by mutex: accepted and not yet ended
  bool stopping = false;             // guarded by mutex
  int max_waiting = 0;
  std::atomic<uint64_t> next_id{1};
  std::optional<Thread> thread;
};

void Engine::Impl::begin(uint64_t id, GenRequest request, GenSink sink) {
  ScheduledRequest scheduled{id,
                             request.prompt,
                             request.n_predict,
                             request.cache_prompt,
                             request.id_slot,
                             request.n_keep,
                             request.n_discard};
  Status status = scheduler.submit(std::move(scheduled));
  if (!status) {
    GenEvent event;
    event.kind = GenEventKind::error;
    event.id = id;
    event.error = status.error();
    {
      const std::lock_guard lock(mutex);
      --n_waiting;
    }
    sink(event);
    return;
  }
  const int64_t wanted = request.sampling.seed;
  const uint64_t seed = wanted >= 0 ? static_cast<uint64_t>(wanted) : std::random_device{}();
  request.sampling.seed = static_cast<int64_t>(seed);
  if (request.ignore_eos) {
    // Never drawn, as in llama.cpp: text that goes on after an end token is noise.
    for (const int32_t token : end_tokens) {
      request.sampling.logit_bias.emplace_back(token, -std::numeric_limits<float>::infinity());
    }
  }
  running.try_emplace(id, std::move(request), std::move(sink), seed);
}

void Engine::Impl::take_mail() {
  std::deque<Mail> taken;
  {
    std::unique_lock lock(mutex);
    wake.wait(lock,
              [&] { return stopping || !mail.empty() || slot_jobs.ready() || !scheduler.idle(); });
    taken.swap(mail);
  }
  for (Mail& item : taken) {
    if (!item.is_cancel) {
      begin(item.id, std::move(item.request), std::move(item.sink));
    } else if (running.contains(item.id)) {
      end(item.id, StopReason::cancelled);
    }
  }
}

void Engine::Impl::end(uint64_t id, StopReason reason) {
  Running& r = running.at(id);
  GenEvent event;
  event.kind = GenEventKind::done;
  event.id = id;
  event.n_prompt = static_cast<int>(r.request.prompt.size());
  for (size_t i = 0; i < scheduler.slots().size(); ++i) {
    const Scheduler::Slot& slot = scheduler.slots()[i];
    if (!slot.serving() || slot.request != id) continue;
    event.slot = static_cast<int>(i);
    event.truncated = slot.n_shifted > 0;
  }
  const Clock::time_point now = Clock::now();
  if (r.prompt_done != Clock::time_point{}) r.timings.predicted_ms = ms_between(r.prompt_done, now);
  event.text = r.stop.push(r.utf8.flush());
  if (reason != StopReason::word) event.text += r.stop.flush();
  event.tokens = std::move(r.held_tokens);
  event.probs = std::move(r.held_probs);
  event.stop = r.stop.stopped() ? StopReason::word : reason;
  event.stopping_word = r.stop.word();
  event.truncated = event.truncated || reason == StopReason::context_full;
  event.timings = r.timings;
  event.seed = r.sampler.seed();
  const GenSink sink = std::move(r.sink);
  scheduler.cancel(id);
  running.erase(id);
  {
    const std::lock_guard lock(mutex);
    --n_waiting;
    totals.predicted_tokens += static_cast<uint64_t>(event.timings.predicted_n);
    totals.predicted_seconds += event.timings.predicted_ms / 1000.0;
    totals.prompt_tokens += static_cast<uint64_t>(event.timings.prompt_n);
    totals.prompt_seconds += event.timings.prompt_ms / 1000.0;
  }
  publish();
  sink(event);
}

void Engine::Impl::emit(Running& r, int slot, std::string text) {
  if (text.empty()) return;
  GenEvent event;
  event.kind = GenEventKind::token;
  event.slot = slot;
  event.id = scheduler.slots()[static_cast<size_t>(slot)].request;
  event.text = std::move(text);
  event.tokens = std::exchange(r.held_tokens, {});
  event.probs = std::exchange(r.held_probs, {});
  event.n_prompt = static_cast<int>(r.request.prompt.size());
  event.timings = r.timings;
  event.timings.predicted_ms = ms_between(r.prompt_done, Clock::now());
  r.sink(event);
}

// Ends the request of a slot with an error. bad_cache: its cache may hold NaN, and so may others
// that begin alike: none of it is used again.
void Engine::Impl::fail_slot(int slot, Error error, bool bad_cache) {
  GenEvent event;
  event.kind = GenEventKind::error;
  event.id = scheduler.slots()[static_cast<size_t>(slot)].request;
  event.slot = slot;
  event.error = std::move(error);
  const GenSink sink = std::move(running.at(event.id).sink);
  running.erase(event.id);
  if (bad_cache) {
    for (const int forgotten : scheduler.fail(slot)) model.truncate(forgotten, 0);
    slot_jobs.failed();
  } else {
    scheduler.release(slot);
  }
  {
    const std::lock_guard lock(mutex);
    --n_waiting;
  }
  publish();
  sink(event);
}

void Engine::Impl::draw_one(int slot_index, std::span<const float> logits) {
  const Scheduler::Slot& slot = scheduler.slots()[static_cast<size_t>(slot_index)];
  const uint64_t id = slot.request;
  Running& r = running.at(id);
  // An embedding may have more rows than there are tokens; those are no answers.
  logits = logits.first(std::min(logits.size(), static_cast<size_t>(model.tokenizer().n_vocab())));
  const int32_t token = r.sampler.sample(logits, slot.tokens);
  if (token < 0) {
    // Numbers of which none may be drawn say nothing against the cache, which others may share.
    const bool numbers =
        std::any_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); });
    return fail_slot(slot_index,
                     numbers ? refused("logit_bias and penalties leave no token to draw, expected "
                                       "at least one: forbid fewer")
                             : failed("the model produced no finite logits"),
                     !numbers);
  }
  ++r.timings.predicted_n;
  const Tokenizer& tokenizer = model.tokenizer();
  StopReason reason =
      tokenizer.is_end(token) && !r.request.ignore_eos ? StopReason::eos : StopReason::none;
  std::string text;
  if (reason == StopReason::none) {
    r.held_tokens.push_back(token);
    if (r.request.n_probs > 0) {
      std::vector<TokenProb> probs = log_probabilities(logits, token, r.request.n_probs);
      r.held_probs.insert(r.held_probs.end(), probs.begin(), probs.end());
    }
    if (!tokenizer.is_control(token)) text = r.stop.push(r.utf8.push(tokenizer.piece(token)));
    if (r.stop.stopped()) reason = StopReason::word;
  }
  reason = scheduler.sampled(slot_index, token, reason);
  emit(r, slot_index, std::move(text));
  if (reason != StopReason::none) end(id, reason);
}

void Engine::Impl::draw(const StepPlan& plan) {
  // Logits stay valid until the next step; slots whose request ended meanwhile are skipped by their
  // id.
  int index = 0;
  for (const ScheduledRow& row : plan.rows) {
    if (!row.want_logits) continue;
    const std::span<const float> logits = model.model().logits(index++);
    if (scheduler.slots()[static_cast<size_t>(row.slot)].phase ==
        Scheduler::Slot::Phase::generate) {
      draw_one(row.slot, logits);
    }
  }
}

void Engine::Impl::note_step(const StepPlan& plan, double ms) {
  const Clock::time_point now = Clock::now();
  std::vector<uint64_t> over;
  for (size_t i = 0; i < scheduler.slots().size(); ++i) {
    const Scheduler::Slot& slot = scheduler.slots()[i];
    const auto n_rows =
        std::count_if(plan.rows.begin(), plan.rows.end(), [&](const ScheduledRow& row) {
          return row.slot == static_cast<int>(i) && row.pos < slot.n_prompt;
        });
    const auto it = running.find(slot.request);
    if (it == running.end() || n_rows == 0) continue;
    Running& r = it->second;
    r.timings.cache_n = slot.n_reused;
    r.timings.prompt_n += static_cast<int>(n_rows);
    const bool done = slot.phase == Scheduler::Slot::Phase::generate;
    r.timings.prompt_ms = ms_between(r.started, now);
    if (done) r.prompt_done = now;
    if (r.request.progress) {
      GenEvent event;
      event.kind = GenEventKind::progress;
      event.id = slot.request;
      event.slot = static_cast<int>(i);
      event.n_processed = static_cast<int>(slot.cached.size());
      event.n_prompt = slot.n_prompt;
      event.timings = r.timings;
      r.sink(event);
    }
    if (done && slot.n_predict == 0) over.push_back(slot.request);
  }
  for (const uint64_t id : over) end(id, StopReason::limit);
  // More prompt rows when steps are quick, fewer when one takes longer than a cancel may wait.
  if (plan.rows.size() > 1) {
    const double fitting = kStepMs / std::max(1e-3, ms / static_cast<double>(plan.rows.size()));
    const double most = model.model().options().max_rows;
    row_budget = static_cast<int>(std::min(std::max(fitting, 8.0), most));
  }
}

void Engine::Impl::note_shift(const CacheChange& shift) {
  if (!note) return;
  const Scheduler::Slot& slot = scheduler.slots()[static_cast<size_t>(shift.slot)];
  const std::string wanted = slot.n_discard > 0 ? std::to_string(slot.n_discard) : "half";
  note("slot " + std::to_string(shift.slot) + ": context shift, by whole pages: " +
       std::to_string(shift.n_keep) + " tokens kept (" + std::to_string(slot.n_keep) +
       " asked for), " + std::to_string(shift.n_discard) + " discarded (" + wanted + " asked for)");
}

void Engine::Impl::change_cache(const StepPlan& plan) {
  for (const CacheChange& change : plan.changes) {
    switch (change.kind) {
      case CacheChange::Kind::truncate:
        model.truncate(change.slot, change.n_keep);
        break;
      case CacheChange::Kind::copy:
        model.copy(change.from, change.slot, change.n_keep);
        break;
      case CacheChange::Kind::shift:
        model.shift(change.slot, change.n_keep, change.n_discard);
        note_shift(change);
        break;
    }
  }
}

void Engine::Impl::run_step() {
  const int floor = static_cast<int>(scheduler.slots().size()) + 1;
  const int budget = std::min(std::max(row_budget, floor), model.model().options().max_rows);
  const StepPlan plan = scheduler.plan(budget);
  change_cache(plan);
  const Clock::time_point start = Clock::now();
  for (const ScheduledRow& row : plan.rows) {
    Running& r = running.at(scheduler.slots()[static_cast<size_t>(row.slot)].request);
    if (!r.begun) r.started = start;
    r.begun = true;
  }
  rows.clear();
  for (const ScheduledRow& row : plan.rows)
    rows.push_back({row.token, row.slot, row.pos, row.want_logits});
  if (!rows.empty()) model.model().step(rows);
  scheduler.ran(plan);
  {
    const std::lock_guard lock(mutex);
    ++totals.n_decode;
  }
  note_step(plan, ms_between(start, Clock::now()));
  draw(plan);
  publish();
}

// Before a waiting request takes the slot.
void Engine::Impl::run_slot_jobs() {
  if (!slot_jobs.ready()) return;
  const std::vector<EndedSlotJob> ended = slot_jobs.run();
  publish();
  for (const EndedSlotJob& job : ended) job.sink(job.result);
}

void Engine::Impl::publish() {
  std::vector<SlotInfo> infos;
  int64_t used = 0;
  int processing = 0;
  for (size_t i = 0; i < scheduler.slots().size(); ++i) {
    const Scheduler::Slot& slot = scheduler.slots()[i];
    SlotInfo info;
    info.id = static_cast<int>(i);
    info.n_ctx = scheduler.n_ctx();
    info.is_processing = slot.serving();
    info.request = slot.request;
    info.n_cached = static_cast<int>(slot.cached.size());
    info.n_decoded = slot.n_generated;
    info.n_remain = slot.n_predict < 0 ? -1 : slot.n_predict - slot.n_generated;
    if (const auto it = running.find(slot.request); it != running.end()) {
      info.sampling = it->second.request.sampling;
    }
    used += info.n_cached;
    processing += info.is_processing ? 1 : 0;
    infos.push_back(std::move(info));
  }
  const std::lock_guard lock(mutex);
  slot_infos = std::move(infos);
  totals.kv_cells_used = used;
  totals.kv_cells = int64_t{scheduler.n_ctx()} * static_cast<int64_t>(scheduler.slots().size());
  totals.processing = processing;
  totals.deferred = scheduler.n_queued();
}

void Engine::Impl::loop() {
  publish();
  for (;;) {
    take_mail();
    {
      const std::lock_guard lock(mutex);
      if (stopping) break;
    }
    run_slot_jobs();
    if (!scheduler.idle()) run_step();
  }
  take_mail();  // what came after the last look, so that every request gets its last event
  while (!running.empty()) end(running.begin()->first, StopReason::cancelled);
  for (const EndedSlotJob& job : slot_jobs.end_all()) job.sink(job.result);
}

Engine::Engine() = default;

Result<std::unique_ptr<Engine>> Engine::start(std::unique_ptr<LoadedModel> model, int max_queue,
                                              std::function<void(const std::string&)> note) {
  std::unique_ptr<Engine> engine(new Engine);
  engine->model_ = std::move(model);
  engine->impl_ = std::make_unique<Impl>(*engine->model_, max_queue, std::move(note));
  Impl& impl = *engine->impl_;
  impl.max_waiting = max_queue + engine->model_->report().n_slots;
  impl.publish();
  if (Status status = impl.slot_jobs.start(); !status) return status.error();
  Result<Thread> thread = Thread::start("the engine's thread", [&impl] { impl.loop(); });
  if (!thread) return thread.error();
  impl.thread.emplace(std::move(*thread));
  return engine;
}

Engine::~Engine() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->wake.notify_all();
  impl_->thread.reset();
}

Result<uint64_t> Engine::submit(GenRequest request, GenSink sink) {
  const ModelReport& report = model_->report();
  if (Status status = check_sampling(request.sampling, model_->tokenizer().n_vocab()); !status)
    return status.error();
  if (request.stop.size() > kMaxStopStrings) {
    return refused("stop has " + std::to_string(request.stop.size()) +
                   " strings, expected at most " + std::to_string(kMaxStopStrings));
  }
  if (request.n_keep < -1 || request.n_discard < 0) {
    return refused("n_keep is " + std::to_string(request.n_keep) + " and n_discard " +
                   std::to_string(request.n_discard) + ", expected -1 or more and 0 or more");
  }
  if (request.n_predict < -1)
    return refused("n_predict is " + std::to_string(request.n_predict) + ", expected -1 or more");
  for (const int32_t token : request.prompt) {
    if (token >= 0 && token < report.n_vocab) continue;
    return refused("prompt token " + std::to_string(token) + " is outside the vocabulary of " +
                   std::to_string(report.n_vocab));
  }
  // The same checks as the scheduler's, answered before the request is queued.
  Scheduler probe(report.n_slots, report.n_ctx, 1);
  ScheduledRequest shape{0, request.prompt, request.n_predict, request.cache_prompt,
                         request.id_slot};
  if (Status status = probe.submit(std::move(shape)); !status) return status.error();
  const uint64_t id = impl_->next_id.fetch_add(1);
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->n_waiting >= impl_->max_waiting) {
      return Error{ErrorKind::busy,
                   "the queue is full (" + std::to_string(impl_->max_waiting) + " requests)"};
    }
    ++impl_->n_waiting;
    impl_->mail.push_back({id, false, std::move(request), std::move(sink)});
  }
  impl_->wake.notify_all();
  return id;
}

void Engine::cancel(uint64_t id) {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->mail.push_back({id, true, {}, {}});
  }
  impl_->wake.notify_all();
}

Status Engine::change_slot(SlotAction action, int slot, std::string path, SlotSink sink,
                           GivenUp given_up) {
  const int n_slots = model_->report().n_slots;
  if (slot < 0 || slot >= n_slots) {
    return refused("slot is " + std::to_string(slot) + ", expected 0 to " +
                   std::to_string(n_slots - 1));
  }
  if (action != SlotAction::erase && !model_->model().options().saves)
    return refused("the engine was started without saving slots");
  return impl_->slot_jobs.add(
      {action, slot, std::move(path), std::move(sink), std::move(given_up)});
}

std::vector<SlotInfo> Engine::slots() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->slot_infos;
}

EngineMetrics Engine::metrics() const {
  const std::lock_guard lock(impl_->mutex);
  EngineMetrics copy = impl_->totals;
  copy.deferred = std::max(0, impl_->n_waiting - copy.processing);
  return copy;
}

}  // namespace bantam
