# flash_attn._core: nanobind over the objects, its type stub, and the modules that live beside the package.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
set(FLASH_ATTN_HEADERS ${PROJECT_SOURCE_DIR}/build/prerequisites/usr/include)
set(FLASH_ATTN_PYTHON_HEADERS ${FLASH_ATTN_HEADERS}/python${Python_VERSION_MAJOR}.${Python_VERSION_MINOR})
if(EXISTS ${FLASH_ATTN_PYTHON_HEADERS}/Python.h)  # unpacked by tools/prerequisites.sh, because this Python has none
  set(Python_INCLUDE_DIR ${FLASH_ATTN_PYTHON_HEADERS} CACHE PATH "" FORCE)
  include_directories(SYSTEM ${FLASH_ATTN_HEADERS})  # Debian's pyconfig.h includes <x86_64-linux-gnu/...>
endif()
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir OUTPUT_VARIABLE FLASH_ATTN_NANOBIND_DIR
                OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
find_package(nanobind CONFIG REQUIRED PATHS ${FLASH_ATTN_NANOBIND_DIR} NO_DEFAULT_PATH)

file(GLOB FLASH_ATTN_BINDINGS CONFIGURE_DEPENDS src/bindings/*.cpp)
nanobind_add_module(_core NB_STATIC NOMINSIZE ${FLASH_ATTN_BINDINGS})
set_target_properties(nanobind-static PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)  # 6 s of CPU instead of 15
target_link_libraries(_core PRIVATE flash_attn_objects)
flash_attn_warnings(_core)
nanobind_add_stub(_core_stub MODULE _core OUTPUT _core.pyi PYTHON_PATH $<TARGET_FILE_DIR:_core> DEPENDS _core)

install(TARGETS _core LIBRARY DESTINATION flash_attn COMPONENT python)
install(FILES ${PROJECT_BINARY_DIR}/_core.pyi DESTINATION flash_attn COMPONENT python)
# flash_attn_interface.py, flash_attn_2_cuda.py: names that other projects import without the package
file(GLOB FLASH_ATTN_TOP_LEVEL CONFIGURE_DEPENDS python/*.py)
install(FILES ${FLASH_ATTN_TOP_LEVEL} DESTINATION . COMPONENT python)
