// `bantam serve`: takes the port, loads, serves. A signal ends it with exit code 0 at any time.
#include <unistd.h>

#include <atomic>
#include <cstdlib>

#include "base/log.h"
#include "base/thread.h"
#include "cli/commands.h"
#include "server/server.h"

namespace bantam {

namespace {

// As it stands in a URL that a browser on this machine can open.
std::string url_host(const std::string& host) {
  if (host == "0.0.0.0" || host == "::") return "127.0.0.1";
  return host.find(':') != std::string::npos ? "[" + host + "]" : host;
}

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

ServerOptions server_options(const CliOptions& options) {
  ServerOptions server;
  server.host = options.host;
  server.port = options.port;
  server.api_keys = options.api_keys;
  server.timeout_s = options.timeout_s;
  server.metrics = options.metrics;
  server.slots = options.slots;
  server.page = options.page;
  server.slot_save_path = options.slot_save_path;
  server.sampling = options.sampling;
  server.n_predict = options.n_predict;
  server.n_keep = options.n_keep;
  if (const char* ms = std::getenv("BANTAM_HEADER_TIMEOUT_MS");
      ms != nullptr && std::atoi(ms) > 0) {
    server.header_timeout_ms = std::atoi(ms);
  }
  return server;
}

Result<std::unique_ptr<Engine>> start_engine(Result<std::unique_ptr<LoadedModel>> loaded) {
  if (!loaded) return loaded.error();
  return Engine::start(std::move(*loaded), 256,
                       [](const std::string& text) { log_info("{}", text); });
}

void announce(const CliOptions& options, int port) {
  const std::string place = ":" + std::to_string(port);
  const bool bare_v6 = options.host.find(':') != std::string::npos;
  log_info("server is listening on http://{}{}", bare_v6 ? "[" + options.host + "]" : options.host,
           place);
  if (options.page) {
    log_info("open http://{}{} in a browser to chat; Ctrl-C ends the server",
             url_host(options.host), place);
  }
}

}  // namespace

int run_serve(const CliOptions& options) {
  if (Status status = check_sampling(options.sampling, 1 << 22); !status)
    return report_error(status.error());
  const int stop_fd = stop_on_signals(0);
  if (stop_fd < 0) return report_error(failed("no file descriptor left for signals"));
  // Planned before the port is taken, so that a refusal leaves no trace.
  Result<ModelReport> planned = LoadedModel::plan(options.engine);
  if (!planned) return report_error(planned.error());
  Result<std::unique_ptr<Server>> server = Server::bind(server_options(options));
  if (!server) return report_error(server.error());
  if (!is_loopback(options.host) && options.api_keys.empty()) {
    log_warn("{} is reachable from other machines and there is no --api-key", options.host);
  }
  std::atomic<bool> loading{true};
  Result<Thread> io = Thread::start("the thread that serves HTTP", [&] {
    (*server)->run(stop_fd);
    // A signal while weights are read: there is nothing to end in order, and reading may take
    // minutes from a memory card.
    if (loading.load()) _exit(0);
  });
  if (!io) return report_error(io.error());
  Result<std::unique_ptr<LoadedModel>> loaded = load_with_progress(options);
  loading.store(false);
  Result<std::unique_ptr<Engine>> engine = start_engine(std::move(loaded));
  int code = 0;
  if (engine) {
    (*server)->set_engine(engine->get());
    announce(options, (*server)->port());
  } else {
    code = report_error(engine.error());
    (*server)->stop();
  }
  io->join();
  return code;
}

}  // namespace bantam
