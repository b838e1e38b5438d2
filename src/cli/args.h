// Command lines: one table of flags for parsing, --help and the LLAMA_ARG_* environment. Flags are
// those of llama-server, llama-cli, llama-bench and llama-perplexity. Refuses unknown flags, bad
// values, and flags whose silent loss would change answers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/engine.h"

namespace bantam {

enum class Command { serve, chat, bench, logits, info, tokenize, perplexity };

struct CliOptions {
  Command command = Command::serve;
  EngineOptions engine;
  SamplingParams sampling;
  int n_predict = -1;
  int n_keep = 0;
  bool kv_given = false;
  bool help = false;
  bool version = false;
  int log_level = 3;
  std::string log_file;

  // serve
  std::string host = "127.0.0.1";
  int port = 8080;
  std::vector<std::string> api_keys;
  int timeout_s = 600;
  bool metrics = false;
  bool slots = true;
  bool page = true;
  std::string slot_save_path;

  // chat
  std::string prompt_cache;
  std::string prompt;
  std::string prompt_file;
  std::string system;
  std::vector<std::string> stop;
  bool single_turn = false;
  bool show_timings = true;
  bool escapes = true;
  bool ignore_eos = false;

  // bench: lists as typed; several -pg joined by ';'
  std::string list_prompt = "512", list_gen = "128", list_depth = "0", list_pg;
  bool depth_copies = false;
  std::string list_k = "f16", list_v = "f16", list_threads, list_batch, list_ubatch;
  std::string list_parallel = "1";
  int repetitions = 5;
  std::string output = "md";
  bool progress = false;
  bool warm_up = true;

  // logits, tokenize, info
  std::vector<int32_t> tokens;
  std::string file;
  std::string format = "json";
  int chunk = 0;  // rows of one step; 0: as many as fit
  int beside = 0;
  bool json = false;

  // perplexity (prompt and file: the text)
  std::string base_file;    // log-probabilities, written or read
  bool divergence = false;  // read base_file instead of writing it
  int n_chunks = -1;        // at most; -1: all of the text
  int stride = 0;           // 0: whole chunks side by side
  int lines = 0;            // 1: a line for each chunk
  std::string ppl_output = "text";

  std::vector<std::string> notes;  // one line each, to be logged as warnings
  bool from_environment = false;   // while the environment is read
  bool keys_from_environment = false;
};

// Reads LLAMA_ARG_* first, then the arguments (without the command). The Error's message is one
// clear sentence.
Result<CliOptions> parse_args(Command command, const std::vector<std::string>& args);
std::string help_text(Command command);
// "512,1024", "0-4096+1024", "1-8*2" -> numbers
Result<std::vector<int>> parse_list(const std::string& name, const std::string& text, int min,
                                    int max);
// The file's bytes, or a refusal that says why.
Result<std::string> read_text_file(const std::string& path);

}  // namespace bantam
