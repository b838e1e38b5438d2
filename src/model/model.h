// Model: weights bound strictly (name, type, shape), the KV cache, and the decoder written once
// over a Backend. step() runs one batch of rows of any sequences; logits only for the rows asked
// for. One caller at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/plan.h"
#include "base/result.h"
#include "gguf/gguf.h"
#include "model/config.h"
#include "model/kv_file.h"
#include "model/loader.h"

namespace bantam {

struct BatchRow {
  int32_t token = 0;
  int32_t seq = 0;
  int32_t pos = 0;  // must be the sequence's length at that point of the batch
  bool want_logits = false;
};

struct ModelOptions {
  KvType type_k = KvType::q8_0;
  KvType type_v = KvType::q8_0;
  int n_ctx = 256;  // of one sequence, a multiple of 256
  int n_seqs = 1;
  int max_rows = 64;       // rows of one step at most
  int max_logit_rows = 1;  // rows with logits in one step at most
  ActType act = ActType::i8;
  bool shifts = false;  // sequences may be shifted
  bool saves = false;   // sequences will be saved or restored: the file's fingerprint is taken
  LoadOptions load;
};

class Model {
 public:
  // Bytes of the packed weights, from the directory alone; refuses files that do not bind.
  static Result<int64_t> weight_bytes(const Gguf& file, const ModelConfig& config,
                                      const Backend& backend);
  static int64_t kv_bytes(const ModelConfig& config, const AttentionPlan& plan, int n_ctx,
                          int n_seqs);
  static int64_t compute_bytes(const ModelConfig& config, const ModelOptions& options,
                               const Backend& backend);

  static Result<std::unique_ptr<Model>> load(const Gguf& file, const ModelConfig& config,
                                             const AttentionPlan& plan, const ModelOptions& options,
                                             std::unique_ptr<Backend> backend,
                                             const LoadEvents& events);
  ~Model();

  const ModelConfig& config() const;
  const ModelOptions& options() const;
  const LoadReport& load_report() const;

  // rows: at most max_rows, at most max_logit_rows of them with logits; rows of one sequence
  // ascending and contiguous. Refuses (CHECK) rows beyond the context or out of order. No memory is
  // allocated.
  void step(std::span<const BatchRow> rows);
  // Logits of rows [first, first + n) of the last step, in place of those asked for there; n at
  // most max_logit_rows. The same bits.
  void project(int first, int n);
  // Of the i-th row with logits of the last step or project: [n_vocab].
  std::span<const float> logits(int i) const;

  int length(int seq) const;  // positions in the cache
  void truncate(int seq, int n_keep);
  // Sequence `to` becomes the first n positions of `from`, sharing pages.
  void copy(int from, int to, int n);
  void repeat(int seq, int n);  // KvCache::repeat
  // With ModelOptions::shifts: takes pages [n_keep, n_keep + n_discard), whole ones, out of it;
  // later positions move forward. The same n_keep as in earlier shifts of what it holds.
  void shift(int seq, int n_keep, int n_discard);
  // Saved sequences (kv_file.h), with ModelOptions::saves. All but make_room may run on any thread
  // beside the caller of the rest, who leaves that sequence alone meanwhile.
  // tokens: of all positions, at least one.
  Result<int64_t> save(int seq, std::span<const int32_t> tokens, const std::string& path,
                       const KeepGoing& keep_going = {}) const;
  Result<SavedSequence> open_saved(const std::string& path, const KeepGoing& keep_going = {}) const;
  void make_room(int seq, const SavedSequence& saved);
  Status fill(int seq, const SavedSequence& saved, const KeepGoing& keep_going = {});

 private:
  Model();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bantam
