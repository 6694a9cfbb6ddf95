// SPDX-License-Identifier: Apache-2.0
#include "src/torch/truth_cuda.hpp"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <array>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <optional>

#include "src/core/error.hpp"
#include "src/core/parallel.hpp"
#include "src/torch/cuda.hpp"
#include "src/torch/document.hpp"
#include "src/torch/truth_strip.hpp"

namespace sinkscope::torch_paths {
namespace {

constexpr std::int64_t kRows = 2048;                // of a strip, all heads of the group together
constexpr std::int64_t kLeastElements = 1LL << 22;  // of a windowed strip
constexpr std::int64_t kMostElements = 1LL << 28;   // of a strip: 2 GiB for each of its buffers
constexpr std::int64_t kMostKeptBytes = 1LL << 30;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A strip's results on their way to the host.
struct Arriving {
  at::Tensor wide, narrow;  // [4 or 2, heads, positions, d] and [6 or 4, heads, positions] on the host
  std::int64_t row;         // of the first head in [b, hq, sq]
  std::optional<c10::Event> done;
};

class TruthComputation {
 public:
  TruthComputation(const Case& c, at::Device device)
      : s_(c.problem.shape),
        device_(device),
        cu_q_(s_.docs.empty() ? std::vector<std::int64_t>{0, s_.sq} : s_.cu_q()),
        cu_k_(s_.docs.empty() ? std::vector<std::int64_t>{0, s_.sk} : s_.cu_k()),
        q_(view_of(c.q)),
        k_(view_of(c.k)),
        v_(view_of(c.v)),
        dout_(view_of(c.dout)),
        dlse_(view_of(c.dlse)),
        backward_(c.dout.given()),
        buffers_(most_elements(), on_device()) {
    const double u = unit_roundoff(s_.dtype);
    settings_.causal = s_.causal;
    settings_.window = s_.window;
    settings_.scale = static_cast<float>(s_.scale);  // as every path takes it
    settings_.u = u;
    settings_.rho2 = std::pow(0x1p-24 / u, 2);
    settings_.eta2 = std::pow(underflow_unit(s_.dtype) / u, 2);
    settings_.flushed2 = std::pow(0x1p-126 / u, 2);
    settings_.fp32 = s_.dtype == DType::kFp32;
    sinks_ = c.sinks.given() ? view_of(c.sinks).to(device_).to(at::kDouble)
                             : at::full({s_.hq}, -kInfinity, on_device());
    allocate();
  }

  Truth run() {
    dsinks_ = at::zeros({s_.hq}, on_device());
    sigma2_dsinks_ = at::zeros({s_.hq}, on_device());
    for (std::int64_t batch = 0; batch < s_.b; ++batch) {
      for (std::int64_t kv = 0; kv < s_.hkv; ++kv) {
        for (std::size_t i = 0; i + 1 < cu_q_.size(); ++i) run_document(batch, kv, i);
      }
    }
    while (!arriving_.empty()) receive();
    if (backward_) finish_sinks();
    return std::move(truth_);
  }

 private:
  at::TensorOptions on_device() const { return at::TensorOptions().device(device_).dtype(at::kDouble); }

  // Keys of a strip of that many positions in a document of that many keys, at most.
  std::int64_t most_keys(std::int64_t keys, std::int64_t positions) const {
    const std::int64_t all = TruthDocument::padded(keys);
    return s_.window > 0 ? std::min(all, positions + s_.window + 2 * TruthDocument::kKeyPadding) : all;
  }

  // Rows of each head in a strip.
  std::int64_t positions(std::int64_t rows, std::int64_t keys) const {
    std::int64_t count = std::clamp<std::int64_t>(kRows / s_.group(), 1, std::max<std::int64_t>(1, rows));
    const auto elements = [&] { return count * s_.group() * most_keys(keys, count); };
    // A narrow window leaves little to do in a strip: taller ones cost fewer launches.
    while (s_.window > 0 && count < rows && elements() < kLeastElements) count *= 2;
    while (count > 1 && elements() > kMostElements) count /= 2;
    return count;
  }

  std::int64_t most_elements() const {
    std::int64_t most = 0;
    for (std::size_t i = 0; i + 1 < cu_q_.size(); ++i) {
      const std::int64_t rows = cu_q_[i + 1] - cu_q_[i], keys = cu_k_[i + 1] - cu_k_[i];
      const std::int64_t count = positions(rows, keys);
      most = std::max(most, count * s_.group() * most_keys(keys, count));
    }
    return most;
  }

  void allocate() {
    const auto rows = static_cast<std::size_t>(s_.b * s_.hq * s_.sq);
    const auto keys = static_cast<std::size_t>(s_.b * s_.hkv * s_.sk);
    const auto d = static_cast<std::size_t>(s_.d);
    std::vector<std::pair<std::vector<double>*, std::size_t>> wanted = {{&truth_.p_sink, rows},
                                                                        {&truth_.entropy, rows}};
    for (reference::Tensors* tensors : {&truth_.value, &truth_.sigma}) {
      wanted.insert(wanted.begin(), {{&tensors->out, rows * d}, {&tensors->lse, rows}});
      if (!backward_) continue;
      wanted.insert(wanted.begin(), {{&tensors->dq, rows * d},
                                     {&tensors->dk, keys * d},
                                     {&tensors->dv, keys * d},
                                     {&tensors->delta, rows}});
      tensors->dsinks.resize(static_cast<std::size_t>(s_.hq));
    }
    // Gigabytes of fresh pages take seconds: side by side.
    parallel_for(static_cast<std::int64_t>(wanted.size()), 0, [&](std::int64_t i) {
      const auto& [vector, size] = wanted[static_cast<std::size_t>(i)];
      vector->resize(size);
    });
  }

  void run_document(std::int64_t batch, std::int64_t kv, std::size_t index) {
    const std::int64_t first_row = cu_q_[index], rows = cu_q_[index + 1] - first_row;
    const std::int64_t first_key = cu_k_[index], keys = cu_k_[index + 1] - first_key;
    const auto head = [&](const at::Tensor& x) {
      return x.select(0, batch).select(0, kv).narrow(0, first_key, keys).to(device_);
    };
    TruthDocument document(settings_, rows, head(k_), head(v_), backward_);
    const std::int64_t step = positions(rows, keys);
    for (std::int64_t row = 0; row < rows; row += step) {
      const TruthRows strip = load_rows(batch, kv, first_row, row, std::min(step, rows - row));
      const StripResult result = compute_strip(document, strip, buffers_);
      send(result, strip, (batch * s_.hq + kv * s_.group()) * s_.sq + first_row + row);
    }
    if (!backward_) return;
    const auto [values, sigmas] = document.key_results();
    const std::int64_t to = ((batch * s_.hkv + kv) * s_.sk + first_key) * s_.d;
    for (const auto& [tensors, source] :
         {std::pair{&truth_.value, &values}, std::pair{&truth_.sigma, &sigmas}}) {
      copy_out(source->narrow(1, 0, s_.d), tensors->dv, to);
      copy_out(source->narrow(1, s_.d, s_.d), tensors->dk, to);
    }
  }

  static void copy_out(const at::Tensor& source, std::vector<double>& target, std::int64_t to) {
    const at::Tensor host = source.contiguous().cpu();
    if (host.numel() == 0) return;
    std::memcpy(target.data() + to, host.const_data_ptr<double>(),
                static_cast<std::size_t>(host.numel()) * sizeof(double));
  }

  TruthRows load_rows(std::int64_t batch, std::int64_t kv, std::int64_t first_row, std::int64_t row,
                      std::int64_t count) const {
    const std::int64_t group = s_.group();
    const auto load = [&](const at::Tensor& x) {
      const at::Tensor rows =
          x.select(0, batch).narrow(0, kv * group, group).narrow(1, first_row + row, count);
      return rows.to(device_).to(at::kDouble).reshape({group * count, -1});
    };
    TruthRows strip{row, count, group, load(q_), {}, {}, {}};
    if (backward_) strip.dout = load(dout_);
    strip.dlse = dlse_.defined() ? load(dlse_) : at::zeros({group * count, 1}, on_device());
    strip.sinks = sinks_.narrow(0, kv * group, group).repeat_interleave(count).unsqueeze(1);
    return strip;
  }

  // Starts a strip's results on their way, and receives those of the strip before while this one is computed.
  void send(const StripResult& result, const TruthRows& strip, std::int64_t row) {
    std::vector<at::Tensor> wide = {result.out, result.sigma_out};
    std::vector<at::Tensor> narrow = {result.lse, result.sigma_lse, result.p_sink, result.entropy};
    if (backward_) {
      wide.insert(wide.end(), {result.dq, result.sigma_dq});
      narrow.insert(narrow.end(), {result.delta, result.sigma_delta});
      const std::int64_t head = row / s_.sq % s_.hq;
      dsinks_.narrow(0, head, strip.heads).add_(result.dsinks);
      sigma2_dsinks_.narrow(0, head, strip.heads).add_(result.sigma2_dsinks);
    }
    const auto to_host = [&](const std::vector<at::Tensor>& tensors) {
      const at::Tensor all = at::stack(tensors).view({-1, strip.heads, strip.positions, tensors[0].size(1)});
      const at::Tensor host =
          at::empty(all.sizes(), all.options().device(at::kCPU).pinned_memory(device_.is_cuda()));
      return host.copy_(all, true);
    };
    Arriving next{to_host(wide), to_host(narrow), row, std::nullopt};
    if (device_.is_cuda()) {
      next.done.emplace(device_.type());
      next.done->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
    }
    arriving_.push_back(std::move(next));
    if (arriving_.size() > 1) receive();
  }

  void receive() {
    const Arriving arrived = std::move(arriving_.front());
    arriving_.pop_front();
    if (arrived.done) arrived.done->synchronize();
    reference::Tensors &value = truth_.value, &sigma = truth_.sigma;
    const std::array wide = {&value.out, &sigma.out, &value.dq, &sigma.dq};
    const std::array narrow = {&value.lse,      &sigma.lse,   &truth_.p_sink,
                               &truth_.entropy, &value.delta, &sigma.delta};
    scatter(arrived.wide, wide, arrived.row);
    scatter(arrived.narrow, narrow, arrived.row);
  }

  // source [targets, heads, positions, width]; the targets are [b, hq, sq, width].
  template <std::size_t kCount>
  void scatter(const at::Tensor& source, const std::array<std::vector<double>*, kCount>& targets,
               std::int64_t row) const {
    const std::int64_t heads = source.size(1), run = source.size(2) * source.size(3);
    const double* from = source.const_data_ptr<double>();
    for (std::int64_t i = 0; i < source.size(0) * heads; ++i, from += run) {
      const std::int64_t to = (row + i % heads * s_.sq) * source.size(3);
      std::memcpy(targets[static_cast<std::size_t>(i / heads)]->data() + to, from,
                  static_cast<std::size_t>(run) * sizeof(double));
    }
  }

  // The last terms of Eq. 20.
  void finish_sinks() {
    copy_out(dsinks_, truth_.value.dsinks, 0);
    const at::Tensor sigma2 = sigma2_dsinks_ + dsinks_.square() * settings_.rho2 + settings_.flushed2;
    copy_out(sigma2.sqrt(), truth_.sigma.dsinks, 0);
  }

  const AttentionShape& s_;
  at::Device device_;
  std::vector<std::int64_t> cu_q_, cu_k_;  // [documents + 1] first rows and keys
  at::Tensor q_, k_, v_, dout_, dlse_;     // on the host, as the case has them
  at::Tensor sinks_;                       // [hq] fp64 on the device; -inf where there are none
  bool backward_;
  TruthSettings settings_;
  StripBuffers buffers_;
  at::Tensor dsinks_, sigma2_dsinks_;  // [hq]
  std::deque<Arriving> arriving_;
  Truth truth_;
};

c10::CachingAllocator::Stat reserved() {
  constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return c10::getDeviceAllocator(c10::DeviceType::CUDA)->getDeviceStats(0).reserved_bytes[kAll];
}

Truth truth_on(const Case& c, at::Device device) {
  const at::NoGradGuard no_grad;
  return TruthComputation(c, device).run();
}

}  // namespace

Truth cuda_truth(const Case& c) {
  if (!cuda_unavailable().empty()) throw EnvironmentError("the truth on the GPU: " + cuda_unavailable());
  try {
    Truth truth = truth_on(c, at::Device(at::kCUDA, 0));
    // Gigabytes that libtorch keeps are gigabytes that the paths do not get.
    if (reserved().current > kMostKeptBytes) c10::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache();
    return truth;
  } catch (const c10::OutOfMemoryError& error) {
    throw EnvironmentError(std::string("the truth on the GPU: ") + error.what_without_backtrace());
  }
}

Truth cpu_truth(const Case& c) {
  return truth_on(c, at::Device(at::kCPU));
}

std::int64_t cuda_peak_bytes() {
  if (!cuda_unavailable().empty()) return 0;
  return reserved().peak;
}

}  // namespace sinkscope::torch_paths
