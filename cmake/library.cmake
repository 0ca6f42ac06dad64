# The library for C++ users: find_package(flash_attn), target flash_attn::flash_attn. Static unless BUILD_SHARED_LIBS is on.
include(CMakePackageConfigHelpers)
set(FLASH_ATTN_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/flash_attn)

add_library(flash_attn $<TARGET_OBJECTS:flash_attn_objects>)
add_library(flash_attn::flash_attn ALIAS flash_attn)
target_include_directories(flash_attn PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_compile_features(flash_attn PUBLIC cxx_std_20)
target_link_libraries(flash_attn PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
set_target_properties(flash_attn PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR})

install(TARGETS flash_attn EXPORT flash_attn_targets COMPONENT cpp
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/flash_attn DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT cpp FILES_MATCHING PATTERN "*.h")
install(EXPORT flash_attn_targets NAMESPACE flash_attn:: DESTINATION ${FLASH_ATTN_CMAKE_DIR} COMPONENT cpp)
configure_package_config_file(cmake/flash_attn-config.cmake.in ${PROJECT_BINARY_DIR}/flash_attn-config.cmake
                              INSTALL_DESTINATION ${FLASH_ATTN_CMAKE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/flash_attn-config-version.cmake COMPATIBILITY SameMajorVersion)
install(FILES ${PROJECT_BINARY_DIR}/flash_attn-config.cmake ${PROJECT_BINARY_DIR}/flash_attn-config-version.cmake
        DESTINATION ${FLASH_ATTN_CMAKE_DIR} COMPONENT cpp)
