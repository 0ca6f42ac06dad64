# src/cpu/isa/<name>.cpp holds the kernels of one instruction set and is the only file built with its flags; which set runs is decided
# by CPUID at run time. A new set is one file there and one line here.
set(FLASH_ATTN_ISA_FLAGS_scalar "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND NOT CMAKE_OSX_ARCHITECTURES MATCHES "arm64")
  set(FLASH_ATTN_ISAS scalar avx2 avx512 avx512bf16)
  set(FLASH_ATTN_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
  set(FLASH_ATTN_ISA_FLAGS_avx512 ${FLASH_ATTN_ISA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
  set(FLASH_ATTN_ISA_FLAGS_avx512bf16 ${FLASH_ATTN_ISA_FLAGS_avx512} -mavx512bf16)
else()
  set(FLASH_ATTN_ISAS scalar)
endif()

# Kernels are always optimised like a release, but for an explicit Debug build. Nothing there throws; a thrown exception or a type_info
# would also be a symbol that the linker shares between instruction sets (tests/test_architecture.py looks for such symbols).
set(FLASH_ATTN_ISA_FLAGS_all -fno-exceptions -fno-rtti -fno-math-errno -fno-trapping-math $<$<NOT:$<CONFIG:Debug>>:-O3>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # the ABI of vectors passed by value does not matter inside one file; vector types as template arguments lose only an attribute
  list(APPEND FLASH_ATTN_ISA_FLAGS_all -Wno-psabi -Wno-ignored-attributes)
  if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    list(APPEND FLASH_ATTN_ISA_FLAGS_all -Wno-uninitialized)  # in g++'s own avx512fintrin.h
  endif()
endif()

# The files of `folder` that this processor can compile, with their flags set.
function(flash_attn_isa_sources variable folder)
  file(GLOB present CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/${folder} ${folder}/*.cpp)
  set(sources "")
  foreach(isa IN LISTS FLASH_ATTN_ISAS)
    if("${isa}.cpp" IN_LIST present)
      set(source ${PROJECT_SOURCE_DIR}/${folder}/${isa}.cpp)
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${FLASH_ATTN_ISA_FLAGS_all};${FLASH_ATTN_ISA_FLAGS_${isa}}")
      list(APPEND sources ${source})
    endif()
  endforeach()
  set(${variable} ${sources} PARENT_SCOPE)
endfunction()
