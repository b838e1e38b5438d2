// Any bytes as a saved sequence: refused with a reason, or its header survives being written again and its tokens and values
// are in their bounds.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/hash.h"
#include "model/kv_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bantam;
  if (size < 1) return 0;
  std::vector<std::byte> bytes(size - 1);
  if (!bytes.empty()) std::memcpy(bytes.data(), data + 1, bytes.size());
  // The first byte says which sums to mend; a fuzzer does not find them by itself.
  constexpr size_t kSummed = kSavedHeaderBytes - 8;
  if ((data[0] & 1) != 0 && bytes.size() >= kSavedHeaderBytes) {
    const uint64_t sum = hash_bytes(std::span(bytes).first(kSummed));
    std::memcpy(bytes.data() + kSummed, &sum, sizeof(sum));
  }
  const std::span<std::byte> start(bytes.data(), std::min(bytes.size(), kSavedHeaderBytes));
  const Result<SavedHeader> header = parse_saved_header(start, bytes.size());
  if (!header) {
    CHECK(!header.error().message.empty());
    return 0;
  }
  CHECK(header->file_bytes() == static_cast<int64_t>(bytes.size()));
  const auto again = encode_saved_header(*header);
  CHECK(std::memcmp(again.data(), bytes.data(), again.size()) == 0);
  if ((data[0] & 2) != 0) {
    const std::span<const std::byte> all(bytes);
    uint64_t sum = 0;
    size_t at = 0;
    const auto add = [&](size_t n) {
      sum = hash_bytes(all.subspan(at, n), sum);
      at += n;
    };
    add(kSavedHeaderBytes);
    add(static_cast<size_t>(header->n_tokens) * 4);
    while (at + 8 < bytes.size()) add(static_cast<size_t>(header->page_bytes()));
    std::memcpy(bytes.data() + at, &sum, sizeof(sum));
  }
  const MappedFile file = MappedFile::from_memory(bytes, "fuzz");
  const Result<std::vector<int32_t>> tokens = check_saved(file, *header);
  if (!tokens) {
    CHECK(!tokens.error().message.empty());
    return 0;
  }
  CHECK(static_cast<int>(tokens->size()) == header->n_tokens);
  for (const int32_t token : *tokens) CHECK(token >= 0 && token < header->id.n_vocab);
  return 0;
}
