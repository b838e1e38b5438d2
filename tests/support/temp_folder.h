// A folder of its own for a test, made now and gone afterwards. Expects to be empty at its end: what a
// test or the code under test leaves behind is a failure.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <string>

namespace bantam {

class TempFolder {
 public:
  TempFolder() : path_("/tmp/bantam_" + std::string(6, 'X')) {  // mkdtemp fills the end in
    EXPECT_NE(::mkdtemp(path_.data()), nullptr) << path_;
  }
  ~TempFolder() { EXPECT_EQ(::rmdir(path_.c_str()), 0) << "something was left in " << path_; }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace bantam
