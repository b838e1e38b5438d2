#include "base/cpu_set.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstddef>

namespace bantam {

namespace {

// A CPU number at the front of text, which it eats.
bool eat_cpu(std::string_view& text, int& cpu) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), cpu);
  if (error != std::errc() || cpu < 0 || cpu >= CpuSet::kMaxCpu) return false;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return true;
}

bool eat(std::string_view& text, char c) {
  if (text.empty() || text.front() != c) return false;
  text.remove_prefix(1);
  return true;
}

}  // namespace

void CpuSet::add(int cpu) {
  CHECK(cpu >= 0 && cpu < kMaxCpu);
  const size_t word = static_cast<size_t>(cpu / kBits);
  if (word >= words_.size()) words_.resize(word + 1);
  words_[word] |= uint64_t{1} << (cpu % kBits);
}

bool CpuSet::has(int cpu) const {
  const size_t word = static_cast<size_t>(cpu / kBits);
  return cpu >= 0 && word < words_.size() && (words_[word] >> (cpu % kBits) & 1) != 0;
}

int CpuSet::count() const {
  int n = 0;
  for (const uint64_t word : words_) n += __builtin_popcountll(word);
  return n;
}

std::vector<int> CpuSet::list() const {
  std::vector<int> cpus;
  for (int cpu = 0; cpu < static_cast<int>(words_.size()) * kBits; ++cpu) {
    if (has(cpu)) cpus.push_back(cpu);
  }
  return cpus;
}

CpuSet CpuSet::operator&(const CpuSet& other) const {
  CpuSet both;
  for (const int cpu : list()) {
    if (other.has(cpu)) both.add(cpu);
  }
  return both;
}

CpuSet CpuSet::operator|(const CpuSet& other) const {
  CpuSet either = *this;
  for (const int cpu : other.list()) either.add(cpu);
  return either;
}

bool CpuSet::operator==(const CpuSet& other) const { return words_ == other.words_; }

std::string CpuSet::text() const {
  const std::vector<int> cpus = list();
  std::string out;
  for (size_t i = 0; i < cpus.size();) {
    size_t last = i;
    while (last + 1 < cpus.size() && cpus[last + 1] == cpus[last] + 1) ++last;
    if (!out.empty()) out += ',';
    out += std::to_string(cpus[i]);
    if (last > i) out += "-" + std::to_string(cpus[last]);
    i = last + 1;
  }
  return out.empty() ? "none" : out;
}

std::string CpuSet::mask() const {
  const std::vector<int> cpus = list();
  std::string out = "0";
  if (!cpus.empty()) out.assign(static_cast<size_t>(cpus.back() / 4 + 1), '0');
  for (size_t i = 0; i < out.size(); ++i) {
    int digit = 0;
    for (int bit = 0; bit < 4; ++bit) digit |= int{has(static_cast<int>(i) * 4 + bit)} << bit;
    out[out.size() - 1 - i] = "0123456789abcdef"[digit];
  }
  return "0x" + out;
}

Result<CpuSet> CpuSet::from_mask(std::string_view text) {
  const auto bad = [&] {
    return refused("got '" + std::string(text.substr(0, 80)) +
                   "', expected a hexadecimal mask as 0xF0 with at least one bit");
  };
  std::string_view digits = text;
  if (digits.starts_with("0x") || digits.starts_with("0X")) digits.remove_prefix(2);
  if (digits.empty() || digits.size() > kMaxCpu / 4) return bad();
  CpuSet set;
  for (size_t i = 0; i < digits.size(); ++i) {
    int digit = 0;
    const char* at = digits.data() + digits.size() - 1 - i;
    if (std::from_chars(at, at + 1, digit, 16).ptr != at + 1) return bad();
    for (int bit = 0; bit < 4; ++bit) {
      if ((digit >> bit & 1) != 0) set.add(static_cast<int>(i) * 4 + bit);
    }
  }
  if (set.empty()) return bad();
  return set;
}

Result<CpuSet> CpuSet::from_range(std::string_view text) {
  std::string_view rest = text;
  int first = 0, last = kMaxCpu - 1;
  bool fine = rest.size() > 1;
  if (fine && rest.front() != '-') fine = eat_cpu(rest, first);
  fine = fine && eat(rest, '-');
  if (fine && !rest.empty()) fine = eat_cpu(rest, last) && rest.empty();
  if (!fine || first > last) {
    return refused("got '" + std::string(text.substr(0, 80)) +
                   "', expected a range of CPU numbers as 0-3");
  }
  CpuSet set;
  for (int cpu = first; cpu <= last; ++cpu) set.add(cpu);
  return set;
}

CpuSet CpuSet::from_list(std::string_view text) {
  CpuSet set;
  do {
    int first = 0;
    if (!eat_cpu(text, first)) break;
    int last = first;
    if (eat(text, '-') && !eat_cpu(text, last)) break;
    for (int cpu = first; cpu <= last; ++cpu) set.add(cpu);
  } while (eat(text, ','));
  return set;
}

// By system call: glibc's wrapper of a fixed cpu_set_t fails on machines with more CPUs than that.
CpuSet CpuSet::of_this_thread() {
  CpuSet set;
  for (size_t words = 16; words * kBits <= kMaxCpu; words *= 2) {
    std::vector<uint64_t> bits(words);
    const long bytes = ::syscall(SYS_sched_getaffinity, 0, words * sizeof(uint64_t), bits.data());
    if (bytes < 0 && errno == EINVAL) continue;
    if (bytes < 0) break;
    while (!bits.empty() && bits.back() == 0) bits.pop_back();
    set.words_ = std::move(bits);
    break;
  }
  return set;
}

const CpuSet& CpuSet::of_process() {
  static const CpuSet cpus = of_this_thread();
  return cpus;
}

bool CpuSet::apply_to_this_thread() const {
  if (empty()) return false;
  return ::syscall(SYS_sched_setaffinity, 0, words_.size() * sizeof(uint64_t), words_.data()) == 0;
}

}  // namespace bantam
