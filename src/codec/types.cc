#include "codec/types.h"

#include <cctype>

namespace bantam {

namespace {

struct PublishedType {
  uint32_t id;
  const char* name;
};

// Ids as published in the GGUF world, so that a refusal can name what the file holds.
constexpr PublishedType kPublished[] = {
    {0, "F32"},     {1, "F16"},      {2, "Q4_0"},    {3, "Q4_1"},     {4, "Q4_2"},
    {5, "Q4_3"},    {6, "Q5_0"},     {7, "Q5_1"},    {8, "Q8_0"},     {9, "Q8_1"},
    {10, "Q2_K"},   {11, "Q3_K"},    {12, "Q4_K"},   {13, "Q5_K"},    {14, "Q6_K"},
    {15, "Q8_K"},   {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"},
    {20, "IQ4_NL"}, {21, "IQ3_S"},   {22, "IQ2_S"},  {23, "IQ4_XS"},  {24, "I8"},
    {25, "I16"},    {26, "I32"},     {27, "I64"},    {28, "F64"},     {29, "IQ1_M"},
    {30, "BF16"},   {34, "TQ1_0"},   {35, "TQ2_0"},  {39, "MXFP4"},   {40, "NVFP4"},
    {41, "Q1_0"},   {42, "Q2_0"},    {142, "PQ2_0"}, {143, "PTQ1_0"},
};

}  // namespace

std::string display_name(WeightType type) { return gguf_type_name(info(type).gguf_id); }

std::string gguf_type_name(uint32_t gguf_id) {
  for (const PublishedType& type : kPublished) {
    if (type.id == gguf_id) return type.name;
  }
  return "unknown type " + std::to_string(gguf_id);
}

Result<WeightType> weight_type_of(uint32_t gguf_id) {
  std::string runnable;
  for (int i = 0; i < kNumWeightTypes; ++i) {
    if (kWeightTypes[i].gguf_id == gguf_id) return static_cast<WeightType>(i);
    if (i > 0) runnable += ' ';
    runnable += gguf_type_name(kWeightTypes[i].gguf_id);
  }
  return refused("weight type " + gguf_type_name(gguf_id) + " (id " + std::to_string(gguf_id) +
                 ") is not supported; this build runs " + runnable);
}

std::string kv_type_list() {
  std::string list;
  for (const KvTypeInfo& type : kKvTypes) {
    if (!list.empty()) list += ' ';
    list += type.name;
  }
  return list;
}

Result<KvType> parse_kv_type(std::string_view name) {
  for (int i = 0; i < kNumKvTypes; ++i) {
    if (name == kKvTypes[i].name) return static_cast<KvType>(i);
  }
  return refused("Unsupported cache type: " + std::string(name) + " (choose one of " +
                 kv_type_list() + ")");
}

}  // namespace bantam
