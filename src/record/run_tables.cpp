// SPDX-License-Identifier: Apache-2.0
#include "src/record/run_tables.hpp"

namespace sinkscope {

const std::vector<BlockPart> kBlockParts = {{"q", &BlockValues::q, &RunShape::hq, "head"},
                                            {"k", &BlockValues::k, &RunShape::hkv, "kv_head"},
                                            {"v", &BlockValues::v, &RunShape::hkv, "kv_head"},
                                            {"sink", &BlockValues::sink, &RunShape::hq, "head"},
                                            {"other", &BlockValues::other, nullptr, ""}};

std::int64_t heads_of(const BlockPart& part, const RunShape& shape) {
  return part.heads == nullptr ? 1 : shape.*part.heads;
}

const Columns<StepRow> kStepColumns = {
    .table = "steps",
    .rows = &TrainingRun::steps,
    .integers = {{{"step", "1", "step of the run, from 0"}, &StepRow::step},
                 {{"phase", "1", "phase of the run, from 0"}, &StepRow::phase}},
    .reals = {{{"seconds", "s", "time of the step"}, &StepRow::seconds},
              {{"loss", "1", "loss of the batch"}, &StepRow::loss},
              {{"reward", "1", "mean reward of the rollouts"}, &StepRow::reward},
              {{"gradient_norm", "1", "global gradient norm before clipping"}, &StepRow::gradient_norm},
              {{"z", "1", "robust z-score of the logarithm of gradient_norm"}, &StepRow::z},
              {{"log_prob_gap", "1", "mean |log-probability of the rollout path - of the training path|"},
               &StepRow::log_prob_gap},
              {{"ratio_mean", "1", "mean importance ratio"}, &StepRow::ratio_mean},
              {{"ratio_max", "1", "largest importance ratio"}, &StepRow::ratio_max},
              {{"effective_samples", "1", "effective sample size over the number of samples"},
               &StepRow::effective_samples},
              {{"clip_fraction", "1", "share of the ratios that are clipped"}, &StepRow::clip_fraction},
              {{"kl", "1", "estimate of the Kullback-Leibler divergence from the rollout path"},
               &StepRow::kl}},
    .texts = {},
    .heads = {{{"sink_mass", "1", "mean share of the softmax that the sink has"}, &StepRow::sink_mass},
              {{"gain", "1", "1 / (1 - sink_mass)"}, &StepRow::gain},
              {{"entropy", "nat", "mean entropy of the attention"}, &StepRow::entropy},
              {{"max_logit", "1", "largest logit"}, &StepRow::max_logit}},
    .blocks = {{{"norm2", "1", "squared norm of the gradient"}, &StepRow::norm2}},
};

const Columns<ReplayRow> kReplayColumns = {
    .table = "counterfactuals",
    .rows = &TrainingRun::replays,
    .integers = {{{"step", "1", "step of the run, from 0"}, &ReplayRow::step}},
    .reals = {{{"loss", "1", "loss of the batch through the path"}, &ReplayRow::loss}},
    .texts = {{{"path", "", "the attention that the gradient went through"}, &ReplayRow::path}},
    .heads = {},
    .blocks = {{{"norm2", "1", "squared norm of the path's gradient"}, &ReplayRow::norm2},
               {{"error2", "1", "squared norm of its difference from exact attention's"},
                &ReplayRow::error2}},
};

const Columns<SpikeRow> kSpikeColumns = {
    .table = "spikes",
    .rows = &TrainingRun::spikes,
    .integers = {{{"step", "1", "step of the run, from 0"}, &SpikeRow::step}},
    .reals = {{{"z", "1", "robust z-score of the logarithm of gradient_norm"}, &SpikeRow::z},
              {{"gradient_norm", "1", "global gradient norm before clipping"}, &SpikeRow::gradient_norm},
              {{"median", "1", "median of gradient_norm over the steps before"}, &SpikeRow::median},
              {{"exact_norm", "1", "gradient norm of exact attention"}, &SpikeRow::exact_norm},
              {{"exact_median", "1", "median of exact_norm over the steps before"}, &SpikeRow::exact_median},
              {{"spread", "1", "robust standard deviation of the logarithm of gradient_norm"},
               &SpikeRow::spread},
              {{"fraction", "1", "explained fraction"}, &SpikeRow::fraction},
              {{"error_share", "1", "|g - g_exact|^2 / |g|^2"}, &SpikeRow::error_share}},
    .texts = {{{"verdict", "", "removed, persists or not attention"}, &SpikeRow::verdict},
              {{"capture", "", "file with the batch"}, &SpikeRow::capture}},
    .heads = {},
    .blocks = {{{"share", "1", "share of the explained fraction"}, &SpikeRow::share}},
};

const Columns<CauseRow> kCauseColumns = {
    .table = "causes",
    .rows = &TrainingRun::causes,
    .integers = {{{"step", "1", "step of the spike"}, &CauseRow::step}},
    .reals = {{{"share", "1", "share of the explained fraction"}, &CauseRow::share}},
    .texts = {{{"cause", "", "what explain calls it, or rounding and rest"}, &CauseRow::cause}},
    .heads = {},
    .blocks = {},
};

}  // namespace sinkscope
