// Request bodies of the completion routes -> GenRequest. Knows nothing of sockets. Every field is
// checked; what is not supported is refused instead of being ignored.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "engine/engine.h"
#include "server/fields.h"
#include "server/server.h"

namespace bantam {

enum class ApiStyle { native, completion, chat };

struct ApiRequest {
  GenRequest gen;
  ApiStyle style = ApiStyle::native;
  bool stream = false;
  bool include_usage = false;
  bool timings_per_token = false;
  bool return_tokens = false;
  std::string prompt_text;  // echoed by the native route
};

Result<ApiRequest> read_request(ApiStyle style, const Json& body, const Tokenizer& tokenizer,
                                const ServerOptions& defaults);
Result<std::vector<ChatMessage>> read_messages(const Json& body);
Json sampling_json(const SamplingParams& sampling);

}  // namespace bantam
