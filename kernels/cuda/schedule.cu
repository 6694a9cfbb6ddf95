// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include "kernels/cuda/check.hpp"
#include "kernels/cuda/schedule.cuh"

namespace sink_attention::cuda {
namespace {

constexpr std::int64_t kKeptBytes = std::int64_t{24} << 20;  // of keys and values that the L2 shall hold
constexpr int kClasses = 1024;                               // of length; longer items share the last one
constexpr int kThreads = 1024;
constexpr std::int32_t kClassStep = 128;  // rows or keys of one class

std::int64_t up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

std::int64_t most_tiles(const Problem& p, TileOf of, std::int32_t tile_size) {
  const std::int64_t total = of == TileOf::kRows ? p.sq : p.sk;
  return p.cu_seqlens_q == nullptr ? up(total, tile_size) : total / tile_size + p.documents;
}

// How many classes of keys a row tile sees, or of rows a key tile is seen by.
__device__ int length_class(const Document& d, TileOf of, std::int32_t tile, std::int32_t tile_size) {
  const std::int32_t first = tile * tile_size;
  const std::int32_t last = min(first + tile_size, of == TileOf::kRows ? d.rows : d.keys) - 1;
  const std::int32_t length =
      of == TileOf::kRows ? d.end_key(last) - d.first_key(first) : d.end_row(last) - d.first_row(first);
  return min((max(length, 0) + kClassStep - 1) / kClassStep, kClasses - 1);
}

// A counting sort by one block: each warp takes documents, each lane tiles of it.
__global__ void __launch_bounds__(kThreads)
    sort_tiles(Schedule s, std::int32_t documents, TileOf of, std::int32_t tile_size, int2* list) {
  __shared__ std::int32_t place[kClasses];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto for_each_tile = [&](auto&& body) {
    for (std::int32_t i = warp; i < documents; i += kThreads / 32) {
      const Document d = find_document(s, i);
      const std::int32_t size = of == TileOf::kRows ? d.rows : d.keys;
      for (std::int32_t tile = lane; tile < (size + tile_size - 1) / tile_size; tile += 32)
        body(i, tile, length_class(d, of, tile, tile_size));
    }
  };

  // Count each class.
  place[threadIdx.x] = 0;
  __syncthreads();
  for_each_tile([&](std::int32_t, std::int32_t, int c) { atomicAdd(&place[c], 1); });
  __syncthreads();

  // Where each class starts when the longest come first: a suffix sum, Hillis and Steele's.
  const std::int32_t count = place[threadIdx.x];
  for (int step = 1; step < kClasses; step *= 2) {
    const std::int32_t other = threadIdx.x + step < kClasses ? place[threadIdx.x + step] : 0;
    __syncthreads();
    place[threadIdx.x] += other;
    __syncthreads();
  }
  const std::int32_t total = place[0];
  const std::int32_t start = place[threadIdx.x] - count;
  __syncthreads();
  place[threadIdx.x] = start;
  __syncthreads();

  // Write the tiles, then entries that say there are no more.
  for_each_tile([&](std::int32_t document, std::int32_t tile, int c) {
    const std::int32_t at = atomicAdd(&place[c], 1);
    if (at < s.tiles) list[at] = {document, tile};  // only offsets past the host's totals could exceed it
  });
  for (std::int32_t i = total + static_cast<std::int32_t>(threadIdx.x); i < s.tiles; i += kThreads)
    list[i] = {-1, 0};
}

}  // namespace

std::size_t schedule_bytes(const Problem& p, TileOf of, std::int32_t tile_size) {
  if (p.cu_seqlens_q == nullptr) return 0;
  const std::size_t bytes = static_cast<std::size_t>(most_tiles(p, of, tile_size)) * sizeof(int2);
  return (bytes + 15) / 16 * 16;
}

Schedule make_schedule(const Problem& p, TileOf of, std::int32_t tile_size, std::int32_t heads, void* list) {
  const std::int64_t group = heads / p.hkv;
  const std::int64_t key_bytes = p.sk * p.d * 2 * 2;
  std::int64_t kv_heads = key_bytes > 0 ? kKeptBytes / key_bytes : p.b * p.hkv;
  kv_heads = kv_heads < 1 ? 1 : kv_heads > p.b * p.hkv ? p.b * p.hkv : kv_heads;
  Schedule s;
  s.tiles = static_cast<std::int32_t>(most_tiles(p, of, tile_size));
  s.heads = heads;
  s.batch_heads = static_cast<std::int32_t>(p.b * heads);
  s.heads_at_a_time = static_cast<std::int32_t>(kv_heads * group);
  s.items = s.batch_heads * s.tiles;
  s.descending = of == TileOf::kRows;
  s.list = p.cu_seqlens_q == nullptr ? nullptr : static_cast<const int2*>(list);
  s.row_total = static_cast<std::int32_t>(p.sq);
  s.key_total = static_cast<std::int32_t>(p.sk);
  s.cu_seqlens_q = p.cu_seqlens_q;
  s.cu_seqlens_k = p.cu_seqlens_k;
  s.causal = p.causal;
  // A window that reaches past every key is none.
  s.window = p.window >= p.sq + p.sk ? 0 : static_cast<std::int32_t>(p.window);
  return s;
}

Status build_schedule(const Schedule& s, const Problem& p, TileOf of, std::int32_t tile_size, void* stream) {
  if (s.list == nullptr || s.tiles == 0) return {};
  sort_tiles<<<1, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(s, p.documents, of, tile_size,
                                                                    const_cast<int2*>(s.list));
  return check_launch("the schedule");
}

}  // namespace sink_attention::cuda
