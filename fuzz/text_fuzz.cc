// Any bytes through the built-in model's tokenizer and the UTF-8 stream: nothing is lost, and splits do not matter.
#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "text/tokenizer.h"
#include "text/utf8_stream.h"

namespace {

const bantam::Tokenizer& tokenizer() {
  using namespace bantam;
  static const MappedFile file = [] {
    Result<MappedFile> opened = MappedFile::open("models/tiny-1bit-chat.gguf");
    CHECK(opened.ok());
    return std::move(*opened);
  }();
  static const Tokenizer made = [] {
    Result<Gguf> parsed = Gguf::parse(file);
    CHECK(parsed.ok());
    Result<Tokenizer> loaded = Tokenizer::from_gguf(*parsed);
    CHECK(loaded.ok());
    return std::move(*loaded);
  }();
  return made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bantam;
  const std::string text(reinterpret_cast<const char*>(data), size);
  for (const bool special : {false, true}) {
    const std::vector<int32_t> tokens = tokenizer().encode(text, false, special);
    CHECK(tokenizer().decode(tokens, true) == text);
    Utf8Stream stream;
    std::string joined;
    for (const int32_t token : tokens) {
      const std::string piece = stream.push(tokenizer().piece(token));
      CHECK(valid_utf8(piece));
      joined += piece;
    }
    CHECK(joined + stream.flush() == to_valid_utf8(text));
  }
  return 0;
}
