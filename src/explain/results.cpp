// SPDX-License-Identifier: Apache-2.0
#include "src/explain/results.hpp"

#include <algorithm>

#include "src/core/parallel.hpp"

namespace sinkscope {

void Results::prepare(const std::vector<HeadTask>& tasks, bool backward) {
  std::map<Key, const HeadTask*> missing;
  for (const HeadTask& task : tasks) {
    Key key{task.batch, task.head, task.function->key};
    const auto found = entries_.find(key);
    if (found != entries_.end() && (found->second.backward || !backward)) continue;
    if (task.function->layout != HeadLayout::kRight) {
      compute_swapped(*task.function);
      continue;
    }
    missing.emplace(std::move(key), &task);
  }
  std::vector<std::pair<const Key*, const HeadTask*>> list;
  list.reserve(missing.size());
  for (const auto& [key, task] : missing) list.emplace_back(&key, task);
  std::vector<HeadResult> computed(list.size());
  parallel_for(static_cast<std::int64_t>(list.size()), threads_, [&](std::int64_t i) {
    const HeadTask& task = *list[static_cast<std::size_t>(i)].second;
    computed[static_cast<std::size_t>(i)] = evaluate(case_, task.batch, task.head, *task.function, backward);
  });
  for (std::size_t i = 0; i < list.size(); ++i)
    entries_[*list[i].first] = {backward, std::move(computed[i]), false};
}

const HeadResult& Results::at(std::int64_t batch, std::int64_t head, const HeadFunction& function,
                              bool backward) {
  const Key key{batch, head, function.key};
  const auto found = entries_.find(key);
  if (found == entries_.end() || (backward && !found->second.backward))
    prepare({{batch, head, std::make_shared<HeadFunction>(function)}}, backward);
  return entries_.at(key).result;
}

void Results::keep_only(const std::vector<std::string>& keys) {
  std::erase_if(entries_, [&](const auto& entry) {
    return !entry.second.stays && std::find(keys.begin(), keys.end(), std::get<2>(entry.first)) == keys.end();
  });
}

// `backward` is asked for sooner or later.
void Results::compute_swapped(const HeadFunction& function) {
  const AttentionShape& s = case_.problem.shape;
  std::vector<HeadResult> all = evaluate_swapped(case_, function.layout, true, threads_);
  for (std::int64_t i = 0; i < s.b * s.hq; ++i) {
    entries_[{i / s.hq, i % s.hq, function.key}] = {true, std::move(all[static_cast<std::size_t>(i)]), true};
  }
}

}  // namespace sinkscope
