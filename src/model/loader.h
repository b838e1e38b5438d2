// Brings bound tensors into memory: read and packed as one stream, or mapped from a pack file
// (pack_cache.h). At any time there is one copy of the weights plus at most 8 MiB of buffers (or 16
// rows of the widest matrix, if those are more), and no more of the file in the page cache than
// there is room for. Refuses nothing of its own; a pack file
// that cannot be used or written is a note, not an error.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/mapped_file.h"
#include "base/result.h"
#include "gguf/gguf.h"
#include "model/weights.h"

namespace bantam {

struct LoadOptions {
  std::string pack_cache;  // folder; empty: no pack files
  int64_t keep_bytes = 0;  // of files read or written that may stay in the page cache
};

// What loading says while it runs; each may be empty. Calls come one at a time, from any thread.
struct LoadEvents {
  std::function<void(const char* what, int64_t done, int64_t total)> progress;  // bytes
  std::function<void(bool warning, const std::string& text)> note;
};

struct LoadReport {
  double seconds = 0;
  int64_t read_bytes = 0;  // of the model file
  std::string mapped;      // the pack file in use, or empty
};

struct LoadedWeights {
  std::optional<MappedFile> pack;  // holds the matrices when set
  LoadReport report;
};

// Bytes that the bound tensors take on the backend.
int64_t bound_bytes(const std::vector<BoundTensor>& bound, const Backend& backend);

Result<LoadedWeights> load_weights(const Gguf& file, const std::vector<BoundTensor>& bound,
                                   Backend& backend, const LoadOptions& options,
                                   const LoadEvents& events);

}  // namespace bantam
