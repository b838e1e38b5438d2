// StopMatcher: text on its way out, with stop strings cut off and possible beginnings of one held
// back.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace bantam {

class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops);

  // Appends text; returns what may be shown. After stopped() nothing more is shown.
  std::string push(std::string_view text);
  // What was held back at the end of generation.
  std::string flush();
  bool stopped() const { return !word_.empty(); }
  const std::string& word() const { return word_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  std::string word_;
};

}  // namespace bantam
