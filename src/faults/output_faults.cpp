// SPDX-License-Identifier: Apache-2.0
// Outputs that were lost, added twice, or are those of other inputs.
#include <algorithm>

#include "src/faults/wrap.hpp"

namespace sinkscope {
namespace {

constexpr std::int64_t kTile = 64;  // rows

std::optional<std::string> visible(const Case&) {
  return std::nullopt;
}

std::optional<std::string> needs_a_tile(const Case& c) {
  if (c.problem.shape.sq > kTile) return std::nullopt;
  return "the mistake is in a tile of 64 rows, the case has no more";
}

std::optional<std::string> needs_dq_of_a_tile(const Case& c) {
  if (!c.dout.given() || !c.problem.grads.q) return "the mistake is in dq, the case does not ask for it";
  return needs_a_tile(c);
}

std::optional<std::string> needs_two_heads(const Case& c) {
  if (c.problem.shape.hq > 1) return std::nullopt;
  return "the mistake needs two heads";
}

Path head_zeroed(const Path& healthy) {
  return wrap(
      healthy, "head_zeroed", visible, [](const Path& path, const Case& c, const PathOptions& options) {
        PathRun run = path.run(c, options);
        const std::int64_t per_head = c.problem.shape.sq * c.problem.shape.d, last = c.problem.shape.hq - 1;
        for (std::int64_t i = 0; i < per_head; ++i) run.outputs.out.set(last * per_head + i, 0);
        return run;
      });
}

// The last tile, which may be a partial one, of every head.
Path rows_missing(const Path& healthy) {
  return wrap(healthy, "rows_missing", needs_a_tile,
              [](const Path& path, const Case& c, const PathOptions& options) {
                const AttentionShape& s = c.problem.shape;
                PathRun run = path.run(c, options);
                const std::int64_t first = (s.sq - 1) / kTile * kTile;
                for (std::int64_t i = 0; i < s.b * s.hq * s.sq * s.d; ++i) {
                  if (i / s.d % s.sq >= first) run.outputs.out.set(i, 0);
                }
                return run;
              });
}

// The first tile of dq, added by two blocks.
Path rows_twice(const Path& healthy) {
  return wrap(healthy, "rows_twice", needs_dq_of_a_tile,
              [](const Path& path, const Case& c, const PathOptions& options) {
                const AttentionShape& s = c.problem.shape;
                PathRun run = path.run(c, options);
                for (std::int64_t i = 0; i < s.b * s.hq * s.sq * s.d; ++i) {
                  if (i / s.d % s.sq < kTile) run.outputs.dq.set(i, 2 * run.outputs.dq.at(i));
                }
                return run;
              });
}

// The last head of out holds what the first one should.
Path stale(const Path& healthy) {
  return wrap(
      healthy, "stale", needs_two_heads, [](const Path& path, const Case& c, const PathOptions& options) {
        PathRun run = path.run(c, options);
        const std::int64_t per_head = c.problem.shape.sq * c.problem.shape.d, last = c.problem.shape.hq - 1;
        for (std::int64_t i = 0; i < per_head; ++i)
          run.outputs.out.set(last * per_head + i, run.outputs.out.at(i));
        return run;
      });
}

}  // namespace

std::vector<Fault> output_faults() {
  return {
      {"head_zeroed", "out of the last head is zero", head_zeroed},
      {"rows_missing", "the last tile of 64 rows of out is not written", rows_missing},
      {"rows_twice", "the first 64 rows of dq are twice as large", rows_twice},
      {"stale", "the last head of out holds the first one's", stale},
  };
}

}  // namespace sinkscope
