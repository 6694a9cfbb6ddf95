// SPDX-License-Identifier: Apache-2.0
// A mistake in one group of heads: the group is cut out as a case of its own, run with the mistake, and put back among
// the healthy heads.
#include <charconv>

#include "fmt/format.h"

#include "src/core/error.hpp"
#include "src/faults/wrap.hpp"

namespace sinkscope {
namespace {

// Heads [first, first + heads) of every batch entry of a tensor [b, h, ...]; of dsinks and sinks [h] with b 1.
struct Slice {
  std::int64_t b, of, first, heads;
};

// Calls copy(element of the whole, element of the part) for each element of the slice.
template <typename Copy>
void for_each_element(const Slice& slice, std::int64_t whole_size, Copy copy) {
  const std::int64_t per_head = whole_size / (slice.b * slice.of);
  for (std::int64_t i = 0; i < slice.b * slice.heads * per_head; ++i) {
    const std::int64_t batch = i / (slice.heads * per_head), rest = i % (slice.heads * per_head);
    copy((batch * slice.of + slice.first) * per_head + rest, i);
  }
}

Tensor cut_out(const Tensor& whole, const Slice& slice) {
  if (!whole.given()) return {};
  std::vector<std::int64_t> shape = whole.shape();
  shape[shape.size() == 1 ? 0 : 1] = slice.heads;
  Tensor part(whole.dtype(), shape);
  for_each_element(slice, whole.size(),
                   [&](std::int64_t from, std::int64_t to) { part.set(to, whole.at(from)); });
  return part;
}

void put_back(Tensor& whole, const Tensor& part, const Slice& slice) {
  if (!whole.given()) return;
  for_each_element(slice, whole.size(), [&](std::int64_t to, std::int64_t from) {
    whole.set(to, part.given() ? part.at(from) : 0);
  });
}

struct Group {
  Slice queries, keys, sinks;
};

Group group_of(const AttentionShape& s, std::int64_t kv_head) {
  const std::int64_t first = kv_head * s.group();
  return {{s.b, s.hq, first, s.group()}, {s.b, s.hkv, kv_head, 1}, {1, s.hq, first, s.group()}};
}

Case case_of_group(const Case& c, std::int64_t kv_head) {
  const Group group = group_of(c.problem.shape, kv_head);
  Case part = c;
  part.problem.shape.hq = group.queries.heads;
  part.problem.shape.hkv = 1;
  part.q = cut_out(c.q, group.queries);
  part.k = cut_out(c.k, group.keys);
  part.v = cut_out(c.v, group.keys);
  part.sinks = cut_out(c.sinks, group.sinks);
  part.dout = cut_out(c.dout, group.queries);
  part.dlse = cut_out(c.dlse, group.queries);
  part.recorded.clear();
  return part;
}

}  // namespace

Path plant_in_group(const Fault& fault, const Path& healthy, std::int64_t kv_head) {
  const Path planted = fault.plant(healthy);
  Path path = healthy;
  path.name = fmt::format("fault:{}@{}:{}", fault.name, kv_head, healthy.name);
  path.prepare = nullptr;
  path.unsupported = [planted, healthy, kv_head, across = fault.across_groups,
                      name = fault.name](const Case& c) -> std::optional<std::string> {
    if (std::optional<std::string> reason = healthy.unsupported(c)) return reason;
    if (kv_head >= c.problem.shape.hkv)
      return fmt::format("the mistake is wanted in key/value head {}, the case has {}", kv_head,
                         c.problem.shape.hkv);
    if (across) return fmt::format("{} takes what belongs to other groups", name);
    if (healthy.name.starts_with("recorded.")) return "recorded outputs cannot be made anew for one group";
    return planted.unsupported(case_of_group(c, kv_head));
  };
  path.run = [planted, healthy, kv_head](const Case& c, const PathOptions& options) {
    PathRun run = healthy.run(c, options);
    const Outputs part = planted.run(case_of_group(c, kv_head), options).outputs;
    const Group group = group_of(c.problem.shape, kv_head);
    for (const TensorName name : {TensorName::kOut, TensorName::kLse, TensorName::kDq})
      put_back(run.outputs[name], part[name], group.queries);
    for (const TensorName name : {TensorName::kDk, TensorName::kDv})
      put_back(run.outputs[name], part[name], group.keys);
    put_back(run.outputs.dsinks, part.dsinks, group.sinks);
    return run;
  };
  return path;
}

Path plant_by_name(std::string_view name, const Path& healthy) {
  const std::size_t at = name.find('@');
  const Fault& fault = find_fault(name.substr(0, at));
  if (at == std::string_view::npos) return fault.plant(healthy);
  const std::string_view digits = name.substr(at + 1);
  std::int64_t kv_head = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), kv_head);
  if (error != std::errc() || end != digits.data() + digits.size() || kv_head < 0) {
    throw InputError(fmt::format("fault '{}': '{}' is no key/value head, wanted {}@0 or higher", name, digits,
                                 fault.name));
  }
  return plant_in_group(fault, healthy, kv_head);
}

}  // namespace sinkscope
