// The two lists of formats as enums with their facts, expanded from weight_types.def and
// kv_types.def. Refuses names and ids outside them, by name where the GGUF world has one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace bantam {

enum class WeightType : uint8_t {
#define WEIGHT_TYPE(name, id, values, bytes, act, i16) name,
#include "codec/weight_types.def"
#undef WEIGHT_TYPE
};

enum class KvType : uint8_t {
#define KV_TYPE(name, bytes32, quantized, minimum) name,
#include "codec/kv_types.def"
#undef KV_TYPE
};

struct WeightTypeInfo {
  const char* name;
  uint32_t gguf_id;
  int block_values;
  int block_bytes;
  int act_block;  // 0: unrounded float activations
  bool act_i16;   // may take 16-bit activations
};

struct KvTypeInfo {
  const char* name;
  int bytes_per_32;
  bool quantized;
  bool has_minimum;
};

// Internal linkage: ISA files include this header and must not emit weak symbols.
static constexpr WeightTypeInfo kWeightTypes[] = {
#define WEIGHT_TYPE(name, id, values, bytes, act, i16) {#name, id, values, bytes, act, i16},
#include "codec/weight_types.def"
#undef WEIGHT_TYPE
};

static constexpr KvTypeInfo kKvTypes[] = {
#define KV_TYPE(name, bytes32, quantized, minimum) {#name, bytes32, quantized, minimum},
#include "codec/kv_types.def"
#undef KV_TYPE
};

static constexpr int kNumWeightTypes =
    static_cast<int>(sizeof(kWeightTypes) / sizeof(kWeightTypes[0]));
static constexpr int kNumKvTypes = static_cast<int>(sizeof(kKvTypes) / sizeof(kKvTypes[0]));

static constexpr const WeightTypeInfo& info(WeightType type) {
  return kWeightTypes[static_cast<int>(type)];
}
static constexpr const KvTypeInfo& info(KvType type) { return kKvTypes[static_cast<int>(type)]; }

// "Q1_0" for messages: the upper-case spelling that GGUF tools print.
std::string display_name(WeightType type);
// The GGUF name of any type id ever published ("Q2_K", "IQ2_XXS", ...), or "unknown type N".
std::string gguf_type_name(uint32_t gguf_id);
// The runnable type of an id, or a refusal that names the type and lists what runs.
Result<WeightType> weight_type_of(uint32_t gguf_id);
// Parses "q8_0"; anything else is refused with the list of types.
Result<KvType> parse_kv_type(std::string_view name);
std::string kv_type_list();

}  // namespace bantam
