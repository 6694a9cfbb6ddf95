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

template <int kDim>
using Config = ForwardConfig<__nv_bfloat16, kDim>;  // tile sizes are the same for fp16

int tile_rows(const Problem& p) {
  return p.d == 64 ? Config<64>::kTileRows : Config<128>::kTileRows;
}
int tile_keys(const Problem& p) {
  return p.d == 64 ? Config<64>::kTileKeys : Config<128>::kTileKeys;
}

ForwardLaunch find_launch(const Problem& p) {
  if (p.dtype == DType::kBf16) return p.d == 64 ? launch_forward_bf16_d64 : launch_forward_bf16_d128;
  return p.d == 64 ? launch_forward_fp16_d64 : launch_forward_fp16_d128;
}

Status make_maps(ForwardArguments& a, const ForwardParams& f) {
  const Problem& p = f.problem;
  Status status = make_tensor_map(a.q, f.q, {p.b, p.hq, p.sq, p.d}, p.dtype, tile_rows(p), "q");
  if (status.ok()) status = make_tensor_map(a.k, f.k, {p.b, p.hkv, p.sk, p.d}, p.dtype, tile_keys(p), "k");
  if (status.ok()) status = make_tensor_map(a.v, f.v, {p.b, p.hkv, p.sk, p.d}, p.dtype, tile_keys(p), "v");
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
  return schedule_bytes(p, TileOf::kRows, tile_rows(p));
}

Status forward(const ForwardParams& f, void* stream) {
  Status status = check_forward(f);
  const Problem& p = f.problem;
  if (!status.ok() || p.sq == 0) return status;

  ForwardArguments a;
  status = make_maps(a, f);
  if (!status.ok()) return status;
  a.schedule = make_schedule(p, TileOf::kRows, tile_rows(p), static_cast<std::int32_t>(p.hq), f.workspace);
  a.group = static_cast<std::int32_t>(p.hq / p.hkv);
  a.scale_log2 = std::max(static_cast<float>(std::fabs(p.scale) * 1.4426950408889634),
                          std::numeric_limits<float>::min());
  a.negate = p.scale < 0;
  a.sinks = f.sinks;
  a.sink_dtype = p.sink_dtype;
  a.out = without_idle_strides(f.out, p.b, p.hq, p.sq);
  a.lse = f.lse;
  a.residual = f.residual;

  status = build_schedule(a.schedule, p, TileOf::kRows, tile_rows(p), stream);
  return status.ok() ? find_launch(p)(a, std::min(processors(), a.schedule.items), stream) : status;
}

}  // namespace sink_attention::cuda
