// SPDX-License-Identifier: Apache-2.0
// How the CUDA backend launches: on the caller's stream alone, without waiting and without allocating, into a graph,
// and to the same bits whatever the GPU's number of multiprocessors.
#include <atomic>
#include <chrono>
#include <cuda_runtime_api.h>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "tests/kernels/cuda/gpu_place.hpp"
#include "tests/kernels/run_kernel.hpp"

// The linker sends the kernel's question for the number of multiprocessors through here (tests/CMakeLists.txt).
// NOLINTBEGIN(bugprone-reserved-identifier)
static std::atomic<int> pretended_processors = 0;
static std::atomic<int> questions = 0;
extern "C" cudaError_t __real_cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
extern "C" cudaError_t __wrap_cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const cudaError_t error = __real_cudaDeviceGetAttribute(value, attribute, device);
  if (attribute == cudaDevAttrMultiProcessorCount && pretended_processors > 0) {
    *value = pretended_processors;
    ++questions;
  }
  return error;
}
// NOLINTEND(bugprone-reserved-identifier)

namespace sinkscope::testing_kernel {
namespace {

using reference::naive::Data;
using Clock = std::chrono::steady_clock;

class Stream {
 public:
  Stream() { succeed(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"); }
  Stream(Stream&&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }
  operator cudaStream_t() const { return stream_; }  // NOLINT(google-explicit-constructor)

 private:
  cudaStream_t stream_ = nullptr;
};

// Keeps a stream from going on until it is opened, or destroyed.
class Gate {
 public:
  explicit Gate(cudaStream_t stream) : stream_(stream) {
    const auto wait = [](void* open) {
      while (!*static_cast<std::atomic<bool>*>(open))
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    };
    succeed(cudaLaunchHostFunc(stream, wait, &open_), "cudaLaunchHostFunc");
  }
  Gate(Gate&&) = delete;
  ~Gate() {
    open();
    cudaStreamSynchronize(stream_);  // the waiting function reads this object
  }
  void open() { open_ = true; }

 private:
  cudaStream_t stream_;
  std::atomic<bool> open_ = false;
};

// Whether the stream comes to its end within ten seconds.
bool finishes(cudaStream_t stream) {
  const auto give_up = Clock::now() + std::chrono::seconds(10);
  while (cudaStreamQuery(stream) == cudaErrorNotReady) {
    if (Clock::now() > give_up) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

struct Shape {
  std::string name;
  reference::Problem problem;
  bool residual;
};

// Every kind of schedule: batches, windows, documents sorted on the device, split groups of heads, few rows.
const std::vector<Shape>& shapes() {
  static const std::vector<Shape> kShapes = {
      {"causal_d64", {.b = 2, .hq = 8, .hkv = 2, .sq = 700, .sk = 700, .d = 64}, true},
      {"window_d64", {.b = 2, .hq = 8, .hkv = 2, .sq = 900, .sk = 900, .d = 64, .window = 128}, false},
      {"documents_d64",
       {.hq = 8,
        .hkv = 2,
        .sq = 900,
        .sk = 900,
        .d = 64,
        .cu_q = {0, 100, 100, 101, 640, 900},
        .cu_k = {0, 100, 100, 101, 640, 900}},
       true},
      {"window_of_documents_d128",
       {.hq = 4,
        .hkv = 1,
        .sq = 600,
        .sk = 800,
        .d = 128,
        .window = 100,
        .cu_q = {0, 50, 300, 600},
        .cu_k = {0, 150, 400, 800}},
       false},
      {"full_d128", {.b = 2, .hq = 4, .hkv = 4, .sq = 300, .sk = 500, .d = 128, .causal = false}, false},
      {"one_key_head_d64", {.hq = 24, .hkv = 1, .sq = 257, .sk = 1500, .d = 64}, false}};
  return kShapes;
}

Data data_of(const Shape& shape, DType dtype) {
  reference::Problem problem = shape.problem;
  problem.scale = problem.d == 64 ? 0.125 : 0.088388346;
  Data data = reference::naive::random_data(problem, 23);
  round_inputs(data, dtype);
  return data;
}

RunOptions options_of(const Shape& shape) {
  RunOptions options;
  options.residual = shape.residual;
  return options;
}

class CudaLaunch : public OnGpu {
 protected:
  using Call = KernelCall<GpuPlace>;

  static void launch(Call& call, cudaStream_t stream) {
    const sa::Status forward = sa::cuda::forward(call.forward, stream);
    ASSERT_TRUE(forward.ok()) << forward.message;
    const sa::Status backward = sa::cuda::backward(call.backward, stream);
    ASSERT_TRUE(backward.ok()) << backward.message;
  }

  static void for_every_shape(const std::function<void(const Shape&, const Data&, DType)>& body) {
    static std::map<std::pair<std::string, DType>, Data> drawn;
    for (const Shape& shape : shapes()) {
      for (const DType dtype : {DType::kBf16, DType::kFp16}) {
        SCOPED_TRACE(shape.name + " " + std::string(name_of(dtype)));
        const auto [of, is_new] = drawn.try_emplace({shape.name, dtype});
        if (is_new) of->second = data_of(shape, dtype);
        body(shape, of->second, dtype);
      }
    }
  }
};

// The first test, so that the kernels' first launch ever is one into a graph.
TEST_F(CudaLaunch, ReplayingAGraphGivesTheBitsOfALaunch) {
  for_every_shape([](const Shape& shape, const Data& data, DType dtype) {
    const Stream stream;
    Call captured(data, dtype, options_of(shape), GpuPlace{});
    const std::vector<std::byte> untouched = captured.result().bits;
    succeed(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
    launch(captured, stream);
    cudaGraph_t graph = nullptr;
    succeed(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    EXPECT_EQ(captured.result().bits, untouched) << "a capture ran something";
    cudaGraphExec_t replay = nullptr;
    succeed(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");

    const std::vector<std::byte> direct = bits_of(run_kernel_at(GpuPlace{}, data, dtype, options_of(shape)));
    for (int i = 0; i < 3; ++i) {
      succeed(cudaGraphLaunch(replay, stream), "cudaGraphLaunch");
      succeed(cudaStreamSynchronize(stream), "the graph");
      EXPECT_EQ(bits_of(captured.result()), direct) << "replay " << i;
    }
    cudaGraphExecDestroy(replay);
    cudaGraphDestroy(graph);
  });
}

TEST_F(CudaLaunch, RunsWhileTheDefaultStreamIsHeldUp) {
  for_every_shape([](const Shape& shape, const Data& data, DType dtype) {
    const std::vector<std::byte> direct = bits_of(run_kernel_at(GpuPlace{}, data, dtype, options_of(shape)));
    const Stream stream;
    Call call(data, dtype, options_of(shape), GpuPlace{});
    {
      const Gate gate(cudaStreamLegacy);
      launch(call, stream);
      ASSERT_TRUE(finishes(stream)) << "something went to another stream than the caller's, or waits for one";
    }
    EXPECT_EQ(bits_of(call.result()), direct);
  });
}

TEST_F(CudaLaunch, NeitherWaitsForTheCallersStreamNorRunsAheadOfIt) {
  for_every_shape([](const Shape& shape, const Data& data, DType dtype) {
    const std::vector<std::byte> direct = bits_of(run_kernel_at(GpuPlace{}, data, dtype, options_of(shape)));
    const Stream stream;
    Call call(data, dtype, options_of(shape), GpuPlace{});
    const std::vector<std::byte> untouched = call.result().bits;
    Gate gate(stream);
    launch(call, stream);  // comes back although the stream is held up
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_EQ(call.result().bits, untouched) << "a kernel did not wait for its turn";
    gate.open();
    succeed(cudaStreamSynchronize(stream), "the kernels");
    EXPECT_EQ(bits_of(call.result()), direct);
  });
}

TEST_F(CudaLaunch, AllocatesNothing) {
  for_every_shape([](const Shape& shape, const Data& data, DType dtype) {
    const Stream stream;
    Call call(data, dtype, options_of(shape), GpuPlace{});
    launch(call, stream);  // the first launch of a kernel loads it
    succeed(cudaStreamSynchronize(stream), "the kernels");
    std::size_t free_before = 0, free_after = 0, total = 0;
    succeed(cudaMemGetInfo(&free_before, &total), "cudaMemGetInfo");
    for (int i = 0; i < 20; ++i) launch(call, stream);
    succeed(cudaMemGetInfo(&free_after, &total), "cudaMemGetInfo");
    succeed(cudaStreamSynchronize(stream), "the kernels");

    EXPECT_EQ(free_after, free_before);
  });
}

TEST_F(CudaLaunch, TheNumberOfMultiprocessorsDoesNotChangeABit) {
  questions = 0;
  for_every_shape([](const Shape& shape, const Data& data, DType dtype) {
    const std::vector<std::byte> direct = bits_of(run_kernel_at(GpuPlace{}, data, dtype, options_of(shape)));
    for (const int processors : {1, 3, 66, 108, 1000}) {
      pretended_processors = processors;
      const KernelRun run = run_kernel_at(GpuPlace{}, data, dtype, options_of(shape));
      pretended_processors = 0;
      EXPECT_EQ(bits_of(run), direct) << processors << " multiprocessors";
    }
  });
  EXPECT_GT(questions, 0) << "the kernel no longer asks through cudaDeviceGetAttribute";
}

// Each thread makes its first CUDA call here.
TEST_F(CudaLaunch, ThreadsWithStreamsOfTheirOwnDoNotDisturbEachOther) {
  const Shape& shape = shapes()[2];
  const Data data = data_of(shape, DType::kBf16);
  const std::vector<std::byte> direct =
      bits_of(run_kernel_at(GpuPlace{}, data, DType::kBf16, options_of(shape)));
  constexpr int kStreams = 8;
  std::vector<Stream> streams(kStreams);
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < kStreams; ++i)
    calls.push_back(std::make_unique<Call>(data, DType::kBf16, options_of(shape), GpuPlace{}));
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < calls.size(); ++i) {
      threads.emplace_back([&, i] {
        for (int round = 0; round < 5; ++round) launch(*calls[i], streams[i]);
      });
    }
  }
  succeed(cudaDeviceSynchronize(), "the kernels");
  for (const auto& call : calls) EXPECT_EQ(bits_of(call->result()), direct);
}

}  // namespace
}  // namespace sinkscope::testing_kernel
