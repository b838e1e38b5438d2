#include "backend/plan.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "backend/backend.h"
#include "base/limits.h"
#include "codec/kv_layout.h"

namespace bantam {

namespace {

Status check_shape(const AttentionShape& shape) {
  if (shape.n_heads < 1 || shape.n_heads > kMaxHeads || shape.n_kv_heads < 1) {
    return refused("attention with " + std::to_string(shape.n_heads) + " query heads and " +
                   std::to_string(shape.n_kv_heads) + " KV heads is not supported (1 to " +
                   std::to_string(kMaxHeads) + ")");
  }
  if (shape.n_heads % shape.n_kv_heads != 0 || shape.n_heads / shape.n_kv_heads > kMaxGroup) {
    return refused(std::to_string(shape.n_heads) + " query heads over " +
                   std::to_string(shape.n_kv_heads) +
                   " KV heads: expected a whole number of query heads for each KV head, at most " +
                   std::to_string(kMaxGroup));
  }
  if (shape.head_dim < kTilePositions || shape.head_dim > kMaxHeadDim || shape.head_dim % 32 != 0) {
    return refused("head size " + std::to_string(shape.head_dim) +
                   " is not supported: expected a multiple of 32 from 32 to " +
                   std::to_string(kMaxHeadDim));
  }
  return Ok{};
}

// A number of bytes in a file of one number, or of a "Key:   N kB" line; -1 when absent or "max".
int64_t read_limit(const char* path) {
  std::ifstream file(path);
  int64_t value = -1;
  return file >> value ? value : -1;
}

int64_t read_meminfo() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  int64_t kib = 0;
  while (file >> key >> kib) {
    if (key == "MemAvailable:") return kib << 10;
    file.ignore(256, '\n');
  }
  return 0;
}

int64_t cgroup_available() {
  const int64_t limit = read_limit("/sys/fs/cgroup/memory.max");
  const int64_t used = read_limit("/sys/fs/cgroup/memory.current");
  return limit > 0 && used >= 0 && limit > used ? limit - used : 0;
}

}  // namespace

int rotation_block(int head_dim) { return head_dim & -head_dim; }

int64_t AttentionPlan::page_bytes() const {
  return shape_.n_kv_heads * int64_t{kPageTiles} * (tile_bytes_k_ + tile_bytes_v_);
}

std::string AttentionPlan::describe() const {
  std::string text = std::string("K ") + info(k_).name + (rotation_k_ > 0 ? " rotated" : "") +
                     ", V " + info(v_).name + (rotation_v_ > 0 ? " rotated" : "");
  return text + ", " + std::to_string(shape_.n_heads) + " heads over " +
         std::to_string(shape_.n_kv_heads) + " KV heads of " + std::to_string(shape_.head_dim);
}

Result<AttentionPlan> plan_attention(const Backend& backend, KvType k, KvType v,
                                     AttentionShape shape) {
  if (Status status = check_shape(shape); !status) return status.error();
  if (Status status = backend.attention_support(k, v, shape); !status) return status.error();
  AttentionPlan plan;
  plan.k_ = k;
  plan.v_ = v;
  plan.shape_ = shape;
  plan.rotation_k_ = info(k).quantized ? rotation_block(shape.head_dim) : 0;
  plan.rotation_v_ = info(v).quantized ? rotation_block(shape.head_dim) : 0;
  plan.tile_bytes_k_ = kv_tile_bytes(info(k).bytes_per_32, shape.head_dim);
  plan.tile_bytes_v_ = kv_tile_bytes(info(v).bytes_per_32, shape.head_dim);
  return plan;
}

int64_t available_memory_bytes() {
  if (const char* forced = std::getenv("BANTAM_MEM_AVAILABLE_MIB");
      forced != nullptr && *forced != '\0') {
    return std::strtoll(forced, nullptr, 10) << 20;
  }
  const int64_t free_bytes = read_meminfo();
  const int64_t group_bytes = cgroup_available();
  return group_bytes > 0 && group_bytes < free_bytes ? group_bytes : free_bytes;
}

}  // namespace bantam
