// SPDX-License-Identifier: Apache-2.0
// One head of one batch entry under functions that share its forward and differ in what follows: the forward is computed
// once for all of them, and so are gradients that come out alike. evaluate() and evaluate_alike() are the way in.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "src/explain/head_function.hpp"

namespace sinkscope {

class Evaluation {
 public:
  Evaluation(const Case& c, std::int64_t batch, std::int64_t head, const HeadFunction& f, bool backward);

  // `f` has the forward of the function that this was made for (`have_same_forward`).
  HeadResult run(const HeadFunction& f);

 private:
  // What the reference made of a part of the rows, and what it was given.
  struct Gradients {
    std::vector<double> dout, dlse;
    Truth truth;
    std::vector<double> spread;  // of Delta, beyond its own
    std::optional<Truth> of_spread;
  };

  void allocate();
  void silence(Range rows);
  Truth run_part(const Part& part, const std::vector<double>& dout, const std::vector<double>& dlse,
                 double scale_factor = 1, bool sigma = true) const;
  void merge();
  void hand_out_lse();
  void take_lse_of_keys();

  void add_gradients();
  std::vector<double> probabilities_by_ds() const;
  Gradients& gradients_of(std::size_t part, const std::vector<RowRule>& rules);
  void add_part(const Part& part, const Truth& t, const std::vector<RowRule>& rules);
  void add_delta_spread(const Part& part, Gradients& made, const std::vector<RowRule>& rules);
  void add_dout_spread(const Part& part, const Truth& forward, const std::vector<RowRule>& rules);
  void add_sink_term(std::size_t row, const RowRule& rule, double sigma_delta, double sigma_lse,
                     std::int64_t rows);

  const AttentionShape& s_;
  const HeadFunction* f_;
  const bool backward_;
  reference::Rounding rounding_;
  std::vector<double> q_, k_, v_, dout_, dlse_;
  std::vector<Truth> forwards_;               // of each part; with gradients where `at_once_`
  bool at_once_ = false;                      // the right backward of rows of one part came with the forward
  std::vector<std::vector<Gradients>> made_;  // of each part
  HeadResult forward_;                        // what every function starts from
  HeadResult r_;
};

// Row `row` of a part, as the head counts rows.
inline std::int64_t source_row(const Part& part, std::int64_t row) {
  return part.reversed ? part.rows.end - 1 - row : part.rows.first + row;
}

// Key `key` of a part, as the head counts keys.
inline std::int64_t source_key(const Part& part, std::int64_t key) {
  return part.reversed ? part.keys.end - 1 - key : part.keys.first + key;
}

// exp(a - b), a part's share of a row; 1 where both are the same infinity.
double share_of(double a, double b);

}  // namespace sinkscope
