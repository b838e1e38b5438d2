// A fast 64-bit checksum to notice damaged and foreign files: every change of one 8-byte word
// changes it, any other change all but surely. Not against people who try; refuses nothing.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace bantam {

// Mixes one value into another; both directions of each step can be undone, so no value is lost.
inline uint64_t hash_mix(uint64_t hash, uint64_t value) {
  const uint64_t x = (hash ^ value) * 0x9e3779b97f4a7c15u;
  return std::rotl(x, 29) ^ (x >> 41);
}

// Eight words side by side hide the latency of the multiplications.
inline uint64_t hash_bytes(std::span<const std::byte> bytes, uint64_t seed = 0) {
  constexpr size_t kLanes = 8;
  uint64_t lane[kLanes];
  for (size_t i = 0; i < kLanes; ++i) lane[i] = hash_mix(seed + i, 0x6a09e667f3bcc909u);
  size_t at = 0;
  for (; bytes.size() - at >= sizeof(lane); at += sizeof(lane)) {
    uint64_t word[kLanes];
    std::memcpy(word, bytes.data() + at, sizeof(word));
    for (size_t i = 0; i < kLanes; ++i) {
      lane[i] = std::rotl((lane[i] ^ word[i]) * 0xd1342543de82ef95u, 29);
    }
  }
  uint64_t hash = hash_mix(seed, bytes.size());
  for (const uint64_t x : lane) hash = hash_mix(hash, x);
  for (; at < bytes.size(); at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, bytes.size() - at < 8 ? bytes.size() - at : 8);
    hash = hash_mix(hash, word);
  }
  return hash_mix(hash_mix(hash, hash >> 32), 0x94d049bb133111ebu);
}

}  // namespace bantam
