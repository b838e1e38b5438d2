// A sequence of the cache as a file: tokens and pages, byte for byte as in memory, of the model,
// types and arithmetic that they were made with. Owns the file's format (docs/KV_LAYOUT.md). Trusts
// no number of a file: another format, model, type or context, a damaged or cut file, and values
// that no encoder writes are refused with the reason before the sequence is touched.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
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
// The tokens, when every byte behind the header is as it was written and every value is one that an
// encoder writes.
Result<std::vector<int32_t>> check_saved(const MappedFile& file, const SavedHeader& header);

// tokens: of all positions of the sequence. Returns the bytes written.
Result<int64_t> save_sequence(const std::string& path, const SequenceIdentity& id,
                              std::span<const int32_t> tokens, const KvCache& cache, int seq,
                              AtomicFile::Hook hook = {});

struct RestoredSequence {
  std::vector<int32_t> tokens;
  int64_t n_bytes = 0;
  int n_exact = 0;  // tokens in front whose K and V depend on no token that a shift discarded
};

// shifts: whether sequences with moved pages can be used. Replaces the sequence; on an Error it is
// what it was, but empty if the file changed after it had been checked.
Result<RestoredSequence> restore_sequence(const std::string& path, const SequenceIdentity& id,
                                          bool shifts, KvCache& cache, int seq);

}  // namespace bantam
