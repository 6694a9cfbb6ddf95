# SPDX-License-Identifier: Apache-2.0
# The helpers that every folder's CMakeLists.txt is written with.

add_library(sinkscope_options INTERFACE)
target_include_directories(sinkscope_options INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/generated)
target_compile_options(sinkscope_options INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Wcast-align -Woverloaded-virtual
  -Wno-missing-field-initializers  # members left out of a designated initialiser keep their defaults
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>  # gcc 12 sees overlaps in std::string + that are not there (GCC bug 105651)
  $<$<BOOL:${SINKSCOPE_WERROR}>:-Werror>)

# sinkscope_add_library(NAME SOURCES ... [LINKS ...]): a static library of one folder, linked as sinkscope::NAME.
function(sinkscope_add_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  add_library(sinkscope_${name} STATIC ${ARG_SOURCES})
  add_library(sinkscope::${name} ALIAS sinkscope_${name})
  target_link_libraries(sinkscope_${name} PUBLIC ${ARG_LINKS} PRIVATE sinkscope_options)
  target_include_directories(sinkscope_${name} PUBLIC ${PROJECT_SOURCE_DIR})
endfunction()

# sinkscope_add_script_test(FOLDER/NAME_test COMMAND ... [LABELS ...] [TIMEOUT s]): a test that is a command. Its exit
# code 77 means skipped, with the reason printed.
function(sinkscope_add_script_test path)
  cmake_parse_arguments(ARG "" "TIMEOUT" "COMMAND;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_test(NAME ${path} COMMAND ${ARG_COMMAND} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${path} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT} SKIP_RETURN_CODE 77)
endfunction()

# sinkscope_add_test(FOLDER/NAME_test [LINKS ...] [LABELS ...] [TIMEOUT s] [RUNS_COMMAND]): one test program from
# FOLDER/NAME_test.cpp, run from the source folder. RUNS_COMMAND tells it where the built command is; the label gpu, that
# it skips everything where there is none (tests/require_gpu.hpp).
function(sinkscope_add_test path)
  cmake_parse_arguments(ARG "RUNS_COMMAND" "TIMEOUT" "LINKS;LABELS" ${ARGN})
  string(REPLACE "/" "_" target ${path})
  add_executable(${target} ${path}.cpp)
  target_link_libraries(${target} PRIVATE ${ARG_LINKS} sinkscope_options GTest::gtest_main)
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  if(ARG_RUNS_COMMAND)
    add_dependencies(${target} sinkscope)
    target_compile_definitions(${target} PRIVATE SINKSCOPE_EXECUTABLE="$<TARGET_FILE:sinkscope>"
      SINKSCOPE_BUILD_DIR="${PROJECT_BINARY_DIR}" $<$<BOOL:${SINKSCOPE_TORCH}>:SINKSCOPE_WITH_TORCH>)
  endif()
  add_test(NAME ${path} COMMAND ${target} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  set_tests_properties(${path} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
  if("gpu" IN_LIST ARG_LABELS)
    if(NOT path MATCHES "cuda|gpu")
      message(FATAL_ERROR "${path} has the label gpu, wanted cuda or gpu in its name too: tools/gpu_check looks for these")
    endif()
    set_tests_properties(${path} PROPERTIES SKIP_REGULAR_EXPRESSION "no GPU to test on: " RESOURCE_LOCK gpu)
  endif()
endfunction()
