#include "text/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "text/utf8_stream.h"

namespace bantam {

namespace {

struct Named {
  const char* name;
  std::vector<const char*> patterns;
};

// The published patterns of these pre-tokenizers. Stages split what the stage before left in
// pieces.
const std::vector<Named>& known() {
  static const std::vector<Named> rows = {
      {"qwen2",
       {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
        " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
      {"smollm",
       {"\\p{N}",
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"}},
  };
  return rows;
}

}  // namespace

struct PreTokenizer::Regex {
  explicit Regex(pcre2_code* compiled) : code(compiled) {
    // Without JIT the interpreter gives the same pieces, only slower.
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  }
  ~Regex() { pcre2_code_free(code); }
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;
  pcre2_code* code;
};

PreTokenizer::PreTokenizer() = default;
PreTokenizer::~PreTokenizer() = default;

Result<std::unique_ptr<PreTokenizer>> PreTokenizer::create(std::string_view name) {
  std::string names;
  for (const Named& row : known()) {
    names += (names.empty() ? "" : " ") + std::string(row.name);
    if (name != row.name) continue;
    std::unique_ptr<PreTokenizer> made(new PreTokenizer);
    for (const char* pattern : row.patterns) {
      int error = 0;
      size_t at = 0;
      pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED,
                                       PCRE2_UTF | PCRE2_UCP, &error, &at, nullptr);
      CHECK(code != nullptr);
      made->stages_.push_back(std::make_unique<Regex>(code));
    }
    return made;
  }
  return refused("pre-tokenizer '" + std::string(name.substr(0, 64)) +
                 "' (tokenizer.ggml.pre) is not supported; this build runs " + names);
}

void PreTokenizer::apply(size_t stage, std::string_view text,
                         const std::function<void(std::string_view)>& sink) const {
  if (text.empty()) return;
  if (stage == stages_.size()) return sink(text);
  const pcre2_code* code = stages_[stage]->code;
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  CHECK(match != nullptr);
  size_t done = 0;
  while (done < text.size()) {
    const int n = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), done,
                              PCRE2_NO_UTF_CHECK, match, nullptr);
    // No match, or a limit of the matcher: the rest is one piece, which BPE handles at any length.
    if (n < 0) break;
    const size_t* range = pcre2_get_ovector_pointer(match);
    if (range[1] <= range[0]) break;
    apply(stage + 1, text.substr(done, range[0] - done), sink);
    // A match of an early stage is a finished piece; only the gaps are split further.
    sink(text.substr(range[0], range[1] - range[0]));
    done = range[1];
  }
  pcre2_match_data_free(match);
  apply(stage + 1, text.substr(done), sink);
}

void PreTokenizer::split(std::string_view text,
                         const std::function<void(std::string_view)>& sink) const {
  size_t start = 0;
  for (size_t i = 0; i < text.size();) {
    const int n = utf8_length(text.substr(i));
    if (n > 0) {
      i += static_cast<size_t>(n);
      continue;
    }
    apply(0, text.substr(start, i - start), sink);
    sink(text.substr(i, 1));
    start = ++i;
  }
  apply(0, text.substr(start), sink);
}

}  // namespace bantam
