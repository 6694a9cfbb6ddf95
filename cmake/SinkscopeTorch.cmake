# SPDX-License-Identifier: Apache-2.0
# Finds libtorch and makes the imported target sinkscope::libtorch of its CPU part. torch's own package file wants the
# CUDA language and toolkit; a PyPI wheel without them is enough here.
#
# Searched, the first that has it: SINKSCOPE_TORCH_ROOT (the folder with include/ and lib/), the environment's
# SINKSCOPE_TORCH, CMAKE_PREFIX_PATH, a virtual environment .venv in the source folder, the system.
file(GLOB _venv_torch ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
set(_places ${SINKSCOPE_TORCH_ROOT} $ENV{SINKSCOPE_TORCH} ${CMAKE_PREFIX_PATH})
string(REPLACE ":" ";" _prefixes "$ENV{CMAKE_PREFIX_PATH}")
list(APPEND _places ${_prefixes} ${_venv_torch})
if(NOT "${_places}" STREQUAL "${SINKSCOPE_TORCH_PLACES}")
  unset(SINKSCOPE_TORCH_INCLUDE CACHE)
  unset(SINKSCOPE_TORCH_CPU CACHE)
  unset(SINKSCOPE_TORCH_C10 CACHE)
  set(SINKSCOPE_TORCH_PLACES "${_places}" CACHE INTERNAL "Where libtorch was looked for")
endif()
foreach(_rest "NO_DEFAULT_PATH" "")
  find_path(SINKSCOPE_TORCH_INCLUDE ATen/ATen.h PATHS ${_places} PATH_SUFFIXES include torch/include ${_rest})
  find_library(SINKSCOPE_TORCH_CPU torch_cpu PATHS ${_places} PATH_SUFFIXES lib torch/lib ${_rest})
  find_library(SINKSCOPE_TORCH_C10 c10 PATHS ${_places} PATH_SUFFIXES lib torch/lib ${_rest})
endforeach()
if(NOT SINKSCOPE_TORCH_INCLUDE OR NOT SINKSCOPE_TORCH_CPU OR NOT SINKSCOPE_TORCH_C10)
  message(FATAL_ERROR "libtorch was not found. tools/quickstart installs it; or set SINKSCOPE_TORCH to the folder of a "
                      "torch 2.11 installation (the one with include/ and lib/), or build without it: -DSINKSCOPE_TORCH=OFF")
endif()
message(STATUS "libtorch: ${SINKSCOPE_TORCH_CPU}")

add_library(sinkscope_libtorch INTERFACE)
add_library(sinkscope::libtorch ALIAS sinkscope_libtorch)
target_include_directories(sinkscope_libtorch SYSTEM INTERFACE ${SINKSCOPE_TORCH_INCLUDE})
target_link_libraries(sinkscope_libtorch INTERFACE ${SINKSCOPE_TORCH_CPU} ${SINKSCOPE_TORCH_C10})

# The wheel's torch_cpu needs the CUDA runtime's and CUPTI's libraries, which lie in wheels of their own beside it.
get_filename_component(_torch_lib ${SINKSCOPE_TORCH_CPU} DIRECTORY)
file(GLOB SINKSCOPE_TORCH_RPATH ${_torch_lib}/../../nvidia/*/lib ${_torch_lib}/../../nvidia/*/extras/CUPTI/lib64)
list(PREPEND SINKSCOPE_TORCH_RPATH ${_torch_lib})
