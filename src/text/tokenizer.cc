#include "text/tokenizer.h"

#include <algorithm>
#include <queue>
#include <utility>

#include "text/pre_tokenizer.h"

namespace bantam {

namespace {

constexpr uint8_t kControl = 3;

uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0x9e3779b97f4a7c15ull;
  return x ^ (x >> 29);
}

uint64_t pair_hash(int32_t left, int32_t right) {
  return mix(static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 |
             static_cast<uint32_t>(right));
}

}  // namespace

uint64_t token_hash(std::string_view bytes) {
  uint64_t h = 0xcbf29ce484222325ull;  // FNV-1a
  for (const char c : bytes) h = (h ^ static_cast<uint8_t>(c)) * 0x100000001b3ull;
  return mix(h);
}

Tokenizer::Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

std::string_view Tokenizer::piece(int32_t token) const {
  if (token < 0 || token >= n_vocab()) return {};
  const auto i = static_cast<size_t>(token);
  return std::string_view(blob_).substr(offsets_[i], offsets_[i + 1] - offsets_[i]);
}

bool Tokenizer::is_control(int32_t token) const {
  return token >= 0 && token < n_vocab() && types_[static_cast<size_t>(token)] == kControl;
}

bool Tokenizer::is_end(int32_t token) const {
  return std::find(ends_.begin(), ends_.end(), token) != ends_.end();
}

std::optional<int32_t> Tokenizer::find(std::string_view bytes) const {
  for (const int32_t id : specials_) {
    if (piece(id) == bytes) return id;
  }
  const size_t mask = by_bytes_.size() - 1;
  for (size_t slot = token_hash(bytes) & mask; by_bytes_[slot] >= 0; slot = (slot + 1) & mask) {
    if (piece(by_bytes_[slot]) == bytes) return by_bytes_[slot];
  }
  return std::nullopt;
}

int Tokenizer::find_merge(int32_t left, int32_t right) const {
  if (left < 0 || right < 0) return -1;
  const size_t mask = by_pair_.size() - 1;
  for (size_t slot = pair_hash(left, right) & mask; by_pair_[slot] >= 0; slot = (slot + 1) & mask) {
    const Merge& merge = merges_[static_cast<size_t>(by_pair_[slot])];
    if (merge.left == left && merge.right == right) return by_pair_[slot];
  }
  return -1;
}

int64_t Tokenizer::heap_bytes() const {
  return static_cast<int64_t>(blob_.capacity() + offsets_.capacity() * 4 + types_.capacity() +
                              by_bytes_.capacity() * 4 + merges_.capacity() * sizeof(Merge) +
                              by_pair_.capacity() * 4 + specials_.capacity() * 4);
}

struct Tokenizer::Symbol {
  int32_t id;
  int32_t previous, next;  // indices into the symbol list, -1 at the ends
};

void Tokenizer::encode_piece(std::string_view piece, std::vector<int32_t>& out) const {
  if (piece.size() == 1) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(piece[0])];
    if (id >= 0 || unknown_ >= 0) out.push_back(id >= 0 ? id : unknown_);
    return;
  }
  const int32_t n = static_cast<int32_t>(piece.size());
  std::vector<Symbol> symbols(piece.size());
  for (int32_t i = 0; i < n; ++i) {
    symbols[static_cast<size_t>(i)] = {
        byte_ids_[static_cast<uint8_t>(piece[static_cast<size_t>(i)])], i - 1,
        i + 1 < n ? i + 1 : -1};
  }
  // (rank, left symbol, ids of both): an entry whose symbols have changed since is stale and
  // dropped.
  struct Candidate {
    int32_t rank, left, left_id, right_id;
    bool operator>(const Candidate& o) const {
      return rank != o.rank ? rank > o.rank : left > o.left;
    }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](int32_t left) {
    if (left < 0) return;
    const int32_t right = symbols[static_cast<size_t>(left)].next;
    if (right < 0) return;
    const int32_t a = symbols[static_cast<size_t>(left)].id,
                  b = symbols[static_cast<size_t>(right)].id;
    const int rank = find_merge(a, b);
    if (rank >= 0) queue.push({rank, left, a, b});
  };
  for (int32_t i = 0; i + 1 < n; ++i) offer(i);
  constexpr int32_t kGone = -2;
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<size_t>(top.left)];
    if (left.id != top.left_id || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (right.id != top.right_id) continue;
    left.id = merges_[static_cast<size_t>(top.rank)].merged;
    right.id = kGone;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = top.left;
    offer(left.previous);
    offer(top.left);
  }
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    const int32_t id = symbols[static_cast<size_t>(i)].id;
    if (id >= 0 || unknown_ >= 0) out.push_back(id >= 0 ? id : unknown_);
  }
}

void Tokenizer::encode_plain(std::string_view text, std::vector<int32_t>& out) const {
  pre_->split(text, [&](std::string_view piece) { encode_piece(piece, out); });
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special,
                                       bool parse_special) const {
  std::vector<int32_t> out;
  if (add_special && add_bos_ && bos_ >= 0) out.push_back(bos_);
  bool starts[256] = {};
  for (const int32_t id : specials_) {
    const std::string_view special = piece(id);
    if (!special.empty()) starts[static_cast<uint8_t>(special[0])] = true;
  }
  size_t start = 0;
  for (size_t i = 0; i < text.size();) {
    if (!starts[static_cast<uint8_t>(text[i])]) {
      ++i;
      continue;
    }
    int32_t found = -1;
    for (const int32_t id : specials_) {  // longest first
      const std::string_view special = piece(id);
      if (special.empty() || special[0] != text[i]) continue;
      if (!parse_special && types_[static_cast<size_t>(id)] == kControl) continue;
      if (text.substr(i, special.size()) != special) continue;
      found = id;
      break;
    }
    if (found < 0) {
      ++i;
      continue;
    }
    encode_plain(text.substr(start, i - start), out);
    out.push_back(found);
    i += piece(found).size();
    start = i;
  }
  encode_plain(text.substr(start), out);
  return out;
}

std::string Tokenizer::decode(std::span<const int32_t> tokens, bool special) const {
  std::string out;
  for (const int32_t token : tokens) {
    if (special || !is_control(token)) out.append(piece(token));
  }
  return out;
}

}  // namespace bantam
