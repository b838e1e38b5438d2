// Builds a Tokenizer from GGUF metadata: flat tables only, because a 151,936-token vocabulary lives
// on a 2 GB board.
#include <algorithm>
#include <array>
#include <string>

#include "base/limits.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer.h"
#include "text/utf8_stream.h"

namespace bantam {

uint64_t token_hash(std::string_view bytes);

namespace {

constexpr uint8_t kNormal = 1;
constexpr uint8_t kControl = 3;
constexpr uint8_t kUserDefined = 4;

// GPT-2's byte alphabet: printable bytes stand for themselves, the others for U+0100 onwards. -1:
// not a byte.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    bytes_.fill(-1);
    int next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b < 127) || (b >= 161 && b < 173) || b >= 174;
      bytes_[static_cast<size_t>(printable ? b : next++)] = static_cast<int16_t>(b);
    }
  }
  // Appends the raw bytes of a token's text; characters outside the alphabet keep their UTF-8.
  void append(std::string_view text, std::string& out) const {
    while (!text.empty()) {
      const int n = std::max(1, utf8_length(text));
      const std::string_view character = text.substr(0, static_cast<size_t>(n));
      const uint32_t code = decode(character);
      if (code < bytes_.size() && bytes_[code] >= 0) {
        out.push_back(static_cast<char>(bytes_[code]));
      } else {
        out.append(character);
      }
      text.remove_prefix(static_cast<size_t>(n));
    }
  }

 private:
  static uint32_t decode(std::string_view c) {
    const auto at = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(c[i])); };
    if (c.size() == 1) return at(0) < 0x80 ? at(0) : 0xffffffffu;
    if (c.size() == 2) return (at(0) & 31) << 6 | (at(1) & 63);
    return 0xffffffffu;
  }
  std::array<int16_t, 512> bytes_;
};

size_t table_size(size_t n) {
  size_t size = 16;
  while (size < n + n / 2) size *= 2;
  return size;
}

uint64_t pair_hash(int32_t left, int32_t right) {
  uint64_t x =
      static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  x ^= x >> 32;
  x *= 0x9e3779b97f4a7c15ull;
  return x ^ (x >> 29);
}

}  // namespace

class TokenizerLoader {
 public:
  explicit TokenizerLoader(const Gguf& file) : file_(file) {}

  Result<Tokenizer> load() {
    if (Status status = check_model(); !status) return status.error();
    if (Status status = read_tokens(); !status) return status.error();
    index_tokens();
    if (Status status = read_merges(); !status) return status.error();
    if (Status status = read_specials(); !status) return status.error();
    return std::move(made_);
  }

 private:
  Status check_model() {
    Result<std::string_view> model = file_.text("tokenizer.ggml.model");
    if (!model) return model.error();
    if (*model != "gpt2") {
      return refused(
          "tokenizer '" + std::string(model->substr(0, 64)) +
          "' (tokenizer.ggml.model) is not supported; this build runs gpt2 (byte-level BPE)");
    }
    Result<std::string_view> pre = file_.text("tokenizer.ggml.pre");
    if (!pre) return pre.error();
    Result<std::unique_ptr<PreTokenizer>> splitter = PreTokenizer::create(*pre);
    if (!splitter) return splitter.error();
    made_.pre_ = std::move(*splitter);
    made_.pre_name_ = std::string(*pre);
    return Ok{};
  }

  Status read_tokens() {
    Result<GgufArray> tokens = file_.array("tokenizer.ggml.tokens", GgufType::string);
    if (!tokens) return tokens.error();
    if (tokens->n < 1 || tokens->n > static_cast<uint64_t>(kMaxVocab)) {
      return refused("the vocabulary has " + std::to_string(tokens->n) + " tokens, expected 1 to " +
                     std::to_string(kMaxVocab));
    }
    made_.types_.assign(static_cast<size_t>(tokens->n), kNormal);
    if (file_.has("tokenizer.ggml.token_type")) {
      Result<GgufArray> types = file_.array("tokenizer.ggml.token_type", GgufType::i32);
      if (!types) return types.error();
      if (types->n != tokens->n) {
        return refused("tokenizer.ggml.token_type has " + std::to_string(types->n) +
                       " entries, expected " + std::to_string(tokens->n));
      }
      for (uint64_t i = 0; i < types->n; ++i) {
        made_.types_[static_cast<size_t>(i)] =
            static_cast<uint8_t>(std::clamp<int64_t>(types->integer(i), 0, 6));
      }
    }
    const ByteAlphabet alphabet;
    made_.offsets_.reserve(static_cast<size_t>(tokens->n) + 1);
    made_.blob_.reserve(tokens->bytes.size() - static_cast<size_t>(tokens->n) * 8);
    tokens->for_each_string([&](uint64_t i, std::string_view text) {
      made_.offsets_.push_back(static_cast<uint32_t>(made_.blob_.size()));
      const uint8_t type = made_.types_[static_cast<size_t>(i)];
      if (type == kControl || type == kUserDefined) {
        made_.blob_.append(text);
      } else {
        alphabet.append(text, made_.blob_);
      }
    });
    made_.offsets_.push_back(static_cast<uint32_t>(made_.blob_.size()));
    made_.blob_.shrink_to_fit();
    return Ok{};
  }

  void index_tokens() {
    made_.by_bytes_.assign(table_size(made_.types_.size()), -1);
    const size_t mask = made_.by_bytes_.size() - 1;
    for (int32_t id = 0; id < made_.n_vocab(); ++id) {
      const uint8_t type = made_.types_[static_cast<size_t>(id)];
      if (type == kControl || type == kUserDefined) {
        made_.specials_.push_back(id);
        continue;
      }
      size_t slot = token_hash(made_.piece(id)) & mask;
      while (made_.by_bytes_[slot] >= 0) slot = (slot + 1) & mask;
      made_.by_bytes_[slot] = id;
    }
    std::stable_sort(made_.specials_.begin(), made_.specials_.end(), [&](int32_t a, int32_t b) {
      return made_.piece(a).size() > made_.piece(b).size();
    });
    for (int b = 0; b < 256; ++b) {
      const char byte = static_cast<char>(b);
      made_.byte_ids_[b] = find_normal({&byte, 1});
    }
  }

  int32_t find_normal(std::string_view bytes) const {
    const size_t mask = made_.by_bytes_.size() - 1;
    for (size_t slot = token_hash(bytes) & mask; made_.by_bytes_[slot] >= 0;
         slot = (slot + 1) & mask) {
      if (made_.piece(made_.by_bytes_[slot]) == bytes) return made_.by_bytes_[slot];
    }
    return -1;
  }

  Status read_merges() {
    Result<GgufArray> merges = file_.array("tokenizer.ggml.merges", GgufType::string);
    if (!merges) return merges.error();
    const ByteAlphabet alphabet;
    made_.merges_.reserve(static_cast<size_t>(merges->n));
    std::string left, right;
    bool malformed = false;
    merges->for_each_string([&](uint64_t, std::string_view text) {
      const size_t space = text.find(' ', 1);
      malformed = malformed || space == std::string_view::npos;
      if (malformed) return;
      left.clear();
      right.clear();
      alphabet.append(text.substr(0, space), left);
      alphabet.append(text.substr(space + 1), right);
      const int32_t a = find_normal(left), b = find_normal(right), ab = find_normal(left + right);
      if (a < 0 || b < 0 || ab < 0) {
        ++made_.skipped_merges_;
        return;
      }
      made_.merges_.push_back({a, b, ab});
    });
    if (malformed)
      return refused("tokenizer.ggml.merges holds an entry without a space between two parts");
    made_.by_pair_.assign(table_size(made_.merges_.size()), -1);
    const size_t mask = made_.by_pair_.size() - 1;
    for (size_t rank = 0; rank < made_.merges_.size(); ++rank) {
      const auto& merge = made_.merges_[rank];
      if (made_.find_merge(merge.left, merge.right) >= 0)
        continue;  // the first rank of a pair counts
      size_t slot = pair_hash(merge.left, merge.right) & mask;
      while (made_.by_pair_[slot] >= 0) slot = (slot + 1) & mask;
      made_.by_pair_[slot] = static_cast<int32_t>(rank);
    }
    return Ok{};
  }

  Result<int> read_id(const char* key) {
    Result<int64_t> id = file_.integer_or(key, -1, 0, made_.n_vocab() - 1);
    if (!id) return id.error();
    return static_cast<int>(*id);
  }

  Status read_specials() {
    for (const auto& [key, target] :
         {std::pair{"tokenizer.ggml.bos_token_id", &made_.bos_},
          std::pair{"tokenizer.ggml.eos_token_id", &made_.eos_},
          std::pair{"tokenizer.ggml.unknown_token_id", &made_.unknown_}}) {
      Result<int> id = read_id(key);
      if (!id) return id.error();
      *target = *id;
    }
    Result<bool> add_bos = file_.boolean_or("tokenizer.ggml.add_bos_token", false);
    if (!add_bos) return add_bos.error();
    made_.add_bos_ = *add_bos;
    if (made_.eos_ >= 0) made_.ends_.push_back(made_.eos_);
    Result<int> eot = read_id("tokenizer.ggml.eot_token_id");
    if (!eot) return eot.error();
    if (*eot >= 0) made_.ends_.push_back(*eot);
    for (const int32_t id : made_.specials_) {
      const std::string_view text = made_.piece(id);
      const bool ends = text == "<|im_end|>" || text == "<|endoftext|>" || text == "<|eot_id|>" ||
                        text == "<|end|>" || text == "</s>" || text == "<|end_of_text|>";
      if (ends && made_.is_control(id)) made_.ends_.push_back(id);
    }
    return Ok{};
  }

  const Gguf& file_;
  Tokenizer made_;
};

Result<Tokenizer> Tokenizer::from_gguf(const Gguf& file) { return TokenizerLoader(file).load(); }

}  // namespace bantam
