// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cuda_runtime.h>
#include <limits>

#include "kernels/cuda/check.hpp"
#include "kernels/cuda/config.cuh"
#include "kernels/cuda/forward.hpp"
#include "kernels/cuda/tensor_map.hpp"

namespace sink_attention::cuda {
namespace {

// How a problem is cut, and the kernel for it. Tile sizes are the same for both types, with and without
// a residual.
struct Cut {
  std::int32_t positions;  // of a tile of rows
  std::int32_t group;      // query heads of a tile
  int tile_keys;
  ForwardLaunch launch;
};

template <int kDim, TileRows kRows>
Cut cut_as(std::int32_t group, ForwardLaunch launch) {
  using Config = ForwardConfig<__half, kDim, kRows, false>;
  return {Config::kTileRows / group, group, Config::kTileKeys, launch};
}

// Rows of a group where the window is narrow and the tile holds enough positions of the group's heads.
Cut find_cut(const Problem& p) {
  constexpr std::int64_t kWidestWindow = 256;
  constexpr std::int64_t kFewestPositions = 8;
  const std::int64_t group = p.hq / p.hkv;
  const bool bf16 = p.dtype == DType::kBf16, d64 = p.d == 64;
  const std::int64_t tile_rows = d64 ? ForwardConfig<__half, 64, TileRows::kOfGroup, false>::kTileRows
                                     : ForwardConfig<__half, 128, TileRows::kOfGroup, false>::kTileRows;
  if (p.window > 0 && p.window <= kWidestWindow && group > 1 && group * kFewestPositions <= tile_rows) {
    const auto heads = static_cast<std::int32_t>(group);
    return d64 ? cut_as<64, TileRows::kOfGroup>(
                     heads, bf16 ? launch_forward_group_bf16_d64 : launch_forward_group_fp16_d64)
               : cut_as<128, TileRows::kOfGroup>(
                     heads, bf16 ? launch_forward_group_bf16_d128 : launch_forward_group_fp16_d128);
  }
  return d64 ? cut_as<64, TileRows::kOfHead>(1, bf16 ? launch_forward_bf16_d64 : launch_forward_fp16_d64)
             : cut_as<128, TileRows::kOfHead>(1, bf16 ? launch_forward_bf16_d128 : launch_forward_fp16_d128);
}

Status make_maps(ForwardArguments& a, const ForwardParams& f, const Cut& cut) {
  const Problem& p = f.problem;
  Status status = make_tensor_map(a.q, f.q, {p.b, p.hq, p.sq, p.d}, p.dtype, {cut.positions, cut.group}, "q");
  if (status.ok()) status = make_tensor_map(a.k, f.k, {p.b, p.hkv, p.sk, p.d}, p.dtype, {cut.tile_keys}, "k");
  if (status.ok()) status = make_tensor_map(a.v, f.v, {p.b, p.hkv, p.sk, p.d}, p.dtype, {cut.tile_keys}, "v");
  return status;
}

int processors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

}  // namespace

std::size_t forward_workspace_bytes(const Problem& p) {
  return schedule_bytes(p, TileOf::kRows, find_cut(p).positions);
}

Status forward(const ForwardParams& f, void* stream) {
  Status status = check_forward(f);
  const Problem& p = f.problem;
  if (!status.ok() || p.sq == 0) return status;

  const Cut cut = find_cut(p);
  ForwardArguments a;
  status = make_maps(a, f, cut);
  if (!status.ok()) return status;
  a.schedule = make_schedule(p, TileOf::kRows, cut.positions, static_cast<std::int32_t>(p.hq / cut.group),
                             f.workspace);
  a.positions = cut.positions;
  a.group = static_cast<std::int32_t>(p.hq / p.hkv);
  a.scale_log2 = std::max(static_cast<float>(std::fabs(p.scale) * 1.4426950408889634),
                          std::numeric_limits<float>::min());
  a.negate = p.scale < 0;
  a.sinks = f.sinks;
  a.sink_dtype = p.sink_dtype;
  a.out = without_idle_strides(f.out, p.b, p.hq, p.sq);
  a.lse = f.lse;
  a.residual = f.residual;

  status = build_schedule(a.schedule, p, TileOf::kRows, cut.positions, stream);
  return status.ok() ? cut.launch(a, std::min(processors(), a.schedule.items), stream) : status;
}

}  // namespace sink_attention::cuda
