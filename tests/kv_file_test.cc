// Saved sequences: every pair of types comes back byte for byte; everything else is refused with the sequence unharmed; a
// writer killed before any of its calls leaves the old file or the new one.
#include "model/kv_file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/limits.h"
#include "codec/kv_layout.h"
#include "cpu/factory.h"
#include "cpu/isa.h"
#include "tests/support/temp_folder.h"

namespace bantam {
namespace {

using Bytes = std::vector<std::byte>;

constexpr int kLayers = 2, kKvHeads = 2, kHeadDim = 32, kVocab = 1000;

// A cache with rows that the scalar encoder wrote, and the tokens of each sequence.
struct Filled {
  Filled(KvType k, KvType v, int n_ctx, int n_seqs = 2) {
    CpuOptions options;
    options.n_threads = 1;  // children of this process have no other threads
    Result<std::unique_ptr<Backend>> made = make_cpu_backend(options);
    CHECK(made.ok());
    backend = std::move(*made);
    Result<AttentionPlan> plan = plan_attention(*backend, k, v, {4, kKvHeads, kHeadDim});
    CHECK(plan.ok());
    Result<std::unique_ptr<KvCache>> created = KvCache::create(*plan, kLayers, n_ctx, n_seqs, *backend);
    CHECK(created.ok());
    cache = std::move(*created);
    ModelConfig config;
    config.arch = "qwen3";
    config.n_layers = kLayers;
    config.n_heads = 4;
    config.n_kv_heads = kKvHeads;
    config.head_dim = config.rope_dims = kHeadDim;
    config.n_vocab = kVocab;
    config.n_ctx_train = config.rope_original_ctx = 1024;
    id = sequence_identity(config, *plan, ActType::i8, {}, 0x1234567890abcdefu);
    tokens.resize(static_cast<size_t>(n_seqs));
  }

  void append(int seq, int n, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const AttentionPlan& plan = cache->plan();
    const Kernels& kernels = kernels_of(all_isas()[0]);
    for (int i = 0; i < n; ++i) {
      const int pos = cache->length(seq), slot = pos % kTilePositions;
      cache->extend(seq, 1);
      tokens[static_cast<size_t>(seq)].push_back(static_cast<int32_t>(random() % kVocab));
      const int64_t page = cache->pages(seq)[pos / kPagePositions];
      for (int layer = 0; layer < kLayers; ++layer) {
        for (int head = 0; head < kKvHeads; ++head) {
          const int64_t tile = (page * kKvHeads + head) * kPageTiles + pos % kPagePositions / kTilePositions;
          float row[kHeadDim];
          for (float& x : row) x = normal(random);
          kernels.kv[static_cast<int>(plan.k())].store_k(row, kHeadDim, slot,
                                                         cache->k_pages(layer) + tile * plan.tile_bytes_k());
          kernels.kv[static_cast<int>(plan.v())].store_v(row, kHeadDim, slot,
                                                         cache->v_pages(layer) + tile * plan.tile_bytes_v());
        }
      }
    }
  }
  Bytes bytes(int seq) const {
    Bytes all, page(static_cast<size_t>(cache->page_bytes()));
    for (int i = 0; i < cache->n_pages(seq); ++i) {
      for (int layer = 0; layer < kLayers; ++layer) {
        const auto read = cache->read_page(seq, i, layer, page);
        all.insert(all.end(), read.begin(), read.end());
      }
    }
    return all;
  }
  Result<int64_t> save(int seq, const std::string& path, AtomicFile::Hook hook = {}) const {
    return save_sequence(path, id, tokens[static_cast<size_t>(seq)], *cache, seq, {}, std::move(hook));
  }
  Result<SavedSequence> open(const std::string& path) const { return SavedSequence::open(path, id, shifts, cache->n_ctx()); }
  Result<SavedSequence> restore(int seq, const std::string& path) {
    Result<SavedSequence> saved = open(path);
    if (!saved) return saved;
    saved->make_room(*cache, seq);
    const Status status = saved->fill(*cache, seq);
    if (status) return saved;
    cache->erase(seq);
    return status.error();
  }

  std::unique_ptr<Backend> backend;
  std::unique_ptr<KvCache> cache;
  SequenceIdentity id;
  bool shifts = true;
  std::vector<std::vector<int32_t>> tokens;
};

class SavedFile : public ::testing::Test {
 protected:
  void TearDown() override {
    ::unlink(path.c_str());
    ::unlink((path + ".unfinished").c_str());
  }
  Bytes read() const {
    std::ifstream in(path, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    Bytes out(text.size());
    std::memcpy(out.data(), text.data(), text.size());
    return out;
  }
  void put(const Bytes& bytes) const {
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  // Refused for a reason with this word, and the sequence is what it was.
  void refuses(Filled& f, const std::string& word) {
    const Bytes before = f.bytes(1);
    const int length = f.cache->length(1);
    const Result<SavedSequence> got = f.restore(1, path);
    ASSERT_FALSE(got.ok()) << word;
    EXPECT_NE(got.error().message.find(word), std::string::npos) << got.error().message << "\nexpected: " << word;
    ASSERT_EQ(f.cache->length(1), length);
    ASSERT_EQ(f.bytes(1), before);
  }
  const TempFolder temp;
  const std::string folder = temp.path(), path = folder + "/slot.bin";
};

// Makes both sums agree again after a change.
void mend(Bytes& bytes) {
  uint64_t sum = hash_bytes(std::span(bytes).first(kSavedHeaderBytes - 8));
  std::memcpy(bytes.data() + kSavedHeaderBytes - 8, &sum, 8);
  const Result<SavedHeader> header = parse_saved_header(std::span(bytes).first(kSavedHeaderBytes), bytes.size());
  if (!header) return;
  const std::span<const std::byte> all(bytes);
  size_t at = kSavedHeaderBytes;
  sum = hash_bytes(all.first(at));
  const auto add = [&](size_t n) {
    sum = hash_bytes(all.subspan(at, n), sum);
    at += n;
  };
  add(static_cast<size_t>(header->n_tokens) * 4);
  while (at + 8 < bytes.size()) add(static_cast<size_t>(header->page_bytes()));
  std::memcpy(bytes.data() + at, &sum, 8);
}

TEST_F(SavedFile, EveryPairOfTypesComesBackByteForByte) {
  int cases = 0;
  for (int k = 0; k < kNumKvTypes; ++k) {
    for (int v = 0; v < kNumKvTypes; ++v) {
      Filled f(static_cast<KvType>(k), static_cast<KvType>(v), 768);
      const int n = std::vector<int>{1, 31, 256, 300, 767}[static_cast<size_t>(k + v) % 5];
      f.append(0, n, 7);
      f.append(1, 40, 8);
      const Result<int64_t> written = f.save(0, path);
      ASSERT_TRUE(written.ok()) << written.error().message;
      struct stat info {};
      ASSERT_EQ(::stat(path.c_str(), &info), 0);
      EXPECT_EQ(*written, info.st_size);
      const Result<SavedSequence> got = f.restore(1, path);
      ASSERT_TRUE(got.ok()) << got.error().message;
      EXPECT_EQ(got->tokens(), f.tokens[0]);
      EXPECT_EQ(got->n_bytes(), *written);
      EXPECT_EQ(f.cache->length(1), n);
      ASSERT_EQ(f.bytes(1), f.bytes(0)) << kKvTypes[k].name << "/" << kKvTypes[v].name;
      ++cases;
    }
  }
  EXPECT_EQ(cases, kNumKvTypes * kNumKvTypes);
}

TEST_F(SavedFile, ShiftedSequencesKeepTheirOffsets) {
  Filled f(KvType::q8_0, KvType::q5_1, 1280);
  f.append(0, 1280, 1);
  f.cache->shift(0, 1, 2);
  f.tokens[0].erase(f.tokens[0].begin() + 256, f.tokens[0].begin() + 768);
  f.append(0, 100, 2);
  ASSERT_TRUE(f.save(0, path).ok());
  ASSERT_TRUE(f.restore(1, path).ok());
  EXPECT_EQ(f.bytes(1), f.bytes(0));
  for (int page = 0; page < f.cache->n_pages(0); ++page) {
    EXPECT_EQ(f.cache->offset(1, page), page == 0 ? 0 : 512);
    EXPECT_EQ(f.cache->offset(0, page), f.cache->offset(1, page));
  }
  f.shifts = false;
  refuses(f, "--context-shift");
}

TEST_F(SavedFile, AnotherContextTakesWhatFits) {
  Filled small(KvType::f16, KvType::q4_0, 512), large(KvType::f16, KvType::q4_0, 1024);
  small.append(0, 512, 3);
  ASSERT_TRUE(small.save(0, path).ok());
  ASSERT_TRUE(large.restore(1, path).ok());
  EXPECT_EQ(large.bytes(1), small.bytes(0));
  large.tokens[1] = small.tokens[0];
  large.append(1, 1, 4);
  ASSERT_TRUE(large.save(1, path).ok());
  small.append(1, 10, 5);
  refuses(small, "larger -c");
}

TEST_F(SavedFile, RefusesWhatItWasNotMadeFor) {
  Filled f(KvType::q8_0, KvType::q4_1, 512);
  f.append(0, 300, 1);
  f.append(1, 270, 2);
  ASSERT_TRUE(f.save(0, path).ok());
  const SequenceIdentity good = f.id;
  const auto other = [&](auto change, const char* word) {
    f.id = good;
    change(f.id);
    refuses(f, word);
  };
  other([](auto& id) { id.model ^= 1; }, "another model");
  other([](auto& id) { id.config ^= 1; }, "--act");
  other([](auto& id) { id.rope ^= 1; }, "RoPE");
  other([](auto& id) { id.type_k = KvType::q5_0; }, "K type is q8_0, expected q5_0");
  other([](auto& id) { id.type_v = KvType::iq4_nl; }, "V type is q4_1, expected iq4_nl");
  other([](auto& id) { id.rotation_k = 0; }, "rotation of K");
  other([](auto& id) { id.rotation_v = 64; }, "rotation of V");
  other([](auto& id) { id.n_layers = 3; }, "layers");
  other([](auto& id) { id.n_heads = 8; }, "number of heads");
  other([](auto& id) { id.n_kv_heads = 1; }, "KV heads");
  other([](auto& id) { id.head_dim = 64; }, "head size");
  other([](auto& id) { id.n_vocab = 9; }, "vocabulary");
  f.id = good;
  EXPECT_TRUE(f.restore(1, path).ok());
}

// Each number that RoPE, the shape of the model and the rounding depend on changes the identity.
TEST(SequenceIdentityTest, DependsOnEveryNumber) {
  const Filled f(KvType::q8_0, KvType::q8_0, 256);
  ModelConfig config;
  config.arch = "qwen3";
  const float freqs[] = {1.0f, 2.0f}, others[] = {1.0f, 3.0f};
  const auto of = [&](const ModelConfig& c, ActType act = ActType::i8, std::span<const float> rope = {}) {
    return sequence_identity(c, f.cache->plan(), act, rope, 1);
  };
  const SequenceIdentity base = of(config);
  int n_rope = 0, n_config = 0;
  const auto changed = [&](auto change, bool rope) {
    ModelConfig c = config;
    change(c);
    EXPECT_EQ(of(c).rope != base.rope, rope);
    EXPECT_EQ(of(c).config != base.config, !rope);
    ++(rope ? n_rope : n_config);
  };
  changed([](auto& c) { c.rope_dims = 64; }, true);
  changed([](auto& c) { c.rope_interleaved = true; }, true);
  changed([](auto& c) { c.rope_scaling = RopeScaling::yarn; }, true);
  changed([](auto& c) { c.rope_original_ctx = 4096; }, true);
  changed([](auto& c) { c.rope_base = 1e6; }, true);
  changed([](auto& c) { c.rope_factor = 4.0; }, true);
  changed([](auto& c) { c.rope_attn_factor = 2.0; }, true);
  changed([](auto& c) { c.yarn_beta_fast = 16.0; }, true);
  changed([](auto& c) { c.yarn_beta_slow = 2.0; }, true);
  changed([](auto& c) { c.arch = "llama"; }, false);
  changed([](auto& c) { c.d_model = 512; }, false);
  changed([](auto& c) { c.d_ff = 512; }, false);
  changed([](auto& c) { c.qk_norm = true; }, false);
  changed([](auto& c) { c.tied_output = true; }, false);
  changed([](auto& c) { c.norm_eps = 1e-5f; }, false);
  EXPECT_EQ(n_rope, 9);
  EXPECT_EQ(n_config, 6);
  EXPECT_NE(of(config, ActType::f32).config, base.config);
  EXPECT_NE(of(config, ActType::i8, freqs).rope, base.rope);
  EXPECT_NE(of(config, ActType::i8, freqs).rope, of(config, ActType::i8, others).rope);
}

TEST_F(SavedFile, RefusesDamageAnywhere) {
  Filled f(KvType::q5_0, KvType::q8_0, 512);
  f.append(0, 290, 1);
  f.append(1, 270, 2);
  ASSERT_TRUE(f.save(0, path).ok());
  const Bytes good = read();
  std::mt19937 random(5);
  int cases = 0;
  const auto flip = [&](size_t at) {
    Bytes bad = good;
    bad[at] ^= static_cast<std::byte>(1 << random() % 8);
    put(bad);
    refuses(f, "cannot be restored");
    ++cases;
  };
  for (size_t at = 0; at < kSavedHeaderBytes; ++at) flip(at);
  for (int i = 0; i < 200; ++i) flip(random() % good.size());
  flip(good.size() - 1);
  for (const size_t n : {size_t{1}, size_t{7}, size_t{8}, size_t{100}, kSavedHeaderBytes, good.size() / 2, good.size() - 1}) {
    put(Bytes(good.begin(), good.begin() + static_cast<long>(n)));
    refuses(f, "cannot be restored");
    ++cases;
  }
  put(Bytes());
  refuses(f, "empty");
  Bytes longer = good;
  longer.push_back(std::byte{0});
  put(longer);
  refuses(f, "bytes, expected");
  Bytes magic = good;
  magic[0] = std::byte{'X'};
  put(magic);
  refuses(f, "no saved sequence");
  Bytes future = good;
  future[8] = std::byte{2};
  mend(future);
  put(future);
  refuses(f, "newer bantam");
  Bytes data = good;
  data[good.size() - 100] ^= std::byte{1};
  put(data);
  refuses(f, "its data is damaged");
  ::unlink(path.c_str());
  refuses(f, "No such file");
  put(good);
  EXPECT_TRUE(f.restore(1, path).ok());
  EXPECT_EQ(f.bytes(1), f.bytes(0));
  EXPECT_EQ(cases, static_cast<int>(kSavedHeaderBytes) + 208);
}

// Files whose sums agree but whose values no encoder writes.
TEST_F(SavedFile, RefusesValuesOutsideTheirBounds) {
  for (const KvType k : {KvType::q8_0, KvType::q5_1}) {
    Filled f(k, KvType::q4_0, 512);
    f.append(0, 270, 1);  // one whole page, then 14 positions of a tile
    f.append(1, 5, 2);
    ASSERT_TRUE(f.save(0, path).ok());
    const Bytes good = read();
    const size_t tokens = kSavedHeaderBytes, pages = tokens + 4 * 270;
    const KvTileLayout at = kv_quant_layout(k == KvType::q8_0 ? 8 : 5, info(k).has_minimum, kHeadDim);
    const auto with = [&](size_t place, std::vector<uint8_t> values, const char* word) {
      Bytes bad = good;
      for (size_t i = 0; i < values.size(); ++i) bad[place + i] = static_cast<std::byte>(values[i]);
      mend(bad);
      put(bad);
      refuses(f, word);
    };
    with(tokens + 8, {0xff, 0xff, 0xff, 0xff}, "vocabulary");
    with(tokens + 8, {0xe8, 0x03, 0, 0}, "token 1000 is outside");
    if (k == KvType::q8_0) with(pages + 5, {0x80}, "code");
    with(pages + static_cast<size_t>(at.scales) + 2, {0x00, 0x80}, "scale");  // -0
    with(pages + static_cast<size_t>(at.scales) + 2, {0x00, 0x7c}, "scale");  // inf
    with(pages + static_cast<size_t>(at.scales) + 2, {0x01, 0x7c}, "scale");  // another NaN
    if (info(k).has_minimum) with(pages + static_cast<size_t>(at.minima) + 2, {0x00, 0xfc}, "scale");
    // Behind the 14 positions: in the codes, the fifth bits, the scales, and in the tile after.
    const size_t last = pages + static_cast<size_t>(f.cache->page_bytes()) * kLayers;
    with(last + 14 * 4, {1}, "behind the end");
    if (at.high >= 0) with(last + static_cast<size_t>(at.high) + 7, {1}, "behind the end");
    with(last + static_cast<size_t>(at.scales) + 28, {1}, "behind the end");
    with(last + static_cast<size_t>(at.bytes), {1}, "behind the end");
    // V lies behind K: 2 heads of 8 tiles.
    const size_t values = last + static_cast<size_t>(at.bytes) * kKvHeads * kPageTiles;
    with(values + 3 * kHeadDim * 2 + 2, {1}, "behind the end");
    with(values + 16 * kHeadDim + 28, {0x01}, "behind the end");
    Bytes nan = good;  // the one NaN that is stored
    nan[pages + static_cast<size_t>(at.scales) + 2] = std::byte{0x00};
    nan[pages + static_cast<size_t>(at.scales) + 3] = std::byte{0x7e};
    mend(nan);
    put(nan);
    EXPECT_TRUE(f.restore(1, path).ok());
  }
  Filled f(KvType::bf16, KvType::f32, 256);
  f.append(0, 33, 1);
  f.append(1, 5, 2);
  ASSERT_TRUE(f.save(0, path).ok());
  Bytes bad = read();
  bad[kSavedHeaderBytes + 4 * 33 + 32 * kHeadDim * 2 + kHeadDim * 2] = std::byte{1};
  mend(bad);
  put(bad);
  refuses(f, "behind the end");
}

// Runs work in a child; its exit status.
int in_child(const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    work();
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

TEST_F(SavedFile, KilledBeforeAnyCallLeavesTheOldFileOrTheNew) {
  for (const bool first : {true, false}) {
    Filled f(KvType::q4_0, KvType::f16, 512);
    f.append(0, 400, 1);
    f.append(1, 500, 2);
    Bytes old_bytes;
    if (!first) {
      ASSERT_TRUE(f.save(0, path).ok());
      old_bytes = read();
    }
    int n_old = 0, n_new = 0, n_calls = 0;
    std::vector<std::string> calls;
    ASSERT_TRUE(f.save(1, folder + "/other", [&](const char* call) { calls.emplace_back(call); }).ok());
    ::unlink((folder + "/other").c_str());
    for (size_t kill_at = 0; kill_at < calls.size(); ++kill_at) {
      size_t n = 0;
      const int status = in_child([&] {
        (void)f.save(1, path, [&](const char*) {
          if (n++ == kill_at) ::kill(::getpid(), SIGKILL);
        });
      });
      ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << calls[kill_at];
      ++n_calls;
      const bool there = ::access(path.c_str(), F_OK) == 0;
      if (there && read() == old_bytes && !first) {
        ++n_old;
      } else if (there) {
        ASSERT_TRUE(f.restore(0, path).ok()) << "killed before " << calls[kill_at];
        ASSERT_EQ(f.bytes(0), f.bytes(1));
        ++n_new;
        // Again as before.
        ::unlink(path.c_str());
        if (!first) put(old_bytes);
      } else {
        ASSERT_TRUE(first) << "the old file is gone, killed before " << calls[kill_at];
        ++n_old;
      }
    }
    std::printf("killed before each of %d calls: %d times the old file, %d times the new\n", n_calls, n_old, n_new);
    EXPECT_EQ(n_calls, 2 + 2 + 2 * kLayers + 1 + 4);  // open, cut; header, tokens, pages, sum; sync, rename, sync, done
    EXPECT_EQ(n_new, 2);
    // What a killed writer left is taken over.
    ASSERT_TRUE(f.save(1, path).ok());
    EXPECT_NE(::access((path + ".unfinished").c_str(), F_OK), 0);
  }
}

TEST_F(SavedFile, AFullDiskLeavesTheOldFile) {
  Filled f(KvType::q8_0, KvType::q8_0, 512);
  f.append(0, 300, 1);
  f.append(1, 400, 2);
  ASSERT_TRUE(f.save(0, path).ok());
  const Bytes old_bytes = read();
  for (const rlim_t limit : {rlim_t{0}, rlim_t{100}, rlim_t{2000}, static_cast<rlim_t>(old_bytes.size())}) {
    const int status = in_child([&] {
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit most{limit, limit};
      if (::setrlimit(RLIMIT_FSIZE, &most) != 0) ::_exit(1);
      const Result<int64_t> written = f.save(1, path);
      if (written.ok() || written.error().message.find("cannot write '") != 0) ::_exit(2);
      if (written.error().message.find("File too large") == std::string::npos) ::_exit(3);
      if (::access((path + ".unfinished").c_str(), F_OK) == 0) ::_exit(4);
    });
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0) << "limit " << limit;
    EXPECT_EQ(read(), old_bytes);
  }
  EXPECT_FALSE(f.save(0, folder + "/none/slot.bin").ok());
}

// Between the check and the last byte: said, and said what became of the slot.
TEST_F(SavedFile, ChangedWhileItIsReadIsAnError) {
  Filled f(KvType::q8_0, KvType::q8_0, 512);
  f.append(0, 300, 1);
  f.append(1, 270, 2);
  ASSERT_TRUE(f.save(0, path).ok());
  const Bytes good = read(), before = f.bytes(1);
  for (const std::string how : {"changed", "shorter"}) {
    put(good);
    const Result<SavedSequence> saved = f.open(path);
    ASSERT_TRUE(saved.ok()) << saved.error().message;
    Bytes other = good;
    if (how == "changed") {
      other[good.size() / 2] ^= std::byte{1};
    } else {
      other.resize(good.size() / 2);
    }
    put(other);
    ASSERT_EQ(f.bytes(1), before) << "opening a file touched the sequence";
    saved->make_room(*f.cache, 1);
    const Status status = saved->fill(*f.cache, 1);
    ASSERT_FALSE(status.ok());
    for (const std::string& word : {std::string("cannot be restored"), how, std::string("the slot is empty now")}) {
      EXPECT_NE(status.error().message.find(word), std::string::npos) << status.error().message;
    }
    f.cache->erase(1);
    put(good);
    f.tokens[1].clear();
    f.append(1, 270, 2);
  }
  Bytes token = good;  // the sum of another file, but not the tokens that were promised
  token[kSavedHeaderBytes] ^= std::byte{1};
  mend(token);
  const Result<SavedSequence> saved = f.open(path);
  ASSERT_TRUE(saved.ok());
  put(token);
  saved->make_room(*f.cache, 1);
  EXPECT_FALSE(saved->fill(*f.cache, 1).ok());
}

// Whoever waits may leave before any piece: the old file stays, and nothing else does.
TEST_F(SavedFile, GivenUpBeforeAnyPieceLeavesTheOldFile) {
  Filled f(KvType::q8_0, KvType::q4_0, 512);
  f.append(0, 300, 1);
  f.append(1, 400, 2);
  ASSERT_TRUE(f.save(0, path).ok());
  const Bytes old_bytes = read(), before = f.bytes(1);
  const int n_pieces = 2 * kLayers;
  for (int left = 0; left <= n_pieces + 1; ++left) {
    int n = 0;
    const KeepGoing few = [&] { return n++ < left; };
    const Result<int64_t> written = save_sequence(path, f.id, f.tokens[1], *f.cache, 1, few);
    ASSERT_EQ(written.ok(), left == n_pieces + 1) << "the last question is before the file gets its name";
    EXPECT_NE(::access((path + ".unfinished").c_str(), F_OK), 0);
    if (!written) {
      EXPECT_EQ(written.error().kind, ErrorKind::cancelled);
      EXPECT_EQ(read(), old_bytes);
    }
    n = 0;
    const Result<SavedSequence> saved = SavedSequence::open(path, f.id, true, 512, few);
    ASSERT_EQ(saved.ok(), left >= n_pieces);
    if (!saved) {
      EXPECT_EQ(saved.error().kind, ErrorKind::cancelled);
    }
    EXPECT_EQ(f.bytes(1), before);
  }
}

TEST_F(SavedFile, OneWriterAtATime) {
  Filled f(KvType::q8_0, KvType::q8_0, 256);
  f.append(0, 30, 1);
  Result<AtomicFile> other = AtomicFile::create(path);
  ASSERT_TRUE(other.ok());
  const Result<int64_t> written = f.save(0, path);
  ASSERT_FALSE(written.ok());
  EXPECT_EQ(written.error().kind, ErrorKind::busy);
  ASSERT_TRUE(other->commit().ok());
  EXPECT_TRUE(f.save(0, path).ok());
}

// Where locks fail another process may take the name away and begin a file of its own: nobody's half file gets the good name.
TEST_F(SavedFile, AFileOfAnotherIsNeverRenamed) {
  Filled f(KvType::q8_0, KvType::q8_0, 256);
  f.append(0, 30, 1);
  ASSERT_TRUE(f.save(0, path).ok());
  const Bytes good = read();
  const std::string unfinished = path + ".unfinished";
  const Result<int64_t> written = f.save(0, path, [&](const char* call) {
    if (std::string(call) != "rename") return;
    ASSERT_EQ(::unlink(unfinished.c_str()), 0);
    std::ofstream(unfinished) << "half a file";
  });
  ASSERT_FALSE(written.ok());
  EXPECT_EQ(read(), good);
  EXPECT_EQ(std::filesystem::file_size(unfinished), 11u);
}

}  // namespace
}  // namespace bantam
