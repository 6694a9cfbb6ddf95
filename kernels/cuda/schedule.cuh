// SPDX-License-Identifier: Apache-2.0
// Which work there is and in which order: items of one tile of rows (or of keys) of one document of one head,
// the longest first, heads of one key/value group side by side, and no more heads at a time than whose keys
// and values the L2 holds. No result depends on the order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector_types.h>

#include "kernels/sink_attention.h"

namespace sink_attention::cuda {

// One document inside its batch entry, and who sees whom in it: row i sees keys [first_key(i), end_key(i)),
// key j is seen by rows [first_row(j), end_row(j)). Rows and keys count from the document's first.
struct Document {
  std::int32_t row, rows;  // first row, number of rows
  std::int32_t key, keys;
  bool causal;
  std::int32_t window;  // 0: none

  __host__ __device__ static std::int32_t clamped(std::int64_t x, std::int32_t high) {
    return x < 0 ? 0 : x > high ? high : static_cast<std::int32_t>(x);
  }
  // Key j is row i's own when j = i + diagonal.
  __host__ __device__ std::int32_t diagonal() const { return keys - rows; }
  __host__ __device__ std::int32_t end_key(std::int32_t i) const {
    return causal ? clamped(std::int64_t{i} + diagonal() + 1, keys) : keys;
  }
  __host__ __device__ std::int32_t first_key(std::int32_t i) const {
    return window > 0 ? clamped(std::int64_t{i} + diagonal() + 1 - window, keys) : 0;
  }
  __host__ __device__ std::int32_t first_row(std::int32_t j) const {
    return causal ? clamped(std::int64_t{j} - diagonal(), rows) : 0;
  }
  __host__ __device__ std::int32_t end_row(std::int32_t j) const {
    return window > 0 ? clamped(std::int64_t{j} - diagonal() + window, rows) : rows;
  }
};

// What an item's tiles are cut from.
enum class TileOf : std::int32_t { kRows, kKeys };

// The place of one item. `document` < 0: there is no such item, nor any later one.
struct WorkItem {
  std::int32_t batch, head;     // head: a query head for kRows; what the caller's `heads` count for kKeys
  std::int32_t document, tile;  // tile: counted inside the document
};

// A kernel parameter. With packed documents `list` is in device memory, [tiles] (document, tile) entries
// written by build_schedule(); without, tiles are counted off.
struct Schedule {
  std::int32_t tiles;            // of one head: exact, or with documents an upper bound
  std::int32_t heads;            // of one batch entry
  std::int32_t batch_heads;      // b * heads
  std::int32_t heads_at_a_time;  // batch_heads of one chunk
  std::int32_t items;            // batch_heads * tiles
  bool descending;               // the last tile is the longest one
  const int2* list;              // null without documents
  std::int32_t row_total, key_total;
  const std::int32_t* cu_seqlens_q;
  const std::int32_t* cu_seqlens_k;
  bool causal;
  std::int32_t window;
};

// Bytes of `list` for tiles of `tile_size` rows or keys; 0 without documents.
std::size_t schedule_bytes(const Problem& problem, TileOf of, std::int32_t tile_size);

// A schedule of heads [b, heads], `heads` a multiple of hkv. `list` has schedule_bytes().
Schedule make_schedule(const Problem& problem, TileOf of, std::int32_t tile_size, std::int32_t heads,
                       void* list);

// Launches the kernel that sorts the documents' tiles by length; does nothing without documents.
Status build_schedule(const Schedule& schedule, const Problem& problem, TileOf of, std::int32_t tile_size,
                      void* stream);

#ifdef __CUDACC__

__device__ __forceinline__ WorkItem find_item(const Schedule& s, std::int32_t index) {
  const std::int32_t chunk_items = s.heads_at_a_time * s.tiles;
  const std::int32_t chunk = index / chunk_items;
  const std::int32_t first_head = chunk * s.heads_at_a_time;
  const std::int32_t heads = min(s.heads_at_a_time, s.batch_heads - first_head);
  const std::int32_t within = index - chunk * chunk_items;
  const std::int32_t rank = within / heads;
  const std::int32_t batch_head = first_head + (within - rank * heads);
  WorkItem item;
  item.batch = batch_head / s.heads;
  item.head = batch_head - item.batch * s.heads;
  if (s.list != nullptr) {
    const int2 entry = __ldg(s.list + rank);
    item.document = entry.x;
    item.tile = entry.y;
  } else {
    item.document = 0;
    item.tile = s.descending ? s.tiles - 1 - rank : rank;
  }
  return item;
}

__device__ __forceinline__ Document find_document(const Schedule& s, std::int32_t index) {
  if (s.cu_seqlens_q == nullptr) return {0, s.row_total, 0, s.key_total, s.causal, s.window};
  const std::int32_t row = __ldg(s.cu_seqlens_q + index), key = __ldg(s.cu_seqlens_k + index);
  return {row,      __ldg(s.cu_seqlens_q + index + 1) - row,
          key,      __ldg(s.cu_seqlens_k + index + 1) - key,
          s.causal, s.window};
}

// The index of this block's `round`-th item when `blocks` share them out: rounds run to and fro, so that no
// block gets the longest item of every round. May be past the last item; then later ones are too, or the next
// round has one: stop at round >= rounds.
__device__ __forceinline__ std::int32_t item_of_round(std::int32_t round, std::int32_t block,
                                                      std::int32_t blocks) {
  return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
}

#endif

}  // namespace sink_attention::cuda
