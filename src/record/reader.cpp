// SPDX-License-Identifier: Apache-2.0
#include <charconv>
#include <cmath>
#include <filesystem>

#include "fmt/format.h"

#include "src/core/error.hpp"
#include "src/record/h5.hpp"
#include "src/record/record.hpp"

namespace sinkscope {
namespace {

void check_header(hid_t file, const std::string& path) {
  if (!h5::has_attribute(file, "encoding-type") ||
      h5::read_text_attribute(file, "encoding-type") != "sinkscope-record") {
    throw InputError(fmt::format("{} is an HDF5 file but not a record of sinkscope", path));
  }
  const std::string version = h5::read_text_attribute(file, "encoding-version");
  int major = -1;
  std::from_chars(version.data(), version.data() + version.size(), major);
  if (major != kRecordMajor) {
    throw InputError(fmt::format("{} has encoding-version {}, wanted {}.x", path, version, kRecordMajor));
  }
  if (!h5::has_attribute(file, "complete") || h5::read_integer_attribute(file, "complete") != 1) {
    throw InputError(fmt::format("{} is incomplete: the run that wrote it did not finish", path));
  }
}

std::vector<VerdictRow> read_verdicts(hid_t file) {
  const h5::Handle group = h5::open_group(file, "verdicts");
  const std::vector<std::string> problem = h5::read_texts(group, "problem");
  std::vector<VerdictRow> rows(problem.size());
  const auto texts = [&](const char* name, auto assign) {
    const std::vector<std::string> values = h5::read_texts(group, name);
    for (std::size_t i = 0; i < rows.size(); ++i) assign(rows[i], values.at(i));
  };
  const auto integers = [&](const char* name, auto assign) {
    const std::vector<std::int64_t> values = h5::read_integers(group, name);
    for (std::size_t i = 0; i < rows.size(); ++i) assign(rows[i], values.at(i));
  };
  const auto reals = [&](const char* name, auto assign) {
    const std::vector<double> values = h5::read_reals(group, name);
    for (std::size_t i = 0; i < rows.size(); ++i) assign(rows[i], values.at(i));
  };
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i].problem = problem[i];
  texts("path", [](VerdictRow& r, const std::string& v) { r.path = v; });
  texts("tensor", [](VerdictRow& r, const std::string& v) { r.tensor = v; });
  texts("verdict", [](VerdictRow& r, const std::string& v) { r.verdict = verdict_from_text(v); });
  texts("metric", [](VerdictRow& r, const std::string& v) { r.metric = v; });
  texts("reason", [](VerdictRow& r, const std::string& v) { r.reason = v; });
  texts("repro", [](VerdictRow& r, const std::string& v) { r.repro = v; });
  integers("judged", [](VerdictRow& r, std::int64_t v) { r.judged = v != 0; });
  integers("batch", [](VerdictRow& r, std::int64_t v) { r.batch = v; });
  integers("head", [](VerdictRow& r, std::int64_t v) { r.head = v; });
  integers("row", [](VerdictRow& r, std::int64_t v) { r.row = v; });
  integers("column", [](VerdictRow& r, std::int64_t v) { r.column = v; });
  integers("failed_heads", [](VerdictRow& r, std::int64_t v) { r.failed_heads = v; });
  reals("value", [](VerdictRow& r, double v) { r.value = v; });
  reals("limit", [](VerdictRow& r, double v) { r.limit = v; });
  return rows;
}

HeadFacts read_facts(hid_t problem, const AttentionShape& s) {
  const h5::Handle group = h5::open_group(problem, "heads");
  HeadFacts facts;
  facts.b = s.b;
  facts.hq = s.hq;
  facts.p_sink_mean = h5::read_reals(group, "p_sink_mean");
  facts.p_sink_max = h5::read_reals(group, "p_sink_max");
  facts.predicted_gain = h5::read_reals(group, "predicted_gain");
  facts.lse_min = h5::read_reals(group, "lse_min");
  facts.lse_max = h5::read_reals(group, "lse_max");
  facts.entropy = h5::read_reals(group, "entropy");
  if (facts.p_sink_mean.size() != static_cast<std::size_t>(s.b * s.hq))
    throw h5::Hdf5Error("heads has an impossible size");
  return facts;
}

// Adds a tensor's metrics to every path that has them; a NaN norm of the truth marks a path that has not.
void read_metrics(hid_t problem, TensorName tensor, CaseResult& result) {
  const h5::Handle group = h5::open_group(problem, std::string(text(tensor)));
  const AttentionShape& s = result.shape;
  const bool of_keys = is_of_keys(tensor);
  const std::int64_t b = tensor == TensorName::kDsinks ? 1 : s.b;
  const std::int64_t h = of_keys ? s.hkv : s.hq;
  const auto heads = static_cast<std::size_t>(b * h);
  const std::vector<double> norms = h5::read_reals(group, "norm_ref");
  const std::vector<double> profile = h5::read_reals(group, "profile");
  if (norms.size() != heads * result.paths.size() || profile.size() != norms.size() * kProfileBins) {
    throw h5::Hdf5Error(fmt::format("{} has an impossible size", text(tensor)));
  }
  std::vector<TensorMetrics> of_path(result.paths.size(),
                                     TensorMetrics{tensor, b, h, rows_of_head(s, tensor),
                                                   std::vector<HeadMetrics>(heads), real_rows(s, tensor)});
  for (const MetricInfo& metric : all_metrics()) {
    const std::string name(metric.name);
    if (!h5::exists(group, name)) continue;  // an older minor version
    const std::vector<double> values = h5::read_reals(group, name);
    for (std::size_t i = 0; i < norms.size(); ++i) {
      if (!std::isnan(norms[i])) metric.assign(of_path[i / heads].heads[i % heads], values.at(i));
    }
  }
  for (std::size_t path = 0; path < of_path.size(); ++path) {
    if (std::isnan(norms[path * heads])) continue;
    for (std::size_t head = 0; head < heads; ++head) {
      for (std::size_t bin = 0; bin < kProfileBins; ++bin) {
        of_path[path].heads[head].profile[bin] =
            static_cast<float>(profile[(path * heads + head) * kProfileBins + bin]);
      }
    }
    result.paths[path].metrics.push_back(std::move(of_path[path]));
  }
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t start = 0; start < text.size();) {
    const std::size_t end = std::min(text.find('\n', start), text.size());
    lines.push_back(text.substr(start, end - start));
    start = end + 1;
  }
  return lines;
}

// Numbers apart by blanks; none where the attribute is absent.
std::vector<std::int64_t> read_lengths(hid_t problem, const char* name) {
  if (!h5::has_attribute(problem, name)) return {};
  const std::string text = h5::read_text_attribute(problem, name);
  std::vector<std::int64_t> lengths;
  for (const char *at = text.data(), *end = at + text.size(); at < end;) {
    std::int64_t length = -1;
    const auto [next, error] = std::from_chars(at, end, length);
    if (error != std::errc() || length < 0) throw h5::Hdf5Error(fmt::format("{} is '{}'", name, text));
    lengths.push_back(length);
    at = next == end ? next : next + 1;
  }
  return lengths;
}

CaseResult read_problem(hid_t problems, const std::string& name) {
  const h5::Handle problem = h5::open_group(problems, name);
  CaseResult result;
  result.name = name;
  result.problem_line = h5::read_text_attribute(problem, "problem");
  result.inputs_sha256 = h5::read_text_attribute(problem, "inputs_sha256");
  const std::string seed = h5::read_text_attribute(problem, "seed");
  std::from_chars(seed.data(), seed.data() + seed.size(), result.seed);
  AttentionShape& s = result.shape;
  const std::string dtype = h5::read_text_attribute(problem, "dtype");
  if (!dtype_from_name(dtype)) throw h5::Hdf5Error(fmt::format("dtype '{}' is not known", dtype));
  s.dtype = *dtype_from_name(dtype);
  for (const auto& [key, member] :
       {std::pair{"b", &s.b}, {"hq", &s.hq}, {"hkv", &s.hkv}, {"sq", &s.sq}, {"sk", &s.sk}, {"d", &s.d}}) {
    *member = h5::read_integer_attribute(problem, key);
    if (*member < 1 || *member > (std::int64_t{1} << 40))
      throw h5::Hdf5Error(fmt::format("{} is {}", key, *member));
  }
  s.causal = h5::read_integer_attribute(problem, "causal") != 0;
  s.window = h5::read_integer_attribute(problem, "window");
  s.scale = h5::read_real_attribute(problem, "scale");
  s.docs = read_lengths(problem, "docs");
  s.docs_k = read_lengths(problem, "docs_k");
  s.seqlens = read_lengths(problem, "seqlens");
  if (!s.seqlens.empty() && static_cast<std::int64_t>(s.seqlens.size()) != s.b)
    throw h5::Hdf5Error("seqlens has an impossible size");
  for (const char* key : kCaptureAttributes) {
    if (h5::has_attribute(problem, key)) result.metadata[key] = h5::read_text_attribute(problem, key);
  }
  result.facts = read_facts(problem, s);

  const h5::Handle paths = h5::open_group(problem, "paths");
  const std::vector<std::string> names = h5::read_texts(paths, "path");
  const std::vector<std::string> backends = h5::read_texts(paths, "backend");
  const std::vector<std::string> sentences = h5::read_texts(paths, "sentences");
  const std::vector<std::int64_t> judged = h5::read_integers(paths, "judged");
  for (std::size_t i = 0; i < names.size(); ++i) {
    PathResult path;
    path.path = names[i];
    path.backend = backends.at(i);
    path.judged = judged.at(i) != 0;
    path.sentences = lines_of(sentences.at(i));
    result.paths.push_back(std::move(path));
  }
  for (const TensorName tensor : kTensorNames) read_metrics(problem, tensor, result);
  return result;
}

}  // namespace

Record read_record(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    throw InputError(fmt::format("record {} does not exist or is no file", path));
  try {
    const h5::Handle file = h5::open_file(path);
    check_header(file, path);
    Record record;
    for (auto& [name, value] : h5::text_attributes(file)) record.attributes[name] = value;
    record.gate_toml = h5::read_text_attribute(file, "gate");
    const h5::Handle problems = h5::open_group(file, "problems");
    for (const std::string& name : h5::members(problems))
      record.cases.push_back(read_problem(problems, name));
    record.verdicts = read_verdicts(file);
    for (CaseResult& result : record.cases) {
      if (record.attributes.contains("truth")) result.truth = record.attributes["truth"];
      for (PathResult& path_result : result.paths) {
        for (const VerdictRow& row : record.verdicts) {
          if (row.problem == result.name && row.path == path_result.path) path_result.verdicts.push_back(row);
        }
      }
    }
    return record;
  } catch (const h5::Hdf5Error& hdf5) {
    throw InputError(fmt::format("{} cannot be read as a record: {}", path, hdf5.what()));
  } catch (const std::out_of_range&) {
    throw InputError(fmt::format("{} cannot be read as a record: its columns differ in length", path));
  }
}

}  // namespace sinkscope
