// Any bytes as a model file: parsed or refused, and an accepted file's tensors lie inside it.
#include <cstdint>
#include <span>

#include "gguf/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bantam;
  const MappedFile file = MappedFile::from_memory(std::as_bytes(std::span(data, size)), "fuzz");
  const Result<Gguf> parsed = Gguf::parse(file);
  if (!parsed) {
    CHECK(!parsed.error().message.empty());
    return 0;
  }
  for (const GgufTensor& tensor : parsed->tensors()) {
    CHECK(tensor.offset <= size && tensor.n_bytes <= size - tensor.offset);
    CHECK(parsed->find_tensor(tensor.name) == &tensor);
  }
  for (const Gguf::Value& value : parsed->values()) CHECK(parsed->has(value.key));
  return 0;
}
