#include "model/loader.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "base/hash.h"
#include "model/pack_cache.h"

namespace bantam {

namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kPieceBytes = 1 << 20;  // read and packed at a time, by each thread
constexpr uint64_t kDropBytes = 8 << 20;
// Asked of the disk beyond what is being read: without it the disk rests whenever the threads do
// (8B, cold, on a busy machine: 3.1 s instead of 0.9; 16 MiB are no better).
constexpr uint64_t kAheadBytes = 8 << 20;
constexpr int kGroupRows = 16;  // the backend packs whole groups

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int64_t packed_bytes(const Matrix& matrix, const Backend& backend) {
  return aligned(backend.matrix_bytes(matrix.type, matrix.rows, matrix.cols));
}

// Where the matrices lie in their region, which is also the data of a pack file.
struct Places {
  std::vector<std::pair<Matrix*, int64_t>> matrices;
  int64_t bytes = 0;
  uint64_t hash = 0;

  Places(const std::vector<BoundTensor>& bound, const Backend& backend) {
    for (const BoundTensor& tensor : bound) {
      if (tensor.matrix == nullptr) continue;
      const Matrix& m = *tensor.matrix;
      hash = hash_bytes(std::as_bytes(std::span(tensor.source->name)), hash);
      for (const int64_t x :
           {int64_t{info(m.type).gguf_id}, int64_t{m.rows}, int64_t{m.cols}, bytes})
        hash = hash_mix(hash, static_cast<uint64_t>(x));
      matrices.emplace_back(tensor.matrix, bytes);
      bytes += packed_bytes(m, backend);
    }
  }
  void bind(std::byte* region) const {
    for (const auto& [matrix, offset] : matrices) matrix->data = region + offset;
  }
};

class Loader {
 public:
  Loader(const Gguf& file, const std::vector<BoundTensor>& bound, Backend& backend,
         const LoadOptions& options, const LoadEvents& events)
      : file_(file.file()),
        gguf_(file),
        bound_(bound),
        backend_(backend),
        options_(options),
        events_(events),
        places_(bound, backend) {}

  Result<LoadedWeights> run() {
    const auto start = std::chrono::steady_clock::now();
    if (Status status = read_vectors(); !status) return status.error();
    if (Status status = open_cache(); !status) return status.error();
    if (!loaded_.pack) {
      if (Status status = read_matrices(); !status) return status.error();
      write_cache();
    }
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    loaded_.report.seconds = taken.count();
    return std::move(loaded_);
  }

 private:
  Status read_vectors();
  Status open_cache();
  Status read_matrices();
  void write_cache();
  void drop_read(uint64_t end);
  void tell(const char* what, int64_t done, int64_t total) const {
    if (events_.progress) events_.progress(what, done, total);
  }
  void note(bool warning, const std::string& text) const {
    if (events_.note) events_.note(warning, text);
  }

  const MappedFile& file_;
  const Gguf& gguf_;
  const std::vector<BoundTensor>& bound_;
  Backend& backend_;
  const LoadOptions& options_;
  const LoadEvents& events_;
  const Places places_;
  std::unique_ptr<PackCache> cache_;
  std::byte* region_ = nullptr;
  uint64_t drop_from_ = 0;  // bytes of the file before it may stay in the page cache
  uint64_t dropped_ = 0;
  uint64_t asked_ = 0;  // bytes of the file before it have been asked for
  LoadedWeights loaded_;
};

Status Loader::read_vectors() {
  int64_t total = 0;
  for (const BoundTensor& tensor : bound_) {
    if (tensor.vector != nullptr) total += aligned(static_cast<int64_t>(tensor.source->n_bytes));
  }
  Result<std::byte*> memory = backend_.allocate(total, "weights");
  if (!memory) return memory.error();
  std::byte* next = *memory;
  for (const BoundTensor& tensor : bound_) {
    if (tensor.vector == nullptr) continue;
    const auto n = static_cast<size_t>(tensor.source->n_bytes);
    if (Status status = file_.read(tensor.source->offset, {next, n}); !status) return status;
    *tensor.vector = reinterpret_cast<const float*>(next);
    next += aligned(static_cast<int64_t>(n));
    loaded_.report.read_bytes += static_cast<int64_t>(n);
  }
  return Ok{};
}

Status Loader::open_cache() {
  if (options_.pack_cache.empty()) return Ok{};
  Result<uint64_t> fingerprint = model_fingerprint(gguf_);
  if (!fingerprint) return fingerprint.error();
  const int n_threads = std::max(backend_.n_threads(), backend_.n_threads_batch());
  const PackIdentity id{static_cast<uint32_t>(backend_.pack_version()),
                        file_.size(),
                        file_.mtime_ns(),
                        *fingerprint,
                        places_.hash,
                        static_cast<uint64_t>(places_.bytes)};
  cache_ = std::make_unique<PackCache>(options_.pack_cache, id, n_threads);
  Result<std::optional<MappedFile>> opened = cache_->open(
      [this](int64_t done, int64_t total) { tell("checking packed weights", done, total); });
  if (!opened) {
    note(true, opened.error().message + "; packing again");
    return Ok{};
  }
  if (!*opened) return Ok{};
  loaded_.pack = std::move(*opened);
  loaded_.report.mapped = cache_->path();
  // Mapped read-only: Matrix is also what pack() writes to, nothing else ever does.
  places_.bind(const_cast<std::byte*>(loaded_.pack->bytes().data()) + kPackDataOffset);
  return Ok{};
}

// The part of the file up to `end` has been read and will not be needed again. Ranges overlap: the
// page cache drops only what lies in one whole, and it keeps large pieces together.
void Loader::drop_read(uint64_t end) {
  if (end <= drop_from_ || (end < dropped_ + kDropBytes && end < file_.size())) return;
  const uint64_t from = std::max(drop_from_, dropped_ > kDropBytes ? dropped_ - kDropBytes : 0);
  file_.drop(from, end - from);
  dropped_ = end;
}

Status Loader::read_matrices() {
  Result<std::byte*> memory = backend_.allocate(places_.bytes, "weights");
  if (!memory) return memory.error();
  region_ = *memory;
  places_.bind(region_);
  struct Piece {
    uint64_t offset;
    PackPiece piece;
  };
  std::vector<Piece> order;
  int64_t total = 0;
  for (const BoundTensor& tensor : bound_) {
    if (tensor.matrix == nullptr) continue;
    const Matrix& matrix = *tensor.matrix;
    const int64_t row_bytes = static_cast<int64_t>(tensor.source->n_bytes) / matrix.rows;
    const int64_t step = std::max<int64_t>(1, kPieceBytes / (row_bytes * kGroupRows)) * kGroupRows;
    for (int64_t row = 0; row < matrix.rows; row += step) {
      const auto n = static_cast<int>(std::min(step, matrix.rows - row));
      order.push_back({tensor.source->offset + static_cast<uint64_t>(row * row_bytes),
                       {&matrix, static_cast<int>(row), n}});
    }
    total += static_cast<int64_t>(tensor.source->n_bytes);
  }
  // As the file lies on the disk, whatever order the decoder uses it in.
  std::sort(order.begin(), order.end(),
            [](const Piece& a, const Piece& b) { return a.offset < b.offset; });
  std::vector<PackPiece> pieces;
  for (const Piece& piece : order) pieces.push_back(piece.piece);
  // The pack file is what the next start reads, so it comes first.
  const int64_t room = options_.keep_bytes - (cache_ != nullptr ? places_.bytes : 0);
  drop_from_ = static_cast<uint64_t>(std::max<int64_t>(0, room));
  file_.read_in_order();
  int64_t done = 0;
  Status status = backend_.pack(pieces, [&](size_t i, std::span<std::byte> rows) -> Status {
    tell("loading weights", done, total);
    const uint64_t ahead = std::max(asked_, order[i].offset);
    const uint64_t wanted = order[i].offset + rows.size() + kAheadBytes;
    if (wanted > ahead) file_.read_ahead(ahead, wanted - ahead);
    asked_ = std::max(ahead, wanted);
    if (Status got = file_.read(order[i].offset, rows); !got) return got;
    drop_read(order[i].offset + rows.size());
    done += static_cast<int64_t>(rows.size());
    return Ok{};
  });
  if (!status) return status;
  tell("loading weights", done, total);
  drop_read(file_.size());
  loaded_.report.read_bytes += done;
  return Ok{};
}

void Loader::write_cache() {
  if (cache_ == nullptr) return;
  const bool keep = options_.keep_bytes >= places_.bytes;
  Result<bool> written = cache_->write(
      {region_, static_cast<size_t>(places_.bytes)}, keep,
      [this](int64_t done, int64_t total) { tell("writing packed weights", done, total); });
  if (!written) {
    return note(true, "no pack file: " + written.error().message + "; running from memory");
  }
  note(false, *written ? "packed weights written to '" + cache_->path() + "'"
                       : "'" + cache_->path() + "' is being written by another process");
}

}  // namespace

int64_t bound_bytes(const std::vector<BoundTensor>& bound, const Backend& backend) {
  int64_t total = 0;
  for (const BoundTensor& tensor : bound) {
    total += tensor.matrix != nullptr ? packed_bytes(*tensor.matrix, backend)
                                      : aligned(static_cast<int64_t>(tensor.source->n_bytes));
  }
  return total;
}

Result<LoadedWeights> load_weights(const Gguf& file, const std::vector<BoundTensor>& bound,
                                   Backend& backend, const LoadOptions& options,
                                   const LoadEvents& events) {
  return Loader(file, bound, backend, options, events).run();
}

}  // namespace bantam
