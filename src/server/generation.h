// Generation: one completion request from its first token to its last byte, plain or as server-sent
// events, in the three styles of llama-server. Lives as long as its Exchange; a client that leaves
// cancels it at once.
#pragma once

#include <memory>
#include <string>

#include "engine/engine.h"
#include "server/http.h"
#include "server/params.h"

namespace bantam {

// Validated request -> engine. Answers on `exchange`, now or later.
void start_generation(Engine& engine, ApiRequest request, std::shared_ptr<Exchange> exchange);

// {"error": {...}} with llama-server's types and the HTTP status of the kind.
HttpReply error_reply(const Error& error, int n_prompt = 0, int n_ctx = 0);
HttpReply json_reply(const Json& body);

}  // namespace bantam
