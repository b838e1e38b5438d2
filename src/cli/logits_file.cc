#include "cli/logits_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "base/bytes.h"
#include "base/limits.h"

namespace bantam {

namespace {

constexpr char kMagic[] = "_logits_";

// p of the most probable token is at least 1 / n_vocab, and e^-16 of it is what each token below
// the range is raised to; half a code is 16 / 65535 / 2 of a p.
double sum_tolerance(size_t n_vocab) { return 0.01 + static_cast<double>(n_vocab) * 1.2e-7; }

}  // namespace

uint64_t LogitsShape::file_bytes() const {
  const uint64_t rows = uint64_t(n_chunk) * uint64_t(n_scored());
  return kLogitsHeaderBytes + tokens_bytes() + rows * row_bytes();
}

Result<LogitsShape> parse_logits_header(std::span<const std::byte> head, uint64_t file_bytes) {
  ByteReader reader(head);
  const std::string_view magic = reader.read_text(sizeof(kMagic) - 1);
  if (reader.failed() || magic != kMagic) {
    return refused("this is no file of --kl-divergence-base: it does not start with '_logits_'");
  }
  LogitsShape shape;
  const auto n_ctx = reader.read<int32_t>(), n_vocab = reader.read<int32_t>(),
             n_chunk = reader.read<int32_t>();
  if (reader.failed()) {
    return refused(fmt::format("the file is cut: got {} bytes, expected a header of {}", file_bytes,
                               kLogitsHeaderBytes));
  }
  constexpr int kLeast = 4;
  if (n_ctx < kLeast || n_ctx > kMaxContext)
    return refused(
        fmt::format("got a context of {}, expected {} to {}", n_ctx, kLeast, kMaxContext));
  if (n_vocab < 1 || n_vocab > kMaxVocab)
    return refused(fmt::format("got a vocabulary of {}, expected 1 to {}", n_vocab, kMaxVocab));
  if (n_chunk < 1) return refused(fmt::format("got {} chunks, expected at least 1", n_chunk));
  shape.n_ctx = n_ctx;
  shape.n_vocab = n_vocab;
  shape.n_chunk = n_chunk;
  // At most 2^31 * 2^20 rows of 2^23 bytes would overflow; so many chunks are no file's.
  if (n_chunk > (1 << 20)) {
    return refused(fmt::format("got {} chunks, expected at most {}", n_chunk, 1 << 20));
  }
  if (shape.file_bytes() != file_bytes) {
    return refused(fmt::format(
        "the file is cut or damaged: got {} bytes, expected {} ({} chunks of {} tokens, vocabulary "
        "{})",
        file_bytes, shape.file_bytes(), n_chunk, n_ctx, n_vocab));
  }
  return shape;
}

Result<std::vector<int32_t>> parse_logits_tokens(std::span<const std::byte> bytes,
                                                 const LogitsShape& shape) {
  CHECK(bytes.size() == shape.tokens_bytes());
  std::vector<int32_t> tokens(bytes.size() / 4);
  std::memcpy(tokens.data(), bytes.data(), bytes.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < shape.n_vocab) continue;
    return refused(fmt::format("the file is damaged: token {} is {}, expected 0 to {}", i,
                               tokens[i], shape.n_vocab - 1));
  }
  return tokens;
}

Status decode_logits_row(std::span<const std::byte> row, std::span<float> out) {
  float scale = 0, lowest = 0;
  CHECK(row.size() >= 8 + 2 * out.size());
  std::memcpy(&scale, row.data(), 4);
  std::memcpy(&lowest, row.data() + 4, 4);
  if (!(scale >= 0 && scale <= kLogitsRange) || !(lowest <= 0 && lowest >= -1e4f)) {
    return refused(
        fmt::format("got the scale {} and the lowest log-probability {}, expected 0 to "
                    "{} and at most 0",
                    scale, lowest, kLogitsRange));
  }
  double sum = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t code = 0;
    std::memcpy(&code, row.data() + 8 + 2 * i, 2);
    out[i] = static_cast<float>(lowest + double(scale) * code);
    sum += std::exp(out[i]);
  }
  if (!(std::fabs(sum - 1) <= sum_tolerance(out.size()))) {
    return refused(fmt::format("the probabilities of a position sum to {:.4f}, expected 1", sum));
  }
  return Ok{};
}

Status encode_logits_row(std::span<const float> logits, std::span<std::byte> row) {
  float highest = logits[0], least = logits[0];
  bool finite = true;
  for (const float x : logits) {
    finite = finite && std::isfinite(x);
    highest = std::max(highest, x);
    least = std::min(least, x);
  }
  if (!finite) return failed("the model gave logits that are not finite");
  least = std::max(least, highest - kLogitsRange);
  double sum = 0;
  for (const float x : logits) sum += std::exp(x - highest);
  const float scale = (highest - least) / 65535.0f;
  const float lowest = least - highest - static_cast<float>(std::log(sum));
  std::fill(row.begin(), row.end(), std::byte{0});
  std::memcpy(row.data(), &scale, 4);
  std::memcpy(row.data() + 4, &lowest, 4);
  if (scale == 0) return Ok{};
  for (size_t i = 0; i < logits.size(); ++i) {
    const double steps = std::nearbyint((double(logits[i]) - least) / scale);
    const auto code = static_cast<uint16_t>(std::clamp(steps, 0.0, 65535.0));
    std::memcpy(row.data() + 8 + 2 * i, &code, 2);
  }
  return Ok{};
}

Result<std::unique_ptr<LogitsReader>> LogitsReader::open(const std::string& path) {
  Result<MappedFile> file = MappedFile::open(path);
  if (!file) return file.error();
  std::unique_ptr<LogitsReader> reader(new LogitsReader(std::move(*file)));
  const auto in_file = [&](const Error& error) {
    return Error{error.kind, "'" + path + "': " + error.message};
  };
  const uint64_t size = reader->file_.size();
  std::vector<std::byte> head(static_cast<size_t>(std::min<uint64_t>(size, kLogitsHeaderBytes)));
  if (Status status = reader->file_.read(0, head); !status) return status.error();
  Result<LogitsShape> shape = parse_logits_header(head, size);
  if (!shape) return in_file(shape.error());
  reader->shape_ = *shape;
  std::vector<std::byte> bytes(static_cast<size_t>(shape->tokens_bytes()));
  if (Status status = reader->file_.read(kLogitsHeaderBytes, bytes); !status) return status.error();
  Result<std::vector<int32_t>> tokens = parse_logits_tokens(bytes, *shape);
  if (!tokens) return in_file(tokens.error());
  reader->tokens_ = std::move(*tokens);
  reader->row_.resize(static_cast<size_t>(shape->row_bytes()));
  reader->file_.read_in_order();
  return reader;
}

Status LogitsReader::read_row(int64_t i, std::span<float> out) {
  CHECK(i >= 0 && i < int64_t{shape_.n_chunk} * shape_.n_scored());
  CHECK(static_cast<int>(out.size()) == shape_.n_vocab);
  const uint64_t at = kLogitsHeaderBytes + shape_.tokens_bytes() + uint64_t(i) * row_.size();
  if (Status status = file_.read(at, row_); !status) return status;
  Status status = decode_logits_row(row_, out);
  if (status) return status;
  return Error{status.error().kind, "'" + file_.path() + "' is damaged at row " +
                                        std::to_string(i) + ": " + status.error().message};
}

LogitsWriter::LogitsWriter(const std::string& path, const LogitsShape& shape)
    : path_(path),
      shape_(shape),
      rows_left_(int64_t{shape.n_chunk} * shape.n_scored()),
      row_(static_cast<size_t>(shape.row_bytes())) {}

LogitsWriter::~LogitsWriter() {
  if (fd_ < 0) return;
  if (!unfinished_.empty()) ::unlink(unfinished_.c_str());
  ::close(fd_);
}

Error LogitsWriter::cannot(const char* what) const {
  return failed(std::string("cannot ") + what + " '" + path_ + "': " + std::strerror(errno));
}

Status LogitsWriter::open_file() {
  struct stat there {};
  const bool exists = ::stat(path_.c_str(), &there) == 0;
  if (exists && S_ISDIR(there.st_mode)) return refused("'" + path_ + "' is a folder");
  if (exists && !S_ISREG(there.st_mode)) {
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
    return fd_ < 0 ? Status(cannot("write")) : Status(Ok{});
  }
  const std::string name = path_ + ".unfinished";
  fd_ = ::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd_ < 0) return cannot("write");
  // One writer: what a killed one left is taken over, its lock ended with it.
  struct stat named {
  }, opened{};
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0 || ::stat(name.c_str(), &named) != 0 ||
      ::fstat(fd_, &opened) != 0 || named.st_ino != opened.st_ino) {
    return failed("cannot write '" + path_ + "': another process is writing it");
  }
  unfinished_ = name;
  if (::ftruncate(fd_, 0) != 0) return cannot("empty");
  // A full disk is noticed before the model runs, where the file system can tell.
  const int full = ::fallocate(fd_, 0, 0, static_cast<off_t>(shape_.file_bytes()));
  if (full != 0 && errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR) {
    return cannot("write");
  }
  return Ok{};
}

Status LogitsWriter::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return cannot("write");
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return Ok{};
}

Result<std::unique_ptr<LogitsWriter>> LogitsWriter::create(const std::string& path,
                                                           const LogitsShape& shape,
                                                           std::span<const int32_t> tokens) {
  CHECK(tokens.size() * 4 == shape.tokens_bytes());
  std::unique_ptr<LogitsWriter> writer(new LogitsWriter(path, shape));
  if (Status status = writer->open_file(); !status) return status.error();
  std::byte head[kLogitsHeaderBytes];
  const int32_t numbers[3] = {shape.n_ctx, shape.n_vocab, shape.n_chunk};
  std::memcpy(head, kMagic, 8);
  std::memcpy(head + 8, numbers, sizeof(numbers));
  if (Status status = writer->write(head); !status) return status.error();
  if (Status status = writer->write(std::as_bytes(tokens)); !status) return status.error();
  return writer;
}

Status LogitsWriter::add_row(std::span<const float> logits) {
  CHECK(rows_left_ > 0 && static_cast<int>(logits.size()) == shape_.n_vocab);
  --rows_left_;
  if (Status status = encode_logits_row(logits, row_); !status) return status;
  return write(row_);
}

Status LogitsWriter::finish() {
  CHECK(rows_left_ == 0);
  if (!unfinished_.empty()) {
    if (::fsync(fd_) != 0) return cannot("write");
    if (::rename(unfinished_.c_str(), path_.c_str()) != 0) return cannot("rename to");
    unfinished_.clear();
  }
  const int fd = fd_;
  fd_ = -1;
  return ::close(fd) == 0 ? Status(Ok{}) : Status(cannot("write"));
}

}  // namespace bantam
