// llama.cpp's file of log-probabilities (`llama-perplexity --kl-divergence-base`), both directions.
// Owns the format: magic `_logits_`, int32 n_ctx, n_vocab, n_chunk, int32 tokens of all chunks,
// then for every scored position float scale, float lowest, uint16 code of each token of the
// vocabulary (padded to an even number): ln p = lowest + scale * code. The reader trusts nothing:
// it refuses a foreign magic, sizes that are not the file's length, tokens outside the vocabulary,
// and rows whose probabilities do not sum to one. The writer's file takes its name when complete.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "base/result.h"

namespace bantam {

struct LogitsShape {
  int n_ctx = 0;    // tokens of one chunk
  int n_vocab = 0;  // log-probabilities of one row
  int n_chunk = 0;

  int first() const { return n_ctx / 2; }               // scored positions: [first, n_ctx - 1)
  int n_scored() const { return n_ctx - 1 - first(); }  // of one chunk
  uint64_t row_bytes() const { return 8 + (uint64_t(n_vocab) + 1) / 2 * 2 * 2; }
  uint64_t tokens_bytes() const { return uint64_t(n_chunk) * uint64_t(n_ctx) * 4; }
  uint64_t file_bytes() const;
};

inline constexpr size_t kLogitsHeaderBytes = 20;
inline constexpr float kLogitsRange = 16;  // smaller than the largest by more: all the same

// head: the file's first bytes, at least kLogitsHeaderBytes if it has them.
Result<LogitsShape> parse_logits_header(std::span<const std::byte> head, uint64_t file_bytes);
// bytes: of all tokens.
Result<std::vector<int32_t>> parse_logits_tokens(std::span<const std::byte> bytes,
                                                 const LogitsShape& shape);
// One row to ln p; out has room for n_vocab. Refuses rows that are no distribution.
Status decode_logits_row(std::span<const std::byte> row, std::span<float> out);
// One row of logits as the file holds it; row has row_bytes. Refuses values that are not finite.
Status encode_logits_row(std::span<const float> logits, std::span<std::byte> row);

class LogitsReader {
 public:
  static Result<std::unique_ptr<LogitsReader>> open(const std::string& path);

  const LogitsShape& shape() const { return shape_; }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  // Row i counts over all chunks.
  Status read_row(int64_t i, std::span<float> out);

 private:
  explicit LogitsReader(MappedFile file) : file_(std::move(file)) {}
  MappedFile file_;
  LogitsShape shape_;
  std::vector<int32_t> tokens_;
  std::vector<std::byte> row_;
};

class LogitsWriter {
 public:
  // Opens PATH.unfinished beside the path (a device or a pipe is written itself), takes the room
  // and writes the header.
  static Result<std::unique_ptr<LogitsWriter>> create(const std::string& path,
                                                      const LogitsShape& shape,
                                                      std::span<const int32_t> tokens);
  ~LogitsWriter();  // removes what was not finished

  Status add_row(std::span<const float> logits);
  // All rows are there: to the disk, then to its name.
  Status finish();

 private:
  LogitsWriter(const std::string& path, const LogitsShape& shape);
  Status open_file();
  Status write(std::span<const std::byte> bytes);
  Error cannot(const char* what) const;

  std::string path_, unfinished_;  // unfinished_ is empty for a device
  LogitsShape shape_;
  int fd_ = -1;
  int64_t rows_left_;
  std::vector<std::byte> row_;
};

}  // namespace bantam
