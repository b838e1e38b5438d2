// The figures of a bench row and its four forms: Markdown, JSON, JSON lines, CSV.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "cli/bench.h"
#include "cli/version.h"

namespace bantam {

namespace {

using Json = nlohmann::json;

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

Json as_json(const BenchRow& row) {
  const ModelReport& r = row.report;
  std::vector<double> ns;
  Json samples_ns = Json::array();
  for (const double s : row.seconds) {
    ns.push_back(s * 1e9);
    samples_ns.push_back(static_cast<int64_t>(s * 1e9));
  }
  Json json = fixed_keys();
  json.update(
      {{"cpu_info", r.cpu},
       {"backends", r.backend},
       {"isa", r.isa},
       {"model_filename", r.model_path},
       {"model_type", model_type(r)},
       {"model_size", r.memory.weight_bytes},
       {"model_n_params", r.n_params},
       {"n_batch", row.config.n_batch},
       {"n_ubatch", row.config.n_ubatch},
       {"n_threads", r.n_threads},
       {"n_threads_batch", r.n_threads_batch},
       {"cpu_mask", r.team.cpus.mask()},
       {"cpu_strict", r.team.strict.value_or(false)},
       {"poll", r.team.poll.value_or(50)},
       {"type_k", info(r.type_k).name},
       {"type_v", info(r.type_v).name},
       {"n_prompt", row.test.n_prompt},
       {"n_gen", row.test.n_gen},
       {"n_depth", row.test.depth},
       {"n_parallel", row.test.n_parallel},
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
       {"int8_measured_gmac_s",
        share(row.machine.int8_measured_gmac_s, row.machine.int8_measured_gmac_s)},
       {"clock_ghz", row.machine.clock_ghz},
       {"weight_bytes_per_token", r.matrix_bytes},
       {"model_read_gb_s", share(row.read_gb_s(), 1)},
       {"share_of_read_bandwidth", share(row.read_share(), row.machine.read_gb_s)},
       {"g_weights_s", row.g_weights_s()},
       {"model_gmac_s", share(row.g_weights_s(), 1)},
       {"share_of_int8_peak", share(row.int8_share(), row.machine.int8_gmac_s)},
       {"share_of_measured_dots", share(row.measured_share(), row.machine.int8_measured_gmac_s)}});
  return json;
}

// "2", or "1/2" when steps of several rows run on another number of threads.
std::string threads_text(const ModelReport& r) {
  std::string text = std::to_string(r.n_threads);
  if (r.n_threads_batch != r.n_threads) text += "/" + std::to_string(r.n_threads_batch);
  return text;
}

void print_machine(const MachineSpeed& m) {
  std::printf("read bandwidth %.1f GB/s, clock %.2f GHz, int8 peak %.0f GMAC/s\n", m.read_gb_s,
              m.clock_ghz, m.int8_gmac_s);
  std::printf("measured dot rate %.0f GMAC/s\n", m.int8_measured_gmac_s);
}

void print_md(const std::vector<BenchRow>& rows) {
  std::printf(
      "| model | size | params | K | V | threads | test | t/s (median) | reads | of read "
      "bandwidth | G weights/s | of int8 peak "
      "| of measured dots |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  for (const BenchRow& row : rows) {
    const ModelReport& r = row.report;
    std::string line =
        fmt::format("| {} | {:.2f} MiB | {:.2f} M | {} | {} | {} | {} | {:.2f} ± {:.2f} | ",
                    model_type(r), double(r.memory.weight_bytes) / (1 << 20),
                    double(r.n_params) / 1e6, info(r.type_k).name, info(r.type_v).name,
                    threads_text(r), row.test.name(), row.tokens_per_s(), stddev(row.rates()));
    line += row.read_gb_s() > 0 ? fmt::format("{:.2f} GB/s | ", row.read_gb_s()) : "- | ";
    line += row.read_share() > 0 ? fmt::format("{:.1f} % | ", 100 * row.read_share()) : "- | ";
    line += fmt::format("{:.1f} | ", row.g_weights_s());
    line += row.int8_share() > 0 ? fmt::format("{:.1f} % | ", 100 * row.int8_share()) : "- | ";
    line +=
        row.measured_share() > 0 ? fmt::format("{:.1f} % |", 100 * row.measured_share()) : "- |";
    std::printf("%s\n", line.c_str());
  }
  if (rows.empty()) return;
  const BenchRow& row = rows.front();
  std::printf("\n%s, %s, commit %s; median of %zu runs\n", row.report.cpu.c_str(),
              row.report.isa.c_str(), commit_text().c_str(), row.seconds.size());
  if (row.machine.read_gb_s == 0) return;  // too little memory to measure
  print_machine(row.machine);
  const auto other = std::find_if(rows.begin(), rows.end(), [&](const BenchRow& each) {
    return each.on_batch_team() != row.on_batch_team();
  });
  if (other == rows.end() || other->machine == row.machine) return;
  std::printf("with the threads of %s: ", other->test.name().c_str());
  print_machine(other->machine);
}

void print_csv(const std::vector<BenchRow>& rows) {
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

}  // namespace

std::string BenchTest::name() const {
  std::string text;
  if (n_prompt > 0) text = "pp" + std::to_string(n_prompt);
  if (n_gen > 0) text += (text.empty() ? "tg" : "+tg") + std::to_string(n_gen);
  if (n_parallel > 1) {
    if (n_prompt > 0) text = "(" + text + ")";
    text += "x" + std::to_string(n_parallel);
  }
  return depth > 0 ? text + " @ d" + std::to_string(depth) : text;
}

double BenchRow::median_s() const {
  std::vector<double> sorted = seconds;
  std::sort(sorted.begin(), sorted.end());
  const size_t n = sorted.size();
  return n % 2 == 1 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

std::vector<double> BenchRow::rates() const {
  std::vector<double> out;
  for (const double s : seconds) out.push_back(tokens() / s);
  return out;
}

double BenchRow::read_gb_s() const {
  if (test.n_gen == 0 || test.n_prompt > 0) return 0;
  const double cells = test.n_parallel * (test.depth + test.n_gen / 2.0);
  const double per_cell = double(report.memory.kv_bytes) / (double(report.n_ctx) * report.n_slots);
  const double step_bytes = double(report.matrix_bytes) + cells * per_cell;
  return step_bytes * tokens_per_s() / test.n_parallel / 1e9;
}

double BenchRow::read_share() const {
  return machine.read_gb_s > 0 ? read_gb_s() / machine.read_gb_s : 0;
}

double BenchRow::g_weights_s() const {
  const double output = double(report.n_vocab) * report.d_model;
  const double outputs = test.n_gen + (test.n_prompt > 0 ? 1 : 0);
  const double each =
      double(report.matrix_weights) - output + output * outputs / (test.n_prompt + test.n_gen);
  return each * tokens_per_s() / 1e9;
}

double BenchRow::int8_share() const {
  return machine.int8_gmac_s > 0 ? g_weights_s() / machine.int8_gmac_s : 0;
}

double BenchRow::measured_share() const {
  const double whole = machine.int8_measured_gmac_s;
  return whole > 0 ? g_weights_s() / whole : 0;
}

void print_bench(const std::vector<BenchRow>& rows, const std::string& format) {
  if (format == "md") return print_md(rows);
  if (format == "csv") return print_csv(rows);
  Json all = Json::array();
  for (const BenchRow& row : rows) {
    if (format == "jsonl") std::printf("%s\n", as_json(row).dump().c_str());
    all.push_back(as_json(row));
  }
  if (format == "json") std::printf("%s\n", all.dump(2).c_str());
}

}  // namespace bantam
