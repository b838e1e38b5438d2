// One logger for the whole program, to stderr. Prompts and answers are never logged.
// Levels as llama.cpp's -lv: 0 nothing, 1 errors, 2 warnings, 3 info (default), 4 debug.
#pragma once

#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace bantam {

enum class LogLevel { none = 0, error = 1, warn = 2, info = 3, debug = 4 };

void set_log_level(LogLevel level);
LogLevel log_level();
// Also writes every line to this file (appended). False when it cannot be opened.
bool set_log_file(const char* path);
void log_line(LogLevel level, std::string_view text);

template <class... Args>
void log_at(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (level <= log_level()) log_line(level, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_at(LogLevel::info, format, std::forward<Args>(args)...);
}
template <class... Args>
void log_warn(fmt::format_string<Args...> format, Args&&... args) {
  log_at(LogLevel::warn, format, std::forward<Args>(args)...);
}
template <class... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  log_at(LogLevel::error, format, std::forward<Args>(args)...);
}
template <class... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  log_at(LogLevel::debug, format, std::forward<Args>(args)...);
}

}  // namespace bantam
