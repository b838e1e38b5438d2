// The KV cache and attention: every K type x V type x head size x instruction set, composed as the backend composes them,
// against a double-precision oracle that reads the tile bytes by itself, and bit for bit against scalar.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "cpu/factory.h"
#include "cpu/isa.h"
#include "tests/support/attend_compose.h"
#include "tests/support/oracle_attend.h"

namespace bantam {
namespace {

// BANTAM_SAMPLE takes fewer cases, for sanitizers and emulators.
bool sampled() { return std::getenv("BANTAM_SAMPLE") != nullptr; }
// With BANTAM_SAMPLE above 1 an x86 program takes fewer still: an emulated Haswell was at work for more than 20 minutes, and the same
// tables run every case on the real CPU of the same test. ARM has no such CPU here and keeps its cases.
bool emulated() {
#ifdef __x86_64__
  return sampled() && std::atoi(std::getenv("BANTAM_SAMPLE")) > 1;
#else
  return false;
#endif
}

uint32_t seed() {
  const char* given = std::getenv("BANTAM_SEED");
  return given != nullptr ? static_cast<uint32_t>(std::strtoul(given, nullptr, 10)) : 20261123u;
}

bool same_kernels(const Kernels& a, const Kernels& b) {
  for (int type = 0; type < kNumKvTypes; ++type) {
    const KvKernels &x = a.kv[type], &y = b.kv[type];
    if (x.scores != y.scores || x.weigh != y.weigh || x.store_k != y.store_k || x.store_v != y.store_v ||
        x.erase_k != y.erase_k || x.erase_v != y.erase_v) {
      return false;
    }
  }
  return a.softmax_page == b.softmax_page && a.merge == b.merge && a.finish == b.finish && a.rotate == b.rotate &&
         a.rope == b.rope && a.quantize == b.quantize && a.rms_norm == b.rms_norm && a.silu_mul == b.silu_mul;
}

// Those with attention kernels of their own; amx is avx512 here, wholly: a slot alone that is another set's is a fault
// that VectorSetsFillTheirOwnSlots tells.
std::vector<const Isa*> isas() {
  std::vector<const Isa*> out;
  for (const Isa& isa : all_isas()) {
    if (!isa.supported()) continue;
    const bool known = std::any_of(out.begin(), out.end(), [&](const Isa* other) {
      return same_kernels(kernels_of(isa), kernels_of(*other));
    });
    if (!known) out.push_back(&isa);
  }
  return out;
}

// Against an oracle with the same roundings; what lies within float error of a rounding tie is taken out by the oracle.
constexpr double kSameRounding = 1e-9;

// NMSE against attention over the unrounded rows: twice the figures measured for these formats
// (N(0,1) rows, head size 128), K and V errors added.
double type_error(KvType type) {
  switch (type) {
    case KvType::f32:
      return 1e-11;
    case KvType::f16:
      return 2e-7;
    case KvType::bf16:
      return 1.2e-5;
    case KvType::q8_0:
      return 2.6e-4;
    case KvType::q5_1:
    case KvType::q5_0:
      return 1.8e-2;
    case KvType::q4_1:
    case KvType::q4_0:
    case KvType::iq4_nl:
      return 6e-2;
  }
  return 0;
}

// What rounding the weights to u8 costs on random rows: with a minimum the codes are all positive and carry a mean
// that the rounding does not cancel (worst seen 7e-4 and 6e-5; limits at three times that).
double u8_error(KvType v) { return info(v).has_minimum ? 2e-3 : 2e-4; }

TEST(Attend, EveryPairOfTypesAndIsaMatchesTheOracle) {
  std::mt19937 random(seed());
  std::printf("seed %u\n", seed());
  const std::vector<int> lengths = sampled() ? std::vector<int>{33, 257} : std::vector<int>{1, 31, 64, 255, 257, 600};
  const std::vector<const Isa*> tables = isas();
  int executed = 0, expected = 0;
  double worst_decoded = 0, worst_rounding = 0;
  for (int head_dim : {64, 128}) {
    for (int k = 0; k < kNumKvTypes; ++k) {
      for (int v = 0; v < kNumKvTypes; ++v) {
        for (int length : lengths) {
          // Under an emulator each pair with one head size and length, each type with all of them.
          if (emulated() && (k + v) % 4 != 2 * (head_dim / 128) + (length > 33 ? 1 : 0)) continue;
          const KvType type_k = static_cast<KvType>(k), type_v = static_cast<KvType>(v);
          const int group = 1 + (k + v + length) % 4;
          const int n_rows = 1 + (k * 3 + v + length) % 3 > length ? 1 : 1 + (k * 3 + v + length) % 3;
          const AttendCase c = make_attend_case(type_k, type_v, head_dim, length, n_rows, group, random);
          expected += static_cast<int>(tables.size());
          std::vector<float> scalar;
          for (const Isa* isa : tables) {
            const AttendRun run = run_attend(kernels_of(*isa), c);
            ASSERT_TRUE(run.guards_intact) << isa->name;
            if (scalar.empty()) {
              scalar = run.out;
              const OracleErrors e = oracle_errors(c, run);
              worst_decoded = std::max(worst_decoded, e.same_rounding);
              worst_rounding = std::max(worst_rounding, e.decoded);
              ASSERT_LE(e.same_rounding, kSameRounding) << info(type_k).name << "/" << info(type_v).name << " hd "
                                               << head_dim << " length " << length;
              ASSERT_LE(e.decoded, u8_error(type_v)) << info(type_k).name << "/" << info(type_v).name;
              ASSERT_LE(e.unquantized, 1e-4 + type_error(type_k) + type_error(type_v))
                  << info(type_k).name << "/" << info(type_v).name;
            }
            ASSERT_EQ(0, std::memcmp(scalar.data(), run.out.data(), scalar.size() * sizeof(float)))
                << isa->name << " differs from scalar: " << info(type_k).name << "/" << info(type_v).name
                << " hd " << head_dim << " length " << length << " rows " << n_rows << " group " << group;
            ++executed;
          }
        }
      }
    }
  }
  EXPECT_EQ(executed, expected);
  EXPECT_EQ(executed, 81 * static_cast<int>((emulated() ? 1 : 2 * lengths.size()) * tables.size()));
  std::printf("attention: %d cases (81 pairs x %zu head sizes and lengths x %zu instruction sets), worst NMSE "
              "%.2g with the same rounding, %.2g on the decoded bytes\n",
              executed, emulated() ? 1 : 2 * lengths.size(), tables.size(), worst_decoded, worst_rounding);
}

TEST(Attend, OtherHeadSizesAndGroups) {
  std::mt19937 random(seed() + 1);
  int executed = 0;
  for (int head_dim : {32, 96, 160, 192, 224, 256}) {
    // Under an emulator two of the six.
    if (emulated() && head_dim != 96 && head_dim != 256) continue;
    for (int type = 0; type < kNumKvTypes; ++type) {
      for (int group : {1, 5, 8}) {
        if (emulated() && (head_dim / 32 + type) % 3 != group / 3) continue;
        const KvType k = static_cast<KvType>(type), v = static_cast<KvType>((type + group) % kNumKvTypes);
        const AttendCase c = make_attend_case(k, v, head_dim, 70 + group, 2, group, random);
        std::vector<float> scalar;
        for (const Isa* isa : isas()) {
          const AttendRun run = run_attend(kernels_of(*isa), c);
          ASSERT_TRUE(run.guards_intact);
          if (scalar.empty()) {
            scalar = run.out;
            ASSERT_LE(oracle_errors(c, run).same_rounding, kSameRounding) << info(k).name << "/" << info(v).name;
          }
          ASSERT_EQ(0, std::memcmp(scalar.data(), run.out.data(), scalar.size() * sizeof(float)))
              << isa->name << " " << info(k).name << "/" << info(v).name << " hd " << head_dim;
          ++executed;
        }
      }
    }
  }
  EXPECT_EQ(executed, (emulated() ? 2 : 6 * 3) * kNumKvTypes * static_cast<int>(isas().size()));
}

// As many rows and blocks as the kernels work out together, and one row more.
TEST(Attend, ManyRowsOfTheLargestHead) {
  std::mt19937 random(seed() + 8);
  int executed = 0;
  for (int type = 0; type < kNumKvTypes; ++type) {
    for (const int n_rows : {64, 65}) {
      const KvType t = static_cast<KvType>(type);
      const AttendCase c = make_attend_case(t, t, 256, 100, n_rows, 1, random);
      std::vector<float> scalar;
      for (const Isa* isa : isas()) {
        const AttendRun run = run_attend(kernels_of(*isa), c);
        ASSERT_TRUE(run.guards_intact) << isa->name;
        if (scalar.empty()) scalar = run.out;
        ASSERT_EQ(0, std::memcmp(scalar.data(), run.out.data(), scalar.size() * sizeof(float)))
            << isa->name << " " << info(t).name << " rows " << n_rows;
        ++executed;
      }
    }
  }
  EXPECT_EQ(executed, 2 * kNumKvTypes * static_cast<int>(isas().size()));
}

// ---- cases by seed

// Equal bits, but a NaN is only promised to be one (NUMERICS rule 1).
bool same(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  }
  return true;
}

enum class Twist { none, dominant, hostile, flat, garbage };

struct Sampled {
  AttendCase c;
  Twist twist;
};

// Any head size, group, pair of types; lengths at the edges of tiles and pages and between; the rows span an edge, so that
// some see nothing of the last tile or page.
Sampled sample_case(std::mt19937& random) {
  const auto pick = [&](auto... x) {
    const int all[] = {x...};
    return all[random() % (sizeof(all) / sizeof(all[0]))];
  };
  const int head_dim = 32 * (1 + static_cast<int>(random() % 8)), group = 1 + static_cast<int>(random() % 8);
  int length = pick(1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 223, 224, 225, 255, 256, 257, 287, 288, 289, 511, 512, 513, 1023);
  if (random() % 3 == 0) length = 1 + static_cast<int>(random() % 300);
  const int n_rows = std::min(length, pick(1, 1, 1, 2, 3, 5, 9, length > 256 || random() % 8 != 0 ? 2 : 17));
  const auto k = static_cast<KvType>(random() % kNumKvTypes), v = static_cast<KvType>(random() % kNumKvTypes);
  Sampled s{make_attend_case(k, v, head_dim, length, n_rows, group, random), Twist::none};
  s.twist = static_cast<Twist>(random() % 8 < 4 ? 0 : 1 + random() % 4);
  const auto row = [&](std::vector<float>& x, int pos) { return x.data() + int64_t{pos} * head_dim; };
  const int at = static_cast<int>(random() % static_cast<unsigned>(length));
  if (s.twist == Twist::dominant) {
    // One key takes all the weight of the first query: the others' weights vanish or are subnormal.
    for (int i = 0; i < head_dim; ++i) row(s.c.k, at)[i] = s.c.q[static_cast<size_t>(i)] * 9.0f;
  } else if (s.twist == Twist::hostile) {
    const float values[] = {std::nanf(""), INFINITY, -INFINITY, 1e38f, -3e38f, 1e-40f, -0.0f};
    std::vector<float>& x = random() % 2 != 0 ? s.c.k : s.c.v;
    row(x, at)[random() % static_cast<unsigned>(head_dim)] = values[random() % 7];
  } else if (s.twist == Twist::flat) {
    // Blocks of zeros and of one value.
    for (int i = 0; i < head_dim; ++i) row(s.c.v, at)[i] = i < 32 ? 0.0f : -2.5f;
    for (int pos = 0; pos < length / 2; ++pos) std::fill(row(s.c.v, pos), row(s.c.v, pos) + 32, 0.0f);
  } else if (s.twist == Twist::garbage) {
    s.c.garbage_after = true;
  }
  return s;
}

TEST(Attend, SampledCasesAreTheBitsOfScalarAndTheOraclesValues) {
  const uint32_t first = seed() + 100;
  const bool full = std::getenv("BANTAM_FULL") != nullptr && std::getenv("BANTAM_FULL")[0] == '1';
  const int expected = sampled() ? (full && !emulated() ? 300 : 60) : full ? 40000 : 2400;
  int executed = 0, with_oracle = 0, beyond_a_page = 0, twists[5] = {};
  for (int i = 0; i < expected; ++i) {
    std::mt19937 random(first + static_cast<uint32_t>(i));
    const Sampled s = sample_case(random);
    const AttendCase& c = s.c;
    const std::string what = std::string(info(c.type_k).name) + "/" + info(c.type_v).name + " hd " +
                             std::to_string(c.head_dim) + " length " + std::to_string(c.length) + " rows " +
                             std::to_string(c.n_rows) + " group " + std::to_string(c.group) + " twist " +
                             std::to_string(static_cast<int>(s.twist)) + ", BANTAM_SEED=" +
                             std::to_string(first + static_cast<uint32_t>(i) - 100);
    std::vector<float> scalar;
    for (const Isa* isa : isas()) {
      const AttendRun run = run_attend(kernels_of(*isa), c);
      ASSERT_TRUE(run.guards_intact) << isa->name << " " << what;
      if (scalar.empty()) {
        scalar = run.out;
        // The oracle is slow: one query of cases that are not large, and of some that are.
        if (s.twist != Twist::hostile && (c.length * c.head_dim <= 6000 || i % 20 == 0)) {
          double ties = 0, difference = 0, energy = 0;
          const int query = static_cast<int>(random() % static_cast<unsigned>(c.n_rows * c.group));
          const std::vector<double> want = oracle_row(c, run, query, 0, ties);
          for (int ch = 0; ch < c.head_dim; ++ch) {
            const double got = run.out[static_cast<size_t>(query * c.head_dim + ch)], w = want[static_cast<size_t>(ch)];
            difference += (got - w) * (got - w);
            energy += w * w;
          }
          const double certain = std::max(0.0, std::sqrt(difference) - std::sqrt(ties));
          ASSERT_LE(certain * certain, kSameRounding * energy + 1e-20) << what;
          ++with_oracle;
          beyond_a_page += c.length > 256 ? 1 : 0;
        }
      }
      ASSERT_TRUE(same(scalar, run.out)) << isa->name << " differs from scalar: " << what;
    }
    ++twists[static_cast<int>(s.twist)];
    ++executed;
  }
  EXPECT_EQ(executed, expected);
  EXPECT_GE(with_oracle, expected / 10);
  EXPECT_GE(beyond_a_page, expected / 400);
  for (const int n : twists) EXPECT_GT(n, 0);
  std::printf("attention: %d sampled cases from seed %u (x %zu instruction sets), %d against the oracle, %d of these longer than a page\n",
              executed, first - 100, isas().size(), with_oracle, beyond_a_page);
}

// ---- the backend shares the work out

struct Heads {
  std::vector<float> q, k, v, cos, sin, out;
};

// Two steps of two sequences: a long prompt's last rows with a short sequence, then one token of each.
// Not together: no sequence shares a step with another, and no page edge lies in a step; the output in the same order.
std::vector<float> attend_with(int n_threads, KvType type, AttentionShape shape, const Heads& heads, bool together = true) {
  CpuOptions options;
  options.n_threads = n_threads;
  Result<std::unique_ptr<Backend>> backend = make_cpu_backend(options);
  CHECK(backend);
  Result<AttentionPlan> plan = plan_attention(**backend, type, type, shape);
  CHECK(plan);
  const int hd = shape.head_dim, n_pages = 8;
  ComputeShape compute;
  compute.max_rows = 64;
  compute.max_cols = shape.n_heads * hd;
  compute.n_heads = shape.n_heads;
  compute.n_kv_heads = shape.n_kv_heads;
  compute.head_dim = hd;
  CHECK((*backend)->reserve(compute));
  Result<std::byte*> memory = (*backend)->allocate(n_pages * plan->page_bytes(), "pages");
  CHECK(memory);
  AttendStep step;
  step.plan = &*plan;
  step.k_pages = *memory;
  step.v_pages = *memory + int64_t{n_pages} * shape.n_kv_heads * kPageTiles * plan->tile_bytes_k();
  step.cos = heads.cos.data();
  step.sin = heads.sin.data();
  step.rope_dims = hd;
  // The pages of the two sequences are not in order.
  const std::vector<int32_t> pages[2] = {{6, 1, 5, 0, 7}, {3, 2}};
  std::vector<float> all;
  const auto step_of = [&](std::span<const AttendRow> rows, int first) {
    Heads h = heads;
    std::vector<float> out(rows.size() * static_cast<size_t>(shape.n_heads * hd));
    step.rows = rows;
    step.q = h.q.data() + first * shape.n_heads * hd;
    step.k = h.k.data() + first * shape.n_kv_heads * hd;
    step.v = h.v.data() + first * shape.n_kv_heads * hd;
    step.out = out.data();
    (*backend)->attend(step);
    all.insert(all.end(), out.begin(), out.end());
  };
  const auto run = [&](const std::vector<AttendRow>& rows) {
    if (together) return step_of(rows, 0);
    for (size_t first = 0, n = 0; first < rows.size(); first += n) {
      for (n = 1; first + n < rows.size() && rows[first + n].run == rows[first].run; ++n) {
      }
      // Rows before a page edge alone.
      if (rows[first].pos / kPagePositions != rows[first + n - 1].pos / kPagePositions) n = 1;
      step_of(std::span(rows).subspan(first, n), static_cast<int>(first));
    }
  };
  // Across four page edges of the first sequence and one of the second; under an emulator across one.
  const int n_prompt = emulated() ? 300 : 1100, n_other = n_prompt / 50 * 14;
  for (int first = 0; first < n_prompt; first += 50) {
    std::vector<AttendRow> rows;
    for (int i = 0; i < 50; ++i) rows.push_back({first + i, 0, pages[0].data()});
    for (int i = 0; i < 14; ++i) rows.push_back({first / 50 * 14 + i, 1, pages[1].data()});
    run(rows);
  }
  for (int i = 0; i < 2; ++i) run({{n_prompt + i, 0, pages[0].data()}, {n_other + i, 1, pages[1].data()}});
  run({{n_prompt + 2, 0, pages[0].data()}});
  return all;
}

TEST(Attend, TheBackendsThreadsDoNotChangeABit) {
  std::mt19937 random(seed() + 6);
  std::normal_distribution<float> normal;
  int executed = 0, n_seen = 0;
  std::vector<std::pair<KvType, AttentionShape>> cases;
  for (const KvType type : {KvType::q8_0, KvType::f16, KvType::q5_1, KvType::q4_0}) {
    for (const AttentionShape shape : {AttentionShape{2, 1, 64}, AttentionShape{9, 3, 64}, AttentionShape{4, 2, 96}}) {
      // Under an emulator one shape for each type: all of them take it 80 s.
      const int turn = n_seen++;
      if (!sampled() || turn % 3 == turn / 3 % 3) cases.push_back({type, shape});
    }
  }
  // More than 2 MiB in the end, which some CPUs ask for in another way and share out earlier.
  for (const KvType type : {KvType::q8_0, KvType::f16}) {
    if (!sampled()) cases.push_back({type, {8, 8, 128}});
  }
  for (const auto& [type, shape] : cases) {
    Heads heads;
    const auto fill = [&](std::vector<float>& x, int n) {
      x.resize(static_cast<size_t>(n));
      for (float& y : x) y = normal(random);
    };
    fill(heads.q, 64 * shape.n_heads * shape.head_dim);
    fill(heads.k, 64 * shape.n_kv_heads * shape.head_dim);
    fill(heads.v, 64 * shape.n_kv_heads * shape.head_dim);
    heads.cos.assign(static_cast<size_t>(64 * shape.head_dim / 2), 0.6f);
    heads.sin.assign(heads.cos.size(), 0.8f);
    const std::vector<float> one = attend_with(1, type, shape, heads);
    for (const int n_threads : {2, 3, 5}) {
      if (emulated() && n_threads != 3) continue;
      const std::vector<float> more = attend_with(n_threads, type, shape, heads);
      ASSERT_EQ(one.size(), more.size());
      ASSERT_EQ(0, std::memcmp(one.data(), more.data(), one.size() * sizeof(float)))
          << info(type).name << " " << n_threads << " threads, " << shape.n_heads << " heads";
      ++executed;
    }
    for (const float x : one) ASSERT_TRUE(std::isfinite(x));
    const std::vector<float> apart = attend_with(2, type, shape, heads, false);
    ASSERT_EQ(0, std::memcmp(one.data(), apart.data(), one.size() * sizeof(float)))
        << info(type).name << ": company in a step changes a bit, " << shape.n_heads << " heads";
    // Values that are not finite reach no row before their own position, 49 in the first step.
    const int kv_row = shape.n_kv_heads * shape.head_dim, row = shape.n_heads * shape.head_dim;
    std::fill_n(heads.v.begin() + 49 * kv_row, kv_row, NAN);
    const std::vector<float> spoilt = attend_with(2, type, shape, heads);
    ASSERT_EQ(0, std::memcmp(one.data(), spoilt.data(), static_cast<size_t>(49 * row) * sizeof(float)))
        << info(type).name << ": a later row's values are seen, " << shape.n_heads << " heads";
    ASSERT_TRUE(std::isnan(spoilt[static_cast<size_t>(49 * row)]));
  }
  EXPECT_EQ(executed, emulated() ? 4 : sampled() ? 4 * 3 : (4 * 3 + 2) * 3);
}

TEST(Store, EveryIsaStoresTheSameBytesEverywhere) {
  std::mt19937 random(seed() + 7);
  std::normal_distribution<float> normal;
  int executed = 0;
  const int rounds = sampled() ? 2 : 40;
  for (int round = 0; round < rounds; ++round) {
    for (int type = 0; type < kNumKvTypes; ++type) {
      const int head_dim = 32 * (1 + (round + type) % 8);
      std::vector<float> rows(static_cast<size_t>(32 * head_dim));
      // Coarse values make equal extremes of both signs, exact ties and zeros of both signs likely.
      const float step = round % 3 == 0 ? 0.0f : round % 3 == 1 ? 0.5f : 1.0f;
      for (float& x : rows) x = step == 0.0f ? normal(random) : std::round(normal(random) / step) * step * 0.25f;
      for (const bool keys : {true, false}) {
        std::vector<std::byte> first;
        for (const Isa* isa : isas()) {
          const KvKernels& kv = kernels_of(*isa).kv[type];
          std::vector<std::byte> tile(static_cast<size_t>(kKvTypes[type].bytes_per_32 * head_dim), std::byte{0xff});
          (keys ? kv.erase_k : kv.erase_v)(head_dim, 0, tile.data());
          for (int pos = 0; pos < 32; ++pos) {
            (keys ? kv.store_k : kv.store_v)(&rows[static_cast<size_t>(pos * head_dim)], head_dim, pos, tile.data());
          }
          if (first.empty()) first = tile;
          ASSERT_EQ(first, tile) << isa->name << " " << kKvTypes[type].name << " hd " << head_dim << " round " << round;
          ++executed;
        }
      }
    }
  }
  EXPECT_EQ(executed, rounds * kNumKvTypes * 2 * static_cast<int>(isas().size()));
}

TEST(Store, OrderDoesNotMatterAndEraseLeavesZeros) {
  std::mt19937 random(seed() + 2);
  std::normal_distribution<float> normal;
  for (const Isa* isa : isas()) {
    const Kernels& kernels = kernels_of(*isa);
    for (int type = 0; type < kNumKvTypes; ++type) {
      for (int head_dim : {32, 64, 128, 160}) {
        const int64_t bytes = int64_t{kKvTypes[type].bytes_per_32} * head_dim;
        std::vector<float> rows(static_cast<size_t>(32 * head_dim));
        for (float& x : rows) x = normal(random);
        for (bool keys : {true, false}) {
          const KvKernels& kv = kernels.kv[type];
          const auto store = keys ? kv.store_k : kv.store_v;
          std::vector<std::byte> up(static_cast<size_t>(bytes)), down(up), part(up);
          for (int pos = 0; pos < 32; ++pos) store(&rows[static_cast<size_t>(pos * head_dim)], head_dim, pos, up.data());
          for (int pos = 31; pos >= 0; --pos) store(&rows[static_cast<size_t>(pos * head_dim)], head_dim, pos, down.data());
          ASSERT_EQ(up, down) << kKvTypes[type].name;
          for (int pos = 0; pos < 13; ++pos) store(&rows[static_cast<size_t>(pos * head_dim)], head_dim, pos, part.data());
          (keys ? kv.erase_k : kv.erase_v)(head_dim, 13, up.data());
          ASSERT_EQ(up, part) << kKvTypes[type].name << " erase";
          (keys ? kv.erase_k : kv.erase_v)(head_dim, 0, up.data());
          ASSERT_EQ(up, std::vector<std::byte>(static_cast<size_t>(bytes)));
        }
      }
    }
  }
}

TEST(Store, ScalarAndVectorBytesAreEqualForHostileRows) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> values = {0.0f, -0.0f, 1e-42f, -1e-30f, 1.0f, -1.0f, 65504.0f, 1e10f, -3e38f, inf, nan};
  for (int type = 0; type < kNumKvTypes; ++type) {
    for (float a : values) {
      for (float b : values) {
        std::vector<float> row(64, a);
        row[7] = b;
        row[40] = -b;
        std::vector<std::byte> first;
        for (const Isa* isa : isas()) {
          std::vector<std::byte> tile(static_cast<size_t>(kKvTypes[type].bytes_per_32) * 64);
          kernels_of(*isa).kv[type].store_k(row.data(), 64, 5, tile.data());
          if (first.empty()) first = tile;
          ASSERT_EQ(first, tile) << isa->name << " " << kKvTypes[type].name << " " << a << " " << b;
        }
      }
    }
  }
}

TEST(Attend, InvisiblePositionsNeverCount) {
  std::mt19937 random(seed() + 3);
  for (int type = 0; type < kNumKvTypes; ++type) {
    const KvType t = static_cast<KvType>(type);
    AttendCase c = make_attend_case(t, t, 64, 45, 1, 2, random);
    const AttendRun clean = run_attend(kernels_of(*isas().back()), c);
    c.garbage_after = true;  // NaN rows stored beyond the last visible position
    for (const Isa* isa : isas()) {
      const AttendRun dirty = run_attend(kernels_of(*isa), c);
      ASSERT_EQ(0, std::memcmp(clean.out.data(), dirty.out.data(), clean.out.size() * sizeof(float)))
          << isa->name << " " << info(t).name;
    }
  }
}

TEST(Attend, ANanKeyMakesItsReadersNanOnly) {
  std::mt19937 random(seed() + 4);
  for (int type = 0; type < kNumKvTypes; ++type) {
    const KvType t = static_cast<KvType>(type);
    AttendCase c = make_attend_case(t, t, 64, 40, 3, 1, random);
    // The last key is seen by the last row alone.
    for (int i = 0; i < 64; ++i) c.k[static_cast<size_t>(39 * 64 + i)] = std::nanf("");
    for (const Isa* isa : isas()) {
      const AttendRun run = run_attend(kernels_of(*isa), c);
      for (int i = 0; i < 64; ++i) {
        ASSERT_FALSE(std::isnan(run.out[static_cast<size_t>(64 + i)])) << isa->name << " " << info(t).name;
        ASSERT_TRUE(std::isnan(run.out[static_cast<size_t>(128 + i)])) << isa->name << " " << info(t).name;
      }
    }
  }
}

// A slot that a vector set does not fill is scalar: right, but slow, and no other test would tell.
// Those of weights are in weights_test: tools/mutants.py builds only these.
TEST(Tables, VectorSetsFillTheirOwnSlots) {
  int executed = 0;
  for (const Isa* isa : isas()) {
    const Kernels& own = kernels_of(*isa);
    for (int type = 0; type < kNumKvTypes; ++type) {
      for (int other = 0; other < type; ++other) {
        const bool same = own.kv[type].scores == own.kv[other].scores || own.kv[type].weigh == own.kv[other].weigh ||
                          own.kv[type].store_k == own.kv[other].store_k || own.kv[type].store_v == own.kv[other].store_v;
        EXPECT_FALSE(same) << isa->name << ": " << kKvTypes[type].name << " has a kernel of " << kKvTypes[other].name;
      }
    }
    if (std::strncmp(isa->name, "scalar", 6) == 0) continue;
    for (const Isa* below : isas()) {
      if (below == isa) continue;
      const Kernels& theirs = kernels_of(*below);
      for (int type = 0; type < kNumKvTypes; ++type) {
        const KvKernels &a = own.kv[type], &b = theirs.kv[type];
        const bool same = a.scores == b.scores || a.weigh == b.weigh || a.store_k == b.store_k || a.store_v == b.store_v;
        EXPECT_FALSE(same) << isa->name << " runs a kernel of " << below->name << " for " << kKvTypes[type].name;
        ++executed;
      }
      EXPECT_FALSE(own.quantize16 == theirs.quantize16 || own.silu_mul == theirs.silu_mul) << isa->name << " runs a row kernel of " << below->name;
      EXPECT_FALSE(own.quantize == theirs.quantize || own.rms_norm == theirs.rms_norm || own.rope == theirs.rope ||
                   own.rotate == theirs.rotate || own.softmax_page == theirs.softmax_page ||
                   own.merge == theirs.merge || own.finish == theirs.finish)
          << isa->name << " runs a row kernel of " << below->name;
    }
  }
  std::printf("tables: %d rows of vector sets compared\n", executed);
}

// Float keys and values take other loops with many rows: every number around their blockings, rows that see different
// numbers of positions, each bit as scalar.
TEST(Floats, ManyRowsAreScalarsBits) {
  int executed = 0;
  for (const KvType type : {KvType::f32, KvType::f16, KvType::bf16}) {
    for (const int hd : {32, 64, 96, 128, 256}) {
      std::mt19937 random(static_cast<uint32_t>(hd));
      std::vector<std::byte> tile(static_cast<size_t>(kv_tile_bytes(info(type).bytes_per_32, hd)) + 64);
      std::vector<float> row(static_cast<size_t>(hd));
      const Kernels& scalar = kernels_of(all_isas()[0]);
      for (int pos = 0; pos < 32; ++pos) {
        for (float& x : row) x = std::normal_distribution<float>()(random);
        scalar.kv[static_cast<int>(type)].store_k(row.data(), hd, pos, tile.data());
      }
      for (const int n : {1, 2, 3, 5, 6, 7, 15, 16, 17, 18, 19, 23, 40, 47, 48, 49, 64, 65}) {
        std::vector<float> q(static_cast<size_t>(n * hd)), scale(static_cast<size_t>(n)), p(static_cast<size_t>(n * 40));
        std::vector<int32_t> visible(static_cast<size_t>(n));
        for (float& x : q) x = std::normal_distribution<float>()(random);
        for (float& x : scale) x = std::normal_distribution<float>()(random);
        for (float& x : p) x = std::fabs(std::normal_distribution<float>()(random));
        for (int32_t& x : visible) x = random() % 2 == 0 ? 32 : static_cast<int32_t>(random() % 33);
        std::vector<float> expected_s(p.size(), 7), expected_acc(q.size(), 0.5f);
        const auto run = [&](const Kernels& kernels, std::vector<float>& s, std::vector<float>& acc) {
          const KvKernels& kv = kernels.kv[static_cast<int>(type)];
          kv.scores({tile.data(), hd, n, nullptr, nullptr, q.data(), scale.data(), s.data(), 40});
          kv.weigh({tile.data(), hd, n, p.data(), 40, visible.data(), acc.data(), hd});
        };
        // The first tile of a page: what acc held must not matter; rows that see nothing are not looked at.
        const auto run_first = [&](const Kernels& kernels) {
          std::vector<float> acc(q.size(), std::nanf(""));
          kernels.kv[static_cast<int>(type)].weigh(
              {tile.data(), hd, n, p.data(), 40, visible.data(), acc.data(), hd, &kNoLines, true});
          for (int r = 0; r < n; ++r) {
            if (visible[static_cast<size_t>(r)] == 0) std::fill_n(acc.begin() + r * hd, hd, 0.0f);
          }
          return acc;
        };
        const std::vector<float> expected_first = run_first(scalar);
        run(scalar, expected_s, expected_acc);
        for (const Isa* isa : isas()) {
          std::vector<float> s(p.size(), 7), acc(q.size(), 0.5f);
          run(kernels_of(*isa), s, acc);
          const std::string what = std::string(isa->name) + " " + info(type).name + " " + std::to_string(hd) + " x " + std::to_string(n);
          ASSERT_EQ(std::memcmp(s.data(), expected_s.data(), s.size() * 4), 0) << what;
          ASSERT_EQ(std::memcmp(acc.data(), expected_acc.data(), acc.size() * 4), 0) << what;
          ASSERT_EQ(run_first(kernels_of(*isa)), expected_first) << what;
          ++executed;
        }
      }
    }
  }
  EXPECT_EQ(executed, 3 * 5 * 18 * static_cast<int>(isas().size()));
}

// The same of quantized values: rows around the kernels' groups, every head size, scales of both signs, -0 and infinite, weights
// that are zero, too small to count or not finite, sums of earlier tiles that are subnormal or not finite.
TEST(Weigh, RowsOfQuantizedValuesAreScalarsBits) {
  int executed = 0;
  const Kernels& scalar = kernels_of(all_isas()[0]);
  for (int type = 0; type < kNumKvTypes; ++type) {
    const KvTypeInfo& about = info(static_cast<KvType>(type));
    if (!about.quantized) continue;
    for (const auto& [hd, signs] : {std::pair{32, true}, {64, true}, {96, true}, {128, true}, {160, true}, {224, true}, {256, true},
                                    {32, false}, {96, false}, {128, false}, {256, false}}) {
      std::mt19937 random(static_cast<uint32_t>(100 * type + hd + (signs ? 0 : 1)));
      std::normal_distribution<float> normal;
      std::vector<std::byte> tile(static_cast<size_t>(kv_tile_bytes(about.bytes_per_32, hd)));
      std::vector<float> row(static_cast<size_t>(hd));
      for (int pos = 0; pos < 32; ++pos) {
        for (float& x : row) x = normal(random);
        scalar.kv[type].store_v(row.data(), hd, pos, tile.data());
      }
      // Signs of scales as they come, and in some tiles what no row gives; or none, which some kernels prefer.
      const bool minimum = about.has_minimum;
      std::byte* scales = tile.data() + tile.size() - static_cast<size_t>(2 * hd * (minimum ? 2 : 1));
      const auto set_scale = [&](int i, uint16_t half) { std::memcpy(scales + 2 * i, &half, 2); };
      for (int i = 0; i < hd; ++i) {
        if (random() % 3 == 0) scales[2 * i + 1] ^= std::byte{0x80};
        if (!signs) scales[2 * i + 1] &= std::byte{0x7f};
      }
      set_scale(static_cast<int>(random() % 32), signs ? 0x8000 : 0);
      if (hd % 64 == 0) set_scale(hd - 1, !signs || random() % 2 == 0 ? 0x7c00 : 0xfc00);
      for (const int n : {1, 2, 3, 4, 5, 6, 7, 8, 13, 64}) {
        std::vector<float> p(static_cast<size_t>(n * 40)), acc(static_cast<size_t>(n * hd));
        std::vector<int32_t> visible(static_cast<size_t>(n));
        for (int r = 0; r < n; ++r) {
          const unsigned kind = random() % 8;
          for (int i = 0; i < 40; ++i) {
            const float x = std::fabs(normal(random));
            p[static_cast<size_t>(r * 40 + i)] = kind == 0 ? 0.0f : kind == 1 ? std::ldexp(x, -126) : kind == 2 ? std::ldexp(x, -104) : x;
          }
          if (kind == 3) p[static_cast<size_t>(r * 40) + random() % 32] = std::nanf("");
          visible[static_cast<size_t>(r)] = static_cast<int32_t>(random() % 2 == 0 ? 32 : random() % 33);
          const float sums[] = {0.0f, 1e-41f, -1e-41f, 0.75f, -3.5f, INFINITY, -INFINITY, std::nanf("")};
          for (int c = 0; c < hd; ++c) acc[static_cast<size_t>(r * hd + c)] = sums[random() % 8];
        }
        for (const bool first : {false, true}) {
          const auto run = [&](const Kernels& kernels) {
            std::vector<float> out = acc;
            kernels.kv[type].weigh({tile.data(), hd, n, p.data(), 40, visible.data(), out.data(), hd, &kNoLines, first});
            for (int r = 0; first && r < n; ++r) {
              if (visible[static_cast<size_t>(r)] == 0) std::fill_n(out.begin() + r * hd, hd, 0.0f);
            }
            return out;
          };
          const std::vector<float> expected = run(scalar);
          for (const Isa* isa : isas()) {
            ASSERT_TRUE(same(expected, run(kernels_of(*isa)))) << isa->name << " " << about.name << " hd " << hd << " signs " << signs << " rows " << n << " first " << first;
            ++executed;
          }
        }
      }
    }
  }
  EXPECT_EQ(executed, 6 * 11 * 10 * 2 * static_cast<int>(isas().size()));
}

// Rule 5 by hand: q8_0 rows with a scale of exactly 1, so that the u8 weights of one key at 1 and others near u + 1/2 are
// known. Random rows almost never meet a tie or the limit of 2^-100.
TEST(Weigh, TiesGoToEvenAndTinyWeightsAddNothing) {
  const int hd = 32, n_rows = 3;
  std::vector<std::byte> tile(static_cast<size_t>(kv_tile_bytes(info(KvType::q8_0).bytes_per_32, hd)));
  const auto code = [](int pos, int ch) { return ch == pos ? 127 : (pos * 37 + ch * 11) % 255 - 127; };
  for (const Isa* isa : isas()) {
    const KvKernels& kv = kernels_of(*isa).kv[static_cast<int>(KvType::q8_0)];
    for (int pos = 0; pos < 32; ++pos) {
      float row[32];
      for (int ch = 0; ch < 32; ++ch) row[ch] = static_cast<float>(code(pos, ch));
      kv.store_v(row, hd, pos, tile.data());
    }
    // Ties; then all weights just below the limit, and at it.
    std::vector<float> p(static_cast<size_t>(n_rows * 32));
    int u[32], n_ties = 0;
    for (int pos = 0; pos < 32; ++pos) {
      const float half = static_cast<float>(7 * pos) + 0.5f;
      p[static_cast<size_t>(pos)] = pos == 0 ? 1.0f : half / 255.0f;
      n_ties += pos != 0 && p[static_cast<size_t>(pos)] * 255.0f == half ? 1 : 0;
      u[pos] = pos == 0 ? 255 : static_cast<int>(std::nearbyint(p[static_cast<size_t>(pos)] * 255.0f));
      p[static_cast<size_t>(32 + pos)] = 0x1.fffffep-101f;
      p[static_cast<size_t>(64 + pos)] = 0x1p-100f;
    }
    ASSERT_GE(n_ties, 20);
    std::vector<float> acc(p.size());
    const int32_t visible[n_rows] = {32, 32, 32};
    kv.weigh({tile.data(), hd, n_rows, p.data(), 32, visible, acc.data(), hd});
    for (int ch = 0; ch < 32; ++ch) {
      int tied = 0, alike = 0;
      for (int pos = 0; pos < 32; ++pos) {
        tied += u[pos] * code(pos, ch);
        alike += 255 * code(pos, ch);
      }
      const auto at = static_cast<size_t>(ch);
      EXPECT_EQ(acc[at], static_cast<float>(tied) * (1.0f / 255.0f)) << isa->name << " channel " << ch;
      EXPECT_EQ(acc[32 + at], 0.0f) << isa->name << " channel " << ch;
      EXPECT_FALSE(std::signbit(acc[32 + at])) << isa->name << " channel " << ch;
      EXPECT_EQ(acc[64 + at], static_cast<float>(alike) * (0x1p-100f / 255.0f)) << isa->name << " channel " << ch;
    }
  }
}

TEST(Rows, SoftmaxMergeRotateRopeAreTheSameBits) {
  std::mt19937 random(seed() + 5);
  std::normal_distribution<float> normal(0, 4);
  const Kernels& scalar = kernels_of(all_isas()[0]);
  for (const Isa* isa : isas()) {
    const Kernels& kernels = kernels_of(*isa);
    for (int n = 1; n <= 256; ++n) {
      std::vector<float> a(256), b;
      // Every other row reaches below exp's -87, where weights are zero and not subnormal.
      for (float& x : a) x = normal(random) * (n % 2 != 0 ? 1.0f : 20.0f);
      b = a;
      float m1 = 0, l1 = 0, m2 = 0, l2 = 0;
      scalar.softmax_page(a.data(), n, &m1, &l1);
      kernels.softmax_page(b.data(), n, &m2, &l2);
      ASSERT_EQ(a, b);
      ASSERT_EQ(m1, m2);
      ASSERT_EQ(l1, l2);
      ASSERT_EQ(b[static_cast<size_t>(n % 256)], n % 256 == 0 ? b[0] : 0.0f);
    }
    for (int block : {32, 64, 128, 256}) {
      std::vector<float> a(256), b;
      for (float& x : a) x = normal(random);
      b = a;
      scalar.rotate(a.data(), 256, block);
      kernels.rotate(b.data(), 256, block);
      ASSERT_EQ(a, b) << isa->name << " block " << block;
      double energy = 0, difference = 0;
      const std::vector<float> once = b;
      kernels.rotate(b.data(), 256, block);
      kernels.rotate(b.data(), 256, block);
      for (size_t i = 0; i < 256; ++i) {
        energy += static_cast<double>(once[i]) * once[i];
        difference += std::pow(static_cast<double>(once[i]) - b[i], 2);
      }
      ASSERT_LE(difference / energy, 1e-12) << "rotating twice gives the row back";
    }
    for (const auto& [head_dim, rope_dims] : {std::pair{32, 32}, {32, 24}, {64, 64}, {96, 96}, {128, 64}, {160, 160}, {256, 256}}) {
      for (const bool interleaved : {false, true}) {
        std::vector<float> a(static_cast<size_t>(head_dim)), b, cos(a), sin(a);
        for (float& x : a) x = normal(random);
        for (size_t i = 0; i < cos.size(); ++i) {
          cos[i] = std::cos(normal(random));
          sin[i] = std::sin(normal(random));
        }
        b = a;
        scalar.rope(a.data(), rope_dims, interleaved, cos.data(), sin.data());
        kernels.rope(b.data(), rope_dims, interleaved, cos.data(), sin.data());
        ASSERT_EQ(a, b) << isa->name << " rope of " << rope_dims << (interleaved ? " interleaved" : " halves");
      }
    }
    for (int head_dim : {32, 96, 128, 256}) {
      std::vector<float> acc(static_cast<size_t>(head_dim)), page(acc), other, out1(acc), out2(acc);
      for (float& x : acc) x = normal(random);
      for (float& x : page) x = normal(random);
      other = acc;
      float l1 = 3.0f;
      // The page's maximum above, below and equal.
      for (const auto& [m, m_p] : {std::pair{1.5f, 2.25f}, {2.25f, 1.5f}, {0.5f, 0.5f}, {-3.0f, -200.0f}}) {
        float m1 = m, m2 = m, l2 = l1;
        scalar.merge(head_dim, &m1, &l1, acc.data(), m_p, 7.0f, page.data());
        kernels.merge(head_dim, &m2, &l2, other.data(), m_p, 7.0f, page.data());
        ASSERT_EQ(acc, other);
        ASSERT_EQ(l1, l2);
        ASSERT_EQ(m1, m2);
      }
      for (const auto& [m, m_p] : {std::pair{NAN, 1.0f}, {1.0f, NAN}, {INFINITY, INFINITY}}) {
        std::vector<float> bad = acc;
        float top = m, l = 3.0f;
        kernels.merge(head_dim, &top, &l, bad.data(), m_p, 7.0f, page.data());
        ASSERT_TRUE(std::isnan(l) && std::isnan(bad[0]) && std::isnan(bad.back()));
      }
      scalar.finish(head_dim, acc.data(), l1, out1.data());
      kernels.finish(head_dim, acc.data(), l1, out2.data());
      ASSERT_EQ(out1, out2);
    }
  }
}

}  // namespace
}  // namespace bantam
