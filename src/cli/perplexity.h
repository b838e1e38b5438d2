// What `bantam perplexity` runs and measures. Owns the protocol (which positions of which chunks
// are scored) and the result; refuses texts that are too short for it. perplexity.cc runs the
// chunks, perplexity_print.cc prints.
#pragma once

#include "base/result.h"
#include "cli/args.h"
#include "cli/kl_stats.h"

namespace bantam {

// llama-perplexity's protocol: each chunk starts from an empty cache (with BOS in place of its
// first token where the model wants one); of each the positions [first, n_ctx - 1) are scored.
struct ScorePlan {
  int n_ctx = 0;  // tokens of a chunk
  int step = 0;   // tokens from chunk to chunk
  int first = 0;
  int n_chunks = 0;
};

// Tokens of a chunk before the text is known; refuses strides that leave nothing to condition on.
Result<ScorePlan> plan_scores(const CliOptions& options);
// Fills in n_chunks.
Status count_chunks(ScorePlan& plan, int64_t n_tokens, int most);

struct Scores {
  ScorePlan plan;
  bool divergence = false;
  MeanSum nll;    // perplexity
  KlStats stats;  // divergence
  double seconds = 0;
  ModelReport report;
};

// After each chunk: running values in the text form, nothing in the others.
void print_chunk(const CliOptions& options, const Scores& scores, int done);
void print_scores(const CliOptions& options, const Scores& scores);

}  // namespace bantam
