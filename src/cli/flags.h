// The flag table: one row for each flag, read by parsing, --help, the environment and tests. Owns
// the rows; refuses a value by returning the sentence for it. Flags of llama.cpp that do nothing
// here or cannot be honoured are rows too (flags_llama.cc), so that no name is unknown by accident.
#pragma once

#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "cli/args.h"

namespace bantam {

inline constexpr unsigned kServe = 1, kChat = 2, kBench = 4, kLogits = 8, kInfo = 16,
                          kTokenize = 32, kPerplexity = 64;
inline constexpr unsigned kRun = kServe | kChat | kLogits | kInfo | kTokenize | kPerplexity;
inline constexpr unsigned kAll = kRun | kBench;

unsigned bit_of(Command command);

using Setter = std::function<Status(CliOptions&, std::string_view)>;

struct Flag {
  std::vector<const char*> names;
  const char* env;    // "" when there is none
  const char* value;  // "N", "TYPE" ...; "" for a switch; "[MODE]": may be left out
  unsigned commands;
  Setter set;                               // switches get "on" or "off"
  const char* help;                         // "" keeps it out of --help
  std::vector<const char*> off_names = {};  // of switches: the names that say no

  bool is_switch() const { return *value == '\0'; }
  bool value_is_optional() const { return *value == '['; }
};

const std::vector<Flag>& flags();
void add_perplexity_flags(std::vector<Flag>& rows);
void add_thread_flags(std::vector<Flag>& rows);
void add_accepted_flags(std::vector<Flag>& rows);
void add_refused_flags(std::vector<Flag>& rows);

// "got 'x', expected WHAT"
Error wrong_value(std::string_view got, const std::string& expected);
// The whole text as a finite number.
Result<double> to_number(std::string_view text);

// The whole text as a whole number from min to max.
Result<int64_t> to_integer(std::string_view text, int64_t min, int64_t max);

}  // namespace bantam
