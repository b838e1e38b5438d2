// Entry: chooses the command from argv or from the name the program was started under.
#include <csignal>
#include <cstdio>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/version.h"

namespace bantam {
namespace {

struct CommandRow {
  const char* name;
  const char* link;  // llama.cpp's program of the same use, or ""
  Command command;
  int (*run)(const CliOptions&);
  const char* help;
};

constexpr CommandRow kCommands[] = {
    {"serve", "llama-server", Command::serve, run_serve, "HTTP server and chat page"},
    {"chat", "llama-cli", Command::chat, run_chat, "chat in the terminal"},
    {"bench", "llama-bench", Command::bench, run_bench, "speed of prompts and generation"},
    {"perplexity", "llama-perplexity", Command::perplexity, run_perplexity,
     "perplexity of a text, divergence from a base"},
    {"logits", "", Command::logits, run_logits, "raw logits of given tokens"},
    {"info", "", Command::info, run_info, "what a model file holds and needs"},
    {"tokenize", "", Command::tokenize, run_tokenize, "text to token ids"},
};

std::string usage() {
  std::string text = "usage: bantam COMMAND [flags]   (bantam COMMAND --help lists them)\n";
  for (const CommandRow& row : kCommands) {
    std::string line = std::string("  ") + row.name;
    line.resize(13, ' ');
    text += line + row.help +
            (*row.link != '\0' ? std::string(" (also as ") + row.link + ")" : "") + "\n";
  }
  return text +
         "without -m the built-in model answers; BANTAM_ISA=NAME in the environment forces one of "
         "the\ninstruction sets that --version names\n";
}

// Under llama.cpp's names, its exit codes: 1 for wrong usage and for what cannot be loaded.
int exit_code(int code, bool as_llama) { return as_llama && code == 2 ? 1 : code; }

int dispatch(const CommandRow& row, const std::vector<std::string>& args, bool as_llama) {
  Result<CliOptions> options = parse_args(row.command, args);
  if (!options) return exit_code(report_error(options.error()), as_llama);
  if (options->help) {
    std::printf("bantam %s: %s\n%s", row.name, row.help, help_text(row.command).c_str());
    return 0;
  }
  if (options->version) {
    std::printf("%s\n", version_text().c_str());
    return 0;
  }
  set_log_level(static_cast<LogLevel>(options->log_level > 4 ? 4 : options->log_level));
  if (!options->log_file.empty() && !set_log_file(options->log_file.c_str())) {
    return exit_code(report_error(refused("cannot open log file '" + options->log_file + "'")),
                     as_llama);
  }
  for (const std::string& note : options->notes) log_warn("{}", note);
  return exit_code(row.run(*options), as_llama);
}

int start(int argc, char** argv) {
  // A closed pipe is a failed write, not a death by signal; so is a file beyond the allowed size.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  const char* path = argc > 0 ? argv[0] : "bantam";
  const char* slash = std::strrchr(path, '/');
  const std::string name = slash != nullptr ? slash + 1 : path;
  std::vector<std::string> args(argv + (argc > 0 ? 1 : 0), argv + argc);
  for (const CommandRow& row : kCommands) {
    if (*row.link != '\0' && name == row.link) return dispatch(row, args, true);
  }
  if (args.empty()) {
    std::fputs(usage().c_str(), stderr);
    return 2;
  }
  const std::string command = args[0];
  args.erase(args.begin());
  if (command == "--version" || command == "version") {
    std::printf("%s\n", version_text().c_str());
    return 0;
  }
  if (command == "--help" || command == "-h" || command == "help") {
    std::fputs(usage().c_str(), stdout);
    return 0;
  }
  for (const CommandRow& row : kCommands) {
    if (command == row.name) return dispatch(row, args, false);
  }
  log_error(
      "unknown command '{}', expected serve, chat, bench, perplexity, logits, info or "
      "tokenize",
      command.substr(0, 80));
  return 2;
}

}  // namespace
}  // namespace bantam

int main(int argc, char** argv) {
  try {
    return bantam::start(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("error: out of memory\n", stderr);
    return 1;
  }
}
