// SPDX-License-Identifier: Apache-2.0
#include "src/record/findings.hpp"

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/record/h5.hpp"
#include "src/record/stages.hpp"
#include "src/record/training.hpp"

namespace sinkscope {

void write_findings(hid_t problem, const CaseResult& result) {
  std::vector<std::string> path, cause, equivalent, tensors, heads, batches, documents, note, sentence, fix;
  std::vector<std::int64_t> first_row, end_row, all_heads, heads_of_keys;
  std::vector<double> share, residual_z;
  for (const PathResult& of : result.paths) {
    for (const Finding& f : of.explanation.findings) {
      path.push_back(of.path);
      cause.push_back(f.cause);
      equivalent.push_back(fmt::format("{}", fmt::join(f.equivalent, " ")));
      std::vector<std::string_view> names;
      for (const TensorName tensor : f.tensors) names.push_back(text(tensor));
      tensors.push_back(fmt::format("{}", fmt::join(names, " ")));
      heads.push_back(fmt::format("{}", fmt::join(f.heads, " ")));
      batches.push_back(fmt::format("{}", fmt::join(f.batches, " ")));
      documents.push_back(fmt::format("{}", fmt::join(f.documents, " ")));
      note.push_back(f.note);
      sentence.push_back(f.sentence);
      fix.push_back(f.fix);
      first_row.push_back(f.first_row);
      end_row.push_back(f.end_row);
      all_heads.push_back(f.all_heads ? 1 : 0);
      heads_of_keys.push_back(f.of_keys ? 1 : 0);
      share.push_back(f.share);
      residual_z.push_back(f.residual_z);
    }
  }
  if (path.empty()) return;
  const h5::Handle group = h5::create_group(problem, "explain");
  const h5::Extents rows = {path.size()};
  for (const auto& [name, values] :
       {std::pair{"path", &path}, std::pair{"cause", &cause}, std::pair{"equivalent", &equivalent},
        std::pair{"tensors", &tensors}, std::pair{"heads", &heads}, std::pair{"batches", &batches},
        std::pair{"documents", &documents}, std::pair{"parameters", &note}, std::pair{"sentence", &sentence},
        std::pair{"fix", &fix}}) {
    h5::write_dataset(group, name, *values);
  }
  for (const auto& [name, values] :
       {std::pair{"first_row", &first_row}, std::pair{"end_row", &end_row},
        std::pair{"all_heads", &all_heads}, std::pair{"heads_of_keys", &heads_of_keys}}) {
    h5::write_dataset(group, name, rows, std::span<const std::int64_t>(*values));
  }
  h5::write_dataset(group, "share", rows, std::span<const double>(share));
  h5::write_dataset(group, "residual_z", rows, std::span<const double>(residual_z));
  write_training(group, result);
  write_stages(group, result);
}

}  // namespace sinkscope
