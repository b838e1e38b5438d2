#include "base/log.h"

#include <atomic>
#include <cstdio>
#include <mutex>

namespace bantam {

namespace {

std::atomic<LogLevel> current_level{LogLevel::info};
std::mutex log_mutex;
std::FILE* log_file = nullptr;

}  // namespace

void set_log_level(LogLevel level) { current_level.store(level, std::memory_order_relaxed); }
LogLevel log_level() { return current_level.load(std::memory_order_relaxed); }

bool set_log_file(const char* path) {
  const std::lock_guard lock(log_mutex);
  std::FILE* file = std::fopen(path, "ae");
  if (file == nullptr) return false;
  if (log_file != nullptr) std::fclose(log_file);
  log_file = file;
  return true;
}

void log_line(LogLevel level, std::string_view text) {
  if (level > log_level()) return;
  const char* prefix = level == LogLevel::error  ? "error: "
                       : level == LogLevel::warn ? "warning: "
                                                 : "";
  const std::lock_guard lock(log_mutex);
  std::fprintf(stderr, "%s%.*s\n", prefix, static_cast<int>(text.size()), text.data());
  if (log_file != nullptr) {
    std::fprintf(log_file, "%s%.*s\n", prefix, static_cast<int>(text.size()), text.data());
    std::fflush(log_file);
  }
}

}  // namespace bantam
