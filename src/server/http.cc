#include "server/http.h"

#include <atomic>
#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/version.hpp>
#include <deque>
#include <optional>
#include <utility>

#include "base/limits.h"
#include "base/log.h"

namespace bantam {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = boost::asio::ip::tcp;
using boost::system::error_code;

constexpr int kIdleSeconds = 60;             // keep-alive without a request
constexpr size_t kMaxUnsentBytes = 1 << 20;  // a reader slower than this is dropped

const char* reason_of(int status) {
  return http::obsolete_reason(static_cast<http::status>(status)).data();
}

std::string error_body(int status, const char* type, const char* message) {
  return std::string("{\"error\":{\"code\":") + std::to_string(status) + ",\"message\":\"" +
         message + "\",\"type\":\"" + type + "\"}}";
}

std::string_view host_part(std::string_view host) {
  if (host.starts_with('[')) return host.substr(0, host.find(']') + 1);
  return host.substr(0, host.find(':'));
}

}  // namespace

bool is_loopback_name(std::string_view host) {
  const std::string_view name = host_part(host);
  return name == "localhost" || name == "[::1]" || name == "::1" || name.starts_with("127.") ||
         host == "::1";
}

class Connection;

struct HttpListener::Impl {
  Impl(HttpOptions o, HttpHandler h)
      : options(std::move(o)),
        handler(std::move(h)),
        acceptor(loop),
        stop_event(loop),
        retry(loop) {}

  void accept();

  HttpOptions options;
  HttpHandler handler;
  asio::io_context loop{1};
  tcp::acceptor acceptor;
  asio::posix::stream_descriptor stop_event;
  asio::steady_timer retry;
  // Whoever lets go of a connection last ends it, the engine thread perhaps.
  std::atomic<int> n_connections{0};
};

// One TCP connection: reads a request, hands it over as an Exchange, writes, reads the next.
class Connection : public Exchange, public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, HttpListener::Impl& server)
      : server_(server), stream_(std::move(socket)) {
    ++server_.n_connections;
    error_code ignored;
    const auto endpoint = stream_.socket().remote_endpoint(ignored);
    if (!ignored) peer_ = endpoint.address().to_string();
    stream_.socket().set_option(tcp::no_delay(true), ignored);
  }
  ~Connection() override { --server_.n_connections; }

  void begin() {
    if (server_.n_connections > server_.options.max_connections) {
      keep_alive_ = false;
      return fail(503, "unavailable_error", "too many connections");
    }
    wait_request();
  }

  void reply(HttpReply reply) override {
    if (!open_ || replied_) return;
    replied_ = true;
    log_request(reply.status);
    std::string head = "HTTP/1.1 " + std::to_string(reply.status) + " " + reason_of(reply.status) +
                       "\r\n" + common_headers() + "Content-Type: " + reply.content_type +
                       "\r\nContent-Length: " + std::to_string(reply.body.size()) + "\r\n" +
                       reply.headers + "\r\n";
    finished_ = true;
    send(std::move(head) + (head_only_ ? std::string() : std::move(reply.body)));
  }

  void start_stream() override {
    if (!open_ || replied_) return;
    replied_ = true;
    streaming_ = true;
    log_request(200);
    std::string head =
        "HTTP/1.1 200 OK\r\n" + common_headers() +
        "Content-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n";
    send(head + (chunked_ ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n"));
  }

  void stream(std::string_view chunk) override {
    if (!open_ || !streaming_ || chunk.empty()) return;
    if (!chunked_) return send(std::string(chunk));
    std::array<char, 20> size{};
    const int n = std::snprintf(size.data(), size.size(), "%zx\r\n", chunk.size());
    std::string framed(size.data(), static_cast<size_t>(n));
    framed.append(chunk).append("\r\n");
    send(std::move(framed));
  }

  void end_stream() override {
    if (!open_ || !streaming_) return;
    finished_ = true;
    send(chunked_ ? "0\r\n\r\n" : "");
  }

  bool open() const override { return open_; }
  void on_close(std::function<void()> action) override { close_action_ = std::move(action); }
  void post(std::function<void()> action) override {
    asio::post(server_.loop, [self = shared_from_this(), run = std::move(action)] { run(); });
  }

 private:
  void wait_request() {
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(kMaxHttpHeaderBytes));
    parser_->body_limit(kMaxHttpBodyBytes);
    replied_ = finished_ = streaming_ = head_only_ = false;
    close_action_ = nullptr;
    if (buffer_.size() > 0) return read_header();
    stream_.expires_after(std::chrono::seconds(kIdleSeconds));
    // Idle time is generous; once a byte has arrived, the whole header is due soon.
    stream_.async_read_some(buffer_.prepare(4096),
                            [self = shared_from_this()](error_code error, size_t n) {
                              if (error) return self->close();
                              self->buffer_.commit(n);
                              self->read_header();
                            });
  }

  void read_header() {
    stream_.expires_after(std::chrono::milliseconds(server_.options.header_timeout_ms));
    http::async_read_header(stream_, buffer_, *parser_,
                            [self = shared_from_this()](error_code error, size_t) {
                              if (error) return self->read_failed(error);
                              self->read_body();
                            });
  }

  void read_body() {
    const auto& head = parser_->get();
    keep_alive_ = head.keep_alive();
    chunked_ = head.version() >= 11;
    head_only_ = head.method() == http::verb::head;
    if (!head[http::field::content_encoding].empty() &&
        head[http::field::content_encoding] != "identity") {
      keep_alive_ = false;
      return fail(415, "invalid_request_error", "compressed bodies are not supported");
    }
    if (!host_allowed(
            std::string_view(head[http::field::host].data(), head[http::field::host].size()))) {
      keep_alive_ = false;
      return fail(403, "permission_error", "this Host is not served here");
    }
    if (beast::iequals(head[http::field::expect], "100-continue"))
      send("HTTP/1.1 100 Continue\r\n\r\n");
    // The body's deadline grows with its size: 1 KB/s is the least that is waited for.
    const auto length = parser_->content_length();
    const uint64_t extra_s = length ? *length / 1024 : kMaxHttpBodyBytes / 65536;
    stream_.expires_after(std::chrono::seconds(10 + std::min<uint64_t>(extra_s, 600)));
    http::async_read(stream_, buffer_, *parser_,
                     [self = shared_from_this()](error_code error, size_t) {
                       if (error) return self->read_failed(error);
                       self->handle();
                     });
  }

  bool host_allowed(std::string_view host) const {
    // Against DNS rebinding: a page from elsewhere reaches a loopback server only under its own
    // name.
    if (!is_loopback_name(server_.options.host)) return true;
    return is_loopback_name(host) || host_part(host) == server_.options.host;
  }

  void handle() {
    stream_.expires_never();
    auto& message = parser_->get();
    const auto field = [&](auto name) {
      const auto value = message[name];
      return std::string(value.data(), value.size());
    };
    request_.method = std::string(message.method_string().data(), message.method_string().size());
    const std::string target(message.target().data(), message.target().size());
    const size_t mark = std::min(target.find('?'), target.size());
    request_.path = target.substr(0, mark);
    request_.query = target.substr(std::min(mark + 1, target.size()));
    request_.authorization = field(http::field::authorization);
    if (request_.authorization.empty()) request_.authorization = field("X-Api-Key");
    request_.origin = field(http::field::origin);
    request_.body = std::move(message.body());
    request_.peer = peer_;
    if (head_only_) request_.method = "GET";
    watch_close();
    server_.handler(request_, shared_from_this());
  }

  // While an answer is made the client may leave: readable and empty means that it did.
  void watch_close() {
    stream_.socket().async_wait(
        tcp::socket::wait_read, [self = shared_from_this()](error_code error) {
          if (error || self->finished_) return;
          char byte = 0;
          const auto n =
              ::recv(self->stream_.socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
          if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return self->close();
          if (n < 0) self->watch_close();  // n > 0: a pipelined request waits its turn
        });
  }

  void read_failed(error_code error) {
    keep_alive_ = false;
    if (error == http::error::header_limit) {
      return fail(431, "invalid_request_error", "the request header is larger than 32 KiB");
    }
    if (error == http::error::body_limit) {
      return fail(413, "invalid_request_error", "the request body is larger than 8 MiB");
    }
    if (error == beast::error::timeout)
      return fail(408, "invalid_request_error", "the request came too slowly");
    const bool malformed = error.category() == make_error_code(http::error::bad_method).category();
    if (malformed && error != http::error::end_of_stream && error != http::error::partial_message) {
      return fail(400, "invalid_request_error", "malformed HTTP request");
    }
    close();
  }

  void fail(int status, const char* type, const char* message) {
    HttpReply answer;
    answer.status = status;
    answer.body = error_body(status, type, message);
    reply(std::move(answer));
  }

  std::string common_headers() const {
    std::string text = "Server: bantam\r\n";
    if (!keep_alive_ || !chunked_) text += "Connection: close\r\n";
    if (!request_.origin.empty()) {
      const size_t scheme = request_.origin.find("://");
      const std::string_view name =
          std::string_view(request_.origin).substr(scheme == std::string::npos ? 0 : scheme + 3);
      // Only pages of this machine may read answers; others need a proxy that says otherwise.
      if (is_loopback_name(name) && request_.origin.find_first_of("\r\n") == std::string::npos) {
        text += "Access-Control-Allow-Origin: " + request_.origin + "\r\nVary: Origin\r\n";
      }
    }
    return text;
  }

  void log_request(int status) const {
    const std::string& p = request_.path;
    const bool quiet = p == "/health" || p == "/v1/health" || p == "/v1/models" || p == "/models" ||
                       p == "/props" || p == "/metrics" || p == "/slots";
    if (!quiet && !p.empty())
      log_info("done request: {} {} {} {}", request_.method, p, peer_, status);
  }

  void send(std::string bytes) {
    if (!open_) return;
    unsent_bytes_ += bytes.size();
    if (streaming_ && unsent_bytes_ > kMaxUnsentBytes) return close();
    unsent_.push_back(std::move(bytes));
    if (unsent_.size() == 1) write_next();
  }

  void write_next() {
    stream_.expires_after(std::chrono::seconds(server_.options.timeout_s));
    asio::async_write(stream_, asio::buffer(unsent_.front()),
                      [self = shared_from_this()](error_code error, size_t) {
                        if (error) return self->close();
                        self->stream_.expires_never();
                        self->unsent_bytes_ -= self->unsent_.front().size();
                        self->unsent_.pop_front();
                        if (!self->unsent_.empty()) return self->write_next();
                        if (self->finished_) self->next_request();
                      });
  }

  void next_request() {
    if (!keep_alive_ || (streaming_ && !chunked_)) return close_gracefully();
    request_ = {};
    error_code ignored;
    stream_.socket().cancel(ignored);
    wait_request();
  }

  // The peer may still be sending a body that was refused: closing at once would lose the answer.
  void close_gracefully() {
    error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
    stream_.expires_after(std::chrono::seconds(2));
    drain();
  }

  void drain() {
    buffer_.clear();
    stream_.async_read_some(buffer_.prepare(65536),
                            [self = shared_from_this()](error_code error, size_t) {
                              if (error) return self->close();
                              self->drain();
                            });
  }

  void close() {
    if (!open_) return;
    open_ = false;
    error_code ignored;
    stream_.socket().close(ignored);
    if (const auto action = std::exchange(close_action_, nullptr)) action();
  }

  HttpListener::Impl& server_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  HttpRequest request_;
  std::deque<std::string> unsent_;
  size_t unsent_bytes_ = 0;
  std::function<void()> close_action_;
  std::string peer_;
  bool keep_alive_ = true;
  bool chunked_ = true;
  bool head_only_ = false;
  bool open_ = true;
  bool replied_ = false;  // status line sent
  bool streaming_ = false;
  bool finished_ = false;  // nothing more will be written for this request
};

void HttpListener::Impl::accept() {
  acceptor.async_accept([this](error_code error, tcp::socket socket) {
    if (!error) std::make_shared<Connection>(std::move(socket), *this)->begin();
    if (!acceptor.is_open()) return;
    if (error && error != asio::error::connection_aborted) {
      // Out of descriptors: wait instead of spinning on the same error.
      retry.expires_after(std::chrono::milliseconds(100));
      retry.async_wait([this](error_code) { accept(); });
      return;
    }
    accept();
  });
}

HttpListener::HttpListener() = default;
HttpListener::~HttpListener() = default;

Result<std::unique_ptr<HttpListener>> HttpListener::bind(const HttpOptions& options,
                                                         HttpHandler handler) {
  std::unique_ptr<HttpListener> listener(new HttpListener);
  listener->impl_ = std::make_unique<Impl>(options, std::move(handler));
  Impl& impl = *listener->impl_;
  const std::string where = options.host + ":" + std::to_string(options.port);
  error_code error;
  tcp::resolver resolver(impl.loop);
  const auto found = resolver.resolve(options.host, std::to_string(options.port), error);
  if (error || found.empty())
    return refused("couldn't bind HTTP server socket: host '" + options.host + "' is unknown");
  const tcp::endpoint endpoint = found.begin()->endpoint();
  impl.acceptor.open(endpoint.protocol(), error);
  if (!error) impl.acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) impl.acceptor.bind(endpoint, error);
  if (!error) impl.acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) return failed("couldn't bind HTTP server socket at " + where + ": " + error.message());
  impl.accept();
  return listener;
}

int HttpListener::port() const {
  error_code ignored;
  return impl_->acceptor.local_endpoint(ignored).port();
}

void HttpListener::run(int stop_fd, std::function<void()> on_stop) {
  error_code ignored;
  impl_->stop_event.assign(stop_fd, ignored);
  if (ignored) return on_stop();
  impl_->stop_event.async_wait(asio::posix::stream_descriptor::wait_read,
                               [this, on_stop = std::move(on_stop)](error_code error) {
                                 if (error) return;
                                 on_stop();
                                 impl_->loop.stop();
                               });
  impl_->loop.run();
  impl_->stop_event.release();
}

void HttpListener::stop() {
  asio::post(impl_->loop, [this] { impl_->loop.stop(); });
}

}  // namespace bantam
