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
    constexpr bool kOfGroup = Config::kRows == TileRows::kOfGroup;
    ForwardItem item;
    item.document = find_document(a.schedule, work.document);
    item.batch = work.batch;
    item.head = work.head * (kOfGroup ? a.group : 1);
    item.row = work.tile * a.positions;
    const std::int32_t last_row = min(item.row + a.positions, item.document.rows) - 1;
    const std::int32_t first_key = item.document.first_key(item.row);
    item.key = kOfGroup ? first_key : 0;
    item.first_tile = (first_key - item.key) / Config::kTileKeys;
    item.end_tile = (item.document.end_key(last_row) - item.key + Config::kTileKeys - 1) / Config::kTileKeys;

    barrier_wait(&plan.q_empty[q.slot], q.parity ^ 1);
    plan.item[q.slot] = item;
    const std::int32_t lines = a.positions * (kOfGroup ? a.group : 1);
    barrier_arrive_expect(&plan.q_full[q.slot], lines * Config::kHeadDim * sizeof(typename Config::Element));
    load_rows<Config::kTileRows>(plan.q[q.slot], a.q, &plan.q_full[q.slot], item.document.row + item.row,
                                 item.head, item.batch, CachePolicy::kEvictFirst);
    q.step();
    for (std::int32_t tile = item.end_tile - 1; tile >= item.first_tile; --tile) load_keys(item, tile);
  }

  __device__ __forceinline__ void load_keys(const ForwardItem& item, std::int32_t tile) {
    const std::int32_t key = item.document.key + item.key + tile * Config::kTileKeys;
    const std::int32_t head = item.head / a.group;
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
  static constexpr bool kOfGroup = Config::kRows == TileRows::kOfGroup;
  using Output = OutputFragment<kHeadDim, Config::kResidual>;

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
    // The rows of this warpgroup: those of a group are of all its positions.
    const std::int32_t group_row = item.row + (kOfGroup ? 0 : group * kWarpgroupRows);
    const std::int32_t last_row =
        min(group_row + (kOfGroup ? a.positions : kWarpgroupRows), document.rows) - 1;
    if (a.negate) negate_rows();

    // The tiles that rows of this warpgroup see; the item's others are only released.
    std::int32_t begin = item.first_tile, end = item.first_tile;
    if (group_row < document.rows) {
      begin = (document.first_key(group_row) - first_key(item)) / kTileKeys;
      end = (document.end_key(last_row) - first_key(item) + kTileKeys - 1) / kTileKeys;
    }
    // Tiles of which every row sees every key.
    const std::int32_t whole_begin =
        (document.first_key(last_row) - first_key(item) + kTileKeys - 1) / kTileKeys;
    const std::int32_t whole_end = (document.end_key(group_row) - first_key(item)) / kTileKeys;
    Output out;
    LogitFragment<kTileKeys> s;
    ProbabilityFragment<kTileKeys> p;
    float rescale[2];
    RowState state;
    state.clear();
    out.clear();

    const auto softmax = [&](std::int32_t tile) {
      if (tile < whole_begin || tile >= whole_end) {
        const int line = 16 * warp + lane / 4;  // of this thread, the first of two
        const std::int32_t rows[2] = {place_of(item, line).row, place_of(item, line + 8).row};
        VisibleKeys(document, rows, lane).mask(s, first_key(item) + tile * kTileKeys);
      }
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
        clear_values_past_end(item, tile + 1, before.slot);
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
      clear_values_past_end(item, tile + 1, ring.slot);
      issue_output(out, p, ring.slot);
      wgmma_wait<0>();
      pin_output(out);
      release(&plan.v_empty[ring.slot]);
      ring.step();
    }
    for (; tile >= item.first_tile; --tile) skip_tile();
    finish(item, out, state);
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
  __device__ __forceinline__ void issue_logits(LogitFragment<kTileKeys>& s, std::int32_t slot) const {
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

  // out += P V, or P [V, 1], of one tile of keys, as one group of products.
  __device__ __forceinline__ void issue_output(Output& out, const ProbabilityFragment<kTileKeys>& p,
                                               std::int32_t slot) const {
    const std::uint32_t values = shared_address(plan.v[slot]);
    const std::uint32_t last = values + (Output::kFirst == 0 ? 0 : kTileKeys * 128);
    const std::uint32_t ones = shared_address(plan.ones);
    pin_output(out);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kTileKeys / 16; ++step) {
      const std::uint32_t at = step * 2048;
      if constexpr (Output::kFirst != 0)
        wgmma_rs<Element, Major::kMN>(out.first, p[step], wgmma_descriptor(values + at), true);
      const std::uint32_t lead = Config::kResidual ? ones - last - at : kTileKeys * 128;
      wgmma_rs<Element, Major::kMN>(out.last, p[step], wgmma_descriptor(last + at, lead), true);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ static void pin_output(Output& out) {
    if constexpr (Output::kFirst != 0) pin(out.first);
    pin(out.last);
  }

  // The first of this warpgroup's rows in the item's q.
  __device__ __forceinline__ Element* group_rows() const {
    return plan.q[q.slot] + group * kWarpgroupRows * kSwizzleWidth;
  }

  // Packed documents: rows of V that belong to the next document are multiplied by probabilities of zero, which
  // would not stop their NaN. Every warpgroup clears them for itself; the others write the same zeros.
  __device__ __forceinline__ void clear_values_past_end(const ForwardItem& item, std::int32_t tile,
                                                        std::int32_t slot) const {
    const std::int32_t valid = item.document.keys - first_key(item) - tile * kTileKeys;
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

  // Where key tile 0 starts.
  __device__ __forceinline__ static std::int32_t first_key(const ForwardItem& item) {
    return kOfGroup ? item.key : 0;
  }

  // Where a line of this warpgroup's tile belongs; `row` is counted inside the document and may be past its end.
  struct Place {
    std::int32_t head, row;
    bool exists;
  };
  __device__ __forceinline__ Place place_of(const ForwardItem& item, int line) const {
    line += group * kWarpgroupRows;
    if constexpr (kOfGroup) {
      const int head = line / a.positions, row = item.row + line - head * a.positions;
      return {item.head + head, row, head < a.group && row < item.document.rows};
    } else {
      return {item.head, item.row + line, item.row + line < item.document.rows};
    }
  }
  // The place in [b, hq, sq].
  __device__ __forceinline__ std::int64_t flat_row(const ForwardItem& item, const Place& place) const {
    const std::int32_t heads = a.schedule.heads * (kOfGroup ? a.group : 1);
    return (std::int64_t{item.batch} * heads + place.head) * a.schedule.row_total + item.document.row +
           place.row;
  }

  // Normalises the rows and writes them, through shared memory so that whole lines leave.
  __device__ __forceinline__ void finish(const ForwardItem& item, const Output& out,
                                         const RowState& state) const {
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Place place = place_of(item, 16 * warp + lane / 4 + 8 * r);
      const float sink = load_sink(a.sinks, a.sink_dtype, place.exists ? place.head : item.head);
      const float sum = quad_sum(state.sum[r]);
      const float divisor = Config::kResidual ? out.sum(r) : sum;
      const RowResult result = finish_row(state.high[r], state.pivot[r], sum, divisor, sink);
      factor[r] = result.factor;
      if (a.lse != nullptr && lane % 4 == 0 && place.exists) a.lse[flat_row(item, place)] = result.lse;
    }

    named_sync(kGroupBarrier + group, kWarpgroup);  // every warp is done with q and the last residual
    stage_rows(out, factor);
    named_sync(kGroupBarrier + group, kWarpgroup);
    store_rows(item);
    if (a.residual != nullptr) store_residual(item);
    fence_proxy_async();
    release(&plan.q_empty[q.slot]);
  }

  // Rounds the rows into shared memory: out as the swizzled tile that q was, the residual as plain rows.
  __device__ __forceinline__ void stage_rows(const Output& out, const float (&factor)[2]) const {
    std::uint32_t own_lane[1] = {static_cast<std::uint32_t>(lane)};
    pin(own_lane);  // or every address below would be kept in a register all the while
    const int lane = static_cast<int>(own_lane[0]);
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

  __device__ __forceinline__ void store_rows(const ForwardItem& item) const {
    constexpr int kChunks = kHeadDim / 8;  // of 16 bytes, of one row
    const auto* const tile = reinterpret_cast<const uint4*>(group_rows());
#pragma unroll 2  // more would keep addresses in registers that the main loop needs
    for (int i = 0; i < kWarpgroupRows * kChunks / kWarpgroup; ++i) {
      const int line = (i * kWarpgroup + thread) / kChunks, chunk = thread % kChunks;
      const Place place = place_of(item, line);
      if (place.exists) {
        Element* const to = static_cast<Element*>(a.out.data) + item.batch * a.out.stride_b +
                            place.head * a.out.stride_h + (item.document.row + place.row) * a.out.stride_s;
        *reinterpret_cast<uint4*>(to + chunk * 8) =
            tile[chunk / 8 * Config::kTileRows * 8 + line * 8 + (chunk % 8 ^ line % 8)];
      }
    }
  }

  __device__ __forceinline__ void store_residual(const ForwardItem& item) const {
    constexpr int kPieces = kHeadDim / 16;  // of 16 bytes, of one row
    const auto* const from = reinterpret_cast<const uint4*>(plan.residual[group]);
    for (std::int32_t i = thread; i < kWarpgroupRows * kPieces; i += kWarpgroup) {
      const Place place = place_of(item, i / kPieces);
      if (place.exists)
        reinterpret_cast<uint4*>(a.residual + flat_row(item, place) * kHeadDim)[i % kPieces] = from[i];
    }
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
  if constexpr (Config::kResidual) {
    for (int i = static_cast<int>(threadIdx.x); i < 16 * kSwizzleWidth; i += Config::kThreads)
      plan.ones[i] = typename Config::Element(1.0F);
    fence_proxy_async();
  }
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
