// GGUF v2/v3 reader for files that may lie. Every count, length, offset, dimension and alignment is
// compared with what is left of the file before it is used. Owns the metadata directory and the
// tensor directory; refuses anything inconsistent with found / expected / byte offset. Strings and
// arrays stay views into the mapped header: the file must outlive the reader.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/mapped_file.h"
#include "base/result.h"
#include "codec/types.h"

namespace bantam {

// GGUF metadata value types, ids as in the format.
enum class GgufType : uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};
inline constexpr uint32_t kNumGgufTypes = 13;

// "uint32", "string", ... for messages.
const char* gguf_value_type_name(GgufType type);
// Bytes of one scalar; 0 for strings and arrays, whose size varies.
size_t gguf_scalar_bytes(GgufType type);

// An array of metadata: n elements of one scalar type or strings, bounds-checked, not copied.
struct GgufArray {
  GgufType element = GgufType::u8;
  uint64_t n = 0;
  std::span<const std::byte> bytes;  // elements back to back; strings as u64 length + bytes

  // Calls f(i, std::string_view) for each string; CHECKs that element == string.
  template <class F>
  void for_each_string(F&& f) const;
  // Element i of a scalar array as a number (CHECKs index and type). A uint64 above the largest
  // int64 saturates to it.
  int64_t integer(uint64_t i) const;
  double number(uint64_t i) const;
};

struct GgufTensor {
  std::string_view name;
  WeightType type = WeightType::f32;
  int n_dims = 1;
  std::array<int64_t, 4> dims{1, 1, 1, 1};  // dims[0] runs fastest: a matrix is (columns, rows)
  uint64_t offset = 0;                       // from the start of the file
  uint64_t n_bytes = 0;
};

class Gguf {
 public:
  // Reads and validates the whole directory. The file is kept by reference.
  static Result<Gguf> parse(const MappedFile& file);

  const MappedFile& file() const { return *file_; }
  uint32_t version() const { return version_; }
  uint64_t data_offset() const { return data_offset_; }
  std::span<const GgufTensor> tensors() const { return tensors_; }
  const GgufTensor* find_tensor(std::string_view name) const;  // null when absent

  bool has(std::string_view key) const;
  // Typed look-ups. A missing key is an Error that names it; a value of the wrong type or range
  // too. Integer look-ups accept every integer type of the format.
  Result<int64_t> integer(std::string_view key, int64_t min, int64_t max) const;
  Result<double> number(std::string_view key) const;  // any integer or float type, finite
  Result<std::string_view> text(std::string_view key) const;
  Result<bool> boolean(std::string_view key) const;
  Result<GgufArray> array(std::string_view key, GgufType element) const;
  // The same with a default for a missing key; a present value of the wrong type is still an Error.
  Result<int64_t> integer_or(std::string_view key, int64_t missing, int64_t min, int64_t max) const;
  Result<double> number_or(std::string_view key, double missing) const;
  Result<std::string_view> text_or(std::string_view key, std::string_view missing) const;
  Result<bool> boolean_or(std::string_view key, bool missing) const;

  struct Value {
    std::string_view key;
    GgufType type = GgufType::u8;
    uint64_t offset = 0;       // of the value in the file
    uint64_t scalar_bits = 0;  // raw bits of a scalar, low byte first
    std::string_view text;
    GgufArray array;
  };
  // Every key in sorted order, for listings; the views are into the file.
  std::vector<Value> values() const;

 private:
  friend class GgufParser;

  // 32 bytes for each key, so that a file of nothing but tiny keys stays within 2 x its size.
  // The key lies right before the value: key, u32 type, value.
  struct Entry {
    uint64_t offset = 0;
    uint64_t n = 0;        // scalar bits, string bytes or array elements
    uint64_t n_bytes = 0;  // of an array's elements
    uint16_t key_length = 0;
    uint8_t type = 0;
    uint8_t element = 0;
  };
  std::string_view key_of(const Entry& entry) const;
  Value value_of(const Entry& entry) const;
  const Entry* find(std::string_view key) const;
  Error missing(std::string_view key, const char* expected) const;
  Error wrong_type(const Entry& entry, const char* expected) const;

  const MappedFile* file_ = nullptr;
  uint32_t version_ = 0;
  uint64_t data_offset_ = 0;
  std::vector<Entry> entries_;  // sorted by key
  std::vector<GgufTensor> tensors_;
  std::vector<uint32_t> by_name_;  // indices into tensors_, sorted by name
};

template <class F>
void GgufArray::for_each_string(F&& f) const {
  CHECK(element == GgufType::string);
  ByteReader reader(bytes);
  for (uint64_t i = 0; i < n; ++i) {
    const uint64_t length = reader.read<uint64_t>();
    f(i, reader.read_text(length));
  }
  CHECK(!reader.failed());
}

}  // namespace bantam
