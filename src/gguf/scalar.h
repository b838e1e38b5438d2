// Scalars of GGUF metadata as numbers. Owns the sign extension and float conversions; refuses
// nothing: a type that holds no number gives nullopt.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "gguf/gguf.h"

namespace bantam {

std::optional<int64_t> gguf_integer(GgufType type, uint64_t bits);
std::optional<double> gguf_number(GgufType type, uint64_t bits);
// Text from a file for a message: at most 64 bytes, everything but printable ASCII as '?'.
std::string gguf_printable(std::string_view text);

}  // namespace bantam
