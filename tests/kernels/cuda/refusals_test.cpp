// SPDX-License-Identifier: Apache-2.0
// What the CUDA backend does not take is refused with the value seen and the value wanted, before anything is
// written. The checks come before the device, so they are tested on a machine without one too.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cuda_runtime_api.h>
#include <limits>
#include <string>
#include <string_view>

#include "gtest/gtest.h"

#include "kernels/sink_attention.h"

namespace sinkscope::testing_kernel {
namespace {

namespace sa = sink_attention;
using Code = sa::Status::Code;

constexpr std::int64_t kB = 2, kHeads = 4, kKvHeads = 2, kRows = 8, kD = 64;
constexpr std::size_t kTensorBytes = kB * kHeads * kRows * kD * 2;
constexpr std::size_t kWorkspaceBytes = std::size_t{1} << 22;

// Memory that both sides can read where there is a GPU, the host's otherwise.
class SharedMemory {
 public:
  explicit SharedMemory(std::size_t bytes) : bytes_(bytes), managed_(sa::cuda::available().ok()) {
    if (managed_) {
      EXPECT_EQ(cudaMallocManaged(&data_, bytes), cudaSuccess);
    } else {
      data_ = ::operator new (bytes, std::align_val_t{256});
    }
    std::fill_n(data(), bytes, kPattern);
  }
  SharedMemory(SharedMemory&&) = delete;
  ~SharedMemory() {
    if (managed_) {
      cudaFree(data_);
    } else {
      ::operator delete (data_, std::align_val_t{256});
    }
  }
  std::uint8_t* data() const { return static_cast<std::uint8_t*>(data_); }
  bool untouched() const {
    if (managed_ && cudaDeviceSynchronize() != cudaSuccess) return false;
    return std::all_of(data(), data() + bytes_, [](std::uint8_t x) { return x == kPattern; });
  }

 private:
  static constexpr std::uint8_t kPattern = 0x3C;
  void* data_ = nullptr;
  std::size_t bytes_;
  bool managed_;
};

struct Call {
  sa::ForwardParams forward;
  sa::BackwardParams backward;
};

struct Refusal {
  std::string name;
  void (*spoil)(Call&);
  Code code;
  std::string message;  // how it starts
  bool of_forward = true, of_backward = true;

  friend void PrintTo(const Refusal& refusal, std::ostream* stream) { *stream << refusal.name; }
};

class RefusedByCuda : public testing::TestWithParam<Refusal> {
 protected:
  // A call that a GPU would take.
  Call good_call() {
    Call call;
    sa::ForwardParams& f = call.forward;
    f.problem = {.b = kB, .hq = kHeads, .hkv = kKvHeads, .sq = kRows, .sk = kRows, .d = kD};
    f.q = {inputs_.data(), kHeads * kRows * kD, kRows * kD, kD};
    f.k = f.v = {inputs_.data(), kKvHeads * kRows * kD, kRows * kD, kD};
    f.out = {outputs_.data(), kHeads * kRows * kD, kRows * kD, kD};
    f.lse = reinterpret_cast<float*>(outputs_.data() + kTensorBytes);
    f.workspace = workspace_.data();
    f.workspace_bytes = kWorkspaceBytes;
    sa::BackwardParams& w = call.backward;
    w.problem = f.problem;
    w.q = w.out = w.dout = f.q;
    w.k = w.v = f.k;
    w.lse = reinterpret_cast<const float*>(inputs_.data());
    w.dq = f.out;
    w.dk = w.dv = {outputs_.data(), kKvHeads * kRows * kD, kRows * kD, kD};
    w.dsinks = f.lse;
    w.workspace = f.workspace;
    w.workspace_bytes = f.workspace_bytes;
    return call;
  }

  bool nothing_written() const { return outputs_.untouched() && workspace_.untouched(); }

  SharedMemory inputs_{2 * kTensorBytes}, outputs_{2 * kTensorBytes}, workspace_{kWorkspaceBytes};
};

TEST_P(RefusedByCuda, BeforeAnythingIsWritten) {
  const Refusal& refusal = GetParam();
  Call call = good_call();
  refusal.spoil(call);
  const auto expect_refused = [&](const sa::Status& status, const char* direction) {
    EXPECT_EQ(status.code, refusal.code) << direction << ": " << status.message;
    EXPECT_TRUE(std::string_view(status.message).starts_with(refusal.message))
        << direction << " said: " << status.message;
  };
  if (refusal.of_forward) expect_refused(sa::cuda::forward(call.forward, nullptr), "the forward");
  if (refusal.of_backward) expect_refused(sa::cuda::backward(call.backward, nullptr), "the backward");

  EXPECT_TRUE(nothing_written());
}

// Spoils the problem of both directions.
template <auto kSpoil>
void problem(Call& call) {
  kSpoil(call.forward.problem);
  kSpoil(call.backward.problem);
}

constexpr Code kInvalid = Code::kInvalidArgument, kUnsupported = Code::kUnsupported;
const std::int32_t kOffsets[] = {0, 8};

INSTANTIATE_TEST_SUITE_P(
    Problem, RefusedByCuda,
    testing::Values(
        Refusal{"fp32", problem<[](sa::Problem& p) { p.dtype = sa::DType::kFp32; }>, kUnsupported,
                "fp32 on the GPU, wanted bf16 or fp16"},
        Refusal{"head_dim", problem<[](sa::Problem& p) { p.d = 96; }>, kUnsupported,
                "head dim 96 on the GPU, wanted 64 or 128"},
        Refusal{"no_batch", problem<[](sa::Problem& p) { p.b = 0; }>, kInvalid,
                "b 0, hq 4, hkv 2: wanted at least 1 each"},
        Refusal{"negative_heads", problem<[](sa::Problem& p) { p.hkv = -2; }>, kInvalid, "b 2, hq 4, hkv -2"},
        Refusal{"heads", problem<[](sa::Problem& p) { p.hkv = 3; }>, kInvalid,
                "hq 4 is not a multiple of hkv 3"},
        Refusal{"negative_rows", problem<[](sa::Problem& p) { p.sq = -1; }>, kInvalid, "sq -1, sk 8"},
        Refusal{"too_many_keys", problem<[](sa::Problem& p) { p.sk = std::int64_t{1} << 31; }>, kInvalid,
                "sq 8, sk 2147483648"},
        Refusal{"too_many_tiles", problem<[](sa::Problem& p) {
                  p.b = 4096;
                  p.sq = std::int64_t{1} << 30;
                }>,
                kUnsupported, "b 4096, hq 4, sq 1073741824, sk 8: wanted under 2^31 tiles"},
        Refusal{"overflowing_batch", problem<[](sa::Problem& p) { p.b = std::int64_t{1} << 62; }>,
                kUnsupported, "b 4611686018427387904, hq 4"},
        Refusal{"nan_scale", problem<[](sa::Problem& p) { p.scale = NAN; }>, kInvalid, "scale "},
        Refusal{"infinite_scale",
                problem<[](sa::Problem& p) { p.scale = std::numeric_limits<float>::infinity(); }>, kInvalid,
                "scale inf"},
        Refusal{"negative_window", problem<[](sa::Problem& p) { p.window = -1; }>, kInvalid,
                "window -1 with causal 1"},
        Refusal{"window_without_causal", problem<[](sa::Problem& p) {
                  p.window = 4;
                  p.causal = false;
                }>,
                kInvalid, "window 4 with causal 0"},
        Refusal{"offsets_of_queries_alone", problem<[](sa::Problem& p) { p.cu_seqlens_q = kOffsets; }>,
                kInvalid, "one of cu_seqlens_q and cu_seqlens_k is null"},
        Refusal{"documents_in_a_batch", problem<[](sa::Problem& p) {
                  p.cu_seqlens_q = p.cu_seqlens_k = kOffsets;
                  p.documents = 1;
                }>,
                kInvalid, "b 2 with packed documents, wanted 1"},
        Refusal{"no_documents", problem<[](sa::Problem& p) {
                  p.b = 1;
                  p.cu_seqlens_q = p.cu_seqlens_k = kOffsets;
                }>,
                kInvalid, "documents 0 with cu_seqlens, wanted at least 1"}),
    [](const auto& refusal) { return refusal.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Tensors, RefusedByCuda,
    testing::Values(
        Refusal{"null_q", [](Call& c) { c.forward.q.data = c.backward.q.data = nullptr; }, kInvalid,
                "q is null, wanted a tensor"},
        Refusal{"null_k", [](Call& c) { c.forward.k.data = c.backward.k.data = nullptr; }, kInvalid,
                "k is null"},
        Refusal{"null_v", [](Call& c) { c.forward.v.data = c.backward.v.data = nullptr; }, kInvalid,
                "v is null"},
        Refusal{"null_out",
                [](Call& c) {
                  c.forward.out.data = nullptr;
                  c.backward.out.data = nullptr;
                },
                kInvalid, "out is null"},
        Refusal{"null_dout", [](Call& c) { c.backward.dout.data = nullptr; }, kInvalid, "dout is null",
                false},
        Refusal{"null_lse", [](Call& c) { c.backward.lse = nullptr; }, kInvalid, "lse is null", false},
        Refusal{"misaligned_q",
                [](Call& c) {
                  c.forward.q.data = static_cast<const std::byte*>(c.forward.q.data) + 8;
                  c.backward.q.data = c.forward.q.data;
                },
                kUnsupported, "q lies at 0x"},
        Refusal{"misaligned_dk",
                [](Call& c) { c.backward.dk.data = static_cast<std::byte*>(c.backward.dk.data) + 2; },
                kUnsupported, "dk lies at 0x", false},
        Refusal{"misaligned_residual",
                [](Call& c) {
                  c.forward.residual = static_cast<std::int8_t*>(c.forward.out.data) + 1;
                  c.backward.residual = c.forward.residual;
                },
                kUnsupported, "the residual lies at 0x"},
        Refusal{"misaligned_lse",
                [](Call& c) {
                  c.forward.lse =
                      reinterpret_cast<float*>(reinterpret_cast<std::uintptr_t>(c.forward.lse) + 2);
                  c.backward.lse = c.forward.lse;
                },
                kUnsupported, "lse lies at 0x"},
        Refusal{"misaligned_dlse",
                [](Call& c) {
                  c.backward.dlse =
                      reinterpret_cast<const float*>(reinterpret_cast<std::uintptr_t>(c.backward.lse) + 1);
                },
                kUnsupported, "dlse lies at 0x", false},
        Refusal{"row_stride", [](Call& c) { c.forward.q.stride_s = c.backward.q.stride_s = 68; },
                kUnsupported, "q has a row stride of 68 elements, wanted a multiple of 8"},
        Refusal{"head_stride", [](Call& c) { c.forward.k.stride_h = c.backward.k.stride_h = 516; },
                kUnsupported, "k has a head stride of 516 elements"},
        Refusal{"negative_stride", [](Call& c) { c.forward.v.stride_b = c.backward.v.stride_b = -1024; },
                kUnsupported, "v has a batch stride of -1024 elements"},
        Refusal{"enormous_stride",
                [](Call& c) {
                  c.forward.q.stride_b = c.backward.q.stride_b = std::numeric_limits<std::int64_t>::max() - 7;
                },
                kUnsupported, "q has a batch stride of 9223372036854775800 elements"},
        Refusal{"broadcast_out", [](Call& c) { c.forward.out.stride_h = 0; }, kInvalid,
                "out has a head stride of 0 elements, wanted at least 64", true, false},
        Refusal{"broadcast_dk", [](Call& c) { c.backward.dk.stride_b = 0; }, kInvalid,
                "dk has a batch stride of 0 elements, wanted at least 64", false},
        Refusal{"overlapping_rows_of_dq", [](Call& c) { c.backward.dq.stride_s = 32; }, kInvalid,
                "dq has a row stride of 32 elements, wanted at least 64", false},
        Refusal{"misaligned_sinks",
                [](Call& c) {
                  c.forward.sinks = static_cast<const std::byte*>(c.forward.q.data) + 2;
                  c.backward.sinks = c.forward.sinks;
                },
                kUnsupported, "sinks lies at 0x"},
        Refusal{"misaligned_dsinks",
                [](Call& c) {
                  c.backward.dsinks =
                      reinterpret_cast<float*>(reinterpret_cast<std::uintptr_t>(c.backward.dsinks) + 2);
                },
                kUnsupported, "dsinks lies at 0x", false}),
    [](const auto& refusal) { return refusal.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Workspace, RefusedByCuda,
    testing::Values(Refusal{"null",
                            [](Call& c) {
                              c.backward.workspace = nullptr;
                              c.backward.workspace_bytes = 0;
                            },
                            kInvalid, "a workspace of 0 bytes (null), wanted ", false},
                    Refusal{"null_with_bytes", [](Call& c) { c.backward.workspace = nullptr; }, kInvalid,
                            "a workspace of 4194304 bytes (null), wanted ", false},
                    Refusal{"too_small",
                            [](Call& c) {
                              c.backward.workspace_bytes =
                                  sa::cuda::backward_workspace_bytes(c.backward.problem) - 1;
                            },
                            kInvalid, "a workspace of ", false},
                    Refusal{"too_small_with_documents",
                            [](Call& c) {
                              sa::Problem& p = c.forward.problem;
                              p.b = 1;
                              p.documents = 1;
                              p.cu_seqlens_q = p.cu_seqlens_k = kOffsets;
                              c.forward.workspace_bytes = sa::cuda::forward_workspace_bytes(p) - 1;
                            },
                            kInvalid, "a workspace of ", true, false},
                    Refusal{"misaligned",
                            [](Call& c) {
                              c.backward.workspace = static_cast<std::byte*>(c.backward.workspace) + 8;
                            },
                            kUnsupported, "the workspace lies at 0x", false}),
    [](const auto& refusal) { return refusal.param.name; });

TEST(CudaSupports, WhatItsHeaderSays) {
  for (const sa::DType dtype : {sa::DType::kBf16, sa::DType::kFp16}) {
    for (const std::int64_t d : {64, 128}) {
      const sa::Status status =
          sa::cuda::supports({.dtype = dtype, .b = 2, .hq = 70, .hkv = 7, .sq = 1, .sk = 9, .d = d});
      EXPECT_TRUE(status.ok()) << status.message;
    }
  }
  EXPECT_EQ(sa::cuda::supports({.dtype = sa::DType::kFp32}).code, kUnsupported);
  EXPECT_EQ(sa::cuda::supports({.d = 256}).code, kUnsupported);
  EXPECT_EQ(sa::cuda::supports({.hq = 3, .hkv = 2}).code, kInvalid);
}

// What is wrong with a call is said before what is wrong with the machine; a good call then says the latter.
TEST(CudaWithoutGpu, AGoodCallSaysThatThereIsNone) {
  if (sa::cuda::available().ok()) GTEST_SKIP() << "there is a GPU";
  alignas(16) std::byte memory[4096] = {};
  sa::ForwardParams f;
  f.problem = {.sq = 1, .sk = 1};
  f.q = f.k = f.v = {memory, 64, 64, 64};
  f.out = {memory + 2048, 64, 64, 64};
  const sa::Status status = sa::cuda::forward(f, nullptr);

  EXPECT_FALSE(status.ok());
  EXPECT_STREQ(status.message, sa::cuda::available().message);
  EXPECT_TRUE(
      std::all_of(std::begin(memory), std::end(memory), [](std::byte b) { return b == std::byte{0}; }));
}

}  // namespace
}  // namespace sinkscope::testing_kernel
