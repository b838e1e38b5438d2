// Messages -> prompt tokens in ChatML, the format of Qwen3, Bonsai and SmolLM2. Text of control
// tokens inside a message stays text. Refuses roles outside system, user, assistant, tool and
// vocabularies without the ChatML markers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "text/tokenizer.h"

namespace bantam {

struct ChatMessage {
  std::string role;
  std::string content;
};

// The prompt as text, for people to read.
Result<std::string> render_chatml(std::span<const ChatMessage> messages,
                                  bool add_generation_prompt);
// The prompt as tokens. A last assistant message without add_generation_prompt is left open, to be
// continued.
Result<std::vector<int32_t>> encode_chatml(const Tokenizer& tokenizer,
                                           std::span<const ChatMessage> messages,
                                           bool add_generation_prompt);

}  // namespace bantam
