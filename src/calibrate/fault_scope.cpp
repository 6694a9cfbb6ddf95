// SPDX-License-Identifier: Apache-2.0
#include "src/calibrate/fault_scope.hpp"

#include <algorithm>

namespace sinkscope {
namespace {

bool contains(const std::vector<std::int64_t>& numbers, std::int64_t number) {
  return std::find(numbers.begin(), numbers.end(), number) != numbers.end();
}

std::int64_t document_of(const AttentionShape& s, TensorName tensor, std::int64_t row) {
  std::int64_t document = 0, end = 0;
  for (const DocumentSize& size : s.documents()) {
    end += is_of_keys(tensor) ? size.keys : size.rows;
    if (row < end) return document;
    ++document;
  }
  return 0;
}

void note_changes(const AttentionShape& s, TensorName tensor, const Tensor& got, const Tensor& right,
                  PlantedScope& scope) {
  const bool is_of_sinks = tensor == TensorName::kDsinks;
  const std::int64_t b = is_of_sinks ? 1 : s.b, heads = is_of_keys(tensor) ? s.hkv : s.hq;
  const std::int64_t rows = rows_of_head(s, tensor), columns = got.size() / (b * heads * rows);
  for (std::int64_t i = 0; i < got.size(); ++i) {
    if (got.at(i) == right.at(i)) continue;
    const std::int64_t row = i / columns % rows, head = i / (columns * rows) % heads;
    const HeadOfTensor place{tensor, i / (columns * rows * heads), head};
    auto& known = scope.changed.try_emplace(place, PlantedScope::Rows{row, row + 1, {}}).first->second;
    known.end = std::max(known.end, row + 1);
    if (!is_of_sinks) known.documents.insert(document_of(s, tensor, row));
  }
}

// Is the head of this tensor one of the finding's?
bool lists(const Finding& finding, const AttentionShape& s, const HeadOfTensor& place) {
  const auto [tensor, batch, head] = place;
  if (std::find(finding.tensors.begin(), finding.tensors.end(), tensor) == finding.tensors.end())
    return false;
  if (tensor != TensorName::kDsinks && !contains(finding.batches, batch)) return false;
  if (!is_of_keys(tensor)) return contains(finding.heads, head);
  if (finding.of_keys) return contains(finding.heads, head);
  return std::any_of(finding.heads.begin(), finding.heads.end(),
                     [&, head = head](std::int64_t query_head) { return query_head / s.group() == head; });
}

bool covers_what_is_visible(const PlantedScope& scope, const std::vector<Finding>& findings) {
  for (const auto& [place, row] : scope.visible) {
    const TensorName tensor = std::get<0>(place);
    const bool has_rows = tensor != TensorName::kDsinks;
    const bool covered =
        std::any_of(findings.begin(), findings.end(), [&, row = row, &place = place](const Finding& f) {
          const bool in_rows = f.first_row < 0 || !has_rows || (f.first_row <= row && row < f.end_row);
          const bool in_document =
              f.all_documents || !has_rows || contains(f.documents, document_of(scope.shape, tensor, row));
          return lists(f, scope.shape, place) && in_rows && in_document;
        });
    if (!covered) return false;
  }
  for (const TensorName tensor : scope.missing) {
    const bool covered = std::any_of(findings.begin(), findings.end(), [&](const Finding& f) {
      return std::find(f.tensors.begin(), f.tensors.end(), tensor) != f.tensors.end();
    });
    if (!covered) return false;
  }
  return true;
}

// Is every head, document and row range that the finding lists a changed one?
bool says_no_more(const PlantedScope& scope, const Finding& finding) {
  if (finding.all_heads && !scope.everywhere) return false;
  std::set<std::int64_t> heads, documents;
  std::set<TensorName> tensors = scope.missing;
  std::int64_t first = -1, end = -1;
  for (const auto& [place, rows] : scope.changed) {
    const auto [tensor, batch, head] = place;
    tensors.insert(tensor);
    documents.insert(rows.documents.begin(), rows.documents.end());
    first = first < 0 ? rows.first : std::min(first, rows.first);
    end = std::max(end, rows.end);
    if (is_of_keys(tensor) == finding.of_keys) heads.insert(head);
    if (!is_of_keys(tensor) || finding.of_keys) continue;
    for (std::int64_t i = 0; i < scope.shape.group(); ++i) heads.insert(head * scope.shape.group() + i);
  }
  const auto all_in = [](const auto& listed, const auto& known) {
    return std::all_of(listed.begin(), listed.end(), [&](const auto& one) { return known.contains(one); });
  };
  if (!all_in(finding.tensors, tensors)) return false;
  if (!finding.all_heads && !all_in(finding.heads, heads)) return false;
  if (!finding.all_documents && !all_in(finding.documents, documents)) return false;
  return finding.first_row < 0 || (first <= finding.first_row && finding.end_row <= end);
}

}  // namespace

bool is_visible(const HeadMetrics& head, const VisibleBounds& bounds) {
  return !(head.z_rms <= bounds.z_rms) || !(head.z_max <= bounds.z_max) || head.nonfinite_mismatch > 0;
}

PlantedScope planted_scope(const FaultCase& f, const Gate& gate, const Outputs& outputs,
                           const std::vector<TensorMetrics>& metrics, bool in_one_head) {
  const AttentionShape& s = f.c.problem.shape;
  PlantedScope scope;
  scope.shape = s;
  scope.everywhere = !in_one_head && (!f.kv_head || s.hkv == 1);
  for (const TensorName name : kTensorNames) {
    if (f.right[name].given() && !outputs[name].given()) scope.missing.insert(name);
    if (f.right[name].given() && outputs[name].given())
      note_changes(s, name, outputs[name], f.right[name], scope);
  }
  for (const TensorMetrics& m : metrics) {
    const VisibleBounds bounds = visible_bounds(gate, s.dtype, m.tensor);
    for (std::size_t i = 0; i < m.heads.size(); ++i) {
      const auto head = static_cast<std::int64_t>(i);
      // A single element of a healthy head may be over a bound on z_rms.
      const bool is_changed = scope.changed.contains({m.tensor, head / m.h, head % m.h});
      if (!is_changed || !is_visible(m.heads[i], bounds)) continue;
      const HeadMetrics& of = m.heads[i];
      scope.visible[{m.tensor, head / m.h, head % m.h}] =
          of.nonfinite_mismatch > 0 ? of.nonfinite_at.row : of.z_max_at.row;
    }
  }
  return scope;
}

bool is_scope_right(const PlantedScope& scope, const std::vector<Finding>& findings) {
  return covers_what_is_visible(scope, findings) &&
         std::all_of(findings.begin(), findings.end(),
                     [&](const Finding& f) { return says_no_more(scope, f); });
}

}  // namespace sinkscope
