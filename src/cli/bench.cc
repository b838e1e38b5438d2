// `bantam bench`: prompt and generation speed as llama-bench measures them, beside the read
// bandwidth and the int8 peak of the same run. Tests of one depth take turns, so that a slow minute
// of the machine does not fall on one of them alone; the machine is measured before and after, the
// better counts.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
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
  int n_threads, n_batch, n_ubatch;
};

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += v;
  return sum / static_cast<double>(values.size());
}

double stddev(const std::vector<double>& values) {
  double square = 0;
  for (const double v : values) square += std::pow(v - mean(values), 2);
  return values.size() > 1 ? std::sqrt(square / static_cast<double>(values.size() - 1)) : 0.0;
}

std::string now_utc() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

struct Row {
  Test test;
  Config config;
  std::string started;  // UTC
  ModelReport report;
  std::vector<double> seconds;
  MachineSpeed machine;
  double tokens_per_s() const { return tokens() / median_s(); }  // the median run's
  double tokens() const { return test.n_prompt + test.n_gen; }
  double median_s() const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    const size_t n = sorted.size();
    return n % 2 == 1 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
  }
  std::vector<double> rates() const {
    std::vector<double> out;
    for (const double s : seconds) out.push_back(tokens() / s);
    return out;
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
  // Multiplications really done: the output matrix runs for the last prompt token only.
  double gmac_s() const {
    if (test.n_gen > 0) return 0;
    const double output = static_cast<double>(report.n_vocab) * report.d_model;
    const double each = static_cast<double>(report.matrix_weights) - output + output / tokens();
    return each * tokens_per_s() / 1e9;
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
    for (size_t at = 0; at < o.list_pg.size();) {
      const size_t end = std::min(o.list_pg.find(';', at), o.list_pg.size());
      Result<std::vector<int>> pg = parse_list("-pg", o.list_pg.substr(at, end - at), 1, 1 << 20);
      if (!pg) return pg.error();
      CHECK(pg->size() == 2);  // checked when it was read
      tests.push_back({(*pg)[0], (*pg)[1], depth});
      at = end + 1;
    }
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
  std::vector<Config> configs;
  for (const KvType k : *ks) {
    for (const KvType v : *vs) configs.push_back({k, v, 0, 0, 0});
  }
  // One list after the other multiplies the configurations.
  const auto multiply = [&](const std::vector<int>& values, int Config::*field) {
    std::vector<Config> out;
    for (const Config& config : configs) {
      for (const int value : values) {
        out.push_back(config);
        out.back().*field = value;
      }
    }
    configs = std::move(out);
  };
  multiply(*threads, &Config::n_threads);
  multiply(*batches, &Config::n_batch);
  multiply(*micro, &Config::n_ubatch);
  return configs;
}

// Some token that is not the same everywhere; which one does not change the work.
std::vector<int32_t> some_tokens(int n, int n_vocab) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < n; ++i)
    tokens.push_back(static_cast<int32_t>((int64_t{i} * 7919 + 13) % n_vocab));
  return tokens;
}

Result<double> run_once(LoadedModel& model, const Test& test, const Config& config) {
  const auto keep_going = [] { return interrupts() == 0; };
  const LoadedModel::LogitsSink ignore = [](int, std::span<const float>) {};
  const int n_vocab = model.report().n_vocab;
  const int chunk = std::min(config.n_batch, config.n_ubatch);
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

// A share of something that could not be measured is null, not 0.
Json share(double value, double whole) { return whole > 0 && value > 0 ? Json(value) : Json(); }

std::string model_type(const ModelReport& r) {
  // "F32 x 25, Q1_0 x 43": the type of most tensors that are not vectors.
  std::string best;
  int most = 0;
  for (size_t at = 0; at < r.weight_types.size();) {
    const size_t end = std::min(r.weight_types.find(", ", at), r.weight_types.size());
    const std::string piece = r.weight_types.substr(at, end - at);
    const std::string name = piece.substr(0, piece.find(' '));
    const int n = std::atoi(piece.substr(piece.rfind(' ') + 1).c_str());
    if (best.empty() || (name != "F32" && (n > most || best == "F32"))) {
      best = name;
      most = n;
    }
    at = end + 2;
  }
  return fmt::format("{} {:.1f}M {}", r.arch, double(r.n_params) / 1e6, best);
}

// llama-bench's keys that say what this build cannot do otherwise.
Json fixed_keys() {
  return {{"build_commit", commit_text()},
          {"build_number", 0},
          {"gpu_info", ""},
          {"cpu_mask", "0x0"},
          {"cpu_strict", false},
          {"poll", 50},
          {"n_gpu_layers", 0},
          {"n_cpu_moe", 0},
          {"split_mode", "none"},
          {"main_gpu", 0},
          {"no_kv_offload", false},
          {"flash_attn", true},
          {"devices", "none"},
          {"tensor_split", "0.00"},
          {"tensor_buft_overrides", "none"},
          {"use_mmap", false},
          {"use_direct_io", false},
          {"embeddings", false},
          {"no_op_offload", 0},
          {"no_host", false},
          {"fit_target", 0},
          {"fit_min_ctx", 0}};
}

Json as_json(const Row& row) {
  const ModelReport& r = row.report;
  std::vector<double> ns;
  Json samples_ns = Json::array();
  for (const double s : row.seconds) {
    ns.push_back(s * 1e9);
    samples_ns.push_back(static_cast<int64_t>(s * 1e9));
  }
  Json json = fixed_keys();
  json.update({{"cpu_info", r.cpu},
               {"backends", r.backend},
               {"isa", r.isa},
               {"model_filename", r.model_path},
               {"model_type", model_type(r)},
               {"model_size", r.memory.weight_bytes},
               {"model_n_params", r.n_params},
               {"n_batch", row.config.n_batch},
               {"n_ubatch", row.config.n_ubatch},
               {"n_threads", r.n_threads},
               {"cpu_mask", r.team.cpus.mask()},
               {"cpu_strict", r.team.strict.value_or(false)},
               {"poll", r.team.poll.value_or(50)},
               {"type_k", info(r.type_k).name},
               {"type_v", info(r.type_v).name},
               {"n_prompt", row.test.n_prompt},
               {"n_gen", row.test.n_gen},
               {"n_depth", row.test.depth},
               {"test_time", row.started},
               {"avg_ns", static_cast<int64_t>(mean(ns))},
               {"stddev_ns", static_cast<int64_t>(stddev(ns))},
               {"avg_ts", mean(row.rates())},
               {"stddev_ts", stddev(row.rates())},
               {"median_ts", row.tokens_per_s()},
               {"samples_ns", samples_ns},
               {"samples_ts", row.rates()},
               {"read_gb_s", share(row.machine.read_gb_s, row.machine.read_gb_s)},
               {"int8_peak_gmac_s", share(row.machine.int8_gmac_s, row.machine.int8_gmac_s)},
               {"clock_ghz", row.machine.clock_ghz},
               {"weight_bytes_per_token", r.matrix_bytes},
               {"model_read_gb_s", share(row.read_gb_s(), 1)},
               {"share_of_read_bandwidth", share(row.read_share(), row.machine.read_gb_s)},
               {"model_gmac_s", share(row.gmac_s(), 1)},
               {"share_of_int8_peak", share(row.int8_share(), row.machine.int8_gmac_s)}});
  return json;
}

void print_md(const std::vector<Row>& rows) {
  std::printf(
      "| model | size | params | K | V | threads | test | t/s (median) | reads | of read "
      "bandwidth | of int8 peak |\n|---|---|---|---|---|---|---|---|---|---|---|\n");
  for (const Row& row : rows) {
    const ModelReport& r = row.report;
    std::string line = fmt::format(
        "| {} | {:.2f} MiB | {:.2f} M | {} | {} | {} | {} | {:.2f} ± {:.2f} | ", model_type(r),
        double(r.memory.weight_bytes) / (1 << 20), double(r.n_params) / 1e6, info(r.type_k).name,
        info(r.type_v).name, r.n_threads, row.test.name(), row.tokens_per_s(), stddev(row.rates()));
    line += row.read_gb_s() > 0 ? fmt::format("{:.2f} GB/s | ", row.read_gb_s()) : "- | ";
    line += row.read_share() > 0 ? fmt::format("{:.1f} % | ", 100 * row.read_share()) : "- | ";
    line += row.int8_share() > 0 ? fmt::format("{:.1f} % |", 100 * row.int8_share()) : "- |";
    std::printf("%s\n", line.c_str());
  }
  if (rows.empty()) return;
  const Row& row = rows.front();
  std::printf("\n%s, %s, commit %s; median of %zu runs\n", row.report.cpu.c_str(),
              row.report.isa.c_str(), commit_text().c_str(), row.seconds.size());
  const std::string peak = row.machine.int8_gmac_s > 0
                               ? fmt::format("{:.0f} GMAC/s", row.machine.int8_gmac_s)
                               : "not defined for this instruction set";
  std::printf("read bandwidth %.1f GB/s, clock %.2f GHz, int8 peak %s\n", row.machine.read_gb_s,
              row.machine.clock_ghz, peak.c_str());
}

void print_csv(const std::vector<Row>& rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    const Json json = as_json(rows[i]);
    std::string head, line;
    for (const auto& [key, value] : json.items()) {
      if (value.is_array()) continue;
      head += (head.empty() ? "" : ",") + key;
      line += (line.empty() ? "" : ",") + (value.is_null() ? std::string() : value.dump());
    }
    if (i == 0) std::printf("%s\n", head.c_str());
    std::printf("%s\n", line.c_str());
  }
}

void print_rows(const std::vector<Row>& rows, const CliOptions& o) {
  if (o.output == "md") return print_md(rows);
  if (o.output == "csv") return print_csv(rows);
  Json all = Json::array();
  for (const Row& row : rows) {
    if (o.output == "jsonl") std::printf("%s\n", as_json(row).dump().c_str());
    all.push_back(as_json(row));
  }
  if (o.output == "json") std::printf("%s\n", all.dump(2).c_str());
}

// All rows of one depth, in turns.
Status run_depth(LoadedModel& model, const CliOptions& o, std::span<Row> rows) {
  model.truncate(0, 0);
  for (Row& row : rows) {
    if (!o.warm_up) break;
    Test warm_up = row.test;
    warm_up.n_prompt = std::min(row.test.n_prompt, 64);
    warm_up.n_gen = std::min(row.test.n_gen, 4);
    if (Result<double> once = run_once(model, warm_up, row.config); !once) return once.error();
  }
  for (int r = 0; r < o.repetitions; ++r) {
    for (Row& row : rows) {
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
MachineSpeed measure(const ModelReport& report, const TeamWish& team) {
  constexpr int64_t kNeeded = 1 << 30;
  const int64_t available = available_memory_bytes();
  if (available > 0 && available < kNeeded) return {};
  return measure_machine(report.n_threads, report.isa, team);
}

Status run_config(const CliOptions& o, const Config& config, const std::vector<Test>& tests,
                  std::vector<Row>& rows) {
  CliOptions mine = o;
  mine.engine.type_k = config.k;
  mine.engine.type_v = config.v;
  mine.engine.n_threads = config.n_threads;
  mine.engine.n_batch = config.n_batch;
  mine.engine.n_ubatch = config.n_ubatch;
  int most = 0;
  for (const Test& test : tests) most = std::max(most, test.depth + test.n_prompt + test.n_gen);
  mine.engine.n_ctx = most;
  Result<std::unique_ptr<LoadedModel>> model = load_with_progress(mine);
  if (!model) return model.error();
  const ModelReport& report = (*model)->report();
  const MachineSpeed before = measure(report, o.engine.team);
  const size_t first = rows.size();
  for (const Test& test : tests) rows.push_back({test, config, {}, report, {}, {}});
  for (size_t i = first; i < rows.size();) {
    size_t end = i;
    while (end < rows.size() && rows[end].test.depth == rows[i].test.depth) ++end;
    if (Status status = run_depth(**model, o, std::span(rows).subspan(i, end - i)); !status)
      return status;
    i = end;
  }
  const MachineSpeed after = measure(report, o.engine.team);
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
