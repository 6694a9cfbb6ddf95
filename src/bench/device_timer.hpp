// SPDX-License-Identifier: Apache-2.0
// Times what is enqueued on the GPU's legacy default stream, by the device's own clock.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>

namespace sinkscope {

class DeviceTimer {
 public:
  // Takes the current device; throws std::runtime_error where CUDA does.
  DeviceTimer();
  ~DeviceTimer();
  DeviceTimer(const DeviceTimer&) = delete;
  DeviceTimer& operator=(const DeviceTimer&) = delete;

  // Seconds on the device of what `enqueue` puts on the stream, after a flush of the L2. The stream is held back
  // until everything is enqueued, so that no launch, however slow on the host, is waited for: the same for all.
  double seconds_of(const std::function<void()>& enqueue);

  // Runs it once and waits, for the first time that allocates and loads.
  void warm_up(const std::function<void()>& enqueue);

  // Enqueues one copy of kCopyBytes within the device's memory, which reads and writes each byte once.
  void copy();
  static constexpr std::size_t kCopyBytes = std::size_t{1} << 31;

  int l2_bytes() const { return l2_bytes_; }
  // Times that the stream could not be held back long enough (the host took over kLongestHold): their
  // measurement may contain the host's time.
  int late_launches() const { return late_launches_; }

 private:
  struct HeldStream {
    std::atomic<bool> released = false;
    std::atomic<bool> gave_up = false;
  };
  static void wait_for_release(void* held);

  HeldStream held_;
  int l2_bytes_ = 0;
  int late_launches_ = 0;
  std::size_t flush_bytes_ = 0;
  int flush_value_ = 0;
  void* flush_ = nullptr;  // as long as the timer lives; over twice the L2
  void* copy_from_ = nullptr;
  void* copy_to_ = nullptr;
  void* start_ = nullptr;  // cudaEvent_t
  void* stop_ = nullptr;
};

}  // namespace sinkscope
