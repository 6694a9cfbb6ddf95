// SPDX-License-Identifier: Apache-2.0
#include "tools/python/native/tensors.hpp"

#include <limits>
#include <stdexcept>
#include <torch/csrc/stable/ops.h>
#include <vector>

namespace sinkscope_python {
namespace {

using Shape = std::vector<std::int64_t>;

Shape shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

std::string text_of(const Shape& shape) {
  std::string text = "[";
  for (const std::int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

std::string text_of(ScalarType dtype) {
  return torch::headeronly::toString(dtype);
}

void require_shape(const Tensor& tensor, const Shape& wanted, const char* name) {
  const Shape seen = shape_of(tensor);
  require(seen == wanted, std::string(name) + " has shape " + text_of(seen) + ", wanted " + text_of(wanted));
}

void require_dtype(const Tensor& tensor, ScalarType wanted, const char* name) {
  const ScalarType seen = tensor.scalar_type();
  require(seen == wanted, std::string(name) + " is " + text_of(seen) + ", wanted " + text_of(wanted));
}

void require_device(const Tensor& tensor, const Tensor& like, const char* name) {
  require(tensor.is_cuda() == like.is_cuda() && tensor.is_cpu() == like.is_cpu() &&
              tensor.get_device_index() == like.get_device_index(),
          std::string(name) + " is on another device than q, wanted the same");
}

Shape shape_as_q(const Sizes& n, bool bshd) {
  return bshd ? Shape{n.b, n.sq, n.hq, n.d} : Shape{n.b, n.hq, n.sq, n.d};
}

Shape shape_as_k(const Sizes& n, bool bshd) {
  return bshd ? Shape{n.b, n.sk, n.hkv, n.d} : Shape{n.b, n.hkv, n.sk, n.d};
}

void check_sinks(const Tensor& sinks, const Tensor& q, std::int64_t hq) {
  const ScalarType dtype = sinks.scalar_type();
  require_shape(sinks, {hq}, "sinks");
  require_device(sinks, q, "sinks");
  if (q.scalar_type() == ScalarType::Double) return require_dtype(sinks, ScalarType::Double, "sinks");
  require(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
          "sinks are " + text_of(dtype) + ", wanted Float, BFloat16 or Half");
}

void check_offsets(const Tensor& cu, const Tensor& q, const char* name) {
  require_dtype(cu, ScalarType::Int, name);
  require_device(cu, q, name);
  require(cu.dim() == 1 && cu.is_contiguous() && cu.numel() >= 2 &&
              cu.numel() <= std::numeric_limits<std::int32_t>::max(),
          std::string(name) + " has shape " + text_of(shape_of(cu)) +
              ", wanted a contiguous [documents + 1] with at least one document");
}

std::int32_t checked_documents(const Attention& a, std::int64_t b) {
  require(a.cu_seqlens_q.has_value() == a.cu_seqlens_k.has_value(),
          "one of cu_seqlens_q and cu_seqlens_k is None, wanted both or neither");
  if (!a.cu_seqlens_q) return 0;
  check_offsets(*a.cu_seqlens_q, a.q, "cu_seqlens_q");
  check_offsets(*a.cu_seqlens_k, a.q, "cu_seqlens_k");
  require_shape(*a.cu_seqlens_k, shape_of(*a.cu_seqlens_q), "cu_seqlens_k");
  require(b == 1, "b " + std::to_string(b) + " with cu_seqlens, wanted 1");
  return static_cast<std::int32_t>(a.cu_seqlens_q->numel() - 1);
}

}  // namespace

void require(bool condition, const std::string& message) {
  if (!condition) throw std::runtime_error("sinkscope: " + message);
}

Sizes checked_sizes(const Attention& a) {
  require(a.q.dim() == 4, "q has " + std::to_string(a.q.dim()) + " dimensions, wanted 4");
  require(a.k.dim() == 4, "k has " + std::to_string(a.k.dim()) + " dimensions, wanted 4");
  const Layout at(a.bshd);
  Sizes n{a.q.size(0), a.q.size(at.head), a.k.size(at.head), a.q.size(at.row), a.k.size(at.row), a.q.size(3)};
  require_shape(a.k, shape_as_k(n, a.bshd), "k");
  require_shape(a.v, shape_as_k(n, a.bshd), "v");
  require_dtype(a.k, a.q.scalar_type(), "k");
  require_dtype(a.v, a.q.scalar_type(), "v");
  require_device(a.k, a.q, "k");
  require_device(a.v, a.q, "v");
  if (a.sinks) check_sinks(*a.sinks, a.q, n.hq);
  n.documents = checked_documents(a, n.b);
  return n;
}

void check_backward_inputs(const Attention& a, const BackwardInputs& in, const Sizes& n) {
  const ScalarType lse_dtype =
      a.q.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  for (const auto& [tensor, name] : {std::pair{&in.dout, "dout"}, {&in.out, "out"}}) {
    require_shape(*tensor, shape_as_q(n, a.bshd), name);
    require_dtype(*tensor, a.q.scalar_type(), name);
    require_device(*tensor, a.q, name);
  }
  const Tensor* dlse = in.dlse ? &*in.dlse : nullptr;
  for (const auto& [tensor, name] : {std::pair{&in.lse, "lse"}, {dlse, "dlse"}}) {
    if (tensor == nullptr) continue;
    require_shape(*tensor, {n.b, n.hq, n.sq}, name);
    require_dtype(*tensor, lse_dtype, name);
    require_device(*tensor, a.q, name);
  }
  if (!in.residual || in.residual->numel() == 0) return;
  require_shape(*in.residual, {n.b, n.hq, n.sq, n.d}, "residual");
  require_dtype(*in.residual, ScalarType::Char, "residual");
  require_device(*in.residual, a.q, "residual");
}

Tensor new_tensor(const Tensor& like, std::initializer_list<std::int64_t> shape, ScalarType dtype) {
  return torch::stable::new_empty(like, Shape(shape), dtype);
}

Tensor new_like(const Tensor& like, bool wanted) {
  return torch::stable::new_empty(like, wanted ? shape_of(like) : Shape{0});
}

}  // namespace sinkscope_python
