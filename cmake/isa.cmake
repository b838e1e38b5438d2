# Each ISA file of src/cpu carries its own machine flags; nothing else may use more than the baseline.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cpu/isa_scalar_fma.cc PROPERTIES
    COMPILE_OPTIONS "-mfma;-mavx2;-O2")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cpu/isa_avx2.cc PROPERTIES
    COMPILE_OPTIONS "-mavx2;-mfma;-mf16c;-O3")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cpu/isa_avxvnni.cc PROPERTIES
    COMPILE_OPTIONS "-mavx2;-mfma;-mf16c;-mavxvnni;-O3")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cpu/isa_avx512.cc PROPERTIES
    COMPILE_OPTIONS "-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni;-mavx512vbmi;-mgfni;-mfma;-mf16c;-O3")
endif()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cpu/isa_neon.cc PROPERTIES COMPILE_OPTIONS "-O3")
  # zig spells features by -mcpu only.
  if(CMAKE_CROSSCOMPILING)
    set(dotprod "-mcpu=generic+dotprod")
  else()
    set(dotprod "-march=armv8.2-a+dotprod")
  endif()
  set(i8mm "${dotprod}+i8mm")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cpu/isa_dotprod.cc PROPERTIES
    COMPILE_OPTIONS "${dotprod};-O3")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cpu/isa_i8mm.cc PROPERTIES
    COMPILE_OPTIONS "${i8mm};-O3")
endif()
