// Scheduler: rules one by one, then a seeded simulation with a fake model whose next token is a
// hash of the whole sequence, so that any mix-up of slots, positions or prefixes changes an answer.
// BANTAM_SEED=n repeats a run.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <vector>

namespace bantam {
namespace {

using Phase = Scheduler::Slot::Phase;

int32_t hash_token(std::span<const int32_t> tokens) {
  uint64_t h = 0xcbf29ce484222325ull;
  for (const int32_t token : tokens) h = (h ^ static_cast<uint32_t>(token)) * 0x100000001b3ull;
  return static_cast<int32_t>((h >> 20) % 1000);
}
// Rare: answers long enough to fill a context several times.
bool is_end(int32_t token, bool rare = false) { return token % 61 == 7 && (!rare || token % 5 == 0); }

std::vector<int32_t> prompt_of(int n, int first = 1) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < n; ++i) prompt.push_back(first + i);
  return prompt;
}

ScheduledRequest request(uint64_t id, std::vector<int32_t> prompt, int n_predict = -1,
                         int id_slot = -1, bool cache_prompt = true) {
  return {id, std::move(prompt), n_predict, cache_prompt, id_slot};
}

// Runs a request that is alone in the scheduler to its end, over logits rows that say `token`.
StopReason run_alone(Scheduler& scheduler, int max_rows, int32_t token = 5) {
  for (;;) {
    const StepPlan plan = scheduler.plan(max_rows);
    scheduler.ran(plan);
    for (const ScheduledRow& row : plan.rows) {
      if (!row.want_logits) continue;
      const StopReason reason = scheduler.sampled(row.slot, token, StopReason::none);
      if (reason == StopReason::none) continue;
      scheduler.release(row.slot);
      return reason;
    }
  }
}

int slot_of(const Scheduler& scheduler, uint64_t id) {
  for (size_t i = 0; i < scheduler.slots().size(); ++i) {
    const Scheduler::Slot& slot = scheduler.slots()[i];
    if (slot.phase != Phase::idle && slot.request == id) return static_cast<int>(i);
  }
  return -1;
}

TEST(Scheduler, RefusesWhatCannotFit) {
  Scheduler scheduler(2, 256, 4);
  EXPECT_TRUE(scheduler.submit(request(1, prompt_of(255))).ok());
  const Status status = scheduler.submit(request(2, prompt_of(256)));
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().kind, ErrorKind::too_long);
  EXPECT_EQ(status.error().message,
            "request (256 tokens) exceeds the available context size (256 tokens), try increasing "
            "it");
  EXPECT_EQ(scheduler.submit(request(3, {})).error().kind, ErrorKind::refused);
  EXPECT_EQ(scheduler.submit(request(4, prompt_of(3), -1, 2)).error().kind, ErrorKind::refused);
  EXPECT_EQ(scheduler.submit(request(5, prompt_of(3), -1, -2)).error().kind, ErrorKind::refused);
}

TEST(Scheduler, QueueHoldsMaxQueueBeyondTheSlots) {
  for (const int max_queue : {0, 1, 5}) {
    Scheduler scheduler(2, 256, max_queue);
    for (int i = 0; i < 2 + max_queue; ++i) {
      EXPECT_TRUE(scheduler.submit(request(static_cast<uint64_t>(i + 1), prompt_of(4))).ok());
    }
    EXPECT_EQ(scheduler.submit(request(99, prompt_of(4))).error().kind, ErrorKind::busy);
    scheduler.plan(8);
    EXPECT_EQ(scheduler.n_queued(), max_queue);
    EXPECT_EQ(scheduler.submit(request(99, prompt_of(4))).error().kind, ErrorKind::busy);
    EXPECT_TRUE(scheduler.cancel(1));
    EXPECT_TRUE(scheduler.submit(request(99, prompt_of(4))).ok());
  }
}

TEST(Scheduler, ReusesThePrefixButComputesTheLastToken) {
  Scheduler scheduler(1, 256, 4);
  ASSERT_TRUE(scheduler.submit(request(1, prompt_of(10), 1)).ok());
  EXPECT_EQ(run_alone(scheduler, 64), StopReason::limit);
  ASSERT_TRUE(scheduler.submit(request(2, prompt_of(10), 1)).ok());
  const StepPlan plan = scheduler.plan(64);
  ASSERT_EQ(plan.changes.size(), 1u);
  EXPECT_EQ(plan.changes[0].kind, CacheChange::Kind::truncate);
  EXPECT_EQ(plan.changes[0].n_keep, 9);
  ASSERT_EQ(plan.rows.size(), 1u);
  EXPECT_EQ(plan.rows[0].pos, 9);
  EXPECT_TRUE(plan.rows[0].want_logits);
  EXPECT_EQ(scheduler.slots()[0].n_reused, 9);
  EXPECT_TRUE(scheduler.cancel(2));
  ASSERT_TRUE(scheduler.submit(request(3, prompt_of(10), 1, -1, false)).ok());
  EXPECT_EQ(scheduler.plan(64).rows.size(), 10u);  // cache_prompt off
}

TEST(Scheduler, ChoosesPinnedThenSimilarThenLeastRecentlyUsed) {
  Scheduler scheduler(3, 256, 4);
  for (int i = 0; i < 3; ++i) {  // slot 2 oldest, then 0, then 1
    const int slot = (i + 2) % 3;
    const auto id = static_cast<uint64_t>(i + 1);
    ASSERT_TRUE(scheduler.submit(request(id, prompt_of(20, slot * 100), 1, slot)).ok());
    run_alone(scheduler, 64);
  }
  const auto lands = [&](ScheduledRequest r) {
    const uint64_t id = r.id;
    EXPECT_TRUE(scheduler.submit(std::move(r)).ok());
    const StepPlan plan = scheduler.plan(64);
    const int slot = slot_of(scheduler, id);
    return slot;
  };
  EXPECT_EQ(lands(request(10, prompt_of(20, 100), 1)), 1);   // same prompt
  EXPECT_EQ(lands(request(11, prompt_of(20, 7000), 1)), 2);  // nothing alike: oldest
  EXPECT_EQ(lands(request(12, prompt_of(20, 7000), 1, 0)), 0);
  EXPECT_EQ(lands(request(13, prompt_of(20, 7000), 1, 0)), -1);  // pinned to a busy slot: waits
  EXPECT_EQ(scheduler.n_queued(), 1);
}

TEST(Scheduler, APinnedRequestLetsOthersPassButNotOnItsSlot) {
  Scheduler scheduler(2, 256, 8);
  ASSERT_TRUE(scheduler.submit(request(1, prompt_of(4), -1, 0)).ok());
  scheduler.plan(8);
  ASSERT_TRUE(scheduler.submit(request(2, prompt_of(4), -1, 0)).ok());
  ASSERT_TRUE(scheduler.submit(request(3, prompt_of(4))).ok());
  ASSERT_TRUE(scheduler.submit(request(4, prompt_of(4))).ok());
  scheduler.plan(8);
  EXPECT_EQ(slot_of(scheduler, 3), 1);
  EXPECT_TRUE(scheduler.cancel(1));
  scheduler.plan(8);
  EXPECT_EQ(slot_of(scheduler, 2), 0);  // older than 4
  EXPECT_EQ(slot_of(scheduler, 4), -1);
}

TEST(Scheduler, PredictsNothingALimitOrToTheEndOfTheContext) {
  Scheduler scheduler(1, 32, 4);
  ASSERT_TRUE(scheduler.submit(request(1, prompt_of(10), 0)).ok());
  StepPlan plan = scheduler.plan(64);
  EXPECT_EQ(plan.rows.size(), 10u);
  for (const ScheduledRow& row : plan.rows) EXPECT_FALSE(row.want_logits);
  scheduler.ran(plan);
  EXPECT_TRUE(scheduler.cancel(1));
  EXPECT_EQ(scheduler.slots()[0].cached.size(), 10u);
  ASSERT_TRUE(scheduler.submit(request(2, prompt_of(10), 7)).ok());
  EXPECT_EQ(run_alone(scheduler, 4), StopReason::limit);
  EXPECT_EQ(scheduler.slots()[0].n_generated, 7);
  ASSERT_TRUE(scheduler.submit(request(3, prompt_of(31), -1)).ok());
  EXPECT_EQ(run_alone(scheduler, 4), StopReason::context_full);
  EXPECT_EQ(scheduler.slots()[0].cached.size(), 32u);
  EXPECT_EQ(scheduler.slots()[0].n_generated, 2);
}

TEST(Scheduler, PromptsTakeTurnsAndGenerationNeverWaits) {
  Scheduler scheduler(3, 256, 4);
  ASSERT_TRUE(scheduler.submit(request(1, prompt_of(2))).ok());
  StepPlan plan = scheduler.plan(8);
  scheduler.ran(plan);
  EXPECT_EQ(scheduler.sampled(0, 5, StopReason::none), StopReason::none);
  ASSERT_TRUE(scheduler.submit(request(2, prompt_of(200, 1000))).ok());
  ASSERT_TRUE(scheduler.submit(request(3, prompt_of(200, 2000))).ok());
  for (int i = 0; i < 20; ++i) {
    plan = scheduler.plan(8);
    EXPECT_EQ(plan.rows.size(), 8u);
    EXPECT_EQ(plan.rows[0].slot, 0);
    EXPECT_TRUE(plan.rows[0].want_logits);
    scheduler.ran(plan);
    EXPECT_EQ(scheduler.sampled(0, 5, StopReason::none), StopReason::none);
  }
  const int a = static_cast<int>(scheduler.slots()[1].cached.size());
  const int b = static_cast<int>(scheduler.slots()[2].cached.size());
  EXPECT_EQ(a + b, 140);
  EXPECT_LE(std::abs(a - b), 7);
}

TEST(Scheduler, ForgottenCacheIsNotReused) {
  Scheduler scheduler(1, 256, 4);
  ASSERT_TRUE(scheduler.submit(request(1, prompt_of(10))).ok());
  scheduler.ran(scheduler.plan(64));
  EXPECT_EQ(scheduler.fail(0), std::vector<int>{0});
  ASSERT_TRUE(scheduler.submit(request(2, prompt_of(10))).ok());
  EXPECT_EQ(scheduler.plan(64).rows.size(), 10u);
}

// A held slot is nobody's, serves others with what it holds, and delays only those who want it.
TEST(Scheduler, HeldSlotsWaitAndShare) {
  Scheduler scheduler(2, 256, 1);
  ASSERT_TRUE(scheduler.submit(request(1, prompt_of(60), 1, 0)).ok());
  run_alone(scheduler, 64);
  scheduler.hold(0);
  EXPECT_TRUE(scheduler.idle());
  ASSERT_TRUE(scheduler.submit(request(2, prompt_of(70), -1, 0)).ok());
  EXPECT_TRUE(scheduler.idle()) << "nothing can be planned for it";
  EXPECT_TRUE(scheduler.plan(64).rows.empty());
  ASSERT_TRUE(scheduler.submit(request(3, prompt_of(70))).ok());
  EXPECT_FALSE(scheduler.idle());
  const StepPlan plan = scheduler.plan(64);
  EXPECT_EQ(slot_of(scheduler, 3), 1);
  ASSERT_EQ(plan.changes.size(), 1u);
  EXPECT_EQ(plan.changes[0].kind, CacheChange::Kind::copy);
  EXPECT_EQ(plan.changes[0].from, 0);
  EXPECT_EQ(plan.changes[0].n_keep, 60);
  scheduler.ran(plan);
  // As many may wait as beside an idle slot.
  EXPECT_TRUE(scheduler.submit(request(4, prompt_of(5))).ok());
  EXPECT_EQ(scheduler.submit(request(5, prompt_of(5))).error().kind, ErrorKind::busy);
  EXPECT_TRUE(scheduler.cancel(3));
  EXPECT_FALSE(scheduler.cancel(0)) << "no request has the held slot";
  EXPECT_EQ(scheduler.slots()[0].phase, Phase::held);
  EXPECT_EQ(scheduler.slots()[0].cached, prompt_of(60));
  scheduler.plan(64);
  EXPECT_EQ(slot_of(scheduler, 2), -1);
  EXPECT_EQ(slot_of(scheduler, 4), 1);
  scheduler.ran(scheduler.plan(64));
  scheduler.let_go(0);
  scheduler.plan(64);
  EXPECT_EQ(slot_of(scheduler, 2), 0);
}

// Of a failed slot nothing is used again, nor of what others hold of the same beginning.
TEST(Scheduler, FailuresAreForgottenByAllWhoBeganAlike) {
  Scheduler scheduler(5, 512, 4, true);
  for (int slot = 0; slot < 4; ++slot) {
    const int first = slot == 1 ? 500 : 1;
    ASSERT_TRUE(scheduler.submit(request(static_cast<uint64_t>(slot + 1), prompt_of(30, first), 1, slot)).ok());
    run_alone(scheduler, 64);
  }
  scheduler.hold(3);
  ASSERT_TRUE(scheduler.submit(request(7, prompt_of(400), -1, 2)).ok());  // begins alike and goes on
  scheduler.ran(scheduler.plan(64));
  ASSERT_TRUE(scheduler.submit(request(8, prompt_of(40), -1, 4)).ok());
  scheduler.ran(scheduler.plan(64));
  EXPECT_EQ(scheduler.fail(4), (std::vector<int>{0, 4}));
  const auto slots = scheduler.slots();
  for (const size_t i : {size_t{0}, size_t{4}}) EXPECT_TRUE(slots[i].cached.empty());
  EXPECT_EQ(slots[4].phase, Phase::idle);
  EXPECT_EQ(slots[1].reusable().size(), 30u);
  // In use and held: as they were, but nobody begins with it.
  EXPECT_EQ(slots[3].cached, prompt_of(30));
  EXPECT_FALSE(slots[2].cached.empty());
  for (const size_t i : {size_t{2}, size_t{3}}) EXPECT_TRUE(slots[i].reusable().empty());
  scheduler.let_go(3);
  EXPECT_TRUE(scheduler.cancel(7));
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(slots[i].bad, i == 2 || i == 3) << i;
  for (int slot = 0; slot < 5; ++slot) {
    const auto id = static_cast<uint64_t>(20 + slot);
    ASSERT_TRUE(scheduler.submit(request(id, prompt_of(20), 1, slot)).ok());
    scheduler.plan(512);
    EXPECT_EQ(scheduler.slots()[static_cast<size_t>(slot)].n_reused, 0) << slot;
    EXPECT_FALSE(scheduler.slots()[static_cast<size_t>(slot)].bad) << slot;
    EXPECT_TRUE(scheduler.cancel(id));
    scheduler.ran({});
  }
}

// What takes the place of bad values is as good as it is.
TEST(Scheduler, RefilledSlotsAreNotBad) {
  for (const bool erased : {false, true}) {
    Scheduler scheduler(2, 256, 4);
    ASSERT_TRUE(scheduler.submit(request(1, prompt_of(30), 1, 0)).ok());
    run_alone(scheduler, 64);
    scheduler.hold(0);
    ASSERT_TRUE(scheduler.submit(request(2, prompt_of(30), -1, 1)).ok());
    scheduler.ran(scheduler.plan(64));
    scheduler.fail(1);
    ASSERT_TRUE(scheduler.slots()[0].bad);
    scheduler.refill(0, erased ? std::vector<int32_t>() : prompt_of(20));
    EXPECT_FALSE(scheduler.slots()[0].bad);
    EXPECT_EQ(scheduler.slots()[0].reusable().size(), erased ? 0u : 20u);
  }
}

TEST(Scheduler, SharesTheLongestPrefixOfAnySlot) {
  Scheduler scheduler(3, 256, 4);
  ASSERT_TRUE(scheduler.submit(request(1, prompt_of(100), -1, 0)).ok());
  scheduler.ran(scheduler.plan(64));  // 64 of 100 are in the cache, the slot is busy
  std::vector<int32_t> prompt = prompt_of(80);
  ASSERT_TRUE(scheduler.submit(request(2, prompt, 1)).ok());
  StepPlan plan = scheduler.plan(64);
  ASSERT_EQ(plan.changes.size(), 1u);
  EXPECT_EQ(plan.changes[0].kind, CacheChange::Kind::copy);
  EXPECT_EQ(plan.changes[0].from, 0);
  EXPECT_EQ(plan.changes[0].slot, 1);
  EXPECT_EQ(plan.changes[0].n_keep, 64);
  EXPECT_EQ(scheduler.slots()[1].n_reused, 64);
  EXPECT_EQ(scheduler.plan(64).changes.size(), 1u);  // planning again changes nothing
  scheduler.ran(scheduler.plan(64));
  for (const int slot : {0, 1}) scheduler.sampled(slot, 7, StopReason::none);
  EXPECT_TRUE(scheduler.plan(64).changes.empty());
  EXPECT_TRUE(scheduler.cancel(1));
  EXPECT_TRUE(scheduler.cancel(2));
  // As long in the slot itself: nothing is copied. The last token is computed in any case.
  ASSERT_TRUE(scheduler.submit(request(3, prompt_of(50), 1, 1)).ok());
  plan = scheduler.plan(64);
  ASSERT_EQ(plan.changes.size(), 1u);
  EXPECT_EQ(plan.changes[0].kind, CacheChange::Kind::truncate);
  EXPECT_EQ(plan.changes[0].n_keep, 49);
  scheduler.ran(plan);
  ASSERT_TRUE(scheduler.submit(request(4, prompt_of(50), 1, 2, false)).ok());  // cache_prompt off
  EXPECT_TRUE(scheduler.plan(64).changes.empty());
}

// A full context: pages of 256, what is kept rounds up, what is discarded to the nearest.
TEST(Scheduler, ShiftsByWholePages) {
  struct Case {
    int n_ctx, n_keep, n_discard, keep, discard;
  };
  for (const Case& c : {Case{512, 0, 0, 0, 256}, Case{1024, 0, 0, 0, 512}, Case{1024, 1, 0, 256, 256},
                        Case{1024, 256, 300, 256, 256}, Case{1024, 256, 400, 256, 512},
                        Case{1024, 257, 1000, 512, 256}, Case{1024, -1, 0, 512, 256},
                        Case{1024, 100000, 1, 512, 256}, Case{2048, 0, 1 << 30, 0, 1792}}) {
    Scheduler scheduler(1, c.n_ctx, 4, true);
    ScheduledRequest r = request(1, prompt_of(c.n_ctx - 1));
    r.n_keep = c.n_keep;
    r.n_discard = c.n_discard;
    ASSERT_TRUE(scheduler.submit(r).ok());
    StepPlan plan = scheduler.plan(c.n_ctx);
    scheduler.ran(plan);
    ASSERT_EQ(scheduler.sampled(0, 7000, StopReason::none), StopReason::none);
    scheduler.ran(scheduler.plan(8));
    ASSERT_EQ(scheduler.sampled(0, 7001, StopReason::none), StopReason::none);
    plan = scheduler.plan(8);
    ASSERT_EQ(plan.changes.size(), 1u) << c.n_ctx;
    EXPECT_EQ(plan.changes[0].kind, CacheChange::Kind::shift);
    EXPECT_EQ(plan.changes[0].n_keep, c.keep) << c.n_keep << " of " << c.n_ctx;
    EXPECT_EQ(plan.changes[0].n_discard, c.discard) << c.n_discard << " of " << c.n_ctx;
    ASSERT_EQ(plan.rows.size(), 1u);
    EXPECT_EQ(plan.rows[0].token, 7001);
    EXPECT_EQ(plan.rows[0].pos, c.n_ctx - c.discard);
    scheduler.ran(plan);
    const Scheduler::Slot& slot = scheduler.slots()[0];
    std::vector<int32_t> want = prompt_of(c.n_ctx - 1);
    want.push_back(7000);
    want.erase(want.begin() + c.keep, want.begin() + c.keep + c.discard);
    want.push_back(7001);
    EXPECT_EQ(slot.cached, want);
    EXPECT_EQ(slot.n_shifted, c.discard);
    // Of the shifted slot only what was kept serves another request.
    EXPECT_TRUE(scheduler.cancel(1));
    want.resize(static_cast<size_t>(c.n_ctx - c.discard));
    ASSERT_TRUE(scheduler.submit(request(2, want, 1)).ok());
    plan = scheduler.plan(c.n_ctx);
    EXPECT_EQ(scheduler.slots()[0].n_reused, c.keep);
    ASSERT_EQ(plan.changes.size(), 1u);
    EXPECT_EQ(plan.changes[0].kind, CacheChange::Kind::truncate);
  }
}

TEST(Scheduler, WithoutShiftOrPagesForItTheContextEnds) {
  for (const auto& [n_ctx, shift] : {std::pair{512, false}, std::pair{256, true}}) {
    Scheduler scheduler(1, n_ctx, 4, shift);
    ASSERT_TRUE(scheduler.submit(request(1, prompt_of(n_ctx - 1))).ok());
    EXPECT_EQ(run_alone(scheduler, 600), StopReason::context_full);
  }
}

// The slot that is shared from is cut for its own next request in the same plan.
TEST(Scheduler, ChangesKeepTheirOrder) {
  Scheduler scheduler(2, 256, 4);
  ASSERT_TRUE(scheduler.submit(request(1, prompt_of(60), 1, 0)).ok());
  run_alone(scheduler, 64);
  ASSERT_TRUE(scheduler.submit(request(2, prompt_of(60), 1, 1)).ok());
  ASSERT_TRUE(scheduler.submit(request(3, prompt_of(20), 1, 0)).ok());
  const StepPlan plan = scheduler.plan(64);
  ASSERT_EQ(plan.changes.size(), 2u);
  EXPECT_EQ(plan.changes[0].kind, CacheChange::Kind::copy);
  EXPECT_EQ(plan.changes[0].n_keep, 59);
  EXPECT_EQ(plan.changes[1].kind, CacheChange::Kind::truncate);
  EXPECT_EQ(plan.changes[1].slot, 0);
  EXPECT_EQ(plan.changes[1].n_keep, 19);
}

// ---- simulation ----

// Sequences as the real model keeps them, with its refusals as assertions.
class FakeModel {
 public:
  FakeModel(int n_slots, int n_ctx) : n_ctx_(n_ctx), sequences_(static_cast<size_t>(n_slots)) {}

  void change(const CacheChange& change) {
    const bool copy = change.kind == CacheChange::Kind::copy;
    ASSERT_EQ(copy, change.from >= 0);
    ASSERT_NE(change.from, change.slot);
    auto& sequence = sequences_[static_cast<size_t>(change.slot)];
    if (copy) sequence = sequences_[static_cast<size_t>(change.from)];
    if (change.kind == CacheChange::Kind::shift) {
      ASSERT_EQ(static_cast<int>(sequence.size()), n_ctx_);
      ASSERT_EQ(change.n_keep % 256 + change.n_discard % 256, 0);
      sequence.erase(sequence.begin() + change.n_keep,
                     sequence.begin() + change.n_keep + change.n_discard);
      return;
    }
    ASSERT_GE(change.n_keep, 0);
    ASSERT_LE(change.n_keep, static_cast<int>(sequence.size()));
    sequence.resize(static_cast<size_t>(change.n_keep));
  }
  // The next token for each row with logits.
  std::vector<int32_t> step(const StepPlan& plan) {
    std::vector<int32_t> out;
    std::set<int> ended;
    int previous = -1;
    for (const ScheduledRow& row : plan.rows) {
      if (row.slot != previous) EXPECT_TRUE(ended.insert(row.slot).second) << "rows not together";
      previous = row.slot;
      auto& sequence = sequences_[static_cast<size_t>(row.slot)];
      EXPECT_EQ(row.pos, static_cast<int>(sequence.size()));
      EXPECT_LT(row.pos, n_ctx_);
      sequence.push_back(row.token);
      if (row.want_logits) out.push_back(hash_token(sequence));
    }
    return out;
  }
  const std::vector<int32_t>& sequence(int slot) const {
    return sequences_[static_cast<size_t>(slot)];
  }

 private:
  int n_ctx_;
  std::vector<std::vector<int32_t>> sequences_;
};

struct Tracked {
  ScheduledRequest request;
  uint64_t order = 0;
  std::vector<int32_t> tokens;
  int steps_without_row = 0;
  bool started = false;
};

struct Answer {
  std::vector<int32_t> tokens;
  StopReason reason = StopReason::none;
  bool operator==(const Answer&) const = default;
};

// How a shift changes the sequence, written apart from the scheduler. False: no shift.
bool shift_alone(const ScheduledRequest& r, int n_ctx, std::vector<int32_t>& all) {
  const int pages = n_ctx / 256, asked = r.n_keep < 0 ? static_cast<int>(r.prompt.size())
                                                      : std::min(r.n_keep, static_cast<int>(r.prompt.size()));
  if (pages < 2) return false;
  const int keep = std::min((asked + 255) / 256, pages - 2);
  int discard = r.n_discard == 0 ? (pages - keep) / 2 : (r.n_discard + 128) / 256;
  discard = std::max(1, std::min(discard, pages - keep - 1));
  all.erase(all.begin() + 256 * keep, all.begin() + 256 * (keep + discard));
  return true;
}

Answer solo(const ScheduledRequest& request, int n_ctx, bool shift) {
  Answer answer;
  std::vector<int32_t> all = request.prompt;
  if (request.n_predict == 0) return {{}, StopReason::limit};
  for (;;) {
    const int32_t token = hash_token(all);
    answer.tokens.push_back(token);
    if (is_end(token, shift)) {
      answer.reason = StopReason::eos;
    } else if (static_cast<int>(answer.tokens.size()) == request.n_predict) {
      answer.reason = StopReason::limit;
    } else if (static_cast<int>(all.size()) == n_ctx && !(shift && shift_alone(request, n_ctx, all))) {
      answer.reason = StopReason::context_full;
    }
    if (answer.reason != StopReason::none) return answer;
    all.push_back(token);
  }
}

class Simulation {
 public:
  Simulation(uint64_t seed, int n_slots, int max_queue, int n_ctx = 96)
      : random_(seed),
        n_slots_(n_slots),
        max_queue_(max_queue),
        context_(n_ctx),
        shift_(n_ctx >= 512),
        scheduler_(n_slots, n_ctx, max_queue, shift_),
        model_(n_slots, n_ctx) {}

  void run(int n_requests) {
    int left = n_requests;
    int idle_rounds = 0;
    while (left > 0 || !live_.empty()) {
      // Mostly as much as fits; now and then a burst into a full queue.
      const bool burst = below(40) == 0;
      for (uint64_t n = below(4); n > 0 && left > 0 && (burst || has_room()); --n, --left) submit();
      if (below(shift_ ? 600 : 24) == 0) cancel_one();
      hold_some();
      step();
      if (testing::Test::HasFailure()) return;
      idle_rounds = left == 0 ? idle_rounds + 1 : 0;
      ASSERT_LT(idle_rounds, 100000) << "requests never end";
    }
    for (const auto& held : held_) scheduler_.let_go(held.first);
    EXPECT_TRUE(scheduler_.idle());
  }

  int n_done = 0, n_cancelled = 0, n_busy = 0, n_refused = 0, n_reused = 0, n_copies = 0, n_shifts = 0, n_holds = 0;

 private:
  bool has_room() const { return static_cast<int>(live_.size()) < n_slots_ + max_queue_; }
  uint64_t below(uint64_t n) { return random_() % n; }

  void submit() {
    ScheduledRequest r;
    r.id = ++next_id_;
    // One of a few common beginnings, so that prefixes are shared.
    const int most = shift_ ? context_ - 30 : 50;
    const int n_shared = static_cast<int>(below(static_cast<uint64_t>(most)));
    const int family = static_cast<int>(below(5));
    r.prompt = prompt_of(n_shared, family * 1000);
    for (uint64_t n = below(below(12) == 0 ? 80 : 20); n > 0; --n) {
      r.prompt.push_back(static_cast<int32_t>(below(3)));
    }
    r.n_predict = below(3) == 0 ? -1 : static_cast<int>(below(25));
    if (shift_) {
      r.n_predict = static_cast<int>(below(900));
      r.n_keep = static_cast<int>(below(700)) - 1;
      r.n_discard = below(2) == 0 ? 0 : static_cast<int>(below(900));
    }
    r.cache_prompt = below(8) != 0;
    if (below(6) == 0) r.id_slot = static_cast<int>(below(static_cast<uint64_t>(n_slots_)));
    const Status status = scheduler_.submit(r);
    const auto n = static_cast<int>(r.prompt.size());
    if (n == 0 || n >= context_) {
      ASSERT_FALSE(status.ok());
      ASSERT_EQ(status.error().kind, n == 0 ? ErrorKind::refused : ErrorKind::too_long);
      ++n_refused;
      return;
    }
    const int limit = max_queue_ + n_slots_;
    ASSERT_EQ(status.ok(), static_cast<int>(live_.size()) < limit);
    if (!status.ok()) {
      ASSERT_EQ(status.error().kind, ErrorKind::busy);
      ++n_busy;
      return;
    }
    const uint64_t id = r.id;
    live_[id] = {std::move(r), id, {}, 0, false};
  }

  void cancel_one() {
    if (live_.empty() || below(10) == 0) {
      EXPECT_FALSE(scheduler_.cancel(next_id_ + 1000));
      return;
    }
    auto it = live_.begin();
    std::advance(it, static_cast<long>(below(live_.size())));
    EXPECT_TRUE(scheduler_.cancel(it->first));
    EXPECT_FALSE(scheduler_.cancel(it->first));
    EXPECT_EQ(slot_of(scheduler_, it->first), -1);
    live_.erase(it);
    ++n_cancelled;
  }

  // As a save does: an idle slot is taken for a while, and is then what it was.
  void hold_some() {
    const int slot = static_cast<int>(below(static_cast<uint64_t>(n_slots_)));
    const Scheduler::Slot& state = scheduler_.slots()[static_cast<size_t>(slot)];
    if (state.phase == Phase::idle && below(3) == 0) {
      scheduler_.hold(slot);
      held_[slot] = state.cached;
      ++n_holds;
    } else if (state.phase == Phase::held && below(2) == 0) {
      ASSERT_EQ(state.cached, held_.at(slot));
      ASSERT_EQ(model_.sequence(slot), held_.at(slot));
      scheduler_.let_go(slot);
      held_.erase(slot);
    }
  }

  void step() {
    const int budget = n_slots_ + static_cast<int>(below(30));
    std::vector<uint64_t> waiting;
    for (const auto& [id, tracked] : live_) {
      if (!tracked.started) waiting.push_back(id);
    }
    const bool idle = scheduler_.idle();
    const StepPlan plan = scheduler_.plan(budget);
    ASSERT_LE(static_cast<int>(plan.rows.size()), budget);
    ASSERT_EQ(plan.rows.empty(), idle);
    ASSERT_TRUE(live_.empty() ? idle : !idle || !held_.empty());
    for (const CacheChange& change : plan.changes) {
      n_copies += change.kind == CacheChange::Kind::copy ? 1 : 0;
      n_shifts += change.kind == CacheChange::Kind::shift ? 1 : 0;
      model_.change(change);
    }
    check_owners(waiting);
    const std::vector<int32_t> drawn = model_.step(plan);
    scheduler_.ran(plan);
    for (int i = 0; i < n_slots_; ++i) {
      ASSERT_EQ(scheduler_.slots()[static_cast<size_t>(i)].cached, model_.sequence(i));
    }
    check_progress(plan);
    take(plan, drawn);
  }

  // Each request has one slot at most, each slot one live request, and nobody jumped the queue.
  void check_owners(const std::vector<uint64_t>& waiting) {
    std::set<uint64_t> owners;
    bool any_idle = false;
    for (const Scheduler::Slot& slot : scheduler_.slots()) {
      any_idle = any_idle || slot.phase == Phase::idle;
      if (!slot.serving()) continue;
      ASSERT_TRUE(live_.contains(slot.request));
      ASSERT_TRUE(owners.insert(slot.request).second);
    }
    bool left_behind = false;
    std::set<int> promised;
    for (const uint64_t id : waiting) {  // oldest first
      Tracked& tracked = live_.at(id);
      const int slot = slot_of(scheduler_, id), pin = tracked.request.id_slot;
      if (slot >= 0) {
        tracked.started = true;
        n_reused += scheduler_.slots()[static_cast<size_t>(slot)].n_reused;
        ASSERT_TRUE(pin < 0 || pin == slot);
        ASSERT_FALSE(left_behind) << "an unpinned request was passed";
        ASSERT_FALSE(promised.contains(slot)) << "a pinned request was passed on its slot";
      } else if (pin < 0) {
        left_behind = true;
        ASSERT_FALSE(any_idle);
      } else {
        promised.insert(pin);
        ASSERT_NE(scheduler_.slots()[static_cast<size_t>(pin)].phase, Phase::idle);
      }
    }
  }

  void check_progress(const StepPlan& plan) {
    std::set<int> served;
    for (const ScheduledRow& row : plan.rows) served.insert(row.slot);
    for (int i = 0; i < n_slots_; ++i) {
      const Scheduler::Slot& slot = scheduler_.slots()[static_cast<size_t>(i)];
      if (!slot.serving()) continue;
      int& idle = live_.at(slot.request).steps_without_row;
      idle = served.contains(i) ? 0 : idle + 1;
      ASSERT_LE(idle, n_slots_) << "a slot starves";
    }
  }

  void take(const StepPlan& plan, const std::vector<int32_t>& drawn) {
    size_t index = 0;
    for (const ScheduledRow& row : plan.rows) {
      if (!row.want_logits) continue;
      const int32_t token = drawn[index++];
      const uint64_t id = scheduler_.slots()[static_cast<size_t>(row.slot)].request;
      live_.at(id).tokens.push_back(token);
      const StopReason reason =
          scheduler_.sampled(row.slot, token, is_end(token, shift_) ? StopReason::eos : StopReason::none);
      if (reason != StopReason::none) end(row.slot, id, reason);
    }
    for (int i = 0; i < n_slots_; ++i) {
      const Scheduler::Slot& slot = scheduler_.slots()[static_cast<size_t>(i)];
      if (slot.phase == Phase::generate && slot.n_predict == 0) {
        end(i, slot.request, StopReason::limit);
      }
    }
  }

  void end(int slot, uint64_t id, StopReason reason) {
    const Answer got{live_.at(id).tokens, reason};
    ASSERT_EQ(got, solo(live_.at(id).request, context_, shift_)) << "request " << id;
    scheduler_.release(slot);
    live_.erase(id);
    ++n_done;
  }

  std::mt19937_64 random_;
  int n_slots_, max_queue_, context_;
  bool shift_;
  Scheduler scheduler_;
  FakeModel model_;
  std::map<uint64_t, Tracked> live_;
  std::map<int, std::vector<int32_t>> held_;  // what each held slot holds
  uint64_t next_id_ = 0;
};

TEST(SchedulerSimulation, AnswersEqualSoloRuns) {
  const char* wanted = std::getenv("BANTAM_SEED");
  const uint64_t first = wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : 20261123;
  int total = 0, done = 0, reused = 0, busy = 0, cancelled = 0, copies = 0, holds = 0;
  for (uint64_t i = 0; i < 24; ++i) {
    const uint64_t seed = first + i;
    const int n_slots = 1 + static_cast<int>(i % 6), max_queue = static_cast<int>(i % 4) * 7;
    SCOPED_TRACE(testing::Message() << "BANTAM_SEED=" << seed);
    Simulation simulation(seed, n_slots, max_queue);
    simulation.run(1500);
    if (HasFailure()) {
      std::fprintf(stderr, "failed with BANTAM_SEED=%llu\n", static_cast<unsigned long long>(seed));
      return;
    }
    total += simulation.n_done + simulation.n_cancelled + simulation.n_busy + simulation.n_refused;
    done += simulation.n_done;
    reused += simulation.n_reused;
    busy += simulation.n_busy;
    cancelled += simulation.n_cancelled;
    copies += simulation.n_copies;
    holds += simulation.n_holds;
  }
  std::printf(
      "seed %llu: %d requests, %d answered, %d busy, %d cancelled, %d prompt tokens reused, "
      "%d prefixes of other slots, %d slots held\n",
      static_cast<unsigned long long>(first), total, done, busy, cancelled, reused, copies, holds);
  EXPECT_EQ(total, 24 * 1500);
  EXPECT_GT(done, 20000);
  EXPECT_GT(busy, 100);
  EXPECT_GT(cancelled, 1000);
  EXPECT_GT(reused, 10000);
  EXPECT_GT(copies, 1000);
  EXPECT_GT(holds, 1000);
}

TEST(SchedulerSimulation, ShiftedAnswersEqualSoloRuns) {
  const char* wanted = std::getenv("BANTAM_SEED");
  const uint64_t first = wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : 20261125;
  int shifts = 0, done = 0, copies = 0;
  for (uint64_t i = 0; i < 12; ++i) {
    SCOPED_TRACE(testing::Message() << "BANTAM_SEED=" << first + i);
    Simulation simulation(first + i, 1 + static_cast<int>(i % 4), 5, 512 + 256 * static_cast<int>(i % 3));
    simulation.run(250);
    if (HasFailure()) return;
    shifts += simulation.n_shifts;
    done += simulation.n_done;
    copies += simulation.n_copies;
  }
  std::printf("seed %llu: %d answered, %d shifts, %d prefixes of other slots\n",
              static_cast<unsigned long long>(first), done, shifts, copies);
  EXPECT_GT(done, 500);
  EXPECT_GT(shifts, 200);
  EXPECT_GT(copies, 80);
}

}  // namespace
}  // namespace bantam
