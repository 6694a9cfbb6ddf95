// SPDX-License-Identifier: Apache-2.0
#include "src/inputs/path.hpp"

#include <cstdlib>

#include "fmt/format.h"

#include "src/core/error.hpp"

namespace sinkscope {

WantedDevice wanted_device() {
  const char* wanted = std::getenv("SINKSCOPE_DEVICE");
  if (wanted == nullptr || *wanted == '\0') return WantedDevice::kEither;
  if (std::string_view(wanted) == "cpu") return WantedDevice::kCpu;
  if (std::string_view(wanted) == "cuda") return WantedDevice::kCuda;
  throw InputError(fmt::format("SINKSCOPE_DEVICE is '{}', wanted cpu or cuda", wanted));
}

}  // namespace sinkscope
