// Fields: typed, checked access to a JSON body. Null counts as missing; a wrong type or range is a
// 400 that names the field. Owns the parsed document; knows nothing of sockets. Refuses documents
// deeper than 64 levels.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace bantam {

using Json = nlohmann::json;

Result<Json> parse_json(std::string_view text);
// UTF-8 always: invalid bytes become U+FFFD.
std::string dump_json(const Json& value);

class Fields {
 public:
  explicit Fields(const Json& object) : object_(object) {}

  bool has(const char* name) const;
  const Json* find(const char* name) const;  // null when missing or JSON null
  bool boolean(const char* name, bool missing);
  int64_t integer(const char* name, int64_t missing, int64_t min, int64_t max);
  double number(const char* name, double missing);
  std::string text(const char* name, std::string missing);
  std::vector<std::string> texts(const char* name);  // a string or an array of strings
  // Marks a field that would change the answer but is not supported: an error when present and not
  // `harmless`.
  void unsupported(const char* name, const Json& harmless = nullptr);

  void fail(std::string message);
  bool ok() const { return error_.empty(); }
  Error error() const { return refused(error_); }

 private:
  const Json& object_;
  std::string error_;
};

}  // namespace bantam
