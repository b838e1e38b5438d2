#include "base/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace bantam {

namespace {

// Whether the descriptor is still the file of that name.
bool same_file(int fd, const std::string& path) {
  struct stat open {
  }, named{};
  return ::fstat(fd, &open) == 0 && ::stat(path.c_str(), &named) == 0 &&
         open.st_ino == named.st_ino && open.st_dev == named.st_dev;
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

AtomicFile::AtomicFile(std::string path, int fd, Hook hook)
    : path_(std::move(path)), unfinished_(path_ + ".unfinished"), fd_(fd), hook_(std::move(hook)) {}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      unfinished_(std::move(other.unfinished_)),
      fd_(std::exchange(other.fd_, -1)),
      n_written_(other.n_written_),
      synced_(other.synced_),
      hook_(std::move(other.hook_)) {}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::unlink(unfinished_.c_str());
  ::close(fd_);
}

void AtomicFile::step(const char* call) const {
  if (hook_) hook_(call);
}

Error AtomicFile::error(const char* what) const {
  return failed(std::string("cannot ") + what + " '" + path_ + "': " + std::strerror(errno));
}

Result<AtomicFile> AtomicFile::create(const std::string& path, Hook hook) {
  AtomicFile file(path, -1, std::move(hook));
  file.step("open");
  constexpr int how = O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW;
  int fd = ::open(file.unfinished_.c_str(), how | O_EXCL, 0600);
  const bool created = fd >= 0;
  if (!created) fd = ::open(file.unfinished_.c_str(), how, 0600);
  if (fd < 0) return file.error("write");
  // The lock ends with its process. A writer that finished meanwhile has renamed this very file.
  const bool locked = ::flock(fd, LOCK_EX | LOCK_NB) == 0;
  if (!locked && errno != EWOULDBLOCK) {
    const Error error = file.error("lock");
    // Whoever locked it meanwhile sees the name gone before renaming.
    if (created && same_file(fd, file.unfinished_)) ::unlink(file.unfinished_.c_str());
    ::close(fd);
    return error;
  }
  if (!locked || !same_file(fd, file.unfinished_)) {
    ::close(fd);
    return Error{ErrorKind::busy, "'" + path + "' is being written by another process; try again"};
  }
  file.fd_ = fd;
  file.step("ftruncate");
  if (::ftruncate(fd, 0) != 0) return file.error("empty");
  return file;
}

Status AtomicFile::write(std::span<const std::byte> bytes) {
  synced_ = false;
  while (!bytes.empty()) {
    step("write");
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return error("write");
    bytes = bytes.subspan(static_cast<size_t>(n));
    n_written_ += n;
  }
  return Ok{};
}

Status AtomicFile::sync() {
  if (synced_) return Ok{};
  step("fsync");
  if (::fsync(fd_) != 0) return error("write");
  synced_ = true;
  return Ok{};
}

Status AtomicFile::commit() {
  if (Status status = sync(); !status) return status;
  step("rename");
  // Another process may have removed the name, and a third one begun a file under it.
  if (!same_file(fd_, unfinished_)) {
    ::close(std::exchange(fd_, -1));
    return failed("cannot rename '" + path_ + "': its unfinished file was removed meanwhile");
  }
  if (::rename(unfinished_.c_str(), path_.c_str()) != 0) return error("rename");
  ::close(std::exchange(fd_, -1));
  // The name itself: without this a power cut may bring the old file back.
  step("fsync of the folder");
  const int folder = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool synced = folder >= 0 && ::fsync(folder) == 0;
  const int why = errno;
  if (folder >= 0) ::close(folder);
  errno = why;
  // Some file systems cannot sync a folder; the file is in place all the same.
  if (!synced && why != EINVAL && why != EROFS) return error("sync the folder of");
  step("done");
  return Ok{};
}

}  // namespace bantam
