// Byte-level BPE from a GGUF vocabulary: bytes <-> token ids. Owns one blob of token bytes and flat
// hash tables, at most 8 MB for 151,936 tokens. Any bytes encode and decode to themselves. Refuses
// other tokenizer models and pre-tokenizers by name, and vocabularies whose arrays disagree.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "gguf/gguf.h"

namespace bantam {

class PreTokenizer;

class Tokenizer {
 public:
  static Result<Tokenizer> from_gguf(const Gguf& file);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // add_special: a BOS token first when the model wants one. parse_special: text of control tokens
  // becomes that token; user-defined tokens always do.
  std::vector<int32_t> encode(std::string_view text, bool add_special, bool parse_special) const;
  // Raw bytes; control tokens as their text when special, else nothing.
  std::string decode(std::span<const int32_t> tokens, bool special) const;
  std::string_view piece(int32_t token) const;  // raw bytes of one token; empty for ids outside

  int n_vocab() const { return static_cast<int>(types_.size()); }
  int bos() const { return bos_; }  // -1 when there is none
  int eos() const { return eos_; }
  bool add_bos() const { return add_bos_; }
  bool is_control(int32_t token) const;
  bool is_end(int32_t token) const;  // ends generation: eos, eot, <|im_end|>, <|endoftext|> ...
  std::optional<int32_t> find(std::string_view bytes) const;
  const std::string& pre_name() const { return pre_name_; }
  int skipped_merges() const { return skipped_merges_; }
  int64_t heap_bytes() const;

 private:
  Tokenizer();
  friend class TokenizerLoader;
  struct Symbol;

  void encode_plain(std::string_view text, std::vector<int32_t>& out) const;
  void encode_piece(std::string_view piece, std::vector<int32_t>& out) const;
  int find_merge(int32_t left, int32_t right) const;  // rank, -1 when there is none

  std::string blob_;               // bytes of all tokens
  std::vector<uint32_t> offsets_;  // [n_vocab + 1] into blob_
  std::vector<uint8_t> types_;     // [n_vocab] GGUF token types
  std::vector<int32_t> by_bytes_;  // open addressing, -1 empty: normal tokens by their bytes
  struct Merge {
    int32_t left, right, merged;
  };
  std::vector<Merge> merges_;      // by rank
  std::vector<int32_t> by_pair_;   // open addressing over ranks, -1 empty
  std::vector<int32_t> specials_;  // control and user-defined ids, longest text first
  std::vector<int32_t> ends_;
  int32_t byte_ids_[256];
  std::unique_ptr<PreTokenizer> pre_;
  std::string pre_name_;
  int bos_ = -1;
  int eos_ = -1;
  int unknown_ = -1;
  bool add_bos_ = false;
  int skipped_merges_ = 0;
};

}  // namespace bantam
