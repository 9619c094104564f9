# Compiler settings and the three shapes of target that the rooms use:
#
#   baton_room(NAME SOURCES a.cc … DEPS base …)      a library, target baton_NAME
#   baton_objects(NAME SOURCES a.cc … DEPS base …)   an OBJECT library: for code that
#                                                    registers itself at start-up
#   baton_program(NAME SOURCES main.cc DEPS …)       an executable in BUILD/bin (OWN_PCH: with a
#                                                    precompiled header of its own)
#   baton_test(NAME TIER unit SOURCES a_test.cc DEPS …)   a GoogleTest executable,
#                                                    one ctest entry, labelled TIER
#
# DEPS name rooms (base, dedup, …) or CMake targets.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)

option(BATON_BUILD_TESTS "Build the tests" ON)
option(BATON_BUILD_BENCH "Build the benchmarks" ON)
option(BATON_FUZZ "Build the fuzzers with libFuzzer (clang only)" OFF)
set(BATON_SANITIZE "" CACHE STRING "Comma-separated -fsanitize= list, for example address,undefined")

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1")

find_program(BATON_CCACHE ccache)
if(BATON_CCACHE)
  # For precompiled headers (ccache's manual, "Precompiled headers"), and so that checkouts
  # in different folders share what they have in common.
  set(BATON_CCACHE ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${BATON_CCACHE})
  add_compile_options(-fpch-preprocess)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${BATON_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${BATON_CCACHE})
endif()
find_program(BATON_MOLD mold)
find_program(BATON_LLD ld.lld)
if(BATON_MOLD)
  add_link_options(-fuse-ld=mold)
elseif(BATON_LLD)
  add_link_options(-fuse-ld=lld)
endif()

add_compile_options(-Wall -Wextra -Werror -Wshadow -Wnon-virtual-dtor -Wno-missing-field-initializers)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 reports these falsely, of strings that it has inlined (GCC bugs 105329, 105762).
  add_compile_options(-Wno-restrict -Wno-array-bounds -Wno-stringop-overread -Wno-stringop-overflow)
endif()
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  add_compile_definitions(ASIO_HAS_CO_AWAIT ASIO_HAS_STD_COROUTINE
                          BOOST_ASIO_HAS_CO_AWAIT BOOST_ASIO_HAS_STD_COROUTINE)
endif()
add_compile_definitions(_GNU_SOURCE _FILE_OFFSET_BITS=64)
if(BATON_SANITIZE)
  add_compile_options(-fsanitize=${BATON_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${BATON_SANITIZE})
  if(BATON_SANITIZE MATCHES "thread")
    add_compile_options(-Wno-tsan)   # fences, in Asio: its queues order what they do by mutexes, too
  endif()
  if(BATON_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
endif()
include_directories(${CMAKE_SOURCE_DIR})

find_package(Threads REQUIRED)
find_package(spdlog REQUIRED)
find_package(GTest)

# What nearly every source parses is parsed once: the libraries' headers, never ours. The test
# that compiles each header alone goes without, so a missing include is still found. A
# precompiled header fits only code built with the same macros and the same kind of
# position-independent code: hence the definitions for all, and one for libraries, one for tests.
# Tests are compiled more often than they run.
set(baton_test_options $<$<CONFIG:Release>:-O1>)
option(BATON_PCH "Precompile the libraries' headers" ON)
add_compile_definitions(SPDLOG_COMPILED_LIB SPDLOG_SHARED_LIB SPDLOG_FMT_EXTERNAL FMT_SHARED NOMINMAX)
set(baton_pch_headers <algorithm> <array> <atomic> <chrono> <condition_variable> <cstring> <filesystem>
    <fstream> <functional> <map> <memory> <mutex> <optional> <random> <set> <span> <sstream> <string>
    <thread> <vector> <tl/expected.hpp> <spdlog/spdlog.h> <google/protobuf/message.h>
    <google/protobuf/generated_message_util.h> <google/protobuf/repeated_field.h>
    <google/protobuf/io/coded_stream.h> <google/protobuf/generated_message_reflection.h>
    <google/protobuf/reflection_ops.h> <google/protobuf/wire_format.h> <grpcpp/grpcpp.h>)
function(_baton_pch_owner name)
  file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/${name}.cc CONTENT "")
  add_library(${name} OBJECT ${CMAKE_BINARY_DIR}/${name}.cc)
  target_precompile_headers(${name} PRIVATE ${ARGN})
endfunction()
if(BATON_PCH)
  _baton_pch_owner(baton_pch_room ${baton_pch_headers})
  _baton_pch_owner(baton_pch_test ${baton_pch_headers} <gtest/gtest.h> <gmock/gmock.h>)
  set_target_properties(baton_pch_test PROPERTIES POSITION_INDEPENDENT_CODE OFF)
  target_compile_options(baton_pch_test PRIVATE -fPIE ${baton_test_options})
  target_compile_definitions(baton_pch_test PRIVATE GTEST_HAS_PTHREAD=1)
endif()
function(_baton_pch target owner)
  if(NOT BATON_PCH)
    return()
  endif()
  get_target_property(sources ${target} SOURCES)
  if(NOT sources MATCHES "\\.c(;|$)")   # CMake wants one for each language of a target
    target_precompile_headers(${target} REUSE_FROM ${owner})
  endif()
endfunction()

function(_baton_link target)
  foreach(dep ${ARGN})
    if(TARGET baton_${dep} OR dep MATCHES "^(base|proto|dedup|storage|transport)$")
      target_link_libraries(${target} PUBLIC baton_${dep})
    else()
      target_link_libraries(${target} PUBLIC ${dep})
    endif()
  endforeach()
endfunction()

function(baton_room name)
  cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
  add_library(baton_${name} STATIC ${A_SOURCES})
  _baton_pch(baton_${name} baton_pch_room)
  _baton_link(baton_${name} ${A_DEPS})
endfunction()

function(baton_objects name)
  cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
  add_library(baton_${name} OBJECT ${A_SOURCES})
  _baton_pch(baton_${name} baton_pch_room)
  _baton_link(baton_${name} ${A_DEPS})
endfunction()

# Compiled as for a library, so that the rooms' precompiled header fits.
function(baton_program name)
  cmake_parse_arguments(A "OWN_PCH" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  if(A_DEPS AND NOT A_OWN_PCH AND BATON_PCH)
    set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${name} PRIVATE -fPIC)
    _baton_pch(${name} baton_pch_room)
  endif()
  _baton_link(${name} ${A_DEPS})
endfunction()

# Of code that decides and calls, and neither copies nor counts pages: compiling it takes a
# sixth less, and nothing that is measured changes.
function(baton_quick target)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
endfunction()

# A program under test that looks at its own registers and memory: never with a sanitizer.
function(baton_unsanitized target)
  foreach(property COMPILE_OPTIONS LINK_OPTIONS)
    get_target_property(options ${target} ${property})
    if(options)
      list(FILTER options EXCLUDE REGEX "sanitize")
      set_target_properties(${target} PROPERTIES ${property} "${options}")
    endif()
  endforeach()
endfunction()

function(baton_test name)
  cmake_parse_arguments(A "" "TIER;TIMEOUT" "SOURCES;DEPS" ${ARGN})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 120)
    if(BATON_SANITIZE)
      set(A_TIMEOUT 900)
    endif()
  endif()
  add_executable(${name} ${A_SOURCES})
  target_compile_options(${name} PRIVATE ${baton_test_options})
  _baton_pch(${name} baton_pch_test)
  _baton_link(${name} ${A_DEPS} GTest::gmock GTest::gtest_main)
  add_test(NAME ${A_TIER}.${name} COMMAND ${name})
  set_tests_properties(${A_TIER}.${name} PROPERTIES LABELS ${A_TIER} TIMEOUT ${A_TIMEOUT})
  if(BATON_SANITIZE MATCHES "thread")
    set_tests_properties(${A_TIER}.${name} PROPERTIES ENVIRONMENT
      "TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/sanitizers/tsan.supp:ignore_noninstrumented_modules=1:history_size=4")
  endif()
endfunction()
