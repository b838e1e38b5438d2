// Scheduler: which slot serves which request and what the next batch is; a pure function of (state,
// events), with no clock, thread or model, so that a seeded simulation can run it. Owns slots,
// cached tokens and the bounded queue.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace bantam {

enum class StopReason { none, eos, limit, word, context_full, cancelled };

struct ScheduledRequest {
  uint64_t id = 0;
  std::vector<int32_t> prompt;
  int n_predict = -1;  // -1: until the context is full
  bool cache_prompt = true;
  int id_slot = -1;
  int n_keep = 0;     // prompt tokens that shifts leave; -1: all
  int n_discard = 0;  // tokens that a shift takes out; 0: half of the rest
};

struct ScheduledRow {
  int32_t token;
  int slot;
  int pos;
  bool want_logits;
};

// A change of the cache: slot keeps its first n_keep positions, or becomes the first n_keep
// positions of slot `from`, or loses the n_discard positions behind n_keep and goes on.
struct CacheChange {
  enum class Kind { truncate, copy, shift } kind = Kind::truncate;
  int slot = 0;
  int n_keep = 0;
  int from = -1;
  int n_discard = 0;
};

// What a planned step is made of: the changes in this order, then the rows.
struct StepPlan {
  std::vector<CacheChange> changes;
  std::vector<ScheduledRow> rows;
};

class Scheduler {
 public:
  static constexpr int kAllExact = std::numeric_limits<int>::max();
  struct Slot {
    // held: no request has it, and none gets it before let_go().
    enum class Phase { idle, prefill, generate, held } phase = Phase::idle;
    uint64_t request = 0;
    std::vector<int32_t> cached;  // tokens whose keys and values are in the cache
    // Of these the first n_exact depend on no token that a shift has taken out, and may not be bad
    // (fail()): only they serve other requests, so that answers do not depend on what a slot did
    // before.
    int n_exact = kAllExact;
    bool bad = false;  // cached ones may be: of no use to anybody but the present request
    std::vector<int32_t> tokens;  // prompt and generated tokens of the present request, as shifted
    int n_prompt = 0;
    int n_reused = 0;  // prompt tokens found in the cache, this slot's or another's
    int n_predict = -1;
    int n_generated = 0;
    int n_keep = 0;
    int n_discard = 0;
    int64_t n_shifted = 0;  // positions taken out for the present request
    uint64_t last_used = 0;

    // What of `cached` another request may begin with.
    std::span<const int32_t> reusable() const;
    bool serving() const { return phase == Phase::prefill || phase == Phase::generate; }
  };

  // shift: a full context loses whole pages and goes on, where it has two or more.
  Scheduler(int n_slots, int n_ctx, int max_queue, bool shift = false);

  // Refusals: too_long, refused (slot id), busy (queue full). An accepted request waits until a
  // slot takes it.
  Status submit(ScheduledRequest request);
  // True when the request existed. Its slot is idle at once; its cached tokens stay useful.
  bool cancel(uint64_t id);
  // Fills idle slots from the queue, then plans at most max_rows rows: every generating slot first,
  // then prompts in turn. max_rows: at least the number of slots (CHECK), so that no generating
  // slot is left out and some prompt always gets a row.
  StepPlan plan(int max_rows);
  // The planned rows are in the cache now.
  void ran(const StepPlan& plan);
  // The token drawn for a slot that asked for logits. Returns why the request ends now, or none.
  // ends: the token is an end or a stop string matched (eos or word given by the caller through
  // `reason`).
  StopReason sampled(int slot, int32_t token, StopReason reason);
  // Frees a slot whose request is over; its cached tokens stay useful.
  void release(int slot);
  // Frees a slot whose request failed, with values that are not numbers. Whatever any slot holds of
  // the same beginning may hold them too: taken from there, or computed from the same tokens.
  // Returns the slots that forget all they hold, this one and idle ones, for the cache to do the
  // same; what the others hold serves no further request.
  std::vector<int> fail(int slot);
  // What the cache of a slot without a request (CHECK) holds from now on.
  void refill(int slot, std::vector<int32_t> cached, int n_exact = kAllExact);
  // Keeps an idle slot (CHECK) from requests, and its cached tokens as they are; others may still
  // begin with them.
  void hold(int slot);
  void let_go(int slot);

  std::span<const Slot> slots() const { return slots_; }
  int n_queued() const { return static_cast<int>(queue_.size()); }
  // Nothing to plan: no request has a slot, and none that waits could have one now.
  bool idle() const;
  int n_ctx() const { return n_ctx_; }

 private:
  void assign();
  void forget(int slot);
  void take_rows(StepPlan& plan, int slot, int n) const;
  std::optional<int> choose_slot(const ScheduledRequest& request) const;
  void start(int slot, ScheduledRequest request);
  void reuse(int slot);
  std::optional<CacheChange> shift_of(int slot) const;
  void shifted(const CacheChange& shift);

  std::vector<Slot> slots_;
  std::vector<CacheChange> changes_;  // decided, not yet made
  std::deque<ScheduledRequest> queue_;
  int n_ctx_;
  int max_queue_;
  bool shift_;
  int next_prefill_ = 0;
  uint64_t clock_ = 0;
};

}  // namespace bantam
