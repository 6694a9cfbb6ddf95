// SPDX-License-Identifier: Apache-2.0
// The lab's files: captures, checkpoints, models, all safetensors.
#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <torch/csrc/autograd/autograd.h>

#include "src/capture/capture.hpp"
#include "src/capture/safetensors.hpp"
#include "src/core/error.hpp"
#include "src/lab/exact_attention.hpp"
#include "src/lab/trainer.hpp"
#include "src/torch/host_tensor.hpp"

namespace sinkscope::lab {
namespace {

using torch_paths::from_torch;
using torch_paths::view_of;

const Tensor& find(const Safetensors& file, const std::string& path, const std::string& name) {
  const auto found = file.tensors.find(name);
  if (found == file.tensors.end()) throw InputError(path + " has no tensor " + name + ", wanted one");
  return found->second;
}

// Into `t`, which stays where it is.
void read_into(const at::Tensor& t, const Safetensors& file, const std::string& path,
               const std::string& name) {
  const Tensor& tensor = find(file, path, name);
  if (tensor.shape() != t.sizes().vec())
    throw InputError(path + ": " + name + " has shape " + shape_text(tensor.shape()) + ", wanted " +
                     shape_text(t.sizes().vec()));
  t.detach().copy_(view_of(tensor));
}

// Before the names of what a checkpoint keeps of rollouts that have updates left.
constexpr const char* kKeptBatch = "batch.";

struct BatchPart {
  const char* name;
  at::Tensor Batch::*tensor;
  DType dtype;
};
constexpr BatchPart kBatchParts[] = {{"targets", &Batch::targets, DType::kInt64},
                                     {"counted", &Batch::counted, DType::kFp32},
                                     {"advantages", &Batch::advantages, DType::kFp32},
                                     {"old_log_probs", &Batch::old_log_probs, DType::kFp32}};

void put_batch(Safetensors& file, const std::string& prefix, const Batch& batch) {
  file.tensors[prefix + "tokens"] = from_torch(batch.tokens.ids, DType::kInt64);
  file.tensors[prefix + "positions"] = from_torch(batch.tokens.positions, DType::kInt64);
  for (const BatchPart& part : kBatchParts)
    if ((batch.*part.tensor).defined())
      file.tensors[prefix + part.name] = from_torch(batch.*part.tensor, part.dtype);
}

// Rollouts, on the host.
Batch take_batch(const Safetensors& file, const std::string& path, const std::string& prefix) {
  const auto take = [&](const char* name) { return view_of(find(file, path, prefix + name)).clone(); };
  Batch batch;
  batch.tokens.ids = take("tokens");
  batch.tokens.positions = take("positions");
  for (const BatchPart& part : kBatchParts) batch.*part.tensor = take(part.name);
  return batch;
}

// A path's name as a capture takes it: a fault's colons become dots, its @ a plus.
std::string recorded_name(std::string path) {
  std::replace(path.begin(), path.end(), ':', '.');
  std::replace(path.begin(), path.end(), '@', '+');
  return path;
}

}  // namespace

void Trainer::capture_batch(const std::string& path) {
  Safetensors file;
  put_batch(file, "", batch());
  file.metadata["step"] = std::to_string(step_);
  write_safetensors(path, file, true);
}

void Trainer::capture_attention(std::int64_t layer, const std::string& path, const StepSettings& settings) {
  if (layer < 0 || layer >= config_.model.layers)
    throw InputError("layer is " + std::to_string(layer) + ", wanted 0 to " +
                     std::to_string(config_.model.layers - 1));
  const at::AutoGradMode differentiable(true);
  const Attention attention = attention_of(settings.training_path);
  Case c;
  at::Tensor out_of_layer;
  const auto keep = [&](std::int64_t index, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& sinks, const Geometry& geometry) {
    const at::Tensor out = attention(q, k, v, sinks, geometry);
    if (index != layer) return out;
    c = case_of(q, k, v, sinks, geometry, config_.format);
    out_of_layer = out;
    return out;
  };
  const at::Tensor loss =
      loss_of(log_probs_of(model_.forward(batch().tokens, keep), batch()), batch(), settings);
  c.dout = from_torch(torch::autograd::grad({loss}, {out_of_layer})[0], config_.format);
  const Path ran = attention.path ? *attention.path : exact_path();
  PathOptions options;
  options.threads = config_.threads;
  c.recorded[recorded_name(settings.training_path)] = ran.run(c, options).outputs;
  c.metadata = {
      {"source", "sinkscope spike"}, {"layer", std::to_string(layer)}, {"step", std::to_string(step_)}};
  save_capture(path, c, true);
}

void Trainer::save(const std::string& path) const {
  Safetensors file;
  for (std::size_t i = 0; i < model_.parameters().size(); ++i) {
    const Parameter& parameter = model_.parameters()[i];
    file.tensors[parameter.name] = from_torch(parameter.value, DType::kFp32);
    file.tensors["first." + parameter.name] = from_torch(first_[i], DType::kFp32);
    file.tensors["second." + parameter.name] = from_torch(second_[i], DType::kFp32);
  }
  file.metadata["step"] = std::to_string(step_);
  if (batch_) {
    put_batch(file, kKeptBatch, *batch_);
    file.metadata["batch_uses"] = std::to_string(batch_uses_);
    file.tensors[std::string(kKeptBatch) + "reward"] =
        from_torch(at::full({1}, batch_->reward, at::kDouble), DType::kFp64);
  }
  write_safetensors(path, file, true);
}

void Trainer::load(const std::string& path) {
  const Safetensors file = read_safetensors(path);
  const auto step = file.metadata.find("step");
  if (step == file.metadata.end())
    throw InputError(path + " has no step in its metadata, wanted a checkpoint of the lab");
  for (std::size_t i = 0; i < model_.parameters().size(); ++i) {
    const Parameter& parameter = model_.parameters()[i];
    read_into(parameter.value, file, path, parameter.name);
    read_into(first_[i], file, path, "first." + parameter.name);
    read_into(second_[i], file, path, "second." + parameter.name);
  }
  step_ = std::stoll(step->second);
  gradient_.clear();
  batch_.reset();
  const auto uses = file.metadata.find("batch_uses");
  if (uses == file.metadata.end()) return;
  batch_ = on_device(take_batch(file, path, kKeptBatch));
  batch_->reward = view_of(find(file, path, std::string(kKeptBatch) + "reward")).item<double>();
  batch_uses_ = std::stoll(uses->second);
}

void Trainer::export_model(const std::string& path) const {
  Safetensors file;
  for (const Parameter& parameter : model_.parameters())
    file.tensors[parameter.name] = from_torch(parameter.value, DType::kFp32);
  file.metadata["format"] = "pt";
  write_safetensors(path, file, true);
}

void Trainer::import_model(const std::string& path) {
  const Safetensors file = read_safetensors(path);
  for (const Parameter& parameter : model_.parameters())
    read_into(parameter.value, file, path, parameter.name);
}

void Trainer::write_logits_and_gradients(const std::string& tokens_path, const std::string& attention,
                                         const std::string& path) {
  const Safetensors given = read_safetensors(tokens_path);
  const Tensor& ids = find(given, tokens_path, "tokens");
  if (ids.dtype() != DType::kInt64 || ids.shape().size() != 2)
    throw InputError(tokens_path + ": tokens are " + std::string(name_of(ids.dtype())) + " " +
                     shape_text(ids.shape()) + ", wanted int64 [batch, length]");
  const std::int64_t b = ids.shape()[0], s = ids.shape()[1];
  Batch batch;
  batch.tokens.ids = view_of(ids).clone();
  batch.tokens.positions = at::arange(s, at::kLong).unsqueeze(0).expand({b, s}).contiguous();
  batch.targets = at::cat({batch.tokens.ids.slice(1, 1), at::zeros({b, 1}, at::kLong)}, 1);
  batch.counted = at::ones({b, s});
  batch.counted.slice(1, s - 1).zero_();
  batch_ = on_device(std::move(batch));
  const Gradient gradient = gradient_through(attention_of(attention), {});
  Safetensors file;
  file.tensors["logits"] = from_torch(gradient.logits, DType::kFp32);
  for (std::size_t i = 0; i < model_.parameters().size(); ++i)
    file.tensors[model_.parameters()[i].name] = from_torch(gradient.of[i], DType::kFp32);
  write_safetensors(path, file, true);
  batch_.reset();
}

}  // namespace sinkscope::lab
