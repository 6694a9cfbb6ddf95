// SPDX-License-Identifier: Apache-2.0
// The main kernel of the backward. A block keeps one tile of keys and runs over the rows that see it, for all
// query heads of the group one after another: dk and dv stay in registers and need no sum over heads, dq is
// added to integer sums in the workspace, whose order does not matter.
//
// One producer warp feeds rows; two warpgroups own 64 keys each and work on transposed tiles:
//   S^T = K Q^T, dP^T = V dO^T      [64 keys, rows], so that P^T and dS^T are the left operands, in registers, of
//   dV += P^T dO, dK += dS^T Q      [64 keys, d].
//   dQ = dS K needs all 128 keys: dS^T goes through shared memory, and each warpgroup takes half of dQ, one
//   iteration later, so that neither waits for the other.
#pragma once

#include "kernels/cuda/backward_config.cuh"
#include "kernels/cuda/backward_ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace sink_attention::cuda {

inline constexpr int kConsumerWarps = 8;
inline constexpr int kBackwardThreads = 128 + kConsumerWarps * 32;
inline constexpr int kBackwardStages = 2;
inline constexpr int kLoadedFacts = 3;  // of kRowFacts: kLse2, kShift and kToFixed

// One block's work, in the terms of its document. It lies in shared memory, as registers are scarce.
struct BackwardItem {
  Document at;
  std::int32_t batch, kv_head;
  std::int32_t first_head, heads;  // query heads
  std::int32_t part;
  std::int32_t key;                 // first of the tile
  std::int32_t first_tile, tiles;   // row tiles of each head
  std::int32_t row_tile, key_tile;  // numbers: of the document's first row tile, of the key tile
  std::int32_t iterations;          // heads * tiles; below 0 there is no such item
  Range clear;                      // row tiles of which every row sees every key
  std::int32_t foreign_tile;        // the row tile that holds another document's rows, or -1
  bool foreign_keys;                // the key tile holds another document's keys
};

template <typename Element, int kD>
struct BackwardPlan {
  static constexpr int kRows = backward_rows(kD);
  static constexpr int kSums = kRows * kD;  // of dq

  // Tiles as wgmma wants them: panels [rows, 64] of 128-byte rows.
  alignas(1024) Element k[kBackwardKeys * kD];
  alignas(1024) Element v[kBackwardKeys * kD];
  alignas(1024) Element q[kBackwardStages][kRows * kD];
  alignas(1024) Element dout[kBackwardStages][kRows * kD];
  alignas(1024) Element ds[2][kBackwardKeys * kRows];  // panels [128 keys, 64 rows]
  alignas(1024) std::int32_t dq[kConsumerWarps][kSums / kConsumerWarps];
  alignas(128) float facts[kBackwardStages][kLoadedFacts * kRows];
  Barrier keys_full;
  Barrier q_full[kBackwardStages];  // q and facts
  Barrier dout_full[kBackwardStages];
  Barrier stage_empty[kBackwardStages];
  Barrier ds_full[2];   // both warpgroups have written
  Barrier ds_empty[2];  // both warpgroups have read
  BackwardItem item;
  std::int32_t* sums[2][kConsumerWarps];  // where a tile's dq goes, for lane 0 of each warp
};

// Rows beyond the document's end need no mask: their LSE is +inf.
__device__ inline Range tiles_without_mask(const BackwardItem& item, int rows_of_tile) {
  const Document& at = item.at;
  if (item.key + kBackwardKeys > at.keys) return {0, 0};
  Range tiles{item.first_tile, item.first_tile + item.tiles};
  if (at.causal)
    tiles.first = (item.key + kBackwardKeys - 1 - at.diagonal() + rows_of_tile - 1) / rows_of_tile;
  if (at.window > 0) {
    const std::int32_t rows = item.key - at.diagonal() + at.window;
    tiles.end = rows < 0 ? 0 : rows / rows_of_tile;
  }
  return tiles;
}

__device__ inline BackwardItem find_backward_item(const BackwardArguments& a, int rows_of_tile) {
  BackwardItem item{};
  const WorkItem work = find_item(a.items, static_cast<std::int32_t>(blockIdx.x));
  item.iterations = -1;
  if (work.document < 0) return item;
  item.at = find_document(a.items, work.document);
  item.batch = work.batch;
  item.kv_head = work.head / a.parts;
  item.part = work.head % a.parts;
  const std::int32_t first = item.part * a.group / a.parts;
  item.first_head = item.kv_head * a.group + first;
  item.heads = (item.part + 1) * a.group / a.parts - first;
  item.key = work.tile * kBackwardKeys;
  item.row_tile = first_tile(a.cu_q, work.document, rows_of_tile);
  item.key_tile = first_tile(a.cu_k, work.document, kBackwardKeys) + work.tile;
  const Range rows = rows_that_see(item.at, {item.key, min(item.key + kBackwardKeys, item.at.keys)});
  item.first_tile = rows.first / rows_of_tile;
  item.tiles = rows.empty() ? 0 : (rows.end - 1) / rows_of_tile + 1 - item.first_tile;
  item.iterations = item.heads * item.tiles;
  item.clear = tiles_without_mask(item, rows_of_tile);
  const bool packed = a.cu_q != nullptr;
  item.foreign_tile = packed && item.at.rows % rows_of_tile != 0 ? item.at.rows / rows_of_tile : -1;
  item.foreign_keys = packed && item.key + kBackwardKeys > item.at.keys;
  return item;
}

// Where an item is: its iterations run over row tiles, and within over nothing else.
struct BackwardPlace {
  std::int32_t head, tile;

  __device__ explicit BackwardPlace(const BackwardItem& item)
      : head(item.first_head), tile(item.first_tile) {}
  __device__ void step(const BackwardItem& item) {
    if (++tile == item.first_tile + item.tiles) {
      tile = item.first_tile;
      ++head;
    }
  }
};

template <typename Element, int kD>
__device__ inline void produce(const BackwardArguments& a, const CUtensorMap* q, const CUtensorMap* k,
                               const CUtensorMap* v, const CUtensorMap* dout, BackwardPlan<Element, kD>& plan,
                               const BackwardItem& item) {
  constexpr int kRows = BackwardPlan<Element, kD>::kRows;
  const int iterations = item.iterations;
  if (iterations == 0) return;
  barrier_arrive_expect(&plan.keys_full, 2 * sizeof plan.k);
#pragma unroll
  for (int panel = 0; panel < kD / 64; ++panel) {
    const int at = panel * kBackwardKeys * 64;
    tensor_load(plan.k + at, k, &plan.keys_full, panel * 64, item.at.key + item.key, item.kv_head,
                item.batch);
    tensor_load(plan.v + at, v, &plan.keys_full, panel * 64, item.at.key + item.key, item.kv_head,
                item.batch);
  }
  BackwardPlace place(item);
  for (int i = 0; i < iterations; ++i, place.step(item)) {
    const int stage = i % kBackwardStages;
    const int row = item.at.row + place.tile * kRows;
    const std::int64_t tile =
        static_cast<std::int64_t>(item.batch * a.hq + place.head) * a.row_tiles + item.row_tile + place.tile;
    barrier_wait(&plan.stage_empty[stage], (i / kBackwardStages & 1) ^ 1);
    barrier_arrive_expect(&plan.q_full[stage], sizeof plan.q[0] + sizeof plan.facts[0]);
#pragma unroll
    for (int panel = 0; panel < kD / 64; ++panel) {
      tensor_load(plan.q[stage] + panel * kRows * 64, q, &plan.q_full[stage], panel * 64, row, place.head,
                  item.batch);
    }
    bulk_load(plan.facts[stage], a.row_facts + tile * kRowFacts * kRows, sizeof plan.facts[0],
              &plan.q_full[stage]);
    barrier_arrive_expect(&plan.dout_full[stage], sizeof plan.dout[0]);
#pragma unroll
    for (int panel = 0; panel < kD / 64; ++panel) {
      tensor_load(plan.dout[stage] + panel * kRows * 64, dout, &plan.dout_full[stage], panel * 64, row,
                  place.head, item.batch);
    }
  }
}

// One warpgroup's side of a block.
template <typename Element, int kD>
class BackwardConsumer {
 public:
  using Plan = BackwardPlan<Element, kD>;
  static constexpr int kRows = Plan::kRows;
  static constexpr int kSteps = kRows / 16;
  static constexpr std::uint32_t kKeyPanel = kBackwardKeys * 128;  // bytes
  static constexpr std::uint32_t kRowPanel = kRows * 128;

  __device__ BackwardConsumer(const BackwardArguments& a, Plan& plan, int warpgroup)
      : a_(a),
        plan_(plan),
        item_(plan.item),
        warpgroup_(warpgroup),
        warp_(static_cast<int>(threadIdx.x) / 32 % 4),
        lane_(static_cast<int>(threadIdx.x) % 32),
        place_(plan.item),
        scale_log2_(a.scale_log2) {}

  __device__ void run() {
    float dk[kD / 2], dv[kD / 2];
#pragma unroll
    for (int i = 0; i < kD / 2; ++i) dk[i] = dv[i] = 0;
    const int iterations = item_.iterations;
    if (iterations > 0) {
      float s[kRows / 2];
      barrier_wait(&plan_.keys_full, 0);
      clear_foreign_keys();
      wait_for_rows(0, place_.tile);
      logits(s, 0);
      wgmma_wait<0>();
      pin(s);
      iterate<true>(0, iterations, s, dk, dv);
      for (int i = 1; i < iterations; ++i) iterate<false>(i, iterations, s, dk, dv);
      finish(iterations);
    }
    store(dk, dv);
  }

 private:
  // One tile of rows. On entry its S is there.
  template <bool kFirst>
  __device__ __forceinline__ void iterate(int i, int iterations, float (&s)[kRows / 2], float (&dk)[kD / 2],
                                          float (&dv)[kD / 2]) {
    const int stage = i % kBackwardStages;
    {
      float dp[kRows / 2];
      barrier_wait(&plan_.dout_full[stage], i / kBackwardStages & 1);
      upstream(dp, stage);
      if (place_.tile < item_.clear.first || place_.tile >= item_.clear.end) mask(s);
      probabilities(s, stage);
      // Also keeps the compiler from moving the exponentials behind the wait for dP.
      if (i >= 2) barrier_wait(&plan_.ds_empty[i & 1], (i / 2 & 1) ^ 1);
      wgmma_wait<0>();
      pin(dp);
      score_gradients(s, dp, stage);
    }
    share_score_gradients(i & 1);
    key_sums(dv, p_, plan_.dout[stage]);
    key_sums(dk, ds_, plan_.q[stage]);
    wgmma_commit();

    // dQ of the tile before, now that the other warpgroup's half of its dS is there.
    float dq[32];
    if constexpr (!kFirst) {
      barrier_wait(&plan_.ds_full[(i - 1) & 1], (i - 1) / 2 & 1);
      query_sums(dq, (i - 1) & 1);
    }
    const float to_fixed[2] = {to_fixed_[0], to_fixed_[1]};
    remember_sums(i, stage);
    wgmma_wait<kFirst ? 0 : 1>();
    pin(dk);
    pin(dv);
    pin_operands();
    release_stage(i);
    place_.step(item_);
    if (i + 1 < iterations) wait_for_rows(i + 1, place_.tile);
    logits(s, (i + 1) % kBackwardStages);  // of nothing, unused, after the last tile
    if constexpr (!kFirst) {
      wgmma_wait<1>();
      pin(dq);
      release(&plan_.ds_empty[(i - 1) & 1]);
      add_query_sums(dq, to_fixed, i - 1);
    }
    wgmma_wait<0>();
    pin(s);
  }

  // dQ of the last tile.
  __device__ __forceinline__ void finish(int iterations) {
    float dq[32];
    const int last = iterations - 1;
    barrier_wait(&plan_.ds_full[last & 1], last / 2 & 1);
    query_sums(dq, last & 1);
    wgmma_wait<0>();
    pin(dq);
    add_query_sums(dq, to_fixed_, last);
    if (lane_ == 0) bulk_wait();
  }

  // P and dS have been read.
  __device__ __forceinline__ void pin_operands() {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      pin(p_[step]);
      pin(ds_[step]);
    }
  }

  // S^T = K Q^T
  __device__ __forceinline__ void logits(float (&s)[kRows / 2], int stage) {
    multiply_keys(s, plan_.k, plan_.q[stage]);
    wgmma_commit();
  }

  // dP^T = V dO^T
  __device__ __forceinline__ void upstream(float (&dp)[kRows / 2], int stage) {
    multiply_keys(dp, plan_.v, plan_.dout[stage]);
    wgmma_commit();
  }

  __device__ __forceinline__ void multiply_keys(float (&product)[kRows / 2], const Element* keys,
                                                const Element* rows) {
    const std::uint64_t left = wgmma_descriptor(shared_address(keys) + warpgroup_ * 64 * 128);
    const std::uint64_t right = wgmma_descriptor(shared_address(rows));
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kD / 16; ++step) {
      const std::uint32_t panel = step / 4, within = step % 4 * 32;
      wgmma_ss<Element, Major::kK, Major::kK>(product, wgmma_advance(left, panel * kKeyPanel + within),
                                              wgmma_advance(right, panel * kRowPanel + within), step > 0);
    }
  }

  // dV += P^T dO, dK += dS^T Q
  __device__ __forceinline__ void key_sums(float (&sums)[kD / 2], const std::uint32_t (&left)[kSteps][4],
                                           const Element* rows) {
    const std::uint64_t right = wgmma_descriptor(shared_address(rows), kRowPanel);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      wgmma_rs<Element, Major::kMN>(sums, left[step], wgmma_advance(right, step * 2048), true);
  }

  // dQ = dS K: d 64 gives each warpgroup half of the rows, d 128 half of the columns.
  __device__ __forceinline__ void query_sums(float (&dq)[32], int buffer) {
    const std::uint32_t half = warpgroup_ * kKeyPanel;
    const std::uint64_t left = wgmma_descriptor(shared_address(plan_.ds[buffer]) + (kD == 64 ? half : 0));
    const std::uint64_t right = wgmma_descriptor(shared_address(plan_.k) + (kD == 64 ? 0 : half));
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kBackwardKeys / 16; ++step) {
      wgmma_ss<Element, Major::kMN, Major::kMN>(dq, wgmma_advance(left, step * 2048),
                                                wgmma_advance(right, step * 2048), step > 0);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void mask(float (&s)[kRows / 2]) const {
    const Document& at = item_.at;
    const int own = place_.tile * kRows + at.diagonal();
    const float hidden =
        scale_log2_ < 0 ? __builtin_huge_valf() : -__builtin_huge_valf();  // before it is scaled
    int low[2], high[2];  // the rows of the tile that see the thread's two keys
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = item_.key + warpgroup_ * 64 + warp_ * 16 + lane_ / 4 + half * 8;
      low[half] = key >= at.keys ? kRows : at.causal ? key - own : 0;
      high[half] = at.window > 0 ? key - own + at.window : kRows;
    }
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      const int row = i / 4 * 8 + lane_ % 4 * 2 + i % 2;
      const int half = i / 2 % 2;
      if (row < low[half] || row >= high[half]) s[i] = hidden;
    }
  }

  // P = exp(S - LSE), in place.
  __device__ __forceinline__ void probabilities(float (&s)[kRows / 2], int stage) const {
    const float* const lse = plan_.facts[stage] + kLse2 * kRows + lane_ % 4 * 2;
#pragma unroll
    for (int block = 0; block < kRows / 8; ++block) {
      const float2 of_rows = *reinterpret_cast<const float2*>(lse + block * 8);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& x = s[block * 4 + e];
        x = fast_exp2(fmaf(x, scale_log2_, e % 2 == 0 ? -of_rows.x : -of_rows.y));
      }
    }
  }

  // dS = P (dP - Delta + dLSE); P and dS rounded to left operands. In fp16 what lies under 2^-25 becomes 0, as
  // in every fp16 kernel that does not scale; above that down to 2^-14 digits are lost.
  __device__ __forceinline__ void score_gradients(const float (&p)[kRows / 2], const float (&dp)[kRows / 2],
                                                  int stage) {
    const float* const shift = plan_.facts[stage] + kShift * kRows + lane_ % 4 * 2;
#pragma unroll
    for (int block = 0; block < kRows / 8; ++block) {
      const float2 of_rows = *reinterpret_cast<const float2*>(shift + block * 8);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = block * 4 + half * 2;
        p_[block / 2][block % 2 * 2 + half] = pack_pair<Element>(p[at], p[at + 1]);
        ds_[block / 2][block % 2 * 2 + half] =
            pack_pair<Element>(p[at] * (dp[at] - of_rows.x), p[at + 1] * (dp[at + 1] - of_rows.y));
      }
    }
  }

  // Writes dS^T [64 keys, rows] into the panels, swizzled.
  __device__ __forceinline__ void share_score_gradients(int buffer) {
    const int key = warpgroup_ * 64 + warp_ * 16 + lane_ % 16;
    const std::uint32_t chunk =
        lane_ / 16 ^ key % 8;  // of 8 rows, for step 0; the steps change its upper bits
    const std::uint32_t first = shared_address(plan_.ds[buffer]) + key * 128 + chunk * 16;
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      store_matrices((first ^ (step % 4 * 32)) + step / 4 * kKeyPanel, ds_[step]);
    fence_proxy_async();
    release(&plan_.ds_full[buffer]);
  }

  // What the tile's dQ will want when its stage is gone.
  __device__ __forceinline__ void remember_sums(int i, int stage) {
    const float* const to_fixed =
        plan_.facts[stage] + kToFixed * kRows + (kD == 64 ? warpgroup_ * 64 : 0) + warp_ * 16 + lane_ / 4;
    to_fixed_[0] = to_fixed[0];
    to_fixed_[1] = to_fixed[8];
    if (lane_ != 0) return;
    const std::int64_t tile = static_cast<std::int64_t>(item_.batch * a_.hq + place_.head) * a_.row_tiles +
                              item_.row_tile + place_.tile;
    const int warp = warpgroup_ * 4 + warp_;
    plan_.sums[i & 1][warp] = a_.dq_sums + tile * Plan::kSums + warp * (Plan::kSums / kConsumerWarps);
  }

  __device__ __forceinline__ void add_query_sums(const float (&dq)[32], const float (&to_fixed)[2], int i) {
    std::int32_t* const staged = plan_.dq[warpgroup_ * 4 + warp_];
    if (lane_ == 0) bulk_wait_read();
    __syncwarp();
#pragma unroll
    for (int block = 0; block < 8; ++block) {
      const float* const x = dq + block * 4;
      *reinterpret_cast<int4*>(staged + accumulator_offset<8>(0, block, lane_)) =
          int4{__float2int_rn(x[0] * to_fixed[0]), __float2int_rn(x[1] * to_fixed[0]),
               __float2int_rn(x[2] * to_fixed[1]), __float2int_rn(x[3] * to_fixed[1])};
    }
    fence_proxy_async();
    __syncwarp();
    if (lane_ == 0) {
      bulk_add(plan_.sums[i & 1][warpgroup_ * 4 + warp_], staged, sizeof plan_.dq[0]);
      bulk_commit();
    }
  }

  __device__ __forceinline__ void release(Barrier* barrier) const {
    __syncwarp();
    if (lane_ == 0) barrier_arrive(barrier);
  }
  // Every thread arrives: each has read facts of its own, and tools that look for races see it.
  __device__ __forceinline__ void release_stage(int i) {
    barrier_arrive(&plan_.stage_empty[i % kBackwardStages]);
  }

  // Waits for a tile's q; where another document's rows came along, clears them: 0 * NaN is not 0.
  __device__ __forceinline__ void wait_for_rows(int i, int tile) {
    const int stage = i % kBackwardStages;
    barrier_wait(&plan_.q_full[stage], i / kBackwardStages & 1);
    if (tile == item_.foreign_tile) {
      const int left = item_.at.rows - tile * kRows;
      barrier_wait(&plan_.dout_full[stage], i / kBackwardStages & 1);
      clear_rows(plan_.q[stage], left, kRows);
      clear_rows(plan_.dout[stage], left, kRows);
      meet();
    }
  }
  __device__ __forceinline__ void clear_foreign_keys() {
    if (!item_.foreign_keys) return;
    const int left = item_.at.keys - item_.key;
    clear_rows(plan_.k, left, kBackwardKeys);
    clear_rows(plan_.v, left, kBackwardKeys);
    meet();
  }
  __device__ void clear_rows(Element* tile, int first, int rows) const {
#pragma unroll
    for (int panel = 0; panel < kD / 64; ++panel) {
      auto* const lines = reinterpret_cast<uint4*>(tile + panel * rows * 64);
      for (int at = first * 8 + thread(); at < rows * 8; at += kConsumerWarps * 32) lines[at] = uint4{};
    }
  }
  __device__ int thread() const {
    return warpgroup_ * 128 + warp_ * 32 + lane_;
  }
  // Both warpgroups have written to shared memory what wgmma will read.
  __device__ void meet() const {
    fence_proxy_async();
    named_sync(1, kConsumerWarps * 32);
  }

  __device__ void store(float (&dk)[kD / 2], float (&dv)[kD / 2]) const {
    if (a_.part_sums != nullptr) {
      store_part(dk, 0);
      store_part(dv, 1);
      return;
    }
#pragma unroll
    for (int i = 0; i < kD / 2; ++i) dk[i] *= a_.scale;
    store_keys(dk, a_.dk);
    store_keys(dv, a_.dv);
  }

  __device__ void store_part(const float (&x)[kD / 2], int which) const {
    const std::int64_t heads = static_cast<std::int64_t>(a_.b) * a_.hkv;
    const std::int64_t tile =
        ((std::int64_t{2} * item_.part + which) * heads + item_.batch * a_.hkv + item_.kv_head) *
            a_.key_tiles +
        item_.key_tile;
    float* const to = a_.part_sums + tile * kBackwardKeys * kD + warpgroup_ * 64 * kD;
#pragma unroll
    for (int block = 0; block < kD / 8; ++block) {
      *reinterpret_cast<float4*>(to + accumulator_offset<kD / 8>(warp_, block, lane_)) =
          float4{x[block * 4], x[block * 4 + 1], x[block * 4 + 2], x[block * 4 + 3]};
    }
  }

  __device__ void store_keys(const float (&x)[kD / 2], const MutableTensor& to) const {
    if (to.data == nullptr) return;
    store_accumulators<Element, kD / 8>(x, lane_, item_.key + warpgroup_ * 64 + warp_ * 16, item_.at.keys,
                                        static_cast<Element*>(to.data) + item_.batch * to.stride_b +
                                            item_.kv_head * to.stride_h + item_.at.key * to.stride_s,
                                        to.stride_s);
  }

  const BackwardArguments& a_;
  Plan& plan_;
  const BackwardItem& item_;
  const int warpgroup_, warp_, lane_;
  BackwardPlace place_;
  const float scale_log2_;
  std::uint32_t p_[kSteps][4], ds_[kSteps][4];
  float to_fixed_[2];
};

template <typename Element, int kD>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    backward_main_kernel(const __grid_constant__ BackwardArguments a, const __grid_constant__ CUtensorMap q,
                         const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap v,
                         const __grid_constant__ CUtensorMap dout) {
  extern __shared__ __align__(1024) unsigned char shared[];
  auto& plan = *reinterpret_cast<BackwardPlan<Element, kD>*>(shared);
  if (threadIdx.x == 0) {
    plan.item = find_backward_item(a, backward_rows(kD));
    barrier_init(&plan.keys_full, 1);
    for (int stage = 0; stage < kBackwardStages; ++stage) {
      barrier_init(&plan.q_full[stage], 1);
      barrier_init(&plan.dout_full[stage], 1);
      barrier_init(&plan.stage_empty[stage], kConsumerWarps * 32);
    }
    for (int buffer = 0; buffer < 2; ++buffer) {
      barrier_init(&plan.ds_full[buffer], kConsumerWarps);
      barrier_init(&plan.ds_empty[buffer], kConsumerWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  wait_for_previous();
  let_dependents_start();
  if (plan.item.iterations < 0) return;

  const int warpgroup = __shfl_sync(0xFFFFFFFF, static_cast<int>(threadIdx.x) / 128, 0);
  if (warpgroup == 0) {
    registers_shrink<24>();
    if (threadIdx.x == 0) produce<Element, kD>(a, &q, &k, &v, &dout, plan, plan.item);
  } else {
    registers_grow<240>();
    BackwardConsumer<Element, kD>(a, plan, warpgroup - 1).run();
  }
}

}  // namespace sink_attention::cuda
