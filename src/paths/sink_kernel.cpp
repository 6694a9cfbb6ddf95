// SPDX-License-Identifier: Apache-2.0
#include "src/paths/sink_kernel.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <stdexcept>

#include "fmt/format.h"

#include "kernels/sink_attention.h"
#include "src/core/error.hpp"
#include "src/paths/sink_kernel_cuda.hpp"
#include "src/paths/sink_kernel_run.hpp"

namespace sinkscope {
namespace {

// Memory of the kernel's with a band of NaN bits on both sides: a write outside is found.
class GuardedBuffer {
 public:
  GuardedBuffer(std::string name, std::size_t bytes)
      : name_(std::move(name)), bytes_(bytes + 2 * kBand, kPattern) {}

  void* data() { return bytes_.data() + kBand; }
  std::size_t size() const { return bytes_.size() - 2 * kBand; }

  void copy_to(std::byte* to) const { std::copy(bytes_.begin() + kBand, bytes_.end() - kBand, to); }

  void check() const {
    const auto untouched = [](std::byte b) { return b == kPattern; };
    if (!std::all_of(bytes_.begin(), bytes_.begin() + kBand, untouched) ||
        !std::all_of(bytes_.end() - kBand, bytes_.end(), untouched)) {
      throw std::runtime_error(fmt::format("the kernel wrote outside {}", name_));
    }
  }

 private:
  static constexpr std::ptrdiff_t kBand = 1024;
  static constexpr std::byte kPattern{0xFF};
  std::string name_;
  std::vector<std::byte> bytes_;
};

struct IsaName {
  const char* name;
  sa::cpu::Isa isa;
};

// SINKSCOPE_ISA=avx2 (avx512, amx) forces an instruction set, to judge each one of them on one machine.
IsaName chosen_isa() {
  constexpr std::array kNames = {IsaName{"avx2", sa::cpu::Isa::kAvx2},
                                 IsaName{"avx512", sa::cpu::Isa::kAvx512},
                                 IsaName{"amx", sa::cpu::Isa::kAmx}};
  const char* wanted = std::getenv("SINKSCOPE_ISA");
  if (wanted == nullptr || *wanted == '\0') return {nullptr, sa::cpu::Isa::kAuto};
  for (const IsaName& known : kNames) {
    if (std::string_view(wanted) == known.name) return known;
  }
  throw InputError(fmt::format("SINKSCOPE_ISA is '{}', wanted avx2, avx512 or amx", wanted));
}

struct CpuBackend {
  using Buffer = GuardedBuffer;
  sa::cpu::Options options;

  static const void* input(const std::byte* data, std::size_t) { return data; }
  std::size_t forward_workspace_bytes(const sa::Problem& p) const {
    return sa::cpu::forward_workspace_bytes(p, options);
  }
  std::size_t backward_workspace_bytes(const sa::Problem& p) const {
    return sa::cpu::backward_workspace_bytes(p, options);
  }
  sa::Status forward(const sa::ForwardParams& f) const { return sa::cpu::forward(f, options); }
  sa::Status backward(const sa::BackwardParams& w) const { return sa::cpu::backward(w, options); }
  static void finish() {}
};

PathRun run_on_cpu(const Case& c, const PathOptions& options) {
  const IsaName chosen = chosen_isa();
  CpuBackend backend{{options.threads, chosen.isa}};
  const char* isa =
      chosen.name != nullptr ? chosen.name : sa::cpu::isa_name(kernel_dtype(c.problem.shape.dtype));
  return {run_kernel(c, backend), fmt::format("cpu {}", isa)};
}

}  // namespace

std::string sink_kernel_backends() {
  using sa::cpu::isa_name;
  const std::optional<std::string> device = cuda_kernel_device();
  return fmt::format("{}bf16 {}, fp16 {}, fp32 {}", device ? fmt::format("cuda {}, cpu ", *device) : "",
                     isa_name(sa::DType::kBf16), isa_name(sa::DType::kFp16), isa_name(sa::DType::kFp32));
}

Path sink_kernel_path() {
  Path path;
  path.name = "sink_kernel";
  path.summary = "the production kernel of this project";
  path.backends = "cpu (AVX2, AVX-512 or AMX)";
  if (cuda_kernel_built()) path.backends = "cuda (sm_90a), else " + path.backends;
  path.unsupported = [](const Case& c) {
    return wanted_device() == WantedDevice::kCuda ? cuda_kernel_unsupported(c) : std::nullopt;
  };
  path.run = [](const Case& c, const PathOptions& options) {
    const WantedDevice wanted = wanted_device();
    const bool on_gpu =
        !options.cpu_only && (wanted == WantedDevice::kCuda ||
                              (wanted == WantedDevice::kEither && !cuda_kernel_unsupported(c).has_value()));
    return on_gpu ? run_cuda_kernel(c) : run_on_cpu(c, options);
  };
  if (cuda_kernel_device()) path.prepare = prepare_cuda_kernel;
  return path;
}

}  // namespace sinkscope
