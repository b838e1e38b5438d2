// What `bantam bench` measured: tests, configurations and rows with the figures derived from them.
// Owns the samples of a row; refuses nothing. bench.cc runs the tests, bench_print.cc prints rows.
#pragma once

#include <string>
#include <vector>

#include "cli/args.h"

namespace bantam {

struct BenchTest {
  int n_prompt = 0, n_gen = 0, depth = 0;
  int n_parallel = 1;   // sequences that generate together, one token of each in a step
  bool copies = false;  // beyond kRealDepth the depth is filled with copies
  std::string name() const;
};

struct BenchConfig {
  KvType k, v;
  int n_threads, n_batch, n_ubatch;
};

struct BenchRow {
  BenchTest test;
  BenchConfig config;
  std::string started;  // UTC
  ModelReport report;
  std::vector<double> seconds;
  MachineSpeed machine;  // of the team that ran the test

  double tokens() const { return double(test.n_parallel) * (test.n_prompt + test.n_gen); }
  // Its steps, or those of its prompt, are of several rows.
  bool on_batch_team() const {
    const bool prompt_rows = test.n_prompt > 1 && config.n_batch > 1 && config.n_ubatch > 1;
    return prompt_rows || test.n_parallel > 1;
  }
  double median_s() const;
  double tokens_per_s() const { return tokens() / median_s(); }  // the median run's
  std::vector<double> rates() const;
  // What one step of pure generation must read: every matrix once (of the embedding only a row,
  // unless it is the output too) and the cache of every sequence. 0 for tests with a prompt.
  double read_gb_s() const;
  double read_share() const;
  // Weights applied to tokens, 1e9 a second, which is multiply-adds too: the output matrix runs
  // for the last prompt token and for generated ones only.
  double g_weights_s() const;
  double int8_share() const;      // of the nominal peak
  double measured_share() const;  // of the measured dot rate
};

void print_bench(const std::vector<BenchRow>& rows, const std::string& format);

}  // namespace bantam
