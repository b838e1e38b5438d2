// The tokenizer against ids from another implementation, on any bytes, at hostile lengths; the UTF-8 stream at every split.
#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>

#include "text/chat_format.h"
#include "text/utf8_stream.h"

namespace bantam {
namespace {

struct Loaded {
  MappedFile file;
  Tokenizer tokenizer;
};

std::unique_ptr<Loaded> load(const std::string& path) {
  Result<MappedFile> file = MappedFile::open(path);
  CHECK(file.ok());
  Result<Gguf> gguf = Gguf::parse(*file);
  CHECK(gguf.ok());
  Result<Tokenizer> tokenizer = Tokenizer::from_gguf(*gguf);
  CHECK(tokenizer.ok());
  return std::make_unique<Loaded>(Loaded{std::move(*file), std::move(*tokenizer)});
}

const Tokenizer& tiny() {
  static const std::unique_ptr<Loaded> loaded = load("models/tiny-1bit-chat.gguf");
  return loaded->tokenizer;
}

const Tokenizer& smollm2() {
  static const std::unique_ptr<Loaded> loaded = [] {
    const char* path = std::getenv("BANTAM_SMOLLM2");
    return load(path != nullptr ? path : "build/models/SmolLM2-135M-Instruct.Q4_1.gguf");
  }();
  return loaded->tokenizer;
}

TEST(Tokenizer, SameIdsAsTheOtherImplementation) {
  std::ifstream file("tests/data/tokenizer_vectors.json");
  const nlohmann::json vectors = nlohmann::json::parse(file);
  int cases = 0;
  for (const auto& [name, tokenizer] : {std::pair{"tiny", &tiny()}, std::pair{"smollm2", &smollm2()}}) {
    for (const auto& row : vectors.at(name)) {
      const std::string text = row[0].get<std::string>();
      EXPECT_EQ(tokenizer->encode(text, false, false), row[1].get<std::vector<int32_t>>()) << name << ": " << text;
      ++cases;
    }
  }
  EXPECT_EQ(cases, 60);
}

TEST(Tokenizer, AnyBytesComeBack) {
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    std::string text(random() % 60, ' ');
    for (char& c : text) c = static_cast<char>(round % 2 == 0 ? random() % 256 : 32 + random() % 95);
    for (const Tokenizer* t : {&tiny(), &smollm2()}) {
      if (t == &smollm2() && round % 2 == 0) continue;  // its vocabulary lacks some control bytes
      ASSERT_EQ(t->decode(t->encode(text, false, false), true), text);
      ASSERT_EQ(t->decode(t->encode(text, false, true), true), text);
    }
  }
}

TEST(Tokenizer, SpecialTokens) {
  const std::vector<int32_t> parsed = tiny().encode("a<|im_end|>b", false, true);
  const std::vector<int32_t> plain = tiny().encode("a<|im_end|>b", false, false);
  EXPECT_EQ(parsed.size(), 3u);
  EXPECT_GT(plain.size(), 3u);
  EXPECT_TRUE(tiny().is_control(parsed[1]));
  EXPECT_TRUE(tiny().is_end(parsed[1]));
  EXPECT_EQ(tiny().decode(parsed, false), "ab");
  EXPECT_EQ(tiny().find("<|im_end|>"), parsed[1]);
  EXPECT_FALSE(tiny().find("no such token").has_value());
  EXPECT_TRUE(tiny().piece(-1).empty());
  EXPECT_TRUE(tiny().piece(1 << 30).empty());
}

TEST(Tokenizer, ChatMarkupOfUsersStaysText) {
  const std::vector<ChatMessage> messages = {{"user", "hi <|im_end|> there"}};
  Result<std::vector<int32_t>> tokens = encode_chatml(tiny(), messages, true);
  ASSERT_TRUE(tokens.ok());
  int ends = 0;
  for (const int32_t t : *tokens) ends += tiny().is_end(t) ? 1 : 0;
  EXPECT_EQ(ends, 1);
  EXPECT_EQ(tiny().decode(*tokens, true), *render_chatml(messages, true));
  const std::vector<ChatMessage> plain = {{"system", "Be brief."}, {"user", "It's 12 o'clock?\n"}, {"assistant", "Yes."}, {"user", "x"}};
  EXPECT_EQ(*encode_chatml(tiny(), plain, true), tiny().encode(*render_chatml(plain, true), false, true));
  const std::vector<ChatMessage> wrong = {{"wizard", "x"}};
  EXPECT_FALSE(encode_chatml(tiny(), wrong, true).ok());
}

TEST(Tokenizer, AMegabyteOfAnythingIsQuick) {
  for (const char* unit : {"A", " ", "\n", "7", "!", "a ", " \n", "\xc3\xa9", "\xff", "ab1 "}) {
    std::string text;
    while (text.size() < (1u << 20)) text += unit;
    for (const Tokenizer* t : {&tiny(), &smollm2()}) {
      const auto start = std::chrono::steady_clock::now();
      const std::vector<int32_t> tokens = t->encode(text, false, true);
      const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
      std::printf("1 MB of '%s' (%s): %.0f ms, %zu tokens\n", unit[0] == '\n' ? "\\n" : unit, t->pre_name().c_str(), ms, tokens.size());
      EXPECT_LT(ms, 20000.0) << "not linear";  // generous: sanitizer builds run it too
    }
  }
}

TEST(Utf8Stream, EverySplitGivesTheSameText) {
  const std::string text = "a\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80\xff\xc3(\xe2\x82\xed\xa0\x80\xf4\x90\x80\x80z\xf0\x9f";
  const std::string want = to_valid_utf8(text);
  EXPECT_TRUE(valid_utf8(want));
  EXPECT_FALSE(valid_utf8(text));
  for (size_t a = 0; a <= text.size(); ++a) {
    for (size_t b = a; b <= text.size(); ++b) {
      Utf8Stream stream;
      std::string out;
      for (const std::string& part : {text.substr(0, a), text.substr(a, b - a), text.substr(b)}) {
        const std::string piece = stream.push(part);
        ASSERT_TRUE(valid_utf8(piece));
        out += piece;
      }
      ASSERT_EQ(out + stream.flush(), want);
    }
  }
}

}  // namespace
}  // namespace bantam
