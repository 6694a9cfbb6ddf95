// SPDX-License-Identifier: Apache-2.0
#include "src/capture/capture.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "fmt/format.h"

#include "src/capture/safetensors.hpp"
#include "src/core/error.hpp"

namespace sinkscope {
namespace {

constexpr std::string_view kFormatName = "sink-attention-capture";
constexpr std::string_view kFormatVersion = "1";

// Swaps the second and third dimension of [b, x, y, ...].
Tensor swapped(const Tensor& tensor) {
  const std::vector<std::int64_t>& shape = tensor.shape();
  std::vector<std::int64_t> new_shape = shape;
  std::swap(new_shape[1], new_shape[2]);
  Tensor result(tensor.dtype(), new_shape);
  const std::int64_t tail = shape.size() > 3 ? shape[3] : 1;
  const std::size_t run = static_cast<std::size_t>(tail) * size_of(tensor.dtype());
  for (std::int64_t b = 0; b < shape[0]; ++b) {
    for (std::int64_t x = 0; x < shape[1]; ++x) {
      for (std::int64_t y = 0; y < shape[2]; ++y) {
        const std::byte* from =
            tensor.data() + static_cast<std::size_t>((b * shape[1] + x) * shape[2] + y) * run;
        std::copy_n(from, run,
                    result.data() + static_cast<std::size_t>((b * shape[2] + y) * shape[1] + x) * run);
      }
    }
  }
  return result;
}

// Takes tensors and metadata out of a safetensors file, checking each as it goes.
class CaptureReader {
 public:
  explicit CaptureReader(const std::string& path) : path_(path), content_(read_safetensors(path)) {}

  Case read(const Problem& asked) {
    expect_metadata("format", kFormatName);
    expect_metadata("version", kFormatVersion);
    const std::string layout = metadata("layout");
    if (layout != "bhsd" && layout != "bshd")
      fail(fmt::format("has layout '{}', wanted bhsd or bshd", layout));
    bshd_ = layout == "bshd";

    Case c;
    c.name = std::filesystem::path(path_).stem().string();
    c.problem = asked;
    AttentionShape& s = c.problem.shape;
    read_inputs(c);
    s.causal = number<std::int64_t>("causal", "whole number", 0, 1) != 0;
    s.window = number<std::int64_t>("window", "whole number", 0, 0x7FFFFFFF);
    s.scale = number<double>("scale", "number", -1e30, 1e30);
    s.docs = documents("cu_seqlens", s.sq);
    s.docs_k = documents("cu_seqlens_k", s.sk);
    s.seqlens = lengths("seqlens", s.b);
    c.problem.dlse = c.dlse.given();
    c.problem.sink = c.sinks.given() ? SinkKind::kNormal : SinkKind::kNone;
    if (c.sinks.given()) c.problem.sink_dtype = c.sinks.dtype();
    if (bshd_ && asked.layout == Layout::kBhsd) c.problem.layout = Layout::kBshd;
    read_recorded(c);
    try {
      check_problem(c.problem);
    } catch (const InputError& error) {
      fail(fmt::format("holds an {}", error.what()));
    }
    set_padding_apart(c);
    c.metadata = content_.metadata;
    return c;
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    throw InputError(fmt::format("{} {}", path_, message));
  }

  std::string metadata(const std::string& key) const {
    const auto found = content_.metadata.find(key);
    if (found == content_.metadata.end()) fail(fmt::format("has no metadata '{}': it is not a capture", key));
    return found->second;
  }

  void expect_metadata(const std::string& key, std::string_view wanted) const {
    const std::string value = metadata(key);
    if (value != wanted) fail(fmt::format("has {} '{}', wanted '{}'", key, value, wanted));
  }

  template <typename T>
  T number(const std::string& key, std::string_view kind, T least, T most) const {
    const std::string text = metadata(key);
    T value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || !(value >= least && value <= most)) {
      fail(fmt::format("has {} '{}', wanted a {} from {} to {}", key, text, kind, least, most));
    }
    return value;
  }

  // Removes a tensor from the file's map; not given where it is absent. A scalar would look like that too.
  Tensor take(const std::string& name) {
    auto node = content_.tensors.extract(name);
    if (node.empty()) return {};
    if (node.mapped().shape().empty()) fail(fmt::format("has '{}' of shape [], wanted a tensor", name));
    return std::move(node.mapped());
  }

  Tensor take_heads_first(const std::string& name, std::size_t dimensions) {
    Tensor tensor = take(name);
    if (!tensor.given()) return tensor;
    if (tensor.shape().size() != dimensions) {
      fail(fmt::format("has '{}' of shape {}, wanted {} dimensions", name, shape_text(tensor.shape()),
                       dimensions));
    }
    return bshd_ && dimensions == 4 ? swapped(tensor) : tensor;
  }

  void expect_shape(const std::string& name, const Tensor& tensor,
                    const std::vector<std::int64_t>& wanted) const {
    if (tensor.shape() != wanted) {
      fail(fmt::format("has '{}' of shape {}, wanted {} (as [b, h, s, d])", name, shape_text(tensor.shape()),
                       shape_text(wanted)));
    }
  }

  void expect_float(const std::string& name, const Tensor& tensor, bool double_too) const {
    const DType dtype = tensor.dtype();
    const bool fits = dtype == DType::kBf16 || dtype == DType::kFp16 || dtype == DType::kFp32 ||
                      (double_too && dtype == DType::kFp64);
    if (!fits) {
      fail(fmt::format("has '{}' in {}, wanted bf16, fp16{}", name, name_of(dtype),
                       double_too ? ", fp32 or fp64" : " or fp32"));
    }
  }

  void read_inputs(Case& c) {
    const std::array<std::pair<const char*, Tensor*>, 4> tensors = {
        {{"q", &c.q}, {"k", &c.k}, {"v", &c.v}, {"dout", &c.dout}}};
    for (const auto& [name, tensor] : tensors) {
      *tensor = take_heads_first(name, 4);
      if (!tensor->given()) {
        if (tensor == &c.dout) continue;
        fail(fmt::format("has no tensor '{}'", name));
      }
      expect_float(name, *tensor, false);
      if (tensor->dtype() != c.q.dtype()) {
        fail(fmt::format("has '{}' in {}, wanted {} as q", name, name_of(tensor->dtype()),
                         name_of(c.q.dtype())));
      }
      if (tensor->size() == 0)
        fail(fmt::format("has '{}' of shape {}: it is empty", name, shape_text(tensor->shape())));
    }
    AttentionShape& s = c.problem.shape;
    s.dtype = c.q.dtype();
    s.b = c.q.shape()[0];
    s.hq = c.q.shape()[1];
    s.sq = c.q.shape()[2];
    s.d = c.q.shape()[3];
    s.hkv = c.k.shape()[1];
    s.sk = c.k.shape()[2];
    expect_shape("k", c.k, {s.b, s.hkv, s.sk, s.d});
    expect_shape("v", c.v, {s.b, s.hkv, s.sk, s.d});
    if (c.dout.given()) expect_shape("dout", c.dout, {s.b, s.hq, s.sq, s.d});
    c.sinks = take("sinks");
    if (c.sinks.given()) {
      expect_shape("sinks", c.sinks, {s.hq});
      expect_float("sinks", c.sinks, false);
    }
    c.dlse = take("dlse");
    if (c.dlse.given()) {
      expect_shape("dlse", c.dlse, {s.b, s.hq, s.sq});
      if (c.dlse.dtype() != DType::kFp32)
        fail(fmt::format("has 'dlse' in {}, wanted fp32", name_of(c.dlse.dtype())));
      if (!c.dout.given()) fail("has 'dlse' without 'dout'");
    }
    if (!c.dout.given()) c.problem.grads = {false, false, false, false};
  }

  void expect_integers(const std::string& name, const Tensor& tensor) const {
    if (tensor.dtype() != DType::kInt32 && tensor.dtype() != DType::kInt64)
      fail(fmt::format("has '{}' in {}, wanted i32 or i64", name, name_of(tensor.dtype())));
  }

  // One length per batch entry; check_problem says what they may be.
  std::vector<std::int64_t> lengths(const std::string& name, std::int64_t count) {
    const Tensor tensor = take(name);
    if (!tensor.given()) return {};
    expect_integers(name, tensor);
    expect_shape(name, tensor, {count});
    std::vector<std::int64_t> values;
    for (std::int64_t i = 0; i < count; ++i) values.push_back(static_cast<std::int64_t>(tensor.at(i)));
    return values;
  }

  // Lengths of packed documents from their offsets.
  std::vector<std::int64_t> documents(const std::string& name, std::int64_t total) {
    const Tensor cu = take(name);
    if (!cu.given()) return {};
    expect_integers(name, cu);
    if (cu.shape().size() != 1 || cu.size() < 2) {
      fail(fmt::format("has '{}' of shape {}, wanted [documents + 1]", name, shape_text(cu.shape())));
    }
    std::vector<std::int64_t> lengths;
    for (std::int64_t i = 0; i < cu.size(); ++i) {
      const double offset = cu.at(i);
      const double before = i == 0 ? 0 : cu.at(i - 1);
      if (i == 0 ? offset != 0 : !(offset >= before && offset <= static_cast<double>(total))) {
        fail(fmt::format("has '{}' with {} at {}, wanted offsets rising from 0 to {}", name, offset, i,
                         total));
      }
      if (i > 0) lengths.push_back(static_cast<std::int64_t>(offset - before));
    }
    if (cu.at(cu.size() - 1) != static_cast<double>(total)) {
      fail(fmt::format("has '{}' ending at {}, wanted {}", name, cu.at(cu.size() - 1), total));
    }
    return lengths;
  }

  // A recorded name becomes a path's name: in --paths, in the record, in file formats.
  void check_recorded_name(const std::string& recorded, const std::string& tensor) const {
    const bool plain = std::all_of(recorded.begin(), recorded.end(), [](unsigned char c) {
      return std::isalnum(c) != 0 || c == '.' || c == '_' || c == '-' || c == '+';
    });
    if (!plain)
      fail(fmt::format("has a recorded output '{}', wanted a name of letters, digits and . _ - +", tensor));
  }

  // What is left must be recorded outputs, NAME.TENSOR.
  void read_recorded(Case& c) {
    const AttentionShape& s = c.problem.shape;
    std::vector<std::string> names;
    for (const auto& [name, tensor] : content_.tensors) names.push_back(name);
    for (const std::string& name : names) {
      const std::size_t dot = name.rfind('.');
      const auto* const kind = std::find_if(kTensorNames.begin(), kTensorNames.end(), [&](TensorName t) {
        return dot != std::string::npos && dot > 0 && text(t) == std::string_view(name).substr(dot + 1);
      });
      if (kind == kTensorNames.end()) {
        fail(fmt::format(
            "has an unknown tensor '{}', wanted an input or NAME.out, .lse, .dq, .dk, .dv or .dsinks", name));
      }
      check_recorded_name(name.substr(0, dot), name);
      const bool is_gradient = *kind != TensorName::kOut && *kind != TensorName::kLse;
      if (is_gradient && !c.dout.given()) fail(fmt::format("has the gradient '{}' but no 'dout'", name));
      if (*kind == TensorName::kDsinks && !c.sinks.given())
        fail(fmt::format("has '{}' but no 'sinks'", name));
      const bool has_d = *kind != TensorName::kLse && *kind != TensorName::kDsinks;
      Tensor tensor = has_d ? take_heads_first(name, 4) : take(name);
      expect_shape(name, tensor, output_shape(s, *kind));
      expect_float(name, tensor, true);
      c.recorded[name.substr(0, dot)][*kind] = std::move(tensor);
    }
  }

  std::string path_;
  Safetensors content_;
  bool bshd_ = false;
};

Tensor integers_tensor(const std::vector<std::int64_t>& values) {
  Tensor tensor(DType::kInt32, {static_cast<std::int64_t>(values.size())});
  for (std::size_t i = 0; i < values.size(); ++i)
    tensor.set(static_cast<std::int64_t>(i), static_cast<double>(values[i]));
  return tensor;
}

}  // namespace

Case load_capture(const Problem& problem) {
  return CaptureReader(problem.capture).read(problem);
}

void save_capture(const std::string& path, const Case& c, bool overwrite) {
  const AttentionShape& s = c.problem.shape;
  Safetensors content;
  content.metadata = c.metadata;
  content.metadata["format"] = kFormatName;
  content.metadata["version"] = kFormatVersion;
  content.metadata["layout"] = name_of(c.problem.layout);
  content.metadata["causal"] = s.causal ? "1" : "0";
  content.metadata["window"] = std::to_string(s.window);
  content.metadata["scale"] = fmt::format("{}", s.scale);
  const bool bshd = c.problem.layout == Layout::kBshd;
  const auto put = [&](const std::string& name, const Tensor& tensor) {
    if (!tensor.given()) return;
    content.tensors[name] = bshd && tensor.shape().size() == 4 ? swapped(tensor) : tensor;
  };
  put("q", c.q);
  put("k", c.k);
  put("v", c.v);
  put("sinks", c.sinks);
  put("dout", c.padded_dout.given() ? c.padded_dout : c.dout);
  put("dlse", c.padded_dlse.given() ? c.padded_dlse : c.dlse);
  if (!s.docs.empty()) content.tensors["cu_seqlens"] = integers_tensor(s.cu_q());
  if (!s.docs_k.empty()) content.tensors["cu_seqlens_k"] = integers_tensor(s.cu_k());
  if (!s.seqlens.empty()) content.tensors["seqlens"] = integers_tensor(s.seqlens);
  for (const auto& [name, outputs] : c.recorded) {
    for (const TensorName tensor : kTensorNames)
      put(fmt::format("{}.{}", name, text(tensor)), outputs[tensor]);
  }
  write_safetensors(path, content, overwrite);
}

std::vector<std::string> captures_at(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) return {path};
  std::vector<std::string> captures;
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
    if (entry.path().extension() == ".safetensors") captures.push_back(entry.path().string());
  }
  if (error) throw InputError(fmt::format("{} cannot be listed: {}", path, error.message()));
  if (captures.empty())
    throw InputError(fmt::format("{} has no *.safetensors, wanted at least one capture", path));
  std::sort(captures.begin(), captures.end());
  return captures;
}

}  // namespace sinkscope
