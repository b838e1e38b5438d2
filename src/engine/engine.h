// THE boundary of the engine: LoadedModel (weights, cache, tokenizer; synchronous) and Engine (a
// thread that owns one). Re-exports the plan report, the memory plan and raw logits for the
// commands. Never prints, never exits.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/loaded_model.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/slot_jobs.h"

namespace bantam {

struct GenRequest {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int n_predict = -1;  // -1: until the end of the context; 0: only fill the cache
  std::vector<std::string> stop;
  bool cache_prompt = true;
  bool ignore_eos = false;
  int id_slot = -1;       // -1: any
  int n_keep = 0;         // with context shift: prompt tokens that stay; -1: all
  int n_discard = 0;      // tokens that a shift takes out; 0: half of the rest
  bool progress = false;  // also send prompt progress
  int n_probs = 0;        // top log probabilities per token, 0 = none
};

struct Timings {
  int cache_n = 0;   // prompt tokens taken from the cache
  int prompt_n = 0;  // prompt tokens computed
  double prompt_ms = 0;
  int predicted_n = 0;
  double predicted_ms = 0;
};

enum class GenEventKind { progress, token, done, error };

struct GenEvent {
  GenEventKind kind = GenEventKind::token;
  uint64_t id = 0;
  int slot = -1;
  std::string text;  // complete, valid UTF-8; stop strings held back; `done` carries the rest
  std::vector<int32_t> tokens;   // the tokens behind `text`
  std::vector<TokenProb> probs;  // for each of `tokens`: itself (first), then the top n_probs
  int n_processed = 0;           // prompt tokens so far (progress)
  int n_prompt = 0;
  StopReason stop = StopReason::none;
  std::string stopping_word;
  bool truncated = false;
  Timings timings;
  uint64_t seed = 0;  // the sampler's (done)
  Error error;        // kind == error
};

using GenSink = std::function<void(const GenEvent&)>;

struct SlotInfo {
  int id = 0;
  int n_ctx = 0;
  bool is_processing = false;
  uint64_t request = 0;
  int n_cached = 0;  // positions in the cache
  int n_decoded = 0;
  int n_remain = -1;
  SamplingParams sampling;
};

struct EngineMetrics {
  uint64_t prompt_tokens = 0;
  double prompt_seconds = 0;
  uint64_t predicted_tokens = 0;
  double predicted_seconds = 0;
  uint64_t n_decode = 0;  // batches run
  int processing = 0;
  int deferred = 0;
  int64_t kv_cells_used = 0;
  int64_t kv_cells = 0;
};

class Engine {
 public:
  // Takes the model and starts the engine thread. max_queue: requests waiting beyond the slots.
  // note: called on the engine thread with a sentence for the log. Error: the kernel refuses a
  // thread.
  static Result<std::unique_ptr<Engine>> start(std::unique_ptr<LoadedModel> model,
                                               int max_queue = 256,
                                               std::function<void(const std::string&)> note = {});
  ~Engine();  // cancels everything, joins

  const LoadedModel& model() const { return *model_; }  // immutable facts, tokenizer: any thread

  // Queues a request. Errors at once: refused (bad values), too_long (prompt >= context), busy
  // (queue full). The sink runs on the engine thread, must not block, and gets exactly one done or
  // error event as the last.
  Result<uint64_t> submit(GenRequest request, GenSink sink);
  // Ends the request within one step with StopReason::cancelled. Unknown ids are ignored.
  void cancel(uint64_t id);

  // Saves a slot to a file, restores it from one, or erases it, once the slot is idle; while its
  // file is written or read the other slots go on. Errors at once: refused (no such slot; saving
  // without EngineOptions::saves), busy. The sink runs once, on the engine thread.
  Status change_slot(SlotAction action, int slot, std::string path, SlotSink sink,
                     GivenUp given_up = {});

  std::vector<SlotInfo> slots() const;
  EngineMetrics metrics() const;

 private:
  Engine();
  struct Impl;
  std::unique_ptr<LoadedModel> model_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bantam
