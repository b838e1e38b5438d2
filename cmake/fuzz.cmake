# bantam_fuzz(name, layers...): fuzz/NAME.cc as a libFuzzer program.
function(bantam_fuzz name)
  add_executable(${name} ${CMAKE_SOURCE_DIR}/fuzz/${name}.cc)
  foreach(layer IN LISTS ARGN)
    target_link_libraries(${name} PRIVATE bantam_${layer})
  endforeach()
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
endfunction()
