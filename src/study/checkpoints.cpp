// SPDX-License-Identifier: Apache-2.0
#include "src/study/checkpoints.hpp"

#include <charconv>
#include <filesystem>

#include "fmt/format.h"

#include "src/core/error.hpp"
#include "src/core/file.hpp"

namespace sinkscope {
namespace {

namespace fs = std::filesystem;

// The step of "RUN.40"; none of another run's file, or one that was not finished.
std::optional<std::int64_t> step_of(const std::string& file, const std::string& run) {
  if (!file.starts_with(run + ".")) return std::nullopt;
  std::int64_t step = 0;
  const char* const end = file.data() + file.size();
  const auto [stopped, error] = std::from_chars(file.data() + run.size() + 1, end, step);
  return error == std::errc() && stopped == end ? std::optional(step) : std::nullopt;
}

}  // namespace

std::optional<Checkpoints::Found> Checkpoints::newest(const std::string& run) const {
  std::optional<Found> found;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder_, none)) {
    const std::optional<std::int64_t> step = step_of(entry.path().filename().string(), run);
    if (step && (!found || *step > found->step)) found = Found{*step, entry.path().string()};
  }
  return found;
}

void Checkpoints::save(const std::string& run, std::int64_t step, const lab::Lab& lab) const {
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) throw EnvironmentError(fmt::format("{} cannot be made: {}", folder_, error.message()));
  const std::optional<Found> before = newest(run);
  const std::string path = fmt::format("{}/{}.{}", folder_, run, step);
  const std::string unfinished = path + ".unfinished";
  fs::remove(unfinished, error);
  lab.save(unfinished);
  put_in_place(unfinished, path);
  if (before && before->step != step) fs::remove(before->path, error);
}

void Checkpoints::remove_all() const {
  std::error_code error;
  fs::remove_all(folder_, error);
}

}  // namespace sinkscope
