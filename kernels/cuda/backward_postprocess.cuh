// SPDX-License-Identifier: Apache-2.0
// What comes after the main kernel: dq from its integer sums, dk and dv from their parts where groups were
// split, and dsinks. All sums in an order that the problem alone decides.
#pragma once

#include "kernels/cuda/backward_config.cuh"
#include "kernels/cuda/backward_ptx.cuh"

namespace sink_attention::cuda {

inline constexpr int kPostprocessThreads = 256;

namespace postprocess {

// dq of one row tile of a query head; each half of the block takes one half of the main kernel's.
template <typename Element, int kD>
__device__ __forceinline__ void store_dq(const BackwardArguments& a, std::int32_t index) {
  constexpr int kRows = backward_rows(kD);
  const int tile = index % a.row_tiles;
  const int batch_head = index / a.row_tiles;
  const int document = document_of_tile(a.cu_q, a.documents, tile, kRows);
  const Document at = find_document(a.items, document);
  const int first = (tile - first_tile(a.cu_q, document, kRows)) * kRows;
  if (first >= at.rows) return;

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int half = static_cast<int>(threadIdx.x) / 128;
  const int row_half = kD == 64 ? half * 64 : 0;
  const int column_half = kD == 64 ? 0 : half * 64;
  const std::int32_t* const sums = a.dq_sums + index * std::int64_t{kRows * kD} + half * 64 * 64;
  const float* const factors =
      a.row_facts + (index * std::int64_t{kRowFacts} + kFromFixed) * kRows + row_half + warp * 16 + lane / 4;
  const float factor[2] = {factors[0] * a.scale, factors[8] * a.scale};
  float x[32];
#pragma unroll
  for (int block = 0; block < 8; ++block) {
    const int4 four = *reinterpret_cast<const int4*>(sums + accumulator_offset<8>(warp, block, lane));
    x[block * 4] = static_cast<float>(four.x) * factor[0];
    x[block * 4 + 1] = static_cast<float>(four.y) * factor[0];
    x[block * 4 + 2] = static_cast<float>(four.z) * factor[1];
    x[block * 4 + 3] = static_cast<float>(four.w) * factor[1];
  }
  const MutableTensor& dq = a.dq;
  store_accumulators<Element, 8>(x, lane, first + row_half + warp * 16, at.rows,
                                 static_cast<Element*>(dq.data) + batch_head / a.hq * dq.stride_b +
                                     batch_head % a.hq * dq.stride_h + at.row * dq.stride_s + column_half,
                                 dq.stride_s);
}

// dk or dv of one key tile of a key/value head.
template <typename Element, int kD>
__device__ __forceinline__ void store_parts(const BackwardArguments& a, std::int32_t index, int which,
                                            const MutableTensor& to, float scale) {
  const int tile = index % a.key_tiles;
  const int batch_head = index / a.key_tiles;
  const int document = document_of_tile(a.cu_k, a.documents, tile, kBackwardKeys);
  const Document at = find_document(a.items, document);
  const int first = (tile - first_tile(a.cu_k, document, kBackwardKeys)) * kBackwardKeys;
  if (to.data == nullptr || first >= at.keys) return;

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int half = static_cast<int>(threadIdx.x) / 128;
  const std::int64_t tiles = static_cast<std::int64_t>(a.b) * a.hkv * a.key_tiles;
  float x[kD / 2] = {};
  for (int part = 0; part < a.parts; ++part) {
    const float* const sums =
        a.part_sums + ((2 * part + which) * tiles + index) * kBackwardKeys * kD + half * 64 * kD;
#pragma unroll
    for (int block = 0; block < kD / 8; ++block) {
      const float4 four =
          *reinterpret_cast<const float4*>(sums + accumulator_offset<kD / 8>(warp, block, lane));
      x[block * 4] += four.x;
      x[block * 4 + 1] += four.y;
      x[block * 4 + 2] += four.z;
      x[block * 4 + 3] += four.w;
    }
  }
#pragma unroll
  for (int i = 0; i < kD / 2; ++i) x[i] *= scale;
  store_accumulators<Element, kD / 8>(x, lane, first + half * 64 + warp * 16, at.keys,
                                      static_cast<Element*>(to.data) + batch_head / a.hkv * to.stride_b +
                                          batch_head % a.hkv * to.stride_h + at.key * to.stride_s,
                                      to.stride_s);
}

// dsinks of one query head.
__device__ inline void store_dsink(const BackwardArguments& a, std::int32_t head) {
  __shared__ double of_thread[kPostprocessThreads];
  double sum = 0;
  for (int batch = 0; batch < a.b; ++batch) {
    const double* const terms = a.sink_sums + static_cast<std::int64_t>(batch * a.hq + head) * a.row_tiles;
    for (int tile = static_cast<int>(threadIdx.x); tile < a.row_tiles; tile += kPostprocessThreads)
      sum += terms[tile];
  }
  of_thread[threadIdx.x] = sum;
  for (int step = kPostprocessThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) of_thread[threadIdx.x] += of_thread[threadIdx.x + step];
  }
  if (threadIdx.x == 0) a.dsinks[head] = static_cast<float>(of_thread[0]);
}

}  // namespace postprocess

// Blocks in this order: dsinks' heads, the parts' key tiles (dk, then dv), dq's row tiles; those not wanted are
// not there.
struct PostprocessBlocks {
  std::int32_t dsinks, parts, dq;
};

template <typename Element, int kD>
__global__ void __launch_bounds__(kPostprocessThreads)
    backward_postprocess_kernel(const __grid_constant__ BackwardArguments a, PostprocessBlocks blocks) {
  auto index = static_cast<std::int32_t>(blockIdx.x);
  wait_for_previous();
  if (index < blocks.dsinks) {
    postprocess::store_dsink(a, index);
    return;
  }
  index -= blocks.dsinks;
  if (index < 2 * blocks.parts) {
    const bool of_dk = index < blocks.parts;
    postprocess::store_parts<Element, kD>(a, of_dk ? index : index - blocks.parts, of_dk ? 0 : 1,
                                          of_dk ? a.dk : a.dv, of_dk ? a.scale : 1.0F);
    return;
  }
  postprocess::store_dq<Element, kD>(a, index - 2 * blocks.parts);
}

}  // namespace sink_attention::cuda
