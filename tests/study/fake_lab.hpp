// SPDX-License-Identifier: Apache-2.0
// A lab without a model: its gradients are what the test says, and it counts what is asked of it.
#pragma once

#include <cmath>
#include <fstream>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "src/capture/capture.hpp"
#include "src/lab/lab.hpp"
#include "src/paths/table.hpp"

namespace sinkscope {

// What all labs of a test share.
struct FakeWorld {
  // |g|^2 of one block at a step of the whole training under exact attention, and what a path adds to q of layer 1 head 0.
  std::function<double(std::int64_t step)> exact2 = [](std::int64_t) { return 1.0; };
  std::function<double(const std::string& path, std::int64_t step)> extra2 = [](const std::string&,
                                                                                std::int64_t) { return 0.0; };
  std::int64_t dies_after = -1;  // gradients: then it throws, as a machine that goes down
  std::function<void(const std::string& path)> refuses;  // throws where the path cannot be replayed
  std::vector<std::string> replayed;
  int opened = 0, saved = 0;
};

inline constexpr std::int64_t kFakeLayers = 2, kFakeHq = 2, kFakeHkv = 1;

inline std::vector<lab::Block> fake_blocks() {
  std::vector<lab::Block> blocks = {{-1, lab::BlockKind::kOther, -1}};
  for (std::int64_t layer = 0; layer < kFakeLayers; ++layer) {
    for (std::int64_t head = 0; head < kFakeHq; ++head) {
      blocks.push_back({layer, lab::BlockKind::kQ, head});
      blocks.push_back({layer, lab::BlockKind::kSink, head});
    }
    blocks.push_back({layer, lab::BlockKind::kK, 0});
    blocks.push_back({layer, lab::BlockKind::kV, 0});
    blocks.push_back({layer, lab::BlockKind::kOther, -1});
  }
  return blocks;
}

class FakeLab : public lab::Lab {
 public:
  explicit FakeLab(FakeWorld& world) : world_(world) { ++world.opened; }

  std::int64_t step() const override { return step_; }
  std::int64_t parameters() const override { return 1; }

  lab::StepResult gradient(const lab::StepSettings& settings) override {
    if (world_.dies_after-- == 0) throw std::runtime_error("the machine went down");
    lab::StepResult result;
    result.step = step_;
    result.loss = 1.0 / static_cast<double>(step_ + 1);
    double total = 0;
    for (const lab::Block& block : fake_blocks()) {
      result.blocks.push_back({block, path2(settings.training_path, block)});
      total += result.blocks.back().squared;
    }
    result.gradient_norm = std::sqrt(total);
    if (settings.observe) result.heads.resize(kFakeLayers * kFakeHq, {0.5, 2, 1, 3});
    result.rollouts.reward = 1.5;
    return result;
  }
  void apply(const lab::StepSettings&) override { ++step_; }
  void wait() override {}

  std::vector<lab::ReplayedPath> replay(const std::vector<std::string>& paths,
                                        const lab::StepSettings&) override {
    std::vector<lab::ReplayedPath> replayed;
    for (const std::string& path : paths) {
      world_.replayed.push_back(path);
      if (world_.refuses) world_.refuses(path);
      lab::ReplayedPath of = {path, 1, 1, {}};
      for (const lab::Block& block : fake_blocks()) {
        const double exact2 = world_.exact2(step_), with2 = path2(path, block);
        of.blocks.push_back({block, with2, exact2, with2 - exact2});
      }
      replayed.push_back(std::move(of));
    }
    return replayed;
  }

  void capture_batch(const std::string& path) override { std::ofstream(path) << step_; }
  // An attention call whose sinks were left out.
  void capture_attention(std::int64_t, const std::string& path, const lab::StepSettings& settings) override {
    Case c = generate_case(parse_problem("b1 hq2 hkv1 sq32 sk32 d32 bf16 causal seed=4"), "attention");
    c.recorded[settings.training_path] = outputs_without_sink(c);
    save_capture(path, c, false);
  }

  void save(const std::string& path) const override {
    ++world_.saved;
    std::ofstream(path) << step_;
  }
  void load(const std::string& path) override { std::ifstream(path) >> step_; }
  void export_model(const std::string&) const override {}
  void import_model(const std::string&) override {}
  void write_logits_and_gradients(const std::string&, const std::string&, const std::string&) override {}

 private:
  static Outputs outputs_without_sink(const Case& c) {
    return find_path("fault:sink_ignored:sink_kernel", c).run(c, {}).outputs;
  }

  double path2(const std::string& path, const lab::Block& block) const {
    const bool is_wrong = block.layer == 1 && block.kind == lab::BlockKind::kQ && block.head == 0;
    return world_.exact2(step_) + (is_wrong ? world_.extra2(path, step_) : 0);
  }

  FakeWorld& world_;
  std::int64_t step_ = 0;
};

}  // namespace sinkscope
