// SPDX-License-Identifier: Apache-2.0
// The search: from the worst cell, which mistakes make it right, what else does each make right, which says it shortest.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "src/explain/candidate.hpp"
#include "src/explain/explain.hpp"
#include "src/explain/facts.hpp"

namespace sinkscope {

// What one cause came to explain.
struct Accepted {
  const Cause* cause = nullptr;
  std::string note;
  std::vector<std::string> equivalent;
  struct Part {
    std::size_t cell;
    double z2_before, z2_after, z_rms_after;
    std::optional<Range> rows;
    bool fits;
  };
  std::vector<Part> parts;
  std::set<Place> places;
  std::optional<Candidate> candidate;  // what was tried; of a fact none
  double norm2_change =
      0;  // what it makes of the squared norm of dq, dk and dv, on top of what was found before
};

class Engine {
 public:
  Engine(State& state, const ExplainOptions& options) : state_(state), options_(options) {}

  // Explains what can be; what is left stays `fails` and `given_up` in the state.
  std::vector<Accepted> run();

 private:
  std::optional<std::size_t> worst_cell() const;
  std::vector<Candidate> singles(std::size_t cell);
  std::vector<Candidate> pairs(std::size_t cell);
  std::vector<Candidate> screened(std::size_t cell, std::vector<Candidate> all);
  std::vector<Candidate> fitting(std::size_t cell, std::vector<Candidate> all);
  std::vector<Candidate> candidates_for(std::size_t cell, const std::vector<Hypothesis>& before,
                                        const std::vector<std::string>& suffixes, const HeadFunction& base,
                                        bool on_forward);
  bool is_unknown_before(std::size_t cell) const;
  bool is_out_given_up(const Cell& dq) const;
  bool accept_best(std::size_t cell, std::vector<Candidate> candidates);
  bool is_plausible(const Candidate& candidate);
  bool accept_fact(std::size_t cell);
  bool accept_rounded(std::size_t cell);
  void accept(const Candidate& best, const std::vector<std::string>& equivalent);
  Accepted& record_of(const Cause& cause);

  // Squared norms of dq, dk and dv: as they are known, and with each of two hypotheses alone.
  struct NormsBefore {
    double known;
    std::vector<double> alone;
  };
  // A function in place of what is known of a tensor; null where that holds.
  using Changes = std::function<FunctionPtr(TensorName, const Place&)>;
  double gradient_norm2() const;
  double gradient_norm2_under(const Changes& changes, const std::vector<Explained>& where) const;
  bool credit_forward(const std::vector<Explained>& where, double change);
  NormsBefore norms_before(const Candidate& best);
  void credit(const Candidate& best, const NormsBefore& before);
  Accepted& record(const Cause& cause, const std::string& note, const std::vector<std::string>& equivalent,
                   const Accepted::Part& part, const std::set<Place>& places);

  State& state_;
  const ExplainOptions& options_;
  std::vector<Accepted> accepted_;
  std::map<std::size_t, std::vector<std::pair<double, Candidate>>> tried_;  // by the squared z that each left
  int hopeless_ = 0;
};

}  // namespace sinkscope
