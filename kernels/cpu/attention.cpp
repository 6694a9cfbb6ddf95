// SPDX-License-Identifier: Apache-2.0
// Shares the problem out over threads. What is one item, and so the order of every sum, depends on the
// problem alone.
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <system_error>
#include <thread>
#include <vector>

#include "kernels/cpu/check.h"
#include "kernels/cpu/config.h"
#include "kernels/cpu/isa.h"

namespace sink_attention::cpu {
namespace {

constexpr std::int64_t kRowsPerItem = 1024;  // of a forward item: many enough to repay packing the keys
constexpr std::int64_t kItemsInFlight = 16;  // of the backward: each has its own dk and dv sums

std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}
std::int64_t up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}
std::size_t aligned(std::size_t bytes) {
  return (bytes + 63) / 64 * 64;
}

int threads_of(const Options& options) {
  if (options.threads > 0) return options.threads;
  const unsigned hardware = std::thread::hardware_concurrency();
  return hardware == 0 ? 1 : static_cast<int>(hardware);
}

// body(item, thread) for every item, taken in order by whoever is free.
template <typename Body>
void parallel(std::int64_t count, int threads, const Body& body) {
  std::atomic<std::int64_t> next = 0;
  const auto work = [&](int thread) {
    for (std::int64_t i = next++; i < count; i = next++) body(i, thread);
  };
  std::vector<std::thread> pool;
  try {
    for (int t = 1; t < smaller(threads, count); ++t) pool.emplace_back(work, t);
  } catch (const std::system_error&) {
    // The system gives no more threads: those that are there do the work.
  }
  work(0);
  for (std::thread& thread : pool) thread.join();
}

std::int64_t documents_of(const Problem& p) {
  return p.cu_seqlens_q == nullptr ? 1 : p.documents;
}
std::int64_t first_row_of(const Problem& p, std::int64_t document) {
  return p.cu_seqlens_q == nullptr ? (document == 0 ? 0 : p.sq) : p.cu_seqlens_q[document];
}
std::int64_t first_key_of(const Problem& p, std::int64_t document) {
  return p.cu_seqlens_k == nullptr ? (document == 0 ? 0 : p.sk) : p.cu_seqlens_k[document];
}

Span span_of(const Problem& p, std::int64_t document) {
  return {first_row_of(p, document + 1) - first_row_of(p, document),
          first_key_of(p, document + 1) - first_key_of(p, document), p.causal, p.window};
}

std::int64_t bytes_of(DType dtype) {
  return dtype == DType::kFp32 ? 4 : 2;
}

// The rows of one head from `row` on. The stride of a dimension of one element is ignored by never being
// multiplied.
Rows head_rows(const ConstTensor& t, const Problem& p, std::int64_t batch, std::int64_t head,
               std::int64_t row) {
  const std::int64_t offset = batch * t.stride_b + head * t.stride_h + row * t.stride_s;
  return {static_cast<const std::byte*>(t.data) + offset * bytes_of(p.dtype), t.stride_s};
}
MutableRows head_rows(const MutableTensor& t, const Problem& p, std::int64_t batch, std::int64_t head,
                      std::int64_t row) {
  if (t.data == nullptr) return {nullptr, 0};
  const std::int64_t offset = batch * t.stride_b + head * t.stride_h + row * t.stride_s;
  return {static_cast<std::byte*>(t.data) + offset * bytes_of(p.dtype), t.stride_s};
}

double half_to_double(std::uint16_t bits) {
  const int exponent = bits >> 10 & 0x1F;
  const int significand = bits & 0x3FF;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31)
    return significand == 0 ? sign * std::numeric_limits<double>::infinity()
                            : std::numeric_limits<double>::quiet_NaN();
  return sign *
         (exponent == 0 ? std::ldexp(significand, -24) : std::ldexp(significand + 1024, exponent - 25));
}

double sink_of(const Problem& p, const void* sinks, std::int64_t head) {
  if (sinks == nullptr) return -std::numeric_limits<double>::infinity();
  if (p.sink_dtype == DType::kFp32) return static_cast<double>(static_cast<const float*>(sinks)[head]);
  const std::uint16_t bits = static_cast<const std::uint16_t*>(sinks)[head];
  if (p.sink_dtype == DType::kFp16) return half_to_double(bits);
  const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &word, 4);
  return static_cast<double>(x);
}

// How the backward is shared out: kv heads of all batch entries in waves; within a wave each group of query
// heads in equal parts, so that there are items enough for several threads.
struct BackwardPlan {
  std::int64_t groups, parts, wave;  // groups: b * hkv; groups of a wave
  std::int64_t sum_elements;  // of one item's dk or dv: [keys with padding between documents, padded d]
  std::size_t item_bytes, thread_bytes, total;

  BackwardPlan(const Problem& p, const Options& options, const IsaTable& isa) {
    groups = p.b * p.hkv;
    const std::int64_t group = p.hq / p.hkv;
    parts = smaller(group, up(kItemsInFlight, smaller(groups, kItemsInFlight)));
    wave = smaller(groups, kItemsInFlight);
    sum_elements = (p.sk + documents_of(p) * kPad) * padded(p.d);
    item_bytes = 2 * aligned(static_cast<std::size_t>(sum_elements) * sizeof(float));
    thread_bytes = aligned(isa.backward_scratch_bytes(p.sk, p.d));
    total = 64 + static_cast<std::size_t>(wave * parts) * item_bytes +
            static_cast<std::size_t>(threads_of(options)) * thread_bytes +
            aligned(static_cast<std::size_t>(p.b * p.hq) * sizeof(double));
  }
};

std::byte* align(void* workspace) {
  const std::size_t past = reinterpret_cast<std::uintptr_t>(workspace) % 64;
  return static_cast<std::byte*>(workspace) + (past == 0 ? 0 : 64 - past);
}

// One backward call.
struct Backward {
  const BackwardParams& w;
  const Problem& p;
  const IsaTable& isa;
  BackwardPlan plan;
  int threads;
  std::byte* base;
  double* dsinks;  // [b, hq]

  Backward(const BackwardParams& params, const Options& options)
      : w(params),
        p(params.problem),
        isa(isa_table(options.isa, p.dtype)),
        plan(p, options, isa),
        threads(threads_of(options)),
        base(align(params.workspace)),
        dsinks(reinterpret_cast<double*>(base +
                                         static_cast<std::size_t>(plan.wave * plan.parts) * plan.item_bytes +
                                         static_cast<std::size_t>(threads) * plan.thread_bytes)) {}

  float* dk_sums(std::int64_t item) const {
    return reinterpret_cast<float*>(base + static_cast<std::size_t>(item) * plan.item_bytes);
  }
  float* dv_sums(std::int64_t item) const {
    return reinterpret_cast<float*>(base + static_cast<std::size_t>(item) * plan.item_bytes +
                                    plan.item_bytes / 2);
  }
  std::byte* scratch(int thread) const {
    return base + static_cast<std::size_t>(plan.wave * plan.parts) * plan.item_bytes +
           static_cast<std::size_t>(thread) * plan.thread_bytes;
  }
  // Where a document's sums start: padding in between keeps one document's padded keys off the next one's.
  std::int64_t sum_offset(std::int64_t document) const {
    return (first_key_of(p, document) + document * kPad) * padded(p.d);
  }

  void run() {
    std::memset(dsinks, 0, static_cast<std::size_t>(p.b * p.hq) * sizeof(double));
    for (std::int64_t first = 0; first < plan.groups; first += plan.wave) {
      const std::int64_t count = smaller(plan.wave, plan.groups - first);
      parallel(count * plan.parts, threads, [&](std::int64_t item, int thread) {
        run_item(first + item / plan.parts, item % plan.parts, item, thread);
      });
      parallel(count, threads, [&](std::int64_t i, int) { finish_group(first + i, i * plan.parts); });
    }
    if (w.dsinks == nullptr) return;
    for (std::int64_t h = 0; h < p.hq; ++h) {
      double sum = 0;
      for (std::int64_t batch = 0; batch < p.b; ++batch) sum += dsinks[batch * p.hq + h];
      w.dsinks[h] = static_cast<float>(sum);
    }
  }

  void run_item(std::int64_t group_index, std::int64_t part, std::int64_t item, int thread) const {
    const std::int64_t group = p.hq / p.hkv;
    std::memset(dk_sums(item), 0, plan.item_bytes);
    for (std::int64_t g = part * group / plan.parts; g < (part + 1) * group / plan.parts; ++g) {
      for (std::int64_t document = 0; document < documents_of(p); ++document)
        run_head(group_index, g, document, item, thread);
    }
  }

  void run_head(std::int64_t group_index, std::int64_t g, std::int64_t document, std::int64_t item,
                int thread) const {
    const std::int64_t batch = group_index / p.hkv;
    const std::int64_t kv = group_index % p.hkv;
    const std::int64_t head = kv * (p.hq / p.hkv) + g;
    const std::int64_t row = first_row_of(p, document);
    const std::int64_t key = first_key_of(p, document);
    const std::int64_t flat = (batch * p.hq + head) * p.sq + row;
    BackwardItem b{};
    b.span = span_of(p, document);
    b.dtype = p.dtype;
    b.d = p.d;
    b.scale = p.scale;
    b.sink = sink_of(p, w.sinks, head);
    b.q = head_rows(w.q, p, batch, head, row);
    b.k = head_rows(w.k, p, batch, kv, key);
    b.v = head_rows(w.v, p, batch, kv, key);
    b.out = head_rows(w.out, p, batch, head, row);
    b.dout = head_rows(w.dout, p, batch, head, row);
    b.lse = w.lse + flat;
    b.dlse = w.dlse == nullptr ? nullptr : w.dlse + flat;
    b.residual = w.residual == nullptr ? nullptr : w.residual + flat * p.d;
    b.dq = head_rows(w.dq, p, batch, head, row);
    b.dk = w.dk.data == nullptr ? nullptr : dk_sums(item) + sum_offset(document);
    b.dv = w.dv.data == nullptr ? nullptr : dv_sums(item) + sum_offset(document);
    b.dsink = w.dsinks == nullptr ? nullptr : dsinks + batch * p.hq + head;
    b.scratch = scratch(thread);
    isa.backward(b);
  }

  // Adds the parts of a group in order and rounds once. Keys that no row saw get the zeros they started with.
  void finish_group(std::int64_t group_index, std::int64_t first_item) const {
    for (std::int64_t part = 1; part < plan.parts; ++part) {
      float* const to = dk_sums(first_item);
      const float* const from = dk_sums(first_item + part);
      const auto count = static_cast<std::int64_t>(plan.item_bytes / sizeof(float));
      for (std::int64_t i = 0; i < count; ++i) to[i] += from[i];
    }
    const std::int64_t batch = group_index / p.hkv;
    const std::int64_t kv = group_index % p.hkv;
    for (std::int64_t document = 0; document < documents_of(p); ++document) {
      const std::int64_t key = first_key_of(p, document);
      const std::int64_t keys = first_key_of(p, document + 1) - key;
      const std::int64_t offset = sum_offset(document);
      if (w.dk.data != nullptr)
        isa.store(dk_sums(first_item) + offset, keys, p.d, p.scale, p.dtype,
                  head_rows(w.dk, p, batch, kv, key));
      if (w.dv.data != nullptr)
        isa.store(dv_sums(first_item) + offset, keys, p.d, 1, p.dtype, head_rows(w.dv, p, batch, kv, key));
    }
  }
};

}  // namespace

std::size_t forward_workspace_bytes(const Problem& p, const Options& options) {
  const IsaTable& isa = isa_table(options.isa, p.dtype);
  return 64 + static_cast<std::size_t>(threads_of(options)) * aligned(isa.forward_scratch_bytes(p.sk, p.d));
}

std::size_t backward_workspace_bytes(const Problem& p, const Options& options) {
  return BackwardPlan(p, options, isa_table(options.isa, p.dtype)).total;
}

Status forward(const ForwardParams& f, const Options& options) {
  if (const Status status = check_forward(f, options); !status.ok()) return status;
  const Problem& p = f.problem;
  const IsaTable& isa = isa_table(options.isa, p.dtype);
  const std::size_t thread_bytes = aligned(isa.forward_scratch_bytes(p.sk, p.d));
  std::byte* const base = align(f.workspace);
  const std::int64_t pieces = up(p.sq, kRowsPerItem);

  // Late rows see most keys: they go first, so that no thread is left with the longest one.
  parallel(p.b * p.hq * pieces, threads_of(options), [&](std::int64_t item, int thread) {
    const std::int64_t piece = pieces - 1 - item / (p.b * p.hq);
    const std::int64_t batch_head = item % (p.b * p.hq);
    const std::int64_t batch = batch_head / p.hq;
    const std::int64_t head = batch_head % p.hq;
    const std::int64_t kv = head / (p.hq / p.hkv);
    for (std::int64_t document = 0; document < documents_of(p); ++document) {
      const std::int64_t row = first_row_of(p, document);
      const std::int64_t key = first_key_of(p, document);
      const std::int64_t flat = batch_head * p.sq + row;
      ForwardItem work{};
      work.span = span_of(p, document);
      work.dtype = p.dtype;
      work.d = p.d;
      work.scale = p.scale;
      work.sink = sink_of(p, f.sinks, head);
      work.first_row = piece * kRowsPerItem > row ? smaller(piece * kRowsPerItem - row, work.span.rows) : 0;
      work.end_row =
          (piece + 1) * kRowsPerItem > row ? smaller((piece + 1) * kRowsPerItem - row, work.span.rows) : 0;
      work.q = head_rows(f.q, p, batch, head, row);
      work.k = head_rows(f.k, p, batch, kv, key);
      work.v = head_rows(f.v, p, batch, kv, key);
      work.out = head_rows(f.out, p, batch, head, row);
      work.lse = f.lse == nullptr ? nullptr : f.lse + flat;
      work.residual = f.residual == nullptr ? nullptr : f.residual + flat * p.d;
      work.scratch = base + static_cast<std::size_t>(thread) * thread_bytes;
      isa.forward(work);
    }
  });
  return {};
}

Status backward(const BackwardParams& params, const Options& options) {
  if (const Status status = check_backward(params, options); !status.ok()) return status;
  Backward(params, options).run();
  return {};
}

}  // namespace sink_attention::cpu
