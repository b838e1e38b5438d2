#include "gguf/scalar.h"

#include <cstring>
#include <limits>

namespace bantam {

namespace {

template <class T>
T from_bits(uint64_t bits) {
  T value{};
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace

const char* gguf_value_type_name(GgufType type) {
  switch (type) {
    case GgufType::u8: return "uint8";
    case GgufType::i8: return "int8";
    case GgufType::u16: return "uint16";
    case GgufType::i16: return "int16";
    case GgufType::u32: return "uint32";
    case GgufType::i32: return "int32";
    case GgufType::f32: return "float32";
    case GgufType::boolean: return "bool";
    case GgufType::string: return "string";
    case GgufType::array: return "array";
    case GgufType::u64: return "uint64";
    case GgufType::i64: return "int64";
    case GgufType::f64: return "float64";
  }
  return "unknown";
}

size_t gguf_scalar_bytes(GgufType type) {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean: return 1;
    case GgufType::u16:
    case GgufType::i16: return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32: return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64: return 8;
    case GgufType::string:
    case GgufType::array: return 0;
  }
  return 0;
}

std::optional<int64_t> gguf_integer(GgufType type, uint64_t bits) {
  constexpr auto kMax = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  switch (type) {
    case GgufType::u8:
    case GgufType::u16:
    case GgufType::u32:
    case GgufType::u64: return static_cast<int64_t>(bits < kMax ? bits : kMax);
    case GgufType::i8: return from_bits<int8_t>(bits);
    case GgufType::i16: return from_bits<int16_t>(bits);
    case GgufType::i32: return from_bits<int32_t>(bits);
    case GgufType::i64: return from_bits<int64_t>(bits);
    case GgufType::f32:
    case GgufType::f64:
    case GgufType::boolean:
    case GgufType::string:
    case GgufType::array: return std::nullopt;
  }
  return std::nullopt;
}

std::optional<double> gguf_number(GgufType type, uint64_t bits) {
  if (type == GgufType::f32) return from_bits<float>(bits);
  if (type == GgufType::f64) return from_bits<double>(bits);
  const std::optional<int64_t> integer = gguf_integer(type, bits);
  if (!integer) return std::nullopt;
  return static_cast<double>(*integer);
}

std::string gguf_printable(std::string_view text) {
  constexpr size_t kMost = 64;
  std::string out;
  for (char c : text.substr(0, kMost)) out += (c >= ' ' && c <= '~') ? c : '?';
  if (text.size() > kMost) out += "...";
  return out;
}

}  // namespace bantam
