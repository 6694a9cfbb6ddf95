# SPDX-License-Identifier: Apache-2.0
# Sets SINKSCOPE_NVCC to an nvcc that can build the CUDA backend, or leaves it unset and says why. A toolkit alone does
# not do: each one refuses host compilers that are newer than it knows, so a small kernel is compiled first.
unset(SINKSCOPE_NVCC)
find_package(CUDAToolkit 12.3 QUIET)
if(NOT CUDAToolkit_NVCC_EXECUTABLE OR NOT TARGET CUDA::cudart_static)
  message(STATUS "CUDA backend: left out, no nvcc of CUDA 12.3 or later was found")
  return()
endif()
if(NOT "${SINKSCOPE_NVCC_THAT_WORKS}" STREQUAL "${CUDAToolkit_NVCC_EXECUTABLE} ${CUDAToolkit_VERSION}")
  set(_probe ${CMAKE_CURRENT_BINARY_DIR}/nvcc_probe)
  file(WRITE ${_probe}.cu "#include <algorithm>\n#include <cuda_bf16.h>\n__global__ void probe(__nv_bfloat16* x) { *x = __float2bfloat16(1); }\n")
  execute_process(
    COMMAND ${CUDAToolkit_NVCC_EXECUTABLE} ${SINKSCOPE_NVCC_FLAGS} -c ${_probe}.cu -o ${_probe}.o
    RESULT_VARIABLE _result OUTPUT_VARIABLE _output ERROR_VARIABLE _output)
  if(NOT _result EQUAL 0)
    string(REGEX MATCH "[^\n]*error[^\n]*" _reason "${_output}")
    message(STATUS "CUDA backend: left out, ${CUDAToolkit_NVCC_EXECUTABLE} cannot compile here: ${_reason}")
    return()
  endif()
  set(SINKSCOPE_NVCC_THAT_WORKS "${CUDAToolkit_NVCC_EXECUTABLE} ${CUDAToolkit_VERSION}" CACHE INTERNAL "")
endif()
set(SINKSCOPE_NVCC ${CUDAToolkit_NVCC_EXECUTABLE})
message(STATUS "CUDA backend: built with nvcc ${CUDAToolkit_VERSION}")
