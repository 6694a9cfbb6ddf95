// SPDX-License-Identifier: Apache-2.0
// parity_program MODEL TOKENS ATTENTION OUT EXPERTS: what tests/lab/parity_test.py compares. The sizes are those of its model.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "src/lab/lab.hpp"

int main(int argc, char** argv) {
  using namespace sinkscope::lab;
  if (argc != 6) return 2;
  if (!why_no_lab().empty()) {
    std::fprintf(stderr, "%s\n", why_no_lab().c_str());
    return 77;
  }
  const std::int64_t experts = std::atoll(argv[5]);
  LabConfig config;
  config.sorting = true;
  config.format = sinkscope::DType::kFp32;
  config.model = {.layers = 3,
                  .width = 48,
                  .hq = 4,
                  .hkv = 2,
                  .d = 16,
                  .window = 5,
                  .intermediate = 40,
                  .experts = experts,
                  .experts_per_token = std::min<std::int64_t>(experts, 2),
                  .vocabulary = 61,
                  .rope_theta = 20000};
  const auto lab = open_lab(config);
  lab->import_model(argv[1]);
  lab->write_logits_and_gradients(argv[2], argv[3], argv[4]);
  return 0;
}
