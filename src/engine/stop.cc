#include "engine/stop.h"

#include <algorithm>
#include <utility>

namespace bantam {

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& stop) { return stop.empty(); });
}

std::string StopMatcher::push(std::string_view text) {
  if (stopped()) return {};
  held_.append(text);
  // The stop string that is complete first, as if the text had come byte by byte; of several that
  // end at the same byte the longest. Anything else would depend on how the text was split.
  size_t first_end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const size_t end = at + stop.size();
    if (end > first_end || (end == first_end && stop.size() <= word_.size())) continue;
    first_end = end;
    word_ = stop;
  }
  if (stopped()) {
    std::string out = held_.substr(0, first_end - word_.size());
    held_.clear();
    return out;
  }
  // The longest end of the text that could still become a stop string stays inside.
  size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n) {
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) keep = n;
    }
  }
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return out;
}

std::string StopMatcher::flush() {
  return stopped() ? std::string() : std::exchange(held_, std::string());
}

}  // namespace bantam
