// The routes: one row for each endpoint, and the small handlers. Completions are in generation.cc.
#include "server/server.h"

#include <atomic>
#include <cstdlib>
#include <utility>

#include "server/generation.h"
#include "server/http.h"
#include "server/params.h"
#include "server/slots.h"

extern "C" {
extern const char bantam_page[] __attribute__((visibility("hidden")));
extern const char bantam_page_end[] __attribute__((visibility("hidden")));
}

namespace bantam {

struct Server::Impl {
  ServerOptions options;
  std::unique_ptr<HttpListener> listener;
  std::atomic<Engine*> engine{nullptr};
  std::atomic<bool> stopped{false};

  void handle(const HttpRequest& request, std::shared_ptr<Exchange> exchange);
  bool authorized(const HttpRequest& request) const;
};

namespace {

struct Call {
  const HttpRequest& request;
  std::shared_ptr<Exchange> exchange;
  Engine& engine;
  const ServerOptions& options;
};

HttpReply plain_error(int status, const char* type, const std::string& message) {
  HttpReply reply =
      json_reply({{"error", {{"code", status}, {"message", message}, {"type", type}}}});
  reply.status = status;
  return reply;
}

void get_health(const Call& call) { call.exchange->reply(json_reply({{"status", "ok"}})); }

void get_models(const Call& call) {
  const ModelReport& r = call.engine.model().report();
  const Json meta = {{"vocab_type", 2},
                     {"n_vocab", r.n_vocab},
                     {"n_ctx_train", r.n_ctx_train},
                     {"n_ctx", r.n_ctx},
                     {"n_embd", r.d_model},
                     {"n_params", r.n_params},
                     {"size", r.memory.weight_bytes}};
  const Json data = {
      {"id", r.id},   {"aliases", Json::array()}, {"tags", Json::array()}, {"object", "model"},
      {"created", 0}, {"owned_by", "bantam"},     {"meta", meta}};
  const Json model = {{"name", r.id},
                      {"model", r.id},
                      {"modified_at", ""},
                      {"size", ""},
                      {"digest", ""},
                      {"type", "model"},
                      {"capabilities", {"completion"}},
                      {"details", {{"format", "gguf"}, {"family", r.arch}}}};
  call.exchange->reply(json_reply(
      {{"models", Json::array({model})}, {"object", "list"}, {"data", Json::array({data})}}));
}

void get_props(const Call& call) {
  const ModelReport& r = call.engine.model().report();
  const Tokenizer& t = call.engine.model().tokenizer();
  Json params = sampling_json(call.options.sampling);
  params["n_predict"] = call.options.n_predict;
  call.exchange->reply(
      json_reply({{"default_generation_settings", {{"params", params}, {"n_ctx", r.n_ctx}}},
                  {"total_slots", r.n_slots},
                  {"model_alias", r.id},
                  {"model_path", r.model_path},
                  {"modalities", {{"vision", false}, {"audio", false}}},
                  {"endpoint_slots", call.options.slots},
                  {"endpoint_props", false},
                  {"endpoint_metrics", call.options.metrics},
                  {"webui", call.options.page},
                  {"webui_settings", Json::object()},
                  {"chat_template", r.chat_template},
                  {"chat_template_caps", Json::object()},
                  {"bos_token", std::string(t.piece(t.bos()))},
                  {"eos_token", std::string(t.piece(t.eos()))},
                  {"build_info", "bantam " + r.isa},
                  {"is_sleeping", false},
                  {"cache_type_k", info(r.type_k).name},
                  {"cache_type_v", info(r.type_v).name},
                  {"attention", r.attention},
                  {"cpu", r.cpu},
                  {"n_threads", r.n_threads},
                  {"memory",
                   {{"weight_bytes", r.memory.weight_bytes},
                    {"kv_bytes", r.memory.kv_bytes},
                    {"compute_bytes", r.memory.compute_bytes},
                    {"rest_bytes", r.memory.rest_bytes}}}}));
}

void get_slots(const Call& call) {
  if (!call.options.slots) {
    return call.exchange->reply(plain_error(501, "not_supported_error", "started with --no-slots"));
  }
  Json out = Json::array();
  for (const SlotInfo& slot : call.engine.slots()) {
    Json entry = {{"id", slot.id},
                  {"n_ctx", slot.n_ctx},
                  {"speculative", false},
                  {"is_processing", slot.is_processing},
                  {"n_cached", slot.n_cached}};
    if (slot.is_processing) {
      entry["id_task"] = slot.request;
      entry["params"] = sampling_json(slot.sampling);
      entry["next_token"] = Json::array(
          {{{"has_next_token", true}, {"n_remain", slot.n_remain}, {"n_decoded", slot.n_decoded}}});
    }
    out.push_back(std::move(entry));
  }
  call.exchange->reply(json_reply(out));
}

void post_slot(const Call& call) {
  if (call.options.slot_save_path.empty()) {
    return call.exchange->reply(
        plain_error(501, "not_supported_error", "start with --slot-save-path DIR to change slots"));
  }
  change_slot(call.engine, call.options.slot_save_path, call.request, call.exchange);
}

void get_metrics(const Call& call) {
  if (!call.options.metrics) {
    return call.exchange->reply(plain_error(501, "not_supported_error", "start with --metrics"));
  }
  const EngineMetrics m = call.engine.metrics();
  std::string text;
  const auto row = [&](const char* type, const char* name, const char* help, double value) {
    const std::string full = std::string("llamacpp:") + name;
    text += "# HELP " + full + " " + help + "\n# TYPE " + full + " " + type + "\n" + full + " " +
            Json(value).dump() + "\n";
  };
  const auto count = [](uint64_t n) { return static_cast<double>(n); };
  const auto rate = [](uint64_t n, double s) { return s > 0 ? static_cast<double>(n) / s : 0.0; };
  row("counter", "prompt_tokens_total", "Prompt tokens computed.", count(m.prompt_tokens));
  row("counter", "prompt_seconds_total", "Seconds of prompt processing.", m.prompt_seconds);
  row("counter", "tokens_predicted_total", "Tokens generated.", count(m.predicted_tokens));
  row("counter", "tokens_predicted_seconds_total", "Seconds of generation.", m.predicted_seconds);
  row("counter", "n_decode_total", "Batches run.", count(m.n_decode));
  row("gauge", "prompt_tokens_seconds", "Prompt tokens per second.",
      rate(m.prompt_tokens, m.prompt_seconds));
  row("gauge", "predicted_tokens_seconds", "Tokens per second.",
      rate(m.predicted_tokens, m.predicted_seconds));
  row("gauge", "requests_processing", "Requests in slots.", m.processing);
  row("gauge", "requests_deferred", "Requests waiting.", m.deferred);
  const double cells = static_cast<double>(m.kv_cells_used);
  row("gauge", "kv_cache_tokens", "Positions in the cache.", cells);
  row("gauge", "kv_cache_usage_ratio", "Share of the cache in use.",
      m.kv_cells > 0 ? cells / static_cast<double>(m.kv_cells) : 0.0);
  HttpReply reply;
  reply.content_type = "text/plain; version=0.0.4";
  reply.body = std::move(text);
  call.exchange->reply(std::move(reply));
}

void get_page(const Call& call) {
  if (!call.options.page)
    return call.exchange->reply(plain_error(404, "not_found_error", "File Not Found"));
  HttpReply reply;
  reply.content_type = "text/html; charset=utf-8";
  reply.headers =
      "Content-Security-Policy: default-src 'self' 'unsafe-inline'; frame-ancestors 'none'\r\n"
      "X-Content-Type-Options: nosniff\r\n";
  reply.body.assign(bantam_page, static_cast<size_t>(bantam_page_end - bantam_page));
  call.exchange->reply(std::move(reply));
}

void generate(const Call& call, ApiStyle style) {
  Result<Json> body = parse_json(call.request.body);
  if (!body) return call.exchange->reply(error_reply(body.error()));
  Result<ApiRequest> request =
      read_request(style, *body, call.engine.model().tokenizer(), call.options);
  if (!request) return call.exchange->reply(error_reply(request.error()));
  start_generation(call.engine, std::move(*request), call.exchange);
}

void post_completion(const Call& call) { generate(call, ApiStyle::native); }
void post_oai_completion(const Call& call) { generate(call, ApiStyle::completion); }
void post_chat(const Call& call) { generate(call, ApiStyle::chat); }

void post_tokenize(const Call& call) {
  Result<Json> body = parse_json(call.request.body);
  if (!body) return call.exchange->reply(error_reply(body.error()));
  Fields fields(*body);
  const std::string content = fields.text("content", "");
  const bool add_special = fields.boolean("add_special", false);
  const bool parse_special = fields.boolean("parse_special", true);
  const bool with_pieces = fields.boolean("with_pieces", false);
  if (!fields.ok()) return call.exchange->reply(error_reply(fields.error()));
  const Tokenizer& tokenizer = call.engine.model().tokenizer();
  Json tokens = Json::array();
  for (const int32_t id : tokenizer.encode(content, add_special, parse_special)) {
    if (with_pieces) {
      tokens.push_back({{"id", id}, {"piece", std::string(tokenizer.piece(id))}});
    } else {
      tokens.push_back(id);
    }
  }
  call.exchange->reply(json_reply({{"tokens", tokens}}));
}

void post_detokenize(const Call& call) {
  Result<Json> body = parse_json(call.request.body);
  if (!body) return call.exchange->reply(error_reply(body.error()));
  const auto it = body->find("tokens");
  std::vector<int32_t> tokens;
  bool fine = it != body->end() && it->is_array();
  for (size_t i = 0; fine && i < it->size(); ++i) {
    const Json& id = (*it)[i];
    fine = id.is_number_integer() && id >= 0 && id < call.engine.model().tokenizer().n_vocab();
    if (fine) tokens.push_back(id.get<int32_t>());
  }
  if (!fine)
    return call.exchange->reply(error_reply(refused("'tokens' must be an array of token ids")));
  call.exchange->reply(
      json_reply({{"content", call.engine.model().tokenizer().decode(tokens, true)}}));
}

void post_apply_template(const Call& call) {
  Result<Json> body = parse_json(call.request.body);
  if (!body) return call.exchange->reply(error_reply(body.error()));
  Result<std::vector<ChatMessage>> messages = read_messages(*body);
  if (!messages) return call.exchange->reply(error_reply(messages.error()));
  Result<std::string> prompt = render_chatml(*messages, messages->back().role != "assistant");
  if (!prompt) return call.exchange->reply(error_reply(prompt.error()));
  call.exchange->reply(json_reply({{"prompt", *prompt}}));
}

void not_supported(const Call& call) {
  call.exchange->reply(
      plain_error(501, "not_supported_error", "this server does not support " + call.request.path));
}

struct Route {
  const char* method;
  const char* path;  // with a '/' at its end: of everything below
  bool open;         // without a key
  void (*handle)(const Call&);
};

// ONE ROW PER ENDPOINT.
constexpr Route kRoutes[] = {
    {"GET", "/health", true, get_health},
    {"GET", "/v1/health", true, get_health},
    {"GET", "/v1/models", true, get_models},
    {"GET", "/models", true, get_models},
    {"GET", "/props", false, get_props},
    {"GET", "/slots", false, get_slots},
    {"POST", "/slots/", false, post_slot},
    {"GET", "/metrics", false, get_metrics},
    {"GET", "/", true, get_page},
    {"GET", "/index.html", true, get_page},
    {"POST", "/completion", false, post_completion},
    {"POST", "/completions", false, post_completion},
    {"POST", "/v1/completions", false, post_oai_completion},
    {"POST", "/v1/chat/completions", false, post_chat},
    {"POST", "/chat/completions", false, post_chat},
    {"POST", "/tokenize", false, post_tokenize},
    {"POST", "/detokenize", false, post_detokenize},
    {"POST", "/apply-template", false, post_apply_template},
    {"POST", "/props", false, not_supported},
    {"POST", "/infill", false, not_supported},
    {"POST", "/embedding", false, not_supported},
    {"POST", "/embeddings", false, not_supported},
    {"POST", "/v1/embeddings", false, not_supported},
    {"POST", "/rerank", false, not_supported},
    {"POST", "/v1/rerank", false, not_supported},
    {"POST", "/v1/messages", false, not_supported},
    {"POST", "/v1/messages/count_tokens", false, not_supported},
    {"POST", "/v1/responses", false, not_supported},
};

bool matches(const Route& route, const std::string& path) {
  const std::string_view name = route.path;
  const bool below = name.size() > 1 && name.ends_with('/');
  return below ? path.size() > name.size() && path.starts_with(name) : path == name;
}

// The time depends on the lengths alone, never on where a wrong key differs.
bool same_key(const std::string& a, const std::string& b) {
  if (a.size() != b.size()) return false;
  unsigned different = 0;
  for (size_t i = 0; i < a.size(); ++i) different |= static_cast<unsigned>(a[i] ^ b[i]);
  return different == 0;
}

HttpReply loading_reply(const std::string& path) {
  HttpReply reply = plain_error(503, "unavailable_error", "Loading model");
  reply.headers = "Retry-After: 1\r\n";
  if (path != "/" && path != "/index.html") return reply;
  reply.content_type = "text/html; charset=utf-8";
  reply.body =
      "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=1><title>Bantam</title>"
      "<p style=\"font:1.1rem sans-serif;margin:3rem\">The model is loading. This page retries by "
      "itself.";
  return reply;
}

}  // namespace

bool Server::Impl::authorized(const HttpRequest& request) const {
  if (options.api_keys.empty()) return true;
  const std::string prefix = "Bearer ";
  const std::string given = request.authorization.starts_with(prefix)
                                ? request.authorization.substr(prefix.size())
                                : request.authorization;
  bool found = false;
  for (const std::string& key : options.api_keys) found = same_key(given, key) || found;
  return found;
}

void Server::Impl::handle(const HttpRequest& request, std::shared_ptr<Exchange> exchange) {
  if (request.method == "OPTIONS") {
    HttpReply reply;
    reply.headers =
        "Access-Control-Allow-Methods: GET, POST\r\nAccess-Control-Allow-Headers: *\r\n";
    return exchange->reply(std::move(reply));
  }
  std::string allowed;
  for (const Route& route : kRoutes) {
    if (!matches(route, request.path)) continue;
    if (request.method != route.method) {
      allowed += (allowed.empty() ? "" : ", ") + std::string(route.method);
      continue;
    }
    if (!route.open && !authorized(request)) {
      return exchange->reply(plain_error(401, "authentication_error", "Invalid API Key"));
    }
    Engine* ready = engine.load(std::memory_order_acquire);
    if (ready == nullptr) return exchange->reply(loading_reply(request.path));
    return route.handle({request, exchange, *ready, options});
  }
  if (allowed.empty())
    return exchange->reply(plain_error(404, "not_found_error", "File Not Found"));
  HttpReply reply =
      plain_error(405, "invalid_request_error", "use " + allowed + " for " + request.path);
  reply.headers = "Allow: " + allowed + "\r\n";
  exchange->reply(std::move(reply));
}

Server::Server() = default;
Server::~Server() = default;

Result<std::unique_ptr<Server>> Server::bind(const ServerOptions& options) {
  std::unique_ptr<Server> server(new Server);
  server->impl_ = std::make_unique<Impl>();
  Impl* impl = server->impl_.get();
  impl->options = options;
  HttpOptions http;
  http.host = options.host;
  http.port = options.port;
  http.timeout_s = options.timeout_s;
  http.header_timeout_ms = options.header_timeout_ms;
  Result<std::unique_ptr<HttpListener>> listener = HttpListener::bind(
      http, [impl](const HttpRequest& request, std::shared_ptr<Exchange> exchange) {
        impl->handle(request, std::move(exchange));
      });
  if (!listener) return listener.error();
  impl->listener = std::move(*listener);
  return server;
}

int Server::port() const { return impl_->listener->port(); }

void Server::run(int stop_fd) {
  impl_->listener->run(stop_fd, [this] {
    impl_->stopped = true;
    // Nothing is half done while weights are still being read: the process may end at once.
    if (impl_->engine.load() == nullptr) std::_Exit(0);
  });
}

void Server::set_engine(Engine* engine) { impl_->engine.store(engine, std::memory_order_release); }
void Server::stop() { impl_->listener->stop(); }
bool Server::stopped() const { return impl_->stopped; }

}  // namespace bantam
