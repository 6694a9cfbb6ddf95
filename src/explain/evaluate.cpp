// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "src/explain/evaluation.hpp"

namespace sinkscope {
namespace {

// Takes what belongs to `rows` from `from`; gradients of keys, which all rows share, are added.
void join_rows(HeadResult& into, const HeadResult& from, Range rows, std::int64_t d) {
  const auto copy = [&](std::vector<double> HeadResult::*member, std::int64_t columns) {
    if ((from.*member).empty()) return;
    std::copy((from.*member).begin() + rows.first * columns, (from.*member).begin() + rows.end * columns,
              (into.*member).begin() + rows.first * columns);
  };
  for (const auto member : {&HeadResult::out, &HeadResult::sigma_out, &HeadResult::dq, &HeadResult::sigma_dq})
    copy(member, d);
  for (const auto member : {&HeadResult::lse, &HeadResult::sigma_lse, &HeadResult::p, &HeadResult::delta,
                            &HeadResult::dsink, &HeadResult::sigma2_dsink}) {
    copy(member, 1);
  }
  for (const auto member :
       {&HeadResult::dk, &HeadResult::dv, &HeadResult::sigma2_dk, &HeadResult::sigma2_dv}) {
    for (std::size_t i = 0; i < (from.*member).size(); ++i) (into.*member)[i] += (from.*member)[i];
  }
}

}  // namespace

HeadResult evaluate(const Case& c, std::int64_t batch, std::int64_t head, const HeadFunction& function,
                    bool backward) {
  const AttentionShape& s = c.problem.shape;
  HeadResult result = Evaluation(c, batch, head, function, backward).run(function);
  if (function.padding == PaddingRows::kInDsinks && backward) {
    HeadFunction without = function;
    without.padding = PaddingRows::kLeftOut;
    HeadResult others = Evaluation(c, batch, head, without, backward).run(without);
    others.dsink = std::move(result.dsink);
    others.sigma2_dsink = std::move(result.sigma2_dsink);
    result = std::move(others);
  }
  if (!function.elsewhere) return result;
  for (const Range others : {Range{0, function.rows.first}, Range{function.rows.end, s.sq}}) {
    if (others.size() == 0) continue;
    HeadFunction rest = *function.elsewhere;
    rest.rows = others;
    rest.elsewhere = nullptr;
    join_rows(result, Evaluation(c, batch, head, rest, backward).run(rest), others, s.d);
  }
  return result;
}

bool have_same_forward(const HeadFunction& a, const HeadFunction& b) {
  const auto stands_alone = [](const HeadFunction& f) {
    return f.elsewhere == nullptr && f.layout == HeadLayout::kRight && f.padding != PaddingRows::kInDsinks;
  };
  return stands_alone(a) && stands_alone(b) && a.sink == b.sink && a.scale == b.scale &&
         a.softcap == b.softcap && a.kv_head == b.kv_head && a.parts == b.parts &&
         a.drops_dlse == b.drops_dlse && a.padding == b.padding && a.rows == b.rows;
}

std::vector<HeadResult> evaluate_alike(const Case& c, std::int64_t batch, std::int64_t head,
                                       const std::vector<FunctionPtr>& functions, bool backward) {
  if (functions.size() == 1) return {evaluate(c, batch, head, *functions.front(), backward)};
  Evaluation evaluation(c, batch, head, *functions.front(), backward);
  std::vector<HeadResult> results;
  for (const FunctionPtr& f : functions) results.push_back(evaluation.run(*f));
  return results;
}

}  // namespace sinkscope
