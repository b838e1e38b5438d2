// The CPU backend's memory and how weights come into it.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "cpu/cpu_backend.h"

namespace bantam {

namespace {

constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kPage = 4096;
constexpr int kMostPackers = 8;            // more only wait for the one that reads
constexpr int64_t kMostBuffers = 8 << 20;  // of all packers; one piece if that is larger

int64_t up_to(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

std::byte* map_memory(int64_t bytes) {
  void* data = ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return data == MAP_FAILED ? nullptr : static_cast<std::byte*>(data);
}

void unmap_memory(std::byte* data, int64_t bytes) {
  if (bytes > 0) ::munmap(data, static_cast<size_t>(bytes));
}

// On a boundary of huge pages: a page less is given back at both ends than was taken.
std::byte* map_huge(int64_t bytes) {
  std::byte* data = map_memory(bytes + kHugePage);
  if (data == nullptr) return nullptr;
  const int64_t head = -reinterpret_cast<intptr_t>(data) & (kHugePage - 1);
  unmap_memory(data, head);
  unmap_memory(data + head + bytes, kHugePage - head);
  ::madvise(data + head, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  return data + head;
}

// Buffers of the packing threads, given back when packing ends.
class Buffers {
 public:
  Buffers(int n, int64_t bytes)
      : stride_(up_to(bytes, kPage)), size_(n * stride_), data_(map_memory(size_)) {}
  ~Buffers() {
    if (data_ != nullptr) unmap_memory(data_, size_);
  }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  std::byte* at(int i) const { return data_ == nullptr ? nullptr : data_ + i * stride_; }
  int64_t bytes() const { return size_; }

 private:
  int64_t stride_, size_;
  std::byte* data_;
};

int64_t piece_bytes(const PackPiece& piece) {
  return piece.n_rows * packed_row_bytes(piece.w->type, piece.w->cols);
}

Error out_of_memory(int64_t bytes, const char* what) {
  return failed("out of memory: cannot take " + std::to_string(bytes >> 20) + " MiB for " + what);
}

}  // namespace

CpuBackend::~CpuBackend() {
  for (const Region& region : regions_) unmap_memory(region.data, region.bytes);
}

Result<std::byte*> CpuBackend::allocate(int64_t bytes, const char* what) {
  CHECK(bytes >= 0);
  // Sized in small pages: a last huge page would be resident as a whole (8B: 4 MiB in all).
  const int64_t size = up_to(std::max<int64_t>(1, bytes), kPage);
  std::byte* data = bytes >= kHugePage ? map_huge(size) : map_memory(size);
  if (data == nullptr) return out_of_memory(bytes, what);
  regions_.push_back({data, size});
  return data;
}

void CpuBackend::zero(std::byte* data, int64_t bytes) {
  pool_.run([&](int thread, int n) {
    const auto part = ThreadPool::split(bytes, thread, n);
    std::memset(data + part.begin, 0, static_cast<size_t>(part.end - part.begin));
  });
}

void CpuBackend::copy(std::byte* to, const std::byte* from, int64_t bytes) {
  pool_.run([&](int thread, int n) {
    const auto part = ThreadPool::split(bytes, thread, n);
    std::memcpy(to + part.begin, from + part.begin, static_cast<size_t>(part.end - part.begin));
  });
}

void CpuBackend::transfer(std::byte* to, const std::byte* from, int64_t bytes) const {
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

void CpuBackend::pack_piece(const PackPiece& piece, const std::byte* rows) const {
  const Matrix& w = *piece.w;
  const int64_t group_bytes = packed_group_bytes(w.type, w.cols);
  const int64_t row_bytes = packed_row_bytes(w.type, w.cols);
  const WeightKernels& kernels = kernels_.weight[static_cast<int>(w.type)];
  std::byte* group = w.data + piece.row0 / kGroupRows * group_bytes;
  for (int row = 0; row < piece.n_rows; row += kGroupRows, group += group_bytes) {
    kernels.pack_group(rows + row * row_bytes, row_bytes, std::min(kGroupRows, piece.n_rows - row),
                       w.cols, group);
  }
}

// Each thread takes its turn at reading and packs what it read while the next one reads. The first
// touch of the target, which zeroes its pages, is part of packing and so spread as well.
Status CpuBackend::pack(std::span<const PackPiece> pieces, const PackReader& read) {
  int64_t largest = 0;
  for (const PackPiece& piece : pieces) {
    CHECK(piece.row0 % kGroupRows == 0 && piece.row0 + piece.n_rows <= piece.w->rows);
    largest = std::max(largest, piece_bytes(piece));
  }
  largest = std::max<int64_t>(1, largest);
  const auto fitting =
      static_cast<int>(std::clamp<int64_t>(kMostBuffers / largest, 1, kMostPackers));
  const int team = std::min(pool_.size(), fitting);
  const Buffers buffers(team, largest);
  if (buffers.at(0) == nullptr) return out_of_memory(buffers.bytes(), "reading");
  std::mutex turn;
  size_t next = 0;
  Status status = Ok{};
  pool_.run(
      [&](int thread, int) {
        std::byte* rows = buffers.at(thread);
        for (;;) {
          std::unique_lock lock(turn);
          if (next == pieces.size() || !status) return;
          const size_t i = next++;
          const PackPiece& piece = pieces[i];
          if (Status got = read(i, {rows, static_cast<size_t>(piece_bytes(piece))}); !got) {
            status = got;
            return;
          }
          lock.unlock();
          pack_piece(piece, rows);
        }
      },
      team);
  return status;
}

}  // namespace bantam
