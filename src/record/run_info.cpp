// SPDX-License-Identifier: Apache-2.0
#include "src/record/run_info.hpp"

#include <ctime>
#include <filesystem>
#include <fstream>
#include <thread>

#include "fmt/format.h"

#include "sinkscope_version.hpp"
#include "src/record/h5.hpp"
#include "src/torch/module.hpp"

namespace sinkscope {
namespace {

std::string cpu_model() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

// The first line of a file of the NVIDIA driver, or "none".
std::string nvidia_fact(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key)) return line.substr(line.find_first_not_of(" \t:", key.size()));
  }
  return "none";
}

std::string gpu_model() {
  std::error_code error;
  for (const auto& gpu : std::filesystem::directory_iterator("/proc/driver/nvidia/gpus", error)) {
    return nvidia_fact((gpu.path() / "information").string(), "Model");
  }
  return "none";
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

}  // namespace

RunInfo collect_run_info(const std::string& command_line, int threads) {
  const unsigned cores = std::thread::hardware_concurrency();
  const std::string torch = torch_module_loaded() ? torch_module().version : "";
  return {{"version", kVersion},
          {"commit", kCommit},
          {"utc", utc_now()},
          {"command_line", command_line},
          {"cpu", cpu_model()},
          {"cores", std::to_string(cores)},
          {"threads", std::to_string(threads > 0 ? threads : static_cast<int>(cores))},
          {"gpu", gpu_model()},
          {"driver", nvidia_fact("/proc/driver/nvidia/version", "NVRM version")},
          {"cuda", kCudaToolkit},
          {"torch", torch.empty() ? "none" : torch},
          {"hdf5", h5::version()}};
}

}  // namespace sinkscope
