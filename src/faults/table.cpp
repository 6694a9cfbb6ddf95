// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/core/error.hpp"
#include "src/faults/fault.hpp"
#include "src/faults/wrap.hpp"

namespace sinkscope {
namespace {

std::optional<std::string> needs_sinks(const Case& c) {
  if (c.sinks.given()) return std::nullopt;
  return "the mistake needs a sink, the case has none";
}

Path sink_ignored(const Path& healthy) {
  return wrap(healthy, "sink_ignored", needs_sinks,
              [](const Path& path, const Case& c, const PathOptions& options) {
                Case sinkless = c;
                sinkless.sinks = {};
                return path.run(sinkless, options);
              });
}

Path sink_permuted(const Path& healthy) {
  const auto invisible = [](const Case& c) -> std::optional<std::string> {
    if (!c.sinks.given() || c.problem.shape.hq < 2) return "the mistake needs sinks of two heads";
    return std::nullopt;
  };
  return wrap(healthy, "sink_permuted", invisible,
              [](const Path& path, const Case& c, const PathOptions& options) {
                Case permuted = c;
                const std::int64_t heads = c.sinks.size();
                for (std::int64_t h = 0; h < heads; ++h) permuted.sinks.set(h, c.sinks.at((h + 1) % heads));
                PathRun run = path.run(permuted, options);
                // The gradient goes back to the sink that was taken.
                if (run.outputs.dsinks.given()) {
                  const Tensor taken = run.outputs.dsinks;
                  for (std::int64_t h = 0; h < heads; ++h)
                    run.outputs.dsinks.set((h + 1) % heads, taken.at(h));
                }
                return run;
              });
}

// dq of a run, which a recorded path may lack.
Tensor& dq_of(PathRun& run) {
  if (!run.outputs.dq.given()) throw std::runtime_error("the mistake is in dq, the path gives none");
  return run.outputs.dq;
}

// The head whose dq is quietest: a tolerance for the whole tensor would miss it.
std::int64_t quietest_head(const Tensor& tensor) {
  const std::int64_t heads = tensor.shape()[0] * tensor.shape()[1];
  const std::int64_t per_head = tensor.size() / heads;
  std::vector<double> values(static_cast<std::size_t>(per_head));
  std::int64_t quietest = 0;
  double least = INFINITY;
  for (std::int64_t head = 0; head < heads; ++head) {
    tensor.widen(head * per_head, values);
    double norm2 = 0;
    for (const double value : values) norm2 += value * value;
    if (norm2 > 0 && norm2 < least) {
      least = norm2;
      quietest = head;
    }
  }
  return quietest;
}

std::optional<std::string> needs_dq(const Case& c) {
  if (c.dout.given() && c.problem.grads.q) return std::nullopt;
  return "the mistake is in dq, the case does not ask for it";
}

Path dq_head_lost(const Path& healthy) {
  return wrap(healthy, "dq_head_lost", needs_dq,
              [](const Path& path, const Case& c, const PathOptions& options) {
                PathRun run = path.run(c, options);
                Tensor& dq = dq_of(run);
                const std::int64_t per_head = dq.size() / (dq.shape()[0] * dq.shape()[1]);
                const std::int64_t head = quietest_head(dq);
                for (std::int64_t i = 0; i < per_head; ++i) dq.set(head * per_head + i, 0);
                return run;
              });
}

Path dq_scaled(const Path& healthy) {
  return wrap(healthy, "dq_scaled", needs_dq,
              [](const Path& path, const Case& c, const PathOptions& options) {
                PathRun run = path.run(c, options);
                Tensor& dq = dq_of(run);
                for (std::int64_t i = 0; i < dq.size(); ++i) dq.set(i, 1.05 * dq.at(i));
                return run;
              });
}

Path window_plus_one(const Path& healthy) {
  const auto invisible = [](const Case& c) -> std::optional<std::string> {
    const AttentionShape& s = c.problem.shape;
    if (s.window > 0 && s.window < s.sk) return std::nullopt;
    return "the mistake needs a window shorter than the keys";
  };
  return wrap(healthy, "window_plus_one", invisible,
              [](const Path& path, const Case& c, const PathOptions& options) {
                Case wider = c;
                ++wider.problem.shape.window;
                return path.run(wider, options);
              });
}

Path dsink_missing(const Path& healthy) {
  const auto invisible = [](const Case& c) -> std::optional<std::string> {
    if (c.sinks.given() && c.dout.given() && c.problem.grads.s) return std::nullopt;
    return "the mistake is in dsinks, the case does not ask for it";
  };
  return wrap(healthy, "dsink_missing", invisible,
              [](const Path& path, const Case& c, const PathOptions& options) {
                PathRun run = path.run(c, options);
                for (std::int64_t h = 0; h < run.outputs.dsinks.size(); ++h) run.outputs.dsinks.set(h, 0);
                return run;
              });
}

}  // namespace

const std::vector<Fault>& all_faults() {
  static const std::vector<Fault> kFaults = [] {
    std::vector<Fault> faults = gate_faults();
    for (const auto& group : {input_faults(), gradient_faults(), output_faults(), plain_faults()})
      faults.insert(faults.end(), group.begin(), group.end());
    return faults;
  }();
  return kFaults;
}

const std::vector<Fault>& gate_faults() {
  static const std::vector<Fault> kFaults = {
      {"sink_ignored", "the sink is left out of the softmax", sink_ignored},
      {"sink_permuted", "every head takes the next head's sink", sink_permuted},
      {"dq_head_lost", "dq of the quietest head is zero", dq_head_lost},
      {"dq_scaled", "dq is 5 % too large", dq_scaled},
      {"window_plus_one", "every row sees one key too many", window_plus_one},
      {"dlse_dropped", "the gradient through the LSE is dropped", dlse_dropped},
      {"dsink_missing", "the sink's gradient is zero", dsink_missing},
  };
  return kFaults;
}

const Fault& find_fault(std::string_view name) {
  std::vector<std::string_view> known;
  for (const Fault& fault : all_faults()) {
    if (fault.name == name) return fault;
    known.push_back(fault.name);
  }
  throw InputError(fmt::format("fault '{}' is not known, wanted one of {}", name, fmt::join(known, ", ")));
}

}  // namespace sinkscope
