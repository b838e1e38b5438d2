# The built-in model goes into the executable by .incbin (one assembler file, no copy at build time).
set(embedded ${CMAKE_BINARY_DIR}/builtin_model.S)
file(WRITE ${embedded} "
    .section .rodata
    .balign 64
    .global bantam_builtin_model
    .hidden bantam_builtin_model
bantam_builtin_model:
    .incbin \"${CMAKE_SOURCE_DIR}/models/tiny-1bit-chat.gguf\"
    .global bantam_builtin_model_end
    .hidden bantam_builtin_model_end
bantam_builtin_model_end:
    .byte 0
    .section .note.GNU-stack,\"\",%progbits
")

set_source_files_properties(${embedded} PROPERTIES OBJECT_DEPENDS
  ${CMAKE_SOURCE_DIR}/models/tiny-1bit-chat.gguf)
target_sources(bantam_engine PRIVATE ${embedded})
