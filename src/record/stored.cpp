// SPDX-License-Identifier: Apache-2.0
#include "src/record/stored.hpp"

#include <algorithm>

#include "fmt/format.h"

#include "src/core/error.hpp"
#include "src/record/h5.hpp"

namespace sinkscope {
namespace {

[[noreturn]] void fail_missing(const std::string& path, const std::string& problem, const std::string& what) {
  throw InputError(
      fmt::format("{} has no stored {} in {}; write it with compare --save-tensors", path, what, problem));
}

// The group of a problem's tensors: the inputs that every case has, and what each path gave.
h5::Handle open_tensors(const std::string& path, hid_t problem, const CaseResult& result) {
  if (!h5::exists(problem, "tensors")) fail_missing(path, result.name, "tensors");
  h5::Handle tensors = h5::open_group(problem, "tensors");
  const h5::Handle inputs = h5::open_group(tensors, "inputs");
  for (const char* name : {"q", "k", "v"}) {
    if (!h5::exists(inputs, name)) fail_missing(path, result.name, name);
  }
  for (const PathResult& of : result.paths) {
    for (const TensorMetrics& metrics : of.metrics) {  // none where it did not run
      const std::string name(text(metrics.tensor));
      if (!h5::exists(tensors, of.path) || !h5::exists(h5::open_group(tensors, of.path), name))
        fail_missing(path, result.name, fmt::format("{} of {}", name, of.path));
    }
  }
  return tensors;
}

// A tensor in its own format; not given where it is not there.
Tensor read_tensor(hid_t group, const std::string& name) {
  if (!h5::exists(group, name)) return {};
  const h5::Handle dataset = h5::open_dataset(group, name);
  const std::string format = h5::read_text_attribute(dataset, "format");
  const std::optional<DType> dtype = dtype_from_name(format);
  const h5::Extents extents = h5::extents_of(dataset);
  if (!dtype || extents.empty()) throw h5::Hdf5Error(fmt::format("{} has format '{}'", name, format));
  Tensor tensor(*dtype, std::vector<std::int64_t>(extents.begin(), extents.end()));
  switch (*dtype) {
    case DType::kBf16:
    case DType::kFp16:
      h5::read_dataset(group, name, tensor.as<std::uint16_t>());
      return tensor;
    case DType::kFp32:
      h5::read_dataset(group, name, tensor.as<float>());
      return tensor;
    case DType::kFp64:
      h5::read_dataset(group, name, tensor.as<double>());
      return tensor;
    default:
      throw h5::Hdf5Error(fmt::format("{} has format '{}'", name, format));
  }
}

// Sizes that everything after this takes for granted; whether the bytes are right the sha256 says.
void check_inputs(const Case& c) {
  const AttentionShape& s = c.problem.shape;
  const std::vector<std::int64_t> rows = output_shape(s, TensorName::kDq),
                                  keys = output_shape(s, TensorName::kDk);
  const std::vector<std::int64_t> lse = output_shape(s, TensorName::kLse), heads = {s.hq};
  for (const auto& [tensor, wanted] : {std::pair{&c.q, &rows},
                                       {&c.k, &keys},
                                       {&c.v, &keys},
                                       {&c.dout, &rows},
                                       {&c.dlse, &lse},
                                       {&c.sinks, &heads}}) {
    if (tensor->given() && tensor->shape() != *wanted) {
      throw h5::Hdf5Error(
          fmt::format("an input has shape {}, wanted {}", shape_text(tensor->shape()), shape_text(*wanted)));
    }
  }
}

Case read_inputs(hid_t tensors, const CaseResult& result) {
  Case c;
  c.name = result.name;
  c.problem = parse_problem(result.problem_line);
  c.metadata = result.metadata;
  const h5::Handle inputs = h5::open_group(tensors, "inputs");
  for (const auto& [name, tensor] : {std::pair{"q", &c.q},
                                     {"k", &c.k},
                                     {"v", &c.v},
                                     {"sinks", &c.sinks},
                                     {"dout", &c.dout},
                                     {"dlse", &c.dlse}}) {
    *tensor = read_tensor(inputs, name);
  }
  if (!c.problem.capture.empty()) {  // else the line says all the rest
    c.problem.shape = result.shape;
    c.problem.dlse = c.dlse.given();
    c.problem.sink = c.sinks.given() ? SinkKind::kNormal : SinkKind::kNone;
    if (c.sinks.given()) c.problem.sink_dtype = c.sinks.dtype();
    check_problem(c.problem);
  }
  check_inputs(c);
  set_padding_apart(c);
  return c;
}

// A path that gives what is stored, as its backend gave it.
Path stored_path(const PathResult& result, Outputs outputs) {
  Path path;
  path.name = result.path;
  path.summary = "outputs that a record keeps";
  path.backends = result.backend;
  std::optional<std::string> reason;
  if (result.metrics.empty())
    reason = result.verdicts.empty() ? "it was not measured" : result.verdicts.front().reason;
  path.unsupported = [reason](const Case&) { return reason; };
  path.run = [outputs = std::move(outputs), backend = result.backend](const Case&, const PathOptions&) {
    return PathRun{outputs, backend};
  };
  return path;
}

}  // namespace

void require_tensors(const std::string& path, const Record& record) {
  try {
    const h5::Handle file = h5::open_file(path);
    const h5::Handle problems = h5::open_group(file, "problems");
    for (const CaseResult& result : record.cases)
      open_tensors(path, h5::open_group(problems, result.name), result);
  } catch (const h5::Hdf5Error& hdf5) {
    throw InputError(fmt::format("{} cannot be read as a record: {}", path, hdf5.what()));
  }
}

StoredCase read_stored_case(const std::string& path, const CaseResult& result) {
  try {
    const h5::Handle file = h5::open_file(path);
    const h5::Handle problems = h5::open_group(file, "problems");
    const h5::Handle tensors = open_tensors(path, h5::open_group(problems, result.name), result);
    StoredCase stored{read_inputs(tensors, result), {}};
    if (const std::string sha256 = inputs_sha256(stored.c); sha256 != result.inputs_sha256) {
      throw InputError(
          fmt::format("{}: the stored inputs of {} have sha256 {}, wanted {}, that of what was measured",
                      path, result.name, sha256, result.inputs_sha256));
    }
    for (const PathResult& of : result.paths) {
      Outputs outputs;
      for (const TensorMetrics& metrics : of.metrics) {
        const h5::Handle group = h5::open_group(tensors, of.path);
        const std::vector<std::int64_t> wanted = output_shape(stored.c.problem.shape, metrics.tensor);
        Tensor& tensor = outputs[metrics.tensor];
        tensor = read_tensor(group, std::string(text(metrics.tensor)));
        if (tensor.shape() != wanted) {
          throw InputError(fmt::format("{}: the stored {} of {} in {} has shape {}, wanted {}", path,
                                       text(metrics.tensor), of.path, result.name, shape_text(tensor.shape()),
                                       shape_text(wanted)));
        }
      }
      stored.paths.push_back(stored_path(of, std::move(outputs)));
    }
    return stored;
  } catch (const h5::Hdf5Error& hdf5) {
    throw InputError(fmt::format("{}: the tensors of {} cannot be read: {}", path, result.name, hdf5.what()));
  }
}

}  // namespace sinkscope
