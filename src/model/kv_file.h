// A sequence of the cache as a file: tokens and pages, byte for byte as in memory, of the model,
// types and arithmetic that they were made with. Owns the file's format (docs/KV_LAYOUT.md). Trusts
// no number of a file: another format, model, type or context, a damaged or cut file, and values
// that no encoder writes are refused with the reason before the sequence is touched.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/atomic_file.h"
#include "base/mapped_file.h"
#include "base/result.h"
#include "model/config.h"
#include "model/kv_cache.h"

namespace bantam {

// What the bytes of a sequence depend on, besides its tokens; all of it must agree.
struct SequenceIdentity {
  uint64_t model = 0;   // fingerprint of the model file
  uint64_t config = 0;  // of its numbers, and of --act
  uint64_t rope = 0;    // of RoPE's parameters, YaRN's too
  KvType type_k = KvType::q8_0;
  KvType type_v = KvType::q8_0;
  int rotation_k = 0;
  int rotation_v = 0;
  int n_layers = 0;
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int n_vocab = 0;
};

SequenceIdentity sequence_identity(const ModelConfig& config, const AttentionPlan& plan,
                                   ActType act, std::span<const float> rope_freqs, uint64_t model);

struct SavedHeader {
  SequenceIdentity id;
  int n_tokens = 0;
  int n_kept = 0;  // pages in front that shifts left in place
  int moved = 0;   // positions by which shifts moved the others

  int n_pages() const;
  // Of one layer's K and V.
  int64_t page_bytes() const;
  // Of the whole file; the numbers are small enough for it once parsed.
  int64_t file_bytes() const;
};

inline constexpr size_t kSavedHeaderBytes = 136;

std::array<std::byte, kSavedHeaderBytes> encode_saved_header(const SavedHeader& header);
// bytes: the start of a file of file_bytes. Accepts only a header whose own checksum agrees and
// whose file ends where it says.
Result<SavedHeader> parse_saved_header(std::span<const std::byte> bytes, uint64_t file_bytes);
// Asked before each piece that is read or written, by the thread that does it: false ends the work
// with ErrorKind::cancelled. May be empty.
using KeepGoing = std::function<bool()>;

// The tokens, when every byte behind the header is as it was written and every value is one that an
// encoder writes.
Result<std::vector<int32_t>> check_saved(const MappedFile& file, const SavedHeader& header,
                                         const KeepGoing& keep_going = {});

// tokens: of all positions of the sequence, which must not change meanwhile; any thread may do it
// while others use the cache. Returns the bytes written.
Result<int64_t> save_sequence(const std::string& path, const SequenceIdentity& id,
                              std::span<const int32_t> tokens, const KvCache& cache, int seq,
                              const KeepGoing& keep_going = {}, AtomicFile::Hook hook = {});

// A file whose every byte has been checked, ready to become a sequence of a cache.
class SavedSequence {
 public:
  // shifts: whether sequences with moved pages can be used. n_ctx: the longest that can.
  static Result<SavedSequence> open(const std::string& path, const SequenceIdentity& id,
                                    bool shifts, int n_ctx, const KeepGoing& keep_going = {});

  const std::vector<int32_t>& tokens() const { return tokens_; }
  int64_t n_bytes() const { return header_.file_bytes(); }
  // Tokens in front whose K and V depend on no token that a shift discarded.
  int n_exact() const;

  // What the sequence held is forgotten; it gets pages of its own for the file's positions.
  void make_room(KvCache& cache, int seq) const;
  // Fills them; any thread may, while nobody else uses the sequence. The file is read once more: on
  // an Error, as when it changed since, the caller erases the sequence. The Error says that.
  Status fill(KvCache& cache, int seq, const KeepGoing& keep_going = {}) const;

 private:
  SavedSequence(MappedFile file, const SavedHeader& header, std::vector<int32_t> tokens)
      : file_(std::move(file)), header_(header), tokens_(std::move(tokens)) {}
  Status read_pages(KvCache& cache, int seq, const KeepGoing& keep_going) const;

  MappedFile file_;
  SavedHeader header_;
  std::vector<int32_t> tokens_;
};

}  // namespace bantam
