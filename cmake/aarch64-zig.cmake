# Toolchain: aarch64 Linux with glibc 2.27 (JetPack 4.6, Raspberry Pi OS) by zig c++ from PyPI. Third-party headers come
# from build/cross/include and the static PCRE2 from Debian's arm64 package: scripts/install_deps.sh test prepares both.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(root ${CMAKE_CURRENT_LIST_DIR}/..)
set(CMAKE_C_COMPILER ${root}/tools/zig-cc)
set(CMAKE_CXX_COMPILER ${root}/tools/zig-cxx)
set(CMAKE_ASM_COMPILER ${root}/tools/zig-cc)
set(CMAKE_AR ${root}/tools/zig-ar)
set(CMAKE_RANLIB /bin/true)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(BANTAM_CROSS_INCLUDE ${root}/build/cross/include)
set(PCRE2_LIBRARY /usr/lib/aarch64-linux-gnu/libpcre2-8.a CACHE FILEPATH "")
