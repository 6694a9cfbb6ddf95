// SPDX-License-Identifier: Apache-2.0
// The lab's files: captures, checkpoints, models, all safetensors.
#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <torch/csrc/autograd/autograd.h>

#include "src/capture/capture.hpp"
#include "src/capture/safetensors.hpp"
#include "src/core/error.hpp"
#include "src/lab/trainer.hpp"

namespace sinkscope::lab {
namespace {

Tensor whole_numbers(const at::Tensor& t) {
  const at::Tensor host = t.to(at::kCPU, at::kLong).contiguous();
  Tensor tensor(DType::kInt64, host.sizes().vec());
  std::memcpy(tensor.data(), host.const_data_ptr(), tensor.bytes());
  return tensor;
}

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
  const std::vector<double> values = tensor.widened();
  const at::Tensor wide = at::from_blob(const_cast<double*>(values.data()), tensor.shape(), at::kDouble);
  t.detach().copy_(wide);
}

// A path's name as a capture takes it: a fault's colons become dots, its @ a plus.
std::string recorded_name(std::string path) {
  std::replace(path.begin(), path.end(), ':', '.');
  std::replace(path.begin(), path.end(), '@', '+');
  return path;
}

}  // namespace

void Trainer::capture_batch(const std::string& path) {
  const Batch& b = batch();
  Safetensors file;
  file.tensors["tokens"] = whole_numbers(b.tokens.ids);
  file.tensors["positions"] = whole_numbers(b.tokens.positions);
  file.tensors["targets"] = whole_numbers(b.targets);
  file.tensors["counted"] = to_host(b.counted, DType::kFp32);
  if (b.advantages.defined()) {
    file.tensors["advantages"] = to_host(b.advantages, DType::kFp32);
    file.tensors["old_log_probs"] = to_host(b.old_log_probs, DType::kFp32);
  }
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
  c.dout = to_host(torch::autograd::grad({loss}, {out_of_layer})[0], config_.format);
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
    file.tensors[parameter.name] = to_host(parameter.value, DType::kFp32);
    file.tensors["first." + parameter.name] = to_host(first_[i], DType::kFp32);
    file.tensors["second." + parameter.name] = to_host(second_[i], DType::kFp32);
  }
  file.metadata["step"] = std::to_string(step_);
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
  batch_.reset();
  gradient_.clear();
}

void Trainer::export_model(const std::string& path) const {
  Safetensors file;
  for (const Parameter& parameter : model_.parameters())
    file.tensors[parameter.name] = to_host(parameter.value, DType::kFp32);
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
  const Tensor ids = find(read_safetensors(tokens_path), tokens_path, "tokens");
  const std::int64_t b = ids.shape().at(0), s = ids.shape().at(1);
  Batch batch;
  batch.tokens.ids = at::empty({b, s}, at::kLong);
  std::memcpy(batch.tokens.ids.mutable_data_ptr(), ids.data(), ids.bytes());
  batch.tokens.positions = at::arange(s, at::kLong).unsqueeze(0).expand({b, s}).contiguous();
  batch.targets = at::cat({batch.tokens.ids.slice(1, 1), at::zeros({b, 1}, at::kLong)}, 1);
  batch.counted = at::ones({b, s});
  batch.counted.slice(1, s - 1).zero_();
  batch_ = on_device(std::move(batch));
  const Attention through = attention_of(attention);
  const Gradient gradient = gradient_through(through, {});
  Safetensors file;
  {
    const at::NoGradGuard guard;
    file.tensors["logits"] = to_host(forward(this->batch().tokens, through), DType::kFp32);
  }
  for (std::size_t i = 0; i < model_.parameters().size(); ++i)
    file.tensors[model_.parameters()[i].name] = to_host(gradient.of[i], DType::kFp32);
  write_safetensors(path, file, true);
  batch_.reset();
}

}  // namespace sinkscope::lab
