// Splits text into the pieces that BPE never crosses, with the regular expressions of a named
// pre-tokenizer (PCRE2). Refuses unknown names with the list. Invalid UTF-8 bytes become pieces of
// their own; nothing ever fails on text.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace bantam {

class PreTokenizer {
 public:
  static Result<std::unique_ptr<PreTokenizer>> create(std::string_view name);
  ~PreTokenizer();

  // Calls sink for each piece in order; the pieces joined are the text.
  void split(std::string_view text, const std::function<void(std::string_view)>& sink) const;

 private:
  struct Regex;
  PreTokenizer();
  void apply(size_t stage, std::string_view text,
             const std::function<void(std::string_view)>& sink) const;
  std::vector<std::unique_ptr<Regex>> stages_;
};

}  // namespace bantam
