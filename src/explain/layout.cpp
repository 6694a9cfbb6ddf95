// SPDX-License-Identifier: Apache-2.0
// Head-first tensors that are read as sequence-first.
#include <utility>

#include "src/core/parallel.hpp"
#include "src/explain/head_function.hpp"

namespace sinkscope {
namespace {

// Element (h, s) of [h, s] rows of `columns` stands where (s, h) of [s, h] stood in memory.
Tensor reread(const Tensor& tensor, std::int64_t b, std::int64_t h, std::int64_t s, std::int64_t columns) {
  if (!tensor.given()) return {};
  Tensor to(tensor.dtype(), tensor.shape());
  for (std::int64_t batch = 0; batch < b; ++batch) {
    for (std::int64_t head = 0; head < h; ++head) {
      for (std::int64_t row = 0; row < s; ++row) {
        for (std::int64_t column = 0; column < columns; ++column) {
          to.set(((batch * h + head) * s + row) * columns + column,
                 tensor.at(((batch * s + row) * h + head) * columns + column));
        }
      }
    }
  }
  return to;
}

// The way back for one member of every head's result.
void write_back(const std::vector<HeadResult>& from, std::vector<HeadResult>& to,
                std::vector<double> HeadResult::*member, std::int64_t b, std::int64_t h, std::int64_t s,
                std::int64_t columns, std::int64_t every) {
  for (std::int64_t batch = 0; batch < b; ++batch) {
    for (std::int64_t head = 0; head < h; ++head) {
      const std::vector<double>& source = from[static_cast<std::size_t>((batch * h + head) * every)].*member;
      if (source.empty()) return;
      for (std::int64_t row = 0; row < s; ++row) {
        const std::int64_t flat = row * h + head;
        std::vector<double>& target = to[static_cast<std::size_t>((batch * h + flat / s) * every)].*member;
        target.resize(source.size());
        for (std::int64_t column = 0; column < columns; ++column) {
          target[static_cast<std::size_t>(flat % s * columns + column)] =
              source[static_cast<std::size_t>(row * columns + column)];
        }
      }
    }
  }
}

// Adds the heads of each group to its first.
void sum_groups(std::vector<HeadResult>& results, std::int64_t group) {
  for (std::size_t first = 0; first < results.size(); first += static_cast<std::size_t>(group)) {
    for (const auto member :
         {&HeadResult::dk, &HeadResult::dv, &HeadResult::sigma2_dk, &HeadResult::sigma2_dv}) {
      for (std::size_t g = 1; g < static_cast<std::size_t>(group); ++g) {
        for (std::size_t i = 0; i < (results[first].*member).size(); ++i) {
          (results[first].*member)[i] += (results[first + g].*member)[i];
          (results[first + g].*member)[i] = 0;
        }
      }
    }
  }
}

// `positions` are rows as they are read; of others the results mean nothing.
std::vector<HeadResult> evaluate_reread(const Case& read, Range positions, bool backward, int threads) {
  const AttentionShape& s = read.problem.shape;
  std::vector<HeadResult> results(static_cast<std::size_t>(s.b * s.hq));
  parallel_for(s.b * s.hq, threads, [&](std::int64_t i) {
    results[static_cast<std::size_t>(i)] =
        evaluate(read, i / s.hq, i % s.hq, only_rows(right_function(read, i % s.hq), positions), backward);
  });
  sum_groups(results, s.group());
  // lse and the sink's gradient are [b, h, s] and [h] in either reading; the rest goes back as it came.
  std::vector<HeadResult> back = results;
  for (const auto member :
       {&HeadResult::out, &HeadResult::sigma_out, &HeadResult::dq, &HeadResult::sigma_dq}) {
    write_back(results, back, member, s.b, s.hq, s.sq, s.d, 1);
  }
  for (const auto member : {&HeadResult::dk, &HeadResult::dv, &HeadResult::sigma2_dk, &HeadResult::sigma2_dv})
    write_back(results, back, member, s.b, s.hkv, s.sk, s.d, s.group());
  return back;
}

// [b, h, s, d] to [b, s, h, d].
Tensor transposed(const Tensor& tensor, std::int64_t b, std::int64_t h, std::int64_t s, std::int64_t d) {
  if (!tensor.given()) return {};
  Tensor to(tensor.dtype(), {b, s, h, d});
  for (std::int64_t i = 0; i < b * h * s; ++i) {
    const std::int64_t batch = i / (h * s), head = i / s % h, row = i % s;
    for (std::int64_t column = 0; column < d; ++column)
      to.set(((batch * s + row) * h + head) * d + column, tensor.at(i * d + column));
  }
  return to;
}

// Positions are heads, heads are positions; nobody could pass sinks to that.
std::vector<HeadResult> evaluate_transposed(const Case& c, bool backward, int threads) {
  const AttentionShape& s = c.problem.shape;
  std::vector<HeadResult> results(static_cast<std::size_t>(s.b * s.hq));
  const auto rows = static_cast<std::size_t>(s.sq), keys = static_cast<std::size_t>(s.sk);
  const auto d = static_cast<std::size_t>(s.d);
  for (HeadResult& r : results) {
    for (auto* m : {&r.out, &r.sigma_out, &r.dq, &r.sigma_dq}) m->assign(rows * d, 0);
    for (auto* m : {&r.lse, &r.sigma_lse, &r.dsink, &r.sigma2_dsink}) m->assign(rows, 0);
    for (auto* m : {&r.dk, &r.dv, &r.sigma2_dk, &r.sigma2_dv}) m->assign(keys * d, 0);
  }
  if (s.sq != s.sk) return results;
  Case turned;
  turned.problem = c.problem;
  AttentionShape& t = turned.problem.shape;
  t.hq = t.hkv = s.sq;
  t.sq = s.hq;
  t.sk = s.hkv;
  turned.q = transposed(c.q, s.b, s.hq, s.sq, s.d);
  turned.k = transposed(c.k, s.b, s.hkv, s.sk, s.d);
  turned.v = transposed(c.v, s.b, s.hkv, s.sk, s.d);
  if (backward) turned.dout = transposed(c.dout, s.b, s.hq, s.sq, s.d);
  const Truth truth = compute_truth(turned, threads);
  const auto take = [&](const std::vector<double>& from, std::vector<double> HeadResult::*member,
                        std::int64_t heads, std::int64_t columns, std::int64_t every) {
    for (std::size_t i = 0; i < from.size(); ++i) {
      const auto row = static_cast<std::int64_t>(i) / columns;
      const std::int64_t batch = row / (heads * s.sq), position = row / heads % s.sq, head = row % heads;
      const std::int64_t at = position * columns + static_cast<std::int64_t>(i) % columns;
      (results[static_cast<std::size_t>((batch * heads + head) * every)].*
       member)[static_cast<std::size_t>(at)] = from[i];
    }
  };
  take(truth.value.out, &HeadResult::out, s.hq, s.d, 1);
  take(truth.sigma.out, &HeadResult::sigma_out, s.hq, s.d, 1);
  take(truth.value.dq, &HeadResult::dq, s.hq, s.d, 1);
  take(truth.sigma.dq, &HeadResult::sigma_dq, s.hq, s.d, 1);
  take(truth.value.lse, &HeadResult::lse, s.hq, 1, 1);
  take(truth.sigma.lse, &HeadResult::sigma_lse, s.hq, 1, 1);
  take(truth.value.dk, &HeadResult::dk, s.hkv, s.d, s.group());
  take(truth.value.dv, &HeadResult::dv, s.hkv, s.d, s.group());
  take(truth.sigma.dk, &HeadResult::sigma2_dk, s.hkv, s.d, s.group());
  take(truth.sigma.dv, &HeadResult::sigma2_dv, s.hkv, s.d, s.group());
  for (HeadResult& r : results) {
    for (auto* sigma : {&r.sigma2_dk, &r.sigma2_dv}) {
      for (double& x : *sigma) x *= x;
    }
  }
  return results;
}

}  // namespace

std::vector<HeadResult> evaluate_swapped(const Case& c, HeadLayout layout, bool backward, int threads) {
  return layout == HeadLayout::kReread
             ? evaluate_reread(reread_case(c), {0, c.problem.shape.sq}, backward, threads)
             : evaluate_transposed(c, backward, threads);
}

Case reread_case(const Case& c) {
  const AttentionShape& s = c.problem.shape;
  Case read = c;
  read.q = reread(c.q, s.b, s.hq, s.sq, s.d);
  read.k = reread(c.k, s.b, s.hkv, s.sk, s.d);
  read.v = reread(c.v, s.b, s.hkv, s.sk, s.d);
  read.dout = reread(c.dout, s.b, s.hq, s.sq, s.d);
  return read;
}

HeadResult evaluate_reread_rows(const Case& read, std::int64_t batch, std::int64_t head, Range rows,
                                bool backward, int threads) {
  const AttentionShape& s = read.problem.shape;
  const Range positions{(head * s.sq + rows.first) / s.hq, (head * s.sq + rows.end - 1) / s.hq + 1};
  std::vector<HeadResult> results = evaluate_reread(read, positions, backward, threads);
  return std::move(results[static_cast<std::size_t>(batch * s.hq + head)]);
}

}  // namespace sinkscope
