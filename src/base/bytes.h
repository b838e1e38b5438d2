// ByteReader: the only way to parse bytes from outside. Little endian, every read checked against
// what is left. Refuses to go backwards or past the end; a failed read sets `failed()` and returns
// zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

namespace bantam {

class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <class T>
  T read() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    if (remaining() < sizeof(T)) {
      failed_ = true;
      return value;
    }
    std::memcpy(&value, bytes_.data() + offset_, sizeof(T));
    offset_ += sizeof(T);
    return value;
  }

  // n bytes as text; empty and failed() when fewer are left.
  std::string_view read_text(uint64_t n) {
    if (n > remaining()) {
      failed_ = true;
      return {};
    }
    const char* start = reinterpret_cast<const char*>(bytes_.data() + offset_);
    offset_ += static_cast<size_t>(n);
    return {start, static_cast<size_t>(n)};
  }

  bool skip(uint64_t n) {
    if (n > remaining()) {
      failed_ = true;
      return false;
    }
    offset_ += static_cast<size_t>(n);
    return true;
  }

  size_t offset() const { return offset_; }
  size_t remaining() const { return failed_ ? 0 : bytes_.size() - offset_; }
  bool failed() const { return failed_; }

 private:
  std::span<const std::byte> bytes_;
  size_t offset_ = 0;
  bool failed_ = false;
};

}  // namespace bantam
