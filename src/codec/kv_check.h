// What NUMERICS rule 7 promises of the bytes of a tile, for bytes that come from outside: kernels
// rely on it. Owns nothing; answers with the first broken rule.
#pragma once

#include <cstddef>

#include "codec/types.h"

namespace bantam {

// Null, or what is wrong with a K or V tile of which the first n_positions (0 to 32) are in use.
const char* kv_tile_fault(KvType type, bool key, int head_dim, int n_positions,
                          const std::byte* tile);

}  // namespace bantam
