// Any bytes as a file of log-probabilities: refused with a reason, or every row that it accepts is
// a distribution over the tokens, read from inside the file.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cli/logits_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bantam;
  const std::vector<std::byte> bytes(reinterpret_cast<const std::byte*>(data),
                                     reinterpret_cast<const std::byte*>(data) + size);
  const std::span<const std::byte> all(bytes);
  const Result<LogitsShape> shape =
      parse_logits_header(all.first(std::min(size, kLogitsHeaderBytes)), size);
  if (!shape) {
    CHECK(!shape.error().message.empty());
    // A row alone: the first bytes a vocabulary, whatever they are.
    const size_t n = size > 8 ? (size - 8) / 2 : 0;
    std::vector<float> out(n);
    if (n > 0) (void)decode_logits_row(all, out).ok();
    return 0;
  }
  CHECK(shape->file_bytes() == size);
  const size_t tokens_bytes = static_cast<size_t>(shape->tokens_bytes());
  const auto tokens = parse_logits_tokens(all.subspan(kLogitsHeaderBytes, tokens_bytes), *shape);
  if (tokens) {
    for (const int32_t token : *tokens) CHECK(token >= 0 && token < shape->n_vocab);
  }
  std::vector<float> out(static_cast<size_t>(shape->n_vocab));
  const size_t row_bytes = static_cast<size_t>(shape->row_bytes());
  for (size_t at = kLogitsHeaderBytes + tokens_bytes; at < size; at += row_bytes) {
    const Status status = decode_logits_row(all.subspan(at, row_bytes), out);
    if (!status) {
      CHECK(!status.error().message.empty());
      continue;
    }
    double sum = 0;
    for (const float x : out) sum += std::exp(x);
    CHECK(std::fabs(sum - 1) < 0.6);
  }
  return 0;
}
