// A read-only file: mapped for its header, read by pieces for its tensors (so that pages do not
// stay resident twice), or mapped whole (packed weights). Owns the descriptor and the mapping.
// Refuses directories, empty files and files that cannot be opened, with the reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"

namespace bantam {

class MappedFile {
 public:
  static Result<MappedFile> open(const std::string& path);
  // Wraps bytes that live as long as the program (the built-in model).
  static MappedFile from_memory(std::span<const std::byte> bytes, std::string name);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }
  int64_t mtime_ns() const { return mtime_ns_; }  // last change of the file; 0 for bytes in memory
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Copies [offset, offset + out.size()) into out with pread (never through the mapping). Short
  // files are an Error.
  Status read(uint64_t offset, std::span<std::byte> out) const;
  // Drops the range of a file from this process and from the page cache (whole pages that no one
  // else has mapped).
  void drop(uint64_t offset, uint64_t n_bytes) const;
  // read() will go from the front to the back: longer read-ahead.
  void read_in_order() const;
  // Asks the disk for the range without waiting.
  void read_ahead(uint64_t offset, uint64_t n_bytes) const;
  // The mapping is what will be used: large pages where the kernel has them for files.
  void use_mapping() const;
  // Reads and maps the range now, in one call where the kernel can (else pages come when touched).
  // Pages that the disk cannot give are an Error.
  Status populate(uint64_t offset, uint64_t n_bytes) const;

 private:
  MappedFile() = default;
  void close();

  std::string path_;
  const std::byte* data_ = nullptr;
  uint64_t size_ = 0;
  int64_t mtime_ns_ = 0;
  int fd_ = -1;
  bool owns_mapping_ = false;
};

}  // namespace bantam
