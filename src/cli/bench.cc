// `bantam bench`: prompt and generation speed as llama-bench measures them, beside the read
// bandwidth and the int8 peak of the same run. Repetitions of one test follow each other; the
// machine is measured before and after, the better counts.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/version.h"

namespace bantam {

namespace {

using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;

struct Test {
  int n_prompt = 0, n_gen = 0, depth = 0;
  std::string name() const {
    std::string text = n_prompt > 0 && n_gen > 0
                           ? "pp" + std::to_string(n_prompt) + "+tg" + std::to_string(n_gen)
                       : n_prompt > 0 ? "pp" + std::to_string(n_prompt)
                                      : "tg" + std::to_string(n_gen);
    return depth > 0 ? text + " @ d" + std::to_string(depth) : text;
  }
};

struct Config {
  KvType k, v;
  int n_threads;
};

struct Row {
  Test test;
  ModelReport report;
  std::vector<double> seconds;
  MachineSpeed machine;
  double tokens_per_s() const { return tokens() / median_s(); }
  double tokens() const { return test.n_prompt + test.n_gen; }
  double median_s() const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    const size_t n = sorted.size();
    return n % 2 == 1 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
  }
  double stddev_rate() const {
    double mean = 0, square = 0;
    for (const double s : seconds) mean += tokens() / s / static_cast<double>(seconds.size());
    for (const double s : seconds) square += std::pow(tokens() / s - mean, 2);
    return seconds.size() > 1 ? std::sqrt(square / static_cast<double>(seconds.size() - 1)) : 0.0;
  }
  // Bytes that one generated token must read: every matrix, and of the embedding only a row unless
  // it is the output too.
  double weight_gb() const { return static_cast<double>(report.matrix_bytes) / 1e9; }
  double kv_gb() const {
    const double cells = test.depth + test.n_gen / 2.0;
    const double per_cell =
        static_cast<double>(report.memory.kv_bytes) / (double(report.n_ctx) * report.n_slots);
    return cells * per_cell / 1e9;
  }
  double read_gb_s() const {
    return test.n_gen > 0 && test.n_prompt == 0 ? (weight_gb() + kv_gb()) * tokens_per_s() : 0;
  }
  double read_share() const { return machine.read_gb_s > 0 ? read_gb_s() / machine.read_gb_s : 0; }
  double gmac_s() const {
    return test.n_gen == 0 ? static_cast<double>(report.matrix_weights) * tokens_per_s() / 1e9 : 0;
  }
  double int8_share() const { return machine.int8_gmac_s > 0 ? gmac_s() / machine.int8_gmac_s : 0; }
};

Result<std::vector<Test>> make_tests(const CliOptions& o) {
  Result<std::vector<int>> pp = parse_list("-p", o.list_prompt, 0, 1 << 20);
  if (!pp) return pp.error();
  Result<std::vector<int>> tg = parse_list("-n", o.list_gen, 0, 1 << 20);
  if (!tg) return tg.error();
  Result<std::vector<int>> depths = parse_list("-d", o.list_depth, 0, 1 << 20);
  if (!depths) return depths.error();
  std::vector<Test> tests;
  for (const int depth : *depths) {
    for (const int n : *pp) {
      if (n > 0) tests.push_back({n, 0, depth});
    }
    for (const int n : *tg) {
      if (n > 0) tests.push_back({0, n, depth});
    }
    if (o.list_pg.empty()) continue;
    Result<std::vector<int>> pg = parse_list("-pg", o.list_pg, 1, 1 << 20);
    if (!pg) return pg.error();
    if (pg->size() != 2)
      return refused("-pg: got '" + o.list_pg + "', expected two numbers as 512,128");
    tests.push_back({(*pg)[0], (*pg)[1], depth});
  }
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

Result<std::vector<Config>> make_configs(const CliOptions& o) {
  Result<std::vector<KvType>> ks = make_types(o.list_k), vs = make_types(o.list_v);
  if (!ks) return ks.error();
  if (!vs) return vs.error();
  std::vector<int> threads{0};
  if (!o.list_threads.empty()) {
    Result<std::vector<int>> given = parse_list("-t", o.list_threads, 1, 256);
    if (!given) return given.error();
    threads = *given;
  }
  std::vector<Config> configs;
  for (const KvType k : *ks) {
    for (const KvType v : *vs) {
      for (const int n : threads) configs.push_back({k, v, n});
    }
  }
  return configs;
}

// Some token that is not the same everywhere; which one does not change the work.
std::vector<int32_t> some_tokens(int n, int n_vocab) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < n; ++i)
    tokens.push_back(static_cast<int32_t>((int64_t{i} * 7919 + 13) % n_vocab));
  return tokens;
}

Result<double> run_once(LoadedModel& model, const Test& test, const CliOptions& o) {
  const auto keep_going = [] { return interrupts() == 0; };
  const LoadedModel::LogitsSink ignore = [](int, std::span<const float>) {};
  const int n_vocab = model.report().n_vocab;
  const int chunk = std::min(o.engine.n_batch, o.engine.n_ubatch);
  if (model.length(0) < test.depth) {
    const std::vector<int32_t> fill = some_tokens(test.depth - model.length(0), n_vocab);
    Status status = model.eval(0, fill, chunk, false, {}, keep_going);
    if (!status) return status.error();
  }
  model.truncate(0, test.depth);
  const auto start = Clock::now();
  if (test.n_prompt > 0) {
    Status status =
        model.eval(0, some_tokens(test.n_prompt, n_vocab), chunk, false, ignore, keep_going);
    if (!status) return status.error();
  }
  for (const int32_t token : some_tokens(test.n_gen, n_vocab)) {
    Status status = model.eval(0, {&token, 1}, 1, false, ignore, keep_going);
    if (!status) return status.error();
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  model.truncate(0, test.depth);
  return seconds;
}

Json as_json(const Row& row, const CliOptions& o) {
  const ModelReport& r = row.report;
  Json samples_ns = Json::array(), samples_ts = Json::array();
  for (const double s : row.seconds) {
    samples_ns.push_back(static_cast<int64_t>(s * 1e9));
    samples_ts.push_back(row.tokens() / s);
  }
  return {{"build_commit", commit_text()},
          {"build_number", 0},
          {"cpu_info", r.cpu},
          {"gpu_info", ""},
          {"backends", r.backend + " " + r.isa},
          {"model_filename", r.model_path},
          {"model_type", r.arch + " " + r.name},
          {"model_size", r.memory.weight_bytes},
          {"model_n_params", r.n_params},
          {"n_batch", o.engine.n_batch},
          {"n_ubatch", o.engine.n_ubatch},
          {"n_threads", r.n_threads},
          {"type_k", info(r.type_k).name},
          {"type_v", info(r.type_v).name},
          {"n_gpu_layers", 0},
          {"flash_attn", true},
          {"use_mmap", false},
          {"embeddings", false},
          {"n_prompt", row.test.n_prompt},
          {"n_gen", row.test.n_gen},
          {"n_depth", row.test.depth},
          {"avg_ns", static_cast<int64_t>(row.median_s() * 1e9)},
          {"avg_ts", row.tokens_per_s()},
          {"stddev_ts", row.stddev_rate()},
          {"samples_ns", samples_ns},
          {"samples_ts", samples_ts},
          {"read_gb_s", row.machine.read_gb_s},
          {"int8_peak_gmac_s", row.machine.int8_gmac_s},
          {"clock_ghz", row.machine.clock_ghz},
          {"model_read_gb_s", row.read_gb_s()},
          {"share_of_read_bandwidth", row.read_share()},
          {"model_gmac_s", row.gmac_s()},
          {"share_of_int8_peak", row.int8_share()}};
}

void print_md(const std::vector<Row>& rows) {
  std::printf(
      "| model | K | V | threads | test | tok/s | GB/s | of read bandwidth | of int8 peak |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|\n");
  for (const Row& row : rows) {
    std::printf("| %s | %s | %s | %d | %s | %.2f ± %.2f | ", row.report.id.c_str(),
                info(row.report.type_k).name, info(row.report.type_v).name, row.report.n_threads,
                row.test.name().c_str(), row.tokens_per_s(), row.stddev_rate());
    if (row.read_gb_s() > 0)
      std::printf("%.2f | %.1f %% | ", row.read_gb_s(), 100 * row.read_share());
    if (row.read_gb_s() <= 0) std::printf("| | ");
    if (row.int8_share() > 0) std::printf("%.1f %% ", 100 * row.int8_share());
    std::printf("|\n");
  }
  if (rows.empty()) return;
  const Row& row = rows.front();
  std::printf(
      "\n%s, %s; read bandwidth %.1f GB/s, clock %.2f GHz, int8 peak %.0f GMAC/s; median of %zu\n",
      row.report.cpu.c_str(), row.report.isa.c_str(), row.machine.read_gb_s, row.machine.clock_ghz,
      row.machine.int8_gmac_s, row.seconds.size());
}

void print_csv(const std::vector<Row>& rows, const CliOptions& o) {
  for (size_t i = 0; i < rows.size(); ++i) {
    const Json json = as_json(rows[i], o);
    std::string head, line;
    for (const auto& [key, value] : json.items()) {
      if (value.is_array()) continue;
      head += (head.empty() ? "" : ",") + key;
      line += (line.empty() ? "" : ",") + value.dump();
    }
    if (i == 0) std::printf("%s\n", head.c_str());
    std::printf("%s\n", line.c_str());
  }
}

void print_rows(const std::vector<Row>& rows, const CliOptions& o) {
  if (o.output == "md") return print_md(rows);
  if (o.output == "csv") return print_csv(rows, o);
  Json all = Json::array();
  for (const Row& row : rows) {
    if (o.output == "jsonl") std::printf("%s\n", as_json(row, o).dump().c_str());
    all.push_back(as_json(row, o));
  }
  if (o.output == "json") std::printf("%s\n", all.dump(2).c_str());
}

Status run_config(const CliOptions& o, const Config& config, const std::vector<Test>& tests,
                  std::vector<Row>& rows) {
  CliOptions mine = o;
  mine.log_level = 1;
  mine.engine.type_k = config.k;
  mine.engine.type_v = config.v;
  mine.engine.n_threads = config.n_threads;
  int most = 0;
  for (const Test& test : tests) most = std::max(most, test.depth + test.n_prompt + test.n_gen);
  mine.engine.n_ctx = most;
  Result<std::unique_ptr<LoadedModel>> model = load_with_progress(mine);
  if (!model) return model.error();
  const ModelReport& report = (*model)->report();
  const MachineSpeed before = measure_machine(report.n_threads, report.isa);
  const size_t first = rows.size();
  for (const Test& test : tests) {
    if (o.progress)
      log_info("running {} with K {} V {}", test.name(), info(config.k).name, info(config.v).name);
    Row row{test, report, {}, {}};
    (*model)->truncate(0, 0);
    Test warm_up = test;
    warm_up.n_prompt = std::min(test.n_prompt, 64);
    warm_up.n_gen = std::min(test.n_gen, 4);
    if (Result<double> once = run_once(**model, warm_up, o); !once) return once.error();
    for (int r = 0; r < o.repetitions; ++r) {
      Result<double> seconds = run_once(**model, test, o);
      if (!seconds) return seconds.error();
      row.seconds.push_back(*seconds);
      if (o.progress) log_info("  run {}: {:.2f} tok/s", r + 1, row.tokens() / *seconds);
    }
    rows.push_back(std::move(row));
  }
  const MachineSpeed after = measure_machine(report.n_threads, report.isa);
  for (size_t i = first; i < rows.size(); ++i) {
    rows[i].machine = {std::max(before.read_gb_s, after.read_gb_s),
                       std::max(before.int8_gmac_s, after.int8_gmac_s),
                       std::max(before.clock_ghz, after.clock_ghz)};
  }
  return Ok{};
}

}  // namespace

int run_bench(const CliOptions& options) {
  Result<std::vector<Test>> tests = make_tests(options);
  if (!tests) return report_error(tests.error());
  Result<std::vector<Config>> configs = make_configs(options);
  if (!configs) return report_error(configs.error());
  if (!options.progress) set_log_level(LogLevel::warn);
  install_interrupts();
  std::vector<Row> rows;
  for (const Config& config : *configs) {
    if (Status status = run_config(options, config, *tests, rows); !status) {
      if (status.error().kind == ErrorKind::cancelled) return 130;
      return report_error(status.error());
    }
  }
  print_rows(rows, options);
  return 0;
}

}  // namespace bantam
