// SPDX-License-Identifier: Apache-2.0
#include "src/lab/trainer.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <thread>
#include <torch/csrc/autograd/autograd.h>
#include <utility>

#include "src/core/error.hpp"
#include "src/lab/exact_attention.hpp"
#include "src/lab/gradient_blocks.hpp"
#include "src/lab/head_facts.hpp"

namespace sinkscope::lab {
namespace {

// The randomness of a step follows from the seed and its number alone, so that there is no state to keep (SplitMix64,
// Steele et al., 2014).
at::Generator generator_of_step(std::uint64_t seed, std::int64_t step) {
  std::uint64_t z = seed + 0x9e3779b97f4a7c15ULL * static_cast<std::uint64_t>(step + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return at::detail::createCPUGenerator(z ^ (z >> 31));
}

double sum_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum;
}

void check(const LabConfig& config) {
  const ModelShape& m = config.model;
  const auto want = [](bool good, const std::string& seen) {
    if (!good) throw InputError("model: " + seen);
  };
  want(m.layers > 0 && m.width > 0 && m.hkv > 0 && m.d > 0 && m.intermediate > 0,
       "a size is not positive, wanted all to be");
  want(m.hq % m.hkv == 0 && m.hq > 0,
       "hq is " + std::to_string(m.hq) + " and hkv " + std::to_string(m.hkv) + ", wanted a multiple");
  want(m.d % 2 == 0, "d is " + std::to_string(m.d) + ", wanted an even number");
  want(m.experts_per_token >= 1 && m.experts_per_token <= m.experts,
       "experts_per_token is " + std::to_string(m.experts_per_token) + ", wanted 1 to experts " +
           std::to_string(m.experts));
  const std::int64_t least = config.sorting ? kSortingVocabulary : 256;
  want(m.vocabulary >= least, "vocabulary is " + std::to_string(m.vocabulary) + ", wanted at least " +
                                  std::to_string(least) + " for this task");
}

LabConfig checked(const LabConfig& config) {
  check(config);
  return config;
}

}  // namespace

Trainer::Trainer(const LabConfig& config, FindPath find_path)
    : config_(checked(config)),
      find_path_(std::move(find_path)),
      model_(config.model, config.precision, config.cuda ? at::kCUDA : at::kCPU) {
  at::set_num_threads(config.threads > 0 ? config.threads
                                         : static_cast<int>(std::thread::hardware_concurrency()));
  if (!config.sorting) text_ = read_text(config.text.path);
  for (const Parameter& parameter : model_.parameters()) {
    first_.push_back(at::zeros_like(parameter.value).detach());
    second_.push_back(at::zeros_like(parameter.value).detach());
  }
}

std::int64_t Trainer::parameters() const {
  std::int64_t count = 0;
  for (const Parameter& parameter : model_.parameters()) count += parameter.value.numel();
  return count;
}

Attention Trainer::attention_of(const std::string& name) const {
  Attention attention;
  attention.format = config_.format;
  attention.threads = config_.threads;
  attention.name = name;
  if (name == "exact") return attention;
  FoundPath found = find_path_(name, exact_path());
  attention.path = std::move(found.path);
  attention.planted = std::move(found.planted);
  return attention;
}

at::Tensor Trainer::forward(const Tokens& tokens, const Attention& attention,
                            std::vector<at::Tensor>* heads) const {
  return model_.forward(tokens, [&](std::int64_t, const at::Tensor& q, const at::Tensor& k,
                                    const at::Tensor& v, const at::Tensor& sinks, const Geometry& geometry) {
    if (heads != nullptr) heads->push_back(observed_heads(q, k, sinks, geometry, config_.format));
    return attention(q, k, v, sinks, geometry);
  });
}

Trainer::Gradient Trainer::gradient_through(const Attention& attention, const StepSettings& settings,
                                            std::vector<at::Tensor>* heads) const {
  const at::AutoGradMode differentiable(true);
  std::vector<at::Tensor> weights;
  for (const Parameter& parameter : model_.parameters()) weights.push_back(parameter.value);
  Gradient gradient;
  const at::Tensor logits = forward(batch().tokens, attention, heads);
  const at::Tensor log_probs = log_probs_of(logits, batch());
  attention.expect_planted();
  const at::Tensor loss = loss_of(log_probs, batch(), settings);
  gradient.of = torch::autograd::grad({loss}, weights, {}, std::nullopt, false, true);
  for (std::size_t i = 0; i < weights.size(); ++i)
    if (!gradient.of[i].defined()) gradient.of[i] = at::zeros_like(weights[i]);
  gradient.loss = loss.item<double>();
  gradient.logits = logits.detach();
  gradient.log_probs = log_probs.detach();
  return gradient;
}

Batch Trainer::on_device(Batch batch) const {
  Tokens& tokens = batch.tokens;
  for (at::Tensor* t : {&tokens.ids, &tokens.positions, &batch.targets, &batch.counted, &batch.advantages,
                        &batch.old_log_probs})
    if (t->defined()) *t = t->to(model_.device());
  return batch;
}

// Answers to prompts, sampled token by token with the keys and values of earlier tokens kept.
at::Tensor Trainer::sample(const at::Tensor& prompts, const Attention& attention,
                           at::Generator& generator) const {
  std::vector<at::Tensor> keys(static_cast<std::size_t>(config_.model.layers)), values(keys.size());
  const auto with_earlier = [&](std::int64_t layer, const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& v, const at::Tensor& sinks, const Geometry& geometry) {
    const auto join = [](at::Tensor& earlier, const at::Tensor& now) {
      earlier = earlier.defined() ? at::cat({earlier, now}, 2) : now;
      return earlier;
    };
    const auto index = static_cast<std::size_t>(layer);
    return attention(q, join(keys[index], k), join(values[index], v), sinks, geometry);
  };
  std::vector<at::Tensor> answers;
  Tokens tokens;
  tokens.ids = prompts.to(model_.device());
  tokens.positions =
      at::arange(prompts.size(1), at::kLong).unsqueeze(0).expand_as(prompts).to(model_.device());
  for (std::int64_t i = 0; i < config_.sort.digits; ++i) {
    const at::Tensor logits = model_.forward(tokens, with_earlier).select(1, -1).to(at::kCPU);
    answers.push_back(at::multinomial(at::softmax(logits, -1), 1, false, generator));
    tokens.ids = answers.back().to(model_.device());
    tokens.positions = tokens.positions.slice(1, tokens.positions.size(1) - 1) + 1;
  }
  return at::cat(answers, 1);
}

// Rollouts with their advantages; the old log-probabilities are those of the whole sequences through the rollout path.
Batch Trainer::roll_out(const StepSettings& settings, at::Generator& generator) const {
  const at::NoGradGuard guard;
  const SortingTask& task = config_.sort;
  const Attention attention = attention_of(settings.rollout_path);
  const at::Tensor prompts =
      sorting_prompts(task, task.prompts, generator).repeat_interleave(task.rollouts, 0);
  const at::Tensor answers = sample(prompts, attention, generator);
  const at::Tensor rewards = sorting_rewards(prompts, answers);
  Batch batch = sorting_batch(prompts, answers);
  batch.advantages = group_advantages(rewards, task.rollouts);
  batch.reward = rewards.mean().item<double>();
  batch = on_device(std::move(batch));
  batch.old_log_probs = log_probs_of(forward(batch.tokens, attention), batch);
  attention.expect_planted();
  return batch;
}

Batch Trainer::draw(const StepSettings& settings) const {
  at::Generator generator = generator_of_step(config_.model.seed, step_);
  if (settings.kind == StepKind::kReinforce) {
    if (!config_.sorting)
      throw InputError("a reinforce step on text, wanted the task sorting, which has a reward");
    return roll_out(settings, generator);
  }
  if (!config_.sorting) return on_device(text_batch(config_.text, text_, generator));
  const at::Tensor prompts = sorting_prompts(config_.sort, config_.sort.batch, generator);
  return on_device(sorting_batch(prompts, sorted_answers(prompts)));
}

const Batch& Trainer::batch() const {
  if (!batch_) throw std::logic_error("no batch at hand, wanted gradient() first");
  return *batch_;
}

bool Trainer::goes_on(const StepSettings& settings) const {
  const bool has_rollouts = batch_ && batch_->advantages.defined();
  return has_rollouts && settings.kind == StepKind::kReinforce && batch_uses_ > 0 &&
         batch_uses_ < settings.updates;
}

// Under the rollout path at the weights of now; the old log-probabilities are of the weights that sampled.
at::Tensor Trainer::rollout_log_probs(const StepSettings& settings) const {
  if (batch_uses_ == 0) return batch().old_log_probs;
  const at::NoGradGuard guard;
  return log_probs_of(forward(batch().tokens, attention_of(settings.rollout_path)), batch());
}

StepResult Trainer::gradient(const StepSettings& settings) {
  if (!goes_on(settings)) {
    batch_ = draw(settings);
    batch_uses_ = 0;
  }
  StepResult result;
  std::vector<at::Tensor> heads;
  Gradient gradient =
      gradient_through(attention_of(settings.training_path), settings, settings.observe ? &heads : nullptr);
  result.step = step_;
  result.heads = head_facts(heads);
  result.loss = gradient.loss;
  const std::vector<double> squared = dot_by_block(model_, gradient.of, gradient.of);
  const std::vector<Block> blocks = blocks_of(config_.model);
  for (std::size_t i = 0; i < blocks.size(); ++i) result.blocks.push_back({blocks[i], squared[i]});
  result.gradient_norm = gradient_norm_ = std::sqrt(sum_of(squared));
  if (settings.kind == StepKind::kReinforce)
    result.rollouts = rollout_facts(gradient.log_probs, rollout_log_probs(settings), batch(), settings);
  gradient_ = std::move(gradient.of);
  return result;
}

void Trainer::apply(const StepSettings& settings) {
  const at::NoGradGuard guard;
  if (gradient_.empty()) throw std::logic_error("no gradient at hand, wanted gradient() first");
  const Optimizer& o = config_.optimizer;
  const bool clipped = settings.norm_clip > 0 && gradient_norm_ > settings.norm_clip;
  const double shrink = clipped ? settings.norm_clip / gradient_norm_ : 1;
  const auto t = static_cast<double>(step_ + 1);
  const double warm = o.warmup > 0 ? std::min(1.0, t / static_cast<double>(o.warmup)) : 1;
  const auto scalar = [&](double value) {
    return at::full({}, value, at::TensorOptions().dtype(at::kFloat).device(model_.device()));
  };
  std::vector<at::Tensor> weights;
  for (const Parameter& parameter : model_.parameters()) weights.push_back(parameter.value.detach());
  at::_foreach_mul_(gradient_, shrink);
  at::_fused_adamw_(weights, gradient_, first_, second_, {},
                    std::vector<at::Tensor>(weights.size(), scalar(t)), settings.learning_rate * warm,
                    o.beta1, o.beta2, o.weight_decay, o.epsilon, false, false);
  ++step_;
  gradient_.clear();
  ++batch_uses_;
  if (!goes_on(settings)) batch_.reset();
}

void Trainer::wait() {
  if (!model_.device().is_cuda()) return;
  const at::CUDAHooksInterface& cuda = at::detail::getCUDAHooks();
  cuda.deviceSynchronize(cuda.current_device());
}

std::vector<ReplayedPath> Trainer::replay(const std::vector<std::string>& paths,
                                          const StepSettings& settings) {
  const Gradient exact = gradient_through(attention_of("exact"), settings);
  const std::vector<double> exact_squared = dot_by_block(model_, exact.of, exact.of);
  const std::vector<Block> blocks = blocks_of(config_.model);
  std::vector<ReplayedPath> replayed;
  for (const std::string& path : paths) {
    const Gradient through = gradient_through(attention_of(path), settings);
    const std::vector<at::Tensor> difference = at::_foreach_sub(through.of, exact.of);
    const std::vector<double> squared = dot_by_block(model_, through.of, through.of);
    const std::vector<double> off = dot_by_block(model_, difference, difference);
    ReplayedPath found{path, through.loss, exact.loss, {}};
    for (std::size_t i = 0; i < blocks.size(); ++i)
      found.blocks.push_back({blocks[i], squared[i], exact_squared[i], off[i]});
    replayed.push_back(std::move(found));
  }
  return replayed;
}

}  // namespace sinkscope::lab
