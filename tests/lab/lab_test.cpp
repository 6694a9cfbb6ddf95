// SPDX-License-Identifier: Apache-2.0
// The spike lab: gradients through every kind of path beside exact attention, resuming, replays, rewards.
#include "src/lab/lab.hpp"

#include <cmath>

#include "src/capture/capture.hpp"
#include "src/capture/safetensors.hpp"
#include "src/core/error.hpp"
#include "src/diff/diff.hpp"
#include "src/truth/truth.hpp"
#include "tests/lab/relative_error.hpp"
#include "tests/temporary_folder.hpp"

namespace sinkscope::lab {
namespace {

LabConfig small_sorting() {
  LabConfig config;
  config.sorting = true;
  config.model = {.layers = 2,
                  .width = 32,
                  .hq = 4,
                  .hkv = 2,
                  .d = 16,
                  .window = 4,
                  .intermediate = 32,
                  .vocabulary = 11};
  config.model.sink_mean = 1;
  config.sort = {.digits = 4, .batch = 16, .prompts = 8, .rollouts = 4};
  config.threads = 2;
  return config;
}

LabConfig small_text(bool packed) {
  LabConfig config = small_sorting();
  config.sorting = false;
  config.model.vocabulary = 256;
  config.text = {.path = "datasets/text", .batch = 2, .length = 48, .packed = packed};
  return config;
}

StepSettings through(const std::string& path) {
  StepSettings settings;
  settings.training_path = path;
  settings.rollout_path = "sink_kernel";
  settings.learning_rate = 1e-2;
  return settings;
}

StepSettings reinforced(const std::string& path) {
  StepSettings settings = through(path);
  settings.kind = StepKind::kReinforce;
  return settings;
}

bool is_sink(const Block& block) {
  return block.kind == BlockKind::kSink;
}
bool is_no_sink(const Block& block) {
  return block.kind != BlockKind::kSink;
}

class Lab : public TemporaryFolder {
 protected:
  void SetUp() override {
    TemporaryFolder::SetUp();
    if (!why_no_lab().empty()) GTEST_SKIP() << why_no_lab();
  }
};

TEST_F(Lab, PathsAreAsFarFromExactAsTheyShouldBe) {
  const auto lab = open_lab(small_text(false));
  lab->gradient(through("exact"));
  const auto found =
      lab->replay({"exact", "fault:dsink_missing:exact", "sink_kernel", "flash_attention_2_sink", "eager",
                   "flash_attention_2", "fault:window_ignored:sink_kernel"},
                  through("exact"));
  EXPECT_EQ(relative_error(found[0]), 0);
  EXPECT_NEAR(relative_error(found[1], is_sink), 1, 1e-6);
  EXPECT_LT(relative_error(found[1], is_no_sink), 1e-3) << "a path gets the gradient of out rounded";
  for (const std::size_t healthy : {2, 3, 4}) {
    EXPECT_GT(relative_error(found[healthy]), 1e-4) << found[healthy].path;
    EXPECT_LT(relative_error(found[healthy]), 2e-2) << found[healthy].path;
  }
  EXPECT_GT(relative_error(found[5]), 5e-2);
  EXPECT_EQ(relative_error(found[5], is_sink), 1) << "attention without a sink gives it no gradient";
  EXPECT_GT(relative_error(found[6]), 5e-2);
}

// What a fault asks of the path below it (another scale or mask, a gradient of the LSE) is done by exact attention too.
TEST_F(Lab, AFaultIsTheSameAroundExactAttention) {
  const auto lab = open_lab(small_text(false));
  lab->gradient(through("exact"));
  for (const std::string fault : {"scale_wrong", "causal_missing", "layout_swapped", "window_plus_one",
                                  "delta_uncorrected", "dlse_dropped", "sink_ignored"}) {
    const auto found =
        lab->replay({"fault:" + fault + ":sink_kernel", "fault:" + fault + ":exact"}, through("exact"));
    EXPECT_GT(relative_error(found[0]), 2e-2) << fault;
    EXPECT_NEAR(relative_error(found[1]) / relative_error(found[0]), 1, 2e-2) << fault;
  }
}

TEST_F(Lab, InFp32AllAgreeToItsRounding) {
  LabConfig config = small_text(false);
  config.format = DType::kFp32;
  const auto lab = open_lab(config);
  lab->gradient(through("exact"));
  for (const ReplayedPath& path : lab->replay({"sink_kernel", "eager_fp32"}, through("exact")))
    EXPECT_LT(relative_error(path), 1e-5) << path.path;
}

TEST_F(Lab, PackedDocumentsDoNotSeeEachOther) {
  const auto lab = open_lab(small_text(true));
  lab->gradient(through("exact"));
  const auto found = lab->replay({"sink_kernel", "fault:documents_leak:sink_kernel"}, through("exact"));
  EXPECT_LT(relative_error(found[0]), 2e-2);
  EXPECT_GT(relative_error(found[1]), 5e-2);
}

TEST_F(Lab, BlocksAddToTheNormThatIsClipped) {
  const auto lab = open_lab(small_text(false));
  const StepResult result = lab->gradient(through("sink_kernel"));
  double sum = 0;
  for (const BlockNorm& block : result.blocks) sum += block.squared;
  EXPECT_NEAR(std::sqrt(sum), result.gradient_norm, 1e-9 * result.gradient_norm);
  EXPECT_EQ(result.blocks.size(), 2U * (4 + 2 + 2 + 4 + 1) + 1);
  EXPECT_TRUE(result.heads.empty());
}

TEST_F(Lab, TheSinksShareIsObserved) {
  StepSettings settings = through("sink_kernel");
  settings.observe = true;
  const StepResult result = open_lab(small_text(false))->gradient(settings);
  ASSERT_EQ(result.heads.size(), 8U);
  for (const HeadFacts& head : result.heads) {
    EXPECT_GT(head.sink_mass, 0);
    EXPECT_LT(head.sink_mass, 1);
    EXPECT_GT(head.gain, 1 / (1 - head.sink_mass) - 1e-9) << "the mean of a convex function";
    EXPECT_GT(head.entropy, 0);
  }
}

// All 48 rows are looked at; bf16 inputs are the same for both.
TEST_F(Lab, WhatHeadsDoIsWhatTheTruthSays) {
  const auto lab = open_lab(small_text(false));
  StepSettings settings = through("sink_kernel");
  settings.observe = true;
  const StepResult result = lab->gradient(settings);
  for (const std::int64_t layer : {0, 1}) {
    const std::string file = path("layer" + std::to_string(layer) + ".safetensors");
    lab->capture_attention(layer, file, settings);
    Problem problem;
    problem.capture = file;
    const Case c = load_capture(problem);
    const sinkscope::HeadFacts ref = head_facts(c, compute_truth(c));
    for (std::size_t head = 0; head < 4; ++head) {
      const HeadFacts& got = result.heads[static_cast<std::size_t>(layer) * 4 + head];
      double mean = 0, entropy = 0;
      for (const std::size_t entry : {0, 1}) {
        mean += ref.p_sink_mean[entry * 4 + head] / 2;
        entropy += ref.entropy[entry * 4 + head] / 2;
      }
      EXPECT_NEAR(got.sink_mass, mean, 1e-5) << "layer " << layer << " head " << head;
      EXPECT_NEAR(got.entropy, entropy, 1e-4) << "layer " << layer << " head " << head;
    }
  }
}

TEST_F(Lab, RatiosAreOneWhereBothPathsAreOne) {
  const auto lab = open_lab(small_sorting());
  const RolloutFacts same = lab->gradient(reinforced("sink_kernel")).rollouts;
  EXPECT_EQ(same.ratio_max, 1);
  EXPECT_EQ(same.gap, 0);
  EXPECT_EQ(same.effective_sample, 1);
  const RolloutFacts other = lab->gradient(reinforced("flash_attention_2")).rollouts;
  EXPECT_EQ(other.reward, same.reward) << "the same rollouts";
  EXPECT_GT(other.gap, 0.01);
  EXPECT_GT(other.ratio_max, 1.01);
  EXPECT_LT(other.effective_sample, 1);
  EXPECT_GT(other.kl, 0);
}

// Three steps on the same rollouts, then others.
TEST_F(Lab, RolloutsServeAllOfTheirUpdates) {
  const auto lab = open_lab(small_sorting());
  StepSettings settings = reinforced("sink_kernel");
  settings.updates = 3;
  std::vector<RolloutFacts> facts;
  for (int i = 0; i < 4; ++i) {
    facts.push_back(lab->gradient(settings).rollouts);
    lab->apply(settings);
  }
  EXPECT_EQ(facts[1].reward, facts[0].reward);
  EXPECT_EQ(facts[2].reward, facts[0].reward);
  EXPECT_NE(facts[3].reward, facts[0].reward);
  EXPECT_EQ(facts[0].ratio_max, 1);
  EXPECT_GT(facts[1].ratio_max, 1);
  EXPECT_GT(facts[2].kl, facts[1].kl) << "every update leads further from the policy that sampled";
  EXPECT_GT(facts[2].clip_fraction, 0);
  EXPECT_EQ(facts[3].ratio_max, 1);
  for (const RolloutFacts& of : facts) EXPECT_EQ(of.gap, 0) << "both paths are one at any weights";
}

TEST_F(Lab, ACheckpointKeepsRolloutsWithUpdatesLeft) {
  StepSettings settings = reinforced("flash_attention_2");
  settings.updates = 4;
  const auto whole = open_lab(small_sorting()), resumed = open_lab(small_sorting());
  StepResult ref;
  for (int i = 0; i < 3; ++i) {
    if (i == 2) whole->save(path("within.safetensors"));
    ref = whole->gradient(settings);
    whole->apply(settings);
  }
  resumed->load(path("within.safetensors"));
  const StepResult got = resumed->gradient(settings);
  EXPECT_EQ(got.loss, ref.loss);
  EXPECT_EQ(got.gradient_norm, ref.gradient_norm);
  EXPECT_EQ(got.rollouts.reward, ref.rollouts.reward);
  EXPECT_EQ(got.rollouts.gap, ref.rollouts.gap);
}

TEST_F(Lab, InBf16ItComputesNearlyTheSame) {
  LabConfig config = small_text(false);
  const double ref = open_lab(config)->gradient(through("sink_kernel")).loss;
  config.precision = Precision::kBf16;
  const auto lab = open_lab(config);
  EXPECT_NEAR(lab->gradient(through("sink_kernel")).loss, ref, 0.02 * ref);
  const auto found = lab->replay({"sink_kernel", "flash_attention_2_sink", "eager", "flash_attention_2"},
                                 through("sink_kernel"));
  for (const std::size_t healthy : {0, 1, 2}) EXPECT_LT(relative_error(found[healthy]), 2e-2);
  EXPECT_GT(relative_error(found[3]), 5e-2);
}

// A window's mistake shows in the even layers only, which is enough; without a window in none.
TEST_F(Lab, AFaultThatShowsNowhereIsRefused) {
  LabConfig config = small_text(false);
  EXPECT_NO_THROW(open_lab(config)->gradient(through("fault:window_ignored:sink_kernel")));
  config.model.window = 0;
  EXPECT_THROW(open_lab(config)->gradient(through("fault:window_ignored:sink_kernel")), InputError);
  EXPECT_THROW(open_lab(config)->gradient(through("fault:dsink_missing:fault:window_ignored:exact")),
               InputError);
}

TEST_F(Lab, SortingIsLearned) {
  LabConfig config = small_sorting();
  config.sort.digits = 2;
  const auto lab = open_lab(config);
  const double before = lab->gradient(reinforced("sink_kernel")).rollouts.reward;
  for (int i = 0; i < 80; ++i) {
    lab->gradient(through("sink_kernel"));
    lab->apply(through("sink_kernel"));
  }
  const double after = lab->gradient(reinforced("sink_kernel")).rollouts.reward;
  EXPECT_LT(before, 0.5);
  EXPECT_GT(after, 1.2) << "of 2, from " << before;
}

TEST_F(Lab, AReplayAndCapturesLeaveNoTrace) {
  const auto plain = open_lab(small_sorting()), watched = open_lab(small_sorting());
  for (int i = 0; i < 3; ++i) {
    plain->gradient(reinforced("flash_attention_2"));
    watched->gradient(reinforced("flash_attention_2"));
    watched->replay({"sink_kernel"}, reinforced("flash_attention_2"));
    watched->capture_batch(path("batch.safetensors"));
    watched->capture_attention(1, path("layer1.safetensors"), reinforced("flash_attention_2"));
    plain->apply(reinforced("flash_attention_2"));
    watched->apply(reinforced("flash_attention_2"));
  }
  const StepResult ref = plain->gradient(through("exact")), got = watched->gradient(through("exact"));
  EXPECT_EQ(got.loss, ref.loss);
  EXPECT_EQ(got.gradient_norm, ref.gradient_norm);
}

TEST_F(Lab, ACapturedLayerIsACaseOfThisProject) {
  const auto lab = open_lab(small_text(true));
  lab->gradient(through("flash_attention_2"));
  lab->capture_attention(0, path("layer0.safetensors"), through("flash_attention_2"));
  Problem problem;
  problem.capture = path("layer0.safetensors");
  const Case c = load_capture(problem);
  EXPECT_EQ(c.problem.shape.hq, 4);
  EXPECT_EQ(c.problem.shape.window, 4);
  EXPECT_GT(c.problem.shape.docs.size(), 1U);
  ASSERT_EQ(c.recorded.count("flash_attention_2"), 1U);
  EXPECT_TRUE(c.recorded.at("flash_attention_2").dq.given());
  EXPECT_TRUE(unfit_inputs(c).empty());
}

TEST_F(Lab, ACaptureOfAFaultCanBeRead) {
  const auto lab = open_lab(small_text(false));
  const StepSettings settings = through("fault:sink_ignored@1:sink_kernel");
  lab->gradient(settings);
  lab->capture_attention(0, path("layer0.safetensors"), settings);
  Problem problem;
  problem.capture = path("layer0.safetensors");
  EXPECT_EQ(load_capture(problem).recorded.count("fault.sink_ignored+1.sink_kernel"), 1U);
}

TEST_F(Lab, ACheckpointContinuesBitForBit) {
  const auto whole = open_lab(small_sorting());
  StepResult ref;
  for (int i = 0; i < 4; ++i) {
    if (i == 2) whole->save(path("half.safetensors"));
    ref = whole->gradient(reinforced("sink_kernel"));
    whole->apply(reinforced("sink_kernel"));
  }
  const auto resumed = open_lab(small_sorting());
  resumed->load(path("half.safetensors"));
  EXPECT_EQ(resumed->step(), 2);
  StepResult got;
  for (int i = 2; i < 4; ++i) {
    got = resumed->gradient(reinforced("sink_kernel"));
    resumed->apply(reinforced("sink_kernel"));
  }
  EXPECT_EQ(got.step, ref.step);
  EXPECT_EQ(got.loss, ref.loss);
  EXPECT_EQ(got.gradient_norm, ref.gradient_norm);
}

TEST_F(Lab, AModelComesBackFromItsFile) {
  LabConfig other = small_sorting();
  other.model.seed = 7;
  const auto from = open_lab(small_sorting()), to = open_lab(other);
  from->export_model(path("model.safetensors"));
  to->import_model(path("model.safetensors"));
  to->export_model(path("again.safetensors"));
  const Safetensors ref = read_safetensors(path("model.safetensors")),
                    got = read_safetensors(path("again.safetensors"));
  ASSERT_EQ(got.tensors.size(), ref.tensors.size());
  for (const auto& [name, tensor] : ref.tensors)
    EXPECT_TRUE(bitwise_equal(got.tensors.at(name), tensor)) << name;
}

TEST_F(Lab, WhatCannotBeIsRefused) {
  const auto refused = [](LabConfig config) { open_lab(config)->gradient(through("exact")); };
  LabConfig config = small_sorting();
  config.model.d = 15;
  EXPECT_THROW(refused(config), InputError);
  config = small_sorting();
  config.model.hkv = 3;
  EXPECT_THROW(refused(config), InputError);
  config = small_text(false);
  config.text.path = "no/such/file";
  EXPECT_THROW(refused(config), InputError);
  const auto text = open_lab(small_text(false)), sorting = open_lab(small_sorting());
  EXPECT_THROW(text->gradient(reinforced("exact")), InputError);
  EXPECT_THROW(text->gradient(through("no_such_path")), InputError);
  EXPECT_THROW(check_path("recorded.eager"), InputError);
  EXPECT_THROW(check_path("fault:dsink_missing:no_such_path"), InputError);
  EXPECT_NO_THROW(check_path("fault:dsink_missing:exact"));
  EXPECT_THROW(text->gradient(through("fault:no_such_fault:exact")), InputError);
  sorting->save(path("sorting.safetensors"));
  EXPECT_THROW(text->load(path("sorting.safetensors")), InputError);
  Safetensors flat;
  flat.tensors["tokens"] = Tensor(DType::kInt64, {4});
  write_safetensors(path("flat.safetensors"), flat, true);
  const auto written = [&](const std::string& tokens) {
    text->write_logits_and_gradients(tokens, "exact", path("written.safetensors"));
  };
  EXPECT_THROW(written(path("flat.safetensors")), InputError) << "not [batch, length]";
  EXPECT_THROW(written(path("sorting.safetensors")), InputError) << "no tokens";
}

}  // namespace
}  // namespace sinkscope::lab
