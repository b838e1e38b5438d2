# The chat page goes into the executable by .incbin.
set(page_object ${CMAKE_BINARY_DIR}/page.S)
file(WRITE ${page_object} "
    .section .rodata
    .global bantam_page
    .hidden bantam_page
bantam_page:
    .incbin \"${CMAKE_SOURCE_DIR}/src/server/page/index.html\"
    .global bantam_page_end
    .hidden bantam_page_end
bantam_page_end:
    .byte 0
    .section .note.GNU-stack,\"\",%progbits
")
set_source_files_properties(${page_object} PROPERTIES OBJECT_DEPENDS
  ${CMAKE_SOURCE_DIR}/src/server/page/index.html)
target_sources(bantam_server PRIVATE ${page_object})
