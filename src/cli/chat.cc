// `bantam chat`: one question with -p, or a conversation. Ctrl-C stops the answer, a second one
// leaves with 130.
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <future>
#include <iostream>
#include <mutex>
#include <string_view>

#include "base/log.h"
#include "cli/commands.h"

namespace bantam {

namespace {

struct Answer {
  std::string text;
  GenEvent last;
};

class Chat {
 public:
  Chat(const CliOptions& options, Engine& engine) : options_(options), engine_(engine) { clear(); }

  void clear() {
    messages_.clear();
    if (!options_.system.empty()) messages_.push_back({"system", options_.system});
  }

  Status ask(const std::string& text) {
    messages_.push_back({"user", text});
    return answer();
  }

  Status regenerate() {
    while (!messages_.empty() && messages_.back().role == "assistant") messages_.pop_back();
    if (messages_.empty() || messages_.back().role != "user")
      return refused("nothing to answer again yet");
    return answer();
  }

 private:
  typedef std::vector<ChatMessage> Messages;

  static bool is_question(const ChatMessage& message) { return message.role == "user"; }

  // Without the oldest question and its answer, if there is one beside the question at hand.
  static bool forget_oldest(Messages& messages) {
    const auto first = std::find_if(messages.begin(), messages.end(), is_question);
    if (first == messages.end()) return false;
    const auto next = std::find_if(first + 1, messages.end(), is_question);
    if (next == messages.end()) return false;
    messages.erase(first, next);
    return true;
  }

  Result<std::vector<int32_t>> encode(const Messages& messages) const {
    return encode_chatml(engine_.model().tokenizer(), messages, true);
  }

  // The conversation as a prompt. With --context-shift one that no longer fits loses its oldest
  // questions and answers, until a quarter of the context is free for what comes.
  Result<std::vector<int32_t>> encode_what_fits() {
    const auto n_ctx = static_cast<size_t>(engine_.model().report().n_ctx);
    Result<std::vector<int32_t>> whole = encode(messages_);
    if (!options_.engine.context_shift || !whole || whole->size() < n_ctx) return whole;
    Messages kept = messages_;
    Result<std::vector<int32_t>> prompt = whole;
    while (prompt && prompt->size() >= n_ctx / 4 * 3 && forget_oldest(kept)) prompt = encode(kept);
    if (!prompt || prompt->size() >= n_ctx) return whole;
    log_warn("the conversation no longer fits: its oldest {} messages are left out",
             messages_.size() - kept.size());
    messages_ = std::move(kept);
    return prompt;
  }

  // Whether the last question would fit if the conversation began with it.
  bool fits_alone() const {
    Messages last = messages_;
    while (forget_oldest(last)) {
    }
    const Result<std::vector<int32_t>> prompt = encode(last);
    return prompt && prompt->size() < static_cast<size_t>(engine_.model().report().n_ctx);
  }

  Status answer() {
    Result<std::vector<int32_t>> prompt = encode_what_fits();
    if (!prompt) return prompt.error();
    GenRequest request;
    request.prompt = std::move(*prompt);
    request.sampling = options_.sampling;
    request.n_predict = options_.n_predict;
    request.n_keep = options_.n_keep;
    request.stop = options_.stop;
    request.ignore_eos = options_.ignore_eos;
    Result<Answer> answer = run(std::move(request));
    if (!answer) {
      Error error = answer.error();
      if (error.kind == ErrorKind::too_long && fits_alone()) {
        error.message += "; /clear starts anew";
      }
      messages_.pop_back();
      return error;
    }
    std::fputs("\n", stdout);
    std::fflush(stdout);
    messages_.push_back({"assistant", answer->text});
    const Timings& t = answer->last.timings;
    if (options_.show_timings && log_level() >= LogLevel::info) {
      log_info("[ Prompt: {:.1f} t/s | Generation: {:.1f} t/s ]",
               t.prompt_ms > 0 ? t.prompt_n * 1000.0 / t.prompt_ms : 0.0,
               t.predicted_ms > 0 ? t.predicted_n * 1000.0 / t.predicted_ms : 0.0);
    }
    if (answer->last.stop == StopReason::context_full)
      log_warn("the context is full; /clear starts anew");
    return Ok{};
  }

  Result<Answer> run(GenRequest request) {
    std::mutex mutex;
    std::condition_variable changed;
    Answer answer;
    bool done = false;
    Result<uint64_t> id = engine_.submit(std::move(request), [&](const GenEvent& event) {
      std::fwrite(event.text.data(), 1, event.text.size(), stdout);
      std::fflush(stdout);
      const std::lock_guard lock(mutex);
      answer.text += event.text;
      if (event.kind != GenEventKind::done && event.kind != GenEventKind::error) return;
      answer.last = event;
      done = true;
      changed.notify_one();
    });
    if (!id) return id.error();
    std::unique_lock lock(mutex);
    bool cancelled = false;
    while (!done) {
      changed.wait_for(lock, std::chrono::milliseconds(50));
      if (interrupts() > 0 && !cancelled) {
        engine_.cancel(*id);
        cancelled = true;
      }
    }
    if (answer.last.kind == GenEventKind::error) return answer.last.error;
    return answer;
  }

  const CliOptions& options_;
  Engine& engine_;
  std::vector<ChatMessage> messages_;
};

// "\\n" and the like as llama-cli reads them in its arguments.
std::string unescape(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    constexpr std::string_view kFrom = "nrt\\\"'", kTo = "\n\r\t\\\"'";
    const size_t at =
        text[i] == '\\' && i + 1 < text.size() ? kFrom.find(text[i + 1]) : std::string_view::npos;
    if (at == std::string_view::npos) {
      out += text[i];
    } else {
      out += kTo[at];
      ++i;
    }
  }
  return out;
}

Result<CliOptions> with_texts(CliOptions options) {
  if (options.escapes) {
    options.prompt = unescape(options.prompt);
    options.system = unescape(options.system);
  }
  if (options.prompt_file.empty()) return options;
  Result<std::string> text = read_text_file(options.prompt_file);
  if (!text) return text.error();
  while (text->ends_with('\n')) text->pop_back();
  if (text->empty()) return refused("'" + options.prompt_file + "' holds no question");
  options.prompt = std::move(*text);
  return options;
}

constexpr const char* kHelp =
    "commands: /exit  /clear (new conversation)  /regen (answer again)  /help";

int converse(const CliOptions& options, Chat& chat) {
  const bool tty = ::isatty(0) == 1;
  if (tty) log_info("{}", kHelp);
  std::string line;
  for (;;) {
    if (tty) {
      std::fputs("> ", stdout);
      std::fflush(stdout);
    }
    clear_interrupts();
    if (!std::getline(std::cin, line)) return interrupts() > 0 ? 130 : 0;
    if (line.empty()) continue;
    if (line == "/exit" || line == "/quit") return 0;
    Status status = Ok{};
    if (line == "/help") {
      log_info("{}", kHelp);
    } else if (line == "/clear") {
      chat.clear();
    } else if (line == "/regen") {
      status = chat.regenerate();
    } else {
      status = chat.ask(line);
    }
    if (!status) report_error(status.error());
    if (options.single_turn) return status.ok() ? 0 : 1;
  }
}

// Waits for it; prompts find in the slot what it holds.
Status change_cache(Engine& engine, SlotAction action, const std::string& path) {
  std::promise<Result<SlotDone>> promise;
  const Status status = engine.change_slot(
      action, 0, path, [&](const Result<SlotDone>& done) { promise.set_value(done); });
  if (!status) return status;
  const Result<SlotDone> done = promise.get_future().get();
  if (!done) return done.error();
  log_info("prompt cache: {} tokens {} '{}'", done->n_tokens,
           action == SlotAction::save ? "saved to" : "read from", path);
  return Ok{};
}

int talk(const CliOptions& options, Engine& engine) {
  Chat chat(options, engine);
  if (options.prompt.empty()) return converse(options, chat);
  const Status status = chat.ask(options.prompt);
  if (interrupts() > 0) return 130;
  return status.ok() ? 0 : report_error(status.error());
}

}  // namespace

int run_chat(const CliOptions& given) {
  exit_on_signals(130);
  Result<CliOptions> with = with_texts(given);
  if (!with) return report_error(with.error());
  const CliOptions& options = *with;
  if (Status status = check_sampling(options.sampling, 1 << 22); !status)
    return report_error(status.error());
  Result<std::unique_ptr<LoadedModel>> loaded = load_with_progress(options);
  if (!loaded) return report_error(loaded.error());
  install_interrupts();
  const Result<std::unique_ptr<Engine>> started =
      Engine::start(std::move(*loaded), 4, [](const std::string& text) { log_info("{}", text); });
  if (!started) return report_error(started.error());
  Engine* engine = started->get();
  const std::string& cache = options.prompt_cache;
  if (!cache.empty() && ::access(cache.c_str(), F_OK) == 0) {
    const Status read = change_cache(*engine, SlotAction::restore, cache);
    // Never written over: it may be another model's.
    if (!read) return report_error(read.error());
  }
  const int code = talk(options, *engine);
  if (cache.empty() || engine->slots()[0].n_cached == 0) return code;
  const Status saved = change_cache(*engine, SlotAction::save, cache);
  return saved.ok() ? code : report_error(saved.error());
}

}  // namespace bantam
