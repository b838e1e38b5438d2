#include "base/thread.h"

#include <cstring>
#include <utility>

namespace bantam {

namespace {

using Work = std::function<void()>;

void* run(void* argument) {
  const std::unique_ptr<Work> work(static_cast<Work*>(argument));
  (*work)();
  return nullptr;
}

}  // namespace

Result<Thread> Thread::start(const std::string& what, Work work) {
  auto owned = std::make_unique<Work>(std::move(work));
  pthread_t id{};
  const int code = ::pthread_create(&id, nullptr, run, owned.get());
  if (code != 0) {
    return failed("cannot start " + what + ": " + std::strerror(code) +
                  "; a limit of threads or memory (ulimit -u, pids.max) may be too low");
  }
  owned.release();
  return Thread(id);
}

Thread::Thread(Thread&& other) noexcept : id_(std::exchange(other.id_, std::nullopt)) {}

Thread::~Thread() { join(); }

void Thread::join() {
  if (id_) ::pthread_join(*std::exchange(id_, std::nullopt), nullptr);
}

Result<std::unique_ptr<Worker>> Worker::start(const std::string& what) {
  std::unique_ptr<Worker> worker(new Worker);
  Result<Thread> thread = Thread::start(what, [raw = worker.get()] { raw->loop(); });
  if (!thread) return thread.error();
  worker->thread_.emplace(std::move(*thread));
  return worker;
}

Worker::~Worker() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_one();
}

void Worker::post(Work work) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
  }
  wake_.notify_one();
}

void Worker::loop() {
  for (;;) {
    Work work;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return ending_ || !queue_.empty(); });
      if (queue_.empty()) return;
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    work();
  }
}

}  // namespace bantam
