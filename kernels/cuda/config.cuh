// SPDX-License-Identifier: Apache-2.0
// The forward's tile sizes, its kernel parameters and its shared memory.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/schedule.cuh"

namespace sink_attention::cuda {

inline constexpr int kWarpgroup = 128;     // threads
inline constexpr int kWarpgroupRows = 64;  // query rows of one consumer warpgroup
inline constexpr int kSwizzleWidth = 64;   // elements of one 128-byte row of a shared-memory tile

// What the rows of a tile are: consecutive positions of one query head, or, for narrow windows, fewer positions of
// all query heads of a group, which see nearly the same keys.
enum class TileRows : int { kOfHead, kOfGroup };

// One producer warpgroup, of which one thread feeds the copy engine, and consumer warpgroups of 64 rows each.
// With a residual to write, rows are divided by the sum of the rounded probabilities that multiplied V, which the product
// with columns of ones gives: numerator and denominator agree, and Delta is as good as from an exact out. Else by the sum
// of the unrounded ones, which costs no product.
template <typename Element_, int kDim, TileRows kRows_, bool kResidual_>
struct ForwardConfig {
  using Element = Element_;
  static constexpr bool kResidual = kResidual_;
  static constexpr int kHeadDim = kDim;
  static constexpr TileRows kRows = kRows_;
  static constexpr int kConsumers = kDim == 64 ? 3 : 2;
  static constexpr int kTileRows = kConsumers * kWarpgroupRows;
  // Two tiles of 80 hold a window of 128 of up to 33 positions.
  static constexpr int kTileKeys = kRows == TileRows::kOfHead ? 128 : 80;
  // Of the rings of key and of value tiles.
  static constexpr int kStages = (kDim == 64 ? 4 : 2) + (kRows == TileRows::kOfHead ? 0 : 1);
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroup;
  static constexpr int kProducerRegisters = kDim == 64 ? 32 : 24;
  static constexpr int kConsumerRegisters = kDim == 64 ? 160 : 240;
  static constexpr int kConsumerWarps = kConsumers * 4;
};

// Host and device: a row-major head of a tensor is `data + b stride_b + h stride_h + s stride_s`, in elements.
struct ForwardArguments {
  CUtensorMap q, k, v;
  Schedule schedule;
  std::int32_t group;      // query heads of one key/value head
  std::int32_t positions;  // of a tile: kTileRows, or for rows of a group what it has room for
  float scale_log2;        // |scale| log2 e, at least the least normal number
  bool negate;             // scale < 0: Q is negated in shared memory
  const void* sinks;       // [hq] or null
  DType sink_dtype;
  MutableTensor out;
  float* lse;             // [b, hq, sq] or null
  std::int8_t* residual;  // [b, hq, sq, d] or null
};

// What the consumers must know of the tile they are given.
struct ForwardItem {
  Document document;
  std::int32_t batch;
  std::int32_t head;                  // the query head, or the first of the group
  std::int32_t row;                   // first row of the tile, counted inside the document; < 0: no more work
  std::int32_t key;                   // where key tile 0 starts, counted inside the document
  std::int32_t first_tile, end_tile;  // key tiles that some row of it sees, walked from the last to the first
};

template <typename Config>
struct ForwardPlan {
  using Element = typename Config::Element;
  static constexpr int kKeyElements = Config::kTileKeys * Config::kHeadDim;

  // Tiles of [d / 64][rows][64] elements, 128-byte swizzled. A consumer's rows of q become its rows of out
  // once the last product with them is done.
  alignas(1024) Element q[2][Config::kTileRows * Config::kHeadDim];
  alignas(1024) Element k[Config::kStages][kKeyElements];
  alignas(1024) Element v[Config::kStages][kKeyElements];
  // 16 keys of ones behind the last column of V, where rounded probabilities are summed. Behind v, since descriptors only
  // count forwards.
  alignas(1024) Element ones[16 * kSwizzleWidth];
  alignas(16) std::int8_t residual[Config::kConsumers][kWarpgroupRows * Config::kHeadDim];
  ForwardItem item[2];  // beside q
  Barrier q_full[2], q_empty[2];
  Barrier k_full[Config::kStages], k_empty[Config::kStages];
  Barrier v_full[Config::kStages], v_empty[Config::kStages];
};

// A position in a ring of slots and the parity of its current use.
template <int kSlots>
struct RingPosition {
  std::int32_t slot = 0;
  std::uint32_t parity = 0;
  __device__ __forceinline__ void step() {
    if (++slot == kSlots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

}  // namespace sink_attention::cuda
