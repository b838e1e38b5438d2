#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>

#include "base/log.h"
#include "cli/commands.h"

namespace bantam {

namespace {

volatile std::sig_atomic_t interrupt_count = 0;
volatile std::sig_atomic_t exit_code = 130;

void on_interrupt(int) {
  interrupt_count = interrupt_count + 1;
  if (interrupt_count > 1) _exit(130);
}

void on_exit_signal(int) { _exit(exit_code); }

void handle_signals(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  // No SA_RESTART: a read of the terminal must return so that the REPL can answer.
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

// On a terminal one line that changes, else a line for every tenth; quick loads show the last only.
class Progress {
 public:
  Progress() : tty_(::isatty(2) == 1), start_(Clock::now()) {}
  void operator()(double fraction, int64_t bytes) {
    const double s = std::chrono::duration<double>(Clock::now() - start_).count();
    const int percent = static_cast<int>(fraction * 100.0);
    if (log_level() < LogLevel::info || done_ || (percent < 100 && (percent < next_ || s < 0.5)))
      return;
    done_ = percent >= 100;
    next_ = percent / 10 * 10 + 10;
    const double rate = s > 0 ? fraction * static_cast<double>(bytes) / s / 1e6 : 0;
    if (!tty_) return log_info("loading weights: {} % ({:.0f} MB/s)", percent, rate);
    next_ = percent + 1;
    std::fprintf(stderr, "\rloading weights: %d %% (%.0f MB/s)%s", percent, rate,
                 done_ ? "\n" : "");
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool tty_;
  Clock::time_point start_;
  int next_ = 0;
  bool done_ = false;
};

}  // namespace

int report_error(const Error& error) {
  log_error("{}", error.message);
  return error.kind == ErrorKind::refused || error.kind == ErrorKind::too_long ? 2 : 1;
}

Result<std::unique_ptr<LoadedModel>> load_with_progress(const CliOptions& options) {
  Progress progress;
  int64_t bytes = 0;
  return LoadedModel::load(
      options.engine,
      [&](const ModelReport& report) {
        bytes = report.memory.weight_bytes;
        for (const std::string& line : report_lines(report)) log_info("{}", line);
        for (const std::string& line : report.warnings) log_warn("{}", line);
        if (!options.kv_given && options.command != Command::bench) {
          log_info("KV cache is q8_0 by default; for f16 use -ctk f16 -ctv f16");
        }
      },
      [&](double fraction) { progress(fraction, bytes); });
}

void exit_on_signals(int code) {
  exit_code = code;
  handle_signals(on_exit_signal);
}

void install_interrupts() { handle_signals(on_interrupt); }

int interrupts() { return interrupt_count; }
void clear_interrupts() { interrupt_count = 0; }

}  // namespace bantam
