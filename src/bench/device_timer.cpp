// SPDX-License-Identifier: Apache-2.0
#include "src/bench/device_timer.hpp"

#ifdef SINKSCOPE_WITH_CUDA

#include <algorithm>
#include <chrono>
#include <cuda_runtime_api.h>
#include <stdexcept>
#include <thread>

#include "fmt/format.h"

namespace sinkscope {
namespace {

constexpr std::chrono::milliseconds kLongestHold(200);
constexpr std::size_t kLeastFlush = std::size_t{1} << 29;

void expect(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(fmt::format("{}: {}", what, cudaGetErrorString(error)));
}

cudaEvent_t event(void* pointer) {
  return static_cast<cudaEvent_t>(pointer);
}

void* allocate(std::size_t bytes) {
  void* memory = nullptr;
  expect(cudaMalloc(&memory, bytes), "cudaMalloc");
  return memory;
}

void* make_event() {
  cudaEvent_t made = nullptr;
  expect(cudaEventCreate(&made), "cudaEventCreate");
  return made;
}

}  // namespace

DeviceTimer::DeviceTimer() {
  int device = 0;
  expect(cudaGetDevice(&device), "cudaGetDevice");
  expect(cudaDeviceGetAttribute(&l2_bytes_, cudaDevAttrL2CacheSize, device), "cudaDeviceGetAttribute");
  flush_bytes_ = std::max(kLeastFlush, 2 * static_cast<std::size_t>(l2_bytes_));
  flush_ = allocate(flush_bytes_);
  copy_from_ = allocate(kCopyBytes);
  copy_to_ = allocate(kCopyBytes);
  expect(cudaMemset(copy_from_, 0x5A, kCopyBytes), "cudaMemset");
  start_ = make_event();
  stop_ = make_event();
}

DeviceTimer::~DeviceTimer() {
  cudaDeviceSynchronize();
  for (void* memory : {flush_, copy_from_, copy_to_}) cudaFree(memory);
  for (void* made : {start_, stop_}) cudaEventDestroy(event(made));
}

void DeviceTimer::wait_for_release(void* held) {
  auto& stream = *static_cast<HeldStream*>(held);
  const auto deadline = std::chrono::steady_clock::now() + kLongestHold;
  while (!stream.released.load(std::memory_order_acquire)) {
    if (std::chrono::steady_clock::now() >
        deadline) {  // a host that waits for the device would wait for ever
      stream.gave_up = true;
      return;
    }
    std::this_thread::yield();
  }
}

double DeviceTimer::seconds_of(const std::function<void()>& enqueue) {
  struct Release {
    HeldStream& held;
    ~Release() { held.released.store(true, std::memory_order_release); }
  };
  held_.released = false;
  held_.gave_up = false;
  {
    const Release release{held_};  // also where something throws
    expect(cudaLaunchHostFunc(nullptr, wait_for_release, &held_), "cudaLaunchHostFunc");
    flush_value_ ^= 0xFF;
    expect(cudaMemsetAsync(flush_, flush_value_, flush_bytes_, nullptr), "cudaMemsetAsync");
    expect(cudaEventRecord(event(start_), nullptr), "cudaEventRecord");
    enqueue();
    expect(cudaEventRecord(event(stop_), nullptr), "cudaEventRecord");
  }
  expect(cudaEventSynchronize(event(stop_)), "cudaEventSynchronize");
  if (held_.gave_up) ++late_launches_;
  float milliseconds = 0;
  expect(cudaEventElapsedTime(&milliseconds, event(start_), event(stop_)), "cudaEventElapsedTime");
  return milliseconds / 1e3;
}

void DeviceTimer::warm_up(const std::function<void()>& enqueue) {
  enqueue();
  expect(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

void DeviceTimer::copy() {
  expect(cudaMemcpyAsync(copy_to_, copy_from_, kCopyBytes, cudaMemcpyDeviceToDevice, nullptr),
         "cudaMemcpyAsync");
}

}  // namespace sinkscope

#else

#include <stdexcept>

namespace sinkscope {

DeviceTimer::DeviceTimer() {
  throw std::logic_error("DeviceTimer in a build without CUDA");
}

DeviceTimer::~DeviceTimer() = default;

double DeviceTimer::seconds_of(const std::function<void()>&) {
  return 0;
}

void DeviceTimer::warm_up(const std::function<void()>&) {}

void DeviceTimer::copy() {}

}  // namespace sinkscope

#endif
