# Microbenchmarks of the kernel tables: only `make bench-kernels` builds them.
add_executable(kernels_bench EXCLUDE_FROM_ALL ${CMAKE_SOURCE_DIR}/bench/kernels_bench.cc)
target_link_libraries(kernels_bench PRIVATE bantam_cpu)
