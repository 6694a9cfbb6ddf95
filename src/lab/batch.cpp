// SPDX-License-Identifier: Apache-2.0
#include "src/lab/batch.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "src/core/error.hpp"

namespace sinkscope::lab {
namespace {

constexpr std::int64_t kSeparator = 10;

at::Tensor positions_of(std::int64_t b, std::int64_t s) {
  return at::arange(s, at::kLong).unsqueeze(0).expand({b, s}).contiguous();
}

// Lengths that sum to `total`, drawn from half to twice `mean`; the last is what is left.
std::vector<std::int64_t> document_lengths(std::int64_t total, std::int64_t mean, at::Generator& generator) {
  std::vector<std::int64_t> lengths;
  while (total > 0) {
    const std::int64_t drawn =
        at::randint(std::max<std::int64_t>(1, mean / 2), 2 * mean, {1}, generator, at::kLong)
            .item<std::int64_t>();
    lengths.push_back(std::min(drawn, total));
    total -= lengths.back();
  }
  return lengths;
}

std::vector<std::filesystem::path> files_at(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) return {path};
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(path))
    if (entry.path().extension() == ".txt") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

at::Tensor log_probs_of(const at::Tensor& logits, const Batch& batch) {
  return at::log_softmax(logits, -1).gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1);
}

at::Tensor loss_of(const at::Tensor& log_probs, const Batch& batch, const StepSettings& settings) {
  const at::Tensor count = batch.counted.sum();
  if (settings.kind == StepKind::kSupervised) return -(log_probs * batch.counted).sum() / count;
  const at::Tensor ratio = at::exp(log_probs - batch.old_log_probs),
                   advantage = batch.advantages.unsqueeze(1);
  at::Tensor gain = ratio * advantage;
  if (settings.ratio_clip > 0)
    gain = at::minimum(gain, ratio.clamp(1 - settings.ratio_clip, 1 + settings.ratio_clip) * advantage);
  if (settings.kl_weight > 0)
    gain = gain - settings.kl_weight * (ratio - 1 - (log_probs - batch.old_log_probs));
  return -(gain * batch.counted).sum() / count;
}

RolloutFacts rollout_facts(const at::Tensor& log_probs, const at::Tensor& rollout_log_probs,
                           const Batch& batch, const StepSettings& settings) {
  const at::Tensor which = batch.counted > 0;
  const auto beside = [&](const at::Tensor& other) {
    return (log_probs.detach() - other).masked_select(which).to(at::kCPU, at::kDouble);
  };
  const at::Tensor log_ratio = beside(batch.old_log_probs);
  const at::Tensor ratio = at::exp(log_ratio);
  const auto n = static_cast<double>(ratio.numel());
  RolloutFacts facts;
  facts.reward = batch.reward;
  facts.gap = beside(rollout_log_probs).abs().mean().item<double>();
  facts.ratio_mean = ratio.mean().item<double>();
  facts.ratio_max = ratio.max().item<double>();
  const double sum = ratio.sum().item<double>();
  facts.effective_sample = sum * sum / (n * ratio.square().sum().item<double>());
  if (settings.ratio_clip > 0)
    facts.clip_fraction = ((ratio - 1).abs() > settings.ratio_clip).to(at::kDouble).mean().item<double>();
  facts.kl = (ratio - 1 - log_ratio).mean().item<double>();
  return facts;
}

at::Tensor read_text(const std::string& path) {
  std::vector<char> bytes;
  for (const std::filesystem::path& file : files_at(path)) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream)
      throw InputError("text " + file.string() + " cannot be read, wanted a file or a folder of *.txt");
    bytes.insert(bytes.end(), std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
  }
  at::Tensor text = at::empty({static_cast<std::int64_t>(bytes.size())}, at::kByte);
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(text.mutable_data_ptr<std::uint8_t>()));
  return text;
}

Batch text_batch(const TextTask& task, const at::Tensor& bytes, at::Generator& generator) {
  const std::int64_t last = bytes.numel() - task.length - 1;
  if (last < 0)
    throw InputError("text " + task.path + " has " + std::to_string(bytes.numel()) +
                     " bytes, wanted more than length " + std::to_string(task.length));
  const at::Tensor starts = at::randint(last + 1, {task.batch, 1}, generator, at::kLong);
  const at::Tensor slices = bytes.to(at::kLong).index({starts + at::arange(task.length + 1, at::kLong)});
  Batch batch;
  batch.tokens.ids = slices.slice(1, 0, task.length).contiguous();
  batch.targets = slices.slice(1, 1).contiguous();
  batch.tokens.positions = positions_of(task.batch, task.length);
  batch.counted = at::ones({task.batch, task.length});
  if (!task.packed) return batch;
  std::vector<at::Tensor> positions;
  for (std::int64_t entry = 0; entry < task.batch; ++entry) {
    for (const std::int64_t length : document_lengths(task.length, task.length / 4, generator)) {
      batch.tokens.docs.push_back(length);
      positions.push_back(at::arange(length, at::kLong));
    }
  }
  batch.tokens.positions = at::cat(positions).unsqueeze(0);
  for (at::Tensor* t : {&batch.tokens.ids, &batch.targets, &batch.counted}) *t = t->reshape({1, -1});
  return batch;
}

at::Tensor sorting_prompts(const SortingTask& task, std::int64_t count, at::Generator& generator) {
  const at::Tensor digits = at::randint(kSeparator, {count, task.digits}, generator, at::kLong);
  return at::cat({digits, at::full({count, 1}, kSeparator, at::kLong)}, 1);
}

at::Tensor sorted_answers(const at::Tensor& prompts) {
  return std::get<0>(prompts.slice(1, 0, prompts.size(1) - 1).sort(1));
}

at::Tensor sorting_rewards(const at::Tensor& prompts, const at::Tensor& answers) {
  const at::Tensor right = (answers == sorted_answers(prompts)).to(at::kFloat);
  return right.mean(1) + right.amin(1);
}

Batch sorting_batch(const at::Tensor& prompts, const at::Tensor& answers) {
  const at::Tensor whole = at::cat({prompts, answers}, 1);
  const std::int64_t b = whole.size(0), s = whole.size(1) - 1;
  Batch batch;
  batch.tokens.ids = whole.slice(1, 0, s).contiguous();
  batch.tokens.positions = positions_of(b, s);
  batch.targets = whole.slice(1, 1).contiguous();
  batch.counted = at::zeros({b, s});
  batch.counted.slice(1, s - answers.size(1)).fill_(1);
  return batch;
}

at::Tensor group_advantages(const at::Tensor& rewards, std::int64_t rollouts) {
  const at::Tensor grouped = rewards.view({-1, rollouts});
  const at::Tensor mean = grouped.mean(1, true), deviation = grouped.std(1, false, true);
  return ((grouped - mean) / (deviation + 1e-6)).flatten();
}

}  // namespace sinkscope::lab
