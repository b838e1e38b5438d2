#include "server/generation.h"

#include <chrono>
#include <cmath>
#include <random>
#include <utility>

namespace bantam {

namespace {

struct Kind {
  int status;
  const char* type;
};

Kind kind_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::refused:
      return {400, "invalid_request_error"};
    case ErrorKind::failed:
      return {500, "server_error"};
    case ErrorKind::not_found:
      return {404, "not_found_error"};
    case ErrorKind::busy:
      return {503, "unavailable_error"};
    case ErrorKind::too_long:
      return {400, "exceed_context_size_error"};
    case ErrorKind::cancelled:
      return {499, "cancelled"};
  }
  return {500, "server_error"};
}

Json error_json(const Error& error, int n_prompt, int n_ctx) {
  const Kind kind = kind_of(error.kind);
  Json inner = {{"code", kind.status}, {"message", error.message}, {"type", kind.type}};
  if (error.kind == ErrorKind::too_long) {
    inner["n_prompt_tokens"] = n_prompt;
    inner["n_ctx"] = n_ctx;
  }
  return {{"error", inner}};
}

std::string random_id(const char* prefix) {
  static constexpr char kLetters[] =
      "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  std::random_device device;
  std::string id = prefix;
  for (int i = 0; i < 32; ++i) id += kLetters[device() % 62];
  return id;
}

double rate(int n, double ms) { return ms > 0 ? n * 1000.0 / ms : 0.0; }

Json timings_json(const Timings& t) {
  return {{"cache_n", t.cache_n},
          {"prompt_n", t.prompt_n},
          {"prompt_ms", t.prompt_ms},
          {"prompt_per_token_ms", t.prompt_n > 0 ? t.prompt_ms / t.prompt_n : 0.0},
          {"prompt_per_second", rate(t.prompt_n, t.prompt_ms)},
          {"predicted_n", t.predicted_n},
          {"predicted_ms", t.predicted_ms},
          {"predicted_per_token_ms", t.predicted_n > 0 ? t.predicted_ms / t.predicted_n : 0.0},
          {"predicted_per_second", rate(t.predicted_n, t.predicted_ms)}};
}

const char* finish_reason(StopReason stop) {
  return stop == StopReason::eos || stop == StopReason::word ? "stop" : "length";
}

const char* stop_type(StopReason stop) {
  switch (stop) {
    case StopReason::eos:
      return "eos";
    case StopReason::word:
      return "word";
    case StopReason::limit:
    case StopReason::context_full:
      return "limit";
    case StopReason::none:
    case StopReason::cancelled:
      return "none";
  }
  return "none";
}

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  Generation(Engine& engine, ApiRequest request, std::shared_ptr<Exchange> exchange)
      : engine_(engine),
        request_(std::move(request)),
        exchange_(std::move(exchange)),
        n_prompt_(static_cast<int>(request_.gen.prompt.size())),
        n_probs_(request_.gen.n_probs),
        created_(std::chrono::duration_cast<std::chrono::seconds>(
                     std::chrono::system_clock::now().time_since_epoch())
                     .count()),
        name_(random_id(request_.style == ApiStyle::chat ? "chatcmpl-" : "cmpl-")) {}

  void begin() {
    const std::shared_ptr<Generation> self = shared_from_this();
    sampling_ = request_.gen.sampling;
    n_predict_ = request_.gen.n_predict;
    n_keep_ = request_.gen.n_keep;
    n_discard_ = request_.gen.n_discard;
    Result<uint64_t> id = engine_.submit(std::move(request_.gen), [self](const GenEvent& event) {
      self->exchange_->post([self, event] { self->handle(event); });
    });
    if (!id)
      return exchange_->reply(error_reply(id.error(), n_prompt_, engine_.model().report().n_ctx));
    exchange_->on_close([self, id = *id] {
      if (!self->over_) self->engine_.cancel(id);
    });
  }

 private:
  void handle(const GenEvent& event) {
    if (!exchange_->open()) return;
    if (event.kind == GenEventKind::error) return fail(event.error);
    over_ = event.kind == GenEventKind::done;
    if (event.kind != GenEventKind::progress) collect(event);
    if (request_.stream) return stream(event);
    if (over_) exchange_->reply(json_reply(final_body(event)));
  }

  void fail(const Error& error) {
    over_ = true;
    if (!streaming_)
      return exchange_->reply(error_reply(error, n_prompt_, engine_.model().report().n_ctx));
    send(error_json(error, n_prompt_, engine_.model().report().n_ctx));
    exchange_->end_stream();
  }

  void collect(const GenEvent& event) {
    text_ += event.text;
    tokens_.insert(tokens_.end(), event.tokens.begin(), event.tokens.end());
    probs_.insert(probs_.end(), event.probs.begin(), event.probs.end());
  }

  // ---- log probabilities

  Json token_json(const TokenProb& prob) const {
    const std::string piece(engine_.model().tokenizer().piece(prob.token));
    Json bytes = Json::array();
    for (const char c : piece) bytes.push_back(static_cast<uint8_t>(c));
    // JSON has no -inf.
    const double logprob =
        std::isfinite(prob.logprob) ? static_cast<double>(prob.logprob) : -9999.0;
    return {{"id", prob.token}, {"token", piece}, {"bytes", bytes}, {"logprob", logprob}};
  }

  Json probs_json(const std::vector<TokenProb>& probs) const {
    Json out = Json::array();
    const size_t each = static_cast<size_t>(n_probs_) + 1;
    for (size_t i = 0; i + each <= probs.size(); i += each) {
      Json entry = token_json(probs[i]);
      entry["top_logprobs"] = Json::array();
      for (size_t k = 1; k < each; ++k) entry["top_logprobs"].push_back(token_json(probs[i + k]));
      out.push_back(std::move(entry));
    }
    return out;
  }

  Json logprobs_or_null(const std::vector<TokenProb>& probs) const {
    return n_probs_ > 0 ? Json{{"content", probs_json(probs)}} : Json(nullptr);
  }

  // ---- bodies

  Json usage(const GenEvent& event) const {
    const int completion = event.timings.predicted_n;
    return {{"completion_tokens", completion},
            {"prompt_tokens", n_prompt_},
            {"total_tokens", n_prompt_ + completion},
            {"prompt_tokens_details", {{"cached_tokens", event.timings.cache_n}}}};
  }

  Json oai_head(const char* object) const {
    return {{"created", created_},
            {"id", name_},
            {"model", engine_.model().report().id},
            {"object", object},
            {"system_fingerprint", "bantam"}};
  }

  Json settings() const {
    Json out = sampling_json(sampling_);
    out["n_predict"] = n_predict_;
    out["n_keep"] = n_keep_;
    out["n_discard"] = n_discard_;
    out["n_ctx"] = engine_.model().report().n_ctx;
    out["stream"] = request_.stream;
    return out;
  }

  Json native_final(const GenEvent& event, bool with_text) const {
    Json out = {{"index", 0},
                {"content", with_text ? text_ : event.text},
                {"tokens", request_.return_tokens && with_text ? Json(tokens_) : Json::array()},
                {"id_slot", event.slot},
                {"stop", true},
                {"model", engine_.model().report().id},
                {"tokens_predicted", event.timings.predicted_n},
                {"tokens_evaluated", n_prompt_},
                {"generation_settings", settings()},
                {"prompt", request_.prompt_text},
                {"has_new_line", text_.find('\n') != std::string::npos},
                {"truncated", event.truncated},
                {"stop_type", stop_type(event.stop)},
                {"stopping_word", event.stopping_word},
                {"tokens_cached", n_prompt_ + event.timings.predicted_n},
                {"timings", timings_json(event.timings)}};
    if (n_probs_ > 0 && with_text) out["completion_probabilities"] = probs_json(probs_);
    return out;
  }

  Json final_body(const GenEvent& event) const {
    if (request_.style == ApiStyle::native) return native_final(event, true);
    const bool chat = request_.style == ApiStyle::chat;
    Json out = oai_head(chat ? "chat.completion" : "text_completion");
    Json choice = {{"finish_reason", finish_reason(event.stop)}, {"index", 0}};
    if (chat) {
      choice["message"] = {{"role", "assistant"}, {"content", text_}};
    } else {
      choice["text"] = text_;
    }
    choice["logprobs"] = logprobs_or_null(probs_);
    out["choices"] = Json::array({std::move(choice)});
    out["usage"] = usage(event);
    out["timings"] = timings_json(event.timings);
    return out;
  }

  // ---- server-sent events

  void send(const Json& body) { exchange_->stream("data: " + dump_json(body) + "\n\n"); }

  Json oai_chunk(Json choice, const char* object) const {
    Json out = oai_head(object);
    choice["index"] = 0;
    out["choices"] = Json::array({std::move(choice)});
    return out;
  }

  void add_extras(Json& chunk, const GenEvent& event) const {
    if (request_.timings_per_token || over_) chunk["timings"] = timings_json(event.timings);
    if (event.kind != GenEventKind::progress) return;
    chunk["prompt_progress"] = {{"total", event.n_prompt},
                                {"cache", event.timings.cache_n},
                                {"processed", event.n_processed},
                                {"time_ms", event.timings.prompt_ms}};
  }

  void stream(const GenEvent& event) {
    if (!streaming_) {
      streaming_ = true;
      exchange_->start_stream();
      if (request_.style == ApiStyle::chat) {
        Json delta = {{"role", "assistant"}, {"content", nullptr}};
        send(oai_chunk({{"finish_reason", nullptr}, {"delta", std::move(delta)}},
                       "chat.completion.chunk"));
      }
    }
    if (request_.style == ApiStyle::native) {
      stream_native(event);
    } else {
      stream_oai(event);
    }
    if (!over_) return;
    if (request_.style != ApiStyle::native) exchange_->stream("data: [DONE]\n\n");
    exchange_->end_stream();
  }

  void stream_native(const GenEvent& event) {
    if (over_) return send(native_final(event, false));
    Json chunk = {{"index", 0},
                  {"content", event.text},
                  {"tokens", event.tokens},
                  {"stop", false},
                  {"id_slot", event.slot},
                  {"tokens_predicted", event.timings.predicted_n},
                  {"tokens_evaluated", n_prompt_}};
    if (n_probs_ > 0) chunk["completion_probabilities"] = probs_json(event.probs);
    add_extras(chunk, event);
    send(chunk);
  }

  void stream_oai(const GenEvent& event) {
    const bool chat = request_.style == ApiStyle::chat;
    const char* object = chat ? "chat.completion.chunk" : "text_completion";
    if (!event.text.empty() || event.kind == GenEventKind::progress) {
      Json choice = {{"finish_reason", nullptr}};
      if (chat) {
        choice["delta"] = event.text.empty() ? Json::object() : Json{{"content", event.text}};
      } else {
        choice["text"] = event.text;
      }
      if (n_probs_ > 0) choice["logprobs"] = logprobs_or_null(event.probs);
      Json chunk = oai_chunk(std::move(choice), object);
      if (!over_) add_extras(chunk, event);
      send(chunk);
    }
    if (!over_) return;
    Json choice = {{"finish_reason", finish_reason(event.stop)}};
    if (chat) {
      choice["delta"] = Json::object();
    } else {
      choice["text"] = "";
    }
    Json last = oai_chunk(std::move(choice), object);
    if (!request_.include_usage || !chat) add_extras(last, event);
    if (!chat) last["usage"] = usage(event);
    send(last);
    if (!request_.include_usage || !chat) return;
    Json tail = oai_head(object);
    tail["choices"] = Json::array();
    tail["usage"] = usage(event);
    add_extras(tail, event);
    send(tail);
  }

  Engine& engine_;
  ApiRequest request_;
  std::shared_ptr<Exchange> exchange_;
  int n_prompt_;
  int n_probs_;
  int64_t created_;
  std::string name_;
  SamplingParams sampling_;
  int n_predict_ = -1;
  int n_keep_ = 0;
  int n_discard_ = 0;
  std::string text_;
  std::vector<int32_t> tokens_;
  std::vector<TokenProb> probs_;
  bool streaming_ = false;
  bool over_ = false;
};

}  // namespace

HttpReply json_reply(const Json& body) {
  HttpReply reply;
  reply.body = dump_json(body);
  return reply;
}

HttpReply error_reply(const Error& error, int n_prompt, int n_ctx) {
  HttpReply reply = json_reply(error_json(error, n_prompt, n_ctx));
  reply.status = kind_of(error.kind).status;
  if (error.kind == ErrorKind::busy) reply.headers = "Retry-After: 1\r\n";
  return reply;
}

void start_generation(Engine& engine, ApiRequest request, std::shared_ptr<Exchange> exchange) {
  std::make_shared<Generation>(engine, std::move(request), std::move(exchange))->begin();
}

}  // namespace bantam
