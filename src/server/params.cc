#include "server/params.h"

#include <algorithm>
#include <limits>

namespace bantam {

namespace {

constexpr int64_t kMany = 1 << 30;

void read_bias(Fields& fields, SamplingParams& sampling) {
  const Json* bias = fields.find("logit_bias");
  if (bias == nullptr) return;
  const auto add = [&](const Json& token, const Json& value) {
    const bool number = value.is_number() || value.is_boolean();
    int64_t id = -1;
    if (token.is_number_integer()) id = token.get<int64_t>();
    if (token.is_string() && token.get_ref<const std::string&>().size() < 9) {
      id = std::strtoll(token.get_ref<const std::string&>().c_str(), nullptr, 10);
    }
    if (id < 0 || id > kMany || !number)
      return fields.fail("'logit_bias' must map token ids to numbers or false");
    const float amount =
        value.is_boolean() ? -std::numeric_limits<float>::infinity() : value.get<float>();
    sampling.logit_bias.emplace_back(static_cast<int32_t>(id), amount);
  };
  if (bias->is_object()) {
    for (const auto& [token, value] : bias->items()) add(Json(token), value);
  } else if (bias->is_array()) {
    for (const Json& pair : *bias) {
      if (!pair.is_array() || pair.size() != 2) return fields.fail("'logit_bias' must hold pairs");
      add(pair[0], pair[1]);
    }
  } else {
    fields.fail("'logit_bias' must be an object or an array of pairs");
  }
}

void read_sampling(Fields& fields, SamplingParams& s) {
  s.temperature = static_cast<float>(fields.number("temperature", s.temperature));
  s.top_k = static_cast<int>(fields.integer("top_k", s.top_k, -1, kMany));
  s.top_p = static_cast<float>(fields.number("top_p", s.top_p));
  s.min_p = static_cast<float>(fields.number("min_p", s.min_p));
  s.repeat_penalty = static_cast<float>(fields.number("repeat_penalty", s.repeat_penalty));
  s.frequency_penalty = static_cast<float>(fields.number("frequency_penalty", s.frequency_penalty));
  s.presence_penalty = static_cast<float>(fields.number("presence_penalty", s.presence_penalty));
  s.repeat_last_n = static_cast<int>(fields.integer("repeat_last_n", s.repeat_last_n, -1, kMany));
  s.seed = fields.integer("seed", s.seed, -1, std::numeric_limits<int64_t>::max());
  if (s.seed == 4294967295) s.seed = -1;  // llama.cpp's other spelling of "random"
  read_bias(fields, s);
}

void refuse_unsupported(Fields& fields) {
  for (const char* name :
       {"grammar", "json_schema", "tools", "functions", "images", "lora", "audio", "modalities"}) {
    fields.unsupported(name);
  }
  fields.unsupported("n", 1);
  fields.unsupported("n_cmpl", 1);
  fields.unsupported("best_of", 1);
  fields.unsupported("echo", false);
  fields.unsupported("suffix");
  fields.unsupported("mirostat", 0);
  fields.unsupported("dry_multiplier", 0);
  fields.unsupported("xtc_probability", 0);
  fields.unsupported("typical_p", 1);
  fields.unsupported("dynatemp_range", 0);
  const Json* format = fields.find("response_format");
  if (format == nullptr) return;
  if (!format->is_object() || !format->contains("type") || !(*format)["type"].is_string()) {
    return fields.fail("'response_format' must be an object with a 'type'");
  }
  if ((*format)["type"] != "text")
    fields.fail("'response_format' other than text is not supported yet");
}

void read_limits(Fields& fields, ApiRequest& out) {
  GenRequest& gen = out.gen;
  for (const char* name :
       {"max_tokens", "max_completion_tokens", "n_predict"}) {  // the last one present wins
    gen.n_predict = static_cast<int>(fields.integer(name, gen.n_predict, -1, kMany));
  }
  gen.stop = fields.texts("stop");
  gen.cache_prompt = fields.boolean("cache_prompt", true);
  gen.ignore_eos = fields.boolean("ignore_eos", false);
  gen.id_slot = static_cast<int>(fields.integer("id_slot", -1, -1, kMany));
  gen.n_keep = static_cast<int>(fields.integer("n_keep", gen.n_keep, -1, kMany));
  gen.n_discard = static_cast<int>(fields.integer("n_discard", 0, 0, kMany));
  gen.progress = fields.boolean("return_progress", false);
  out.stream = fields.boolean("stream", false);
  out.timings_per_token = fields.boolean("timings_per_token", false);
  out.return_tokens = fields.boolean("return_tokens", false);
  gen.n_probs = static_cast<int>(fields.integer("n_probs", 0, 0, 100));
  if (out.style == ApiStyle::chat) {
    const bool wanted = fields.boolean("logprobs", false);
    const int top = static_cast<int>(fields.integer("top_logprobs", wanted ? 20 : 0, 0, 100));
    if (!wanted && fields.has("top_logprobs") && top > 0)
      fields.fail("'top_logprobs' needs 'logprobs': true");
    if (wanted) gen.n_probs = std::max(1, top);
  } else if (out.style == ApiStyle::completion) {
    gen.n_probs = std::max(gen.n_probs, static_cast<int>(fields.integer("logprobs", 0, 0, 100)));
  }
  if (const Json* options = fields.find("stream_options"); options != nullptr) {
    if (!options->is_object()) return fields.fail("'stream_options' must be an object");
    Fields inner(*options);
    out.include_usage = inner.boolean("include_usage", false);
    if (!inner.ok()) fields.fail(inner.error().message);
  }
}

// A string, an array of ids, or a mix of both.
void read_prompt(Fields& fields, const Tokenizer& tokenizer, ApiRequest& out) {
  const Json* prompt = fields.find("prompt");
  if (prompt == nullptr) return fields.fail("'prompt' is missing");
  const auto add_text = [&](const std::string& text) {
    const std::vector<int32_t> tokens = tokenizer.encode(text, out.gen.prompt.empty(), true);
    out.gen.prompt.insert(out.gen.prompt.end(), tokens.begin(), tokens.end());
    out.prompt_text += text;
  };
  if (prompt->is_string()) return add_text(prompt->get<std::string>());
  if (!prompt->is_array())
    return fields.fail("'prompt' must be a string or an array of token ids and strings");
  for (const Json& part : *prompt) {
    if (part.is_string()) {
      add_text(part.get<std::string>());
    } else if (part.is_number_integer() && part.get<int64_t>() >= 0 &&
               part.get<int64_t>() < tokenizer.n_vocab()) {
      out.gen.prompt.push_back(part.get<int32_t>());
      out.prompt_text += tokenizer.piece(part.get<int32_t>());
    } else {
      return fields.fail("'prompt' must hold strings and token ids from 0 to " +
                         std::to_string(tokenizer.n_vocab() - 1));
    }
  }
}

Result<std::string> read_content(const Json& message) {
  const auto it = message.find("content");
  if (it == message.end() || it->is_null()) {
    if (message.value("role", Json("")) == "assistant") return std::string();
    return refused("every message but the assistant's needs 'content'");
  }
  if (it->is_string()) return it->get<std::string>();
  if (!it->is_array()) return refused("'content' must be a string or an array of text parts");
  std::string text;
  for (const Json& part : *it) {
    const bool is_text = part.is_object() && part.contains("type") && part["type"] == "text" &&
                         part.contains("text") && part["text"].is_string();
    if (!is_text) return refused("content parts other than {\"type\": \"text\"} are not supported");
    text += part["text"].get<std::string>();
  }
  return text;
}

}  // namespace

Result<std::vector<ChatMessage>> read_messages(const Json& body) {
  const auto it = body.find("messages");
  if (it == body.end() || !it->is_array() || it->empty())
    return refused("'messages' must be a non-empty array");
  std::vector<ChatMessage> messages;
  for (const Json& message : *it) {
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string()) {
      return refused("every message must be an object with a 'role'");
    }
    if (message.contains("tool_calls") && !message["tool_calls"].empty()) {
      return refused("'tool_calls' in messages are not supported yet");
    }
    Result<std::string> content = read_content(message);
    if (!content) return content.error();
    std::string role = message["role"].get<std::string>();
    if (role == "developer") role = "system";
    messages.push_back({std::move(role), std::move(*content)});
  }
  const size_t n = messages.size();
  if (n >= 2 && messages[n - 1].role == "assistant" && messages[n - 2].role == "assistant") {
    return refused("the conversation ends with two assistant messages");
  }
  return messages;
}

Result<ApiRequest> read_request(ApiStyle style, const Json& body, const Tokenizer& tokenizer,
                                const ServerOptions& defaults) {
  ApiRequest out;
  out.style = style;
  out.gen.sampling = defaults.sampling;
  out.gen.n_predict = defaults.n_predict;
  out.gen.n_keep = defaults.n_keep;
  Fields fields(body);
  refuse_unsupported(fields);
  read_sampling(fields, out.gen.sampling);
  read_limits(fields, out);
  if (fields.ok() && style != ApiStyle::chat) read_prompt(fields, tokenizer, out);
  if (!fields.ok()) return fields.error();
  if (style != ApiStyle::chat) return out;
  Result<std::vector<ChatMessage>> messages = read_messages(body);
  if (!messages) return messages.error();
  // A last assistant message is continued.
  const bool answer = messages->back().role != "assistant";
  Result<std::vector<int32_t>> prompt = encode_chatml(tokenizer, *messages, answer);
  if (!prompt) return prompt.error();
  out.gen.prompt = std::move(*prompt);
  return out;
}

Json sampling_json(const SamplingParams& s) {
  return {{"seed", s.seed},
          {"temperature", s.temperature},
          {"top_k", s.top_k},
          {"top_p", s.top_p},
          {"min_p", s.min_p},
          {"repeat_penalty", s.repeat_penalty},
          {"repeat_last_n", s.repeat_last_n},
          {"frequency_penalty", s.frequency_penalty},
          {"presence_penalty", s.presence_penalty},
          {"samplers", {"penalties", "top_k", "top_p", "min_p", "temperature"}}};
}

}  // namespace bantam
