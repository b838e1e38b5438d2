#include "gguf/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "gguf/scalar.h"

namespace bantam {

namespace {

uint64_t element_bits(const GgufArray& array, uint64_t i) {
  const size_t size = gguf_scalar_bytes(array.element);
  CHECK(i < array.n && size > 0);
  uint64_t bits = 0;
  std::memcpy(&bits, array.bytes.data() + i * size, size);
  return bits;
}

}  // namespace

int64_t GgufArray::integer(uint64_t i) const {
  const std::optional<int64_t> value = gguf_integer(element, element_bits(*this, i));
  CHECK(value.has_value());
  return *value;
}

double GgufArray::number(uint64_t i) const {
  const std::optional<double> value = gguf_number(element, element_bits(*this, i));
  CHECK(value.has_value());
  return *value;
}

const GgufTensor* Gguf::find_tensor(std::string_view name) const {
  const auto at = std::lower_bound(
      by_name_.begin(), by_name_.end(), name,
      [&](uint32_t i, std::string_view wanted) { return tensors_[i].name < wanted; });
  if (at == by_name_.end() || tensors_[*at].name != name) return nullptr;
  return &tensors_[*at];
}

std::string_view Gguf::key_of(const Entry& entry) const {
  const std::byte* value = file_->bytes().data() + entry.offset;
  const std::byte* key = value - sizeof(uint32_t) - entry.key_length;
  return {reinterpret_cast<const char*>(key), entry.key_length};
}

Gguf::Value Gguf::value_of(const Entry& entry) const {
  Value value;
  value.key = key_of(entry);
  value.type = static_cast<GgufType>(entry.type);
  value.offset = entry.offset;
  const std::byte* start = file_->bytes().data() + entry.offset;
  if (value.type == GgufType::string) {
    value.text = {reinterpret_cast<const char*>(start + sizeof(uint64_t)),
                  static_cast<size_t>(entry.n)};
  } else if (value.type == GgufType::array) {
    value.array = {static_cast<GgufType>(entry.element), entry.n,
                   {start + sizeof(uint32_t) + sizeof(uint64_t),
                    static_cast<size_t>(entry.n_bytes)}};
  } else {
    value.scalar_bits = entry.n;
  }
  return value;
}

std::vector<Gguf::Value> Gguf::values() const {
  std::vector<Value> values;
  values.reserve(entries_.size());
  for (const Entry& entry : entries_) values.push_back(value_of(entry));
  return values;
}

const Gguf::Entry* Gguf::find(std::string_view key) const {
  const auto at = std::lower_bound(
      entries_.begin(), entries_.end(), key,
      [&](const Entry& entry, std::string_view wanted) { return key_of(entry) < wanted; });
  if (at == entries_.end() || key_of(*at) != key) return nullptr;
  return &*at;
}

bool Gguf::has(std::string_view key) const { return find(key) != nullptr; }

Error Gguf::missing(std::string_view key, const char* expected) const {
  return refused(fmt::format("'{}': key '{}' is missing, expected {}; use a complete model file",
                             file_->path(), key, expected));
}

Error Gguf::wrong_type(const Entry& entry, const char* expected) const {
  const auto type = static_cast<GgufType>(entry.type);
  std::string found = gguf_value_type_name(type);
  if (type == GgufType::array) {
    found = fmt::format("array of {}", gguf_value_type_name(static_cast<GgufType>(entry.element)));
  }
  return refused(fmt::format("'{}': key '{}' is of type {}, expected {} (byte {}); convert the "
                             "model again",
                             file_->path(), gguf_printable(key_of(entry)), found, expected,
                             entry.offset));
}

Result<int64_t> Gguf::integer(std::string_view key, int64_t min, int64_t max) const {
  const Entry* entry = find(key);
  if (entry == nullptr) return missing(key, "an integer");
  const std::optional<int64_t> value = gguf_integer(static_cast<GgufType>(entry->type), entry->n);
  if (!value) return wrong_type(*entry, "an integer");
  if (*value < min || *value > max) {
    return refused(fmt::format("'{}': key '{}' is {}, expected {} to {} (byte {}); this build does "
                               "not run such a model",
                               file_->path(), key, *value, min, max, entry->offset));
  }
  return *value;
}

Result<double> Gguf::number(std::string_view key) const {
  const Entry* entry = find(key);
  if (entry == nullptr) return missing(key, "a number");
  const std::optional<double> value = gguf_number(static_cast<GgufType>(entry->type), entry->n);
  if (!value) return wrong_type(*entry, "a number");
  if (!std::isfinite(*value)) {
    return refused(fmt::format("'{}': key '{}' is {}, expected a finite number (byte {}); convert "
                               "the model again",
                               file_->path(), key, *value, entry->offset));
  }
  return *value;
}

Result<std::string_view> Gguf::text(std::string_view key) const {
  const Entry* entry = find(key);
  if (entry == nullptr) return missing(key, "a string");
  if (static_cast<GgufType>(entry->type) != GgufType::string) return wrong_type(*entry, "a string");
  return value_of(*entry).text;
}

Result<bool> Gguf::boolean(std::string_view key) const {
  const Entry* entry = find(key);
  if (entry == nullptr) return missing(key, "a bool");
  if (static_cast<GgufType>(entry->type) != GgufType::boolean) return wrong_type(*entry, "a bool");
  return entry->n != 0;
}

Result<GgufArray> Gguf::array(std::string_view key, GgufType element) const {
  const std::string expected = fmt::format("an array of {}", gguf_value_type_name(element));
  const Entry* entry = find(key);
  if (entry == nullptr) return missing(key, expected.c_str());
  if (static_cast<GgufType>(entry->type) != GgufType::array ||
      static_cast<GgufType>(entry->element) != element) {
    return wrong_type(*entry, expected.c_str());
  }
  return value_of(*entry).array;
}

Result<int64_t> Gguf::integer_or(std::string_view key, int64_t missing_value, int64_t min,
                                 int64_t max) const {
  if (!has(key)) return missing_value;
  return integer(key, min, max);
}

Result<double> Gguf::number_or(std::string_view key, double missing_value) const {
  if (!has(key)) return missing_value;
  return number(key);
}

Result<std::string_view> Gguf::text_or(std::string_view key, std::string_view missing_value) const {
  if (!has(key)) return missing_value;
  return text(key);
}

Result<bool> Gguf::boolean_or(std::string_view key, bool missing_value) const {
  if (!has(key)) return missing_value;
  return boolean(key);
}

}  // namespace bantam
