// A thread of one's own besides the team, and a worker: such a thread that does what it is given,
// in order. Both are joined when they go. Where the kernel refuses a thread (a limit of processes
// or memory) that is an Error, unlike std::thread, which would throw.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/result.h"

namespace bantam {

class Thread {
 public:
  // what: for the error, "the engine's thread".
  static Result<Thread> start(const std::string& what, std::function<void()> work);
  Thread(Thread&& other) noexcept;
  Thread& operator=(Thread&&) = delete;
  ~Thread();  // waits for its end
  void join();

 private:
  explicit Thread(pthread_t id) : id_(id) {}
  std::optional<pthread_t> id_;
};

class Worker {
 public:
  static Result<std::unique_ptr<Worker>> start(const std::string& what);
  ~Worker();  // what is left is done first
  void post(std::function<void()> work);

 private:
  Worker() = default;
  void loop();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;  // guarded by mutex_
  bool ending_ = false;                      // guarded by mutex_
  std::optional<Thread> thread_;             // the last member: it uses the others
};

}  // namespace bantam
