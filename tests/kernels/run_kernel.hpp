// SPDX-License-Identifier: Apache-2.0
// Runs the kernel on plain vectors, for tests, wherever a backend has its memory: inputs rounded to a format and
// laid out as asked, with NaN round them and between their rows; every output and workspace between guard bands.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/sink_attention.h"
#include "src/core/tensor.hpp"
#include "tests/reference/naive.hpp"

namespace sinkscope::testing_kernel {

namespace sa = sink_attention;

inline sa::DType kernel_dtype(DType dtype) {
  return dtype == DType::kBf16   ? sa::DType::kBf16
         : dtype == DType::kFp16 ? sa::DType::kFp16
                                 : sa::DType::kFp32;
}

struct RunOptions {
  sa::cpu::Options cpu;
  DType sink_dtype = DType::kFp32;
  bool bshd = false;
  std::int64_t row_gap = 0;   // elements between rows, NaN, that nothing may read or write
  bool idle_strides = false;  // the strides of dimensions of size 1 are nonsense
  bool broadcast_kv = false;  // k and v of the first batch entry serve every one, by a stride of 0
  bool residual = false;
  bool want_dq = true, want_dk = true, want_dv = true, want_dsinks = true;
};

struct KernelRun {
  std::vector<double> out, lse, dq, dk, dv, dsinks;  // [b, h, s, d], whatever the layout
  std::vector<std::byte> bits;                       // every wanted output's, for bitwise comparison
  bool guards_intact = true;
  sa::Status forward, backward;
};

inline std::vector<double> round_all(const std::vector<double>& values, DType dtype) {
  return Tensor::rounded(dtype, {static_cast<std::int64_t>(values.size())}, values).widened();
}

// Rounds the tensors (not the sinks and dlse) to the format, in place.
inline void round_inputs(reference::naive::Data& data, DType dtype) {
  for (auto* values : {&data.q, &data.k, &data.v, &data.dout}) *values = round_all(*values, dtype);
  for (auto* values : {&data.sinks, &data.dlse}) *values = round_all(*values, DType::kFp32);
}

// Where the elements of a tensor [b, h, s, d] lie.
struct Arrangement {
  std::int64_t b = 1, h = 1, s = 1, d = 1;
  std::int64_t stride_b = 0, stride_h = 0, stride_s = 0;
  std::int64_t span = 0;  // elements from the first to behind the last

  std::int64_t rows() const { return b * h * s; }
  // Where row i of the contiguous [b, h, s] begins.
  std::int64_t row_at(std::int64_t i) const {
    return i / s / h * stride_b + i / s % h * stride_h + i % s * stride_s;
  }
  template <typename Strided>
  Strided at(decltype(Strided::data) data, bool idle_strides) const {
    constexpr std::int64_t kNonsense = 12345;
    const auto given = [&](std::int64_t size_of_dim, std::int64_t stride) {
      return idle_strides && size_of_dim == 1 ? kNonsense : stride;
    };
    return {data, given(b, stride_b), given(h, stride_h), given(s, stride_s)};
  }
};

inline Arrangement arranged(std::int64_t b, std::int64_t h, std::int64_t s, std::int64_t d,
                            const RunOptions& options, bool broadcast = false) {
  const std::int64_t row = d + options.row_gap;
  Arrangement a{b, h, s, d, h * s * row, options.bshd ? row : s * row, options.bshd ? h * row : row};
  a.span = (broadcast ? 1 : b) * h * s * row;
  if (broadcast) a.stride_b = 0;
  return a;
}

inline Arrangement flat(std::int64_t count) {
  return {1, 1, 1, count, count, count, count, count};
}

// Memory on the host. `band()` is what lies before and behind each tensor, in bytes.
class HostMemory {
 public:
  explicit HostMemory(std::vector<std::byte> bytes) : bytes_(std::move(bytes)) {}
  std::byte* data() { return bytes_.data(); }
  const std::vector<std::byte>& content() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};
struct CpuPlace {
  using Memory = HostMemory;
  sa::cpu::Options options;

  static std::size_t band() { return 512; }
  static Memory holding(std::vector<std::byte> bytes) { return Memory(std::move(bytes)); }
  static Memory to_be_written(std::size_t bytes) {
    return Memory(std::vector<std::byte>(bytes, std::byte{0xFF}));
  }
  std::size_t forward_workspace_bytes(const sa::Problem& p) const {
    return sa::cpu::forward_workspace_bytes(p, options);
  }
  std::size_t backward_workspace_bytes(const sa::Problem& p) const {
    return sa::cpu::backward_workspace_bytes(p, options);
  }
  sa::Status forward(const sa::ForwardParams& f) const { return sa::cpu::forward(f, options); }
  sa::Status backward(const sa::BackwardParams& w) const { return sa::cpu::backward(w, options); }
};

// A tensor in a place's memory. All that is not its elements is NaN bits.
template <typename Place>
class PlacedTensor {
 public:
  // To be written by the kernel.
  PlacedTensor(const Place& place, std::size_t element_bytes, const Arrangement& a)
      : a_(a),
        element_bytes_(element_bytes),
        band_(place.band()),
        memory_(place.to_be_written(total(place, element_bytes, a))) {}
  // To be read by it.
  PlacedTensor(const Place& place, DType dtype, const Arrangement& a, const std::vector<double>& values)
      : a_(a),
        element_bytes_(size_of(dtype)),
        band_(place.band()),
        memory_(place.holding(image(place, dtype, a, values))) {}

  std::byte* data() { return memory_.data() + band_; }

  // Its elements, contiguous.
  std::vector<std::byte> elements() const {
    const std::vector<std::byte> content = memory_.content();
    std::vector<std::byte> result(static_cast<std::size_t>(a_.rows()) * row_bytes());
    for (std::int64_t i = 0; i < a_.rows(); ++i) {
      std::memcpy(result.data() + static_cast<std::size_t>(i) * row_bytes(), content.data() + place_of(i),
                  row_bytes());
    }
    return result;
  }
  bool guards_intact() const {
    if (band_ == 0) return true;
    std::vector<std::byte> content = memory_.content();
    for (std::int64_t i = 0; i < a_.rows(); ++i)
      std::fill_n(content.begin() + static_cast<std::ptrdiff_t>(place_of(i)), row_bytes(), kUntouched);
    return all_untouched(content);
  }
  bool wholly_untouched() const { return band_ == 0 || all_untouched(memory_.content()); }

 private:
  static constexpr std::byte kUntouched{0xFF};
  static bool all_untouched(const std::vector<std::byte>& content) {
    // Every byte is as its neighbour: many times quicker than one by one.
    return content.empty() || (content[0] == kUntouched &&
                               std::memcmp(content.data(), content.data() + 1, content.size() - 1) == 0);
  }
  static std::size_t total(const Place& place, std::size_t element_bytes, const Arrangement& a) {
    return 2 * place.band() + static_cast<std::size_t>(a.span) * element_bytes;
  }
  static std::vector<std::byte> image(const Place& place, DType dtype, const Arrangement& a,
                                      const std::vector<double>& values) {
    const std::size_t size = size_of(dtype);
    std::vector<std::byte> bytes(total(place, size, a), kUntouched);
    const Tensor rounded = Tensor::rounded(dtype, {static_cast<std::int64_t>(values.size())}, values);
    const std::size_t of_row = static_cast<std::size_t>(a.d) * size;
    for (std::int64_t i = 0; i < a.rows(); ++i) {
      std::memcpy(bytes.data() + place.band() + static_cast<std::size_t>(a.row_at(i)) * size,
                  rounded.data() + static_cast<std::size_t>(i) * of_row, of_row);
    }
    return bytes;
  }
  std::size_t row_bytes() const { return static_cast<std::size_t>(a_.d) * element_bytes_; }
  std::size_t place_of(std::int64_t row) const {
    return band_ + static_cast<std::size_t>(a_.row_at(row)) * element_bytes_;
  }

  Arrangement a_;
  std::size_t element_bytes_, band_;
  typename Place::Memory memory_;
};

// The buffers and the parameters of a forward and its backward.
template <typename Place>
class KernelCall {
 public:
  sa::ForwardParams forward;
  sa::BackwardParams backward;

  KernelCall(const reference::naive::Data& data, DType dtype, const RunOptions& options, const Place& place)
      : p_(data.problem),
        options_(options),
        dtype_(dtype),
        rows_(arranged(p_.b, p_.hq, p_.sq, p_.d, options)),
        keys_(arranged(p_.b, p_.hkv, p_.sk, p_.d, options)),
        read_keys_(arranged(p_.b, p_.hkv, p_.sk, p_.d, options, options.broadcast_kv)),
        q_(place, dtype, rows_, data.q),
        k_(place, dtype, read_keys_, data.k),
        v_(place, dtype, read_keys_, data.v),
        dout_(place, dtype, rows_, data.dout),
        out_(place, size_of(dtype), rows_),
        dq_(place, size_of(dtype), rows_),
        dk_(place, size_of(dtype), keys_),
        dv_(place, size_of(dtype), keys_),
        lse_(place, sizeof(float), flat(p_.b * p_.hq * p_.sq)),
        dsinks_(place, sizeof(float), flat(p_.hq)),
        residual_(place, 1, flat(p_.b * p_.hq * p_.sq * p_.d)) {
    if (!data.sinks.empty()) sinks_.emplace(place, options.sink_dtype, flat(p_.hq), data.sinks);
    if (!data.dlse.empty()) dlse_.emplace(place, DType::kFp32, flat(p_.b * p_.hq * p_.sq), data.dlse);
    const sa::Problem problem = kernel_problem(place);
    forward_workspace_.emplace(place, 1,
                               flat(static_cast<std::int64_t>(place.forward_workspace_bytes(problem))));
    backward_workspace_.emplace(place, 1,
                                flat(static_cast<std::int64_t>(place.backward_workspace_bytes(problem))));
    fill_forward(problem, place);
    fill_backward(place);
  }

  // What the outputs hold now; those that are not wanted must be as they were, and are left empty.
  KernelRun result() const {
    KernelRun run;
    run.guards_intact = forward_workspace_->guards_intact() && backward_workspace_->guards_intact();
    const auto read = [&](bool wanted, const PlacedTensor<Place>& tensor, DType dtype,
                          std::vector<double>& into) {
      run.guards_intact = run.guards_intact && (wanted ? tensor.guards_intact() : tensor.wholly_untouched());
      if (!wanted) return;
      const std::vector<std::byte> elements = tensor.elements();
      run.bits.insert(run.bits.end(), elements.begin(), elements.end());
      into = widened(elements, dtype);
    };
    read(true, out_, dtype_, run.out);
    read(true, lse_, DType::kFp32, run.lse);
    read(options_.want_dq, dq_, dtype_, run.dq);
    read(options_.want_dk, dk_, dtype_, run.dk);
    read(options_.want_dv, dv_, dtype_, run.dv);
    read(options_.want_dsinks, dsinks_, DType::kFp32, run.dsinks);
    if (options_.residual) {
      const std::vector<std::byte> elements = residual_.elements();
      run.bits.insert(run.bits.end(), elements.begin(), elements.end());
    }
    run.guards_intact =
        run.guards_intact && (options_.residual ? residual_.guards_intact() : residual_.wholly_untouched());
    return run;
  }

 private:
  static std::vector<double> widened(const std::vector<std::byte>& elements, DType dtype) {
    Tensor tensor(dtype, {static_cast<std::int64_t>(elements.size() / size_of(dtype))});
    std::copy(elements.begin(), elements.end(), tensor.data());
    return tensor.widened();
  }

  sa::Problem kernel_problem(const Place& place) {
    sa::Problem problem;
    problem.dtype = kernel_dtype(dtype_);
    problem.sink_dtype = kernel_dtype(options_.sink_dtype);
    problem.b = p_.b;
    problem.hq = p_.hq;
    problem.hkv = p_.hkv;
    problem.sq = p_.sq;
    problem.sk = p_.sk;
    problem.d = p_.d;
    problem.scale = static_cast<float>(p_.scale);
    problem.causal = p_.causal;
    problem.window = p_.window;
    if (p_.cu_q.empty()) return problem;
    problem.documents = static_cast<std::int32_t>(p_.cu_q.size()) - 1;
    problem.cu_seqlens_q = offsets(place, p_.cu_q, cu_q_);
    problem.cu_seqlens_k = offsets(place, p_.cu_k, cu_k_);
    return problem;
  }
  static const std::int32_t* offsets(const Place& place, const std::vector<std::int64_t>& cu,
                                     std::optional<typename Place::Memory>& into) {
    const std::vector<std::int32_t> values(cu.begin(), cu.end());
    std::vector<std::byte> bytes(values.size() * sizeof(std::int32_t));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    into.emplace(place.holding(std::move(bytes)));
    return reinterpret_cast<const std::int32_t*>(into->data());
  }

  void fill_forward(const sa::Problem& problem, const Place& place) {
    forward.problem = problem;
    forward.q = rows_.at<sa::ConstTensor>(q_.data(), options_.idle_strides);
    forward.k = read_keys_.at<sa::ConstTensor>(k_.data(), options_.idle_strides);
    forward.v = read_keys_.at<sa::ConstTensor>(v_.data(), options_.idle_strides);
    forward.sinks = sinks_ ? sinks_->data() : nullptr;
    forward.out = rows_.at<sa::MutableTensor>(out_.data(), options_.idle_strides);
    forward.lse = reinterpret_cast<float*>(lse_.data());
    if (options_.residual) forward.residual = reinterpret_cast<std::int8_t*>(residual_.data());
    forward.workspace = forward_workspace_->data();
    forward.workspace_bytes = place.forward_workspace_bytes(problem);
  }

  void fill_backward(const Place& place) {
    backward.problem = forward.problem;
    backward.q = forward.q;
    backward.k = forward.k;
    backward.v = forward.v;
    backward.sinks = forward.sinks;
    backward.out = rows_.at<sa::ConstTensor>(out_.data(), options_.idle_strides);
    backward.lse = forward.lse;
    backward.residual = forward.residual;
    backward.dout = rows_.at<sa::ConstTensor>(dout_.data(), options_.idle_strides);
    backward.dlse = dlse_ ? reinterpret_cast<const float*>(dlse_->data()) : nullptr;
    if (options_.want_dq) backward.dq = rows_.at<sa::MutableTensor>(dq_.data(), options_.idle_strides);
    if (options_.want_dk) backward.dk = keys_.at<sa::MutableTensor>(dk_.data(), options_.idle_strides);
    if (options_.want_dv) backward.dv = keys_.at<sa::MutableTensor>(dv_.data(), options_.idle_strides);
    if (options_.want_dsinks) backward.dsinks = reinterpret_cast<float*>(dsinks_.data());
    backward.workspace = backward_workspace_->data();
    backward.workspace_bytes = place.backward_workspace_bytes(forward.problem);
  }

  reference::Problem p_;
  RunOptions options_;
  DType dtype_;
  Arrangement rows_, keys_, read_keys_;
  PlacedTensor<Place> q_, k_, v_, dout_, out_, dq_, dk_, dv_, lse_, dsinks_, residual_;
  std::optional<PlacedTensor<Place>> sinks_, dlse_, forward_workspace_, backward_workspace_;
  std::optional<typename Place::Memory> cu_q_, cu_k_;
};

template <typename Place>
KernelRun run_kernel_at(const Place& place, const reference::naive::Data& data, DType dtype,
                        const RunOptions& options = {}) {
  KernelCall<Place> call(data, dtype, options, place);
  const sa::Status forward = place.forward(call.forward), backward = place.backward(call.backward);
  KernelRun run = call.result();
  run.forward = forward;
  run.backward = backward;
  return run;
}

inline KernelRun run_kernel(const reference::naive::Data& data, DType dtype, const RunOptions& options = {}) {
  return run_kernel_at(CpuPlace{options.cpu}, data, dtype, options);
}

}  // namespace sinkscope::testing_kernel
