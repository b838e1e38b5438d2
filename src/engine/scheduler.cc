#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/limits.h"

namespace bantam {

namespace {

int common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  size_t n = 0;
  while (n < a.size() && n < b.size() && a[n] == b[n]) ++n;
  return static_cast<int>(n);
}

// A cached sequence is worth keeping for a request that shares more than this part of its prompt.
constexpr double kSimilarity = 0.1;

}  // namespace

std::span<const int32_t> Scheduler::Slot::reusable() const {
  return std::span(cached).first(std::min(cached.size(), static_cast<size_t>(n_exact)));
}

Scheduler::Scheduler(int n_slots, int n_ctx, int max_queue, bool shift)
    : slots_(static_cast<size_t>(n_slots)), n_ctx_(n_ctx), max_queue_(max_queue), shift_(shift) {}

Status Scheduler::submit(ScheduledRequest request) {
  const auto n = static_cast<int64_t>(request.prompt.size());
  if (n == 0) return refused("the prompt is empty");
  if (n >= n_ctx_) {
    return Error{ErrorKind::too_long, "request (" + std::to_string(n) +
                                          " tokens) exceeds the available context size (" +
                                          std::to_string(n_ctx_) + " tokens), try increasing it"};
  }
  if (request.id_slot < -1 || request.id_slot >= static_cast<int>(slots_.size())) {
    return refused("id_slot is " + std::to_string(request.id_slot) + ", expected -1 to " +
                   std::to_string(slots_.size() - 1));
  }
  // max_queue requests wait beyond the slots: those that the next plan() takes are not waiting.
  const auto n_serving =
      std::count_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.serving(); });
  if (n_queued() + static_cast<int>(n_serving) >= max_queue_ + static_cast<int>(slots_.size())) {
    return Error{ErrorKind::busy,
                 "the queue is full (" + std::to_string(max_queue_) + " requests)"};
  }
  queue_.push_back(std::move(request));
  return Ok{};
}

bool Scheduler::cancel(uint64_t id) {
  for (auto it = queue_.begin(); it != queue_.end(); ++it) {
    if (it->id != id) continue;
    queue_.erase(it);
    return true;
  }
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (!slots_[i].serving() || slots_[i].request != id) continue;
    release(static_cast<int>(i));
    return true;
  }
  return false;
}

std::optional<int> Scheduler::choose_slot(const ScheduledRequest& request) const {
  std::optional<int> best;
  double best_score = -1.0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.phase != Slot::Phase::idle) continue;
    if (request.id_slot >= 0 && request.id_slot != static_cast<int>(i)) continue;
    const double shared = static_cast<double>(common_prefix(slot.reusable(), request.prompt)) /
                          static_cast<double>(request.prompt.size());
    // Similar prompts first, then the slot unused for longest.
    const double age = 1.0 / (1.0 + static_cast<double>(slot.last_used));
    const double score = shared > kSimilarity ? 1.0 + shared : age;
    if (score <= best_score) continue;
    best_score = score;
    best = static_cast<int>(i);
  }
  return best;
}

void Scheduler::start(int index, ScheduledRequest request) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  slot.phase = Slot::Phase::prefill;
  slot.request = request.id;
  slot.tokens = std::move(request.prompt);
  slot.n_prompt = static_cast<int>(slot.tokens.size());
  slot.n_predict = request.n_predict;
  slot.n_generated = 0;
  const bool whole = request.n_keep < 0 || request.n_keep > slot.n_prompt;
  slot.n_keep = whole ? slot.n_prompt : request.n_keep;
  slot.n_discard = request.n_discard;
  slot.n_shifted = 0;
  slot.n_reused = 0;
  if (request.cache_prompt) {
    reuse(index);
  } else if (!slot.cached.empty()) {
    slot.cached.clear();
    changes_.push_back({CacheChange::Kind::truncate, index, 0});
  }
  slot.n_exact = kAllExact;
  slot.bad = false;
  slot.last_used = ++clock_;
}

// The longest beginning of the prompt that any slot has in the cache, busy or not; of equal ones
// the slot's own.
void Scheduler::reuse(int index) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  int from = index;
  int shared = common_prefix(slot.reusable(), slot.tokens);
  for (size_t i = 0; i < slots_.size(); ++i) {
    const int n = common_prefix(slots_[i].reusable(), slot.tokens);
    if (n <= shared) continue;
    shared = n;
    from = static_cast<int>(i);
  }
  // The last prompt token is always computed again: its logits are needed.
  const int most = slot.n_prompt - 1;
  const int own = std::min(common_prefix(slot.reusable(), slot.tokens), most);
  slot.n_reused = std::min(shared, most);
  const auto n = static_cast<size_t>(slot.n_reused);
  if (slot.n_reused > own) {
    changes_.push_back({CacheChange::Kind::copy, index, slot.n_reused, from});
    slot.cached.assign(slot.tokens.begin(), slot.tokens.begin() + slot.n_reused);
  } else if (n < slot.cached.size()) {
    changes_.push_back({CacheChange::Kind::truncate, index, slot.n_reused});
    slot.cached.resize(n);
  }
}

void Scheduler::assign() {
  // In order of arrival; a request pinned to a busy slot does not hold up those behind it.
  for (auto it = queue_.begin(); it != queue_.end();) {
    const std::optional<int> slot = choose_slot(*it);
    if (!slot) {
      if (it->id_slot < 0) return;
      ++it;
      continue;
    }
    start(*slot, std::move(*it));
    it = queue_.erase(it);
  }
}

StepPlan Scheduler::plan(int max_rows) {
  CHECK(max_rows >= static_cast<int>(slots_.size()));
  assign();
  StepPlan plan;
  plan.changes = changes_;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.phase != Slot::Phase::generate || static_cast<int>(plan.rows.size()) >= max_rows)
      continue;
    int pos = static_cast<int>(slot.cached.size());
    if (pos == n_ctx_) {
      const std::optional<CacheChange> shift = shift_of(static_cast<int>(i));
      CHECK(shift.has_value());
      plan.changes.push_back(*shift);
      plan.rows.push_back({slot.tokens.back(), static_cast<int>(i), pos - shift->n_discard, true});
      continue;
    }
    plan.rows.push_back({slot.tokens[static_cast<size_t>(pos)], static_cast<int>(i), pos, true});
  }
  const int n_slots = static_cast<int>(slots_.size());
  const int first = next_prefill_;
  for (int k = 0; k < n_slots; ++k) {
    const int index = (first + k) % n_slots;
    const Slot& slot = slots_[static_cast<size_t>(index)];
    const int left = max_rows - static_cast<int>(plan.rows.size());
    if (slot.phase != Slot::Phase::prefill || left <= 0) continue;
    next_prefill_ = (index + 1) % n_slots;
    take_rows(plan, index, left);
  }
  return plan;
}

// At most n rows of a prompt, from where the cache ends.
void Scheduler::take_rows(StepPlan& plan, int index, int n) const {
  const Slot& slot = slots_[static_cast<size_t>(index)];
  const int done = static_cast<int>(slot.cached.size());
  const int end = std::min(done + n, slot.n_prompt);
  for (int pos = done; pos < end; ++pos) {
    const bool last = pos + 1 == slot.n_prompt;
    plan.rows.push_back(
        {slot.tokens[static_cast<size_t>(pos)], index, pos, last && slot.n_predict != 0});
  }
}

// By whole pages (NUMERICS rule 8): what is kept rounds up, what is discarded to the nearest. A
// page besides the kept ones stays.
std::optional<CacheChange> Scheduler::shift_of(int index) const {
  const Slot& slot = slots_[static_cast<size_t>(index)];
  const int n_pages = n_ctx_ / kPagePositions;
  if (!shift_ || n_pages < 2) return std::nullopt;
  const int keep =
      std::min(slot.n_keep / kPagePositions + (slot.n_keep % kPagePositions != 0), n_pages - 2);
  const int most = n_pages - keep - 1;
  const int64_t wanted = slot.n_discard > 0
                             ? (int64_t{slot.n_discard} + kPagePositions / 2) / kPagePositions
                             : (n_pages - keep) / 2;
  const int discard = static_cast<int>(std::clamp<int64_t>(wanted, 1, most)) * kPagePositions;
  if (slot.n_shifted + discard > kMaxMoved) return std::nullopt;
  return CacheChange{CacheChange::Kind::shift, index, keep * kPagePositions, -1, discard};
}

void Scheduler::shifted(const CacheChange& shift) {
  Slot& slot = slots_[static_cast<size_t>(shift.slot)];
  const auto cut = [&](std::vector<int32_t>& tokens) {
    const auto first = tokens.begin() + shift.n_keep;
    tokens.erase(first, first + shift.n_discard);
  };
  cut(slot.cached);
  cut(slot.tokens);
  slot.n_prompt -= std::clamp(slot.n_prompt - shift.n_keep, 0, shift.n_discard);
  slot.n_exact = std::min(slot.n_exact, shift.n_keep);
  slot.n_shifted += shift.n_discard;
}

void Scheduler::ran(const StepPlan& plan) {
  changes_.clear();
  for (const CacheChange& change : plan.changes) {
    if (change.kind == CacheChange::Kind::shift) shifted(change);
  }
  for (const ScheduledRow& row : plan.rows)
    slots_[static_cast<size_t>(row.slot)].cached.push_back(row.token);
  for (const ScheduledRow& row : plan.rows) {
    Slot& slot = slots_[static_cast<size_t>(row.slot)];
    const bool prompt_done = static_cast<int>(slot.cached.size()) >= slot.n_prompt;
    if (slot.phase == Slot::Phase::prefill && prompt_done) slot.phase = Slot::Phase::generate;
  }
}

StopReason Scheduler::sampled(int index, int32_t token, StopReason reason) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  slot.tokens.push_back(token);
  ++slot.n_generated;
  if (reason != StopReason::none) return reason;
  if (slot.n_predict >= 0 && slot.n_generated >= slot.n_predict) return StopReason::limit;
  // The next step would need a position beyond the context.
  if (static_cast<int>(slot.tokens.size()) > n_ctx_ && !shift_of(index))
    return StopReason::context_full;
  return StopReason::none;
}

void Scheduler::release(int index) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  slot.phase = Slot::Phase::idle;
  slot.request = 0;
  slot.tokens.clear();
  slot.last_used = ++clock_;
}

void Scheduler::forget(int index) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  slot.cached.clear();
  slot.n_exact = kAllExact;
  slot.bad = false;
  // A slot with nothing to lose is taken first.
  slot.last_used = 0;
}

std::vector<int> Scheduler::fail(int index) {
  CHECK(changes_.empty());
  release(index);
  const std::vector<int32_t> bad = slots_[static_cast<size_t>(index)].cached;
  std::vector<int> forgotten;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const int other = static_cast<int>(i);
    // Which position went bad first is not known, so nothing behind a common beginning is good.
    if (other != index && common_prefix(slots_[i].cached, bad) == 0) continue;
    if (slots_[i].phase != Slot::Phase::idle) {
      slots_[i].n_exact = 0;
      slots_[i].bad = true;
      continue;
    }
    forget(other);
    forgotten.push_back(other);
  }
  return forgotten;
}

void Scheduler::refill(int index, std::vector<int32_t> cached, int n_exact) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  CHECK(!slot.serving() && changes_.empty());
  if (cached.empty()) return forget(index);
  slot.cached = std::move(cached);
  slot.n_exact = n_exact;
  slot.bad = false;
  slot.last_used = ++clock_;
}

void Scheduler::hold(int index) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  CHECK(slot.phase == Slot::Phase::idle && changes_.empty());
  slot.phase = Slot::Phase::held;
}

void Scheduler::let_go(int index) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  CHECK(slot.phase == Slot::Phase::held);
  slot.phase = Slot::Phase::idle;
}

bool Scheduler::idle() const {
  const auto serving = [](const Slot& slot) { return slot.serving(); };
  const auto could_start = [this](const ScheduledRequest& r) { return choose_slot(r).has_value(); };
  return std::none_of(slots_.begin(), slots_.end(), serving) &&
         std::none_of(queue_.begin(), queue_.end(), could_start);
}

}  // namespace bantam
