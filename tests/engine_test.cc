// Engine on the built-in model: answers do not depend on company, one last event for every request,
// stop strings, cancel, seeds, limits, prefix reuse, destruction in the middle of it all.
#include "engine/engine.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <future>
#include <mutex>
#include <string>
#include <vector>

#include "text/utf8_stream.h"

namespace bantam {
namespace {

// Collects the events of one request; wait() returns when the last one came.
class Collector {
 public:
  GenSink sink() {
    return [this](const GenEvent& event) {
      const std::lock_guard lock(mutex_);
      EXPECT_FALSE(ended_) << "an event after the last one";
      text += event.text;
      EXPECT_TRUE(valid_utf8(event.text));
      tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
      probs.insert(probs.end(), event.probs.begin(), event.probs.end());
      if (event.kind == GenEventKind::progress) progress.push_back(event.n_processed);
      if (event.kind == GenEventKind::token) ++n_token_events;
      ended_ = event.kind == GenEventKind::done || event.kind == GenEventKind::error;
      if (ended_) last = event;
      changed_.notify_all();
    };
  }
  void wait() {
    wait_for([this] { return ended_; });
  }
  void wait_for_token() {
    wait_for([this] { return ended_ || n_token_events > 0; });
  }

  std::string text;
  std::vector<int32_t> tokens;
  std::vector<TokenProb> probs;
  std::vector<int> progress;
  int n_token_events = 0;
  GenEvent last;

 private:
  template <class F>
  void wait_for(F&& ready) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(120), ready));
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
};

std::unique_ptr<Engine> start(int n_slots, int max_queue = 256, bool saves = false) {
  EngineOptions options;
  options.saves = saves;
  options.n_slots = n_slots;
  options.n_ctx = 512 * n_slots;
  options.n_threads = 2;
  Result<std::unique_ptr<LoadedModel>> model = LoadedModel::load(options);
  CHECK(model.ok());
  return Engine::start(std::move(*model), max_queue);
}

// Does one thing to a slot and waits for it.
Result<SlotDone> change(Engine& engine, SlotAction action, int slot, const std::string& path = "") {
  std::promise<Result<SlotDone>> promise;
  const Status status = engine.change_slot(
      action, slot, path, [&](const Result<SlotDone>& done) { promise.set_value(done); });
  if (!status) return status.error();
  return promise.get_future().get();
}

std::vector<int32_t> chat(const Engine& engine, const std::string& question) {
  const ChatMessage message{"user", question};
  return *encode_chatml(engine.model().tokenizer(), {&message, 1}, true);
}

GenRequest greedy(std::vector<int32_t> prompt, int n_predict = 48) {
  GenRequest request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0.0f;
  request.n_predict = n_predict;
  return request;
}

// Submits, waits, returns everything.
void generate(Engine& engine, GenRequest request, Collector& out) {
  const Result<uint64_t> id = engine.submit(std::move(request), out.sink());
  ASSERT_TRUE(id.ok()) << id.error().message;
  out.wait();
  EXPECT_EQ(out.last.id, *id);
}

const char* const kQuestions[] = {"What is the capital of France?", "What is the capital of Japan?",
                                  "Say hello.", "What is 2 + 2?"};

TEST(Engine, AnswersAQuestion) {
  const auto engine = start(1);
  Collector out;
  generate(*engine, greedy(chat(*engine, kQuestions[0])), out);
  EXPECT_EQ(out.text, "The capital of France is Paris.");
  EXPECT_EQ(out.last.kind, GenEventKind::done);
  EXPECT_EQ(out.last.stop, StopReason::eos);
  EXPECT_FALSE(out.last.truncated);
  EXPECT_GT(out.n_token_events, 3);
  const Timings& t = out.last.timings;
  EXPECT_EQ(t.cache_n + t.prompt_n, out.last.n_prompt);
  EXPECT_EQ(t.predicted_n, static_cast<int>(out.tokens.size()) + 1);  // the end token
  EXPECT_GT(t.prompt_ms, 0);
  const EngineMetrics metrics = engine->metrics();
  EXPECT_EQ(metrics.processing, 0);
  EXPECT_EQ(metrics.deferred, 0);
  EXPECT_EQ(metrics.predicted_tokens, static_cast<uint64_t>(t.predicted_n));
  EXPECT_EQ(metrics.kv_cells_used, engine->slots()[0].n_cached);
  EXPECT_GT(metrics.n_decode, 5u);
}

TEST(Engine, CompanyChangesNothing) {
  std::vector<std::string> alone;
  {
    const auto engine = start(1);
    for (const char* question : kQuestions) {
      Collector out;
      GenRequest request = greedy(chat(*engine, question));
      request.cache_prompt = false;
      generate(*engine, std::move(request), out);
      alone.push_back(out.text);
    }
  }
  for (const int n_slots : {2, 3}) {
    const auto engine = start(n_slots);
    Collector out[12];
    for (size_t i = 0; i < 12; ++i) {
      GenRequest request = greedy(chat(*engine, kQuestions[i % 4]));
      request.cache_prompt = i % 3 != 0;
      ASSERT_TRUE(engine->submit(std::move(request), out[i].sink()).ok());
    }
    for (size_t i = 0; i < 12; ++i) {
      out[i].wait();
      EXPECT_EQ(out[i].text, alone[i % 4]) << i;
    }
  }
}

TEST(Engine, ReusesThePrefix) {
  const auto engine = start(1);
  Collector first, second;
  generate(*engine, greedy(chat(*engine, kQuestions[0])), first);
  generate(*engine, greedy(chat(*engine, kQuestions[0])), second);
  EXPECT_EQ(second.text, first.text);
  EXPECT_EQ(second.last.timings.prompt_n, 1);
  EXPECT_EQ(second.last.timings.cache_n, second.last.n_prompt - 1);
}

// The second request takes its beginning from the slot of the first one, which is busy or just done.
TEST(Engine, SharesThePrefixOfAnotherSlot) {
  const auto engine = start(2);
  Collector busy, shared, alone;
  const std::vector<int32_t> prompt = chat(*engine, kQuestions[0]);
  GenRequest endless = greedy(prompt, -1);
  endless.ignore_eos = true;
  const Result<uint64_t> id = engine->submit(endless, busy.sink());
  ASSERT_TRUE(id.ok());
  busy.wait_for_token();
  GenRequest same = greedy(prompt);
  same.id_slot = 1;
  generate(*engine, std::move(same), shared);
  EXPECT_EQ(shared.text, "The capital of France is Paris.");
  EXPECT_EQ(shared.last.timings.cache_n, static_cast<int>(prompt.size()) - 1);
  EXPECT_EQ(shared.last.timings.prompt_n, 1);
  engine->cancel(*id);
  busy.wait();
  GenRequest fresh = greedy(chat(*engine, kQuestions[1]));
  fresh.cache_prompt = false;
  generate(*engine, std::move(fresh), alone);
  EXPECT_EQ(alone.last.timings.cache_n, 0);
}

// Bits of the logits: a sequence that began as a copy against one that was computed.
TEST(LoadedModel, CopiedSequencesGiveTheSameBits) {
  EngineOptions options;
  options.n_slots = 3;
  options.n_ctx = 3 * 768;
  options.n_threads = 2;
  options.n_logit_rows = 64;
  Result<std::unique_ptr<LoadedModel>> loaded = LoadedModel::load(options);
  ASSERT_TRUE(loaded.ok());
  LoadedModel& model = **loaded;
  std::vector<int32_t> tokens;
  for (int i = 0; i < 600; ++i) tokens.push_back((i * 37 + i / 7) % 900);
  const auto run = [&](int seq, int n) {
    std::vector<float> all;
    const std::span<const int32_t> rest(tokens.data() + model.length(seq),
                                        static_cast<size_t>(n - model.length(seq)));
    EXPECT_TRUE(model.eval(seq, rest, 0, true, [&](int, std::span<const float> logits) {
      all.insert(all.end(), logits.begin(), logits.begin() + 64);
    }));
    return all;
  };
  const std::vector<float> whole = run(0, 600);
  const auto tail_of = [&](int from) {
    return std::vector<float>(whole.begin() + from * 64, whole.end());
  };
  for (const int n : {1, 255, 256, 300, 512, 513, 599}) {
    model.copy(0, 1, n);
    model.copy(1, 2, n);
    model.truncate(2, n - 1);
    EXPECT_EQ(run(1, 600), tail_of(n)) << n;
    EXPECT_EQ(run(2, 600), tail_of(n - 1)) << n;
  }
  // The sequence they were copied from is what it was.
  model.copy(0, 1, 600);
  model.truncate(0, 560);
  EXPECT_EQ(run(0, 600), tail_of(560));
}

TEST(Engine, StopStringsAreNotShown) {
  const auto engine = start(1);
  for (const std::string stop : {" France", "capital of Fr", "is Paris", "T"}) {
    Collector out;
    GenRequest request = greedy(chat(*engine, kQuestions[0]));
    request.stop = {"never", stop};
    generate(*engine, std::move(request), out);
    const std::string whole = "The capital of France is Paris.";
    EXPECT_EQ(out.text, whole.substr(0, whole.find(stop)));
    EXPECT_EQ(out.last.stop, StopReason::word);
    EXPECT_EQ(out.last.stopping_word, stop);
  }
  Collector out;  // a beginning that never becomes a stop string is shown in the end
  GenRequest request = greedy(chat(*engine, kQuestions[0]));
  request.stop = {"Paris. And"};
  generate(*engine, std::move(request), out);
  EXPECT_EQ(out.text, "The capital of France is Paris.");
}

TEST(Engine, PredictsAsManyAsAsked) {
  const auto engine = start(1);
  for (const int n : {0, 1, 5}) {
    Collector out;
    GenRequest request = greedy(chat(*engine, kQuestions[0]), n);
    request.progress = true;
    generate(*engine, std::move(request), out);
    EXPECT_EQ(out.last.stop, StopReason::limit);
    EXPECT_EQ(out.last.timings.predicted_n, n);
    EXPECT_EQ(static_cast<int>(out.tokens.size()), n);
    ASSERT_FALSE(out.progress.empty());
    EXPECT_EQ(out.progress.back(), out.last.n_prompt);
  }
}

TEST(Engine, TheContextEndsAnAnswer) {
  const auto engine = start(1);
  const int n_ctx = engine->model().report().n_ctx;
  Collector out;
  GenRequest request = greedy(chat(*engine, kQuestions[0]), -1);
  request.ignore_eos = true;
  const int n_prompt = static_cast<int>(request.prompt.size());
  generate(*engine, std::move(request), out);
  EXPECT_EQ(out.last.stop, StopReason::context_full);
  EXPECT_TRUE(out.last.truncated);
  EXPECT_EQ(out.last.timings.predicted_n, n_ctx - n_prompt + 1);
  for (const int32_t token : out.tokens) EXPECT_FALSE(engine->model().tokenizer().is_end(token));
}

// An answer longer than the context: the same beside others and with other threads.
TEST(Engine, ShiftsGoOnWhereTheContextEnds) {
  std::vector<int32_t> alone, kept;
  for (const auto& [n_threads, n_slots] : {std::pair{1, 1}, std::pair{2, 3}}) {
    EngineOptions options;
    options.context_shift = true;
    options.n_slots = n_slots;
    options.n_ctx = 768 * n_slots;
    options.n_threads = n_threads;
    Result<std::unique_ptr<LoadedModel>> model = LoadedModel::load(options);
    ASSERT_TRUE(model.ok()) << model.error().message;
    std::vector<std::string> notes;
    const auto engine = Engine::start(std::move(*model), 8, [&](const std::string& note) { notes.push_back(note); });
    Collector out[3];
    for (int i = 0; i < 3; ++i) {
      GenRequest request = greedy(chat(*engine, kQuestions[0]), 1050);
      request.sampling.temperature = 1.0f;
      request.sampling.seed = 3;
      request.ignore_eos = true;
      request.n_keep = i < 2 ? 0 : -1;
      request.n_discard = i < 2 ? 0 : 100;
      ASSERT_TRUE(engine->submit(std::move(request), out[i].sink()).ok());
    }
    for (Collector& collector : out) {
      collector.wait();
      EXPECT_EQ(collector.last.stop, StopReason::limit);
      EXPECT_TRUE(collector.last.truncated);
      EXPECT_EQ(collector.tokens.size(), 1050u);
    }
    if (alone.empty()) {
      alone = out[0].tokens;
      kept = out[2].tokens;
    }
    EXPECT_EQ(out[0].tokens, alone);
    EXPECT_EQ(out[1].tokens, alone);
    EXPECT_EQ(out[2].tokens, kept);
    const int n_prompt = out[0].last.n_prompt;
    const int full = 768 - n_prompt + 1;  // tokens drawn before the first shift
    EXPECT_TRUE(std::equal(alone.begin(), alone.begin() + full, kept.begin()));
    EXPECT_NE(alone, kept);
    ASSERT_FALSE(notes.empty());
    EXPECT_NE(notes[0].find("context shift"), std::string::npos);
    Collector after;  // what was shifted serves no other prompt
    generate(*engine, greedy(chat(*engine, kQuestions[0])), after);
    EXPECT_EQ(after.text, "The capital of France is Paris.");
    EXPECT_FALSE(after.last.truncated);
  }
}

TEST(LoadedModel, ContextShiftNeedsTwoPages) {
  EngineOptions options;
  options.context_shift = true;
  options.n_ctx = 256;
  const Result<ModelReport> plan = LoadedModel::plan(options);
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.error().kind, ErrorKind::refused);
  EXPECT_NE(plan.error().message.find("at least 512"), std::string::npos);
}

// Bits of logits after shifts: any threads, any chunks.
TEST(LoadedModel, ThreadsAndChunksChangeNothingAfterAShift) {
  std::vector<float> first;
  for (const auto& [n_threads, chunk] : {std::pair{1, 1}, std::pair{2, 64}, std::pair{3, 7}}) {
    EngineOptions options;
    options.context_shift = true;
    options.n_ctx = 1024;
    options.n_threads = n_threads;
    options.n_logit_rows = 64;
    Result<std::unique_ptr<LoadedModel>> loaded = LoadedModel::load(options);
    ASSERT_TRUE(loaded.ok());
    LoadedModel& model = **loaded;
    std::vector<int32_t> tokens;
    for (int i = 0; i < 1024; ++i) tokens.push_back((i * 37 + i / 7) % 900);
    std::vector<float> all;
    const auto sink = [&](int, std::span<const float> logits) { all.insert(all.end(), logits.begin(), logits.begin() + 50); };
    ASSERT_TRUE(model.eval(0, tokens, chunk, false, {}));
    model.shift(0, 256, 256);
    ASSERT_TRUE(model.eval(0, {tokens.data(), 256}, chunk, true, sink));
    model.shift(0, 256, 512);
    ASSERT_TRUE(model.eval(0, {tokens.data(), 40}, chunk, true, sink));
    if (first.empty()) first = all;
    EXPECT_EQ(all, first) << n_threads << " threads, chunks of " << chunk;
  }
}

TEST(Engine, SeedsRepeat) {
  const auto engine = start(2);
  const auto draw = [&](int64_t seed, Collector& out) {
    GenRequest request = greedy(chat(*engine, "Say hello."), 24);
    request.sampling.temperature = 1.5f;
    request.sampling.min_p = 0.0f;
    request.sampling.seed = seed;
    request.ignore_eos = true;
    generate(*engine, std::move(request), out);
  };
  Collector a, b, c, random, again;
  draw(7, a);
  draw(7, b);
  draw(8, c);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_NE(a.tokens, c.tokens);
  EXPECT_EQ(a.last.seed, 7u);
  draw(-1, random);
  draw(static_cast<int64_t>(random.last.seed), again);
  EXPECT_EQ(random.tokens, again.tokens);
}

TEST(Engine, LogProbabilitiesComeWithTheTokens) {
  const auto engine = start(1);
  Collector out;
  GenRequest request = greedy(chat(*engine, kQuestions[0]));
  request.n_probs = 3;
  generate(*engine, std::move(request), out);
  ASSERT_EQ(out.probs.size(), out.tokens.size() * 4);
  for (size_t i = 0; i < out.tokens.size(); ++i) {
    EXPECT_EQ(out.probs[4 * i].token, out.tokens[i]);
    EXPECT_EQ(out.probs[4 * i + 1].token, out.tokens[i]);  // greedy
    EXPECT_LE(out.probs[4 * i].logprob, 0.0f);
  }
}

TEST(Engine, CancelsWhileGeneratingPrefillingAndQueued) {
  const auto engine = start(1);
  Collector running, queued, gone;
  GenRequest endless = greedy(chat(*engine, kQuestions[0]), -1);
  endless.ignore_eos = true;
  const Result<uint64_t> first = engine->submit(endless, running.sink());
  ASSERT_TRUE(first.ok());
  running.wait_for_token();
  const Result<uint64_t> second = engine->submit(endless, queued.sink());
  ASSERT_TRUE(second.ok());
  engine->cancel(*second);
  queued.wait();
  EXPECT_EQ(queued.last.stop, StopReason::cancelled);
  EXPECT_EQ(queued.last.timings.predicted_n, 0);
  engine->cancel(*first);
  running.wait();
  EXPECT_TRUE(running.last.stop == StopReason::cancelled ||
              running.last.stop == StopReason::context_full);
  engine->cancel(*first);  // unknown now
  GenRequest filler = greedy(std::vector<int32_t>(500, endless.prompt[0]), -1);
  const Result<uint64_t> third = engine->submit(filler, gone.sink());
  ASSERT_TRUE(third.ok());
  engine->cancel(*third);
  gone.wait();
  EXPECT_EQ(gone.last.stop, StopReason::cancelled);
  Collector after;
  generate(*engine, greedy(chat(*engine, kQuestions[0])), after);
  EXPECT_EQ(after.text, "The capital of France is Paris.");
}

TEST(Engine, SavedSlotsGoOnWhereTheyWere) {
  char folder[] = "/tmp/bantam_engine_XXXXXX";
  ASSERT_NE(::mkdtemp(folder), nullptr);
  const std::string path = std::string(folder) + "/slot";
  Collector before, after, again;
  std::vector<int32_t> prompt;
  int n_saved = 0;
  {
    const auto engine = start(1, 4, true);
    prompt = chat(*engine, kQuestions[0]);
    EXPECT_EQ(change(*engine, SlotAction::save, 0, path).error().kind, ErrorKind::refused);  // empty
    generate(*engine, greedy(prompt), before);
    const Result<SlotDone> saved = change(*engine, SlotAction::save, 0, path);
    ASSERT_TRUE(saved.ok()) << saved.error().message;
    n_saved = saved->n_tokens;
    EXPECT_EQ(n_saved, engine->slots()[0].n_cached);
    EXPECT_EQ(change(*engine, SlotAction::save, 0, std::string(folder) + "/none/slot").error().kind,
              ErrorKind::failed);
    EXPECT_EQ(engine->slots()[0].n_cached, n_saved);
  }
  const auto engine = start(2, 4, true);
  EXPECT_FALSE(change(*engine, SlotAction::restore, 1, path + "x").ok());
  const Result<SlotDone> restored = change(*engine, SlotAction::restore, 1, path);
  ASSERT_TRUE(restored.ok()) << restored.error().message;
  EXPECT_EQ(restored->slot, 1);
  EXPECT_EQ(restored->n_tokens, n_saved);
  EXPECT_EQ(engine->slots()[1].n_cached, n_saved);
  generate(*engine, greedy(prompt), after);
  EXPECT_EQ(after.last.slot, 1);
  EXPECT_EQ(after.last.timings.prompt_n, 1);
  EXPECT_EQ(after.tokens, before.tokens);
  const Result<SlotDone> erased = change(*engine, SlotAction::erase, 1);
  ASSERT_TRUE(erased.ok());
  EXPECT_EQ(erased->n_tokens, n_saved);
  EXPECT_EQ(engine->slots()[1].n_cached, 0);
  generate(*engine, greedy(prompt), again);
  EXPECT_EQ(again.last.timings.cache_n, 0);
  EXPECT_EQ(again.tokens, before.tokens);
  EXPECT_EQ(change(*engine, SlotAction::erase, 2).error().kind, ErrorKind::refused);
  EXPECT_EQ(change(*engine, SlotAction::erase, -1).error().kind, ErrorKind::refused);
  ::unlink(path.c_str());
  EXPECT_EQ(::rmdir(folder), 0);
  const auto plain = start(1);
  EXPECT_EQ(change(*plain, SlotAction::save, 0, path).error().kind, ErrorKind::refused);
  EXPECT_TRUE(change(*plain, SlotAction::erase, 0).ok());
}

// A busy slot is changed when its request is over, before the next one takes it; at the end every job is answered.
TEST(Engine, SlotJobsWaitForTheirSlot) {
  auto engine = start(1);
  Collector running, next;
  GenRequest endless = greedy(chat(*engine, kQuestions[0]), -1);
  endless.ignore_eos = true;
  const Result<uint64_t> id = engine->submit(endless, running.sink());
  ASSERT_TRUE(id.ok());
  running.wait_for_token();
  std::promise<Result<SlotDone>> erased, last;
  ASSERT_TRUE(engine->change_slot(SlotAction::erase, 0, "", [&](const Result<SlotDone>& done) {
    erased.set_value(done);
  }));
  ASSERT_TRUE(engine->submit(endless, next.sink()).ok());
  engine->cancel(*id);
  running.wait();
  const Result<SlotDone> done = erased.get_future().get();
  ASSERT_TRUE(done.ok());
  EXPECT_GT(done->n_tokens, 0);
  next.wait_for_token();
  ASSERT_TRUE(engine->change_slot(SlotAction::erase, 0, "", [&](const Result<SlotDone>& result) {
    last.set_value(result);
  }));
  engine.reset();
  const Result<SlotDone> ended = last.get_future().get();
  EXPECT_TRUE(ended.ok() || ended.error().kind == ErrorKind::cancelled);
  next.wait();
  EXPECT_EQ(next.last.timings.cache_n, 0);
}

TEST(Engine, RefusesAtOnce) {
  const auto engine = start(1);
  const auto kind = [&](auto change) {
    GenRequest request = greedy(chat(*engine, kQuestions[0]));
    change(request);
    const Result<uint64_t> id = engine->submit(std::move(request), [](const GenEvent&) {
      ADD_FAILURE() << "an event of a refused request";
    });
    EXPECT_FALSE(id.ok());
    return id.ok() ? ErrorKind::failed : id.error().kind;
  };
  EXPECT_EQ(kind([](auto& r) { r.prompt.clear(); }), ErrorKind::refused);
  EXPECT_EQ(kind([](auto& r) { r.prompt.push_back(-1); }), ErrorKind::refused);
  EXPECT_EQ(kind([](auto& r) { r.prompt.push_back(1 << 30); }), ErrorKind::refused);
  EXPECT_EQ(kind([](auto& r) { r.prompt.assign(512, 1); }), ErrorKind::too_long);
  EXPECT_EQ(kind([](auto& r) { r.id_slot = 1; }), ErrorKind::refused);
  EXPECT_EQ(kind([](auto& r) { r.sampling.top_p = 2.0f; }), ErrorKind::refused);
  EXPECT_EQ(kind([](auto& r) { r.stop.assign(100, "x"); }), ErrorKind::refused);
}

TEST(Engine, AFullQueueIsBusyAndEveryoneElseIsServed) {
  const auto engine = start(2, 3);
  Collector out[5], late;
  GenRequest endless = greedy(chat(*engine, kQuestions[0]), -1);
  endless.ignore_eos = true;
  std::vector<uint64_t> ids;
  for (Collector& collector : out) {
    const Result<uint64_t> id = engine->submit(endless, collector.sink());
    ASSERT_TRUE(id.ok()) << id.error().message;
    ids.push_back(*id);
  }
  const Result<uint64_t> busy = engine->submit(endless, late.sink());
  if (!busy.ok()) {
    EXPECT_EQ(busy.error().kind, ErrorKind::busy);
  }
  for (const uint64_t id : ids) engine->cancel(id);
  if (busy.ok()) engine->cancel(*busy);
  for (Collector& collector : out) {
    collector.wait();
    EXPECT_EQ(collector.last.kind, GenEventKind::done);
  }
  if (busy.ok()) late.wait();
}

TEST(Engine, DestructionEndsEveryRequest) {
  for (int round = 0; round < 8; ++round) {
    Collector out[6];
    auto engine = start(2);
    GenRequest endless = greedy(chat(*engine, kQuestions[0]), -1);
    endless.ignore_eos = true;
    for (Collector& collector : out) {
      ASSERT_TRUE(engine->submit(endless, collector.sink()).ok());
    }
    if (round % 2 == 1) out[0].wait_for_token();
    engine.reset();
    for (Collector& collector : out) {
      collector.wait();
      EXPECT_EQ(collector.last.kind, GenEventKind::done);
      EXPECT_EQ(collector.last.stop, StopReason::cancelled);
    }
  }
}

}  // namespace
}  // namespace bantam
