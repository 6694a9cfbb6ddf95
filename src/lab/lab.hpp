// SPDX-License-Identifier: Apache-2.0
// The spike lab's boundary: a small GPT-OSS-like language model and its training, whose attention is any path of this tree. It
// lives in a shared module with libtorch, loaded when first needed; no torch header is included here.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "src/core/dtype.hpp"

namespace sinkscope::lab {

// A model as transformers' GptOssForCausalLM computes it: RMSNorm, RoPE, grouped-query attention with a learned sink per query
// head, biases, a window in even layers, and experts of clamped SwiGLU (one expert: dense).
struct ModelShape {
  std::int64_t layers = 4, width = 128, hq = 4, hkv = 2, d = 32;
  std::int64_t window = 4;  // of the even layers, the row's own key included; 0: none
  std::int64_t intermediate = 256, experts = 1, experts_per_token = 1, vocabulary = 256;
  double rope_theta = 10000;
  double sink_mean = 0, sink_std = 1;  // of the initial sinks, natural log
  std::uint64_t seed = 0;              // of the weights, the data and the sampling
};

// AdamW (Loshchilov and Hutter, 2019).
struct Optimizer {
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0;
  std::int64_t warmup = 0;  // steps from 0 to the learning rate, counted over the whole run
};

// The next byte of a text. A batch's entries are slices drawn at random; packed: each is cut into documents of random lengths,
// which do not see each other and start at position 0.
struct TextTask {
  std::string path;  // a file, or a folder whose *.txt are read in the order of their names
  std::int64_t batch = 8, length = 128;
  bool packed = false;
};

// Digits to be sorted: `digits` of them, a separator, and the same in order. The reward of an answer is the fraction of right
// positions, and 1 more where all are right.
struct SortingTask {
  std::int64_t digits = 12;
  std::int64_t batch = 64;                  // of supervised steps
  std::int64_t prompts = 32, rollouts = 8;  // of reinforcement: rollouts per prompt
};

// What all but attention is multiplied in. The residual stream, norms, the softmax of the loss and the optimizer are fp32 always.
enum class Precision {
  kFp32,
  kTf32,  // fp32, whose products a GPU makes in TF32
  kBf16,  // products in bf16, weights rounded to it where they are used; attention gets bf16 and gives it
};

struct LabConfig {
  ModelShape model;
  Optimizer optimizer;
  bool sorting = false;  // which of the two tasks
  TextTask text;
  SortingTask sort;
  DType format = DType::kBf16;  // q, k, v and the gradient of out are rounded to it before attention
  bool cuda = false;
  Precision precision = Precision::kFp32;
  int threads = 0;  // 0: all hardware threads
};

enum class StepKind { kSupervised, kReinforce };

// One step. Paths are those of `compare` (faults included), "exact" (double precision, gradients too), and faults around it
// ("fault:sink_ignored:exact").
struct StepSettings {
  StepKind kind = StepKind::kSupervised;
  std::string training_path = "exact";
  std::string rollout_path = "exact";  // samples rollouts and gives their old log-probabilities
  double learning_rate = 3e-4;
  double norm_clip = 1;      // of the global gradient norm; 0: none
  double ratio_clip = 0.2;   // of the importance ratio; 0: none
  double kl_weight = 0;      // of the estimate of KL(training, rollout policy)
  std::int64_t updates = 1;  // kReinforce: steps taken on the same rollouts (GRPO's mu)
  bool observe = false;      // fill in `heads`, at the cost of another attention in fp32
};

// The parameters of a gradient, cut so that squared norms of all blocks add to that of the whole gradient.
enum class BlockKind : std::int8_t { kQ, kK, kV, kSink, kOther };
struct Block {
  std::int64_t layer = -1;  // -1: embedding, last norm and head of the model (kOther)
  BlockKind kind = BlockKind::kOther;
  std::int64_t head =
      -1;  // query head (kQ, kSink) or key/value head (kK, kV): its rows of the projection's weight and bias
};

struct BlockNorm {
  Block block;
  double squared = 0;
};

// What a layer's query head does in the forward, means over rows (64 of them where there are more).
struct HeadFacts {
  double sink_mass = 0;  // p = exp(s - LSE)
  double gain = 0;       // 1 / (1 - p): how much larger out is without the sink
  double entropy = 0;    // of the row's probabilities, the sink's included, in nats
  double max_logit = 0;  // the largest scaled score of any of these rows
};

// How far the training path is from what the rollouts were sampled from; over their tokens. Ratios are to the policy that sampled
// them, so that from the second update on the same rollouts on they say what was learned too; the gap says what paths differ by.
struct RolloutFacts {
  double reward = 0;
  double gap =
      0;  // mean |log-probability under training path - under rollout path|, at the weights of the step
  double ratio_mean = 1, ratio_max = 1;
  double effective_sample = 1;  // (sum r)^2 / (n sum r^2)
  double clip_fraction = 0;     // tokens whose ratio is outside the clip
  double kl = 0;                // mean of r - 1 - log r (Schulman's k3)
};

struct StepResult {
  std::int64_t step = 0;
  double loss = 0;
  double gradient_norm = 0;       // before clipping
  std::vector<BlockNorm> blocks;  // in one order for the whole run
  std::vector<HeadFacts> heads;   // [layers * hq] with `observe`, else empty
  RolloutFacts rollouts;          // of kReinforce
};

// The gradient of the current batch through another path beside that through exact attention.
struct ReplayedBlock {
  Block block;
  double squared = 0;     // |g|^2
  double exact = 0;       // |g_e|^2
  double difference = 0;  // |g - g_e|^2
};
struct ReplayedPath {
  std::string path;
  double loss = 0, exact_loss = 0;
  std::vector<ReplayedBlock> blocks;
};

// A model in training. A step is gradient(), then apply(); replay() and captures between the two see the same weights, batch,
// rollouts, advantages and old log-probabilities. Throws InputError for names and sizes that do not fit.
class Lab {
 public:
  virtual ~Lab() = default;

  virtual std::int64_t step() const = 0;        // steps applied
  virtual std::int64_t parameters() const = 0;  // how many
  // Draws the next batch and leaves its gradient.
  virtual StepResult gradient(const StepSettings& settings) = 0;
  // Clips the gradient and takes the optimizer's step.
  virtual void apply(const StepSettings& settings) = 0;
  // Until what was enqueued on a GPU is done; at once on a CPU. What a stopwatch calls before it is read.
  virtual void wait() = 0;
  // Through each path, and exact attention. Leaves the state of the training as it was.
  virtual std::vector<ReplayedPath> replay(const std::vector<std::string>& paths,
                                           const StepSettings& settings) = 0;

  // Between gradient() and apply(), as safetensors: the batch; and a layer's attention call with what the path of `settings` made
  // of it, in the capture format.
  virtual void capture_batch(const std::string& path) = 0;
  virtual void capture_attention(std::int64_t layer, const std::string& path,
                                 const StepSettings& settings) = 0;

  // All that goes on changing: a loaded checkpoint continues bit for bit on a CPU. Between steps.
  virtual void save(const std::string& path) const = 0;
  virtual void load(const std::string& path) = 0;
  // The weights under transformers' names for GptOssForCausalLM.
  virtual void export_model(const std::string& path) const = 0;
  virtual void import_model(const std::string& path) = 0;
  // Logits [batch, length, vocabulary] of tokens [batch, length] through a path, and the gradient of their mean next-token cross
  // entropy under the names of export_model: what a model of another library is compared with.
  virtual void write_logits_and_gradients(const std::string& tokens_path, const std::string& attention,
                                          const std::string& path) = 0;
};

// Why there is no lab here, or empty.
std::string why_no_lab();

// Throws InputError for what is no path of a step, a fault and what it is around included.
void check_path(const std::string& name);

// Throws EnvironmentError where there is none, InputError for a configuration that cannot be.
std::unique_ptr<Lab> open_lab(const LabConfig& config);

}  // namespace sinkscope::lab
