// LoadedModel: a model file bound, packed and ready, with its cache, tokenizer and plan.
// Synchronous: one caller at a time. load() refuses before memory is taken: unsupported types,
// impossible plans, too little memory (with what would fit).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/plan.h"
#include "base/result.h"
#include "codec/types.h"
#include "cpu/factory.h"
#include "model/model.h"
#include "text/chat_format.h"
#include "text/tokenizer.h"

namespace bantam {

struct EngineOptions {
  std::string model_path;  // empty: the built-in model
  std::string alias;       // shown as the model's id; empty: general.name or file name
  KvType type_k = KvType::q8_0;
  KvType type_v = KvType::q8_0;
  int n_ctx =
      -1;  // all slots together; -1: what fits up to the training context; 0: the training context
  int n_slots = 1;          // each gets n_ctx / n_slots, rounded up to 256
  int n_threads = 0;        // 0: physical big cores allowed by affinity and cgroup
  int n_threads_batch = 0;  // 0: n_threads
  int n_batch = 2048;       // prompt tokens of one step at most
  int n_ubatch = 512;    // tokens computed together at most (the backend may use fewer at a time)
  int n_logit_rows = 0;  // rows with logits in one step; 0: one for each slot
  ActType act = ActType::i8;
  TeamWish team, team_batch;   // CPUs and priority of the threads
  std::string isa;             // BANTAM_ISA; empty: best
  bool context_shift = false;  // a full context drops its middle instead of ending the answer
  bool saves = false;          // slots will be saved or restored
  std::string pack_cache;      // folder of packed weights that later starts map; empty: none
};

// Facts of the model and of this run; everything `info`, /props and /v1/models print.
struct ModelReport {
  std::string model_path;  // "built-in" or the path
  std::string id;          // alias or name
  std::string name;        // general.name
  std::string arch;
  std::string weight_types;  // "Q1_0 x 43, F32 x 25"
  int64_t n_params = 0;
  int64_t file_bytes = 0;
  int64_t matrix_weights =
      0;  // multiplied for each token: all matrices, the embedding only when tied
  int64_t matrix_bytes = 0;  // of these, packed
  int n_vocab = 0;
  int n_layers = 0;
  int d_model = 0;
  int d_ff = 0;
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int n_ctx_train = 0;
  int n_ctx = 0;  // of one slot, after rounding
  int n_slots = 0;
  int n_threads = 0;
  int n_threads_batch = 0;
  KvType type_k = KvType::q8_0;
  KvType type_v = KvType::q8_0;
  ActType act = ActType::i8;
  std::string backend;                // "CPU"
  std::string isa;                    // "avx512"
  std::string cpu;                    // model name of the CPU
  std::string attention;              // AttentionPlan::describe()
  std::string chat_template;          // from the file, may be empty
  TeamWish team;                      // as asked for
  std::vector<std::string> warnings;  // wishes met in part, a sentence each
  MemoryPlan memory;
  int64_t kv_bytes_k = 0;
  int64_t kv_bytes_v = 0;
  LoadReport load;  // once loaded
};

// The lines printed at start, as users know them (DESIGN section 5).
std::vector<std::string> report_lines(const ModelReport& report);
// The line after loading: how long it took, what was read, what is mapped.
std::string load_line(const ModelReport& report);

class LoadedModel {
 public:
  // Plans without taking memory for weights: what load() would do, or its refusal.
  static Result<ModelReport> plan(const EngineOptions& options);
  // The tokenizer alone, without weights.
  static Result<Tokenizer> tokenizer_of(const EngineOptions& options);
  // planned: called with the report before weights are read (to print the memory plan).
  static Result<std::unique_ptr<LoadedModel>> load(
      const EngineOptions& options, const std::function<void(const ModelReport&)>& planned = {},
      const LoadEvents& events = {});
  ~LoadedModel();

  const ModelReport& report() const { return report_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  Model& model() { return *model_; }
  const Model& model() const { return *model_; }

  // Feeds tokens to a sequence from its present length on, in chunks of at most `chunk` rows (0:
  // n_ubatch). on_logits (may be empty) is called for every position when all_logits, else for the
  // last one only. Errors: the sequence would grow beyond its context; cancelled when keep_going
  // returns false between chunks. No memory is allocated.
  using LogitsSink = std::function<void(int pos, std::span<const float> logits)>;
  Status eval(int seq, std::span<const int32_t> tokens, int chunk, bool all_logits,
              const LogitsSink& on_logits, const std::function<bool()>& keep_going = {});
  void truncate(int seq, int n_keep);              // keeps positions [0, n_keep)
  void copy(int from, int to, int n);              // `to` becomes the first n positions of `from`
  void shift(int seq, int n_keep, int n_discard);  // Model::shift
  void repeat(int seq, int n);                     // KvCache::repeat
  int length(int seq) const;

 private:
  LoadedModel();
  ModelReport report_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Model> model_;
  std::vector<BatchRow> rows_;  // of eval's present step; room for the largest from the start
};

// Names of the instruction sets that this CPU can run.
std::string instruction_sets();

// Measured now with both teams of the model loaded so (DESIGN section 1), for bench.
TeamSpeeds measure_machine(const ModelReport& report, const EngineOptions& options);

}  // namespace bantam
