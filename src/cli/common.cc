#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>

#include "base/log.h"
#include "cli/commands.h"

namespace bantam {

namespace {

volatile std::sig_atomic_t interrupt_count = 0;

void on_interrupt(int) {
  interrupt_count = interrupt_count + 1;
  if (interrupt_count > 1) _exit(130);
}

class Progress {
 public:
  Progress() : tty_(::isatty(2) == 1), start_(Clock::now()) {}
  void operator()(double fraction, int64_t bytes) {
    const int percent = static_cast<int>(fraction * 100.0);
    if (log_level() < LogLevel::info || percent < next_) return;
    next_ = percent + (tty_ ? 1 : 25);
    const double s = std::chrono::duration<double>(Clock::now() - start_).count();
    const double rate = s > 0 ? fraction * static_cast<double>(bytes) / s / 1e6 : 0;
    std::fprintf(stderr, "%sloading weights: %d %% (%.0f MB/s)%s", tty_ ? "\r" : "", percent, rate,
                 tty_ && percent < 100 ? "" : "\n");
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool tty_;
  Clock::time_point start_;
  int next_ = 0;
};

}  // namespace

int report_error(const Error& error) {
  log_error("{}", error.message);
  return error.kind == ErrorKind::refused || error.kind == ErrorKind::too_long ? 2 : 1;
}

Result<std::unique_ptr<LoadedModel>> load_with_progress(const CliOptions& options) {
  for (const std::string& note : options.notes) log_warn("{}", note);
  if (options.gpu_layers_given) {
    log_warn("-ngl: this build has no GPU backend, all layers run on the CPU");
  }
  Progress progress;
  int64_t bytes = 0;
  return LoadedModel::load(
      options.engine,
      [&](const ModelReport& report) {
        bytes = report.memory.weight_bytes;
        for (const std::string& line : report_lines(report)) log_info("{}", line);
        if (!options.kv_given && options.command != Command::bench) {
          log_info("KV cache is q8_0 by default; for f16 use -ctk f16 -ctv f16");
        }
      },
      [&](double fraction) { progress(fraction, bytes); });
}

void install_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  // No SA_RESTART: a read of the terminal must return so that the REPL can answer.
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

int interrupts() { return interrupt_count; }
void clear_interrupts() { interrupt_count = 0; }

}  // namespace bantam
