// SPDX-License-Identifier: Apache-2.0
// The forward kernel: persistent, warp-specialised. A producer thread fills rings of key and value tiles; each
// consumer warpgroup keeps 64 query rows and issues the logits of one tile together with the product of the
// one before with V. Warpgroups take turns at that, so that one's softmax runs beside the products of the
// others (Shah et al., FlashAttention-3, 2024).
#pragma once

#include "kernels/cuda/forward_rows.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace sink_attention::cuda {

// Named barriers: whose turn it is to issue products, and one of each warpgroup's own threads.
inline constexpr std::uint32_t kTurnBarrier = 1, kGroupBarrier = 5;

template <typename Config>
struct ForwardProducer {
  const ForwardArguments& a;
  ForwardPlan<Config>& plan;
  RingPosition<2> q;
  RingPosition<Config::kStages> ring;

  __device__ __forceinline__ void run() {
    const auto blocks = static_cast<std::int32_t>(gridDim.x), block = static_cast<std::int32_t>(blockIdx.x);
    const std::int32_t rounds = (a.schedule.items + blocks - 1) / blocks;
    for (std::int32_t round = 0; round < rounds; ++round) {
      const std::int32_t index = item_of_round(round, block, blocks);
      if (index >= a.schedule.items) continue;
      const WorkItem work = find_item(a.schedule, index);
      if (work.document >= 0) load_item(work);
    }
    barrier_wait(&plan.q_empty[q.slot], q.parity ^ 1);
    plan.item[q.slot].row = -1;
    barrier_arrive(&plan.q_full[q.slot]);
  }

  __device__ __forceinline__ void load_item(const WorkItem& work) {
    ForwardItem item;
    item.document = find_document(a.schedule, work.document);
    item.batch = work.batch;
    item.head = work.head;
    item.row = work.tile * Config::kTileRows;
    const std::int32_t last_row = min(item.row + Config::kTileRows, item.document.rows) - 1;
    const std::int32_t end_key = item.document.end_key(last_row);
    item.first_tile = item.document.first_key(item.row) / Config::kTileKeys;
    item.end_tile = (end_key + Config::kTileKeys - 1) / Config::kTileKeys;

    barrier_wait(&plan.q_empty[q.slot], q.parity ^ 1);
    plan.item[q.slot] = item;
    barrier_arrive_expect(&plan.q_full[q.slot], sizeof plan.q[0]);
    load_rows<Config::kTileRows>(plan.q[q.slot], a.q, &plan.q_full[q.slot], item.document.row + item.row,
                                 item.head, item.batch, CachePolicy::kEvictFirst);
    q.step();
    for (std::int32_t tile = item.end_tile - 1; tile >= item.first_tile; --tile) load_keys(item, tile);
  }

  __device__ __forceinline__ void load_keys(const ForwardItem& item, std::int32_t tile) {
    const std::int32_t key = item.document.key + tile * Config::kTileKeys, head = item.head / a.group;
    barrier_wait(&plan.k_empty[ring.slot], ring.parity ^ 1);
    barrier_arrive_expect(&plan.k_full[ring.slot], sizeof plan.k[0]);
    load_rows<Config::kTileKeys>(plan.k[ring.slot], a.k, &plan.k_full[ring.slot], key, head, item.batch,
                                 CachePolicy::kEvictLast);
    barrier_wait(&plan.v_empty[ring.slot], ring.parity ^ 1);
    barrier_arrive_expect(&plan.v_full[ring.slot], sizeof plan.v[0]);
    load_rows<Config::kTileKeys>(plan.v[ring.slot], a.v, &plan.v_full[ring.slot], key, head, item.batch,
                                 CachePolicy::kEvictLast);
    ring.step();
  }

  template <int kRows>
  __device__ __forceinline__ static void load_rows(typename Config::Element* to, const CUtensorMap& map,
                                                   Barrier* full, std::int32_t row, std::int32_t head,
                                                   std::int32_t batch, CachePolicy policy) {
#pragma unroll
    for (int d = 0; d < Config::kHeadDim; d += kSwizzleWidth)
      tensor_load(to + d * kRows, &map, full, d, row, head, batch, policy);
  }
};

template <typename Config>
struct ForwardConsumer {
  using Element = typename Config::Element;
  static constexpr int kHeadDim = Config::kHeadDim, kTileKeys = Config::kTileKeys;

  const ForwardArguments& a;
  ForwardPlan<Config>& plan;
  int group, thread, lane, warp;  // which consumer warpgroup, and where in it
  RingPosition<2> q;
  RingPosition<Config::kStages> ring;  // of the tile whose logits come next

  __device__ __forceinline__ ForwardConsumer(const ForwardArguments& arguments, ForwardPlan<Config>& shared)
      : a(arguments),
        plan(shared),
        group(__shfl_sync(0xFFFFFFFF, static_cast<int>(threadIdx.x) / kWarpgroup - 1,
                          0)),  // uniform, and known to be
        thread(static_cast<int>(threadIdx.x) % kWarpgroup),
        lane(thread % 32),
        warp(thread / 32) {}

  __device__ __forceinline__ void run() {
    if (group == Config::kConsumers - 1) named_arrive(kTurnBarrier, 2 * kWarpgroup);
    while (true) {
      barrier_wait(&plan.q_full[q.slot], q.parity);
      const ForwardItem& item = plan.item[q.slot];  // stays in shared memory: registers are scarce
      if (item.row < 0) break;
      run_item(item);
      q.step();
    }
    if (group == 0) named_sync(kTurnBarrier, 2 * kWarpgroup);  // takes the turn that nobody will use
  }

  __device__ __forceinline__ void run_item(const ForwardItem& item) {
    const Document& document = item.document;
    const std::int32_t group_row = item.row + group * kWarpgroupRows;  // first of this warpgroup
    const std::int32_t last_row = min(group_row + kWarpgroupRows, document.rows) - 1;
    const float sink = load_sink(a.sinks, a.sink_dtype, item.head);
    if (a.negate) negate_rows();

    // The tiles that rows of this warpgroup see; the item's others are only released.
    std::int32_t begin = item.first_tile, end = item.first_tile;
    if (group_row < document.rows) {
      begin = document.first_key(group_row) / kTileKeys;
      end = (document.end_key(last_row) + kTileKeys - 1) / kTileKeys;
    }
    // Tiles of which every row sees every key.
    const std::int32_t whole_begin = (document.first_key(last_row) + kTileKeys - 1) / kTileKeys;
    const std::int32_t whole_end = document.end_key(group_row) / kTileKeys;
    const std::int32_t row = group_row + 16 * warp + lane / 4;  // of this thread, the first of two

    OutputFragment<kHeadDim> out;
    LogitFragment s;
    ProbabilityFragment p;
    float rescale[2];
    RowState state;
    state.clear();
    out.clear();

    const auto softmax = [&](std::int32_t tile) {
      if (tile < whole_begin || tile >= whole_end) VisibleKeys(document, row, lane).mask(s, tile * kTileKeys);
      state.exponentiate(s, a.scale_log2, rescale);
    };

    std::int32_t tile = item.end_tile - 1;
    for (; tile >= end; --tile) skip_tile();
    if (tile >= begin) {
      // The first tile has no predecessor to overlap with.
      barrier_wait(&plan.k_full[ring.slot], ring.parity);
      take_turn();
      issue_logits(s, ring.slot);
      pass_turn();
      wgmma_wait<0>();
      pin(s);
      release(&plan.k_empty[ring.slot]);
      softmax(tile);
      round_tile<Element>(s, p);

      for (--tile; tile >= begin; --tile) {
        const RingPosition<Config::kStages> before = ring;
        ring.step();
        barrier_wait(&plan.k_full[ring.slot], ring.parity);
        take_turn();
        issue_logits(s, ring.slot);
        barrier_wait(&plan.v_full[before.slot], before.parity);
        clear_values_past_end(document, tile + 1, before.slot);
        issue_output(out, p, before.slot);
        pass_turn();
        wgmma_wait<1>();
        pin(s);
        release(&plan.k_empty[ring.slot]);
        softmax(tile);
        wgmma_wait<0>();
        pin_output(out);
        release(&plan.v_empty[before.slot]);
        round_tile<Element>(s, p);
        out.rescale(rescale);
      }

      barrier_wait(&plan.v_full[ring.slot], ring.parity);
      clear_values_past_end(document, tile + 1, ring.slot);
      issue_output(out, p, ring.slot);
      wgmma_wait<0>();
      pin_output(out);
      release(&plan.v_empty[ring.slot]);
      ring.step();
    }
    for (; tile >= item.first_tile; --tile) skip_tile();
    finish(item, group_row, row, out, state, sink);
  }

  // Warpgroups issue their products in turn, so that one's softmax runs beside another's products.
  __device__ __forceinline__ void take_turn() const { named_sync(kTurnBarrier + group, 2 * kWarpgroup); }
  __device__ __forceinline__ void pass_turn() const {
    named_arrive(kTurnBarrier + (group + 1) % Config::kConsumers, 2 * kWarpgroup);
  }

  __device__ __forceinline__ void release(Barrier* empty) const {
    if (lane == 0) barrier_arrive(empty);
  }

  // A tile that only other warpgroups need: it must have been full before it is given back.
  __device__ __forceinline__ void skip_tile() {
    take_turn();
    pass_turn();
    barrier_wait(&plan.k_full[ring.slot], ring.parity);
    release(&plan.k_empty[ring.slot]);
    barrier_wait(&plan.v_full[ring.slot], ring.parity);
    release(&plan.v_empty[ring.slot]);
    ring.step();
  }

  // s = Q K^T of this warpgroup's rows and one tile of keys, as one group of products.
  __device__ __forceinline__ void issue_logits(LogitFragment& s, std::int32_t slot) const {
    const std::uint64_t rows = wgmma_descriptor(shared_address(group_rows()));
    const std::uint64_t keys = wgmma_descriptor(shared_address(plan.k[slot]));
    pin(s);
    wgmma_fence();
#pragma unroll
    for (int d = 0; d < kHeadDim; d += 16) {
      const int half = d / kSwizzleWidth, bytes = d % kSwizzleWidth * 2;
      wgmma_ss<Element, Major::kK, Major::kK>(s, wgmma_advance(rows, half * Config::kTileRows * 128 + bytes),
                                              wgmma_advance(keys, half * kTileKeys * 128 + bytes), d != 0);
    }
    wgmma_commit();
  }

  // out += P [V, 1] of one tile of keys, as one group of products.
  __device__ __forceinline__ void issue_output(OutputFragment<kHeadDim>& out, const ProbabilityFragment& p,
                                               std::int32_t slot) const {
    const std::uint32_t values = shared_address(plan.v[slot]);
    const std::uint32_t last = values + (kHeadDim / kSwizzleWidth - 1) * kTileKeys * 128;
    const std::uint32_t ones = shared_address(plan.ones);
    pin_output(out);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kTileKeys / 16; ++step) {
      if constexpr (kHeadDim == 128)
        wgmma_rs<Element, Major::kMN>(out.first, p[step], wgmma_descriptor(values + step * 2048), true);
      wgmma_rs<Element, Major::kMN>(out.last, p[step],
                                    wgmma_descriptor(last + step * 2048, ones - last - step * 2048), true);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ static void pin_output(OutputFragment<kHeadDim>& out) {
    if constexpr (kHeadDim == 128) pin(out.first);
    pin(out.last);
  }

  // The first of this warpgroup's rows in the item's q.
  __device__ __forceinline__ Element* group_rows() const {
    return plan.q[q.slot] + group * kWarpgroupRows * kSwizzleWidth;
  }

  // Packed documents: rows of V that belong to the next document are multiplied by probabilities of zero, which
  // would not stop their NaN. Every warpgroup clears them for itself; the others write the same zeros.
  __device__ __forceinline__ void clear_values_past_end(const Document& document, std::int32_t tile,
                                                        std::int32_t slot) const {
    const std::int32_t valid = document.keys - tile * kTileKeys;
    if (valid >= kTileKeys || a.schedule.cu_seqlens_q == nullptr) return;
    auto* const rows = reinterpret_cast<uint4*>(plan.v[slot]);
    for (std::int32_t i = valid * 8 + thread; i < kTileKeys * 8; i += kWarpgroup) {
#pragma unroll
      for (int half = 0; half < kHeadDim / kSwizzleWidth; ++half)
        rows[half * kTileKeys * 8 + i] = {0, 0, 0, 0};
    }
    fence_proxy_async();
    named_sync(kGroupBarrier + group, kWarpgroup);
  }

  // Flips the signs of this warpgroup's rows of q.
  __device__ __forceinline__ void negate_rows() const {
    for (int i = thread; i < kWarpgroupRows * kHeadDim / 8; i += kWarpgroup) {
      const int half = i / (kWarpgroupRows * 8);
      auto& v =
          reinterpret_cast<uint4*>(group_rows())[half * Config::kTileRows * 8 + i % (kWarpgroupRows * 8)];
      v = {v.x ^ 0x80008000U, v.y ^ 0x80008000U, v.z ^ 0x80008000U, v.w ^ 0x80008000U};
    }
    fence_proxy_async();
    named_sync(kGroupBarrier + group, kWarpgroup);
  }

  // Normalises the rows and writes them, through shared memory so that whole lines leave.
  __device__ __forceinline__ void finish(const ForwardItem& item, std::int32_t group_row, std::int32_t row,
                                         const OutputFragment<kHeadDim>& out, const RowState& state,
                                         float sink) const {
    const std::int64_t flat_row =
        (std::int64_t{item.batch} * a.schedule.heads + item.head) * a.schedule.row_total +
        item.document.row;  // of the document's first row in [b, hq, sq]
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const RowResult result =
          finish_row(state.high[r], state.pivot[r], quad_sum(state.sum[r]), out.sum(r), sink);
      factor[r] = result.factor;
      if (a.lse != nullptr && lane % 4 == 0 && row + 8 * r < item.document.rows)
        a.lse[flat_row + row + 8 * r] = result.lse;
    }

    named_sync(kGroupBarrier + group, kWarpgroup);  // every warp is done with q and the last residual
    stage_rows(out, factor);
    named_sync(kGroupBarrier + group, kWarpgroup);
    const std::int32_t rows = min(item.document.rows - group_row, kWarpgroupRows);
    store_rows(item, group_row, rows);
    if (a.residual != nullptr) store_residual(flat_row + group_row, rows);
    fence_proxy_async();
    release(&plan.q_empty[q.slot]);
  }

  // Rounds the rows into shared memory: out as the swizzled tile that q was, the residual as plain rows.
  __device__ __forceinline__ void stage_rows(const OutputFragment<kHeadDim>& out,
                                             const float (&factor)[2]) const {
    auto* const tile = reinterpret_cast<std::uint32_t*>(group_rows());
    std::int8_t* const residual = plan.residual[group];
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; i += 2) {
      const int r = i / 2 % 2, chunk = i / 4;  // chunk: of 8 columns
      const int line = 16 * warp + lane / 4 + 8 * r;
      // A row without visible keys is zero, also where its sums are not.
      const float low = factor[r] == 0 ? 0.0F : out[i] * factor[r];
      const float high = factor[r] == 0 ? 0.0F : out[i + 1] * factor[r];
      const std::uint32_t pair = pack_pair<Element>(low, high);
      tile[chunk / 8 * Config::kTileRows * 32 + line * 32 + (chunk % 8 ^ line % 8) * 4 + lane % 4] = pair;
      if (a.residual != nullptr) {
        const float2 stored = unpack_pair<Element>(pair);
        const std::int32_t low_units = residual_of<Element>(low, stored.x);
        const std::int32_t high_units = residual_of<Element>(high, stored.y);
        *reinterpret_cast<std::uint16_t*>(residual + line * kHeadDim + chunk * 8 + lane % 4 * 2) =
            static_cast<std::uint16_t>((low_units & 0xFF) | (high_units & 0xFF) << 8);
      }
    }
  }

  __device__ __forceinline__ void store_rows(const ForwardItem& item, std::int32_t group_row,
                                             std::int32_t rows) const {
    constexpr int kChunks = kHeadDim / 8;  // of 16 bytes, of one row
    const auto* const tile = reinterpret_cast<const uint4*>(group_rows());
    Element* const to = static_cast<Element*>(a.out.data) + item.batch * a.out.stride_b +
                        item.head * a.out.stride_h + (item.document.row + group_row) * a.out.stride_s;
#pragma unroll
    for (int i = 0; i < kWarpgroupRows * kChunks / kWarpgroup; ++i) {
      const int line = (i * kWarpgroup + thread) / kChunks, chunk = thread % kChunks;
      if (line < rows) {
        *reinterpret_cast<uint4*>(to + line * a.out.stride_s + chunk * 8) =
            tile[chunk / 8 * Config::kTileRows * 8 + line * 8 + (chunk % 8 ^ line % 8)];
      }
    }
  }

  __device__ __forceinline__ void store_residual(std::int64_t flat_row, std::int32_t rows) const {
    const auto* const from = reinterpret_cast<const uint4*>(plan.residual[group]);
    auto* const to = reinterpret_cast<uint4*>(a.residual + flat_row * kHeadDim);
    for (std::int32_t i = thread; i < rows * (kHeadDim / 16); i += kWarpgroup) to[i] = from[i];
  }
};

template <typename Config>
__device__ __forceinline__ void init_barriers(ForwardPlan<Config>& plan) {
  for (int i = 0; i < 2; ++i) {
    barrier_init(&plan.q_full[i], 1);
    barrier_init(&plan.q_empty[i], Config::kConsumerWarps);
  }
  for (int i = 0; i < Config::kStages; ++i) {
    barrier_init(&plan.k_full[i], 1);
    barrier_init(&plan.k_empty[i], Config::kConsumerWarps);
    barrier_init(&plan.v_full[i], 1);
    barrier_init(&plan.v_empty[i], Config::kConsumerWarps);
  }
  fence_barrier_init();
}

template <typename Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    forward_kernel(const __grid_constant__ ForwardArguments a) {
  extern __shared__ __align__(1024) unsigned char shared[];
  auto& plan = *reinterpret_cast<ForwardPlan<Config>*>(shared);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&a.q);
    prefetch_tensor_map(&a.k);
    prefetch_tensor_map(&a.v);
    init_barriers(plan);
  }
  for (int i = static_cast<int>(threadIdx.x); i < 16 * kSwizzleWidth; i += Config::kThreads)
    plan.ones[i] = typename Config::Element(1.0F);
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    registers_shrink<Config::kProducerRegisters>();
    if (threadIdx.x == 0) ForwardProducer<Config>{a, plan, {}, {}}.run();
  } else {
    registers_grow<Config::kConsumerRegisters>();
    ForwardConsumer<Config>(a, plan).run();
  }
}

}  // namespace sink_attention::cuda
