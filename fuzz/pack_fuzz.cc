// Any bytes as the start of a pack file, and any length of that file: refused with a reason, or the
// header says exactly where its data lies and survives being written again.
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/hash.h"
#include "model/pack_cache.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bantam;
  if (size < 9) return 0;
  // The first 8 bytes are the length that the file claims, the next one says whether to mend the
  // header's sum, which a fuzzer does not find by itself.
  uint64_t file_bytes = 0;
  std::memcpy(&file_bytes, data, sizeof(file_bytes));
  std::vector<std::byte> bytes(size - 9);
  if (!bytes.empty()) std::memcpy(bytes.data(), data + 9, bytes.size());
  constexpr size_t kSummed = kPackHeaderBytes - 8;
  if ((data[8] & 1) != 0 && bytes.size() >= kPackHeaderBytes) {
    const uint64_t sum = hash_bytes(std::span(bytes).first(kSummed));
    std::memcpy(bytes.data() + kSummed, &sum, sizeof(sum));
  }
  const Result<PackHeader> header = parse_pack_header(bytes, file_bytes);
  if (!header) {
    CHECK(!header.error().message.empty());
    return 0;
  }
  CHECK(header->id.data_bytes == file_bytes - kPackDataOffset && file_bytes >= kPackDataOffset);
  const auto again = encode_pack_header(*header);
  CHECK(bytes.size() >= again.size());
  CHECK(std::memcmp(again.data(), bytes.data(), again.size()) == 0);
  return 0;
}
