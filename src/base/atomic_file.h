// A file that is there whole or not at all: written beside its name, synced, renamed over it, and
// the folder synced. Owns the unfinished file, locked against other writers; what a killed writer
// left is taken over by the next. Refuses nothing but what the system refuses, with the reason; the
// file of that name is then what it was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "base/result.h"

namespace bantam {

class AtomicFile {
 public:
  // Called before each system call that changes a file; tests end the process there.
  using Hook = std::function<void(const char* call)>;

  static Result<AtomicFile> create(const std::string& path, Hook hook = {});
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();  // without commit() nothing is left

  Status write(std::span<const std::byte> bytes);
  // What takes long of commit(), for who wants to ask something between.
  Status sync();
  // Only after this the name stands for what was written.
  Status commit();
  int64_t n_written() const { return n_written_; }

 private:
  AtomicFile(std::string path, int fd, Hook hook);
  void step(const char* call) const;
  Error error(const char* what) const;

  std::string path_, unfinished_;
  int fd_;
  int64_t n_written_ = 0;
  bool synced_ = false;
  Hook hook_;
};

}  // namespace bantam
