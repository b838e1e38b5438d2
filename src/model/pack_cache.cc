#include "model/pack_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "base/file_header.h"
#include "base/hash.h"
#include "base/thread_pool.h"

namespace bantam {

namespace {

// "BNTPACK\0"; the version is this file's, the layout has its own.
constexpr FileFormat kFormat{0x004b434150544e42, 2, "file of packed weights", ErrorKind::failed};
constexpr int64_t kSumBytes = 256 << 10;  // summed at a time: stays in a core's cache
constexpr int64_t kPartBytes = 4 << 20;   // asked of the disk or written at a time
// More would read no faster, and the team that computes has taken its threads already.
constexpr int kMostThreads = 2;

std::string reason(const char* what, const std::string& path) {
  return std::string("cannot ") + what + " '" + path + "': " + std::strerror(errno);
}

std::string hex(uint64_t x) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(x));
  return text;
}

class Closing {
 public:
  explicit Closing(int fd) : fd_(fd) {}
  ~Closing() {
    if (fd_ >= 0) ::close(fd_);
  }
  Closing(const Closing&) = delete;
  Closing& operator=(const Closing&) = delete;

 private:
  int fd_;
};

Status write_all(int fd, uint64_t offset, std::span<const std::byte> bytes,
                 const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return failed(reason("write", path));
    offset += static_cast<uint64_t>(n);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return Ok{};
}

// Whether the descriptor is still the file of that name.
bool same_file(int fd, const std::string& path) {
  struct stat open {
  }, named{};
  return ::fstat(fd, &open) == 0 && ::stat(path.c_str(), &named) == 0 &&
         open.st_ino == named.st_ino && open.st_dev == named.st_dev;
}

Status compare(const PackIdentity& got, const PackIdentity& expected) {
  const auto differs = [](const char* what, uint64_t found, uint64_t wanted) {
    return failed(std::string("its ") + what + " is " + std::to_string(found) + ", expected " +
                  std::to_string(wanted));
  };
  if (got.pack_version != expected.pack_version)
    return differs("layout version", got.pack_version, expected.pack_version);
  if (got.fingerprint != expected.fingerprint || got.source_bytes != expected.source_bytes ||
      got.source_mtime_ns != expected.source_mtime_ns)
    return failed("it belongs to another model file");
  if (got.layout != expected.layout) return failed("its matrices lie in another order");
  if (got.data_bytes != expected.data_bytes)
    return differs("size of the data", got.data_bytes, expected.data_bytes);
  return Ok{};
}

}  // namespace

std::array<std::byte, kPackHeaderBytes> encode_pack_header(const PackHeader& header) {
  std::array<std::byte, kPackHeaderBytes> bytes{};
  HeaderWriter writer(kFormat, bytes);
  writer.put(header.id.pack_version);
  writer.put(header.id.source_bytes);
  writer.put(header.id.source_mtime_ns);
  writer.put(header.id.fingerprint);
  writer.put(header.id.layout);
  writer.put(kPackDataOffset);
  writer.put(header.id.data_bytes);
  writer.put(header.checksum);
  writer.finish();
  return bytes;
}

Result<PackHeader> parse_pack_header(std::span<const std::byte> bytes, uint64_t file_bytes) {
  HeaderReader reader(kFormat, bytes);
  if (Status status = reader.begin(); !status) return status.error();
  PackHeader header;
  header.id.pack_version = reader.read<uint32_t>();
  header.id.source_bytes = reader.read<uint64_t>();
  header.id.source_mtime_ns = reader.read<int64_t>();
  header.id.fingerprint = reader.read<uint64_t>();
  header.id.layout = reader.read<uint64_t>();
  const auto data_offset = reader.read<uint64_t>();
  header.id.data_bytes = reader.read<uint64_t>();
  header.checksum = reader.read<uint64_t>();
  if (Status status = reader.end(file_bytes); !status) return status.error();
  if (data_offset != kPackDataOffset || file_bytes < kPackDataOffset ||
      header.id.data_bytes != file_bytes - kPackDataOffset) {
    return failed("it has " + std::to_string(file_bytes) + " bytes, expected " +
                  std::to_string(header.id.data_bytes) + " behind byte " +
                  std::to_string(data_offset));
  }
  return header;
}

Result<uint64_t> model_fingerprint(const Gguf& file) {
  constexpr uint64_t kBlocks = 64, kBlockBytes = 4096;
  const MappedFile& source = file.file();
  uint64_t hash = hash_mix(source.size(), kBlockBytes);
  hash = hash_bytes(source.bytes().first(static_cast<size_t>(file.data_offset())), hash);
  std::array<std::byte, kBlockBytes> block;
  const uint64_t data = source.size() - file.data_offset();
  const uint64_t n = std::min(kBlockBytes, data);
  for (uint64_t i = 0; i < kBlocks; ++i) {
    // The first block, the last and those between, without overflow for any size of file.
    const uint64_t step = (data - n) / (kBlocks - 1), rest = (data - n) % (kBlocks - 1);
    const uint64_t at = file.data_offset() + i * step + i * rest / (kBlocks - 1);
    const std::span<std::byte> bytes(block.data(), static_cast<size_t>(n));
    if (Status status = source.read(at, bytes); !status) return status.error();
    hash = hash_bytes(bytes, hash);
  }
  return hash;
}

PackCache::PackCache(std::string folder, const PackIdentity& id, int n_threads)
    : folder_(std::move(folder)),
      path_(folder_ + "/" + hex(id.fingerprint) + "-" + std::to_string(id.source_bytes) + "-" +
            std::to_string(id.source_mtime_ns) + ".pack"),
      unfinished_(path_ + ".unfinished"),
      id_(id),
      n_threads_(std::clamp(n_threads, 1, kMostThreads)) {}

// Sums of pieces, summed in order: the same for any number of threads.
Result<uint64_t> PackCache::checksum(const Fetch& fetch, const Progress& progress) const {
  const auto total = static_cast<int64_t>(id_.data_bytes);
  std::vector<uint64_t> sums(static_cast<size_t>((total + kSumBytes - 1) / kSumBytes));
  std::atomic<int64_t> next{0};
  std::mutex telling;  // guards the two below
  int64_t done = 0;
  Status status = Ok{};
  const auto sum_part = [&](int thread, int64_t begin, int64_t end) -> Status {
    for (int64_t at = begin; at < end; at += kSumBytes) {
      const auto n = static_cast<size_t>(std::min(kSumBytes, end - at));
      const Result<Piece> piece = fetch(thread, static_cast<uint64_t>(at), n);
      if (!piece) return piece.error();
      const auto i = static_cast<size_t>(at / kSumBytes);
      sums[i] = hash_bytes(*piece, i);
    }
    return Ok{};
  };
  ThreadPool(n_threads_).run([&](int thread, int) {
    for (;;) {
      const int64_t begin = next.fetch_add(kPartBytes, std::memory_order_relaxed);
      if (begin >= total) return;
      const int64_t end = std::min(total, begin + kPartBytes);
      Status summed = sum_part(thread, begin, end);
      const std::lock_guard lock(telling);
      if (!summed) status = summed;
      if (!status) return;
      done += end - begin;
      if (progress) progress(done, total);
    }
  });
  if (!status) return status.error();
  return hash_bytes(std::as_bytes(std::span(sums)), id_.data_bytes);
}

// By read(), not through the mapping: what the disk cannot give is then an Error, not a signal. The
// kernel is asked to map large parts first, which is also how they come from the disk fastest.
Result<uint64_t> PackCache::file_checksum(const MappedFile& file, const Progress& progress) const {
  std::vector<std::byte> buffers(static_cast<size_t>(kMostThreads * kSumBytes));
  std::vector<Status> parts(kMostThreads, Ok{});  // of each thread: whether its part was mapped
  const auto fetch = [&](int thread, uint64_t at, size_t n) -> Result<Piece> {
    Status& mapped = parts[static_cast<size_t>(thread)];
    if (at % kPartBytes == 0) {
      const uint64_t part = std::min<uint64_t>(kPartBytes, id_.data_bytes - at);
      mapped = file.populate(kPackDataOffset + at, part);
    }
    const std::span<std::byte> out(buffers.data() + thread * kSumBytes, n);
    if (Status status = file.read(kPackDataOffset + at, out); !status) return status.error();
    // Last, as read() knows why.
    const bool ends = (at + n) % kPartBytes == 0 || at + n == id_.data_bytes;
    if (ends && !mapped) return mapped.error();
    return Piece(out);
  };
  return checksum(fetch, progress);
}

Result<std::optional<MappedFile>> PackCache::open(const Progress& progress) const {
  struct stat info {};
  if (::stat(path_.c_str(), &info) != 0 && (errno == ENOENT || errno == ENOTDIR)) {
    return std::optional<MappedFile>();
  }
  const auto unusable = [&](const std::string& why) {
    return failed("'" + path_ + "' is not used: " + why);
  };
  Result<MappedFile> file = MappedFile::open(path_);
  if (!file) return unusable(file.error().message);
  // Copied out first: what was checked is what is used.
  std::array<std::byte, kPackHeaderBytes> start;
  const size_t n = static_cast<size_t>(std::min<uint64_t>(start.size(), file->size()));
  const std::span<std::byte> head(start.data(), n);
  if (Status status = file->read(0, head); !status) return unusable(status.error().message);
  Result<PackHeader> header = parse_pack_header(head, file->size());
  if (!header) return unusable(header.error().message);
  if (Status status = compare(header->id, id_); !status) return unusable(status.error().message);
  file->use_mapping();
  const Result<uint64_t> sum = file_checksum(*file, progress);
  if (!sum) return unusable(sum.error().message);
  if (*sum != header->checksum) return unusable("its data is damaged");
  remove_unfinished();
  return std::optional<MappedFile>(std::move(*file));
}

// What a killed writer left beside a good file would stay for ever. The lock and the name are
// looked at as in write(): a file that somebody is writing, or has just renamed, stays.
void PackCache::remove_unfinished() const {
  const int fd = ::open(unfinished_.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return;
  const Closing closing(fd);
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0 && same_file(fd, unfinished_)) {
    ::unlink(unfinished_.c_str());
  }
}

Result<bool> PackCache::write(std::span<const std::byte> data, bool keep,
                              const Progress& progress) const {
  CHECK(data.size() == id_.data_bytes);
  if (::mkdir(folder_.c_str(), 0777) != 0 && errno != EEXIST) {
    return failed(reason("create the folder", folder_));
  }
  constexpr int how = O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW;
  int fd = ::open(unfinished_.c_str(), how | O_EXCL, 0666);
  const bool created = fd >= 0;
  if (!created) fd = ::open(unfinished_.c_str(), how, 0666);
  if (fd < 0) return failed(reason("write", unfinished_));
  const Closing closing(fd);
  // One writer: the lock ends with its process, so what a killed one left is taken over.
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return false;
    const Error error = failed(reason("lock", unfinished_));
    // Whoever locked it meanwhile sees the name gone before renaming.
    if (created && same_file(fd, unfinished_)) ::unlink(unfinished_.c_str());
    return error;
  }
  // Between opening and locking the last writer may have renamed this very file into place, where
  // others map it: it must not be touched.
  if (!same_file(fd, unfinished_)) return false;
  Status status = write_locked(fd, data, keep, progress);
  if (!status) {
    if (same_file(fd, unfinished_)) ::unlink(unfinished_.c_str());
    return status.error();
  }
  return true;
}

Status PackCache::write_locked(int fd, std::span<const std::byte> data, bool keep,
                               const Progress& progress) const {
  const auto total = static_cast<int64_t>(data.size());
  if (::ftruncate(fd, 0) != 0) return failed(reason("empty", unfinished_));
  // A full disk is noticed before anything is written, where the file system can tell.
  if (::fallocate(fd, 0, 0, static_cast<off_t>(kPackDataOffset + data.size())) != 0 &&
      errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR) {
    return failed(reason("write", unfinished_));
  }
  const auto fetch = [&](int, uint64_t at, size_t n) -> Result<Piece> {
    return data.subspan(static_cast<size_t>(at), n);
  };
  const Result<uint64_t> sum = checksum(fetch, {});
  if (!sum) return sum.error();
  const PackHeader header{id_, *sum};
  if (Status s = write_all(fd, 0, encode_pack_header(header), unfinished_); !s) return s;
  for (int64_t at = 0; at < total; at += kPartBytes) {
    const int64_t n = std::min(kPartBytes, total - at);
    const auto chunk = data.subspan(static_cast<size_t>(at), static_cast<size_t>(n));
    const uint64_t to = kPackDataOffset + static_cast<uint64_t>(at);
    if (Status s = write_all(fd, to, chunk, unfinished_); !s) return s;
    if (!keep) {
      // Only what has reached the disk can be dropped.
      if (::fdatasync(fd) != 0) return failed(reason("write", unfinished_));
      ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    }
    if (progress) progress(at + n, total);
  }
  if (::fsync(fd) != 0) return failed(reason("write", unfinished_));
  // Another process may have removed the name, and a third one begun a file under it.
  if (!same_file(fd, unfinished_)) return failed("'" + unfinished_ + "' was removed meanwhile");
  if (::rename(unfinished_.c_str(), path_.c_str()) != 0)
    return failed(reason("rename", unfinished_));
  // The name itself; without it a power cut costs the file, nothing else.
  const int folder = ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const Closing closing(folder);
  if (folder >= 0) ::fsync(folder);
  return Ok{};
}

}  // namespace bantam
