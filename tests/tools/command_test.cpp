// SPDX-License-Identifier: Apache-2.0
// The command on good and bad input: exit codes, one clear sentence, and no file that is only half there.
#include "tests/tools/command.hpp"

#include <cstring>

#include "nlohmann/json.hpp"

#include "src/capture/safetensors.hpp"
#include "src/core/file.hpp"

namespace sinkscope::tools {
namespace {

const char* const kSmall = "'b1 hq2 hkv1 sq64 sk64 d64 bf16 causal seed=3'";
const char* const kCapture = "datasets/captures/calm_layer1.safetensors";

class Command : public CommandTest {
 protected:
  void expect_refused(const std::string& arguments, int code, const std::string& part) const {
    const Ran ran = sinkscope(arguments);
    EXPECT_EQ(ran.code, code) << arguments << "\n" << ran.err;
    EXPECT_NE(ran.err.find(part), std::string::npos) << arguments << "\n" << ran.err;
    EXPECT_EQ(ran.err.substr(0, 11), "sinkscope: ") << ran.err;
  }
};

TEST_F(Command, WrongUsageIsRefused) {
  expect_refused("", 2, "subcommand");
  expect_refused("comapre x", 2, "comapre");
  expect_refused("compare", 2, "nothing to compare");
  expect_refused("compare --papths x", 2, "--papths");
  expect_refused("compare 'b1 fp8'", 2, "'fp8'");
  expect_refused("compare 'hq8 hkv3'", 2, "hq8 is not a multiple of hkv3");
  expect_refused("compare missing.safetensors", 2, "missing.safetensors");
  expect_refused("compare --suite missing", 2, "smoke");
  expect_refused(std::string("compare --paths eagre ") + kSmall, 2, "'eagre'");
  expect_refused(std::string("compare --gate missing ") + kSmall, 2, "default");
  expect_refused(std::string("compare --truth magic ") + kSmall, 2, "magic");
  expect_refused(std::string("compare --repeat 0 ") + kSmall, 2, "--repeat");
  expect_refused(std::string("compare --threads -1 ") + kSmall, 2, "--threads");
  expect_refused("list colours", 2, "colours");
  expect_refused("generate 'sq8' ", 2, "--output");
  expect_refused("generate 'sq8 x' -o x.safetensors", 2, "'x'");
}

TEST_F(Command, OutputsThatCannotBeWrittenAreRefusedBeforeTheWork) {
  expect_refused(std::string("compare ") + kSmall + " -o /missing/a.h5", 3, "/missing/a.h5");
  expect_refused(std::string("compare ") + kSmall + " -o /dev/full", 2, "/dev/full");
  expect_refused(std::string("compare ") + kSmall + " --json /missing/a.json", 3, "/missing/a.json");
  expect_refused(std::string("compare ") + kSmall + " -o " + folder_.string(), 2, "folder");
  std::ofstream(path("a.h5")) << "mine";
  expect_refused(std::string("compare ") + kSmall + " -o " + path("a.h5"), 2, "--overwrite");
  EXPECT_EQ(content_of(path("a.h5")), "mine");
}

TEST_F(Command, ExplainsARecordBesideOtherInputs) {
  const std::string record = path("a.h5"), json = path("findings.json");
  EXPECT_EQ(sinkscope("compare " + std::string(kSmall) + " 'sq64 sink=none' --save-tensors -o " + record +
                      " --paths fault:sink_twice:sink_kernel,sink_kernel")
                .code,
            1);
  const Ran ran = sinkscope("explain " + record + " " + kSmall + " --paths sink_kernel --json " + json);
  EXPECT_EQ(ran.code, 0) << ran.err;
  std::vector<std::string> problems;
  const nlohmann::json findings = nlohmann::json::parse(content_of(json)).at("findings");
  for (const nlohmann::json& finding : findings) {
    EXPECT_EQ(finding.at("path"), "sink_kernel");
    const std::string cause = finding.at("cause");
    if (cause == "none") problems.push_back(finding.at("problem"));
    EXPECT_TRUE(cause == "none" || cause.starts_with("rounding:")) << cause;
  }
  EXPECT_EQ(problems, (std::vector<std::string>{"p0001", "p0002", "p0001_2"}));
  const Ran all = sinkscope("explain " + record);
  EXPECT_NE(all.out.find("fault:sink_twice:sink_kernel\n    sink_twice: "), std::string::npos) << all.out;
  EXPECT_NE(all.out.find("fault:sink_twice:sink_kernel: skipped: the mistake needs"), std::string::npos)
      << all.out;
  EXPECT_EQ(all.out.find("eager"), std::string::npos) << "what the record does not hold is not run";

  expect_refused("explain " + record + " --paths eager", 2,
                 "it has fault:sink_twice:sink_kernel, sink_kernel");
  expect_refused("explain " + record + " --overwrite -o " + record, 2, "is an input");
  expect_refused("explain " + path("missing.h5"), 2, "missing.h5 does not exist");
  expect_refused("compare " + record, 2, "is a record");
}

TEST_F(Command, ExplainsWhatFails) {
  const std::string json = path("findings.json"), record = path("explained.h5");
  const std::string paths = " --paths fault:sink_twice:sink_kernel,sink_kernel ";
  const Ran ran = sinkscope("explain " + std::string(kSmall) + paths + "--json " + json + " -o " + record);
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.out.find("sink_twice: the sink is counted twice"), std::string::npos) << ran.out;
  EXPECT_NE(ran.out.find("none: nothing fails"), std::string::npos) << ran.out;
  EXPECT_NE(ran.out.find("rounding: out"), std::string::npos) << ran.out;
  const nlohmann::json document = nlohmann::json::parse(content_of(json)), findings = document.at("findings");
  ASSERT_GT(findings.size(), 2U);
  EXPECT_EQ(findings[0].at("cause"), "sink_twice");
  EXPECT_EQ(findings[0].at("path"), "fault:sink_twice:sink_kernel");
  EXPECT_EQ(findings[0].at("heads"), (std::vector<int>{0, 1}));
  EXPECT_GT(findings[0].at("share").get<double>(), 0.9);
  EXPECT_LT(findings[0].at("residual_z").get<double>(), 2.2);
  EXPECT_EQ(findings[1].at("cause"), "none");
  for (std::size_t i = 2; i < findings.size(); ++i) {
    EXPECT_EQ(findings[i].at("cause").get<std::string>().substr(0, 9), "rounding:");
    EXPECT_EQ(findings[i].at("path"), "sink_kernel");
  }
  const nlohmann::json stages = document.at("stages");
  ASSERT_GT(stages.size(), 4U);
  for (const nlohmann::json& head : stages) {
    EXPECT_EQ(head.at("path"), "sink_kernel") << "every head of the fault is mistaken";
    double sum = head.at("remainder").get<double>();
    for (const nlohmann::json& stage : head.at("stages")) sum += stage.at("share").get<double>();
    EXPECT_NEAR(sum, 1, 1e-9);
  }
  const nlohmann::json training = document.at("training");
  ASSERT_EQ(training.size(), 2U);
  EXPECT_EQ(training[0].at("changed"), true);
  EXPECT_EQ(training[0].at("share_of_causes")[0].at("cause"), "sink_twice");
  EXPECT_GT(training[0].at("share_of_causes")[0].at("share").get<double>(), 0.9);
  EXPECT_EQ(training[1].at("changed"), false);
  EXPECT_NE(ran.out.find("for training: gradients are those of exact attention"), std::string::npos)
      << ran.out;
  EXPECT_EQ(ran.out.find("|g_ref|^2  |error|^2"), std::string::npos) << "only with --verbose";
  EXPECT_EQ(sinkscope("gate " + record).code, 1) << "the record can be judged again";

  EXPECT_EQ(sinkscope("explain 'sq64 sink=none' --paths fault:sink_ignored:sink_kernel").code, 3);
  expect_refused("explain " + record, 2, "no stored tensors in p0001; write it with compare --save-tensors");
  const Ran compared = sinkscope("compare " + std::string(kSmall) + paths + "--explain");
  EXPECT_NE(compared.out.find("sink_twice: the sink is counted twice"), std::string::npos) << compared.out;
  EXPECT_NE(compared.out.find("for training: the sink is counted twice"), std::string::npos) << compared.out;
  const Ran verbose = sinkscope("explain --verbose " + std::string(kSmall) + paths);
  EXPECT_NE(verbose.out.find("|g_ref|^2"), std::string::npos) << verbose.out;
  const Ran blind = sinkscope("explain --blind " + std::string(kSmall));
  EXPECT_EQ(blind.code, 0) << blind.err;
  EXPECT_NE(blind.out.find("documents_leak"), std::string::npos) << blind.out;
  EXPECT_EQ(blind.out.find("sink_ignored"), std::string::npos) << blind.out;
}

TEST_F(Command, TabulatesFaults) {
  const std::string table = path("faults.md"), json = path("faults.json");
  const std::string command =
      "faults " + std::string(kSmall) + " --faults sink_twice,dq_scaled --withheld-seeds 0 ";
  const Ran ran = sinkscope(command + "-o " + table + " --json " + json);
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.out.find("explain names 1 of 1 visible faults"), std::string::npos) << ran.out;
  EXPECT_NE(content_of(table).find("| sink_twice | 1 | 1 | 1 |"), std::string::npos) << content_of(table);
  const nlohmann::json counts = nlohmann::json::parse(content_of(json));
  EXPECT_EQ(counts.at("faults").size(), 3U);
  EXPECT_EQ(counts.at("total").at("right"), 1);
  expect_refused(command + "-o " + table, 2, "faults.md");
  expect_refused("faults " + std::string(kSmall) + " --faults sink_twise", 2, "sink_twise");
  EXPECT_EQ(sinkscope("faults 'sq64 sink=none' --faults sink_ignored").code, 3);
}

TEST_F(Command, RecordsJudgesAgainAndDiffs) {
  const std::string record = path("a.h5"), worse = path("b.h5");
  EXPECT_EQ(sinkscope(std::string("compare ") + kSmall + " --paths sink_kernel -o " + record).code, 0);
  EXPECT_EQ(sinkscope("gate " + record + " --gate reports/gates/default.toml").code, 0);
  EXPECT_EQ(sinkscope("diff " + record + " " + record).code, 0);
  EXPECT_EQ(sinkscope(std::string("compare ") + kSmall +
                      " --overwrite --paths fault:dq_scaled:sink_kernel -o " + worse)
                .code,
            1);
  EXPECT_EQ(sinkscope("gate " + worse).code, 1);
  EXPECT_EQ(sinkscope("gate " + worse + " --judge eager").code, 3);
  EXPECT_EQ(files(), 2);
  expect_refused("gate README.md", 2, "README.md");
  expect_refused("gate " + path("missing.h5"), 2, "missing.h5");
  expect_refused("diff " + record + " " + kCapture, 2, "calm_layer1");
}

// The verdicts of `gate` are those of `compare`, line for line.
TEST_F(Command, GateRepeatsCompare) {
  const std::string record = path("a.h5");
  const Ran compared =
      sinkscope(std::string("compare ") + kCapture +
                " --paths sink_kernel,recorded.eager,recorded.flash_attention_2 -o " + record);
  const Ran judged = sinkscope("gate " + record);
  EXPECT_EQ(compared.out, judged.out + "record: " + record + "\n");
}

TEST_F(Command, WritesJsonAndJunit) {
  const Ran ran = sinkscope(std::string("compare --paths fault:dq_scaled:sink_kernel ") + kSmall +
                            " --json " + path("a.json") + " --junit " + path("a.xml"));
  EXPECT_EQ(ran.code, 1);
  const nlohmann::json document = nlohmann::json::parse(content_of(path("a.json")));
  EXPECT_EQ(document["exit_code"], 1);
  EXPECT_EQ(document["cases"][0]["paths"][0]["path"], "fault:dq_scaled:sink_kernel");
  EXPECT_NE(content_of(path("a.xml")).find("failures=\"1\""), std::string::npos);
}

TEST_F(Command, GeneratedCapturesAreTheSameCase) {
  const std::string capture = path("case.safetensors");
  ASSERT_EQ(sinkscope(std::string("generate ") + kSmall + " -o " + capture).code, 0);
  EXPECT_EQ(sinkscope("generate " + std::string(kSmall) + " -o " + capture).code, 2) << "it exists";
  sinkscope(std::string("compare --paths sink_kernel ") + kSmall + " --json " + path("a.json"));
  sinkscope("compare --paths sink_kernel " + capture + " --json " + path("b.json"));
  const nlohmann::json a = nlohmann::json::parse(content_of(path("a.json")));
  const nlohmann::json b = nlohmann::json::parse(content_of(path("b.json")));
  EXPECT_EQ(a["cases"][0]["inputs_sha256"], b["cases"][0]["inputs_sha256"]);
  EXPECT_EQ(b["cases"][0]["name"], "case");
}

TEST_F(Command, TakesFoldersCapturesLinesAndSuitesTogether) {
  fs::create_directory(folder_ / "more");
  ASSERT_EQ(sinkscope("generate 'sq8 hq2' -o " + path("more/case.safetensors")).code, 0);
  std::ofstream(path("suite.txt")) << "capture=more/case.safetensors\nsq9 hq2\n";
  const Ran ran = sinkscope("compare --paths sink_kernel --suite " + path("suite.txt") + " " + path("more") +
                            " 'sq10 hq2' --json " + path("a.json"));
  EXPECT_EQ(ran.code, 0) << ran.err;
  std::string names;
  const nlohmann::json document = nlohmann::json::parse(content_of(path("a.json")));
  for (const nlohmann::json& entry : document["cases"]) names += entry["name"].get<std::string>() + " ";
  EXPECT_EQ(names, "case p0001 case_2 p0002 ");
}

TEST_F(Command, DamagedCapturesAreRefused) {
  const std::string bytes = content_of(kCapture);
  std::ofstream(path("a.safetensors"), std::ios::binary) << bytes.substr(0, bytes.size() / 2);
  expect_refused("compare " + path("a.safetensors") + " -o " + path("a.h5"), 2, "a.safetensors");
  std::ofstream(path("a.safetensors"), std::ios::binary) << bytes << "more";
  expect_refused("compare " + path("a.safetensors") + " -o " + path("a.h5"), 2, "a.safetensors");
  EXPECT_EQ(files(), 1) << "no record of a case that could not be read";
}

TEST_F(Command, NanInputsAreInconclusive) {
  Safetensors content = read_safetensors(kCapture);
  content.tensors["k"].set(1000, std::nan(""));
  write_safetensors(path("nan.safetensors"), content, false);
  const Ran ran = sinkscope("compare " + path("nan.safetensors") + " --paths sink_kernel,recorded.eager");
  EXPECT_EQ(ran.code, 4) << ran.out;
  EXPECT_NE(ran.out.find("k has 1 NaN"), std::string::npos) << ran.out;
}

TEST_F(Command, RequiredBackends) {
  EXPECT_EQ(sinkscope(std::string("compare --paths sink_kernel --require sink_kernel:cpu ") + kSmall).code,
            0);
  expect_refused(std::string("compare --paths sink_kernel --require sink_kernel:cuda ") + kSmall, 3, "cuda");
  expect_refused(std::string("compare --paths sink_kernel --require eager ") + kSmall, 3, "eager");
  sinkscope(std::string("compare --paths sink_kernel --require sink_kernel:cuda ") + kSmall + " --junit " +
            path("a.xml"));
  EXPECT_TRUE(fs::exists(path("a.xml"))) << "what was measured is written";
}

TEST_F(Command, ObservedPathsDoNotDecide) {
  EXPECT_EQ(sinkscope(std::string("compare --paths sink_kernel,recorded.eager ") + kCapture).code, 0);
  EXPECT_EQ(sinkscope(std::string("compare --paths recorded.eager ") + kCapture).code, 3);
  EXPECT_EQ(sinkscope(std::string("compare --paths recorded.eager --judge recorded.eager ") + kCapture).code,
            1);
}

// A failure prints the line that reproduces it: it must be one that the command takes.
TEST_F(Command, TheReproLineOfACaptureRuns) {
  const Ran ran = sinkscope(std::string("compare 'capture=") + kCapture + "' --paths sink_kernel");
  EXPECT_EQ(ran.code, 0) << ran.err;
}

TEST_F(Command, DiffSeesAPathThatBroke) {
  const std::string line = std::string("compare ") + kSmall + " --paths sink_kernel,eager -o ";
  ASSERT_EQ(sinkscope(line + path("a.h5")).code, 0);
  sinkscope(line + path("b.h5"), "SINKSCOPE_TORCH_MODULE=/missing.so");
  const Ran ran = sinkscope("diff " + path("a.h5") + " " + path("b.h5"));
#ifdef SINKSCOPE_WITH_TORCH
  EXPECT_EQ(ran.code, 1) << ran.out;
  EXPECT_NE(ran.out.find("was measured"), std::string::npos) << ran.out;
  EXPECT_NE(ran.out.find("/missing.so"), std::string::npos) << ran.out;
#else
  EXPECT_EQ(ran.code, 0) << ran.out;
#endif
}

TEST_F(Command, ForgottenQuotesAreNoticed) {
  expect_refused("compare b1 hq2 hkv1 sq64 sk64", 2, "wanted 'b1 hq2 hkv1 sq64 sk64'");
}

TEST_F(Command, AnInputIsNeverOverwritten) {
  ASSERT_EQ(sinkscope(std::string("generate ") + kSmall + " -o " + path("a.safetensors")).code, 0);
  expect_refused("compare " + path("a.safetensors") + " --overwrite -o " + path("a.safetensors"), 2,
                 "is an input");
  EXPECT_NO_THROW(read_safetensors(path("a.safetensors")));
}

TEST_F(Command, PathNamesAreCheckedWhereverTheyAreGiven) {
  expect_refused(std::string("compare --judge eagre ") + kSmall, 2, "'eagre'");
  expect_refused(std::string("compare --require eagre:cpu ") + kSmall, 2, "'eagre'");
  EXPECT_EQ(
      sinkscope(std::string("compare --paths 'sink_kernel, eager_fp32' --judge sink_kernel:cpu ") + kSmall)
          .code,
      0);
}

// A failure that only --judge made one is reproduced with it.
TEST_F(Command, TheReproLineJudgesWhatWasJudged) {
  const Ran ran =
      sinkscope(std::string("compare ") + kCapture + " --paths recorded.eager --judge recorded.eager -q");
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.out.find("--paths 'recorded.eager' --judge 'recorded.eager'"), std::string::npos) << ran.out;
}

TEST_F(Command, ExistingTargetsAreRefusedBeforeTheWork) {
  std::ofstream(path("a.json")) << "mine";
  expect_refused("bench reference --json " + path("a.json"), 2, "--overwrite");
  expect_refused("calibrate -o " + path("a.json"), 2, "--overwrite");
}

TEST_F(Command, ThreadsDoNotChangeTheVerdicts) {
  const std::string line = std::string("compare --paths sink_kernel -v ") + kSmall + " --threads ";
  EXPECT_EQ(sinkscope(line + "1").out, sinkscope(line + "5").out);
}

TEST_F(Command, ColoursFollowTheTerminalAndTheUser) {
  const std::string line = std::string("compare --paths sink_kernel ") + kSmall;
  EXPECT_EQ(sinkscope(line).out.find('\x1b'), std::string::npos) << "not a terminal";
  EXPECT_NE(sinkscope(line + " --color always").out.find('\x1b'), std::string::npos);
  EXPECT_EQ(sinkscope(line + " --color never").out.find('\x1b'), std::string::npos);
}

// A limit on the size of files stands for the full disk. HDF5 itself leaks a little where a close fails.
TEST_F(Command, AFullDiskLeavesNoRecord) {
  const Ran ran = shell("trap '' XFSZ; ulimit -f 40; ASAN_OPTIONS=detect_leaks=0 " SINKSCOPE_EXECUTABLE
                        " compare --paths sink_kernel " +
                        std::string(kSmall) + " -o " + path("a.h5"));
  EXPECT_EQ(ran.code, 3) << ran.err;
  EXPECT_NE(ran.err.find("disk full?"), std::string::npos) << ran.err;
  EXPECT_EQ(files(), 0);
}

TEST_F(Command, CtrlCLeavesNoFile) {
  const Ran ran = shell("timeout --preserve-status --signal=INT 1 " SINKSCOPE_EXECUTABLE
                        " compare --paths sink_kernel 'b1 hq64 hkv8 sq8192 sk8192 d64 bf16 causal' -o " +
                        path("a.h5") + " --json " + path("a.json"));
  EXPECT_EQ(ran.code, 130) << ran.err;
  EXPECT_EQ(files(), 0);
}

TEST_F(Command, PrintsItsManPageAndCompletions) {
  EXPECT_NE(sinkscope("man").out.find(".TH SINKSCOPE 1"), std::string::npos);
  for (const char* command : {"compare", "gate", "diff", "list", "info", "generate", "bench", "calibrate"}) {
    EXPECT_NE(sinkscope("man").out.find(command), std::string::npos) << command;
    EXPECT_NE(sinkscope("completion zsh").out.find(command), std::string::npos) << command;
    EXPECT_NE(sinkscope(std::string(command) + " --help").out.find("Example"), std::string::npos) << command;
  }
  EXPECT_EQ(shell(SINKSCOPE_EXECUTABLE " completion bash | bash -n").code, 0);
  EXPECT_EQ(sinkscope("--version").out.substr(0, 10), "sinkscope ");
}

// Where there is a GPU the truth on it is tests/torch/truth_cuda_test's.
TEST_F(Command, ATruthThatIsNotHereIsRefusedBeforeTheWork) {
  if (sinkscope("info").out.find("eigen, cuda (available)") != std::string::npos)
    GTEST_SKIP() << "there is a GPU";
  expect_refused(std::string("compare --truth cuda ") + kSmall + " -o " + path("a.h5"), 3,
                 "--truth cuda needs a GPU");
  EXPECT_FALSE(std::filesystem::exists(path("a.h5")));
}

TEST_F(Command, InfoNamesEveryPath) {
  const Ran ran = sinkscope("info");
  EXPECT_EQ(ran.code, 0);
  for (const char* part : {"sink_kernel", "flash_attention_2", "eager_fp32", "hdf5", "cpu", "torch", "truth"})
    EXPECT_NE(ran.out.find(part), std::string::npos) << part;
}

TEST_F(Command, BenchSaysWhatItsSubjectsAreOf) {
  expect_refused("bench reference step_speed", 2, "`bench training` alone");
  expect_refused("bench training small_text small_grpo", 2, "one scenario at most");
}

TEST_F(Command, BenchWritesItsFigures) {
  const Ran ran = sinkscope("bench reference --rounds 1 --json " + path("a.json"));
  ASSERT_EQ(ran.code, 0) << ran.err;
  const nlohmann::json figures = nlohmann::json::parse(content_of(path("a.json")));
  EXPECT_GT(figures["gemm_share"], 0);
  EXPECT_GT(figures["seconds"]["truth"]["median"], 0);
  EXPECT_TRUE(figures.contains("torch_float64_speedup"));
}

}  // namespace
}  // namespace sinkscope::tools
