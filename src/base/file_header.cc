#include "base/file_header.h"

#include <string>

#include "base/hash.h"

namespace bantam {

HeaderWriter::HeaderWriter(const FileFormat& format, std::span<std::byte> out) : out_(out) {
  put(format.magic);
  put(format.version);
}

void HeaderWriter::finish() {
  put(hash_bytes(out_.first(at_)));
  CHECK(at_ == out_.size());
}

Status HeaderReader::begin() {
  if (reader_.read<uint64_t>() != format_.magic)
    return Error{format_.kind, std::string("it is no ") + format_.what};
  const auto version = reader_.read<uint32_t>();
  if (reader_.failed() || version != format_.version) {
    return Error{format_.kind, "its format is version " + std::to_string(version) + ", expected " +
                                   std::to_string(format_.version) +
                                   (version > format_.version ? "; a newer bantam wrote it" : "")};
  }
  return Ok{};
}

Status HeaderReader::end(uint64_t file_bytes) {
  const size_t summed = reader_.offset();
  const auto sum = reader_.read<uint64_t>();
  if (reader_.failed()) {
    return Error{format_.kind,
                 "it ends at byte " + std::to_string(file_bytes) + ", inside its header"};
  }
  if (sum != hash_bytes(bytes_.first(summed))) return Error{format_.kind, "its header is damaged"};
  return Ok{};
}

}  // namespace bantam
