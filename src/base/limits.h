// Every maximum in one place. Refuses nothing by itself: readers compare against these and say so.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bantam {

inline constexpr int kMaxThreads = 256;
inline constexpr int kMaxSequences = 64;
inline constexpr int kMaxContext = 1 << 20;
// How far the positions of a sequence may be shifted in all, so that they stay exact.
inline constexpr int kMaxMoved = 1 << 30;
inline constexpr int kMaxLayers = 512;
inline constexpr int kMaxDim = 1 << 20;
inline constexpr int kMaxVocab = 1 << 22;
inline constexpr int kMaxHeadDim = 256;
inline constexpr int kMaxHeads = 1024;
inline constexpr int kMaxGroup = 64;  // query heads for each KV head

inline constexpr int kTilePositions = 32;
inline constexpr int kPageTiles = 8;
inline constexpr int kPagePositions = kTilePositions * kPageTiles;
static_assert(kPagePositions == 256);

inline constexpr size_t kMaxHttpHeaderBytes = 32 << 10;
inline constexpr size_t kMaxHttpBodyBytes = 8 << 20;
inline constexpr int kMaxJsonDepth = 64;
inline constexpr size_t kMaxStopStrings = 64;

inline constexpr uint64_t kMaxGgufTensors = 1 << 16;
inline constexpr uint64_t kMaxGgufKeys = 1 << 16;
inline constexpr uint64_t kMaxGgufAlignment = 1 << 20;

}  // namespace bantam
