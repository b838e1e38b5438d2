// The commands. Each returns its exit code (0 done, 1 failed, 2 refused, 130 interrupted); results
// go to stdout, logs to stderr.
#pragma once

#include "cli/args.h"

namespace bantam {

int run_serve(const CliOptions& options);
int run_chat(const CliOptions& options);
int run_bench(const CliOptions& options);
int run_logits(const CliOptions& options);
int run_info(const CliOptions& options);
int run_tokenize(const CliOptions& options);
int run_perplexity(const CliOptions& options);

// Prints the error as one line on stderr; 2 for refusals, 1 otherwise.
int report_error(const Error& error);
// Loads with the plan's lines and the progress on stderr.
Result<std::unique_ptr<LoadedModel>> load_with_progress(const CliOptions& options);

// Until install_interrupts(): SIGINT and SIGTERM end the process at once with this exit code.
void exit_on_signals(int code);
// The first one makes the returned descriptor readable, the second ends the process at once; both
// with this exit code, and there is no moment at which one would kill it. -1: no descriptor left.
int stop_on_signals(int code);
// From now on they are counted; the second one ends the process with exit code 130.
void install_interrupts();
int interrupts();
void clear_interrupts();

}  // namespace bantam
