// Packers of every instruction set over every weight type: byte for byte what the plain packer
// makes, for every number of present rows, from unaligned sources, nothing written outside the
// group and nothing read outside the rows (the sanitizer sees it: sources end where the heap does).
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cpu/isa.h"
#include "tests/support/oracle_pack.h"

namespace bantam {
namespace {

constexpr std::byte kGuard{0xa5};
constexpr size_t kGuardBytes = 64;

struct Case {
  WeightType type;
  int cols, n_valid, shift;  // shift: bytes before the source, so that nothing is aligned
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (int i = 0; i < kNumWeightTypes; ++i) {
    const auto type = static_cast<WeightType>(i);
    const int values = info(type).block_values;
    for (const int blocks :
         values == 1 ? std::vector<int>{1, 7, 32, 96} : std::vector<int>{1, 2, 3, 9}) {
      for (int n_valid = 1; n_valid <= kGroupRows; ++n_valid) {
        for (const int shift : {0, 1, 2}) all.push_back({type, blocks * values, n_valid, shift});
      }
    }
  }
  return all;
}

std::string name_of(const Case& c) {
  return std::string(info(c.type).name) + " cols " + std::to_string(c.cols) + " rows " +
         std::to_string(c.n_valid) + " shift " + std::to_string(c.shift);
}

// The group between guards, filled with the guard before.
std::vector<std::byte> packed(const Case& c, const std::byte* rows, const Kernels* kernels) {
  const int64_t row_bytes = packed_row_bytes(c.type, c.cols);
  const auto size = static_cast<size_t>(packed_group_bytes(c.type, c.cols));
  std::vector<std::byte> out(kGuardBytes + size + kGuardBytes, kGuard);
  std::byte* group = out.data() + kGuardBytes;
  if (kernels == nullptr) {
    oracle::pack_group(c.type, rows, row_bytes, c.n_valid, c.cols, group);
  } else {
    kernels->weight[static_cast<int>(c.type)].pack_group(rows, row_bytes, c.n_valid, c.cols, group);
  }
  for (size_t i = 0; i < kGuardBytes; ++i) {
    EXPECT_EQ(out[i], kGuard) << "before the group";
    EXPECT_EQ(out[kGuardBytes + size + i], kGuard) << "behind the group";
  }
  return out;
}

TEST(Pack, EveryTypeAndInstructionSetMakesTheBytesOfThePlainPacker) {
  std::mt19937 random(7);
  size_t executed = 0, isas = 0;
  for (const Isa& isa : all_isas()) isas += isa.supported() ? 1 : 0;
  const std::vector<Case> all = cases();
  ASSERT_EQ(all.size(), static_cast<size_t>(kNumWeightTypes) * 4 * 16 * 3);
  for (const Case& c : all) {
    SCOPED_TRACE(name_of(c));
    const auto size = static_cast<size_t>(c.shift + c.n_valid * packed_row_bytes(c.type, c.cols));
    const std::unique_ptr<std::byte[]> source(new std::byte[size]);
    for (size_t i = 0; i < size; ++i) source[i] = static_cast<std::byte>(random());
    const std::vector<std::byte> expected = packed(c, source.get() + c.shift, nullptr);
    for (const Isa& isa : all_isas()) {
      if (!isa.supported()) continue;
      ASSERT_EQ(packed(c, source.get() + c.shift, &kernels_of(isa)), expected) << isa.name;
      ++executed;
    }
  }
  EXPECT_EQ(executed, all.size() * isas);
  std::printf("packing: %zu cases x %zu instruction sets\n", all.size(), isas);
}

// Each bit of a GGUF block reaches exactly one bit of the packed block, whatever the row: the
// packed form loses nothing and mixes no rows. (q8_0 stores its codes shifted: a flipped bit still
// flips one.)
TEST(Pack, EveryBitOfABlockHasOnePlace) {
  for (int i = 0; i < kNumWeightTypes; ++i) {
    const auto type = static_cast<WeightType>(i);
    const int cols = info(type).block_values;
    const auto row_bytes = static_cast<size_t>(packed_row_bytes(type, cols));
    const Kernels& kernels = kernels_of(**choose_isa(nullptr));
    std::vector<std::byte> source(kGroupRows * row_bytes);
    const Case c{type, cols, kGroupRows, 0};
    const std::vector<std::byte> zero = packed(c, source.data(), &kernels);
    std::vector<int> used(zero.size() * 8);
    for (size_t bit = 0; bit < source.size() * 8; ++bit) {
      source[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
      const std::vector<std::byte> out = packed(c, source.data(), &kernels);
      source[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
      int changed = 0;
      for (size_t k = 0; k < out.size(); ++k) {
        for (unsigned x = static_cast<uint8_t>(out[k] ^ zero[k]); x != 0; x &= x - 1) {
          ++changed;
          ++used[k * 8 + static_cast<size_t>(__builtin_ctz(x))];
        }
      }
      ASSERT_EQ(changed, 1) << info(type).name << " bit " << bit;
    }
    size_t places = 0;
    for (const int n : used) {
      ASSERT_LE(n, 1) << info(type).name;
      places += static_cast<size_t>(n);
    }
    ASSERT_EQ(places, source.size() * 8) << info(type).name;
  }
}

}  // namespace
}  // namespace bantam
