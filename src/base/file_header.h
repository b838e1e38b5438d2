// The fixed header that files of our own begin with: magic, version, fields, and a checksum of
// these bytes as the last of them. Owns how it is written and what is looked at first when it is
// read. Refuses bytes of another kind, of another version, cut short or damaged, with the reason;
// what the fields may say is the format's own business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "base/bytes.h"
#include "base/check.h"
#include "base/result.h"

namespace bantam {

struct FileFormat {
  uint64_t magic;
  uint32_t version;
  const char* what;  // "saved sequence"
  ErrorKind kind;    // of every refusal
};

class HeaderWriter {
 public:
  // Fills `out` exactly: finish() checks it.
  HeaderWriter(const FileFormat& format, std::span<std::byte> out);
  template <class T>
  void put(const T& value) {
    CHECK(at_ + sizeof(value) <= out_.size());
    std::memcpy(out_.data() + at_, &value, sizeof(value));
    at_ += sizeof(value);
  }
  void finish();

 private:
  std::span<std::byte> out_;
  size_t at_ = 0;
};

class HeaderReader {
 public:
  HeaderReader(const FileFormat& format, std::span<const std::byte> bytes)
      : format_(format), bytes_(bytes), reader_(bytes) {}
  // First of all: magic and version.
  Status begin();
  template <class T>
  T read() {
    return reader_.read<T>();
  }
  // Last of all, before a field is believed: whether all were there and the checksum agrees.
  Status end(uint64_t file_bytes);

 private:
  const FileFormat& format_;
  std::span<const std::byte> bytes_;
  ByteReader reader_;
};

}  // namespace bantam
