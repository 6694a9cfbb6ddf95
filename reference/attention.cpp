// SPDX-License-Identifier: Apache-2.0
#include "reference/attention.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <functional>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "reference/head.hpp"

namespace reference {
namespace {

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument("truth: " + message);
}

void require_size(std::size_t got, std::int64_t wanted, const char* name) {
  require(got == static_cast<std::size_t>(wanted),
          std::string(name) + " has " + std::to_string(got) + " elements, wanted " + std::to_string(wanted));
}

void require_offsets(const std::vector<std::int64_t>& cu, std::int64_t total, const char* name) {
  require(cu.size() >= 2 && cu.front() == 0 && cu.back() == total && std::is_sorted(cu.begin(), cu.end()),
          std::string(name) + " must rise from 0 to " + std::to_string(total));
}

void check(const Problem& p, const Inputs& in) {
  require(p.b > 0 && p.hq > 0 && p.hkv > 0 && p.d > 0 && p.sq >= 0 && p.sk >= 0,
          "b, hq, hkv and d must be positive, sq and sk not negative");
  require(p.hq % p.hkv == 0,
          "hq " + std::to_string(p.hq) + " must be a multiple of hkv " + std::to_string(p.hkv));
  require(p.window == 0 || (p.window > 0 && p.causal), "a window must be positive and needs causal");
  require_size(in.q.size(), p.b * p.hq * p.sq * p.d, "q");
  require_size(in.k.size(), p.b * p.hkv * p.sk * p.d, "k");
  require_size(in.v.size(), p.b * p.hkv * p.sk * p.d, "v");
  if (!in.sinks.empty()) require_size(in.sinks.size(), p.hq, "sinks");
  if (!in.dout.empty()) require_size(in.dout.size(), p.b * p.hq * p.sq * p.d, "dout");
  if (!in.dlse.empty()) require_size(in.dlse.size(), p.b * p.hq * p.sq, "dlse");
  require(p.cu_q.empty() == p.cu_k.empty(), "cu_q and cu_k come together");
  if (p.cu_q.empty()) return;
  require(p.b == 1, "packed documents need b 1, saw " + std::to_string(p.b));
  require_offsets(p.cu_q, p.sq, "cu_q");
  require_offsets(p.cu_k, p.sk, "cu_k");
  require(p.cu_q.size() == p.cu_k.size(), "cu_q and cu_k must have the same length");
}

void parallel(std::int64_t count, int threads, const std::function<void(std::int64_t)>& body) {
  if (threads <= 0) threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  std::atomic<std::int64_t> next = 0;
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto work = [&] {
    try {
      for (std::int64_t i = next++; i < count; i = next++) body(i);
    } catch (...) {
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next = count;
    }
  };
  std::vector<std::thread> pool;
  try {
    for (std::int64_t t = 1; t < std::min<std::int64_t>(threads, count); ++t) pool.emplace_back(work);
  } catch (const std::system_error&) {
    // The system gives no more threads: those that are there do the work.
  }
  work();
  for (std::thread& thread : pool) thread.join();
  if (failure) std::rethrow_exception(failure);
}

// Sums over the heads of a group, for one share of them.
struct KeySums {
  std::vector<double> dk, dv, sigma2_dk, sigma2_dv;  // [sk, d]
};

class Computation {
 public:
  Computation(const Problem& problem, const Inputs& inputs, const Rounding& rounding, const Options& options)
      : p_(problem), in_(inputs), rounding_(rounding), options_(options), backward_(!inputs.dout.empty()) {
    cu_q_ = p_.cu_q.empty() ? std::vector<std::int64_t>{0, p_.sq} : p_.cu_q;
    cu_k_ = p_.cu_k.empty() ? std::vector<std::int64_t>{0, p_.sk} : p_.cu_k;
    // A group of query heads is shared out in equal parts when there are few key/value heads, so that there
    // is work for several threads. The number of parts, and so the order of the sums, depends on the problem
    // alone.
    const std::int64_t group = p_.hq / p_.hkv;
    const std::int64_t wanted = (kLeastItems + p_.b * p_.hkv - 1) / (p_.b * p_.hkv);
    parts_ = std::min(group, wanted);
    allocate();
  }

  Result run() {
    for (std::int64_t first = 0; first < p_.b * p_.hkv; first += kLeastItems) {
      const std::int64_t count = std::min(kLeastItems, p_.b * p_.hkv - first);
      std::vector<KeySums> sums(static_cast<std::size_t>(count * parts_));
      parallel(count * parts_, options_.threads, [&](std::int64_t item) {
        run_part(first + item / parts_, item % parts_, sums[static_cast<std::size_t>(item)]);
      });
      if (backward_) {
        parallel(count, options_.threads, [&](std::int64_t i) {
          finish_group(first + i, std::span(sums).subspan(static_cast<std::size_t>(i * parts_),
                                                          static_cast<std::size_t>(parts_)));
        });
      }
    }
    if (backward_) finish_sinks();
    return std::move(result_);
  }

 private:
  static constexpr std::int64_t kLeastItems = 16;
  static constexpr double kFp32Underflow = 0x1p-126;

  void allocate() {
    const auto rows = static_cast<std::size_t>(p_.b * p_.hq * p_.sq);
    const auto keys = static_cast<std::size_t>(p_.b * p_.hkv * p_.sk);
    const auto d = static_cast<std::size_t>(p_.d);
    const auto make = [&](Tensors& t) {
      t.out.resize(rows * d);
      t.lse.resize(rows);
      if (!backward_) return;
      t.delta.resize(rows);
      t.dq.resize(rows * d);
      t.dk.resize(keys * d);
      t.dv.resize(keys * d);
      t.dsinks.resize(static_cast<std::size_t>(p_.hq));
    };
    make(result_.value);
    if (options_.sigma) make(result_.sigma);
    result_.p_sink.resize(rows);
    result_.entropy.resize(rows);
    const auto sink_terms = static_cast<std::size_t>(p_.b * p_.hq);
    dsinks_.resize(sink_terms);
    sigma2_dsinks_.resize(sink_terms);
  }

  // The query heads of one part of one (batch, kv head), document by document.
  void run_part(std::int64_t batch_kv, std::int64_t part, KeySums& sums) {
    const std::int64_t group = p_.hq / p_.hkv;
    if (backward_) {
      const auto size = static_cast<std::size_t>(p_.sk * p_.d);
      sums.dk.resize(size);
      sums.dv.resize(size);
      sums.sigma2_dk.resize(options_.sigma ? size : 0);
      sums.sigma2_dv.resize(options_.sigma ? size : 0);
    }
    HeadWorker worker(rounding_, options_.sigma);
    for (std::int64_t g = part * group / parts_; g < (part + 1) * group / parts_; ++g) {
      const std::int64_t head = batch_kv * group + g;  // batch * hq + query head
      HeadSums head_sums;
      for (std::size_t document = 0; document + 1 < cu_q_.size(); ++document) {
        head_sums.dk = at(sums.dk, cu_k_[document] * p_.d);
        head_sums.dv = at(sums.dv, cu_k_[document] * p_.d);
        head_sums.sigma2_dk = at(sums.sigma2_dk, cu_k_[document] * p_.d);
        head_sums.sigma2_dv = at(sums.sigma2_dv, cu_k_[document] * p_.d);
        worker.run(view_of(batch_kv, head, document), head_sums);
      }
      dsinks_[static_cast<std::size_t>(head)] = head_sums.dsink;
      sigma2_dsinks_[static_cast<std::size_t>(head)] = head_sums.sigma2_dsink;
    }
  }

  HeadView view_of(std::int64_t batch_kv, std::int64_t head, std::size_t document) {
    const std::int64_t row = head * p_.sq + cu_q_[document];
    const std::int64_t key = batch_kv * p_.sk + cu_k_[document];
    HeadView view;
    view.span = {cu_q_[document + 1] - cu_q_[document], cu_k_[document + 1] - cu_k_[document], p_.causal,
                 p_.window};
    view.d = p_.d;
    view.scale = p_.scale;
    view.sink = in_.sinks.empty() ? -std::numeric_limits<double>::infinity()
                                  : in_.sinks[static_cast<std::size_t>(head % p_.hq)];
    view.q = in_.q.data() + row * p_.d;
    view.k = in_.k.data() + key * p_.d;
    view.v = in_.v.data() + key * p_.d;
    view.dout = backward_ ? in_.dout.data() + row * p_.d : nullptr;
    view.dlse = in_.dlse.empty() ? nullptr : in_.dlse.data() + row;
    view.out = at(result_.value.out, row * p_.d);
    view.lse = at(result_.value.lse, row);
    view.delta = at(result_.value.delta, row);
    view.dq = at(result_.value.dq, row * p_.d);
    view.p_sink = at(result_.p_sink, row);
    view.entropy = at(result_.entropy, row);
    view.sigma_out = at(result_.sigma.out, row * p_.d);
    view.sigma_lse = at(result_.sigma.lse, row);
    view.sigma_delta = at(result_.sigma.delta, row);
    view.sigma_dq = at(result_.sigma.dq, row * p_.d);
    return view;
  }

  static double* at(std::vector<double>& values, std::int64_t offset) {
    return values.empty() ? nullptr : values.data() + offset;
  }

  // Sums the parts in order; Eq. 16 and 17's last terms.
  void finish_group(std::int64_t batch_kv, std::span<KeySums> parts) {
    const std::int64_t size = p_.sk * p_.d;
    const double eta2 = std::pow(rounding_.underflow / rounding_.unit_roundoff, 2);
    const auto total = [&](std::vector<double> KeySums::*member, std::int64_t i) {
      double sum = 0;
      for (const KeySums& part : parts) sum += (part.*member)[static_cast<std::size_t>(i)];
      return sum;
    };
    for (std::int64_t i = 0; i < size; ++i) {
      const auto to = static_cast<std::size_t>(batch_kv * size + i);
      const double dk = result_.value.dk[to] = total(&KeySums::dk, i);
      const double dv = result_.value.dv[to] = total(&KeySums::dv, i);
      if (!options_.sigma) continue;
      result_.sigma.dk[to] = std::sqrt(total(&KeySums::sigma2_dk, i) + dk * dk + eta2);
      result_.sigma.dv[to] = std::sqrt(total(&KeySums::sigma2_dv, i) + dv * dv + eta2);
    }
    for (KeySums& part : parts) part = {};
  }

  // Eq. 13 and 20: over the batch, in order.
  void finish_sinks() {
    const double rho = 0x1p-24 / rounding_.unit_roundoff;
    for (std::int64_t h = 0; h < p_.hq; ++h) {
      double dsink = 0;
      double sigma2 = 0;
      for (std::int64_t batch = 0; batch < p_.b; ++batch) {
        dsink += dsinks_[static_cast<std::size_t>(batch * p_.hq + h)];
        sigma2 += sigma2_dsinks_[static_cast<std::size_t>(batch * p_.hq + h)];
      }
      result_.value.dsinks[static_cast<std::size_t>(h)] = dsink;
      if (!options_.sigma) continue;
      sigma2 += dsink * dsink * (rounding_.dsinks_in_16_bits ? 1 : rho * rho);
      sigma2 += std::pow(kFp32Underflow / rounding_.unit_roundoff, 2);
      result_.sigma.dsinks[static_cast<std::size_t>(h)] = std::sqrt(sigma2);
    }
  }

  const Problem& p_;
  const Inputs& in_;
  Rounding rounding_;
  Options options_;
  bool backward_;
  std::vector<std::int64_t> cu_q_, cu_k_;
  std::int64_t parts_ = 1;
  Result result_;
  std::vector<double> dsinks_, sigma2_dsinks_;  // [b, hq]
};

}  // namespace

Result attention(const Problem& problem, const Inputs& inputs, const Rounding& rounding,
                 const Options& options) {
  check(problem, inputs);
  return Computation(problem, inputs, rounding, options).run();
}

}  // namespace reference
