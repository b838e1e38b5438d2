// Speed of the slots of the kernel tables where time is spent, instruction set by instruction set
// (not: packing, unpacking, tables, stores, rope, rotation, merging): the matrix products of each
// weight type, activation rounding and number of rows, from rounded values and, where the backend
// would, from tables; scores and weighted sums of each KV type; the row functions. Medians, on all
// threads, beside the read bandwidth and the dot rate measured in the same run.
// `kernels_bench --help` lists the flags.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/limits.h"
#include "base/thread_pool.h"
#include "codec/kv_layout.h"
#include "cpu/factory.h"
#include "cpu/isa.h"

namespace bantam {
namespace {

constexpr int kCols = 2048;
constexpr int kHeadDim = 128;

struct Options {
  std::string isa, type;
  int rows = 0;
  int threads = 0;
  int mib = 64;
  double seconds = 0.1;
};

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

// Zeroed, from a 64-byte boundary on.
struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;
template <class T>
Buffer<T> buffer(int64_t n) {
  const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + 64) / 64 * 64;
  void* p = std::aligned_alloc(64, bytes);
  CHECK(p != nullptr);
  std::memset(p, 0, bytes);
  return Buffer<T>(static_cast<T*>(p));
}

// The median time of `work`: at least five runs, then as many as fit, after one that warms up.
template <class Work>
double median_seconds(const Options& o, Work&& work) {
  work();
  std::vector<double> times;
  const double stop = now() + o.seconds;
  while (times.size() < 5 || (now() < stop && times.size() < 1000)) {
    const double start = now();
    work();
    times.push_back(now() - start);
  }
  std::nth_element(times.begin(), times.begin() + static_cast<long>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

// One instruction set under test and what bounds it.
struct Bench {
  const Options& options;
  const Isa& isa;
  const Kernels& kernels;
  ThreadPool& pool;
  MachineSpeed machine;

  bool slow() const { return std::strncmp(isa.name, "scalar", 6) == 0; }
  bool wanted(int rows) const { return options.rows == 0 || options.rows == rows; }
  double share(double gmac_s) const { return 100 * gmac_s / machine.int8_measured_gmac_s; }
};

// ---- matrix products

// A packed matrix of about `bytes`: one group of random codes and small scales, repeated.
struct Weights {
  PackedMatrix w;
  Buffer<std::byte> data;
  int64_t bytes = 0;
};

Weights make_weights(const Bench& b, WeightType type, int64_t bytes) {
  const int64_t row_bytes = packed_row_bytes(type, kCols);
  const int64_t group_bytes = packed_group_bytes(type, kCols);
  const int64_t groups = std::max<int64_t>(1, bytes / group_bytes);
  Weights m;
  m.bytes = groups * group_bytes;
  m.data = buffer<std::byte>(m.bytes);
  Buffer<std::byte> source = buffer<std::byte>(group_bytes);
  std::mt19937 random(1);
  // Bytes below 0x3c keep every fp16 and float in it finite and small.
  for (int64_t i = 0; i < group_bytes; ++i) source[size_t(i)] = std::byte(random() % 0x3c);
  b.kernels.weight[static_cast<int>(type)].pack_group(source.get(), row_bytes, kGroupRows, kCols,
                                                      m.data.get());
  b.pool.run([&](int thread, int n) {
    const auto part = ThreadPool::split(groups, thread, n);
    for (int64_t g = std::max<int64_t>(1, part.begin); g < part.end; ++g) {
      std::memcpy(m.data.get() + g * group_bytes, m.data.get(), size_t(group_bytes));
    }
  });
  m.w = {type, static_cast<int>(groups) * kGroupRows, kCols, m.data.get()};
  return m;
}

struct Activations {
  Buffer<float> x, d;
  Buffer<int8_t> q, low;
  Buffer<int32_t> sums;
  Buffer<float> float_sums;
  Buffer<int16_t> sums16;
  Buffer<std::byte> tables;
  ActRows rows;
};

// What a product reads of its activations.
enum class Reads { floats, panels, tables, plain, tiles };

// Where a code lies.
int64_t place(Reads reads, int n_rows, int block, int t, int c) {
  if (reads == Reads::plain) return int64_t{t} * kCols + c;
  if (reads == Reads::tiles) return tile_offset(n_rows, kCols, tile_depth(block), t, c);
  return act_offset(n_rows, kCols, t, c);
}

// Rounded, then spread over panels or made tables as CpuBackend::prepare_row does.
Activations make_activations(const Bench& b, int n_rows, int block, bool wide, Reads reads) {
  Activations a;
  const int64_t n = int64_t{tiled_rows(n_rows)} * kCols;
  a.x = buffer<float>(n);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < n; ++i) a.x[size_t(i)] = normal(random);
  if (reads == Reads::floats) return a;
  a.d = buffer<float>(n / block);
  a.sums = buffer<int32_t>(n / block);
  a.float_sums = buffer<float>(n / block);
  a.sums16 = buffer<int16_t>(n / 16);
  a.q = buffer<int8_t>(n);
  if (wide) a.low = buffer<int8_t>(n);
  const int planes = wide ? 3 : 2;
  const bool alone = reads == Reads::tables;
  if (alone) a.tables = buffer<std::byte>(table_bytes(kCols, planes));
  Buffer<int8_t> codes = buffer<int8_t>(kCols), low = buffer<int8_t>(kCols);
  for (int t = 0; t < n_rows; ++t) {
    const float* x = a.x.get() + int64_t{t} * kCols;
    float* d = a.d.get() + int64_t{t} * (kCols / block);
    int32_t* sums = a.sums.get() + int64_t{t} * (kCols / block);
    if (wide) {
      b.kernels.quantize16(x, kCols, block, codes.get(), low.get(), d, sums);
    } else {
      b.kernels.quantize(x, kCols, block, codes.get(), d, sums,
                         a.sums16.get() + int64_t{t} * (kCols / 16));
    }
    if (alone) {
      b.kernels.build_tables(codes.get(), wide ? low.get() : nullptr, kCols, a.tables.get());
    }
    for (int c = 0; c < kCols; ++c) {
      const auto to = static_cast<size_t>(place(reads, n_rows, block, t, c));
      a.q[to] = codes[size_t(c)];
      if (wide) a.low[to] = low[size_t(c)];
    }
  }
  std::copy_n(a.sums.get(), n / block, a.float_sums.get());
  a.rows = {n_rows,
            kCols,
            block,
            a.q.get(),
            a.d.get(),
            a.sums.get(),
            a.float_sums.get(),
            a.sums16.get(),
            a.low.get(),
            a.tables.get(),
            planes,
            ActOrder::panels};
  // Scales and sums of tiles stay in the order of rows: as many reads, other products.
  if (reads == Reads::plain) a.rows.order = ActOrder::plain;
  if (reads == Reads::tiles) a.rows.order = ActOrder::tiles;
  return a;
}

// Each thread a contiguous part, in calls of at most 128 groups.
void multiply(const Bench& b, const Weights& m, const Activations& a, int n_rows, float* y,
              float* scratch) {
  const WeightKernels& kernel = b.kernels.weight[static_cast<int>(m.w.type)];
  b.pool.run([&](int thread, int n) {
    const auto part = ThreadPool::split(n_groups(m.w.rows), thread, n);
    MatmulArgs args;
    args.w = &m.w;
    args.a = a.rows;
    args.x = a.x.get();
    args.n_rows = n_rows;
    args.y = y;
    args.ldy = m.w.rows;
    args.scratch = scratch + int64_t{thread} * kCols;
    for (int64_t g = part.begin; g < part.end; g += 128) {
      args.group_begin = int(g);
      args.group_end = int(std::min(part.end, g + 128));
      (a.rows.block == 0 ? kernel.matmul_f32 : kernel.matmul)(args);
    }
  });
}

void bench_product(const Bench& b, const Weights& m, int n_rows, int block, bool wide,
                   Reads reads) {
  const Activations a = make_activations(b, n_rows, block, wide, reads);
  Buffer<float> y = buffer<float>(int64_t{n_rows} * m.w.rows);
  Buffer<float> scratch = buffer<float>(int64_t{b.pool.size()} * kCols);
  const double s =
      median_seconds(b.options, [&] { multiply(b, m, a, n_rows, y.get(), scratch.get()); });
  const double weights = double(m.w.rows) * kCols / s * 1e-9, gmac = weights * n_rows;
  const char* act = reads == Reads::floats ? "f32" : wide ? "i16" : "i8";
  constexpr const char* kFrom[] = {"x", "panels", "tables", "plain", "tiles"};
  const char* from = kFrom[static_cast<int>(reads)];
  std::printf("%-10s %-6s %-3s %-6s %3d %4d %8.2f %11.2f %9.1f %7.1f\n", b.isa.name,
              info(m.w.type).name, act, from, block, n_rows, double(m.bytes) / s * 1e-9, weights,
              gmac, b.share(gmac));
}

void bench_weights(const Bench& b, WeightType type) {
  const int64_t large = b.slow() ? 128 << 10 : int64_t{b.options.mib} << 20;
  const int64_t small = b.slow() ? 32 << 10 : 2 << 20;
  const int own = info(type).act_block;
  const WeightKernels& kernels = b.kernels.weight[static_cast<int>(type)];
  for (const int n_rows : {1, 4, 8, 16, 64}) {
    if (!b.wanted(n_rows)) continue;
    const Weights m = make_weights(b, type, n_rows <= 4 ? large : small);
    // The type's own activation block, and 32 as the input of the down projection has.
    for (int block = own; block != 0; block = block > 32 ? 32 : 0) {
      for (const bool wide : {false, true}) {
        if (wide && !info(type).act_i16) continue;
        bench_product(b, m, n_rows, block, wide, Reads::panels);
        if (n_rows == 1 && kernels.tables) {
          bench_product(b, m, n_rows, block, wide, Reads::tables);
        }
        if (n_rows > 1 && (kernels.orders & order_bit(ActOrder::plain)) != 0) {
          bench_product(b, m, n_rows, block, wide, Reads::plain);
        }
        if (n_rows > 1 && (kernels.orders & order_bit(ActOrder::tiles)) != 0) {
          bench_product(b, m, n_rows, block, wide, Reads::tiles);
        }
      }
    }
    bench_product(b, m, n_rows, 0, false, Reads::floats);
  }
}

// ---- KV cache: scores and weighted sums of one tile after the other

struct KvData {
  int64_t tile_bytes = 0, n_tiles = 0;
  Buffer<std::byte> k, v;
};

KvData make_kv(const Bench& b, KvType type) {
  const KvKernels& kernel = b.kernels.kv[static_cast<int>(type)];
  KvData kv;
  kv.tile_bytes = kv_tile_bytes(info(type).bytes_per_32, kHeadDim);
  kv.n_tiles = std::max<int64_t>(8, (b.slow() ? 64 << 10 : 16 << 20) / kv.tile_bytes);
  kv.k = buffer<std::byte>(kv.n_tiles * kv.tile_bytes);
  kv.v = buffer<std::byte>(kv.n_tiles * kv.tile_bytes);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  Buffer<float> row = buffer<float>(kHeadDim);
  for (int pos = 0; pos < kKvTile; ++pos) {
    for (int c = 0; c < kHeadDim; ++c) row[size_t(c)] = normal(random);
    kernel.store_k(row.get(), kHeadDim, pos, kv.k.get());
    kernel.store_v(row.get(), kHeadDim, pos, kv.v.get());
  }
  for (int64_t i = 1; i < kv.n_tiles; ++i) {
    std::memcpy(kv.k.get() + i * kv.tile_bytes, kv.k.get(), size_t(kv.tile_bytes));
    std::memcpy(kv.v.get() + i * kv.tile_bytes, kv.v.get(), size_t(kv.tile_bytes));
  }
  return kv;
}

void print_kv(const Bench& b, const char* what, KvType type, const KvData& kv, int n_rows,
              double s) {
  const double gmac = double(kv.n_tiles) * kKvTile * kHeadDim * n_rows / s * 1e-9;
  std::printf("%-10s %-6s %-14s %4d %8.2f %11s %9.1f %7.1f\n", b.isa.name, info(type).name, what,
              n_rows, double(kv.n_tiles * kv.tile_bytes) / s * 1e-9, "-", gmac, b.share(gmac));
}

void bench_scores(const Bench& b, KvType type, const KvData& kv, int n_rows) {
  const int64_t n = int64_t{n_rows} * kHeadDim;
  Buffer<float> qf = buffer<float>(n), scale = buffer<float>(n_rows);
  Buffer<int8_t> q = buffer<int8_t>(n);
  Buffer<int32_t> sums = buffer<int32_t>(n / 32);
  Buffer<int16_t> sums16 = buffer<int16_t>(n / 16);
  for (int64_t i = 0; i < n; ++i) qf[size_t(i)] = float(i % 17 - 8) / 8;
  for (int t = 0; t < n_rows; ++t) {
    b.kernels.quantize(qf.get() + int64_t{t} * kHeadDim, kHeadDim, kHeadDim,
                       q.get() + int64_t{t} * kHeadDim, scale.get() + t, sums.get(),
                       sums16.get() + int64_t{t} * (kHeadDim / 16));
  }
  Buffer<float> s = buffer<float>(int64_t{b.pool.size()} * n_rows * kKvTile);
  const double seconds = median_seconds(b.options, [&] {
    b.pool.run([&](int thread, int team) {
      ScoreArgs args;
      args.head_dim = kHeadDim;
      args.n_rows = n_rows;
      args.q = q.get();
      args.sums16 = sums16.get();
      args.qf = qf.get();
      args.scale = scale.get();
      args.s = s.get() + int64_t{thread} * n_rows * kKvTile;
      args.s_stride = kKvTile;
      AheadLines lines;
      args.ahead = &lines;
      const auto part = ThreadPool::split(kv.n_tiles, thread, team);
      for (int64_t i = part.begin; i < part.end; ++i) {
        args.tile = kv.k.get() + i * kv.tile_bytes;
        lines.of_tile(kv.k.get() + std::min(i + 2, kv.n_tiles - 1) * kv.tile_bytes, kv.tile_bytes);
        b.kernels.kv[static_cast<int>(type)].scores(args);
      }
    });
  });
  print_kv(b, "scores", type, kv, n_rows, seconds);
}

void bench_weigh(const Bench& b, KvType type, const KvData& kv, int n_rows) {
  Buffer<float> p = buffer<float>(int64_t{n_rows} * kKvTile);
  Buffer<int32_t> visible = buffer<int32_t>(n_rows);
  for (int i = 0; i < n_rows * kKvTile; ++i) p[size_t(i)] = float(i % 31 + 1) / 32;
  for (int t = 0; t < n_rows; ++t) visible[size_t(t)] = kKvTile;
  Buffer<float> acc = buffer<float>(int64_t{b.pool.size()} * n_rows * kHeadDim);
  const double seconds = median_seconds(b.options, [&] {
    b.pool.run([&](int thread, int team) {
      WeighArgs args;
      args.head_dim = kHeadDim;
      args.n_rows = n_rows;
      args.p = p.get();
      args.p_stride = kKvTile;
      args.n_visible = visible.get();
      args.acc = acc.get() + int64_t{thread} * n_rows * kHeadDim;
      args.acc_stride = kHeadDim;
      AheadLines lines;
      args.ahead = &lines;
      const auto part = ThreadPool::split(kv.n_tiles, thread, team);
      for (int64_t i = part.begin; i < part.end; ++i) {
        args.tile = kv.v.get() + i * kv.tile_bytes;
        lines.of_tile(kv.v.get() + std::min(i + 2, kv.n_tiles - 1) * kv.tile_bytes, kv.tile_bytes);
        b.kernels.kv[static_cast<int>(type)].weigh(args);
      }
    });
  });
  print_kv(b, "weigh", type, kv, n_rows, seconds);
}

// ---- row functions: every thread on rows of its own, bytes read and written

template <class Row>
void bench_rows(const Bench& b, const char* what, int64_t bytes, Row&& row) {
  const int times = b.slow() ? 8 : 64;
  const double s = median_seconds(b.options, [&] {
    b.pool.run([&](int thread, int) {
      for (int i = 0; i < times; ++i) row(thread);
    });
  });
  std::printf("%-10s %-26s %8.2f\n", b.isa.name, what,
              double(bytes) * times * b.pool.size() / s * 1e-9);
}

void bench_row_functions(const Bench& b) {
  const int64_t n = kCols, threads = b.pool.size();
  Buffer<float> x = buffer<float>(n * threads), w = buffer<float>(n),
                y = buffer<float>(n * threads);
  Buffer<float> d = buffer<float>(n * threads), page = buffer<float>(kPagePositions * threads);
  Buffer<int8_t> q = buffer<int8_t>(n * threads), low = buffer<int8_t>(n * threads);
  Buffer<int32_t> sums = buffer<int32_t>(n * threads);
  for (int64_t i = 0; i < n * threads; ++i) x[size_t(i)] = float(i % 101 - 50) / 25;
  for (int64_t i = 0; i < n; ++i) w[size_t(i)] = 1;
  const Kernels& k = b.kernels;
  bench_rows(b, "rms_norm", n * 12,
             [&](int t) { k.rms_norm(x.get() + t * n, w.get(), kCols, 1e-6f, y.get() + t * n); });
  for (const int block : {32, 128}) {
    const std::string name = "quantize " + std::to_string(block);
    bench_rows(b, name.c_str(), n * 5, [&](int t) {
      k.quantize(x.get() + t * n, kCols, block, q.get() + t * n, d.get() + t * n,
                 sums.get() + t * n, nullptr);  // only Q6_K wants sums of 16
    });
  }
  bench_rows(b, "quantize16 128", n * 6, [&](int t) {
    k.quantize16(x.get() + t * n, kCols, 128, q.get() + t * n, low.get() + t * n, d.get() + t * n,
                 sums.get() + t * n);
  });
  bench_rows(b, "silu_mul", n * 12,
             [&](int t) { k.silu_mul(x.get() + t * n, x.get() + t * n, kCols, y.get() + t * n); });
  bench_rows(b, "softmax_page", kPagePositions * 8, [&](int t) {
    float m = 0, l = 0;
    k.softmax_page(page.get() + t * kPagePositions, kPagePositions, &m, &l);
  });
}

// ---- the tables

void bench_isa(const Options& o, const Isa& isa, ThreadPool& pool) {
  const Bench b{o, isa, kernels_of(isa), pool,
                measure_cpu({.n_threads = o.threads, .isa = isa.name}).single};
  std::printf(
      "\n%s: read bandwidth %.1f GB/s, clock %.2f GHz, int8 peak %.0f GMAC/s, measured dot rate "
      "%.0f GMAC/s\n%-10s %-6s %-3s %-6s %3s %4s %8s %11s %9s %7s\n",
      isa.name, b.machine.read_gb_s, b.machine.clock_ghz, b.machine.int8_gmac_s,
      b.machine.int8_measured_gmac_s, "isa", "type", "act", "reads", "blk", "rows", "GB/s",
      "G weights/s", "GMAC/s", "% dots");
  for (int i = 0; i < kNumWeightTypes; ++i) {
    if (o.type.empty() || o.type == kWeightTypes[i].name) bench_weights(b, WeightType(i));
  }
  for (int i = 0; i < kNumKvTypes; ++i) {
    if (!o.type.empty() && o.type != std::string("kv:") + kKvTypes[i].name) continue;
    const KvData kv = make_kv(b, KvType(i));
    for (const int n_rows : {1, 4, 8, 64}) {
      if (!b.wanted(n_rows)) continue;
      bench_scores(b, KvType(i), kv, n_rows);
      bench_weigh(b, KvType(i), kv, n_rows);
    }
  }
  if (o.type.empty() || o.type == "rows") bench_row_functions(b);
  std::fflush(stdout);
}

int usage(FILE* to, int code) {
  std::fprintf(
      to,
      "usage: kernels_bench [--isa NAME] [--type NAME] [--rows N] [--threads N] "
      "[--mib N] [--seconds S]\n"
      "  --isa      one instruction set (default: all of %s)\n"
      "  --type     one weight type, kv:TYPE for a KV type, or rows for the row functions\n"
      "  --rows     one number of activation or query rows (1 4 8 16 64)\n"
      "  --threads  default: physical cores allowed\n"
      "  --mib      size of the matrix for 1 and 4 rows (64)\n"
      "  --seconds  for each median (0.1)\n",
      isa_names().c_str());
  return code;
}

bool known_type(const std::string& name) {
  if (name.empty() || name == "rows") return true;
  for (const auto& type : kWeightTypes) {
    if (name == type.name) return true;
  }
  for (const auto& type : kKvTypes) {
    if (name == std::string("kv:") + type.name) return true;
  }
  return false;
}

int run(int argc, char** argv) {
  Options o;
  o.threads = default_threads();
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--help") return usage(stdout, 0);
    if (i + 1 == argc) return usage(stderr, 2);
    const std::string value = argv[++i];
    if (flag == "--isa")
      o.isa = value;
    else if (flag == "--type")
      o.type = value;
    else if (flag == "--rows")
      o.rows = std::atoi(value.c_str());
    else if (flag == "--threads")
      o.threads = std::atoi(value.c_str());
    else if (flag == "--mib")
      o.mib = std::atoi(value.c_str());
    else if (flag == "--seconds")
      o.seconds = std::atof(value.c_str());
    else
      return usage(stderr, 2);
  }
  if (o.threads < 1 || o.threads > kMaxThreads || o.mib < 1 || o.rows < 0) return usage(stderr, 2);
  if (!known_type(o.type)) return usage(stderr, 2);
  ThreadPool pool(o.threads);
  std::printf("%s, %d threads, %d columns, medians of %.2f s\n", cpu_name().c_str(), o.threads,
              kCols, o.seconds);
  int done = 0;
  for (const Isa& isa : all_isas()) {
    if (!isa.supported() || (!o.isa.empty() && o.isa != isa.name)) continue;
    bench_isa(o, isa, pool);
    ++done;
  }
  return done > 0 ? 0 : usage(stderr, 2);
}

}  // namespace
}  // namespace bantam

int main(int argc, char** argv) { return bantam::run(argc, argv); }
