#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
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

int stop_fd = -1;

void on_stop_signal(int) {
  const int saved = errno;
  interrupt_count = interrupt_count + 1;
  if (interrupt_count > 1) _exit(exit_code);
  const uint64_t one = 1;
  if (::write(stop_fd, &one, sizeof one) < 0) _exit(exit_code);
  errno = saved;
}

void handle_signals(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  // No SA_RESTART: a read of the terminal must return so that the REPL can answer.
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

// On a terminal one line that changes, else a line for every tenth; nothing in the first second.
class Progress {
 public:
  Progress() : tty_(::isatty(2) == 1) {}
  ~Progress() { end_line(); }

  void operator()(const char* what, int64_t done, int64_t total) {
    if (what != what_) begin(what);
    const double s = std::chrono::duration<double>(Clock::now() - start_).count();
    const int percent = total > 0 ? static_cast<int>(done * 100 / total) : 100;
    if (log_level() < LogLevel::info || s < 1.0 || percent < next_) return;
    const double rate = static_cast<double>(done) / s / 1e6;
    next_ = tty_ ? percent + 1 : percent / 10 * 10 + 10;
    if (!tty_) return log_info("{}: {} % ({:.0f} MB/s)", what, percent, rate);
    std::fprintf(stderr, "\r%s: %d %% (%.0f MB/s) ", what, percent, rate);
    open_ = true;
    if (percent == 100) end_line();
  }
  // Before anything else is written to the terminal.
  void end_line() {
    if (open_) std::fputc('\n', stderr);
    open_ = false;
  }

 private:
  using Clock = std::chrono::steady_clock;
  void begin(const char* what) {
    end_line();
    what_ = what;
    next_ = 0;
    start_ = Clock::now();
  }

  const bool tty_;
  const char* what_ = nullptr;
  Clock::time_point start_;
  int next_ = 0;
  bool open_ = false;
};

}  // namespace

int report_error(const Error& error) {
  log_error("{}", error.message);
  return error.kind == ErrorKind::refused || error.kind == ErrorKind::too_long ? 2 : 1;
}

Result<std::unique_ptr<LoadedModel>> load_with_progress(const CliOptions& options) {
  Progress progress;
  LoadEvents events;
  events.progress = [&](const char* what, int64_t done, int64_t total) {
    progress(what, done, total);
  };
  events.note = [&](bool warning, const std::string& text) {
    progress.end_line();
    log_at(warning ? LogLevel::warn : LogLevel::info, "{}", text);
  };
  Result<std::unique_ptr<LoadedModel>> loaded = LoadedModel::load(
      options.engine,
      [&](const ModelReport& report) {
        for (const std::string& line : report_lines(report)) log_info("{}", line);
        for (const std::string& line : report.warnings) log_warn("{}", line);
        if (!options.kv_given && options.command != Command::bench) {
          log_info("KV cache is q8_0 by default; for f16 use -ctk f16 -ctv f16");
        }
      },
      events);
  progress.end_line();
  if (loaded) log_info("{}", load_line((*loaded)->report()));
  return loaded;
}

void exit_on_signals(int code) {
  exit_code = code;
  handle_signals(on_exit_signal);
}

int stop_on_signals(int code) {
  stop_fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  exit_code = code;
  if (stop_fd >= 0) handle_signals(on_stop_signal);
  return stop_fd;
}

void install_interrupts() { handle_signals(on_interrupt); }

int interrupts() { return interrupt_count; }
void clear_interrupts() { interrupt_count = 0; }

}  // namespace bantam
