// UTF-8 on the way out: a stream that never splits a character, and repair of invalid bytes
// (U+FFFD). Any split of the same bytes gives the same text.
#pragma once

#include <string>
#include <string_view>

namespace bantam {

// Bytes of the character at the start of text: 1..4 when valid, 0 when its first byte cannot start
// a valid character, -1 when text ends inside a character that is valid so far.
int utf8_prefix(std::string_view text);
// The same with an incomplete character counted as invalid (0).
int utf8_length(std::string_view text);

bool valid_utf8(std::string_view text);
// Every byte that belongs to no valid character becomes U+FFFD.
std::string to_valid_utf8(std::string_view text);

class Utf8Stream {
 public:
  // Appends bytes and returns all text that is complete; at most 3 bytes stay inside.
  std::string push(std::string_view bytes);
  // What is left, repaired.
  std::string flush();

 private:
  std::string held_;
};

}  // namespace bantam
