// SPDX-License-Identifier: Apache-2.0
// What heads compute under a function, each computed once.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "src/explain/head_function.hpp"

namespace sinkscope {

struct HeadTask {
  std::int64_t batch, head;
  FunctionPtr function;
};

class Results {
 public:
  Results(const Case& c, int threads) : case_(c), threads_(threads) {}

  // Computes what is not there yet, in parallel.
  void prepare(const std::vector<HeadTask>& tasks, bool backward);
  // One head's result; computed here and now where prepare() was not asked for it.
  const HeadResult& at(std::int64_t batch, std::int64_t head, const HeadFunction& function, bool backward);
  // The case's inputs as HeadLayout::kReread has them; read once.
  const Case& reread();
  // Forgets all results of functions whose key is not among `keys`.
  void keep_only(const std::vector<std::string>& keys);

 private:
  struct Entry {
    bool backward = false;
    HeadResult result;
    bool stays = false;  // costs too much to be computed again
  };
  using Key = std::tuple<std::int64_t, std::int64_t, std::string>;

  struct Alike {
    std::int64_t batch, head;
    std::vector<FunctionPtr> functions;
  };

  static std::vector<Alike> alike(const std::map<Key, const HeadTask*>& tasks);
  void compute_swapped(const HeadFunction& function);

  const Case& case_;
  int threads_;
  std::map<Key, Entry> entries_;
  std::optional<Case> reread_;
};

}  // namespace sinkscope
