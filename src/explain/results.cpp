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
  const std::vector<Alike> groups = alike(missing);
  std::vector<std::vector<HeadResult>> computed(groups.size());
  parallel_for(static_cast<std::int64_t>(groups.size()), threads_, [&](std::int64_t i) {
    const Alike& group = groups[static_cast<std::size_t>(i)];
    computed[static_cast<std::size_t>(i)] =
        evaluate_alike(case_, group.batch, group.head, group.functions, backward);
  });
  for (std::size_t i = 0; i < groups.size(); ++i) {
    for (std::size_t f = 0; f < groups[i].functions.size(); ++f) {
      const Key key{groups[i].batch, groups[i].head, groups[i].functions[f]->key};
      entries_[key] = {backward, std::move(computed[i][f]), false};
    }
  }
}

// Functions of a head that share a forward, together.
std::vector<Results::Alike> Results::alike(const std::map<Key, const HeadTask*>& tasks) {
  std::vector<Alike> groups;
  for (const auto& [key, task] : tasks) {
    const auto same = std::find_if(groups.begin(), groups.end(), [task = task](const Alike& group) {
      return group.batch == task->batch && group.head == task->head &&
             have_same_forward(*group.functions.front(), *task->function);
    });
    if (same != groups.end())
      same->functions.push_back(task->function);
    else
      groups.push_back({task->batch, task->head, {task->function}});
  }
  return groups;
}

const HeadResult& Results::at(std::int64_t batch, std::int64_t head, const HeadFunction& function,
                              bool backward) {
  const Key key{batch, head, function.key};
  const auto found = entries_.find(key);
  if (found == entries_.end() || (backward && !found->second.backward))
    prepare({{batch, head, std::make_shared<HeadFunction>(function)}}, backward);
  return entries_.at(key).result;
}

const Case& Results::reread() {
  if (!reread_) reread_ = reread_case(case_);
  return *reread_;
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
