// HTTP/1.1 without sockets in the interface: a request, an exchange to answer it, and the listener
// that runs both. Owns connections, deadlines and limits. Refuses oversized headers (431) and
// bodies (413), encodings (415), foreign hosts (403).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace bantam {

struct HttpRequest {
  std::string method;
  std::string path;           // without the query
  std::string query;          // what follows '?'
  std::string authorization;  // "Bearer KEY" or "KEY", or the X-Api-Key header
  std::string origin;
  std::string body;
  std::string peer;
};

struct HttpReply {
  int status = 200;
  std::string content_type = "application/json; charset=utf-8";
  std::string body;
  std::string headers;  // further header lines, each ending in CRLF
};

// One request being answered. All calls on the event loop's thread; post() may be called from any.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual void reply(HttpReply reply) = 0;
  virtual void start_stream() = 0;  // text/event-stream
  virtual void stream(std::string_view chunk) = 0;
  virtual void end_stream() = 0;
  virtual bool open() const = 0;  // false once the client is gone
  virtual void on_close(std::function<void()> action) = 0;
  virtual void post(std::function<void()> action) = 0;
};

using HttpHandler = std::function<void(const HttpRequest&, std::shared_ptr<Exchange>)>;

struct HttpOptions {
  std::string host;
  int port = 0;
  int timeout_s = 600;
  int header_timeout_ms = 10000;
  int max_connections = 512;
};

class HttpListener {
 public:
  static Result<std::unique_ptr<HttpListener>> bind(const HttpOptions& options,
                                                    HttpHandler handler);
  ~HttpListener();
  int port() const;
  // Serves until stop(), or until stop_fd becomes readable: then on_stop is called first.
  void run(int stop_fd, std::function<void()> on_stop);
  void stop();  // thread safe

  struct Impl;

 private:
  HttpListener();
  std::unique_ptr<Impl> impl_;
};

bool is_loopback_name(
    std::string_view host);  // localhost, 127.x.x.x, [::1], with or without a port

}  // namespace bantam
