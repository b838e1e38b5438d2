// Packed weights in a file that later starts map instead of packing again:
// DIR/<fingerprint>-<bytes>-<last change>.pack, the latter two of the model file. Owns the file's
// format and the rules of its life: written beside, synced, renamed; one writer at a time; never
// changed afterwards. Trusts no number of the file: a header that is damaged, of another version,
// of another model or of another length is refused with the reason, and so is data that cannot be
// read or whose checksum differs.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "base/mapped_file.h"
#include "base/result.h"
#include "gguf/gguf.h"

namespace bantam {

// What packed data was made from; all of it must agree.
struct PackIdentity {
  uint32_t pack_version = 0;    // Backend::pack_version()
  uint64_t source_bytes = 0;    // of the GGUF file
  int64_t source_mtime_ns = 0;  // its last change
  uint64_t fingerprint = 0;     // of its content
  uint64_t layout = 0;          // of the matrices' names, shapes and places
  uint64_t data_bytes = 0;
};

struct PackHeader {
  PackIdentity id;
  uint64_t checksum = 0;  // of the data
};

inline constexpr uint64_t kPackDataOffset = 64 << 10;
inline constexpr size_t kPackHeaderBytes = 80;

std::array<std::byte, kPackHeaderBytes> encode_pack_header(const PackHeader& header);
// bytes: the start of a file of file_bytes. Accepts only a header whose own checksum agrees and
// whose data ends exactly where the file does.
Result<PackHeader> parse_pack_header(std::span<const std::byte> bytes, uint64_t file_bytes);

// A hash of the model's header and of blocks spread over its data, whatever its path.
Result<uint64_t> model_fingerprint(const Gguf& file);

class PackCache {
 public:
  using Progress = std::function<void(int64_t done, int64_t total)>;

  // n_threads: more than two are not used.
  PackCache(std::string folder, const PackIdentity& id, int n_threads);

  const std::string& path() const { return path_; }

  // The mapped file, resident and checked; nothing when there is none; an Error that says why a
  // file that is there cannot be used.
  Result<std::optional<MappedFile>> open(const Progress& progress) const;
  // False: another process is writing the same file. An Error leaves no file behind.
  // keep: whether the page cache has room for the file.
  Result<bool> write(std::span<const std::byte> data, bool keep, const Progress& progress) const;

 private:
  Status write_locked(int fd, std::span<const std::byte> data, bool keep,
                      const Progress& progress) const;
  using Piece = std::span<const std::byte>;
  // The n bytes of the data at `at`, until the same thread asks again.
  using Fetch = std::function<Result<Piece>(int thread, uint64_t at, size_t n)>;
  Result<uint64_t> checksum(const Fetch& fetch, const Progress& progress) const;
  Result<uint64_t> file_checksum(const MappedFile& file, const Progress& progress) const;
  void remove_unfinished() const;

  std::string folder_, path_, unfinished_;
  PackIdentity id_;
  int n_threads_;
};

}  // namespace bantam
