#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace bantam {

void check_failed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "bantam: internal error: CHECK(%s) failed at %s:%d\n", expression, file,
               line);
  std::abort();
}

}  // namespace bantam
