# SPDX-License-Identifier: Apache-2.0
# The CUDA backend. nvcc is called by name and not as a language of the project, so that whatever links the
# library is still linked as C++. CMAKE_CUDA_COMPILER_LAUNCHER is respected.
set(SINKSCOPE_CUDA_UNITS
  schedule forward forward_bf16_d64 forward_bf16_d128 forward_fp16_d64 forward_fp16_d128
  forward_group_bf16_d64 forward_group_bf16_d128 forward_group_fp16_d64 forward_group_fp16_d128
  backward backward_bf16_d64 backward_bf16_d128 backward_fp16_d64 backward_fp16_d128)
foreach(unit ${SINKSCOPE_CUDA_UNITS})
  set(source ${CMAKE_CURRENT_SOURCE_DIR}/cuda/${unit}.cu)
  set(object ${CMAKE_CURRENT_BINARY_DIR}/${unit}.cu.o)
  add_custom_command(OUTPUT ${object} DEPENDS ${source} DEPFILE ${object}.d
    COMMAND ${CMAKE_CUDA_COMPILER_LAUNCHER} ${SINKSCOPE_NVCC} ${SINKSCOPE_NVCC_FLAGS}
      -Xptxas --warn-on-spills -I${PROJECT_SOURCE_DIR} -MD -MF ${object}.d -c ${source} -o ${object}
    COMMENT "Compiling ${unit}.cu" VERBATIM)
  list(APPEND SINKSCOPE_CUDA_OBJECTS ${object})
endforeach()
set_source_files_properties(${SINKSCOPE_CUDA_OBJECTS} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
sinkscope_add_library(kernels_cuda
  SOURCES cuda/check.cpp cuda/tensor_map.cpp ${SINKSCOPE_CUDA_OBJECTS}
  LINKS sinkscope::kernels CUDA::cudart_static)
