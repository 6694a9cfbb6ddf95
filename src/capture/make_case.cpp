// SPDX-License-Identifier: Apache-2.0
#include "src/capture/capture.hpp"

namespace sinkscope {

Case make_case(const Problem& problem, std::string name, int threads) {
  if (problem.capture.empty()) return generate_case(problem, std::move(name), threads);
  Case c = load_capture(problem);
  if (!name.empty()) c.name = std::move(name);
  return c;
}

}  // namespace sinkscope
