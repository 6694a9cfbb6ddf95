// SPDX-License-Identifier: Apache-2.0
// The lab itself: a model, its optimizer, its data, and the batch at hand.
#pragma once

#include <ATen/ATen.h>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "src/lab/attention.hpp"
#include "src/lab/batch.hpp"
#include "src/lab/entry.hpp"
#include "src/lab/lab.hpp"
#include "src/lab/model.hpp"

namespace sinkscope::lab {

class Trainer final : public Lab {
 public:
  Trainer(const LabConfig& config, FindPath find_path);

  std::int64_t step() const override { return step_; }
  std::int64_t parameters() const override;
  StepResult gradient(const StepSettings& settings) override;
  void apply(const StepSettings& settings) override;
  void wait() override;
  std::vector<ReplayedPath> replay(const std::vector<std::string>& paths,
                                   const StepSettings& settings) override;
  void capture_batch(const std::string& path) override;
  void capture_attention(std::int64_t layer, const std::string& path, const StepSettings& settings) override;
  void save(const std::string& path) const override;
  void load(const std::string& path) override;
  void export_model(const std::string& path) const override;
  void import_model(const std::string& path) override;
  void write_logits_and_gradients(const std::string& tokens_path, const std::string& attention,
                                  const std::string& path) override;

 private:
  struct Gradient {
    double loss = 0;
    at::Tensor logits;           // [b, s, vocabulary]
    at::Tensor log_probs;        // of the batch's targets
    std::vector<at::Tensor> of;  // by parameter
  };

  Attention attention_of(const std::string& name) const;
  // With `heads`, what observed_heads() says of every layer is put there.
  at::Tensor forward(const Tokens& tokens, const Attention& attention,
                     std::vector<at::Tensor>* heads = nullptr) const;
  Gradient gradient_through(const Attention& attention, const StepSettings& settings,
                            std::vector<at::Tensor>* heads = nullptr) const;
  Batch draw(const StepSettings& settings) const;
  at::Tensor sample(const at::Tensor& prompts, const Attention& attention, at::Generator& generator) const;
  Batch roll_out(const StepSettings& settings, at::Generator& generator) const;
  Batch on_device(Batch batch) const;
  const Batch& batch() const;
  bool goes_on(const StepSettings& settings) const;  // with the rollouts of the step before
  at::Tensor rollout_log_probs(const StepSettings& settings) const;

  LabConfig config_;
  FindPath find_path_;
  Model model_;
  at::Tensor text_;  // bytes of a text task
  std::int64_t step_ = 0;
  std::vector<at::Tensor> first_, second_;  // AdamW's moments
  std::optional<Batch> batch_;   // between gradient() and apply(); rollouts stay for all of their updates
  std::int64_t batch_uses_ = 0;  // steps taken on it
  std::vector<at::Tensor> gradient_;
  double gradient_norm_ = 0;
};

}  // namespace sinkscope::lab
