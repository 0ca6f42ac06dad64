# Warnings of every target of ours; errors with FLASH_ATTN_WERROR, which `make test` and CI turn on.
function(flash_attn_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra $<$<BOOL:${FLASH_ATTN_WERROR}>:-Werror>)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${target} PRIVATE -Wno-restrict)  # g++ 12 sees overlaps in `"text" + std::string`
  endif()
endfunction()
