#include "text/chat_format.h"

#include <string_view>

namespace bantam {

namespace {

constexpr std::string_view kStart = "<|im_start|>";
constexpr std::string_view kEnd = "<|im_end|>";

Status check_roles(std::span<const ChatMessage> messages) {
  for (const ChatMessage& message : messages) {
    if (message.role == "system" || message.role == "user" || message.role == "assistant" ||
        message.role == "tool") {
      continue;
    }
    return refused("role '" + message.role.substr(0, 64) +
                   "' is unknown, expected system, user, assistant or tool");
  }
  return Ok{};
}

void append(std::vector<int32_t>& out, const std::vector<int32_t>& more) {
  out.insert(out.end(), more.begin(), more.end());
}

}  // namespace

Result<std::string> render_chatml(std::span<const ChatMessage> messages,
                                  bool add_generation_prompt) {
  if (Status status = check_roles(messages); !status) return status.error();
  std::string text;
  for (size_t i = 0; i < messages.size(); ++i) {
    const bool open =
        !add_generation_prompt && i + 1 == messages.size() && messages[i].role == "assistant";
    text.append(kStart).append(messages[i].role).append("\n").append(messages[i].content);
    if (!open) text.append(kEnd).append("\n");
  }
  if (add_generation_prompt) text.append(kStart).append("assistant\n");
  return text;
}

Result<std::vector<int32_t>> encode_chatml(const Tokenizer& tokenizer,
                                           std::span<const ChatMessage> messages,
                                           bool add_generation_prompt) {
  if (Status status = check_roles(messages); !status) return status.error();
  const std::optional<int32_t> start = tokenizer.find(kStart), end = tokenizer.find(kEnd);
  if (!start || !end) {
    return refused(
        "this model's vocabulary has no ChatML markers (<|im_start|>, <|im_end|>); use "
        "/completion");
  }
  std::vector<int32_t> out;
  if (tokenizer.add_bos() && tokenizer.bos() >= 0) out.push_back(tokenizer.bos());
  for (size_t i = 0; i < messages.size(); ++i) {
    const bool open =
        !add_generation_prompt && i + 1 == messages.size() && messages[i].role == "assistant";
    out.push_back(*start);
    append(out, tokenizer.encode(messages[i].role + "\n" + messages[i].content, false, false));
    if (open) break;
    out.push_back(*end);
    append(out, tokenizer.encode("\n", false, false));
  }
  if (add_generation_prompt) {
    out.push_back(*start);
    append(out, tokenizer.encode("assistant\n", false, false));
  }
  return out;
}

}  // namespace bantam
