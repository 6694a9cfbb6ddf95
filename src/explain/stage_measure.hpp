// SPDX-License-Identifier: Apache-2.0
// What each rounding that a path makes contributes to the error of a head.
#pragma once

#include "src/explain/stage_search.hpp"
#include "src/explain/stages.hpp"

namespace sinkscope {

// `explain_bias`: is the head's bias beyond chance? z_rms is left to the caller.
HeadStages measure_stages(const StageInputs& inputs, const SampledTensor& sample,
                          const SampledTensor::Head& head, const Roundings& roundings, bool explain_bias);

// The same where a whole model stands for all stages.
HeadStages measure_model(const StageInputs& inputs, const SampledTensor& sample,
                         const SampledTensor::Head& head, const RoundingModel& model, bool explain_bias);

}  // namespace sinkscope
