// SPDX-License-Identifier: Apache-2.0
#include "src/record/training.hpp"

#include <map>

#include "src/record/h5.hpp"

namespace sinkscope {
namespace {

// The columns of one group, by name; each gets one value per row.
struct Table {
  std::map<std::string, std::vector<std::string>> texts;
  std::map<std::string, std::vector<std::int64_t>> numbers;
  std::map<std::string, std::vector<double>> reals;

  void add(const std::string& prefix, const Norms& norms) {
    reals[prefix + "norm2"].push_back(norms.got);
    reals[prefix + "norm2_ref"].push_back(norms.ref);
    reals[prefix + "norm2_error"].push_back(norms.error);
  }

  void write(hid_t parent, const std::string& name) const {
    if (texts.empty()) return;
    const h5::Handle group = h5::create_group(parent, name);
    const h5::Extents rows = {texts.begin()->second.size()};
    for (const auto& [column, values] : texts) h5::write_dataset(group, column, values);
    for (const auto& [column, values] : numbers)
      h5::write_dataset(group, column, rows, std::span<const std::int64_t>(values));
    for (const auto& [column, values] : reals)
      h5::write_dataset(group, column, rows, std::span<const double>(values));
  }
};

}  // namespace

void write_training(hid_t explain, const CaseResult& result) {
  Table paths, heads, causes, shares;
  for (const PathResult& of : result.paths) {
    const Training& training = of.explanation.training;
    if (!training.given) continue;
    paths.texts["path"].push_back(of.path);
    paths.texts["sentence"].push_back(training.sentence);
    paths.texts["recommendation"].push_back(training.recommendation);
    paths.numbers["changed"].push_back(training.changed ? 1 : 0);
    paths.numbers["sinks_train"].push_back(training.sinks_train ? 1 : 0);
    paths.add("layer_", training.layer);
    paths.add("sinks_", training.sinks);
    for (const HeadGradient& g : training.heads) {
      heads.texts["path"].push_back(of.path);
      heads.texts["tensor"].emplace_back(text(g.tensor));
      heads.numbers["head"].push_back(g.head);
      heads.reals["gain"].push_back(g.gain);
      heads.reals["predicted_gain"].push_back(g.predicted_gain);
      heads.add("", g.norm2);
    }
    for (const CauseShare& share : training.causes) {
      causes.texts["path"].push_back(of.path);
      causes.texts["cause"].push_back(share.cause);
      causes.reals["share"].push_back(share.share);
    }
    for (const HeadShare& share : training.shares) {
      shares.texts["path"].push_back(of.path);
      shares.numbers["head"].push_back(share.head);
      shares.numbers["of_keys"].push_back(share.of_keys ? 1 : 0);
      shares.reals["share"].push_back(share.share);
    }
  }
  if (paths.texts.empty()) return;
  const h5::Handle group = h5::create_group(explain, "training");
  paths.write(group, "paths");
  heads.write(group, "heads");
  causes.write(group, "causes");
  shares.write(group, "shares");
}

}  // namespace sinkscope
