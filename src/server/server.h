// Server: listens before the model is loaded (503 until ready), one event loop, llama-server's
// routes. Owns sockets and requests; the Engine belongs to the caller. Refuses hosts it was not
// asked for, oversized and slow requests.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/engine.h"

namespace bantam {

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 8080;
  std::vector<std::string> api_keys;
  int timeout_s = 600;
  int header_timeout_ms = 10000;
  bool metrics = false;
  bool slots = true;
  bool page = true;
  std::string slot_save_path;  // folder of saved slots; empty: slots cannot be changed
  SamplingParams sampling;     // defaults of requests
  int n_predict = -1;
  int n_keep = 0;
};

class Server {
 public:
  static Result<std::unique_ptr<Server>> bind(const ServerOptions& options);
  ~Server();

  int port() const;
  // Serves until stop() or until stop_fd becomes readable; call from one thread. The descriptor
  // stays the caller's.
  void run(int stop_fd);
  // Thread safe. The engine must outlive run().
  void set_engine(Engine* engine);
  void stop();
  bool stopped() const;

 private:
  Server();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bantam
