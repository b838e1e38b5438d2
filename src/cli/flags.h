// The flag table: one row for each flag. Owned by args.cc; tests walk it.
#pragma once

#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "cli/args.h"

namespace bantam {

inline constexpr unsigned kServe = 1, kChat = 2, kBench = 4, kLogits = 8, kInfo = 16,
                          kTokenize = 32;
inline constexpr unsigned kRun = kServe | kChat | kLogits | kInfo | kTokenize;
inline constexpr unsigned kAll = kRun | kBench;

unsigned bit_of(Command command);

struct Flag {
  std::vector<const char*> names;
  const char* env;    // "" when there is none
  const char* value;  // "N", "TYPE" ...; "" for a switch
  unsigned commands;
  std::function<Status(CliOptions&, std::string_view)> set;
  const char* help;  // "" keeps it out of --help
};

const std::vector<Flag>& flags();

}  // namespace bantam
