// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <map>

#include "src/bench/bench.hpp"
#include "src/paths/table.hpp"

namespace sinkscope {
namespace {

constexpr std::array kContestants = {"sink_kernel", "flash_attention_2", "eager"};

}  // namespace

// Paths are timed as `compare` runs them: copies between their world and ours are part of each one's time.
nlohmann::json bench_kernel_on_cpu(const BenchOptions& options, const BenchProgress& progress) {
  nlohmann::json result;
  for (const char* dtype : {"fp32", "bf16"}) {
    const std::string line = std::string("b1 hq8 hkv8 sq4096 sk4096 d64 ") + dtype + " causal seed=1";
    const Case c = generate_case(parse_problem(line), "bench", options.threads);
    std::map<std::string, std::vector<double>> seconds;
    std::map<std::string, std::string> backends;
    for (int round = -1; round < options.rounds; ++round) {  // the first round warms up
      for (const char* name : kContestants) {
        // eager takes seconds where the others take a tenth of one: three rounds of it tell enough.
        if (std::string_view(name) == "eager" && (round < 0 || round > 2)) continue;
        const Path path = find_path(name, c);
        if (const auto reason = path.unsupported(c)) {
          backends[name] = *reason;
          continue;
        }
        if (progress) progress(name, (round + 1.0) / (options.rounds + 1));
        const double elapsed = seconds_of([&] {
          backends[name] = path.run(c, {options.threads, true}).backend;
        });
        if (round >= 0) seconds[name].push_back(elapsed);
      }
    }
    nlohmann::json& entry = result[dtype];
    entry["problem"] = line;
    for (const char* name : kContestants) {
      entry["backend"][name] = backends[name];
      entry["seconds"][name] = seconds[name].empty() ? nlohmann::json() : spread_of(seconds[name]);
    }
    const auto speedup = [&](const char* name) -> nlohmann::json {
      if (seconds[name].empty()) return nullptr;
      return entry["seconds"][name]["median"].get<double>() /
             entry["seconds"]["sink_kernel"]["median"].get<double>();
    };
    entry["speedup_over_eager"] = speedup("eager");
    entry["speedup_over_aten_flash"] = speedup("flash_attention_2");
  }
  result["machine"] = machine_json(options.threads);
  return result;
}

}  // namespace sinkscope
