// plan_attention: total. Every K type x V type x head shape has a plan or one sentence that refuses
// it, before memory is taken. An AttentionPlan is the only way to a KvCache. MemoryPlan: what will
// be taken, in bytes, printed and enforced.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "codec/types.h"

namespace bantam {

class Backend;

struct AttentionShape {
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
};

class AttentionPlan {
 public:
  KvType k() const { return k_; }
  KvType v() const { return v_; }
  const AttentionShape& shape() const { return shape_; }
  int group() const { return shape_.n_heads / shape_.n_kv_heads; }
  // Rule 6: block of the Hadamard rotation, 0 when the type is not rotated.
  int rotation_k() const { return rotation_k_; }
  int rotation_v() const { return rotation_v_; }
  // Bytes of one tile (32 positions of one KV head), and of one page of all KV heads of a layer.
  int64_t tile_bytes_k() const { return tile_bytes_k_; }
  int64_t tile_bytes_v() const { return tile_bytes_v_; }
  int64_t page_bytes() const;
  std::string describe() const;  // one line for `info` and /props

 private:
  friend Result<AttentionPlan> plan_attention(const Backend&, KvType, KvType, AttentionShape);
  AttentionPlan() = default;

  KvType k_ = KvType::q8_0;
  KvType v_ = KvType::q8_0;
  AttentionShape shape_;
  int rotation_k_ = 0;
  int rotation_v_ = 0;
  int64_t tile_bytes_k_ = 0;
  int64_t tile_bytes_v_ = 0;
};

Result<AttentionPlan> plan_attention(const Backend& backend, KvType k, KvType v,
                                     AttentionShape shape);

// The largest power of two that divides head_dim.
int rotation_block(int head_dim);

struct MemoryPlan {
  int64_t weight_bytes = 0;
  int64_t kv_bytes = 0;
  int64_t compute_bytes = 0;
  int64_t rest_bytes = 0;       // tokenizer, code, stacks, sockets
  int64_t available_bytes = 0;  // MemAvailable, 0 when unknown

  int64_t total() const { return weight_bytes + kv_bytes + compute_bytes + rest_bytes; }
};

// MemAvailable of /proc/meminfo, capped by the cgroup's limit; 0 when unknown.
// BANTAM_MEM_AVAILABLE_MIB overrides (tests).
int64_t available_memory_bytes();

}  // namespace bantam
