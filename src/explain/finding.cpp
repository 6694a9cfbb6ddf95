// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <set>

#include "fmt/format.h"

#include "src/explain/make_finding.hpp"

namespace sinkscope {
namespace {

std::int64_t document_count(const Case& c) {
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(c.problem.shape.docs.size()));
}

// Would the mistake, made there too, leave everything as right as it is?
bool is_neutral(State& state, const Accepted& accepted, const Place& place) {
  if (!accepted.candidate) return false;
  const auto [batch, head, document] = place;
  for (const CellState& cs : state.cells()) {
    const auto heads = state.heads_of(cs.cell);
    const bool depends = std::find(heads.begin(), heads.end(), std::pair(batch, head)) != heads.end() &&
                         (cs.cell.tensor == TensorName::kDsinks || cs.cell.document == document);
    if (!depends || cs.fact) continue;
    const FunctionPtr changed = accepted.candidate->function(state, cs.cell.tensor, place);
    if (!changed) continue;
    const bool fits = state
                          .fit_under(cs,
                                     [&](std::int64_t b, std::int64_t h, std::int64_t d) {
                                       return Place{b, h, d} == place ? changed : nullptr;
                                     })
                          .fits;
    if (!fits && !cs.fails) return false;
  }
  return true;
}

void set_scope(State& state, const Accepted& accepted, Finding& finding) {
  const Case& c = state.problem();
  const AttentionShape& s = c.problem.shape;
  std::set<std::int64_t> batches, heads, documents;
  std::set<TensorName> tensors;
  for (const Accepted::Part& part : accepted.parts) tensors.insert(state.cells()[part.cell].cell.tensor);
  finding.tensors.assign(tensors.begin(), tensors.end());
  finding.of_keys = std::all_of(tensors.begin(), tensors.end(), is_of_keys);
  for (const auto& [batch, head, document] : accepted.places) {
    batches.insert(batch);
    heads.insert(finding.of_keys ? head / s.group() : head);
    documents.insert(document);
  }
  // Whole where the places that are not concerned could not have shown it.
  finding.all_heads = true;
  finding.all_documents = true;
  for (std::int64_t batch = 0; batch < s.b; ++batch) {
    for (std::int64_t head = 0; head < s.hq; ++head) {
      for (std::int64_t document = 0; document < document_count(c); ++document) {
        const Place place{batch, head, document};
        const std::int64_t listed = finding.of_keys ? head / s.group() : head;
        const bool is_new =
            !heads.contains(listed) || !documents.contains(document) || !batches.contains(batch);
        if (accepted.places.contains(place) || !is_new) continue;
        if (is_neutral(state, accepted, place)) continue;
        if (!heads.contains(listed)) finding.all_heads = false;
        if (!documents.contains(document)) finding.all_documents = false;
      }
    }
  }
  const std::int64_t count = finding.of_keys ? s.hkv : s.hq;
  for (std::int64_t head = 0; head < count && finding.all_heads; ++head) heads.insert(head);
  for (std::int64_t document = 0; document < document_count(c) && finding.all_documents; ++document)
    documents.insert(document);
  finding.batches.assign(batches.begin(), batches.end());
  finding.heads.assign(heads.begin(), heads.end());
  finding.documents.assign(documents.begin(), documents.end());
}

void set_rows(const Accepted& accepted, Finding& finding) {
  const bool some = std::all_of(accepted.parts.begin(), accepted.parts.end(),
                                [](const Accepted::Part& part) { return part.rows.has_value(); });
  if (!some) return;
  finding.first_row = accepted.parts.front().rows->first;
  finding.end_row = accepted.parts.front().rows->end;
  for (const Accepted::Part& part : accepted.parts) {
    finding.first_row = std::min(finding.first_row, part.rows->first);
    finding.end_row = std::max(finding.end_row, part.rows->end);
  }
}

// The tensors, heads and documents of some cells.
void set_scope_of_cells(const State& state, const std::vector<std::size_t>& cells, Finding& finding) {
  std::set<std::int64_t> batches, heads, documents;
  std::set<TensorName> tensors;
  for (const std::size_t i : cells) tensors.insert(state.cells()[i].cell.tensor);
  finding.of_keys = std::all_of(tensors.begin(), tensors.end(), is_of_keys);
  for (const std::size_t i : cells) {
    const CellState& cs = state.cells()[i];
    documents.insert(cs.cell.document);
    for (const auto& [batch, head] : state.heads_of(cs.cell)) {
      batches.insert(batch);
      heads.insert(finding.of_keys ? cs.cell.head : head);
    }
  }
  finding.tensors.assign(tensors.begin(), tensors.end());
  finding.batches.assign(batches.begin(), batches.end());
  finding.heads.assign(heads.begin(), heads.end());
  finding.documents.assign(documents.begin(), documents.end());
  const AttentionShape& s = state.problem().problem.shape;
  finding.all_heads = static_cast<std::int64_t>(heads.size()) == (finding.of_keys ? s.hkv : s.hq);
  finding.all_documents = static_cast<std::int64_t>(documents.size()) == document_count(state.problem());
}

}  // namespace

Finding finding_of(State& state, const Accepted& accepted) {
  Finding finding;
  finding.cause = accepted.cause->id;
  finding.equivalent = accepted.equivalent;
  finding.sentence = accepted.cause->sentence;
  finding.fix = accepted.cause->fix;
  finding.evidence = accepted.cause->evidence;
  finding.note = accepted.note;
  set_scope(state, accepted, finding);
  set_rows(accepted, finding);
  for (const Accepted::Part& part : accepted.parts) {
    const double whole = state.cells()[part.cell].first.z2;
    const double removed = std::isfinite(whole) ? (part.z2_before - part.z2_after) / whole
                                                : (std::isfinite(part.z2_after) ? 1 : 0);
    // A cause that was found before this one may have made the cell worse.
    finding.share += (removed >= 0 ? std::min(removed, 1.0) : 0) / static_cast<double>(accepted.parts.size());
    finding.residual_z = std::max(finding.residual_z, part.z_rms_after);
  }
  return finding;
}

Finding unexplained(const State& state, const std::vector<std::size_t>& cells, bool in_part) {
  Finding finding;
  finding.cause = kUnknownCause;
  finding.sentence = in_part ? "what is left after that fits no cause of the catalogue"
                             : "no cause of the catalogue fits: rounding, or a mistake it does not have";
  finding.fix = "look where the error begins: sinkscope compare --verbose";
  const CellState* worst = nullptr;
  const auto over = [](const CellState& cs) { return cs.base.z_max / cs.limits.limits.z_max; };
  for (const std::size_t i : cells) {
    const CellState& cs = state.cells()[i];
    finding.residual_z = std::max(finding.residual_z, cs.base.z_rms);
    if (worst == nullptr || !(over(cs) <= over(*worst))) worst = &cs;
  }
  if (worst != nullptr && !worst->base.fits) {
    finding.note = fmt::format("{} of {}head {}: z_max {:.3g}, limit {:.3g}", text(worst->cell.tensor),
                               is_of_keys(worst->cell.tensor) ? "kv " : "", worst->cell.head,
                               worst->base.z_max, worst->limits.limits.z_max);
  }
  set_scope_of_cells(state, cells, finding);
  return finding;
}

Finding finding_of(const State& state, const RoundingFit& fit) {
  Finding finding;
  finding.cause = fit.model.cause;
  finding.sentence = fit.model.sentence;
  finding.fix = fit.model.fix;
  finding.share = fit.share;
  finding.residual_z = fit.residual_z;
  set_scope_of_cells(state, fit.cells, finding);
  return finding;
}

void add_missing_dsinks(State& state, std::vector<Finding>& findings) {
  const AttentionShape& s = state.problem().problem.shape;
  bool is_used = false;
  for (std::int64_t head = 0; head < s.hq; ++head) {
    bool is_used_here = true;  // as far as is known by now
    for (const TensorName tensor : {TensorName::kOut, TensorName::kLse, TensorName::kDq})
      is_used_here = is_used_here && state.base(tensor, 0, head, 0)->sink_of >= 0;
    is_used = is_used || is_used_here;
  }
  for (Finding& finding : findings) {
    const bool has_no_sink = finding.cause == "sink_ignored" || finding.cause == "sink_zero_added";
    if (is_used && !(has_no_sink && finding.all_heads)) continue;
    finding.tensors.push_back(TensorName::kDsinks);
    return;
  }
  const Cause& cause = find_cause("dsink_missing");
  Finding finding;
  finding.cause = cause.id;
  finding.sentence = cause.sentence;
  finding.fix = cause.fix;
  finding.evidence = cause.evidence;
  finding.note = "the path gives no dsinks";
  finding.tensors = {TensorName::kDsinks};
  for (std::int64_t head = 0; head < s.hq; ++head) finding.heads.push_back(head);
  for (std::int64_t batch = 0; batch < s.b; ++batch) finding.batches.push_back(batch);
  for (std::int64_t i = 0; i < document_count(state.problem()); ++i) finding.documents.push_back(i);
  finding.all_heads = true;
  finding.share = 1;
  findings.push_back(std::move(finding));
}

Finding nothing_wrong() {
  Finding finding;
  finding.cause = kNoCause;
  finding.sentence = "nothing is wrong";
  finding.all_heads = true;
  return finding;
}

std::string numbers_text(const std::vector<std::int64_t>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += text.empty() ? "" : ", ";
    text += last > i ? fmt::format("{} to {}", numbers[i], numbers[last]) : fmt::format("{}", numbers[i]);
    i = last + 1;
  }
  return text;
}

std::string scope_text(const Finding& finding) {
  std::vector<std::string_view> names;
  for (const TensorName tensor : finding.tensors) names.push_back(text(tensor));
  std::string scope;
  for (std::size_t i = 0; i < names.size(); ++i)
    scope += fmt::format("{}{}", i == 0 ? "" : i + 1 == names.size() ? " and " : ", ", names[i]);
  const char* kind = finding.of_keys ? "kv head" : "head";
  scope += finding.all_heads ? fmt::format(" of all {}s", kind)
                             : fmt::format(" of {}{} {}", kind, finding.heads.size() == 1 ? "" : "s",
                                           numbers_text(finding.heads));
  if (!finding.all_documents) {
    scope += fmt::format(", document{} {}", finding.documents.size() == 1 ? "" : "s",
                         numbers_text(finding.documents));
  }
  if (finding.first_row >= 0) scope += fmt::format(", rows {} to {}", finding.first_row, finding.end_row - 1);
  return scope;
}

}  // namespace sinkscope
