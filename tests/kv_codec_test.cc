// The encoder of the KV cache (NUMERICS rule 7) against an oracle that shares no code with it: halves by the compiler's own type, codes by
// search. The vector sets' stores are compared with this one bit for bit in attend_test.
#include "codec/kv_codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace bantam {
namespace {

const std::vector<int> kTableOfIq4Nl = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

uint16_t half_bits(double x) {
  return std::bit_cast<uint16_t>(static_cast<_Float16>(static_cast<float>(std::clamp(x, -65504.0, 65504.0))));
}
float half_value(uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }

struct Want {
  std::vector<int> values;  // that the codes stand for, before scale and minimum
  uint16_t d = 0, m = 0;
};

// The code of [lowest, highest] nearest to x / d in float, ties to even.
int nearest_code(float x, float d, int lowest, int highest) {
  const double ratio = std::clamp(static_cast<double>(x / d), static_cast<double>(lowest), static_cast<double>(highest));
  int best = lowest;
  for (int code = lowest; code <= highest; ++code) {
    const double now = std::fabs(ratio - best), then = std::fabs(ratio - code);
    if (then < now || (then == now && code % 2 == 0)) best = code;
  }
  return best;
}

int nearest_of_table(float ratio) {
  int best = kTableOfIq4Nl[0];
  for (const int value : kTableOfIq4Nl) {
    if (std::fabs(ratio - static_cast<float>(value)) < std::fabs(ratio - static_cast<float>(best))) best = value;
  }
  return best;
}

Want expected(KvType type, const std::vector<float>& x) {
  Want want;
  const bool finite = std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); });
  const float lowest = *std::min_element(x.begin(), x.end()), highest = *std::max_element(x.begin(), x.end());
  const float extreme = *std::max_element(x.begin(), x.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  const int bits = type == KvType::q5_0 || type == KvType::q5_1 ? 5 : 4, top = (1 << bits) - 1;
  const bool minimum = type == KvType::q4_1 || type == KvType::q5_1;
  const int zero = type == KvType::iq4_nl ? 1 : 0;
  want.values.assign(32, zero);
  if (!finite) {
    want.d = 0x7e00;
    want.m = minimum ? 0x7e00 : 0;
    return want;
  }
  // Quotients of floats are rounded to float once more: rule 7 divides in float.
  if (type == KvType::q8_0) want.d = half_bits(std::fabs(extreme) / 127.0f);
  if (type == KvType::iq4_nl) want.d = half_bits(extreme / -127.0f);
  if (type == KvType::q4_0 || type == KvType::q5_0) want.d = half_bits(extreme / static_cast<float>(-(1 << (bits - 1))));
  if (minimum) {
    const double range = static_cast<float>(static_cast<double>(highest) / 2 - static_cast<double>(lowest) / 2);
    want.d = half_bits(static_cast<float>(range * 2 / top));
    want.m = half_bits(lowest);
  }
  const float d = half_value(want.d), m = half_value(want.m);
  if (d == 0.0f) {
    want.d = 0;
    return want;
  }
  for (size_t i = 0; i < 32; ++i) {
    if (type == KvType::q8_0) want.values[i] = nearest_code(x[i], d, -127, 127);
    if (type == KvType::iq4_nl) want.values[i] = nearest_of_table(x[i] / d);
    if (type == KvType::q4_0 || type == KvType::q5_0) want.values[i] = nearest_code(x[i], d, -(1 << (bits - 1)), (1 << (bits - 1)) - 1);
    if (minimum) want.values[i] = nearest_code(x[i] - m, d, 0, top);
  }
  return want;
}

constexpr int kKinds = 11;

// Steps between the code of zero and that of the extreme value, or between the lowest and the highest one.
int steps_of(KvType type) {
  return type == KvType::q8_0 || type == KvType::iq4_nl ? 127 : type == KvType::q5_1 ? 31 : type == KvType::q4_1 ? 15 : type == KvType::q5_0 ? 16 : 8;
}

// Values in the middle between two codes, for any scale that fp16 has.
std::vector<float> ties_of(std::mt19937& random, KvType type) {
  const bool minimum = type == KvType::q4_1 || type == KvType::q5_1, table = type == KvType::iq4_nl;
  const int steps = steps_of(type);
  const float d = half_value(half_bits(0.01 + random() % 100000 * 1e-5)), low = minimum ? half_value(half_bits(-8.0 - random() % 64)) : 0.0f;
  std::vector<float> x(32);
  for (float& v : x) {
    const size_t k = random() % 15;
    const float middle = table ? static_cast<float>(kTableOfIq4Nl[k] + kTableOfIq4Nl[k + 1]) / 2 : static_cast<float>(static_cast<int>(random() % static_cast<unsigned>(steps))) + 0.5f;
    v = low + middle * d * (minimum || table || random() % 2 == 0 ? 1.0f : -1.0f);
  }
  const size_t at = random() % 31;
  x[at] = low + static_cast<float>(steps) * d * (minimum || random() % 2 == 0 ? 1.0f : -1.0f);
  if (table) x[at] = -127.0f * d;
  if (minimum) x[at + 1] = low;
  return x;
}

std::vector<float> block_of(std::mt19937& random, int kind) {
  std::normal_distribution<float> normal;
  std::vector<float> x(32);
  for (float& v : x) v = normal(random);
  const size_t at = random() % 32;
  for (float& v : x) {
    if (kind == 1) v = static_cast<float>(static_cast<int>(random() % 65) - 32) / 4;  // ties
    if (kind == 2) v *= 1e-6f;                                                          // scales of few bits
    if (kind == 3) v *= 4e6f;                                                           // beyond fp16
    if (kind == 4) v = std::bit_cast<float>(static_cast<uint32_t>(random()));           // any bits
    if (kind == 5) v = std::fabs(v) + 100;                                              // far from zero
    if (kind == 6) v = -2.5f;                                                           // all alike
    if (kind == 7) v = random() % 2 == 0 ? 0.0f : -0.0f;
    if (kind == 8) v *= 3e-9f;  // scales round to zero
  }
  if (kind == 1 && random() % 2 == 0) x[at] = random() % 2 == 0 ? 16.0f : -16.0f;
  if (kind == 9) x[at] = random() % 2 == 0 ? 300.0f : -300.0f;
  return x;
}

template <KvType Type>
void check_blocks() {
  typedef CodecOf<Type> Codec;
  int executed = 0, finite = 0;
  for (int kind = 0; kind < kKinds; ++kind) {
    for (int i = 0; i < 3000; ++i) {
      std::mt19937 random(static_cast<uint32_t>(kind * 10000 + i));
      const std::vector<float> x = kind == kKinds - 1 ? ties_of(random, Type) : block_of(random, kind);
      const Want want = expected(Type, x);
      KvBlock got;
      Codec::encode(x.data(), got);
      const std::string what = std::string(kKvTypes[static_cast<int>(Type)].name) + " kind " + std::to_string(kind) + " block " + std::to_string(i);
      ASSERT_EQ(got.d, want.d) << what;
      ASSERT_EQ(got.m, want.m) << what;
      for (size_t k = 0; k < 32; ++k) ASSERT_EQ(Codec::value(got.code[k]), want.values[k]) << what << " value " << k << " = " << x[k];
      finite += want.d != 0x7e00 ? 1 : 0;
      ++executed;
    }
  }
  EXPECT_EQ(executed, kKinds * 3000);
  EXPECT_GT(finite, (kKinds - 1) * 3000 - 1);
}

TEST(KvCodec, Q8_0) { check_blocks<KvType::q8_0>(); }
TEST(KvCodec, Q5_1) { check_blocks<KvType::q5_1>(); }
TEST(KvCodec, Q5_0) { check_blocks<KvType::q5_0>(); }
TEST(KvCodec, Q4_1) { check_blocks<KvType::q4_1>(); }
TEST(KvCodec, Q4_0) { check_blocks<KvType::q4_0>(); }
TEST(KvCodec, Iq4Nl) { check_blocks<KvType::iq4_nl>(); }

// What a value costs at most, by the definition of each format: half a step, and what fp16 does to scale and minimum.
TEST(KvCodec, NoValueIsFurtherAwayThanHalfAStep) {
  int executed = 0;
  const auto check = [&](auto codec, double steps, double clipped) {
    typedef decltype(codec) Codec;
    for (int i = 0; i < 3000; ++i) {
      std::mt19937 random(static_cast<uint32_t>(i));
      const std::vector<float> x = block_of(random, 0);
      KvBlock got;
      Codec::encode(x.data(), got);
      const double d = half_value(got.d), m = half_value(got.m);
      double largest = 0;
      for (const float v : x) largest = std::max<double>(largest, std::fabs(v));
      const double range = Codec::minimum ? *std::max_element(x.begin(), x.end()) - *std::min_element(x.begin(), x.end()) : largest;
      ASSERT_NEAR(std::fabs(d), range / steps, range / steps / 1024);
      for (size_t k = 0; k < 32; ++k) {
        const double value = d * Codec::value(got.code[k]) + m;
        ASSERT_LE(std::fabs(value - x[k]), std::fabs(d) * clipped + largest / 500) << k;
      }
      ++executed;
    }
  };
  check(CodecQ8_0{}, 127, 0.5);
  check(CodecMinimum<5>{}, 31, 0.5);
  check(CodecMinimum<4>{}, 15, 0.5);
  // The largest value of the other sign may lie one step beyond the codes; the table's widest gap is 25, its end at 113 of 127.
  check(CodecSymmetric<5>{}, 16, 1.0);
  check(CodecSymmetric<4>{}, 8, 1.0);
  check(CodecIq4Nl{}, 127, 14.0);
  EXPECT_EQ(executed, 6 * 3000);
}

// A value in the middle between two of the table belongs to the lower index; one step of float away to its neighbour.
TEST(KvCodec, TiesOfTheTableGoToTheLowerIndex) {
  for (size_t i = 0; i + 1 < kTableOfIq4Nl.size(); ++i) {
    const float middle = static_cast<float>(kTableOfIq4Nl[i] + kTableOfIq4Nl[i + 1]) / 2;
    EXPECT_EQ(CodecIq4Nl::nearest(middle), i);
    EXPECT_EQ(CodecIq4Nl::nearest(std::nextafter(middle, 1000.0f)), i + 1);
  }
}

TEST(KvCodec, FloatsAreRoundedToNearestEven) {
  std::mt19937 random(3);
  for (int i = 0; i < 400000; ++i) {
    // A quarter each: any bits, on and beside the middle of two brains, of two halves, of two small halves.
    uint32_t bits = random();
    const uint32_t beside = static_cast<uint32_t>(random() % 3) - 1;
    if (i % 4 == 1) bits = (bits & 0xffff0000u) + 0x8000u + beside;
    if (i % 4 == 2) bits = ((bits & 0x87ffe000u) | 0x38801000u) + beside;
    if (i % 4 == 3) bits = ((bits & 0x807fc000u) | 0x38002000u) + beside;
    const float x = std::bit_cast<float>(bits);
    std::byte half[2], brain[2];
    FloatF16::store(x, half);
    FloatBf16::store(x, brain);
    const float h = FloatF16::load(half), b = FloatBf16::load(brain);
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(h) && std::isnan(b));
      continue;
    }
    ASSERT_EQ(h, static_cast<float>(static_cast<_Float16>(x))) << x;
    const uint32_t down = bits & 0xffff0000u, up = down + 0x10000u, rest = bits & 0xffffu;
    const uint32_t nearest = rest > 0x8000u || (rest == 0x8000u && (down & 0x10000u) != 0) ? up : down;
    ASSERT_EQ(std::bit_cast<uint32_t>(b), nearest) << x;
  }
}

}  // namespace
}  // namespace bantam
