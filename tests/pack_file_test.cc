// PackCache on files that change or fail while they are checked: an Error, never a signal. Needs a folder for files.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "model/pack_cache.h"
#include "tests/support/temp_folder.h"

namespace bantam {
namespace {

constexpr size_t kBytes = (20 << 20) + 64;

class PackFile : public ::testing::Test {
 protected:
  void SetUp() override {
    id.pack_version = 1;
    id.source_bytes = 1000;
    id.source_mtime_ns = 5;
    id.fingerprint = 0xabc;
    id.data_bytes = kBytes;
    data.resize(kBytes);
    for (size_t i = 0; i < kBytes; ++i) data[i] = static_cast<std::byte>(i * 7 + (i >> 12));
  }
  void TearDown() override {
    for (const std::string& name : made) {
      ::unlink(name.c_str());
      ::unlink((name + ".unfinished").c_str());
    }
  }
  PackCache cache(int n_threads) {
    PackCache made_now(folder, id, n_threads);
    made.push_back(made_now.path());
    return made_now;
  }
  void write(const PackCache& cache) {
    const Result<bool> written = cache.write(data, true, {});
    ASSERT_TRUE(written.ok() && *written);
  }
  const TempFolder temp;
  const std::string folder = temp.path();
  std::vector<std::string> made;
  PackIdentity id;
  std::vector<std::byte> data;
};

TEST_F(PackFile, IsTheSameForAnyNumberOfThreads) {
  write(cache(1));
  for (int n_threads : {1, 2, 64}) {
    const Result<std::optional<MappedFile>> file = cache(n_threads).open({});
    ASSERT_TRUE(file.ok() && file->has_value());
    EXPECT_EQ(std::memcmp((*file)->bytes().data() + kPackDataOffset, data.data(), kBytes), 0);
  }
}

// Cut after it was opened, while its first pieces are summed.
TEST_F(PackFile, CutWhileItIsCheckedIsRefused) {
  for (int n_threads : {1, 2}) {
    for (const size_t left : {size_t{0}, size_t{4096}, kPackDataOffset + (1 << 20), kBytes}) {
      const PackCache pack = cache(n_threads);
      write(pack);
      int calls = 0;
      const Result<std::optional<MappedFile>> file = pack.open([&](int64_t, int64_t) {
        if (++calls == 1) ASSERT_EQ(::truncate(pack.path().c_str(), static_cast<off_t>(left)), 0);
      });
      ASSERT_FALSE(file.ok()) << left;
      EXPECT_NE(file.error().message.find("is not used"), std::string::npos);
      EXPECT_NE(file.error().message.find("shorter"), std::string::npos) << file.error().message;
      EXPECT_GE(calls, 1);
    }
  }
}

TEST_F(PackFile, PagesThatAreNotThereAreAnErrorOfPopulate) {
  const PackCache pack = cache(1);
  write(pack);
  const Result<MappedFile> file = MappedFile::open(pack.path());
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(file->populate(0, file->size()).ok());
  ASSERT_EQ(::truncate(pack.path().c_str(), 4096), 0);
  EXPECT_TRUE(file->populate(0, 4096).ok());
  std::byte byte;
  EXPECT_FALSE(file->read(8192, {&byte, 1}).ok());
}

TEST_F(PackFile, EachModelFileHasItsOwn) {
  const std::string first = cache(1).path();
  id.source_mtime_ns = 6;
  const std::string second = cache(1).path();
  id.source_bytes = 1001;
  const std::string third = cache(1).path();
  EXPECT_NE(first, second);
  EXPECT_NE(second, third);
  EXPECT_NE(first, third);
}

}  // namespace
}  // namespace bantam
