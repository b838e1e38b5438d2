// The one pass over a GGUF header. Owns the cursor while the directory is built; refuses every
// count, length, type, dimension and range that the file cannot hold, with the byte it stands at.
#pragma once

#include <string>
#include <string_view>

#include "base/bytes.h"
#include "gguf/gguf.h"

namespace bantam {

class GgufParser {
 public:
  explicit GgufParser(const MappedFile& file);
  Result<Gguf> parse();

 private:
  Status header();
  Status check_version(uint32_t version);
  Status keys();
  Status key_value();
  Status key_text(std::string_view& key);
  Status scalar_value(std::string_view key, Gguf::Entry& entry);
  Status string_value(std::string_view key, Gguf::Entry& entry);
  Status array_value(std::string_view key, Gguf::Entry& entry);
  Status array_elements(std::string_view key, const Gguf::Entry& entry);
  Status unique_keys();
  Status read_alignment();
  Status tensors();
  Status tensor();
  Status tensor_dims(GgufTensor& tensor);
  Status tensor_range(GgufTensor& tensor, uint64_t at);
  Status unique_names();
  Status resolve_q2_0();
  Status place_tensors();
  Status disjoint_tensors();

  Error bad(const std::string& what, const std::string& found, const std::string& expected,
            uint64_t at) const;
  Error ends(const std::string& what, uint64_t wanted) const;

  const MappedFile& file_;
  ByteReader reader_;
  Gguf gguf_;
  uint64_t n_tensors_ = 0;
  uint64_t n_keys_ = 0;
  uint64_t alignment_ = 32;
};

}  // namespace bantam
