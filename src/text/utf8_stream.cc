#include "text/utf8_stream.h"

#include <cstdint>

namespace bantam {

namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

struct Lead {
  int length;         // of the whole character, 0 when this byte cannot start one
  uint8_t low, high;  // range of the second byte (RFC 3629, table 3-7 of Unicode)
};

Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xc2) return {0, 0, 0};
  if (byte < 0xe0) return {2, 0x80, 0xbf};
  if (byte == 0xe0) return {3, 0xa0, 0xbf};
  if (byte == 0xed) return {3, 0x80, 0x9f};
  if (byte < 0xf0) return {3, 0x80, 0xbf};
  if (byte == 0xf0) return {4, 0x90, 0xbf};
  if (byte < 0xf4) return {4, 0x80, 0xbf};
  if (byte == 0xf4) return {4, 0x80, 0x8f};
  return {0, 0, 0};
}

}  // namespace

int utf8_prefix(std::string_view text) {
  if (text.empty()) return -1;
  const Lead lead = lead_of(static_cast<uint8_t>(text[0]));
  for (int i = 1; i < lead.length; ++i) {
    if (static_cast<size_t>(i) >= text.size()) return -1;
    const uint8_t byte = static_cast<uint8_t>(text[static_cast<size_t>(i)]);
    const uint8_t low = i == 1 ? lead.low : 0x80, high = i == 1 ? lead.high : 0xbf;
    if (byte < low || byte > high) return 0;
  }
  return lead.length;
}

int utf8_length(std::string_view text) {
  const int n = utf8_prefix(text);
  return n < 0 ? 0 : n;
}

bool valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const int n = utf8_length(text);
    if (n == 0) return false;
    text.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

std::string to_valid_utf8(std::string_view text) {
  Utf8Stream stream;
  std::string out = stream.push(text);
  return out + stream.flush();
}

std::string Utf8Stream::push(std::string_view bytes) {
  held_.append(bytes);
  std::string out;
  std::string_view rest = held_;
  while (!rest.empty()) {
    const int n = utf8_prefix(rest);
    if (n < 0) break;
    out.append(n == 0 ? kReplacement : rest.substr(0, static_cast<size_t>(n)));
    rest.remove_prefix(n == 0 ? 1 : static_cast<size_t>(n));
  }
  held_ = std::string(rest);
  return out;
}

std::string Utf8Stream::flush() {
  std::string out;
  for (size_t i = 0; i < held_.size(); ++i) out.append(kReplacement);
  held_.clear();
  return out;
}

}  // namespace bantam
