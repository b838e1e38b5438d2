// Weight and row kernels of every instruction set over every weight type of the table: against the
// double-precision oracle, bit for bit against scalar, inside guards, any split. Cases are counted.
// BANTAM_SAMPLE=n runs every nth case, and above 1 fewer of the large ones.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "codec/half.h"
#include "codec/numerics.h"
#include "cpu/isa.h"
#include "tests/support/oracle_weights.h"

namespace bantam {
namespace {

constexpr uint32_t kGuard = 0x7fa5a5a5u;  // a NaN that no kernel makes

int sample_every() {
  const char* text = std::getenv("BANTAM_SAMPLE");
  return text == nullptr ? 1 : std::max(1, std::atoi(text));
}

std::vector<const Isa*> supported_isas() {
  std::vector<const Isa*> list;
  for (const Isa& isa : all_isas()) {
    if (isa.supported()) list.push_back(&isa);
  }
  return list;
}

std::string supported_names() {
  std::string names;
  for (const Isa* isa : supported_isas()) names += std::string(" ") + isa->name;
  return names;
}

const Kernels& scalar() { return kernels_of(all_isas()[0]); }

bool same_bits(float a, float b) { return bits_of(a) == bits_of(b) || (a != a && b != b); }

// Exactly n values on a 64-byte boundary, so that the sanitizer sees every step beyond them.
template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t n)
      : n_(n), data_(static_cast<T*>(::operator new (bytes(n), std::align_val_t{64}))) {
    std::memset(static_cast<void*>(data_.get()), 0, bytes(n));
  }
  T* get() { return data_.get(); }
  const T* get() const { return data_.get(); }
  T& operator[](int64_t i) { return data_.get()[i]; }
  const T& operator[](int64_t i) const { return data_.get()[i]; }
  int64_t size() const { return n_; }

 private:
  static size_t bytes(int64_t n) { return static_cast<size_t>(n) * sizeof(T); }
  struct Delete {
    void operator()(T* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  int64_t n_;
  std::unique_ptr<T, Delete> data_;
};

using Random = std::mt19937;

float random_normal(Random& random) { return std::normal_distribution<float>()(random); }

// A scale as fp16: either sign, sometimes zero or subnormal, never infinite.
uint16_t random_half(Random& random) {
  switch (random() % 16) {
    case 0:
      return random() % 2 ? 0x8000 : 0;
    case 1:
      return static_cast<uint16_t>(random() & 0x83ffu);
  }
  return static_cast<uint16_t>((random() & 0x83ffu) | (5 + random() % 12) << 10);
}

void put_half(std::byte* p, uint16_t h) { std::memcpy(p, &h, 2); }

// Random bytes are random codes; only the places of scales need care.
void random_block(WeightType type, Random& random, std::byte* p) {
  for (int i = 0; i < info(type).block_bytes; ++i) p[i] = static_cast<std::byte>(random());
  switch (type) {
    case WeightType::f32: {
      const float x = random_normal(random);
      std::memcpy(p, &x, 4);
      return;
    }
    case WeightType::f16:
      return put_half(p, random_half(random));
    case WeightType::q4_1:
      put_half(p + 2, random_half(random));
      return put_half(p, random_half(random));
    case WeightType::q6_k:
      return put_half(p + 208, random_half(random));
    case WeightType::q4_k:
      put_half(p + 2, random_half(random));
      return put_half(p, random_half(random));
    case WeightType::q4_0:
    case WeightType::q8_0:
    case WeightType::q1_0:
    case WeightType::q2_0:
    case WeightType::pq2_0:
      return put_half(p, random_half(random));
  }
}

struct Matrix {
  Aligned<std::byte> source;
  Aligned<std::byte> packed;
  PackedMatrix w;
  std::vector<oracle::Row> rows;
};

void pack(const Kernels& kernels, const Matrix& m, Aligned<std::byte>& out) {
  const int64_t row_bytes = packed_row_bytes(m.w.type, m.w.cols);
  for (int g = 0; g < n_groups(m.w.rows); ++g) {
    kernels.weight[static_cast<int>(m.w.type)].pack_group(
        m.source.get() + g * kGroupRows * row_bytes, row_bytes,
        std::min(kGroupRows, m.w.rows - g * kGroupRows), m.w.cols,
        out.get() + g * packed_group_bytes(m.w.type, m.w.cols));
  }
}

Matrix make_matrix(WeightType type, int rows, int cols, Random& random) {
  const int64_t row_bytes = packed_row_bytes(type, cols);
  Matrix m{Aligned<std::byte>(rows * row_bytes),
           Aligned<std::byte>(n_groups(rows) * packed_group_bytes(type, cols)),
           {},
           {}};
  const int block_bytes = info(type).block_bytes;
  for (int64_t i = 0; i < m.source.size(); i += block_bytes) {
    random_block(type, random, m.source.get() + i);
  }
  m.w = {type, rows, cols, m.packed.get()};
  pack(scalar(), m, m.packed);
  for (int r = 0; r < rows; ++r) {
    m.rows.push_back(oracle::decode_row(type, m.source.get() + r * row_bytes, cols));
  }
  return m;
}

struct Activations {
  Aligned<float> x, d;
  Aligned<int8_t> q;
  Aligned<int32_t> sums;
  Aligned<float> float_sums;
  Aligned<int16_t> sums16;
  Aligned<int8_t> low;
  std::vector<int32_t> values;  // [n_rows][cols] what was rounded, in plain order
  ActRows rows;
};

// One row rounded by scalar, its quads spread to where the kernels expect them.
void round_row(Activations& a, int n_rows, int cols, int block, bool wide, int t) {
  const int64_t row = int64_t{t} * cols;
  Aligned<int8_t> high(cols), low(cols);
  float* d = a.d.get() + row / block;
  int32_t* sums = a.sums.get() + row / block;
  if (wide) {
    scalar().quantize16(a.x.get() + row, cols, block, high.get(), low.get(), d, sums);
  } else {
    scalar().quantize(a.x.get() + row, cols, block, high.get(), d, sums, a.sums16.get() + row / 16);
  }
  for (int c = 0; c < cols; ++c) {
    a.q[act_offset(n_rows, cols, t, c)] = high[c];
    if (wide) a.low[act_offset(n_rows, cols, t, c)] = low[c];
    a.values[static_cast<size_t>(row + c)] = wide ? 256 * high[c] + low[c] : high[c];
  }
}

Activations make_activations(int n_rows, int cols, int block, bool wide, Random& random) {
  const int64_t n = int64_t{n_rows} * cols;
  const bool quantized = block != 0;
  Activations a{Aligned<float>(n),
                Aligned<float>(quantized ? n / block : 0),
                Aligned<int8_t>(quantized ? n : 0),
                Aligned<int32_t>(quantized ? n / block : 0),
                Aligned<float>(quantized ? n / block : 0),
                Aligned<int16_t>(quantized ? n / 16 : 0),
                Aligned<int8_t>(wide ? n : 0),
                std::vector<int32_t>(static_cast<size_t>(n)),
                {}};
  const float scale = std::ldexp(1.0f, static_cast<int>(random() % 24) - 12);
  for (int64_t i = 0; i < n; ++i) a.x[i] = random_normal(random) * scale;
  if (!quantized) return a;
  // Now and then a block of zeros, of extremes, or one that is not finite.
  for (int64_t b = 0; b < n / block; ++b) {
    const unsigned kind = random() % 64;
    if (kind == 1) a.x[b * block + random() % static_cast<unsigned>(block)] = std::nanf("");
    for (int64_t i = b * block; kind > 1 && kind < 4 && i < (b + 1) * block; ++i) {
      a.x[i] = kind == 2 ? 0.0f : random() % 2 ? scale : -scale;
    }
  }
  for (int t = 0; t < n_rows; ++t) round_row(a, n_rows, cols, block, wide, t);
  for (int64_t b = 0; b < n / block; ++b) a.float_sums[b] = static_cast<float>(a.sums[b]);
  a.rows = {n_rows,
            cols,
            block,
            a.q.get(),
            a.d.get(),
            a.sums.get(),
            a.float_sums.get(),
            a.sums16.get(),
            wide ? a.low.get() : nullptr};
  return a;
}

// Outputs between guards: ldy is larger than the rows, and so is the buffer.
struct Output {
  int rows, n_rows;
  int64_t ldy;
  Aligned<float> y;

  Output(int rows, int n_rows)
      : rows(rows), n_rows(n_rows), ldy(rows + 3), y(16 + ldy * n_rows + 16) {
    for (int64_t i = 0; i < y.size(); ++i) y[i] = float_of(kGuard);
  }
  float* begin() { return y.get() + 16; }
  float at(int t, int r) const { return y[16 + t * ldy + r]; }
  void set_old(Random& random) {
    for (int t = 0; t < n_rows; ++t) {
      for (int r = 0; r < rows; ++r) begin()[t * ldy + r] = random_normal(random);
    }
  }
  // Everything but rows [first, last) still holds the guard.
  bool untouched_outside(int first, int last) const {
    for (int64_t i = 0; i < y.size(); ++i) {
      const int64_t at = i - 16;
      const bool inside = at >= 0 && at < ldy * n_rows && at % ldy >= first && at % ldy < last;
      if (!inside && bits_of(y[i]) != kGuard) return false;
    }
    return true;
  }
};

struct Case {
  WeightType type;
  int rows, cols, n_rows, act_block;  // act_block 0: the float path
  bool wide;                          // --act i16
  bool add;
};

MatmulArgs arguments(const Case& c, const Matrix& m, const Activations& a, Output& out,
                     Aligned<float>& scratch) {
  MatmulArgs args;
  args.w = &m.w;
  args.group_end = n_groups(c.rows);
  args.a = a.rows;
  args.x = a.x.get();
  args.n_rows = c.n_rows;
  args.y = out.begin();
  args.ldy = out.ldy;
  args.add = c.add;
  args.scratch = scratch.get();
  return args;
}

void call(const Kernels& kernels, const Case& c, const MatmulArgs& args) {
  const WeightKernels& slot = kernels.weight[static_cast<int>(c.type)];
  (c.act_block == 0 ? slot.matmul_f32 : slot.matmul)(args);
}

void check_oracle(const Case& c, const Matrix& m, const Activations& a, const Output& old,
                  const Output& out) {
  for (int t = 0; t < c.n_rows; ++t) {
    const int64_t row = int64_t{t} * c.cols;
    for (int r = 0; r < c.rows; ++r) {
      const oracle::Row& w = m.rows[static_cast<size_t>(r)];
      oracle::Product p = c.act_block == 0
                              ? oracle::float_dot(w, a.x.get() + row)
                              : oracle::quantized_dot(w, a.values.data() + row,
                                                      a.d.get() + row / c.act_block, c.act_block);
      if (c.add) {
        p.value += old.at(t, r);
        p.bound += (std::fabs(p.value) + p.bound) * oracle::kHalfUlp;
      }
      if (p.value != p.value) {
        ASSERT_NE(out.at(t, r), out.at(t, r)) << "row " << r << " token " << t;
      } else {
        ASSERT_LE(std::fabs(out.at(t, r) - p.value), p.bound)
            << out.at(t, r) << " for " << p.value << ", row " << r << " token " << t;
      }
    }
  }
}

// One row looked up in tables, or several in another order: what kernels may prefer.
struct OtherRows {
  Aligned<std::byte> tables;
  Aligned<int8_t> q, low;
  Aligned<float> d;
  Aligned<int32_t> sums;
  Aligned<float> float_sums;

  OtherRows(const Kernels& kernels, WeightType type, ActOrder order, const Activations& a,
            ActRows& rows)
      : tables(a.rows.n_rows == 1 ? table_bytes(a.rows.n_cols, a.rows.low == nullptr ? 2 : 3) : 0),
        q(int64_t{tiled_rows(a.rows.n_rows)} * a.rows.n_cols),
        low(a.rows.low == nullptr ? 0 : q.size()),
        d(q.size() / a.rows.block),
        sums(d.size()),
        float_sums(d.size()) {
    rows = a.rows;
    const bool alone = rows.n_rows == 1;
    rows.order = order;
    move_rows(a, order == ActOrder::tiles);
    rows.q = q.get();
    rows.d = d.get();
    // Not to be read where codes are signed.
    rows.sums = type == WeightType::q1_0 || order == ActOrder::tiles ? nullptr : sums.get();
    rows.float_sums = type == WeightType::q1_0 ? nullptr : float_sums.get();
    rows.low = a.rows.low == nullptr ? nullptr : low.get();
    if (!alone) return;
    rows.planes = rows.low == nullptr ? 2 : 3;
    kernels.build_tables(rows.q, rows.low, rows.n_cols, tables.get());
    rows.tables = tables.get();
    rows.q = rows.low = nullptr;
  }

 private:
  // Tiles have rows that are not there: whatever is in them must not matter.
  void move_rows(const Activations& a, bool tiles) {
    const ActRows& rows = a.rows;
    std::memset(q.get(), 0x5a, static_cast<size_t>(q.size()));
    std::memset(low.get(), 0x5a, static_cast<size_t>(low.size()));
    for (int64_t i = 0; i < d.size(); ++i) d[i] = float_sums[i] = std::nanf("");
    for (int t = 0; t < rows.n_rows; ++t) {
      for (int c = 0; c < rows.n_cols; ++c) {
        const int64_t from = act_offset(rows.n_rows, rows.n_cols, t, c);
        const int64_t to = tiles
                               ? tile_offset(rows.n_rows, rows.n_cols, tile_depth(rows.block), t, c)
                               : int64_t{t} * rows.n_cols + c;
        q[to] = rows.q[from];
        if (rows.low != nullptr) low[to] = rows.low[from];
      }
      const int n_blocks = rows.n_cols / rows.block;
      for (int b = 0; b < n_blocks; ++b) {
        const int64_t to =
            tiles ? tile_offset(rows.n_rows, n_blocks, 1, t, b) : int64_t{t} * n_blocks + b;
        d[to] = rows.d[int64_t{t} * n_blocks + b];
        sums[to] = rows.sums[int64_t{t} * n_blocks + b];
        float_sums[to] = rows.float_sums[int64_t{t} * n_blocks + b];
      }
    }
  }
};

void check_same(const Output& a, const Output& b) {
  for (int t = 0; t < a.n_rows; ++t) {
    for (int r = 0; r < a.rows; ++r) {
      ASSERT_TRUE(same_bits(a.at(t, r), b.at(t, r)))
          << a.at(t, r) << " and " << b.at(t, r) << ", row " << r << " token " << t;
    }
  }
}

// What a kernel takes beside panels (plain: the tables of a single row).
std::vector<ActOrder> other_orders(const Kernels& kernels, const Case& c) {
  const WeightKernels& slot = kernels.weight[static_cast<int>(c.type)];
  std::vector<ActOrder> orders;
  if (c.act_block == 0) return orders;
  if (c.n_rows == 1 && slot.tables) orders.push_back(ActOrder::plain);
  for (const ActOrder order : {ActOrder::plain, ActOrder::tiles}) {
    if (c.n_rows > 1 && (slot.orders & order_bit(order)) != 0) orders.push_back(order);
  }
  return orders;
}

bool other_orders_exist() {
  for (const Isa* isa : supported_isas()) {
    for (const WeightKernels& slot : kernels_of(*isa).weight) {
      if (slot.tables || slot.orders != order_bit(ActOrder::panels)) return true;
    }
  }
  return false;
}

int n_other_rows = 0;  // cases run once more with tables or rows in another order
int n_by_four = 0;     // and with their groups as four parts side by side

// The groups of `args` as four parts, some of them empty; whether the kernel is the one that this
// CPU would choose does not matter.
void call_four(const Kernels& kernels, const Case& c, const MatmulArgs& args, Random& random) {
  const int n = args.group_end;
  // Equal parts, of which the last has what is left over, or any.
  int cuts[5] = {0, n / 4, n / 4 * 2, n / 4 * 3, n};
  if (random() % 2 == 0) {
    for (int i = 1; i < 4; ++i) cuts[i] = static_cast<int>(random() % static_cast<unsigned>(n + 1));
    std::sort(cuts, cuts + 5);
  }
  MatmulArgs four[4] = {args, args, args, args};
  const unsigned first = random() % 4;  // the longest part need not be the last
  for (unsigned i = 0; i < 4; ++i) {
    four[(first + i) % 4].group_begin = cuts[i];
    four[(first + i) % 4].group_end = cuts[i + 1];
  }
  kernels.weight[static_cast<int>(c.type)].matmul_four(four);
  ++n_by_four;
}

void run_case(const Case& c, unsigned seed) {
  SCOPED_TRACE(testing::Message() << info(c.type).name << " rows " << c.rows << " cols " << c.cols
                                  << " n_rows " << c.n_rows << " act " << c.act_block
                                  << (c.wide ? " i16" : "") << " add " << c.add);
  Random random(seed);
  const Matrix m = make_matrix(c.type, c.rows, c.cols, random);
  const Activations a = make_activations(c.n_rows, c.cols, c.act_block, c.wide, random);
  Aligned<float> scratch(c.cols);
  Output old(c.rows, c.n_rows);
  if (c.add) old.set_old(random);
  Output reference(c.rows, c.n_rows);
  std::memcpy(reference.y.get(), old.y.get(), static_cast<size_t>(old.y.size()) * 4);
  call(scalar(), c, arguments(c, m, a, reference, scratch));
  check_oracle(c, m, a, old, reference);
  ASSERT_TRUE(reference.untouched_outside(0, c.rows));
  for (const Isa* isa : supported_isas()) {
    SCOPED_TRACE(isa->name);
    Output out(c.rows, c.n_rows);
    if (c.add) std::memcpy(out.y.get(), old.y.get(), static_cast<size_t>(old.y.size()) * 4);
    MatmulArgs args = arguments(c, m, a, out, scratch);
    // Large matrices go in one call: they are there for the loops over passes and tiles.
    const int split =
        c.rows > 1000 ? 0 : static_cast<int>(random() % static_cast<unsigned>(args.group_end + 1));
    // Two calls on a random split of the groups; nothing outside each part may change.
    const auto check_split = [&](MatmulArgs part, const Output& y) {
      part.group_begin = split;
      call(kernels_of(*isa), c, part);
      if (!c.add) ASSERT_TRUE(y.untouched_outside(split * kGroupRows, c.rows));
      part.group_begin = 0;
      part.group_end = split;
      call(kernels_of(*isa), c, part);
      ASSERT_TRUE(y.untouched_outside(0, c.rows));
      check_same(reference, y);
    };
    check_split(args, out);
    if (testing::Test::HasFatalFailure()) return;
    for (const ActOrder order : other_orders(kernels_of(*isa), c)) {
      SCOPED_TRACE(testing::Message() << "order " << static_cast<int>(order));
      Output other(c.rows, c.n_rows);
      if (c.add) std::memcpy(other.y.get(), old.y.get(), static_cast<size_t>(old.y.size()) * 4);
      args = arguments(c, m, a, other, scratch);
      const OtherRows rows(kernels_of(*isa), c.type, order, a, args.a);
      check_split(args, other);
      if (testing::Test::HasFatalFailure()) return;
      ++n_other_rows;
    }
    // The float path of rounded types has no such slot.
    if (c.n_rows > 1 || (c.act_block == 0 && info(c.type).act_block != 0)) continue;
    Output by_four(c.rows, 1);
    if (c.add) std::memcpy(by_four.y.get(), old.y.get(), static_cast<size_t>(old.y.size()) * 4);
    args = arguments(c, m, a, by_four, scratch);
    const bool tables =
        c.act_block != 0 && kernels_of(*isa).weight[static_cast<int>(c.type)].tables;
    std::unique_ptr<OtherRows> rows;
    if (tables) {
      rows = std::make_unique<OtherRows>(kernels_of(*isa), c.type, ActOrder::plain, a, args.a);
    }
    call_four(kernels_of(*isa), c, args, random);
    ASSERT_TRUE(by_four.untouched_outside(0, c.rows));
    check_same(reference, by_four);
  }
}

// Several blocks, ragged where a block is a single value.
std::vector<int> columns_of(WeightType type) {
  const int values = info(type).block_values;
  if (values == 1) return {1, 15, 16, 17, 40, 300, 513};
  return {values, 2 * values, 3 * values, 5 * values};
}

struct ActPath {
  int block;  // 0: the float path, which every type has
  bool wide;
};

// Types with larger blocks also take 32, in the down projection; codes above 4 bits have no i16.
std::vector<ActPath> act_paths_of(WeightType type) {
  const int block = info(type).act_block;
  std::vector<ActPath> paths = {{0, false}};
  for (const bool wide : {false, true}) {
    if (block == 0 || (wide && !info(type).act_i16)) continue;
    paths.push_back({32, wide});
    if (block != 32) paths.push_back({block, wide});
  }
  return paths;
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  const std::vector<int> tokens = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11,
                                   12, 13, 14, 15, 16, 17, 18, 19, 24, 33, 64};
  for (int i = 0; i < kNumWeightTypes; ++i) {
    const auto type = static_cast<WeightType>(i);
    const std::vector<int> columns = columns_of(type);
    size_t turn = 0;
    for (const ActPath path : act_paths_of(type)) {
      // Rows around one, two and three groups.
      for (const int rows : {1, 2, 7, 15, 16, 17, 31, 32, 33, 40, 48, 50}) {
        for (const int n_rows : tokens) {
          cases.push_back({type, rows, columns[turn % columns.size()], n_rows, path.block,
                           path.wide, turn / columns.size() % 2 == 1});
          ++turn;
        }
        turn += static_cast<size_t>(rows) % 3;  // so that every pair meets
      }
    }
  }
  return cases;
}

TEST(Weights, EveryTypeShapeAndSplitMatchesOracleAndScalar) {
  const std::vector<Case> cases = all_cases();
  const auto step = static_cast<size_t>(sample_every());
  int paths = 0;
  for (int i = 0; i < kNumWeightTypes; ++i) {
    paths += static_cast<int>(act_paths_of(static_cast<WeightType>(i)).size());
  }
  ASSERT_EQ(cases.size(), static_cast<size_t>(paths) * 12 * 22);
  size_t executed = 0;
  for (size_t i = 0; i < cases.size(); i += step) {
    run_case(cases[i], static_cast<unsigned>(i) + 1);
    if (HasFatalFailure()) return;
    ++executed;
  }
  EXPECT_EQ(executed, (cases.size() + step - 1) / step);
  if (other_orders_exist()) EXPECT_GT(n_other_rows, 0);
  EXPECT_GT(n_by_four, 0);
  std::printf("by tables or rows in another order: %d cases, by four: %d\n", n_other_rows,
              n_by_four);
  std::printf("matmul: %zu of %zu cases x %zu instruction sets:%s\n", executed, cases.size(),
              supported_isas().size(), supported_names().c_str());
}

// Rows whose values are all `high` (and `low`), against weights that are all + or all -.
void check_extremes(const Kernels& kernels, int n_rows, bool wide, int high, int low) {
  Random random(1);
  Matrix m = make_matrix(WeightType::q1_0, 16, 128, random);
  for (const uint8_t bits : {0x00, 0xff, 0x5a}) {
    for (const int block : {128, 32}) {
      std::memset(m.packed.get(), bits, 256);
      Activations a = make_activations(n_rows, 128, block, wide, random);
      const int value = wide ? 256 * high + low : high;
      for (int c = 0; c < 128 * n_rows; ++c) {
        a.q[c] = static_cast<int8_t>(high);
        if (wide) a.low[c] = static_cast<int8_t>(low);
      }
      for (int i = 0; i < 128 / block * n_rows; ++i) a.sums[i] = block * value;
      Aligned<float> scratch(128);
      const Case c{WeightType::q1_0, 16, 128, n_rows, block, wide, false};
      Output expected(16, n_rows), out(16, n_rows);
      call(scalar(), c, arguments(c, m, a, expected, scratch));
      for (const ActOrder order : other_orders(kernels, c)) {
        MatmulArgs args = arguments(c, m, a, out, scratch);
        const OtherRows rows(kernels, c.type, order, a, args.a);
        call(kernels, c, args);
        check_same(expected, out);
        if (n_rows > 1) continue;
        // Four times the same group.
        Output again(16, n_rows);
        args.y = again.begin();
        const MatmulArgs four[4] = {args, args, args, args};
        kernels.weight[static_cast<int>(c.type)].matmul_four(four);
        check_same(expected, again);
      }
    }
  }
}

// More groups and columns than one pass or tile covers.
TEST(Weights, LookUpsOfManyGroupsAndColumns) {
  for (const bool wide : {false, true}) {
    for (const int n_rows : {1, 3, 9}) {
      run_case({WeightType::q1_0, 530, 1152, n_rows, 128, wide, true}, 77);
      run_case({WeightType::q1_0, 530, 1152, n_rows, 32, wide, false}, 78);
    }
    // Tables of one row that do not fit L1.
    for (const int cols : {1408, 2048, 2176, 6144}) {
#ifdef __x86_64__
      // Under an emulator one of the four: the real CPU of the same test has them all.
      if (sample_every() > 1 && cols != 2176) continue;
#endif
      for (const int n_rows : {1, 2, 6}) {
        run_case({WeightType::q1_0, 50, cols, n_rows, 128, wide, false}, 79);
        run_case({WeightType::q1_0, 50, cols, n_rows, 32, wide, true}, 80);
        run_case({WeightType::q1_0, 66, cols, n_rows, 32, wide, false}, 81);
      }
    }
    // Passes and tiles of many groups, where anything looks sums up.
    for (const int block : {128, 32}) {
      if (!other_orders_exist()) break;
      run_case({WeightType::q1_0, 1050, 2176, 1, block, wide, block == 32}, 82);
      for (const int n_rows : {2, 9}) {
        run_case({WeightType::q1_0, 2100, 256, n_rows, block, wide, block == 128}, 83);
      }
    }
  }
}

// More groups and rows than the tiles of one step and one pass, whole and ragged.
TEST(Weights, ManyRowsOfManyGroups) {
  const int before = n_other_rows;
  int executed = 0;
  unsigned seed = 200;
  for (const bool wide : {false, true}) {
    for (const int n_rows : {17, 48, 64, 80, 97}) {
      // Under an emulator one of the ten.
      if (sample_every() > 1 && n_rows != 80) continue;
      for (const int rows : {150, 64}) {
        if (sample_every() > 1 && rows != 150) continue;
        run_case({WeightType::q1_0, rows, 384, n_rows, 128, wide, seed % 2 == 0}, seed);
        run_case({WeightType::q1_0, rows, 640, n_rows, 32, wide, seed % 2 != 0}, seed);
        run_case({WeightType::q2_0, rows, 320, n_rows, 64, wide, seed % 2 == 0}, seed);
        run_case({WeightType::q4_1, rows, 288, n_rows, 32, wide, seed % 2 != 0}, seed);
        if (HasFatalFailure()) return;
        executed += 4;
        ++seed;
      }
    }
  }
  EXPECT_EQ(executed, sample_every() > 1 ? 8 : 80);
  if (other_orders_exist()) EXPECT_GT(n_other_rows, before);
}

// One row in four parts: several groups of each, ragged or not, tables in L1 and beyond it.
TEST(Weights, LookUpsByFour) {
  const int before = n_by_four;
  unsigned seed = 100;
  for (const bool wide : {false, true}) {
    for (const int block : {128, 32}) {
      for (const int cols : {128, 1152, 2048, 4096, 6144}) {
        for (const int rows : {64, 180, 257, 330}) {
          run_case({WeightType::q1_0, rows, cols, 1, block, wide, seed % 3 == 0}, seed);
          if (HasFatalFailure()) return;
          ++seed;
        }
      }
    }
  }
  EXPECT_EQ(static_cast<size_t>(n_by_four - before), 80 * supported_isas().size());
}

TEST(Weights, LookUpsOfTheLargestSums) {
  int executed = 0, wanted = 0;
  for (const Isa* isa : supported_isas()) {
    const Kernels& kernels = kernels_of(*isa);
    if (!kernels.weight[static_cast<int>(WeightType::q1_0)].tables) continue;
    wanted += 3 * 2 * 2 * 3;
    for (const int high : {-127, 127, 0}) {
      for (const int low : {-128, 127}) {
        for (const bool wide : {false, true}) {
          for (const int n_rows : {1, 9, 15}) {
            check_extremes(kernels, n_rows, wide, high, low);
            ++executed;
          }
        }
      }
    }
  }
  EXPECT_EQ(executed, wanted);
  std::printf("largest sums: %d cases\n", executed);
}

// Every code 15, every activation the largest, sub-scales 63 and 0: vector sets multiply these as floats.
TEST(Weights, LargestProductsOfQ4K) {
  Random random(85);
  Aligned<float> scratch(256);
  int executed = 0;
  for (const bool wide : {false, true}) {
    for (const int n_rows : {1, 8, 17}) {
      for (const float x : {1.0f, -1.0f}) {
        const Case c{WeightType::q4_k, 32, 256, n_rows, 32, wide, false};
        Matrix m = make_matrix(c.type, c.rows, c.cols, random);
        for (int r = 0; r < c.rows; ++r) {
          std::byte* block = m.source.get() + r * packed_row_bytes(c.type, c.cols);
          std::memset(block, 0xff, 144);
          put_half(block, 0x3c00);
          put_half(block + 2, 0x3800);
          if (r % 2 != 0) std::memset(block + 4, 0, 12);
        }
        pack(scalar(), m, m.packed);
        Activations a = make_activations(n_rows, c.cols, 32, wide, random);
        for (int64_t i = 0; i < a.x.size(); ++i) a.x[i] = x;
        for (int t = 0; t < n_rows; ++t) round_row(a, n_rows, c.cols, 32, wide, t);
        ASSERT_EQ(std::abs(a.sums[0]), 32 * (wide ? 32512 : 127));
        for (int64_t b = 0; b < a.sums.size(); ++b) a.float_sums[b] = static_cast<float>(a.sums[b]);
        Output expected(c.rows, n_rows), out(c.rows, n_rows);
        call(scalar(), c, arguments(c, m, a, expected, scratch));
        for (const Isa* isa : supported_isas()) {
          call(kernels_of(*isa), c, arguments(c, m, a, out, scratch));
          check_same(expected, out);
          for (const ActOrder order : other_orders(kernels_of(*isa), c)) {
            MatmulArgs args = arguments(c, m, a, out, scratch);
            const OtherRows rows(kernels_of(*isa), c.type, order, a, args.a);
            call(kernels_of(*isa), c, args);
            check_same(expected, out);
          }
          ++executed;
        }
      }
    }
  }
  EXPECT_EQ(executed, 12 * static_cast<int>(supported_isas().size()));
}

TEST(Weights, TablesAreTheSameAsScalar) {
  int executed = 0;
  for (const Isa* isa : supported_isas()) {
    for (int n = 16; n <= 512; n += 16) {
      for (const bool wide : {false, true}) {
        Random random(static_cast<unsigned>(n));
        Aligned<int8_t> q(n), low(n);
        for (int i = 0; i < n; ++i) {
          q[i] = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
          low[i] = static_cast<int8_t>(random() % 8 == 0 ? -128
                                                         : static_cast<int>(random() % 256) - 128);
        }
        const int64_t bytes = table_bytes(n, wide ? 3 : 2);
        Aligned<std::byte> expected(bytes), out(bytes);
        scalar().build_tables(q.get(), wide ? low.get() : nullptr, n, expected.get());
        kernels_of(*isa).build_tables(q.get(), wide ? low.get() : nullptr, n, out.get());
        ASSERT_EQ(std::memcmp(expected.get(), out.get(), static_cast<size_t>(bytes)), 0)
            << isa->name << " " << n << (wide ? " i16" : "");
        // From the words of kernels.h: entry 16c + i of columns [16p, 16p + 16).
        const int p = static_cast<int>(random() % static_cast<unsigned>(n / 16));
        const int c = static_cast<int>(random() % 4), i = static_cast<int>(random() % 16);
        int sum = 0, found = 0;
        for (int k = 0; k < 4; ++k) {
          const int64_t at = 16 * p + 4 * k + c;
          const int x = wide ? 256 * q[at] + low[at] : q[at];
          sum += (i >> k & 1) != 0 ? x : -x;
        }
        const std::byte* entry = out.get() + int64_t{p} * 64 * (wide ? 3 : 2) + 16 * c + i;
        const int bits = wide ? 6 : 5, last = wide ? 2 : 1;
        for (int plane = 0; plane < last; ++plane) {
          found += static_cast<int>(entry[64 * plane]) << (bits * plane);
        }
        found += static_cast<int8_t>(entry[64 * last]) * (1 << (bits * last));
        ASSERT_EQ(sum, found) << isa->name;
        ++executed;
      }
    }
  }
  EXPECT_EQ(executed, static_cast<int>(supported_isas().size()) * 32 * 2);
}

TEST(Weights, VectorSetsFillTheirOwnSlots) {
  int executed = 0;
  for (const Isa* isa : supported_isas()) {
    if (std::strncmp(isa->name, "scalar", 6) == 0) continue;
    for (const Isa* other : supported_isas()) {
      // What amx has not of its own is avx512's.
      const std::string both = std::string(isa->name) + " " + other->name;
      if (other == isa || both == "amx avx512" || both == "avx512 amx") continue;
      // Float matrices are one text for every set.
      for (int type = 0; type < kNumWeightTypes; ++type) {
        const WeightKernels &a = kernels_of(*isa).weight[type], &b = kernels_of(*other).weight[type];
        const bool rounded = info(static_cast<WeightType>(type)).act_block != 0;
        EXPECT_FALSE(rounded && a.matmul == b.matmul) << isa->name << " runs the product of " << other->name << " for " << kWeightTypes[type].name;
        EXPECT_FALSE(a.matmul_f32 == b.matmul_f32) << isa->name << " runs the float product of " << other->name << " for " << kWeightTypes[type].name;
        ++executed;
      }
    }
  }
  std::printf("tables: %d rows of vector sets compared\n", executed);
}

TEST(Weights, ActivationPlacesAreAPermutation) {
  for (int n_rows = 1; n_rows <= 40; ++n_rows) {
    std::vector<int> used(static_cast<size_t>(n_rows) * 64);
    for (int t = 0; t < n_rows; ++t) {
      for (int c = 0; c < 64; ++c) ++used[static_cast<size_t>(act_offset(n_rows, 64, t, c))];
    }
    for (const int n : used) ASSERT_EQ(n, 1) << n_rows << " rows";
  }
}

TEST(Weights, PackingIsTheSameAndUnpacksExactly) {
  int executed = 0;
  for (int i = 0; i < kNumWeightTypes; ++i) {
    const auto type = static_cast<WeightType>(i);
    for (const int cols : columns_of(type)) {
      for (int rows = 1; rows <= 50; ++rows) {
        Random random(static_cast<unsigned>(rows * 1000 + cols));
        const Matrix m = make_matrix(type, rows, cols, random);
        for (const Isa* isa : supported_isas()) {
          const Kernels& kernels = kernels_of(*isa);
          Aligned<std::byte> packed(m.packed.size() + 64);
          std::memset(packed.get(), 0xa5, static_cast<size_t>(packed.size()));
          pack(kernels, m, packed);
          ASSERT_EQ(std::memcmp(packed.get(), m.packed.get(), static_cast<size_t>(m.packed.size())),
                    0)
              << isa->name << " " << info(type).name << " rows " << rows << " cols " << cols;
          for (int64_t k = m.packed.size(); k < packed.size(); ++k) {
            ASSERT_EQ(packed[k], std::byte{0xa5});
          }
          for (int r = 0; r < rows; ++r) {
            std::vector<float> out(static_cast<size_t>(cols) + 1, float_of(kGuard));
            kernels.weight[i].unpack_row(m.w, r, out.data());
            for (size_t c = 0; c + 1 < out.size(); ++c) {
              const oracle::Row& w = m.rows[static_cast<size_t>(r)];
              const float product = static_cast<float>(w.product[c]);
              const float expected = static_cast<float>(product + w.minimum[c]);
              ASSERT_EQ(expected, out[c]) << isa->name << " " << info(type).name << " row " << r;
            }
            ASSERT_EQ(bits_of(out.back()), kGuard);
          }
          ++executed;
        }
      }
    }
  }
  size_t expected = 0;
  for (int i = 0; i < kNumWeightTypes; ++i) {
    expected += columns_of(static_cast<WeightType>(i)).size() * 50 * supported_isas().size();
  }
  EXPECT_EQ(static_cast<size_t>(executed), expected);
  std::printf("packing: %d cases\n", executed);
}

// ---- activations

// Rule 3 once more, from its words.
void check_quantized(const std::vector<float>& x, int block, const int8_t* q, const float* d,
                     const int32_t* sums, const int16_t* sums16) {
  for (size_t begin = 0; begin < x.size(); begin += static_cast<size_t>(block)) {
    const size_t b = begin / static_cast<size_t>(block);
    float absmax = 0;
    bool finite = true;
    for (size_t i = begin; i < begin + static_cast<size_t>(block); ++i) {
      finite = finite && std::isfinite(x[i]);
      absmax = std::max(absmax, std::fabs(x[i]));
    }
    const bool zero = finite && absmax < 0x1p-100f;
    if (!finite) {
      ASSERT_TRUE(std::isnan(d[b]));
    } else {
      ASSERT_EQ(d[b], zero ? 0.0f : absmax / 127.0f);
    }
    int sum = 0;
    for (size_t i = begin; i < begin + static_cast<size_t>(block); ++i) {
      const bool empty = zero || !finite;
      const float code = empty ? 0.0f : std::nearbyint(x[i] / d[b]);
      ASSERT_EQ(static_cast<float>(q[i]), std::clamp(code, -127.0f, 127.0f)) << x[i];
      sum += q[i];
      if (i % 16 == 15) {
        int part = 0;
        for (size_t k = i - 15; k <= i; ++k) part += q[k];
        if (sums16 != nullptr) ASSERT_EQ(sums16[i / 16], part);
      }
    }
    ASSERT_EQ(sums[b], sum);
  }
}

std::vector<float> special_row(Random& random, int kind, int n) {
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) {
    switch (kind % 8) {
      case 0:
        v = random_normal(random);
        break;
      case 1:
        v = static_cast<float>(static_cast<int>(random() % 255) - 127) + 0.5f;  // ties
        break;
      case 2:
        v = float_of(static_cast<uint32_t>(random()));  // any bits
        break;
      case 3:
        v = float_of(static_cast<uint32_t>(random()) & 0x807fffffu);  // subnormal
        break;
      case 4:
        v = random() % 2 ? 0x1p-100f : -0x1p-101f;
        break;
      case 5:
        v = std::nextafter(0x1p-100f, 0.0f) * (random() % 2 ? 1.0f : -1.0f);
        break;
      case 6:
        v = float_of((static_cast<uint32_t>(random()) & 0x807fffffu) | 0x7f000000u);  // huge
        break;
      case 7:
        v = random() % 2 ? 0.0f : -0.0f;
        break;
    }
  }
  if (kind % 16 == 1) x[random() % x.size()] = -127.0f;  // d = 1
  if (kind % 16 == 9) {  // ties of other scales, some of them a bit off
    float scale = std::fabs(random_normal(random)) + 1e-3f;
    if (kind % 32 == 25) scale = std::ldexp(scale, static_cast<int>(random() % 215) - 98);
    for (float& v : x) {
      v *= scale;
      if (random() % 2 != 0) v = std::nextafter(v, random() % 2 != 0 ? 1e30f : -1e30f);
    }
    x[random() % x.size()] = -127.0f * scale;
  }
  if (kind % 24 == 8) x[random() % x.size()] = INFINITY;
  if (kind % 24 == 16) x[random() % x.size()] = -std::nanf("1");
  return x;
}

TEST(Rows, Quantize16FollowsRule3) {
  int executed = 0;
  for (const int block : {16, 32, 64, 128}) {
    for (int kind = 0; kind < 240; ++kind) {
      Random random(static_cast<unsigned>(kind * 1000 + block));
      const int n_blocks = kind % 3 == 0 ? 1 : 7 + kind % 11;  // also 8 blocks together
      std::vector<float> x = special_row(random, kind, block * n_blocks);
      if (kind % 5 == 0) {  // ties of these codes, some of them a bit off
        const float scale = std::ldexp(1.0f + static_cast<float>(random() % 1000) / 1000,
                                       static_cast<int>(random() % 200) - 98);
        for (float& v : x) {
          v = (static_cast<float>(static_cast<int>(random() % 65024) - 32512) + 0.5f) * scale;
          if (random() % 2 != 0) v = std::nextafter(v, random() % 2 != 0 ? 1e30f : -1e30f);
        }
        for (size_t i = 0; i < x.size(); i += static_cast<size_t>(block)) x[i] = -32512.0f * scale;
      }
      for (const Isa* isa : supported_isas()) {
        SCOPED_TRACE(testing::Message() << isa->name << " block " << block << " kind " << kind);
        Aligned<int8_t> high(block * n_blocks), low(block * n_blocks);
        Aligned<float> d(n_blocks);
        Aligned<int32_t> sums(n_blocks);
        kernels_of(*isa).quantize16(x.data(), block * n_blocks, block, high.get(), low.get(),
                                    d.get(), sums.get());
        for (int b = 0; b < n_blocks; ++b) {
          const float* values = x.data() + b * block;
          float absmax = 0;
          bool finite = true;
          for (int i = 0; i < block; ++i) {
            finite = finite && std::isfinite(values[i]);
            absmax = std::max(absmax, std::fabs(values[i]));
          }
          const bool empty = !finite || absmax < 0x1p-100f;
          if (!finite) {
            ASSERT_TRUE(std::isnan(d[b]));
          } else {
            ASSERT_EQ(d[b], empty ? 0.0f : absmax / 32512.0f);
          }
          int32_t expected = 0;
          for (int i = 0; i < block; ++i) {
            const float code = empty ? 0.0f : std::nearbyint(values[i] / d[b]);
            const int value = 256 * high[b * block + i] + low[b * block + i];
            ASSERT_EQ(static_cast<float>(value), std::clamp(code, -32512.0f, 32512.0f));
            expected += value;
          }
          ASSERT_EQ(sums[b], expected);
        }
        ++executed;
      }
    }
  }
  EXPECT_EQ(static_cast<size_t>(executed), 4u * 240 * supported_isas().size());
}

TEST(Rows, QuantizeFollowsRule3) {
  int executed = 0;
  const int kinds = std::max(24, 2400 / sample_every());
  for (const int block : {16, 32, 64, 128, 256}) {
    for (int kind = 0; kind < kinds; ++kind) {
      Random random(static_cast<unsigned>(kind * 1000 + block));
      // Also eight blocks together.
      const int n = block * (kind % 5 < 3 ? 1 + kind % 3 : 7 + kind % 11);
      const std::vector<float> x = special_row(random, kind, n);
      for (const Isa* isa : supported_isas()) {
        SCOPED_TRACE(testing::Message() << isa->name << " block " << block << " kind " << kind);
        Aligned<int8_t> q(n);
        Aligned<float> d(n / block);
        Aligned<int32_t> sums(n / block);
        Aligned<int16_t> sums16(n / 16);
        // With sums of 16 codes and without.
        for (int16_t* parts : {sums16.get(), static_cast<int16_t*>(nullptr)}) {
          std::fill_n(q.get(), n, int8_t{99});
          std::fill_n(d.get(), n / block, 99.0f);
          std::fill_n(sums.get(), n / block, 99999);
          kernels_of(*isa).quantize(x.data(), n, block, q.get(), d.get(), sums.get(), parts);
          check_quantized(x, block, q.get(), d.get(), sums.get(), parts);
          if (HasFatalFailure()) return;
          ++executed;
        }
      }
    }
  }
  EXPECT_EQ(static_cast<size_t>(executed), 2 * 5u * kinds * supported_isas().size());
  std::printf("quantize: %d rows\n", executed);
}

// ---- exp, SiLU, RMSNorm

double ulps(float got, double want) {
  const float nearest = static_cast<float>(want);
  const float step = std::nextafter(std::fabs(nearest), INFINITY) - std::fabs(nearest);
  return std::fabs(got - want) / step;
}

TEST(Rows, ExpIsWithinTwoUlp) {
  double worst = 0;
  int64_t executed = 0;
  const uint32_t step = 499u * static_cast<uint32_t>(sample_every());
  for (const uint32_t sign : {0u, 0x80000000u}) {
    const uint32_t last = bits_of(sign == 0 ? kExpHighest : -kExpLowest);
    for (uint32_t bits = 0x2f000000u; bits <= last; bits += step) {
      const float x = float_of(bits | sign);
      worst = std::max(worst, ulps(exp_f32(x), std::exp(static_cast<double>(x))));
      ++executed;
    }
  }
  EXPECT_LE(worst, 2.0);
  EXPECT_EQ(bits_of(exp_f32(0.0f)), bits_of(1.0f));
  EXPECT_EQ(bits_of(exp_f32(-0.0f)), bits_of(1.0f));
  EXPECT_EQ(bits_of(exp_f32(-INFINITY)), 0u);
  EXPECT_EQ(bits_of(exp_f32(std::nextafter(-87.0f, -100.0f))), 0u);
  EXPECT_EQ(exp_f32(INFINITY), INFINITY);
  EXPECT_EQ(exp_f32(std::nextafter(88.0f, 100.0f)), INFINITY);
  EXPECT_TRUE(std::isnan(exp_f32(std::nanf(""))));
  std::printf("exp: %lld values, worst error %.3f ulp\n", static_cast<long long>(executed), worst);
}

TEST(Rows, SiluIsTheSameBitsAndClose) {
  constexpr int kBatch = 1000;
  const int batches = std::max(1, 8000 / sample_every());
  Random random(7);
  std::vector<float> gate(kBatch), up(kBatch), expected(kBatch), out(kBatch + 1);
  double worst = 0;
  for (int batch = 0; batch < batches; ++batch) {
    for (int i = 0; i < kBatch; ++i) {
      const auto at = static_cast<size_t>(i);
      const auto bits = static_cast<uint32_t>(random());
      // Half of them any bits, half where exp is neither 0 nor 1.
      gate[at] =
          batch % 2 ? float_of(bits) : static_cast<float>(static_cast<int32_t>(bits)) * 0x1p-24f;
      up[at] = batch % 4 < 2 ? 1.0f : random_normal(random);
      expected[at] = silu_f32(gate[at]) * up[at];
      if (batch % 4 == 0 && gate[at] > -80.0f) {
        const double x = gate[at];
        if (x != 0) worst = std::max(worst, ulps(expected[at], x / (1 + std::exp(-x))));
      }
    }
    const int n = kBatch - batch % 17;
    for (const Isa* isa : supported_isas()) {
      std::fill(out.begin(), out.end(), float_of(kGuard));
      kernels_of(*isa).silu_mul(gate.data(), up.data(), n, out.data());
      for (int i = 0; i <= kBatch; ++i) {
        const auto at = static_cast<size_t>(i);
        const float want = i < n ? expected[at] : float_of(kGuard);
        ASSERT_TRUE(same_bits(out[at], want)) << isa->name << " silu(" << gate[at] << ")";
      }
      std::vector<float> alias = gate;
      kernels_of(*isa).silu_mul(alias.data(), up.data(), n, alias.data());
      for (int i = 0; i < n; ++i) {
        ASSERT_TRUE(same_bits(alias[static_cast<size_t>(i)], expected[static_cast<size_t>(i)]));
      }
    }
  }
  EXPECT_LE(worst, 5.0);
  std::printf("silu: %d values x %zu instruction sets, worst error %.3f ulp\n", batches * kBatch,
              supported_isas().size(), worst);
}

TEST(Rows, RmsNormIsTheSameBitsAndClose) {
  int executed = 0;
  for (int n = 1; n <= 300; ++n) {
    Random random(static_cast<unsigned>(n));
    const auto size = static_cast<size_t>(n);
    std::vector<float> x(size), w(size), expected(size);
    double squares = 0;
    for (size_t i = 0; i < size; ++i) {
      x[i] = random_normal(random) * (n % 7 == 0 ? 1e-3f : 10.0f);
      w[i] = random_normal(random);
      squares += static_cast<double>(x[i]) * x[i];
    }
    const float eps = n % 2 ? 1e-6f : 1e-5f;
    const double r = 1 / std::sqrt(squares / n + static_cast<double>(eps));
    scalar().rms_norm(x.data(), w.data(), n, eps, expected.data());
    for (size_t i = 0; i < size; ++i) {
      const double want = x[i] * r * w[i];
      ASSERT_LE(std::fabs(expected[i] - want), std::fabs(want) * (n / 16.0 + 12) * 0x1p-24);
    }
    for (const Isa* isa : supported_isas()) {
      std::vector<float> out(size + 1, float_of(kGuard)), alias = x;
      kernels_of(*isa).rms_norm(x.data(), w.data(), n, eps, out.data());
      kernels_of(*isa).rms_norm(alias.data(), w.data(), n, eps, alias.data());
      for (size_t i = 0; i < size; ++i) {
        ASSERT_TRUE(same_bits(out[i], expected[i])) << isa->name << " n " << n;
        ASSERT_TRUE(same_bits(alias[i], expected[i])) << isa->name << " n " << n;
      }
      ASSERT_EQ(bits_of(out.back()), kGuard);
      ++executed;
    }
  }
  EXPECT_EQ(static_cast<size_t>(executed), 300 * supported_isas().size());
  std::printf("rms_norm: %d rows\n", executed);
}

// The slot that bench measures with: never null, and its count grows with its work.
TEST(DotRate, EveryIsaCountsItsSteps) {
  for (const Isa* isa : supported_isas()) {
    const Kernels& kernels = kernels_of(*isa);
    ASSERT_NE(kernels.dot_rate, nullptr) << isa->name;
    EXPECT_GT(isa->nominal_macs, 0) << isa->name;
    EXPECT_EQ(kernels.dot_rate(0), 0) << isa->name;
    const int64_t one = kernels.dot_rate(1);
    EXPECT_GE(one, 8) << isa->name;
    EXPECT_EQ(kernels.dot_rate(1000), 1000 * one) << isa->name;
  }
}

}  // namespace
}  // namespace bantam
