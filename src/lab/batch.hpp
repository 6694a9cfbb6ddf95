// SPDX-License-Identifier: Apache-2.0
// What a step trains on, and its loss.
#pragma once

#include <ATen/ATen.h>
#include <string>

#include "src/lab/lab.hpp"
#include "src/lab/model.hpp"

namespace sinkscope::lab {

// A batch and what its loss needs. Row i of `targets` and `counted` speaks of the logits at i.
struct Batch {
  Tokens tokens;
  at::Tensor targets;  // [b, s] int64, the next token
  at::Tensor counted;  // [b, s] fp32: 1 where the target counts
  // Of reinforcement alone:
  at::Tensor advantages;     // [b]
  at::Tensor old_log_probs;  // [b, s], of the targets under the rollout path
  double reward = 0;         // mean over rollouts
};

// The log-probabilities of a batch's targets [b, s] from logits [b, s, vocabulary].
at::Tensor log_probs_of(const at::Tensor& logits, const Batch& batch);

// Mean cross entropy of what counts; or the clipped policy gradient of group-relative advantages (GRPO, Shao et al., 2024) over the
// tokens that count, with kl_weight times the k3 estimate of KL to the rollout policy.
at::Tensor loss_of(const at::Tensor& log_probs, const Batch& batch, const StepSettings& settings);
// `rollout_log_probs`: under the rollout path at the weights that gave `log_probs`.
RolloutFacts rollout_facts(const at::Tensor& log_probs, const at::Tensor& rollout_log_probs,
                           const Batch& batch, const StepSettings& settings);

// The bytes of a text task's files. Throws InputError.
at::Tensor read_text(const std::string& path);

// The batch of a step of the text task, drawn from `bytes` by `generator`.
Batch text_batch(const TextTask& task, const at::Tensor& bytes, at::Generator& generator);

// Sorting: tokens 0 to 9 are digits, 10 is the separator.
inline constexpr std::int64_t kSortingVocabulary = 11;
at::Tensor sorting_prompts(const SortingTask& task, std::int64_t count,
                           at::Generator& generator);                              // [count, digits + 1]
at::Tensor sorted_answers(const at::Tensor& prompts);                              // [count, digits]
at::Tensor sorting_rewards(const at::Tensor& prompts, const at::Tensor& answers);  // [count] fp32, 0 to 2
// Prompts with answers behind them; the answers count. Advantages and old log-probabilities are left out.
Batch sorting_batch(const at::Tensor& prompts, const at::Tensor& answers);
// (reward - mean of its prompt's rollouts) / (their standard deviation + 1e-6); `rollouts` of a prompt stand together.
at::Tensor group_advantages(const at::Tensor& rewards, std::int64_t rollouts);

}  // namespace sinkscope::lab
