// The GGUF reader on the built-in model, on all its truncations and bit flips, and on files made to mislead.
#include "gguf/gguf.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace bantam {
namespace {

std::string read_tiny() {
  std::ifstream file("models/tiny-1bit-chat.gguf", std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

Result<Gguf> parse(const MappedFile& file) { return Gguf::parse(file); }

MappedFile memory(const std::string& bytes) {
  return MappedFile::from_memory(std::as_bytes(std::span(bytes)), "test");
}

// Builds small files, right or wrong.
class Builder {
 public:
  template <class T>
  Builder& put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  Builder& text(const std::string& s) {
    put<uint64_t>(s.size());
    bytes_ += s;
    return *this;
  }
  Builder& header(uint32_t version, uint64_t n_tensors, uint64_t n_keys) {
    bytes_ = "GGUF";
    return put(version).put(n_tensors).put(n_keys);
  }
  Builder& tensor(const std::string& name, std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
    text(name).put<uint32_t>(static_cast<uint32_t>(dims.size()));
    for (const uint64_t d : dims) put(d);
    return put(type).put(offset);
  }
  Builder& pad(size_t extra) {
    bytes_.resize((bytes_.size() + 31) / 32 * 32 + extra);
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

void expect_refused(const std::string& bytes, const char* what, const char* word = "") {
  const MappedFile file = memory(bytes);
  Result<Gguf> parsed = parse(file);
  ASSERT_FALSE(parsed.ok()) << what;
  EXPECT_EQ(parsed.error().kind, ErrorKind::refused) << what;
  EXPECT_NE(parsed.error().message.find(word), std::string::npos) << what << ": " << parsed.error().message;
}

TEST(Gguf, ReadsTheBuiltInModel) {
  const std::string bytes = read_tiny();
  ASSERT_GT(bytes.size(), 900000u);
  const MappedFile file = memory(bytes);
  Result<Gguf> parsed = parse(file);
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(parsed->tensors().size(), 68u);
  EXPECT_EQ(*parsed->text("general.architecture"), "qwen3");
  EXPECT_EQ(*parsed->integer("qwen3.block_count", 0, 1000), 6);
  EXPECT_FALSE(parsed->integer("qwen3.block_count", 7, 1000).ok());
  EXPECT_FALSE(parsed->integer("no.such.key", 0, 1).ok());
  EXPECT_EQ(*parsed->integer_or("no.such.key", 5, 0, 9), 5);
  EXPECT_FALSE(parsed->text("qwen3.block_count").ok());
  const GgufTensor* embedding = parsed->find_tensor("token_embd.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_EQ(embedding->type, WeightType::q1_0);
  EXPECT_EQ(embedding->dims[1], 1024);
  EXPECT_EQ(parsed->find_tensor("nothing"), nullptr);
}

TEST(Gguf, EveryTruncationIsRefused) {
  const std::string bytes = read_tiny();
  const MappedFile whole = memory(bytes);
  const size_t header = static_cast<size_t>(parse(whole)->data_offset());
  size_t refused_count = 0, cases = 0;
  for (size_t n = 1; n < bytes.size(); n += n < header ? 1 : 9973) {
    const std::string part = bytes.substr(0, n);
    const MappedFile file = memory(part);
    refused_count += parse(file).ok() ? 0 : 1;
    ++cases;
  }
  EXPECT_EQ(refused_count, cases);
  EXPECT_GT(cases, header);
}

TEST(Gguf, BitFlipsNeverCrash) {
  std::string bytes = read_tiny();
  int accepted = 0, refused_count = 0;
  for (size_t bit = 0; bit < 4096 * 8; ++bit) {
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    const MappedFile file = memory(bytes);
    const Result<Gguf> parsed = parse(file);
    ++(parsed.ok() ? accepted : refused_count);
    if (parsed.ok()) {
      for (const GgufTensor& t : parsed->tensors()) ASSERT_LE(t.offset + t.n_bytes, bytes.size());
    }
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
  }
  EXPECT_EQ(accepted + refused_count, 4096 * 8);
  EXPECT_GT(refused_count, 100);
}

TEST(Gguf, MisleadingFilesAreRefused) {
  expect_refused("", "empty");
  expect_refused("GGUF", "short");
  expect_refused(Builder().header(1, 0, 0).pad(64).bytes(), "version 1", "version");
  expect_refused(Builder().header(3, uint64_t{1} << 60, 0).pad(64).bytes(), "tensor count");
  expect_refused(Builder().header(3, 0, uint64_t{1} << 60).pad(64).bytes(), "key count");
  expect_refused(Builder().header(3, 0, 1).put(~uint64_t{0}).pad(64).bytes(), "string length");
  expect_refused(Builder().header(3, 0, 1).text("a").put<uint32_t>(99).pad(64).bytes(), "value type");
  expect_refused(Builder().header(3, 0, 1).text("a").put<uint32_t>(9).put<uint32_t>(4).put(uint64_t{1} << 62).pad(64).bytes(),
                 "array length");
  expect_refused(Builder().header(3, 0, 1).text("a").put<uint32_t>(7).put<uint8_t>(2).pad(64).bytes(), "bool of 2");
  const auto twice = [](Builder b) { return b.text("a").put<uint32_t>(4).put<uint32_t>(1); };
  expect_refused(twice(twice(Builder().header(3, 0, 2))).pad(64).bytes(), "duplicate key", "a");
  expect_refused(Builder().header(3, 0, 1).text("general.alignment").put<uint32_t>(4).put<uint32_t>(0).pad(64).bytes(),
                 "alignment 0", "alignment");
  expect_refused(Builder().header(3, 0, 1).text("general.alignment").put<uint32_t>(4).put(1u << 31).pad(64).bytes(),
                 "alignment 2^31", "alignment");
  expect_refused(Builder().header(3, 1, 0).tensor("t", {0}, 0, 0).pad(64).bytes(), "zero dimension", "t");
  expect_refused(Builder().header(3, 1, 0).tensor("t", {33}, 2, 0).pad(64).bytes(), "half a block", "t");
  expect_refused(Builder().header(3, 1, 0).tensor("t", {uint64_t{1} << 40, uint64_t{1} << 40}, 0, 0).pad(64).bytes(), "product");
  expect_refused(Builder().header(3, 1, 0).tensor("t", {32}, 0, uint64_t{1} << 63).pad(64).bytes(), "offset");
  expect_refused(Builder().header(3, 1, 0).tensor("t", {32}, 0, 1).pad(256).bytes(), "offset not aligned");
  expect_refused(Builder().header(3, 1, 0).tensor("t", {64}, 0, 0).pad(128).bytes(), "beyond the file");
  expect_refused(Builder().header(3, 1, 0).tensor("t", {32, 1, 1, 1, 1}, 0, 0).pad(256).bytes(), "five dimensions");
  expect_refused(Builder().header(3, 1, 0).tensor("t", {32}, 10, 0).pad(256).bytes(), "type", "Q2_K");
  expect_refused(Builder().header(3, 2, 0).tensor("t", {32}, 0, 0).tensor("t", {32}, 0, 128).pad(512).bytes(), "duplicate tensor", "t");
  expect_refused(Builder().header(3, 2, 0).tensor("t", {64}, 0, 0).tensor("u", {32}, 0, 128).pad(512).bytes(), "overlap");
  const std::string fine = Builder().header(3, 1, 0).tensor("t", {32}, 0, 0).pad(128).bytes();
  const MappedFile file = memory(fine);
  EXPECT_TRUE(parse(file).ok()) << parse(file).error().message;
}

TEST(MappedFile, RefusesWhatIsNoFile) {
  EXPECT_FALSE(MappedFile::open("/nonexistent").ok());
  EXPECT_FALSE(MappedFile::open("/").ok());
  EXPECT_FALSE(MappedFile::open("/dev/null").ok());
  Result<MappedFile> tiny = MappedFile::open("models/tiny-1bit-chat.gguf");
  ASSERT_TRUE(tiny.ok());
  std::byte four[4];
  ASSERT_TRUE(tiny->read(0, four).ok());
  EXPECT_EQ(std::memcmp(four, "GGUF", 4), 0);
  EXPECT_FALSE(tiny->read(tiny->size() - 3, four).ok());
  EXPECT_FALSE(tiny->read(~uint64_t{0}, four).ok());
}

// Both publishers' files say 42; only the extents differ.
TEST(Gguf, TernaryBlocksAreToldApartByTheirExtents) {
  for (const bool shorter : {false, true}) {
    const uint64_t bytes = shorter ? 8 * 16 * 34 : 8 * 16 * 36;  // 16 rows of 1024
    Builder file;
    file.header(3, 2, 0).tensor("a", {1024, 16}, 42, 0).tensor("b", {1024, 16}, 42, bytes);
    file.pad(2 * bytes);
    const MappedFile mapped = memory(file.bytes());
    Result<Gguf> parsed = parse(mapped);
    ASSERT_TRUE(parsed) << parsed.error().message;
    for (const GgufTensor& tensor : parsed->tensors()) {
      EXPECT_EQ(tensor.type, shorter ? WeightType::pq2_0 : WeightType::q2_0);
      EXPECT_EQ(tensor.n_bytes, bytes);
    }
  }
}

}  // namespace
}  // namespace bantam
