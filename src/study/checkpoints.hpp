// SPDX-License-Identifier: Apache-2.0
// The states that runs which were interrupted go on from: one file per run, its newest.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "src/lab/lab.hpp"

namespace sinkscope {

class Checkpoints {
 public:
  explicit Checkpoints(std::string folder) : folder_(std::move(folder)) {}

  struct Found {
    std::int64_t step;  // steps of the run that were taken
    std::string path;
  };
  std::optional<Found> newest(const std::string& run) const;
  // Complete, or the one before is kept. Throws EnvironmentError.
  void save(const std::string& run, std::int64_t step, const lab::Lab& lab) const;
  void remove_all() const;

 private:
  std::string folder_;
};

}  // namespace sinkscope
