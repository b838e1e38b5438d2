#include "model/kv_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/file_header.h"
#include "base/hash.h"
#include "base/limits.h"
#include "codec/kv_check.h"
#include "codec/kv_layout.h"

namespace bantam {

namespace {

// "BANTSEQ\0"; the version counts the changes of this format, of the cache's layout and of the
// arithmetic behind it.
constexpr FileFormat kFormat{0x00514553544e4142, 1, "saved sequence", ErrorKind::refused};
constexpr size_t kNameBytes = 8;
constexpr int64_t kSumBytes = 8;

// A type by its name: numbers of an enum would change with a new row.
std::array<char, kNameBytes> name_of(KvType type) {
  std::array<char, kNameBytes> name{};
  const std::string_view text = info(type).name;
  CHECK(text.size() <= name.size());
  std::copy(text.begin(), text.end(), name.begin());
  return name;
}

Result<KvType> type_of(const std::array<char, kNameBytes>& name) {
  for (int i = 0; i < kNumKvTypes; ++i) {
    if (name_of(static_cast<KvType>(i)) == name) return static_cast<KvType>(i);
  }
  return refused("its KV type is none of this version's: " + kv_type_list());
}

Error differs(const char* what, const std::string& found, const std::string& expected) {
  return refused(std::string("its ") + what + " is " + found + ", expected " + expected);
}

Status same_number(const char* what, int found, int expected) {
  if (found == expected) return Ok{};
  return differs(what, std::to_string(found), std::to_string(expected));
}

Status compare(const SequenceIdentity& got, const SequenceIdentity& expected) {
  if (got.type_k != expected.type_k)
    return differs("K type", info(got.type_k).name, info(expected.type_k).name);
  if (got.type_v != expected.type_v)
    return differs("V type", info(got.type_v).name, info(expected.type_v).name);
  const std::pair<const char*, int SequenceIdentity::*> numbers[] = {
      {"number of layers", &SequenceIdentity::n_layers},
      {"number of heads", &SequenceIdentity::n_heads},
      {"number of KV heads", &SequenceIdentity::n_kv_heads},
      {"head size", &SequenceIdentity::head_dim},
      {"rotation of K", &SequenceIdentity::rotation_k},
      {"rotation of V", &SequenceIdentity::rotation_v},
      {"vocabulary", &SequenceIdentity::n_vocab}};
  for (const auto& [what, member] : numbers) {
    if (Status s = same_number(what, got.*member, expected.*member); !s) return s;
  }
  if (got.model != expected.model) return refused("it was saved with another model file");
  if (got.rope != expected.rope) return refused("it was saved with other RoPE parameters");
  if (got.config != expected.config)
    return refused("it was saved with another configuration of the model or another --act");
  return Ok{};
}

Status check_numbers(const SavedHeader& h) {
  const SequenceIdentity& id = h.id;
  const bool shape = id.n_layers >= 1 && id.n_layers <= kMaxLayers && id.n_kv_heads >= 1 &&
                     id.n_kv_heads <= kMaxHeads && id.n_heads >= 1 && id.n_heads <= kMaxHeads &&
                     id.head_dim >= 32 && id.head_dim <= kMaxHeadDim && id.head_dim % 32 == 0 &&
                     id.n_vocab >= 1 && id.n_vocab <= kMaxVocab;
  const bool length = h.n_tokens >= 1 && h.n_tokens <= kMaxContext;
  if (!shape || !length) return refused("its header holds impossible sizes");
  const bool still = h.moved == 0 && h.n_kept == 0;
  const bool shifted = h.moved > 0 && h.moved <= kMaxMoved && h.moved % kPagePositions == 0 &&
                       h.n_kept >= 0 && h.n_kept < h.n_pages();
  if (!still && !shifted) return refused("its header holds impossible page offsets");
  return Ok{};
}

// Bytes in the order of the file, summed on the way.
class Source {
 public:
  explicit Source(const MappedFile& file) : file_(file) {}
  Status next(std::span<std::byte> out) {
    if (Status status = file_.read(at_, out); !status) return status;
    at_ += out.size();
    sum_ = hash_bytes(out, sum_);
    return Ok{};
  }
  // Whether the sum that follows is that of everything before it.
  Result<bool> sum_agrees() {
    uint64_t stored = 0;
    const auto bytes = std::as_writable_bytes(std::span(&stored, 1));
    if (Status status = file_.read(at_, bytes); !status) return status.error();
    return stored == sum_;
  }

 private:
  const MappedFile& file_;
  uint64_t at_ = 0;
  uint64_t sum_ = 0;
};

// Header, tokens; the pages come next.
Result<std::vector<int32_t>> read_front(Source& source, const SavedHeader& header) {
  std::array<std::byte, kSavedHeaderBytes> front;
  if (Status status = source.next(front); !status) return status.error();
  std::vector<int32_t> tokens(static_cast<size_t>(header.n_tokens));
  if (Status s = source.next(std::as_writable_bytes(std::span(tokens))); !s) return s.error();
  return tokens;
}

const char* page_fault(const SavedHeader& header, int page, std::span<const std::byte> bytes) {
  const SequenceIdentity& id = header.id;
  const std::byte* tile = bytes.data();
  for (const bool key : {true, false}) {
    const KvType type = key ? id.type_k : id.type_v;
    const int64_t tile_bytes = kv_tile_bytes(info(type).bytes_per_32, id.head_dim);
    for (int i = 0; i < id.n_kv_heads * kPageTiles; ++i, tile += tile_bytes) {
      const int first = page * kPagePositions + i % kPageTiles * kTilePositions;
      const int used = std::clamp(header.n_tokens - first, 0, kTilePositions);
      if (const char* fault = kv_tile_fault(type, key, id.head_dim, used, tile)) return fault;
    }
  }
  return nullptr;
}

bool stopped(const KeepGoing& keep_going) { return keep_going && !keep_going(); }

Error gave_up() { return {ErrorKind::cancelled, "it was given up"}; }

class Mixer {
 public:
  void add(int64_t value) { hash_ = hash_mix(hash_, static_cast<uint64_t>(value)); }
  void add(double value) { hash_ = hash_mix(hash_, std::bit_cast<uint64_t>(value)); }
  void add(std::span<const std::byte> bytes) { hash_ = hash_bytes(bytes, hash_); }
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0;
};

}  // namespace

SequenceIdentity sequence_identity(const ModelConfig& c, const AttentionPlan& plan, ActType act,
                                   std::span<const float> rope_freqs, uint64_t model) {
  Mixer rope;
  rope.add(int64_t{c.rope_dims});
  rope.add(int64_t{c.rope_interleaved});
  rope.add(static_cast<int64_t>(c.rope_scaling));
  rope.add(int64_t{c.rope_original_ctx});
  for (const double x :
       {c.rope_base, c.rope_factor, c.rope_attn_factor, c.yarn_beta_fast, c.yarn_beta_slow}) {
    rope.add(x);
  }
  rope.add(std::as_bytes(rope_freqs));
  Mixer config;
  config.add(std::as_bytes(std::span(c.arch)));
  for (const int x : {c.d_model, c.d_ff, static_cast<int>(c.qk_norm),
                      static_cast<int>(c.tied_output), static_cast<int>(act)}) {
    config.add(int64_t{x});
  }
  config.add(static_cast<double>(c.norm_eps));
  return {model,     config.value(),    rope.value(),      plan.k(),
          plan.v(),  plan.rotation_k(), plan.rotation_v(), c.n_layers,
          c.n_heads, c.n_kv_heads,      c.head_dim,        c.n_vocab};
}

int SavedHeader::n_pages() const { return (n_tokens + kPagePositions - 1) / kPagePositions; }

int64_t SavedHeader::page_bytes() const {
  return int64_t{id.n_kv_heads} * kPageTiles *
         (kv_tile_bytes(info(id.type_k).bytes_per_32, id.head_dim) +
          kv_tile_bytes(info(id.type_v).bytes_per_32, id.head_dim));
}

int64_t SavedHeader::file_bytes() const {
  return static_cast<int64_t>(kSavedHeaderBytes) + int64_t{n_tokens} * 4 +
         page_bytes() * id.n_layers * n_pages() + kSumBytes;
}

std::array<std::byte, kSavedHeaderBytes> encode_saved_header(const SavedHeader& h) {
  std::array<std::byte, kSavedHeaderBytes> bytes{};
  HeaderWriter writer(kFormat, bytes);
  writer.put(static_cast<uint32_t>(kSavedHeaderBytes));
  writer.put(static_cast<uint64_t>(h.file_bytes()));
  writer.put(h.id.model);
  writer.put(h.id.config);
  writer.put(h.id.rope);
  writer.put(name_of(h.id.type_k));
  writer.put(name_of(h.id.type_v));
  for (const int number : {h.id.rotation_k, h.id.rotation_v, h.id.n_layers, h.id.n_heads,
                           h.id.n_kv_heads, h.id.head_dim, h.id.n_vocab, kPagePositions, h.n_tokens,
                           h.n_kept, h.moved, 0, 0, 0, 0, 0}) {
    writer.put(static_cast<int32_t>(number));
  }
  writer.finish();
  return bytes;
}

Result<SavedHeader> parse_saved_header(std::span<const std::byte> bytes, uint64_t file_bytes) {
  HeaderReader reader(kFormat, bytes);
  if (Status status = reader.begin(); !status) return status.error();
  const auto header_bytes = reader.read<uint32_t>();
  const auto said_bytes = reader.read<uint64_t>();
  SavedHeader h;
  h.id.model = reader.read<uint64_t>();
  h.id.config = reader.read<uint64_t>();
  h.id.rope = reader.read<uint64_t>();
  const auto k = reader.read<std::array<char, kNameBytes>>();
  const auto v = reader.read<std::array<char, kNameBytes>>();
  int positions = 0, spare = 0;
  for (int* number :
       {&h.id.rotation_k, &h.id.rotation_v, &h.id.n_layers, &h.id.n_heads, &h.id.n_kv_heads,
        &h.id.head_dim, &h.id.n_vocab, &positions, &h.n_tokens, &h.n_kept, &h.moved}) {
    *number = reader.read<int32_t>();
  }
  for (int i = 0; i < 5; ++i) spare |= reader.read<int32_t>();
  if (Status status = reader.end(file_bytes); !status) return status.error();
  Result<KvType> type_k = type_of(k), type_v = type_of(v);
  if (!type_k) return type_k.error();
  if (!type_v) return type_v.error();
  h.id.type_k = *type_k;
  h.id.type_v = *type_v;
  if (Status status = check_numbers(h); !status) return status.error();
  if (header_bytes != kSavedHeaderBytes || positions != kPagePositions || spare != 0 ||
      said_bytes != static_cast<uint64_t>(h.file_bytes())) {
    return refused("its header contradicts itself");
  }
  if (said_bytes != file_bytes) {
    return refused("it has " + std::to_string(file_bytes) + " bytes, expected " +
                   std::to_string(said_bytes));
  }
  return h;
}

Result<std::vector<int32_t>> check_saved(const MappedFile& file, const SavedHeader& header,
                                         const KeepGoing& keep_going) {
  Source source(file);
  Result<std::vector<int32_t>> tokens = read_front(source, header);
  if (!tokens) return tokens.error();
  std::vector<std::byte> buffer(static_cast<size_t>(header.page_bytes()));
  const char* fault = nullptr;
  for (int page = 0; page < header.n_pages(); ++page) {
    for (int layer = 0; layer < header.id.n_layers; ++layer) {
      if (stopped(keep_going)) return gave_up();
      if (Status status = source.next(buffer); !status) return status.error();
      if (fault == nullptr) fault = page_fault(header, page, buffer);
    }
  }
  const Result<bool> agrees = source.sum_agrees();
  if (!agrees) return agrees.error();
  // Damage first: what it did to a value says nothing.
  if (!*agrees) return refused("its data is damaged (the checksum differs)");
  if (fault != nullptr) return refused(fault);
  for (const int32_t token : *tokens) {
    if (token >= 0 && token < header.id.n_vocab) continue;
    return refused("token " + std::to_string(token) + " is outside the vocabulary of " +
                   std::to_string(header.id.n_vocab));
  }
  return tokens;
}

Result<int64_t> save_sequence(const std::string& path, const SequenceIdentity& id,
                              std::span<const int32_t> tokens, const KvCache& cache, int seq,
                              const KeepGoing& keep_going, AtomicFile::Hook hook) {
  const auto n = static_cast<int>(tokens.size());
  CHECK(n == cache.length(seq) && n > 0);
  const SavedHeader header{id, n, cache.n_kept(seq), cache.moved(seq)};
  CHECK(header.page_bytes() == cache.page_bytes() && id.n_layers == cache.n_layers());
  Result<AtomicFile> file = AtomicFile::create(path, std::move(hook));
  if (!file) return file.error();
  uint64_t sum = 0;
  const auto put = [&](std::span<const std::byte> bytes) {
    sum = hash_bytes(bytes, sum);
    return file->write(bytes);
  };
  if (Status s = put(encode_saved_header(header)); !s) return s.error();
  if (Status s = put(std::as_bytes(tokens)); !s) return s.error();
  std::vector<std::byte> buffer(static_cast<size_t>(cache.page_bytes()));
  for (int page = 0; page < header.n_pages(); ++page) {
    for (int layer = 0; layer < id.n_layers; ++layer) {
      if (stopped(keep_going)) return gave_up();
      if (Status s = put(cache.read_page(seq, page, layer, buffer)); !s) return s.error();
    }
  }
  if (Status s = file->write(std::as_bytes(std::span(&sum, 1))); !s) return s.error();
  const int64_t written = file->n_written();
  if (Status s = file->sync(); !s) return s.error();
  // Until the last moment: of a file given up here the old one is left.
  if (stopped(keep_going)) return gave_up();
  if (Status s = file->commit(); !s) return s.error();
  return written;
}

namespace {

Error about(const std::string& path, const Error& error) {
  return {error.kind, "'" + path + "' cannot be restored: " + error.message};
}

Result<std::vector<int32_t>> check_file(const MappedFile& file, const SequenceIdentity& id,
                                        bool shifts, int n_ctx, const KeepGoing& keep_going,
                                        SavedHeader& header) {
  std::array<std::byte, kSavedHeaderBytes> start{};
  const size_t n = static_cast<size_t>(std::min<uint64_t>(start.size(), file.size()));
  const std::span<std::byte> front(start.data(), n);
  if (Status status = file.read(0, front); !status) return status.error();
  const Result<SavedHeader> parsed = parse_saved_header(front, file.size());
  if (!parsed) return parsed.error();
  header = *parsed;
  if (Status status = compare(header.id, id); !status) return status.error();
  if (header.n_tokens > n_ctx) {
    return refused("it holds " + std::to_string(header.n_tokens) + " positions, expected at most " +
                   std::to_string(n_ctx) + ": start with a larger -c");
  }
  if (header.moved > 0 && !shifts)
    return refused("its context was shifted: start with --context-shift");
  return check_saved(file, header, keep_going);
}

}  // namespace

Result<SavedSequence> SavedSequence::open(const std::string& path, const SequenceIdentity& id,
                                          bool shifts, int n_ctx, const KeepGoing& keep_going) {
  Result<MappedFile> file = MappedFile::open(path);
  if (!file) return file.error();
  SavedHeader header;
  Result<std::vector<int32_t>> tokens = check_file(*file, id, shifts, n_ctx, keep_going, header);
  if (!tokens) return about(path, tokens.error());
  return SavedSequence(std::move(*file), header, std::move(*tokens));
}

int SavedSequence::n_exact() const {
  return header_.moved > 0 ? header_.n_kept * kPagePositions : header_.n_tokens;
}

void SavedSequence::make_room(KvCache& cache, int seq) const {
  cache.erase(seq);
  cache.adopt(seq, header_.n_tokens, header_.n_kept, header_.moved);
}

Status SavedSequence::read_pages(KvCache& cache, int seq, const KeepGoing& keep_going) const {
  Source source(file_);
  Result<std::vector<int32_t>> tokens = read_front(source, header_);
  if (!tokens) return tokens.error();
  std::vector<std::byte> buffer(static_cast<size_t>(cache.page_bytes()));
  for (int page = 0; page < header_.n_pages(); ++page) {
    for (int layer = 0; layer < header_.id.n_layers; ++layer) {
      if (stopped(keep_going)) return gave_up();
      if (Status status = source.next(buffer); !status) return status;
      cache.write_page(seq, page, layer, buffer);
    }
  }
  const Result<bool> agrees = source.sum_agrees();
  if (!agrees) return agrees.error();
  if (!*agrees || *tokens != tokens_) return refused("it changed while it was read");
  return Ok{};
}

Status SavedSequence::fill(KvCache& cache, int seq, const KeepGoing& keep_going) const {
  CHECK(cache.length(seq) == header_.n_tokens);
  const Status status = read_pages(cache, seq, keep_going);
  if (status) return status;
  const Error error = about(file_.path(), status.error());
  return Error{error.kind, error.message + "; the slot is empty now"};
}

}  // namespace bantam
