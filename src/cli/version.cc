#include "cli/version.h"

#include <cstdlib>

#include "engine/engine.h"

#ifndef BANTAM_COMMIT
#define BANTAM_COMMIT "unknown"
#endif
#ifndef BANTAM_VERSION
#define BANTAM_VERSION "0.0.0"
#endif

namespace bantam {

std::string commit_text() {
  const std::string commit = BANTAM_COMMIT;
  return commit.empty() ? "unknown" : commit;  // empty when built outside a checkout
}

std::string version_text() {
  const std::string names = instruction_sets();
  const char* forced = std::getenv("BANTAM_ISA");
  const std::string chosen = forced != nullptr && *forced != '\0'
                                 ? std::string(forced) + " (BANTAM_ISA)"
                                 : names.substr(names.find_last_of(' ') + 1);
  return std::string("bantam ") + BANTAM_VERSION + " (" + commit_text() + "), built with " +
         __VERSION__ + "\ninstruction sets here: " + names + "; used: " + chosen +
         "\nPTX: none (no GPU backend in this build)";
}

}  // namespace bantam
