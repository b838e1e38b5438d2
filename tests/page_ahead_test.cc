// PageAhead: what a thread asks for while it reads one page is the page after it, each line
// once or, as the backend also asks between K and V, all but a few.
#include "cpu/page_ahead.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace bantam {
namespace {

// The lines that kernels ask for while they read a tile: as attend_codes.inl does.
void ask_all(const AheadLines& lines, int64_t tile_bytes, std::vector<const std::byte*>& asked) {
  for (int64_t at = 0; at < tile_bytes; at += 64) {
    asked.push_back(lines.eight[at / 512] + at % 512);
  }
}

struct Page {
  std::vector<std::byte> k, v;
  // How often each line was asked for, of K and then of V; other lines are counted together.
  std::vector<int> counts(const std::vector<const std::byte*>& asked, int* others) const {
    std::vector<int> n((k.size() + v.size()) / 64);
    for (const std::byte* p : asked) {
      if (p >= k.data() && p < k.data() + k.size()) {
        ++n[static_cast<size_t>(p - k.data()) / 64];
      } else if (p >= v.data() && p < v.data() + v.size()) {
        ++n[(k.size() + static_cast<size_t>(p - v.data())) / 64];
      } else {
        ++*others;
      }
    }
    return n;
  }
};

const std::byte kIdle[64 * 2048] = {};

// Reads n_tiles tiles of K and of V of a page while `ahead` is asked for; some: as the backend,
// with some lines between K and V.
std::vector<const std::byte*> read_page(PageAhead& ahead, int n_tiles, int64_t k, int64_t v,
                                        bool some = false) {
  std::vector<const std::byte*> asked;
  AheadLines lines;
  for (int t = 0; t < 2 * n_tiles; ++t) {
    if (some && t == n_tiles && !ahead.done()) {
      const std::byte* at[PageAhead::kStreams];
      ahead.take_some(256, at);
      for (const std::byte* some_lines : at) {
        for (int i = 0; i < 256; i += 64) asked.push_back(some_lines + i);
      }
    }
    const int64_t bytes = t < n_tiles ? k : v;
    ahead.take(bytes, kIdle, lines);
    ask_all(lines, bytes, asked);
  }
  return asked;
}

// Tiles of 32 positions of every type and head size that is a multiple of 32.
std::vector<int64_t> tile_sizes() {
  std::vector<int64_t> sizes;
  for (int head_dim = 32; head_dim <= 256; head_dim += 32) {
    for (const int bytes32 : {128, 64, 34, 24, 22, 20, 18}) sizes.push_back(head_dim * bytes32);
  }
  return sizes;
}

TEST(PageAhead, AWholePageIsAskedForLineByLine) {
  int n_pages = 0;
  for (const bool some : {false, true}) {
    for (const int64_t tile : tile_sizes()) {
      Page page{std::vector<std::byte>(static_cast<size_t>(8 * tile)),
                std::vector<std::byte>(static_cast<size_t>(8 * tile))};
      PageAhead ahead;
      EXPECT_TRUE(ahead.done());
      ahead.start(page.k.data(), 8 * tile, page.v.data(), 8 * tile);
      EXPECT_FALSE(ahead.done());
      int others = 0;
      const std::vector<int> n = page.counts(read_page(ahead, 8, tile, tile, some), &others);
      EXPECT_TRUE(ahead.done());
      const auto once = std::count(n.begin(), n.end(), 1),
                 never = std::count(n.begin(), n.end(), 0);
      // Lines between K and V put the streams out of step with the tiles by as many at the end.
      const auto most = some ? 16 : 0;
      EXPECT_LE(never, most) << tile;
      EXPECT_GE(once, static_cast<int64_t>(n.size()) - 2 * most) << tile;
      EXPECT_LE(others, most) << tile;
      ++n_pages;
    }
  }
  EXPECT_EQ(n_pages, 2 * 56);
}

TEST(PageAhead, KeysAndValuesOfDifferentTypes) {
  int n_pages = 0;
  for (const int64_t k : {64 * 32, 128 * 34, 128 * 18, 256 * 128}) {
    for (const int64_t v : {64 * 24, 128 * 64, 128 * 22, 96 * 20}) {
      Page page{std::vector<std::byte>(static_cast<size_t>(8 * k)),
                std::vector<std::byte>(static_cast<size_t>(8 * v))};
      PageAhead ahead;
      ahead.start(page.k.data(), 8 * k, page.v.data(), 8 * v);
      int others = 0;
      const std::vector<int> n = page.counts(read_page(ahead, 8, k, v), &others);
      EXPECT_TRUE(ahead.done());
      // The stream that goes on from K to V loses at most what it asks for during a tile.
      const auto asked = static_cast<int64_t>(n.size()) - std::count(n.begin(), n.end(), 0);
      EXPECT_GE(asked, static_cast<int64_t>(n.size()) - 2 * std::max(k, v) / 256 - 16)
          << k << " " << v;
      ++n_pages;
    }
  }
  EXPECT_EQ(n_pages, 16);
}

// Of a page that few positions are visible of nothing else is asked for than its tiles, then what
// the core has already.
TEST(PageAhead, ShortPagesEnd) {
  constexpr int64_t tile = 128 * 18;
  Page page{std::vector<std::byte>(8 * tile), std::vector<std::byte>(8 * tile)};
  for (int n_tiles = 1; n_tiles < 8; ++n_tiles) {
    PageAhead ahead;
    ahead.start(page.k.data(), n_tiles * tile, page.v.data(), n_tiles * tile);
    const std::vector<const std::byte*> all = read_page(ahead, 8, tile, tile);
    EXPECT_TRUE(ahead.done());
    int others = 0;
    const std::vector<int> n = page.counts(all, &others);
    int64_t visible = 0;
    for (int64_t line = 0; line < n_tiles * tile / 64; ++line) {
      visible += n[static_cast<size_t>(line)] > 0;
      visible += n[static_cast<size_t>(8 * tile / 64 + line)] > 0;
    }
    EXPECT_GE(visible, 2 * n_tiles * tile / 64 - 16) << n_tiles;
    const auto idle = std::count_if(all.begin(), all.end(), [](const std::byte* p) {
      return p >= kIdle && p < kIdle + sizeof(kIdle);
    });
    EXPECT_EQ(idle, (16 - 2 * n_tiles) * tile / 64) << n_tiles;
  }
}

}  // namespace
}  // namespace bantam
