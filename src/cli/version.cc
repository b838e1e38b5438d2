#include "cli/version.h"

#include "engine/engine.h"

#ifndef BANTAM_COMMIT
#define BANTAM_COMMIT "unknown"
#endif
#ifndef BANTAM_VERSION
#define BANTAM_VERSION "0.0.0"
#endif

namespace bantam {

std::string commit_text() { return BANTAM_COMMIT; }

std::string version_text() {
  return std::string("bantam ") + BANTAM_VERSION + " (" + commit_text() + "), built with " +
         __VERSION__ + "\ninstruction sets here: " + instruction_sets() +
         "\nPTX: none (no GPU backend in this build)";
}

}  // namespace bantam
