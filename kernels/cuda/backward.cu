// SPDX-License-Identifier: Apache-2.0
// The backward's entry point: shares the problem out, lays out the workspace, and picks the kernels.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/cuda/backward_launch.cuh"
#include "kernels/cuda/check.hpp"
#include "kernels/cuda/tensor_map.hpp"

namespace sink_attention::cuda {
namespace {

constexpr std::int64_t kEnoughItems = 256;   // two for each multiprocessor, as the longest is twice the mean
constexpr std::int64_t kItemsAtATime = 128;  // of one chunk of heads: their rows and dq sums share the L2
constexpr std::size_t kAlignment = 1024;

// Offsets into the workspace, in bytes.
struct BackwardLayout {
  std::int64_t row_tiles, key_tiles, parts;
  std::size_t dq_sums, row_facts, key_maxima, sink_sums, part_sums, items, total;

  explicit BackwardLayout(const Problem& p) {
    const bool packed = p.cu_seqlens_q != nullptr;
    const auto tiles = [&](std::int64_t total_length, std::int64_t size) {
      return packed ? total_length / size + p.documents : (total_length + size - 1) / size;
    };
    const std::int64_t rows = backward_rows(static_cast<int>(p.d));
    row_tiles = tiles(p.sq, rows);
    key_tiles = tiles(p.sk, kBackwardKeys);
    parts = parts_of(p);
    std::size_t end = 0;
    const auto take = [&](std::int64_t words) {
      const std::size_t at = end;
      end += (static_cast<std::size_t>(words) * 4 + kAlignment - 1) / kAlignment * kAlignment;
      return at;
    };
    dq_sums = take(p.b * p.hq * row_tiles * rows * p.d);
    row_facts = take(p.b * p.hq * row_tiles * rows * kRowFacts);
    key_maxima = take(p.b * p.hkv * key_tiles * kKeyMaxima);
    sink_sums = take(p.b * p.hq * row_tiles * 2);
    part_sums = take(parts == 1 ? 0 : parts * 2 * p.b * p.hkv * key_tiles * kBackwardKeys * p.d);
    items = take(static_cast<std::int64_t>(schedule_bytes(p, TileOf::kKeys, kBackwardKeys) / 4));
    total = end + kAlignment;
  }

  // Parts of a group of query heads, so that there are items enough to fill a GPU.
  std::int64_t parts_of(const Problem& p) const {
    const std::int64_t group = p.hq / p.hkv;
    const std::int64_t whole = p.b * p.hkv * key_tiles;
    std::int64_t count = 1;
    while (count < group && whole * count < kEnoughItems) count *= 2;
    return count < group ? count : group;
  }
};

BackwardArguments arguments_of(const BackwardParams& w, const BackwardLayout& layout) {
  const Problem& p = w.problem;
  const auto start =
      (reinterpret_cast<std::uintptr_t>(w.workspace) + kAlignment - 1) / kAlignment * kAlignment;
  auto* const base = reinterpret_cast<std::byte*>(start);
  BackwardArguments a{};
  a.b = static_cast<std::int32_t>(p.b);
  a.hq = static_cast<std::int32_t>(p.hq);
  a.hkv = static_cast<std::int32_t>(p.hkv);
  a.group = a.hq / a.hkv;
  a.sq = static_cast<std::int32_t>(p.sq);
  a.sk = static_cast<std::int32_t>(p.sk);
  a.scale = p.scale;
  // Not 0, so that a masked logit of infinite size stays one.
  const float size = std::max(static_cast<float>(std::fabs(p.scale) * 1.4426950408889634),
                              std::numeric_limits<float>::min());
  a.scale_log2 = p.scale < 0 ? -size : size;
  a.documents = p.documents;
  a.cu_q = p.cu_seqlens_q;
  a.cu_k = p.cu_seqlens_k;
  a.sink_dtype = p.sink_dtype;
  a.parts = static_cast<std::int32_t>(layout.parts);
  a.items = make_schedule(p, TileOf::kKeys, kBackwardKeys, a.hkv * a.parts, base + layout.items);
  if (layout.key_tiles > 0) {
    const std::int64_t heads = (kItemsAtATime + layout.key_tiles - 1) / layout.key_tiles * layout.parts;
    a.items.heads_at_a_time = static_cast<std::int32_t>(std::min<std::int64_t>(heads, a.items.batch_heads));
  }
  a.row_tiles = static_cast<std::int32_t>(layout.row_tiles);
  a.key_tiles = static_cast<std::int32_t>(layout.key_tiles);
  a.q = without_idle_strides(w.q, p.b, p.hq, p.sq);
  a.k = without_idle_strides(w.k, p.b, p.hkv, p.sk);
  a.v = without_idle_strides(w.v, p.b, p.hkv, p.sk);
  a.out = without_idle_strides(w.out, p.b, p.hq, p.sq);
  a.dout = without_idle_strides(w.dout, p.b, p.hq, p.sq);
  a.sinks = w.sinks;
  a.lse = w.lse;
  a.residual = w.residual;
  a.dlse = w.dlse;
  a.dq = without_idle_strides(w.dq, p.b, p.hq, p.sq);
  a.dk = without_idle_strides(w.dk, p.b, p.hkv, p.sk);
  a.dv = without_idle_strides(w.dv, p.b, p.hkv, p.sk);
  a.dsinks = w.dsinks;
  a.dq_sums = reinterpret_cast<std::int32_t*>(base + layout.dq_sums);
  a.row_facts = reinterpret_cast<float*>(base + layout.row_facts);
  a.key_maxima = reinterpret_cast<std::uint32_t*>(base + layout.key_maxima);
  a.sink_sums = reinterpret_cast<double*>(base + layout.sink_sums);
  a.part_sums = layout.parts > 1 ? reinterpret_cast<float*>(base + layout.part_sums) : nullptr;
  return a;
}

Status make_maps(const BackwardParams& w, BackwardMaps& maps) {
  const Problem& p = w.problem;
  const TensorSizes of_rows{p.b, p.hq, p.sq, p.d}, of_keys{p.b, p.hkv, p.sk, p.d};
  const int rows = backward_rows(static_cast<int>(p.d));
  Status status = make_tensor_map(maps.q, w.q, of_rows, p.dtype, {rows}, "q");
  if (status.ok()) status = make_tensor_map(maps.k, w.k, of_keys, p.dtype, {kBackwardKeys}, "k");
  if (status.ok()) status = make_tensor_map(maps.v, w.v, of_keys, p.dtype, {kBackwardKeys}, "v");
  if (status.ok()) status = make_tensor_map(maps.dout, w.dout, of_rows, p.dtype, {rows}, "dout");
  return status;
}

}  // namespace

std::size_t backward_workspace_bytes(const Problem& p) {
  return BackwardLayout(p).total;
}

Status backward(const BackwardParams& w, void* stream) {
  if (const Status status = check_backward(w); !status.ok()) return status;
  const Problem& p = w.problem;
  BackwardMaps maps;
  if (const Status status = make_maps(w, maps); !status.ok()) return status;
  const BackwardArguments a = arguments_of(w, BackwardLayout(p));
  const Status sorted = build_schedule(a.items, p, TileOf::kKeys, kBackwardKeys, stream);
  if (!sorted.ok()) return sorted;

  auto* const on = static_cast<cudaStream_t>(stream);
  if (p.dtype == DType::kBf16) {
    return p.d == 64 ? launch_backward<__nv_bfloat16, 64>(a, maps, on)
                     : launch_backward<__nv_bfloat16, 128>(a, maps, on);
  }
  return p.d == 64 ? launch_backward<__half, 64>(a, maps, on) : launch_backward<__half, 128>(a, maps, on);
}

}  // namespace sink_attention::cuda
