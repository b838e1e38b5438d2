// A set of logical CPUs of any size (also above 1,024), how it is written (hex masks, ranges) and
// how the kernel reads and takes it. Refuses text that is not exactly one of those forms and CPU
// numbers from kMaxCpu on.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace bantam {

class CpuSet {
 public:
  static constexpr int kMaxCpu = 1 << 16;

  void add(int cpu);
  bool has(int cpu) const;
  int count() const;
  bool empty() const { return count() == 0; }
  std::vector<int> list() const;  // ascending
  CpuSet operator&(const CpuSet& other) const;
  CpuSet operator|(const CpuSet& other) const;
  bool operator==(const CpuSet& other) const;
  std::string text() const;  // "0-3,6"; "none"
  std::string mask() const;  // "0x4f"; "0x0"

  // "0xF0" or "f0": bit n is CPU n.
  static Result<CpuSet> from_mask(std::string_view text);
  // "2-5", "2-" (to the last that can be) or "-5" (from 0).
  static Result<CpuSet> from_range(std::string_view text);
  // The kernel's lists: "0-3,8,10-11"; anything else gives what was read up to there.
  static CpuSet from_list(std::string_view text);

  // Of the calling thread; empty when the kernel does not say.
  static CpuSet of_this_thread();
  // Of the first thread that asked, when it asked: what the process was started with. Threads are
  // placed only by those who asked before.
  static const CpuSet& of_process();
  // False when the kernel refuses.
  bool apply_to_this_thread() const;

 private:
  static constexpr int kBits = 64;
  std::vector<uint64_t> words_;  // no trailing zero words
};

}  // namespace bantam
