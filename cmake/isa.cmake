# Sanitizers on unrolled kernels take minutes to compile at -O3; -O1 executes the same intrinsics.
if(BANTAM_SANITIZE)
  set(isa_level -O1)
  set(isa_fma_level -O1)
  # Whether pointers wrap is not asked: address asks more of every access, requests ahead may lie
  # anywhere, and isa_avx2.cc compiles in 149 s, not in 309 to 483 s (on other CPUs; with address
  # alone in 140 s).
  list(APPEND isa_level -fno-sanitize=pointer-overflow)
  # The fuzz targets are parsers; kernels have their own tests under the sanitizers.
  if(BANTAM_FUZZ)
    list(APPEND isa_level -fno-sanitize=all)
  endif()
else()
  set(isa_level -O3)
  set(isa_fma_level -O2)
endif()
# Each ISA file of src/cpu carries its own machine flags; nothing else may use more than the baseline.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cpu/isa_scalar_fma.cc PROPERTIES
    COMPILE_OPTIONS "-mfma;-mavx2;${isa_fma_level}")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cpu/isa_avx2.cc PROPERTIES
    COMPILE_OPTIONS "-mavx2;-mfma;-mf16c;${isa_level}")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cpu/isa_avxvnni.cc PROPERTIES
    COMPILE_OPTIONS "-mavx2;-mfma;-mf16c;-mavxvnni;${isa_level}")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cpu/isa_avx512.cc PROPERTIES
    COMPILE_OPTIONS "-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni;-mavx512vbmi;-mavx512vbmi2;-mgfni;-mfma;-mf16c;${isa_level}")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cpu/isa_amx.cc PROPERTIES
    COMPILE_OPTIONS "-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni;-mavx512vbmi;-mavx512vbmi2;-mgfni;-mfma;-mf16c;-mamx-tile;-mamx-int8;${isa_level}")
endif()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cpu/isa_neon.cc PROPERTIES COMPILE_OPTIONS "${isa_level}")
  # zig spells features by -mcpu only.
  if(CMAKE_CROSSCOMPILING)
    set(dotprod "-mcpu=generic+dotprod")
  else()
    set(dotprod "-march=armv8.2-a+dotprod")
  endif()
  set(i8mm "${dotprod}+i8mm")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cpu/isa_dotprod.cc PROPERTIES
    COMPILE_OPTIONS "${dotprod};${isa_level}")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cpu/isa_i8mm.cc PROPERTIES
    COMPILE_OPTIONS "${i8mm};${isa_level}")
endif()
