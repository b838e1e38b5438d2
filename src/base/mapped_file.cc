#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace bantam {

namespace {

constexpr uint64_t kHeaderAhead = 8 << 20;

std::string reason(const std::string& path, const char* what) {
  return "cannot " + std::string(what) + " '" + path + "': " + std::strerror(errno);
}

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  MappedFile file;
  file.path_ = path;
  // O_NONBLOCK: a FIFO of that name is refused below, not waited for.
  file.fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file.fd_ < 0) return refused(reason(path, "open"));
  struct stat info {};
  if (::fstat(file.fd_, &info) != 0) return failed(reason(path, "stat"));
  if (!S_ISREG(info.st_mode)) return refused("'" + path + "' is not a regular file");
  if (info.st_size <= 0) return refused("'" + path + "' is empty (0 bytes)");
  file.size_ = static_cast<uint64_t>(info.st_size);
  file.mtime_ns_ = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
  void* data = ::mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, file.fd_, 0);
  if (data == MAP_FAILED) return failed(reason(path, "map"));
  file.data_ = static_cast<const std::byte*>(data);
  file.owns_mapping_ = true;
  // Only the header is read through the mapping; read-ahead would make weights resident a second
  // time.
  ::madvise(data, file.size_, MADV_RANDOM);
  // The header's pages are read in no order: asked for, they do not cost a wait of the disk each.
  file.read_ahead(0, kHeaderAhead);
  return file;
}

MappedFile MappedFile::from_memory(std::span<const std::byte> bytes, std::string name) {
  MappedFile file;
  file.path_ = std::move(name);
  file.data_ = bytes.data();
  file.size_ = bytes.size();
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this == &other) return *this;
  close();
  path_ = std::move(other.path_);
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  mtime_ns_ = std::exchange(other.mtime_ns_, 0);
  fd_ = std::exchange(other.fd_, -1);
  owns_mapping_ = std::exchange(other.owns_mapping_, false);
  return *this;
}

MappedFile::~MappedFile() { close(); }

void MappedFile::close() {
  if (owns_mapping_) ::munmap(const_cast<std::byte*>(data_), size_);
  if (fd_ >= 0) ::close(fd_);
  owns_mapping_ = false;
  fd_ = -1;
}

Status MappedFile::read(uint64_t offset, std::span<std::byte> out) const {
  if (offset > size_ || out.size() > size_ - offset) {
    return failed("'" + path_ + "' ends at byte " + std::to_string(size_) + ", wanted " +
                  std::to_string(out.size()) + " bytes at " + std::to_string(offset));
  }
  if (fd_ < 0) {
    std::memcpy(out.data(), data_ + offset, out.size());
    return Ok{};
  }
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n =
        ::pread(fd_, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed(reason(path_, "read"));
    if (n == 0) {
      return failed("'" + path_ + "' became shorter while it was read: nothing at byte " +
                    std::to_string(offset + done));
    }
    done += static_cast<size_t>(n);
  }
  return Ok{};
}

void MappedFile::drop(uint64_t offset, uint64_t n_bytes) const {
  if (fd_ < 0) return;
  // Mapped pages stay in the page cache; what is needed again comes back by itself.
  const uint64_t begin = offset / 4096 * 4096, end = std::min(size_, offset + n_bytes);
  if (end > begin) ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
  ::posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(n_bytes),
                  POSIX_FADV_DONTNEED);
}

void MappedFile::read_in_order() const {
  if (fd_ >= 0) ::posix_fadvise(fd_, 0, 0, POSIX_FADV_SEQUENTIAL);
}

void MappedFile::read_ahead(uint64_t offset, uint64_t n_bytes) const {
  // Steps that every read-ahead setting takes whole: the kernel cuts a request to that.
  constexpr uint64_t kStep = 128 << 10;
  const uint64_t end = std::min(size_, offset + n_bytes);
  for (; fd_ >= 0 && offset < end; offset += kStep) {
    ::posix_fadvise(fd_, static_cast<off_t>(offset),
                    static_cast<off_t>(std::min(kStep, end - offset)), POSIX_FADV_WILLNEED);
  }
}

void MappedFile::use_mapping() const {
  if (!owns_mapping_) return;
  void* data = const_cast<std::byte*>(data_);
  ::madvise(data, size_, MADV_NORMAL);
  ::madvise(data, size_, MADV_HUGEPAGE);
}

Status MappedFile::populate(uint64_t offset, uint64_t n_bytes) const {
  if (!owns_mapping_) return Ok{};
#if !defined(MADV_POPULATE_READ)
  constexpr int MADV_POPULATE_READ = 22;  // Linux 5.14; older headers lack the name
#endif
  const uint64_t begin = offset / 4096 * 4096;
  void* data = const_cast<std::byte*>(data_) + begin;
  // EINVAL: an older kernel; pages then come when touched.
  while (::madvise(data, n_bytes + (offset - begin), MADV_POPULATE_READ) != 0 && errno != EINVAL) {
    if (errno != EINTR) return failed(reason(path_, "map"));
  }
  return Ok{};
}

}  // namespace bantam
