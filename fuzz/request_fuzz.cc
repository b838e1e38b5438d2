// Any bytes as the body of a completion request: read or refused, never more.
#include <cstdint>
#include <string_view>

#include "engine/engine.h"
#include "server/params.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bantam;
  static const Tokenizer tokenizer = [] {
    Result<Tokenizer> loaded = LoadedModel::tokenizer_of({});
    CHECK(loaded.ok());
    return std::move(*loaded);
  }();
  const Result<Json> body = parse_json({reinterpret_cast<const char*>(data), size});
  if (!body) return 0;
  CHECK(!dump_json(*body).empty());
  for (const ApiStyle style : {ApiStyle::native, ApiStyle::completion, ApiStyle::chat}) {
    const Result<ApiRequest> request = read_request(style, *body, tokenizer, {});
    CHECK(request.ok() || !request.error().message.empty());
  }
  return 0;
}
