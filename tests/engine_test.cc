// Engine on the built-in model: answers do not depend on company, one last event for every request,
// stop strings, cancel, seeds, limits, prefix reuse, destruction in the middle of it all.
#include "engine/engine.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <future>
#include <iterator>
#include <limits>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/hash.h"
#include "codec/kv_layout.h"
#include "model/kv_file.h"
#include "no_threads.h"
#include "tests/support/temp_folder.h"
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
  void wait_for_token(int n = 1) {
    wait_for([this, n] { return ended_ || n_token_events >= n; });
  }
  int tokens_so_far() {
    const std::lock_guard lock(mutex_);
    return n_token_events;
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

std::unique_ptr<Engine> start(int n_slots, int max_queue = 256, bool saves = false,
                              bool shifts = false) {
  EngineOptions options;
  options.context_shift = shifts;
  options.saves = saves;
  options.n_slots = n_slots;
  options.n_ctx = 512 * n_slots;
  options.n_threads = 2;
  Result<std::unique_ptr<LoadedModel>> model = LoadedModel::load(options);
  CHECK(model.ok());
  Result<std::unique_ptr<Engine>> engine = Engine::start(std::move(*model), max_queue);
  CHECK(engine.ok());
  return std::move(*engine);
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
    const auto started = Engine::start(std::move(*model), 8, [&](const std::string& note) { notes.push_back(note); });
    ASSERT_TRUE(started.ok());
    const std::unique_ptr<Engine>& engine = *started;
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
  const TempFolder folder;
  const std::string path = folder.path() + "/slot";
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
    EXPECT_EQ(change(*engine, SlotAction::save, 0, folder.path() + "/none/slot").error().kind,
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

// Nothing else happens in the engine when the slot's request ends by itself.
TEST(Engine, SlotJobsBeginWhenTheirSlotIsDone) {
  const auto engine = start(1);
  Collector running;
  GenRequest request = greedy(chat(*engine, kQuestions[0]), 40);
  request.ignore_eos = true;
  ASSERT_TRUE(engine->submit(std::move(request), running.sink()).ok());
  running.wait_for_token();
  const auto erased = std::make_shared<std::promise<Result<SlotDone>>>();
  ASSERT_TRUE(engine->change_slot(SlotAction::erase, 0, "", [erased](const Result<SlotDone>& done) {
    erased->set_value(done);
  }));
  running.wait();
  std::future<Result<SlotDone>> done = erased->get_future();
  ASSERT_EQ(done.wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_TRUE(done.get().ok());
}

// A disk that hangs: the thread of a slot's file stops at the nth question whether to go on, until it is let through.
class Gate {
 public:
  // engine: of which only other threads than its own are stopped.
  Gate(Engine& engine, int at) : at_(at) {
    std::promise<std::thread::id> own;
    CHECK(engine.change_slot(SlotAction::erase, 2, "", [&](const Result<SlotDone>&) { own.set_value(std::this_thread::get_id()); }));
    engine_thread_ = own.get_future().get();
  }
  GivenUp given_up() {
    return [this] {
      std::unique_lock lock(mutex_);
      if (std::this_thread::get_id() == engine_thread_) return false;
      if (++n_ == at_) {
        reached_ = true;
        changed_.notify_all();
        changed_.wait(lock, [this] { return open_; });
      }
      return gives_up_ && open_;
    };
  }
  bool wait() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(120), [this] { return reached_; });
  }
  void open(bool gives_up = false) {
    const std::lock_guard lock(mutex_);
    gives_up_ = gives_up;
    open_ = true;
    changed_.notify_all();
  }
  ~Gate() { open(); }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread::id engine_thread_;
  int at_, n_ = 0;
  bool reached_ = false, open_ = false, gives_up_ = false;
};

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// Three slots; of slot 0 more than a page is in the cache, and slot 1 answers without end.
class SlotFile : public ::testing::Test {
 protected:
  void SetUp() override {
    engine = start(3, 8, true, true);
    prompt = chat(*engine, kQuestions[0]);
    GenRequest fill = greedy(prompt, 280);
    fill.ignore_eos = true;
    fill.id_slot = 0;
    Collector filled;
    generate(*engine, std::move(fill), filled);
    n_cached = engine->slots()[0].n_cached;
    ASSERT_GT(n_cached, 256);
    GenRequest endless = greedy(chat(*engine, kQuestions[2]), -1);
    endless.ignore_eos = true;
    endless.id_slot = 1;
    const Result<uint64_t> id = engine->submit(std::move(endless), stream.sink());
    ASSERT_TRUE(id.ok());
    stream_id = *id;
    stream.wait_for_token();
  }
  void TearDown() override {
    if (engine) engine->cancel(stream_id);
    stream.wait();
    engine.reset();
    ::unlink(path.c_str());
  }
  // Begins it; the answer comes later.
  std::future<Result<SlotDone>> begin(SlotAction action, Gate& gate) {
    auto promise = std::make_shared<std::promise<Result<SlotDone>>>();
    EXPECT_TRUE(engine->change_slot(action, 0, path, [promise](const Result<SlotDone>& done) { promise->set_value(done); },
                                    gate.given_up()).ok());
    return promise->get_future();
  }
  // While a file's thread hangs: the stream goes on, another slot answers, whoever wants slot 0 waits.
  void others_go_on(const char* when) {
    SCOPED_TRACE(when);
    stream.wait_for_token(stream.tokens_so_far() + 30);
    Collector other, pinned;
    GenRequest request = greedy(prompt);
    request.id_slot = 2;
    generate(*engine, request, other);
    EXPECT_EQ(other.text, "The capital of France is Paris.");
    n_shared = other.last.timings.cache_n;
    request.id_slot = 0;
    const Result<uint64_t> id = engine->submit(request, pinned.sink());
    ASSERT_TRUE(id.ok());
    stream.wait_for_token(stream.tokens_so_far() + 30);
    EXPECT_EQ(pinned.tokens_so_far(), 0);
    EXPECT_FALSE(engine->slots()[0].is_processing);
    engine->cancel(*id);
    pinned.wait();
    EXPECT_EQ(pinned.last.stop, StopReason::cancelled);
  }
  Result<SlotDone> save() { return change(*engine, SlotAction::save, 0, path); }

  const TempFolder temp;
  const std::string path = temp.path() + "/slot";
  std::unique_ptr<Engine> engine;
  std::vector<int32_t> prompt;
  Collector stream;
  uint64_t stream_id = 0;
  int n_cached = 0, n_shared = 0;
};

TEST_F(SlotFile, OthersGoOnWhileItIsWritten) {
  ASSERT_TRUE(save().ok());
  const std::string alone = content(path);
  ::unlink(path.c_str());
  Gate gate(*engine, 5);
  std::future<Result<SlotDone>> saved = begin(SlotAction::save, gate);
  ASSERT_TRUE(gate.wait());
  EXPECT_EQ(::access((path + ".unfinished").c_str(), F_OK), 0);
  others_go_on("saving");
  EXPECT_EQ(n_shared, static_cast<int>(prompt.size()) - 1) << "the slot that is saved still serves others";
  EXPECT_NE(::access(path.c_str(), F_OK), 0);
  gate.open();
  const Result<SlotDone> done = saved.get();
  ASSERT_TRUE(done.ok()) << done.error().message;
  EXPECT_EQ(done->n_tokens, n_cached);
  EXPECT_EQ(content(path), alone) << "what the others did is in the file";
}

TEST_F(SlotFile, OthersGoOnWhileItIsRead) {
  ASSERT_TRUE(save().ok());
  const int n_pieces = 2 * engine->model().report().n_layers;  // of two pages
  for (const int at : {4, n_pieces + 4}) {  // it is checked; it is read into the slot
    Gate gate(*engine, at);
    std::future<Result<SlotDone>> restored = begin(SlotAction::restore, gate);
    ASSERT_TRUE(gate.wait());
    others_go_on("restoring");
    EXPECT_EQ(engine->slots()[0].n_cached, at == 4 ? n_cached : 0);
    // What was in the slot serves others until it goes; half a sequence never does.
    EXPECT_EQ(n_shared == static_cast<int>(prompt.size()) - 1, at == 4) << n_shared;
    gate.open();
    const Result<SlotDone> done = restored.get();
    ASSERT_TRUE(done.ok()) << done.error().message;
    EXPECT_EQ(done->n_tokens, n_cached);
    EXPECT_EQ(engine->slots()[0].n_cached, n_cached);
  }
  const std::string before = content(path);
  ASSERT_TRUE(save().ok());
  EXPECT_EQ(content(path), before);
}

TEST_F(SlotFile, WhoLeavesEndsIt) {
  ASSERT_TRUE(save().ok());
  const std::string before = content(path);
  Collector more;
  GenRequest request = greedy(prompt, 3);
  request.id_slot = 0;
  generate(*engine, std::move(request), more);
  const int n_now = engine->slots()[0].n_cached;
  const int n_pieces = 2 * engine->model().report().n_layers;
  const struct {
    SlotAction action;
    int at, n_left;
  } cases[] = {{SlotAction::save, 3, n_now}, {SlotAction::restore, 4, n_now}, {SlotAction::restore, n_pieces + 4, 0}};
  for (const auto& c : cases) {
    Gate gate(*engine, c.at);
    std::future<Result<SlotDone>> left = begin(c.action, gate);
    ASSERT_TRUE(gate.wait());
    gate.open(true);
    const Result<SlotDone> done = left.get();
    ASSERT_FALSE(done.ok());
    EXPECT_EQ(done.error().kind, ErrorKind::cancelled);
    EXPECT_EQ(done.error().message.find("the slot is empty now") != std::string::npos, c.n_left == 0);
    EXPECT_EQ(engine->slots()[0].n_cached, c.n_left);
    EXPECT_EQ(content(path), before);
    Collector after;
    request = greedy(prompt);
    request.id_slot = 0;
    generate(*engine, std::move(request), after);
    EXPECT_EQ(after.text, "The capital of France is Paris.");
    // As before the case: the whole answer's slot would be longer.
    ASSERT_TRUE(change(*engine, SlotAction::restore, 0, path).ok());
    Collector again;
    request = greedy(prompt, 3);
    request.id_slot = 0;
    generate(*engine, std::move(request), again);
    ASSERT_EQ(engine->slots()[0].n_cached, n_now);
  }
}

// A disk that hangs and clients that left meanwhile lock nobody out, also while nothing else happens.
TEST_F(SlotFile, WhoLeftTheQueueMakesRoom) {
  Gate gate(*engine, 5);
  std::future<Result<SlotDone>> saved = begin(SlotAction::save, gate);
  ASSERT_TRUE(gate.wait());
  engine->cancel(stream_id);
  stream.wait();
  const auto left = std::make_shared<std::atomic<bool>>(false);
  const auto ask = [&](int slot) {
    return engine->change_slot(SlotAction::erase, slot, "", [](const Result<SlotDone>&) {}, [left] { return left->load(); });
  };
  int n = 0;
  while (n < 100 && ask(0).ok()) ++n;
  EXPECT_EQ(n, 2 * 3 + 16 - 1);
  EXPECT_EQ(ask(2).error().kind, ErrorKind::busy);
  left->store(true);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  bool accepted = false;
  while (!accepted && std::chrono::steady_clock::now() < deadline) {
    accepted = ask(2).ok();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_TRUE(accepted);
  gate.open();
  EXPECT_TRUE(saved.get().ok());
  EXPECT_EQ(engine->slots()[0].n_cached, n_cached) << "a job of a client that left was done";
}

// Whoever only waits for the thread of the files holds no slot, and its place among the jobs of its slot.
TEST_F(SlotFile, OnesThatQueueHoldNoSlot) {
  Gate gate(*engine, 5);
  std::future<Result<SlotDone>> saved = begin(SlotAction::save, gate);
  ASSERT_TRUE(gate.wait());
  others_go_on("before");  // slot 2 has something
  const std::string other = path + "2";
  const auto left = std::make_shared<std::atomic<bool>>(false);
  const auto ask = [&](SlotAction action, GivenUp given_up) {
    const auto answer = std::make_shared<std::promise<Result<SlotDone>>>();
    EXPECT_TRUE(engine->change_slot(action, 2, other, [answer](const Result<SlotDone>& done) { answer->set_value(done); },
                                    std::move(given_up)).ok());
    return answer->get_future();
  };
  std::future<Result<SlotDone>> gone = ask(SlotAction::save, [left] { return left->load(); });
  std::future<Result<SlotDone>> stays = ask(SlotAction::save, {}), erased = ask(SlotAction::erase, {});
  others_go_on("behind the files");
  left->store(true);
  ASSERT_EQ(gone.wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_EQ(gone.get().error().kind, ErrorKind::cancelled);
  const int n_held = engine->slots()[2].n_cached;
  EXPECT_GT(n_held, 0) << "the erasing overtook the saving";
  gate.open();
  EXPECT_TRUE(saved.get().ok());
  const Result<SlotDone> first = stays.get(), second = erased.get();
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->n_tokens, n_held);
  EXPECT_EQ(second->n_tokens, n_held);
  ::unlink(other.c_str());
}

// Between two files of a slot whoever waits for it is served.
TEST_F(SlotFile, RequestsAreServedBetweenFiles) {
  Gate gate(*engine, 5), second(*engine, 2);
  std::future<Result<SlotDone>> saved = begin(SlotAction::save, gate);
  ASSERT_TRUE(gate.wait());
  std::future<Result<SlotDone>> again = begin(SlotAction::save, second);
  Collector pinned;
  GenRequest request = greedy(prompt);
  request.id_slot = 0;
  ASSERT_TRUE(engine->submit(request, pinned.sink()).ok());
  stream.wait_for_token(stream.tokens_so_far() + 3);  // the engine knows of both
  gate.open();
  EXPECT_TRUE(saved.get().ok());
  pinned.wait();
  EXPECT_EQ(pinned.text, "The capital of France is Paris.");
  ASSERT_TRUE(second.wait());
  second.open();
  const Result<SlotDone> last = again.get();
  ASSERT_TRUE(last.ok());
  EXPECT_LT(last->n_tokens, n_cached) << "of the answer between them";
}

// Every job is answered, and the file of that name is whole.
TEST_F(SlotFile, TheEngineEndsInTheMiddleOfIt) {
  ASSERT_TRUE(save().ok());
  const std::string before = content(path);
  const int n_pieces = 2 * engine->model().report().n_layers;
  Gate gate(*engine, n_pieces + 4);
  std::future<Result<SlotDone>> restored = begin(SlotAction::restore, gate);
  ASSERT_TRUE(gate.wait());
  std::promise<Result<SlotDone>> behind;
  ASSERT_TRUE(engine->change_slot(SlotAction::save, 0, path, [&](const Result<SlotDone>& done) { behind.set_value(done); }));
  std::thread ending([&] { engine.reset(); });
  stream.wait();  // from here on nothing begins any more
  gate.open();
  ending.join();
  const Result<SlotDone> done = restored.get(), never = behind.get_future().get();
  EXPECT_TRUE(done.ok() || done.error().message == "the engine ends") << done.error().message;
  ASSERT_FALSE(never.ok());
  EXPECT_EQ(never.error().kind, ErrorKind::cancelled);
  EXPECT_EQ(never.error().message, "the engine ends");
  EXPECT_EQ(content(path), before);
}

// A saved sequence whose second position has a key that is no number, as an encoder writes it.
void poison(const std::string& path, const ModelReport& report) {
  std::string text = content(path);
  const auto bytes = std::as_writable_bytes(std::span(text));
  const Result<SavedHeader> header = parse_saved_header(bytes.first(kSavedHeaderBytes), bytes.size());
  ASSERT_TRUE(header.ok());
  size_t at = kSavedHeaderBytes + 4 * static_cast<size_t>(header->n_tokens);
  const size_t scale = at + static_cast<size_t>(kv_quant_layout(8, false, report.head_dim).scales) + 2;
  bytes[scale] = std::byte{0};
  bytes[scale + 1] = std::byte{0x7e};
  uint64_t sum = hash_bytes(bytes.first(kSavedHeaderBytes));
  sum = hash_bytes(bytes.subspan(kSavedHeaderBytes, at - kSavedHeaderBytes), sum);
  for (const auto piece = static_cast<size_t>(header->page_bytes()); at + 8 < bytes.size(); at += piece) {
    sum = hash_bytes(bytes.subspan(at, piece), sum);
  }
  std::memcpy(bytes.data() + at, &sum, 8);
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
}

// What shares the beginning of a slot that failed is forgotten with it, whichever of them fails first.
TEST(Engine, BadValuesAreForgottenByAllWhoShareThem) {
  const TempFolder folder;
  const std::string path = folder.path() + "/slot";
  const auto engine = start(3, 4, true);
  const std::vector<int32_t> prompt = chat(*engine, kQuestions[0]);
  const auto ask = [&](int slot, int n_predict, Collector& out) {
    GenRequest request = greedy(prompt, n_predict);
    request.id_slot = slot;
    generate(*engine, std::move(request), out);
  };
  Collector first;
  ask(0, 8, first);
  ASSERT_TRUE(change(*engine, SlotAction::save, 0, path).ok());
  poison(path, engine->model().report());
  for (const int failing : {0, 1}) {
    for (int slot = 0; slot < 3; ++slot) ASSERT_TRUE(change(*engine, SlotAction::erase, slot).ok());
    ASSERT_TRUE(change(*engine, SlotAction::restore, 0, path).ok());
    Collector copied, bad, after[3];
    ask(1, 0, copied);  // only takes the beginning
    ASSERT_EQ(copied.last.kind, GenEventKind::done);
    ASSERT_EQ(copied.last.timings.cache_n, static_cast<int>(prompt.size()) - 1);
    ask(failing, 8, bad);
    ASSERT_EQ(bad.last.kind, GenEventKind::error) << "the poisoned key was not read";
    EXPECT_NE(bad.last.error.message.find("finite"), std::string::npos);
    for (const SlotInfo& slot : engine->slots()) EXPECT_EQ(slot.n_cached, 0);
    for (const int slot : {1, 0, 2}) {
      ask(slot, 48, after[slot]);
      EXPECT_EQ(after[slot].text, "The capital of France is Paris.") << slot;
    }
  }
  ::unlink(path.c_str());
}

// Slot 0 is being saved when a request that began alike finds bad values: before the file gets its name the old one
// stays, after that nothing does.
TEST_F(SlotFile, BadValuesAreNotSaved) {
  ASSERT_TRUE(save().ok());
  const std::string before = content(path), bad_path = path + "2";
  std::ofstream(bad_path, std::ios::binary) << before;
  poison(bad_path, engine->model().report());
  for (const bool named : {false, true}) {
    ASSERT_TRUE(change(*engine, SlotAction::restore, 0, path).ok());
    if (named) ::unlink(path.c_str());
    Gate gate(*engine, 5);
    ASSERT_TRUE(change(*engine, SlotAction::restore, 2, bad_path).ok());
    std::future<Result<SlotDone>> saved = begin(SlotAction::save, gate);
    ASSERT_TRUE(gate.wait());
    GenRequest request = greedy(prompt);
    request.id_slot = 2;
    request.progress = true;
    Collector bad;
    const GenSink sink = bad.sink();
    // Its prompt is done, what comes of it not yet looked at.
    const auto name_it = [&](const GenEvent& event) {
      if (named && event.kind == GenEventKind::progress) {
        gate.open();
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
        while (::access(path.c_str(), F_OK) != 0 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
      }
      sink(event);
    };
    ASSERT_TRUE(engine->submit(request, name_it).ok());
    bad.wait();
    ASSERT_EQ(bad.last.kind, GenEventKind::error) << "the poisoned key was not read";
    gate.open();
    const Result<SlotDone> done = saved.get();
    ASSERT_FALSE(done.ok());
    EXPECT_EQ(done.error().kind, ErrorKind::refused) << done.error().message;
    if (named) {
      EXPECT_NE(::access(path.c_str(), F_OK), 0) << "it would be restored one day";
    } else {
      EXPECT_EQ(content(path), before);
    }
    // Nor afterwards, until something else is in the slot.
    EXPECT_EQ(save().error().kind, ErrorKind::refused);
    Collector after;
    request = greedy(prompt);
    request.id_slot = 0;
    generate(*engine, std::move(request), after);
    EXPECT_EQ(after.text, "The capital of France is Paris.");
    if (!named) {
      const std::string other = path + "3";
      EXPECT_TRUE(change(*engine, SlotAction::save, 0, other).ok());
      ::unlink(other.c_str());
    }
  }
  ::unlink(bad_path.c_str());
}

// A request that forbids every token ends alone: what it, and others that began alike, have in the cache stays.
TEST(Engine, ForbiddingEveryTokenCostsNobodyTheCache) {
  const auto engine = start(2, 4);
  const std::vector<int32_t> prompt = chat(*engine, kQuestions[0]);
  Collector first, nothing, after;
  generate(*engine, greedy(prompt), first);
  const int n_cached = engine->slots()[static_cast<size_t>(first.last.slot)].n_cached;
  ASSERT_GT(n_cached, static_cast<int>(prompt.size()));
  GenRequest request = greedy(prompt);
  request.id_slot = 1 - first.last.slot;
  for (int32_t token = 0; token < engine->model().tokenizer().n_vocab(); ++token) {
    request.sampling.logit_bias.emplace_back(token, -std::numeric_limits<float>::infinity());
  }
  generate(*engine, request, nothing);
  ASSERT_EQ(nothing.last.kind, GenEventKind::error);
  EXPECT_EQ(nothing.last.error.kind, ErrorKind::refused);
  EXPECT_NE(nothing.last.error.message.find("logit_bias"), std::string::npos) << nothing.last.error.message;
  EXPECT_TRUE(nothing.tokens.empty());
  EXPECT_EQ(engine->slots()[static_cast<size_t>(first.last.slot)].n_cached, n_cached);
  EXPECT_EQ(engine->slots()[static_cast<size_t>(request.id_slot)].n_cached, static_cast<int>(prompt.size()));
  request = greedy(prompt);
  request.id_slot = first.last.slot;
  generate(*engine, request, after);
  EXPECT_EQ(after.last.timings.cache_n, static_cast<int>(prompt.size()) - 1);
  EXPECT_EQ(after.tokens, first.tokens);
  EXPECT_EQ(engine->metrics().deferred, 0);
}

TEST(Engine, WithoutThreadsThereIsAnError) {
  for (const bool saves : {false, true}) {
    const auto load = [saves] {
      EngineOptions options;
      options.n_ctx = 256;
      options.n_threads = 1;
      options.saves = saves;
      Result<std::unique_ptr<LoadedModel>> model = LoadedModel::load(options);
      return std::make_shared<std::unique_ptr<LoadedModel>>(model ? std::move(*model) : nullptr);
    };
    const auto check = [saves](const std::shared_ptr<std::unique_ptr<LoadedModel>>& model) {
      if (!*model) return 10;
      const Result<std::unique_ptr<Engine>> engine = Engine::start(std::move(*model));
      if (engine.ok()) return 11;
      const std::string wanted = saves ? "cannot start the thread that saves slots" : "cannot start the engine's thread";
      return engine.error().kind == ErrorKind::failed && engine.error().message.starts_with(wanted) ? 0 : 12;
    };
    without_threads(load, check);
  }
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
