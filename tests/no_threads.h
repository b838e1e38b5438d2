// For tests, in a child process: from then on the kernel refuses further threads.
#pragma once

#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>

namespace bantam {

inline bool a_thread_starts() {
  pthread_t id{};
  if (::pthread_create(&id, nullptr, [](void*) -> void* { return nullptr; }, nullptr) != 0) return false;
  ::pthread_join(id, nullptr);
  return true;
}

// limit: of processes. It does not bind whoever has CAP_SYS_RESOURCE or is root and cannot become somebody else, as in
// some containers. stack: no address space holds it, wherever the test runs.
enum class NoThreads { limit, stack };
constexpr int kDoesNotBind = 77;

inline bool refuse_threads(NoThreads way) {
  if (way == NoThreads::limit) {
    const rlimit none{0, 0};
    if (::setrlimit(RLIMIT_NPROC, &none) != 0 || (::getuid() == 0 && ::setuid(65534) != 0)) return false;
  } else {
    pthread_attr_t attributes;
    if (::pthread_attr_init(&attributes) != 0 || ::pthread_attr_setstacksize(&attributes, size_t{1} << 60) != 0 ||
        ::pthread_setattr_default_np(&attributes) != 0)
      return false;
  }
  return !a_thread_starts();
}

// Runs it in a child for each way; it returns 0 when all is well. What did not run is said, and the stack's must.
template <class Prepare, class Check>
void without_threads(const Prepare& prepare, const Check& check) {
  for (const NoThreads way : {NoThreads::limit, NoThreads::stack}) {
    const char* name = way == NoThreads::limit ? "RLIMIT_NPROC" : "the stack's size";
    const pid_t child = ::fork();
    if (child == 0) {
      const auto ready = prepare();
      ::_exit(refuse_threads(way) ? check(ready) : kDoesNotBind);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << status;
    const bool ran = WEXITSTATUS(status) != kDoesNotBind;
    std::printf("threads refused by %s: %s\n", name, ran ? "ran" : "does not bind here, not run");
    if (way == NoThreads::limit && !ran) continue;
    EXPECT_EQ(WEXITSTATUS(status), 0) << name;
  }
}

}  // namespace bantam
