// `bantam bench`: prompt and generation speed as llama-bench measures them, and generation of
// several sequences together, beside the read bandwidth and the int8 peak of the same run. Tests of
// one depth take turns, so that a slow minute of the machine does not fall on one of them alone;
// the machine is measured before and after, with the threads of each team, the better counts.
#include <algorithm>
#include <chrono>
#include <ctime>

#include "base/limits.h"
#include "base/log.h"
#include "cli/bench.h"
#include "cli/commands.h"

namespace bantam {

namespace {

using Clock = std::chrono::steady_clock;

std::string now_utc() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

constexpr int kRealDepth = 1024;  // --depth-copies repeats what lies before it

Result<std::vector<BenchTest>> make_tests(const CliOptions& o) {
  Result<std::vector<int>> pp = parse_list("-p", o.list_prompt, 0, 1 << 20);
  if (!pp) return pp.error();
  Result<std::vector<int>> tg = parse_list("-n", o.list_gen, 0, 1 << 20);
  if (!tg) return tg.error();
  Result<std::vector<int>> depths = parse_list("-d", o.list_depth, 0, 1 << 20);
  if (!depths) return depths.error();
  Result<std::vector<int>> parallel = parse_list("-npl", o.list_parallel, 1, kMaxSequences);
  if (!parallel) return parallel.error();
  std::vector<BenchTest> tests;
  for (const int depth : *depths) {
    for (const int n : *pp) {
      if (n > 0) tests.push_back({n, 0, depth, 1});
    }
    for (const int n : *tg) {
      for (size_t i = 0; n > 0 && i < parallel->size(); ++i) {
        tests.push_back({0, n, depth, (*parallel)[i]});
      }
    }
    for (size_t at = 0; at < o.list_pg.size();) {
      const size_t end = std::min(o.list_pg.find(';', at), o.list_pg.size());
      Result<std::vector<int>> pg = parse_list("-pg", o.list_pg.substr(at, end - at), 1, 1 << 20);
      if (!pg) return pg.error();
      CHECK(pg->size() == 2);  // checked when it was read
      for (const int n : *parallel) tests.push_back({(*pg)[0], (*pg)[1], depth, n});
      at = end + 1;
    }
  }
  for (BenchTest& test : tests) test.copies = o.depth_copies;
  if (tests.empty()) return refused("nothing to measure: -p, -n and -pg are all 0");
  return tests;
}

Result<std::vector<KvType>> make_types(const std::string& list) {
  std::vector<KvType> types;
  for (size_t at = 0; at <= list.size();) {
    const size_t comma = std::min(list.find(',', at), list.size());
    Result<KvType> type = parse_kv_type(list.substr(at, comma - at));
    if (!type) return type.error();
    types.push_back(*type);
    at = comma + 1;
  }
  return types;
}

Result<std::vector<BenchConfig>> make_configs(const CliOptions& o) {
  Result<std::vector<KvType>> ks = make_types(o.list_k), vs = make_types(o.list_v);
  if (!ks) return ks.error();
  if (!vs) return vs.error();
  const auto numbers = [](const char* name, const std::string& list, int missing) {
    if (list.empty()) return Result<std::vector<int>>(std::vector<int>{missing});
    return parse_list(name, list, 0, 1 << 20);  // checked when it was read
  };
  Result<std::vector<int>> threads = numbers("-t", o.list_threads, 0),
                           batches = numbers("-b", o.list_batch, o.engine.n_batch),
                           micro = numbers("-ub", o.list_ubatch, o.engine.n_ubatch);
  for (const auto* list : {&threads, &batches, &micro}) {
    if (!*list) return list->error();
  }
  std::vector<BenchConfig> configs;
  for (const KvType k : *ks) {
    for (const KvType v : *vs) configs.push_back({k, v, 0, 0, 0});
  }
  // One list after the other multiplies the configurations.
  const auto multiply = [&](const std::vector<int>& values, int BenchConfig::*field) {
    std::vector<BenchConfig> out;
    for (const BenchConfig& config : configs) {
      for (const int value : values) {
        out.push_back(config);
        out.back().*field = value;
      }
    }
    configs = std::move(out);
  };
  multiply(*threads, &BenchConfig::n_threads);
  multiply(*batches, &BenchConfig::n_batch);
  multiply(*micro, &BenchConfig::n_ubatch);
  return configs;
}

// Some token that is not the same everywhere; which one does not change the work.
std::vector<int32_t> some_tokens(int n, int n_vocab) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < n; ++i)
    tokens.push_back(static_cast<int32_t>((int64_t{i} * 7919 + 13) % n_vocab));
  return tokens;
}

// Each sequence by itself up to its depth, or through its prompt.
Status feed(LoadedModel& model, const BenchConfig& config, int seq, int n, bool logits) {
  if (n <= 0) return Ok{};
  const LoadedModel::LogitsSink ignore = [](int, std::span<const float>) {};
  return model.eval(seq, some_tokens(n, model.report().n_vocab),
                    std::min(config.n_batch, config.n_ubatch), false,
                    logits ? ignore : LoadedModel::LogitsSink{}, [] { return interrupts() == 0; });
}

// One token of every sequence in each step, all with logits.
Status generate(LoadedModel& model, const BenchTest& test) {
  const std::vector<int32_t> tokens =
      some_tokens(test.n_gen + test.n_parallel, model.report().n_vocab);
  std::vector<BatchRow> rows(static_cast<size_t>(test.n_parallel));
  for (int i = 0; i < test.n_gen; ++i) {
    if (interrupts() != 0) return Error{ErrorKind::cancelled, "cancelled"};
    for (int seq = 0; seq < test.n_parallel; ++seq) {
      rows[static_cast<size_t>(seq)] = {tokens[static_cast<size_t>(i + seq)], seq,
                                        model.length(seq), true};
    }
    model.model().step(rows);
  }
  return Ok{};
}

// Brings the sequence to the test's depth.
Status deepen(LoadedModel& model, const BenchTest& test, const BenchConfig& config, int seq) {
  const int real = test.copies ? std::min(test.depth, kRealDepth) : test.depth;
  if (Status status = feed(model, config, seq, real - model.length(seq), false); !status)
    return status;
  if (model.length(seq) < test.depth) model.repeat(seq, test.depth);
  model.truncate(seq, test.depth);
  return Ok{};
}

Result<double> run_once(LoadedModel& model, const BenchTest& test, const BenchConfig& config) {
  for (int seq = 0; seq < test.n_parallel; ++seq) {
    if (Status status = deepen(model, test, config, seq); !status) return status.error();
  }
  const auto start = Clock::now();
  for (int seq = 0; seq < test.n_parallel; ++seq) {
    if (Status status = feed(model, config, seq, test.n_prompt, true); !status)
      return status.error();
  }
  if (Status status = generate(model, test); !status) return status.error();
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  for (int seq = 0; seq < test.n_parallel; ++seq) model.truncate(seq, test.depth);
  return seconds;
}

// All rows of one depth, in turns.
Status run_depth(LoadedModel& model, const CliOptions& o, std::span<BenchRow> rows) {
  for (int seq = 0; seq < model.report().n_slots; ++seq) model.truncate(seq, 0);
  for (BenchRow& row : rows) {
    if (!o.warm_up) break;
    BenchTest warm_up = row.test;
    warm_up.n_prompt = std::min(row.test.n_prompt, 64);
    warm_up.n_gen = std::min(row.test.n_gen, 4);
    if (Result<double> once = run_once(model, warm_up, row.config); !once) return once.error();
  }
  for (int r = 0; r < o.repetitions; ++r) {
    for (BenchRow& row : rows) {
      if (row.started.empty()) row.started = now_utc();
      Result<double> seconds = run_once(model, row.test, row.config);
      if (!seconds) return seconds.error();
      row.seconds.push_back(*seconds);
      if (!o.progress) continue;
      log_info("K {} V {} {}: run {} of {}, {:.2f} tok/s", info(row.config.k).name,
               info(row.config.v).name, row.test.name(), r + 1, o.repetitions,
               row.tokens() / *seconds);
    }
  }
  return Ok{};
}

// Measured where the memory allows; a small board is not pushed into its swap for a number.
TeamSpeeds measure(const ModelReport& report, const EngineOptions& options) {
  constexpr int64_t kNeeded = 1 << 30;
  const int64_t available = available_memory_bytes();
  if (available > 0 && available < kNeeded) return {};
  return measure_machine(report, options);
}

MachineSpeed better(const MachineSpeed& a, const MachineSpeed& b) {
  return {std::max(a.read_gb_s, b.read_gb_s), std::max(a.int8_gmac_s, b.int8_gmac_s),
          std::max(a.int8_measured_gmac_s, b.int8_measured_gmac_s),
          std::max(a.clock_ghz, b.clock_ghz)};
}

Status run_config(const CliOptions& o, const BenchConfig& config,
                  const std::vector<BenchTest>& tests, std::vector<BenchRow>& rows) {
  CliOptions mine = o;
  mine.engine.type_k = config.k;
  mine.engine.type_v = config.v;
  mine.engine.n_threads = config.n_threads;
  mine.engine.n_batch = config.n_batch;
  mine.engine.n_ubatch = config.n_ubatch;
  // Every sequence gets the context of the longest test; -c is for all of them together.
  int most = 0, n_seqs = 1;
  for (const BenchTest& test : tests) {
    most = std::max(most, test.depth + test.n_prompt + test.n_gen);
    n_seqs = std::max(n_seqs, test.n_parallel);
  }
  mine.engine.n_ctx = most * n_seqs;
  mine.engine.n_slots = n_seqs;
  Result<std::unique_ptr<LoadedModel>> model = load_with_progress(mine);
  if (!model) return model.error();
  const ModelReport& report = (*model)->report();
  const TeamSpeeds before = measure(report, mine.engine);
  const size_t first = rows.size();
  for (const BenchTest& test : tests) rows.push_back({test, config, {}, report, {}, {}});
  for (size_t i = first; i < rows.size();) {
    size_t end = i;
    while (end < rows.size() && rows[end].test.depth == rows[i].test.depth) ++end;
    if (Status status = run_depth(**model, o, std::span(rows).subspan(i, end - i)); !status)
      return status;
    i = end;
  }
  const TeamSpeeds after = measure(report, mine.engine);
  for (size_t i = first; i < rows.size(); ++i) {
    rows[i].machine = rows[i].on_batch_team() ? better(before.batch, after.batch)
                                              : better(before.single, after.single);
  }
  return Ok{};
}

}  // namespace

int run_bench(const CliOptions& options) {
  Result<std::vector<BenchTest>> tests = make_tests(options);
  if (!tests) return report_error(tests.error());
  Result<std::vector<BenchConfig>> configs = make_configs(options);
  if (!configs) return report_error(configs.error());
  install_interrupts();
  std::vector<BenchRow> rows;
  for (const BenchConfig& config : *configs) {
    if (Status status = run_config(options, config, *tests, rows); !status) {
      if (status.error().kind == ErrorKind::cancelled) return 130;
      return report_error(status.error());
    }
  }
  print_bench(rows, options.output);
  return 0;
}

}  // namespace bantam
