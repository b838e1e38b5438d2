// CHECK: programmer errors, always on, also in release. Prints the expression and where, then
// aborts. Refuses: outside input. A file, request, flag or device that is wrong gets a Result,
// never a CHECK.
#pragma once

namespace bantam {

[[noreturn]] void check_failed(const char* expression, const char* file, int line);

}  // namespace bantam

#define CHECK(condition)                                     \
  (__builtin_expect(!!(condition), 1) ? static_cast<void>(0) \
                                      : ::bantam::check_failed(#condition, __FILE__, __LINE__))
