// SPDX-License-Identifier: Apache-2.0
// Free parameters of causes, found from what a path gave.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "src/explain/head_function.hpp"

namespace sinkscope {

// The path's own out or lse of a head, widened; empty where it gives none.
using GotOf = std::function<std::vector<double>(TensorName, std::int64_t batch, std::int64_t head)>;

// The head whose sink explains this head's lse best (or its out, where the path gives no lse): another one than its
// own, by least squares over the rows; nothing where another sink cannot be told from the right one.
std::optional<std::int64_t> sink_source(const Case& c, std::int64_t batch, std::int64_t head,
                                        const HeadFunction& base, const GotOf& got);

// The scale that explains this head's out or lse, by a search over a few rows between 1/64 and 64 times the right one, of
// either sign; nothing where the path does not give that tensor.
std::optional<double> estimated_scale(const Case& c, std::int64_t batch, std::int64_t head,
                                      const HeadFunction& base, const GotOf& got, TensorName tensor);

// The cap of a tanh on the logits that explains this head's out or lse, between 1/8 and 512.
std::optional<double> estimated_softcap(const Case& c, std::int64_t batch, std::int64_t head,
                                        const HeadFunction& base, const GotOf& got, TensorName tensor);

}  // namespace sinkscope
