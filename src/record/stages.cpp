// SPDX-License-Identifier: Apache-2.0
#include "src/record/stages.hpp"

#include "src/record/h5.hpp"

namespace sinkscope {
namespace {

// The columns that both groups have.
struct Rows {
  std::vector<std::string> path, tensor, name;
  std::vector<std::int64_t> batch, head, expected;
  std::vector<double> share, bias;

  void add(const PathResult& of, const HeadStages& at, const std::string& named, double share_of,
           double bias_of, bool is_expected) {
    path.push_back(of.path);
    tensor.emplace_back(text(at.tensor));
    name.push_back(named);
    batch.push_back(at.batch);
    head.push_back(at.head);
    expected.push_back(is_expected ? 1 : 0);
    share.push_back(share_of);
    bias.push_back(bias_of);
  }

  void write(hid_t explain, const char* group_name, const char* column) const {
    const h5::Handle group = h5::create_group(explain, group_name);
    const h5::Extents extents = {path.size()};
    h5::write_dataset(group, "path", path);
    h5::write_dataset(group, "tensor", tensor);
    h5::write_dataset(group, column, name);
    h5::write_dataset(group, "batch", extents, std::span<const std::int64_t>(batch));
    h5::write_dataset(group, "head", extents, std::span<const std::int64_t>(head));
    h5::write_dataset(group, "bias", extents, std::span<const double>(bias));
    if (std::string_view(column) != "stage") return;
    h5::write_dataset(group, "share", extents, std::span<const double>(share));
    h5::write_dataset(group, "expected", extents, std::span<const std::int64_t>(expected));
  }
};

}  // namespace

void write_stages(hid_t explain, const CaseResult& result) {
  Rows stages, sources;
  for (const PathResult& path : result.paths) {
    for (const HeadStages& head : path.explanation.stages) {
      double bias_left = head.bias;
      for (const StageShare& one : head.stages) {
        stages.add(path, head, one.stage, one.share, one.bias, one.expected);
        bias_left -= one.bias;
      }
      stages.add(path, head, "remainder", head.remainder, bias_left, false);
      for (const BiasSource& source : head.bias_sources)
        sources.add(path, head, source.source, 0, source.bias, false);
    }
  }
  if (!stages.path.empty()) stages.write(explain, "stages", "stage");
  if (!sources.path.empty()) sources.write(explain, "bias", "source");
}

}  // namespace sinkscope
