#include "gguf/parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>

#include "base/limits.h"
#include "gguf/scalar.h"

namespace bantam {

namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF" read as little endian
constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMinKeyBytes = 8 + 1 + 4 + 1;             // length, name, type, value
constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;  // length, name, dims, type, offset
constexpr uint32_t kMaxDims = 4;

constexpr uint32_t byte_swapped(uint32_t x) {
  return (x >> 24) | ((x >> 8) & 0xff00u) | ((x << 8) & 0xff0000u) | (x << 24);
}

std::string quoted(const char* what, std::string_view name) {
  return fmt::format("{} '{}'", what, gguf_printable(name));
}

}  // namespace

Result<Gguf> Gguf::parse(const MappedFile& file) { return GgufParser(file).parse(); }

GgufParser::GgufParser(const MappedFile& file) : file_(file), reader_(file.bytes()) {
  gguf_.file_ = &file;
}

Error GgufParser::bad(const std::string& what, const std::string& found,
                      const std::string& expected, uint64_t at) const {
  return refused(
      fmt::format("'{}': {}: found {}, expected {} (byte {}); the file is damaged or not "
                  "for this build: download or convert it again",
                  file_.path(), what, found, expected, at));
}

Error GgufParser::ends(const std::string& what, uint64_t wanted) const {
  const uint64_t left = file_.size() - std::min<uint64_t>(reader_.offset(), file_.size());
  return bad(what, fmt::format("{} bytes left in the file", left),
             fmt::format("at least {}", wanted), reader_.offset());
}

Result<Gguf> GgufParser::parse() {
  using Step = Status (GgufParser::*)();
  constexpr Step kSteps[] = {
      &GgufParser::header,         &GgufParser::keys,          &GgufParser::unique_keys,
      &GgufParser::read_alignment, &GgufParser::tensors,       &GgufParser::unique_names,
      &GgufParser::resolve_q2_0,   &GgufParser::place_tensors, &GgufParser::disjoint_tensors};
  for (const Step step : kSteps) {
    Status status = (this->*step)();
    if (!status) return status.error();
  }
  return std::move(gguf_);
}

Status GgufParser::check_version(uint32_t version) {
  if (version == 2 || version == 3) return Ok{};
  const std::string expected = "version 2 or 3, little endian";
  if (byte_swapped(version) >= 1 && byte_swapped(version) <= 3) {
    return bad("GGUF version", fmt::format("a big-endian file (version {})", byte_swapped(version)),
               expected, 4);
  }
  if (version == 1) return bad("GGUF version", "version 1 (of 2023)", expected, 4);
  return bad("GGUF version", fmt::format("version {}", version), expected, 4);
}

Status GgufParser::header() {
  constexpr uint64_t kHeaderBytes = 24;
  if (file_.size() < kHeaderBytes) return ends("GGUF header", kHeaderBytes);
  const auto magic = reader_.read<uint32_t>();
  if (magic != kMagic) {
    return bad("magic number", fmt::format("{:#010x}", magic),
               fmt::format("{:#010x} (\"GGUF\")", kMagic), 0);
  }
  gguf_.version_ = reader_.read<uint32_t>();
  if (Status status = check_version(gguf_.version_); !status) return status;
  n_tensors_ = reader_.read<uint64_t>();
  n_keys_ = reader_.read<uint64_t>();
  const uint64_t most_tensors = std::min(kMaxGgufTensors, reader_.remaining() / kMinTensorBytes);
  if (n_tensors_ > most_tensors) {
    return bad("number of tensors", std::to_string(n_tensors_),
               fmt::format("at most {} in a file of {} bytes", most_tensors, file_.size()), 8);
  }
  const uint64_t most_keys = std::min(kMaxGgufKeys, reader_.remaining() / kMinKeyBytes);
  if (n_keys_ > most_keys) {
    return bad("number of keys", std::to_string(n_keys_),
               fmt::format("at most {} in a file of {} bytes", most_keys, file_.size()), 16);
  }
  return Ok{};
}

Status GgufParser::keys() {
  gguf_.entries_.reserve(n_keys_);
  for (uint64_t i = 0; i < n_keys_; ++i) {
    if (Status status = key_value(); !status) return status;
  }
  return Ok{};
}

Status GgufParser::key_text(std::string_view& key) {
  const uint64_t at = reader_.offset();
  if (reader_.remaining() < sizeof(uint64_t)) return ends("key length", sizeof(uint64_t));
  const auto length = reader_.read<uint64_t>();
  if (length == 0 || length > kMaxKeyBytes) {
    return bad("key length", std::to_string(length), fmt::format("1 to {}", kMaxKeyBytes), at);
  }
  if (length > reader_.remaining()) return ends("key", length);
  key = reader_.read_text(length);
  return Ok{};
}

Status GgufParser::key_value() {
  std::string_view key;
  if (Status status = key_text(key); !status) return status;
  const uint64_t at = reader_.offset();
  if (reader_.remaining() < sizeof(uint32_t)) return ends(quoted("key", key), sizeof(uint32_t));
  const auto type = reader_.read<uint32_t>();
  if (type >= kNumGgufTypes) {
    return bad(quoted("key", key), fmt::format("value type {}", type),
               fmt::format("a type from 0 to {}", kNumGgufTypes - 1), at);
  }
  Gguf::Entry entry;
  entry.offset = reader_.offset();
  entry.key_length = static_cast<uint16_t>(key.size());
  entry.type = static_cast<uint8_t>(type);
  Status status = Ok{};
  if (static_cast<GgufType>(type) == GgufType::string) {
    status = string_value(key, entry);
  } else if (static_cast<GgufType>(type) == GgufType::array) {
    status = array_value(key, entry);
  } else {
    status = scalar_value(key, entry);
  }
  if (status) gguf_.entries_.push_back(entry);
  return status;
}

Status GgufParser::scalar_value(std::string_view key, Gguf::Entry& entry) {
  const auto type = static_cast<GgufType>(entry.type);
  const size_t size = gguf_scalar_bytes(type);
  if (reader_.remaining() < size) return ends(quoted("key", key), size);
  const std::string_view raw = reader_.read_text(size);
  std::memcpy(&entry.n, raw.data(), size);
  if (type == GgufType::boolean && entry.n > 1) {
    return bad(quoted("key", key), fmt::format("bool {}", entry.n), "0 or 1", entry.offset);
  }
  return Ok{};
}

Status GgufParser::string_value(std::string_view key, Gguf::Entry& entry) {
  if (reader_.remaining() < sizeof(uint64_t)) return ends(quoted("key", key), sizeof(uint64_t));
  entry.n = reader_.read<uint64_t>();
  if (entry.n > reader_.remaining()) {
    return bad(quoted("key", key), fmt::format("a string of {} bytes", entry.n),
               fmt::format("at most the {} bytes left", reader_.remaining()), entry.offset);
  }
  reader_.skip(entry.n);
  return Ok{};
}

Status GgufParser::array_value(std::string_view key, Gguf::Entry& entry) {
  constexpr uint64_t kPrefix = sizeof(uint32_t) + sizeof(uint64_t);
  if (reader_.remaining() < kPrefix) return ends(quoted("key", key), kPrefix);
  const auto element = reader_.read<uint32_t>();
  if (element >= kNumGgufTypes) {
    return bad(quoted("key", key), fmt::format("array element type {}", element),
               fmt::format("a type from 0 to {}", kNumGgufTypes - 1), entry.offset);
  }
  if (static_cast<GgufType>(element) == GgufType::array) {
    return bad(quoted("key", key), "an array of arrays", "an array of scalars or strings",
               entry.offset);
  }
  entry.element = static_cast<uint8_t>(element);
  entry.n = reader_.read<uint64_t>();
  const size_t scalar = gguf_scalar_bytes(static_cast<GgufType>(element));
  const uint64_t smallest = scalar != 0 ? scalar : sizeof(uint64_t);
  if (entry.n > reader_.remaining() / smallest) {
    return bad(quoted("key", key), fmt::format("an array of {} elements", entry.n),
               fmt::format("at most {} in the {} bytes left", reader_.remaining() / smallest,
                           reader_.remaining()),
               entry.offset);
  }
  const uint64_t start = reader_.offset();
  if (scalar != 0) {
    reader_.skip(entry.n * scalar);
  } else if (Status status = array_elements(key, entry); !status) {
    return status;
  }
  entry.n_bytes = reader_.offset() - start;
  if (static_cast<GgufType>(element) != GgufType::boolean) return Ok{};
  for (uint64_t i = 0; i < entry.n; ++i) {
    const int value = std::to_integer<int>(file_.bytes()[start + i]);
    if (value > 1) {
      return bad(quoted("key", key), fmt::format("bool {}", value), "0 or 1", start + i);
    }
  }
  return Ok{};
}

Status GgufParser::array_elements(std::string_view key, const Gguf::Entry& entry) {
  for (uint64_t i = 0; i < entry.n; ++i) {
    const uint64_t at = reader_.offset();
    if (reader_.remaining() < sizeof(uint64_t)) {
      return ends(fmt::format("{} element {}", quoted("key", key), i), sizeof(uint64_t));
    }
    const auto length = reader_.read<uint64_t>();
    if (length > reader_.remaining()) {
      return bad(fmt::format("{} element {}", quoted("key", key), i),
                 fmt::format("a string of {} bytes", length),
                 fmt::format("at most the {} bytes left", reader_.remaining()), at);
    }
    reader_.skip(length);
  }
  return Ok{};
}

Status GgufParser::unique_keys() {
  auto& entries = gguf_.entries_;
  std::sort(entries.begin(), entries.end(), [&](const Gguf::Entry& a, const Gguf::Entry& b) {
    const int order = gguf_.key_of(a).compare(gguf_.key_of(b));
    return order != 0 ? order < 0 : a.offset < b.offset;
  });
  for (size_t i = 1; i < entries.size(); ++i) {
    if (gguf_.key_of(entries[i - 1]) != gguf_.key_of(entries[i])) continue;
    return bad(quoted("key", gguf_.key_of(entries[i])), "it twice", "each key once",
               entries[i].offset);
  }
  return Ok{};
}

Status GgufParser::read_alignment() {
  constexpr std::string_view kKey = "general.alignment";
  const Gguf::Entry* entry = gguf_.find(kKey);
  if (entry == nullptr) return Ok{};
  if (static_cast<GgufType>(entry->type) != GgufType::u32) {
    return gguf_.wrong_type(*entry, "uint32");
  }
  if (!std::has_single_bit(entry->n) || entry->n > kMaxGgufAlignment) {
    return bad(quoted("key", kKey), std::to_string(entry->n),
               fmt::format("a power of two up to {}", kMaxGgufAlignment), entry->offset);
  }
  alignment_ = entry->n;
  return Ok{};
}

Status GgufParser::tensors() {
  const uint64_t most = reader_.remaining() / kMinTensorBytes;
  if (n_tensors_ > most) {
    return bad("number of tensors", std::to_string(n_tensors_),
               fmt::format("at most {} in the {} bytes left", most, reader_.remaining()), 8);
  }
  gguf_.tensors_.reserve(n_tensors_);
  for (uint64_t i = 0; i < n_tensors_; ++i) {
    if (Status status = tensor(); !status) return status;
  }
  return Ok{};
}

Status GgufParser::tensor() {
  GgufTensor tensor;
  if (Status status = key_text(tensor.name); !status) return status;
  if (Status status = tensor_dims(tensor); !status) return status;
  const uint64_t at = reader_.offset();
  constexpr uint64_t kRest = sizeof(uint32_t) + sizeof(uint64_t);
  if (reader_.remaining() < kRest) return ends(quoted("tensor", tensor.name), kRest);
  const Result<WeightType> type = weight_type_of(reader_.read<uint32_t>());
  if (!type) {
    return refused(fmt::format("'{}': {}: {} (byte {}); use a file of another quantization",
                               file_.path(), quoted("tensor", tensor.name), type.error().message,
                               at));
  }
  tensor.type = *type;
  tensor.offset = reader_.read<uint64_t>();
  if (Status status = tensor_range(tensor, at); !status) return status;
  gguf_.tensors_.push_back(tensor);
  return Ok{};
}

Status GgufParser::tensor_dims(GgufTensor& tensor) {
  const uint64_t at = reader_.offset();
  const std::string what = quoted("tensor", tensor.name);
  if (reader_.remaining() < sizeof(uint32_t)) return ends(what, sizeof(uint32_t));
  const auto n_dims = reader_.read<uint32_t>();
  if (n_dims < 1 || n_dims > kMaxDims) {
    return bad(what, fmt::format("{} dimensions", n_dims), fmt::format("1 to {}", kMaxDims), at);
  }
  if (reader_.remaining() < n_dims * sizeof(uint64_t)) {
    return ends(what, n_dims * sizeof(uint64_t));
  }
  tensor.n_dims = static_cast<int>(n_dims);
  constexpr auto kMost = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  uint64_t values = 1;
  for (uint32_t d = 0; d < n_dims; ++d) {
    const uint64_t dim_at = reader_.offset();
    const auto dim = reader_.read<uint64_t>();
    if (dim == 0 || dim > kMost / values) {
      return bad(what, fmt::format("dimension {} of {}", d, dim),
                 fmt::format("1 to {} (the product of all must fit 63 bits)", kMost / values),
                 dim_at);
    }
    values *= dim;
    tensor.dims[d] = static_cast<int64_t>(dim);
  }
  return Ok{};
}

// Everything that does not need the start of the data, which is known only after the last tensor.
Status GgufParser::tensor_range(GgufTensor& tensor, uint64_t at) {
  const std::string what = quoted("tensor", tensor.name);
  const WeightTypeInfo& type = info(tensor.type);
  if (tensor.dims[0] % type.block_values != 0) {
    return bad(what, fmt::format("{} columns", tensor.dims[0]),
               fmt::format("a multiple of {} for {}", type.block_values, display_name(tensor.type)),
               at);
  }
  uint64_t blocks = static_cast<uint64_t>(tensor.dims[0] / type.block_values);
  for (int d = 1; d < tensor.n_dims; ++d) blocks *= static_cast<uint64_t>(tensor.dims[d]);
  const auto block_bytes = static_cast<uint64_t>(type.block_bytes);
  if (blocks > file_.size() / block_bytes) {
    return bad(
        what, fmt::format("{} blocks of {} bytes", blocks, block_bytes),
        fmt::format("at most {} in a file of {} bytes", file_.size() / block_bytes, file_.size()),
        at);
  }
  tensor.n_bytes = blocks * block_bytes;
  if (tensor.offset % alignment_ != 0) {
    return bad(what, fmt::format("data offset {}", tensor.offset),
               fmt::format("a multiple of {}", alignment_), at + sizeof(uint32_t));
  }
  return Ok{};
}

Status GgufParser::unique_names() {
  auto& by_name = gguf_.by_name_;
  by_name.resize(gguf_.tensors_.size());
  std::iota(by_name.begin(), by_name.end(), 0u);
  const auto name = [&](uint32_t i) { return gguf_.tensors_[i].name; };
  std::sort(by_name.begin(), by_name.end(), [&](uint32_t a, uint32_t b) {
    const int order = name(a).compare(name(b));
    return order != 0 ? order < 0 : a < b;
  });
  for (size_t i = 1; i < by_name.size(); ++i) {
    if (name(by_name[i - 1]) != name(by_name[i])) continue;
    const auto at = reinterpret_cast<const std::byte*>(name(by_name[i]).data());
    return bad(quoted("tensor", name(by_name[i])), "it twice", "each tensor once",
               static_cast<uint64_t>(at - file_.bytes().data()));
  }
  return Ok{};
}

// Type id 42 means blocks of 64 in mainline files and of 128 in PrismML's, which are shorter. When
// the longer form would run into the next tensor or beyond the file, the file has the shorter one.
Status GgufParser::resolve_q2_0() {
  const uint64_t end = reader_.offset();
  const uint64_t start = std::min((end + alignment_ - 1) & ~(alignment_ - 1), file_.size());
  std::vector<uint64_t> starts = {file_.size() - start};
  for (const GgufTensor& tensor : gguf_.tensors_) starts.push_back(tensor.offset);
  std::sort(starts.begin(), starts.end());
  bool fits = true;
  for (const GgufTensor& tensor : gguf_.tensors_) {
    if (tensor.type != WeightType::q2_0) continue;
    const auto next = std::upper_bound(starts.begin(), starts.end(), tensor.offset);
    fits = fits && next != starts.end() && tensor.n_bytes <= *next - tensor.offset;
  }
  if (fits) return Ok{};
  for (GgufTensor& tensor : gguf_.tensors_) {
    if (tensor.type != WeightType::q2_0 || tensor.dims[0] % 128 != 0) continue;
    tensor.type = WeightType::pq2_0;
    tensor.n_bytes = tensor.n_bytes / 36 * 34;
  }
  return Ok{};
}

Status GgufParser::place_tensors() {
  const uint64_t end = reader_.offset();
  gguf_.data_offset_ = (end + alignment_ - 1) & ~(alignment_ - 1);
  const uint64_t start = std::min(gguf_.data_offset_, file_.size());
  const uint64_t left = file_.size() - start;
  for (GgufTensor& tensor : gguf_.tensors_) {
    if (tensor.offset > left || tensor.n_bytes > left - tensor.offset) {
      return bad(
          quoted("tensor", tensor.name),
          fmt::format("{} bytes at data offset {}", tensor.n_bytes, tensor.offset),
          fmt::format("a range inside the {} bytes of data (is the download complete?)", left),
          start);
    }
    tensor.offset += gguf_.data_offset_;
  }
  return Ok{};
}

Status GgufParser::disjoint_tensors() {
  const auto& tensors = gguf_.tensors_;
  std::vector<uint32_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return tensors[a].offset < tensors[b].offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    const GgufTensor& before = tensors[order[i - 1]];
    const GgufTensor& after = tensors[order[i]];
    if (before.offset + before.n_bytes <= after.offset) continue;
    return bad(
        quoted("tensor", after.name),
        fmt::format("data at byte {} inside {}", after.offset, quoted("tensor", before.name)),
        fmt::format("byte {} or later", before.offset + before.n_bytes), after.offset);
  }
  return Ok{};
}

}  // namespace bantam
