// SPDX-License-Identifier: Apache-2.0
// Records that keep their tensors: the same bits come back, and explain says of them what it said when they were written.
#include "src/record/stored.hpp"

#include <cmath>
#include <string>

#include "gtest/gtest.h"

#include "src/capture/capture.hpp"
#include "src/compare/compare.hpp"
#include "src/core/error.hpp"
#include "src/paths/table.hpp"
#include "src/record/h5.hpp"
#include "tests/temporary_folder.hpp"

namespace sinkscope {
namespace {

class Stored : public TemporaryFolder {
 protected:
  // Compares and explains, and stores everything.
  CaseResult store(const Case& c, const std::vector<std::string>& paths, bool tensors = true) const {
    CompareOptions options;
    options.paths = paths;
    options.repeat = 1;
    options.keep_outputs = true;
    options.explain = true;
    CaseResult result = compare_case(c, gate_, options);
    RecordWriter writer(file_(), {{"version", "1"}}, gate_, true);
    writer.add(result, tensors ? &c : nullptr);
    writer.finish();
    return result;
  }

  StoredCase read() const {
    const Record record = read_record(file_());
    require_tensors(file_(), record);
    return read_stored_case(file_(), record.cases.at(0));
  }

  std::string message_of_reading() const {
    try {
      read();
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  }

  // Removes a link of the file, as no writer would.
  void remove(const char* link) const {
    const h5::Handle file(H5Fopen(file_().c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose, "file");
    h5::check(H5Ldelete(file, link, H5P_DEFAULT), link);
  }

  std::string file_() const { return path("a.h5"); }
  Gate gate_ = read_gate("reports/gates/default.toml");
};

void expect_same(const Finding& a, const Finding& b) {
  EXPECT_EQ(a.cause, b.cause);
  EXPECT_EQ(a.equivalent, b.equivalent);
  EXPECT_EQ(a.tensors, b.tensors);
  EXPECT_EQ(a.batches, b.batches);
  EXPECT_EQ(a.heads, b.heads);
  EXPECT_EQ(a.documents, b.documents);
  EXPECT_EQ(a.all_heads, b.all_heads);
  EXPECT_EQ(a.all_documents, b.all_documents);
  EXPECT_EQ(a.of_keys, b.of_keys);
  EXPECT_EQ(a.first_row, b.first_row);
  EXPECT_EQ(a.end_row, b.end_row);
  EXPECT_EQ(a.share, b.share);
  EXPECT_EQ(a.residual_z, b.residual_z);
  EXPECT_EQ(a.note, b.note);
}

// The stored case is the case; its paths give what they gave and are explained as they were.
void expect_same(const StoredCase& stored, const Case& c, const CaseResult& written, const Gate& gate) {
  EXPECT_EQ(stored.c.name, c.name);
  EXPECT_EQ(inputs_sha256(stored.c), inputs_sha256(c));
  EXPECT_EQ(stored.c.problem, c.problem) << to_string(stored.c.problem);
  for (const auto member : {&Case::q, &Case::k, &Case::v, &Case::sinks, &Case::dout, &Case::dlse,
                            &Case::padded_dout, &Case::padded_dlse})
    EXPECT_TRUE(bitwise_equal(stored.c.*member, c.*member));
  CompareOptions options;
  options.repeat = 1;
  options.keep_outputs = true;
  options.explain = true;
  const CaseResult again = compare_case(stored.c, gate, options, stored.paths, {});
  EXPECT_EQ(again.problem_line, written.problem_line);
  ASSERT_EQ(again.paths.size(), written.paths.size());
  for (std::size_t i = 0; i < again.paths.size(); ++i) {
    const PathResult &a = again.paths[i], &b = written.paths[i];
    EXPECT_EQ(a.path, b.path);
    EXPECT_EQ(a.backend, b.backend);
    EXPECT_EQ(a.judged, b.judged);
    for (const TensorName name : kTensorNames)
      EXPECT_TRUE(bitwise_equal(a.outputs[name], b.outputs[name])) << a.path << " " << text(name);
    ASSERT_EQ(a.verdicts.size(), b.verdicts.size()) << a.path;
    for (std::size_t row = 0; row < a.verdicts.size(); ++row) {
      EXPECT_EQ(a.verdicts[row].verdict, b.verdicts[row].verdict) << a.path;
      EXPECT_EQ(a.verdicts[row].value, b.verdicts[row].value) << a.path;
      EXPECT_EQ(a.verdicts[row].reason, b.verdicts[row].reason) << a.path;
    }
    ASSERT_EQ(a.explanation.findings.size(), b.explanation.findings.size()) << a.path;
    for (std::size_t n = 0; n < a.explanation.findings.size(); ++n)
      expect_same(a.explanation.findings[n], b.explanation.findings[n]);
  }
}

TEST_F(Stored, GeneratedProblemsAreExplainedAsTheyWere) {
  const std::vector<std::string> paths = {"sink_kernel",
                                          "fault:window_plus_one:sink_kernel",
                                          "fault:sink_ignored:sink_kernel",
                                          "fault:gqa_mean:sink_kernel",
                                          "fault:dsink_batch:sink_kernel",
                                          "fault:dsink_padding:sink_kernel"};
  for (const char* line :
       {"b2 hq4 hkv2 sq70 sk90 d64 fp16 causal w30 dlse seed=9",  // a window, batch entries
        "b1 hq4 hkv2 sq80 sk80 d64 bf16 causal docs=30,10,40 sink=extreme layout=bshd seed=2",  // packed
        "b1 hq2 hkv2 sq60 sk60 d32 fp32 full sink_dtype=bf16 scale=0.3 grads=q,s seed=3",
        "b2 hq2 hkv1 sq60 sk60 d64 bf16 causal seqlens=41,60 dlse seed=5",       // padding
        "b1 hq2 hkv1 sq60 sk60 d64 bf16 causal sink=none grads=none seed=4"}) {  // nothing but a forward
    const Case c = generate_case(parse_problem(line), "p0001");
    const CaseResult written = store(c, paths);
    SCOPED_TRACE(line);
    expect_same(read(), c, written, gate_);
  }
}

TEST_F(Stored, CapturesBringTheirRecordedPathsDocumentsAndWords) {
  for (const char* capture : {"calm_layer1", "packed_layer1"}) {
    Problem problem;
    problem.capture = std::string("datasets/captures/") + capture + ".safetensors";
    Case c = load_capture(problem);
    std::vector<std::string> paths = {"fault:dlse_dropped:sink_kernel"};
    for (const auto& [name, outputs] : c.recorded) paths.push_back("recorded." + name);
    // An output in double precision, and one that no 16-bit number is far from.
    Outputs& wide = c.recorded["wide"];
    wide.out = Tensor::rounded(DType::kFp64, {1, 8, c.problem.shape.sq, 64}, compute_truth(c).value.out);
    wide.out.set(3, -0.0);
    paths.emplace_back("recorded.wide");
    const CaseResult written = store(c, paths);
    const StoredCase stored = read();
    SCOPED_TRACE(capture);
    expect_same(stored, c, written, gate_);
    EXPECT_EQ(stored.c.metadata.at("layer"), c.metadata.at("layer"));
    EXPECT_EQ(stored.c.problem.shape.docs, c.problem.shape.docs);
  }
}

TEST_F(Stored, BitsThatAreNoNumbersComeBack) {
  Case c = generate_case(parse_problem("b1 hq2 hkv1 sq64 sk64 d64 bf16 causal seed=3"), "p0001");
  Outputs outputs = find_path("sink_kernel", c).run(c, {}).outputs;
  outputs.out.as<std::uint16_t>()[5] = 0x7FA5;  // a NaN with bits of its own
  outputs.out.as<std::uint16_t>()[6] = 0x8000;  // -0
  outputs.lse.as<float>()[1] = -INFINITY;
  c.recorded["odd"] = outputs;
  const CaseResult written = store(c, {"recorded.odd"});
  for (const Finding& finding : written.paths[0].explanation.findings)
    EXPECT_EQ(finding.cause, kUnknownCause);
  expect_same(read(), c, written, gate_);
}

TEST_F(Stored, WhatIsMissingIsSaid) {
  const Case c = generate_case(parse_problem("b1 hq2 hkv1 sq64 sk64 d64 bf16 causal seed=3"), "p0001");
  const std::string asks = "; write it with compare --save-tensors";
  store(c, {"sink_kernel"}, false);
  EXPECT_EQ(message_of_reading(), file_() + " has no stored tensors in p0001" + asks);
  store(c, {"sink_kernel"});
  remove("problems/p0001/tensors/sink_kernel/dk");
  EXPECT_EQ(message_of_reading(), file_() + " has no stored dk of sink_kernel in p0001" + asks);
  store(c, {"sink_kernel"});
  remove("problems/p0001/tensors/inputs/v");
  EXPECT_EQ(message_of_reading(), file_() + " has no stored v in p0001" + asks);
  store(c, {"sink_kernel"});
  remove("problems/p0001/tensors/inputs/sinks");
  EXPECT_NE(message_of_reading().find("have sha256"), std::string::npos) << message_of_reading();
}

}  // namespace
}  // namespace sinkscope
