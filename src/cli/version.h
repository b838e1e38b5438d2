// Version, commit, compiler and instruction sets, as --version prints them.
#pragma once

#include <string>

namespace bantam {

std::string version_text();
std::string commit_text();

}  // namespace bantam
