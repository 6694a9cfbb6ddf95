// SPDX-License-Identifier: Apache-2.0
// Captures from anywhere: what is wrong is said, and nothing in a file makes the reader crash.
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <unistd.h>

#include "gtest/gtest.h"

#include "src/capture/capture.hpp"
#include "src/capture/safetensors.hpp"
#include "src/core/error.hpp"
#include "src/core/file.hpp"
#include "tests/temporary_folder.hpp"

namespace sinkscope {
namespace {

namespace fs = std::filesystem;

class Hostile : public TemporaryFolder {
 protected:
  void SetUp() override {
    TemporaryFolder::SetUp();
    path_ = path("case.safetensors");
  }

  void write(const std::string& bytes) const { std::ofstream(path_, std::ios::binary) << bytes; }
  // A file with this header and so many bytes of data.
  void write_header(const std::string& header, std::size_t data) const {
    std::uint64_t size = header.size();
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &size, 8);
    write(bytes + header + std::string(data, '\0'));
  }
  std::string error() const {
    try {
      Problem problem;
      problem.capture = path_;
      load_capture(problem);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  }
  void expect_error(const std::string& part) const {
    EXPECT_NE(error().find(part), std::string::npos) << error();
    EXPECT_NE(error().find(path_), std::string::npos) << error();
  }
  std::string valid() const {
    const Case c = generate_case(parse_problem("b1 hq4 hkv2 sq6 sk6 d8 bf16 causal dlse seed=1"), "c");
    save_capture(path_, c, true);
    return read_file(path_, "capture");
  }
  Safetensors valid_content() const {
    valid();
    return read_safetensors(path_);
  }

  std::string path_;
};

TEST_F(Hostile, FilesThatAreNoSafetensors) {
  EXPECT_NE(error().find("No such file"), std::string::npos) << error();
  write("");
  expect_error("0 bytes");
  write("short");
  expect_error("5 bytes");
  write(std::string(8, '\xff') + "{}");
  expect_error("header");
  write_header("not json", 0);
  expect_error("JSON");
  write_header("[1, 2]", 0);
  expect_error("not a JSON object");
  write_header(std::string(100'000, '['), 0);
  expect_error("header");
  write_header(R"({"q":{"dtype":{"a":{"b":{"c":{"d":1}}}}}})", 0);
  expect_error("nested");
}

TEST_F(Hostile, HeadersThatLie) {
  write_header(R"({"q":{"dtype":"BF16","shape":[4],"data_offsets":[0,6]}})", 6);
  expect_error("'q'");
  write_header(R"({"q":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}})", 4);
  expect_error("'q'");
  write_header(R"({"q":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}})", 9);
  expect_error("9");
  write_header(R"({"q":{"dtype":"BF16","shape":[4],"data_offsets":[8,0]}})", 8);
  expect_error("'q'");
  write_header(R"({"q":{"dtype":"F8","shape":[4],"data_offsets":[0,4]}})", 4);
  expect_error("F8");
  write_header(R"({"q":{"dtype":"BF16","shape":[-4],"data_offsets":[0,8]}})", 8);
  expect_error("-4");
  write_header(R"({"q":{"dtype":"BF16","shape":[1099511627776,1099511627776],"data_offsets":[0,8]}})", 8);
  expect_error("'q'");
  write_header(R"({"q":{"dtype":"BF16","shape":[4]}})", 8);
  expect_error("data_offsets");
  write_header(R"({"q":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},)"
               R"("k":{"dtype":"BF16","shape":[2],"data_offsets":[2,6]}})",
               6);
  expect_error("overlap");
  write_header(R"({"q":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},)"
               R"("q":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]}})",
               8);
  expect_error("twice");
}

TEST_F(Hostile, TruncatedAtEveryPlace) {
  const std::string whole = valid();
  for (std::size_t length = 0; length < whole.size(); length += 1 + length / 50) {
    write(whole.substr(0, length));
    ASSERT_NE(error(), "no error") << length << " of " << whole.size();
  }
}

TEST_F(Hostile, OversizedByOneByte) {
  write(valid() + "x");
  EXPECT_NE(error(), "no error");
}

// Every reading ends in a case or in an InputError.
TEST_F(Hostile, MutatedHeaders) {
  const std::string whole = valid();
  std::uint64_t header = 0;
  std::memcpy(&header, whole.data(), 8);
  std::mt19937_64 engine(1);
  int refused = 0;
  constexpr int kRounds = 3000;
  for (int round = 0; round < kRounds; ++round) {
    std::string bytes = whole;
    const std::uint64_t count = 1 + engine() % 4;
    for (std::uint64_t i = 0; i < count; ++i) bytes[engine() % (8 + header)] = static_cast<char>(engine());
    write(bytes);
    refused += error() != "no error" ? 1 : 0;
  }
  EXPECT_GT(refused, kRounds / 2);
}

TEST_F(Hostile, CapturesThatAreNotOne) {
  const auto expect = [&](const char* what, const std::function<void(Safetensors&)>& change,
                          const std::string& part) {
    SCOPED_TRACE(what);
    Safetensors content = valid_content();
    change(content);
    write_safetensors(path_, content, true);
    expect_error(part);
  };
  expect(
      "no format", [](Safetensors& s) { s.metadata.erase("format"); }, "format");
  expect(
      "other format", [](Safetensors& s) { s.metadata["format"] = "pt"; }, "'pt'");
  expect(
      "newer version", [](Safetensors& s) { s.metadata["version"] = "9"; }, "'9'");
  expect(
      "layout", [](Safetensors& s) { s.metadata["layout"] = "hbsd"; }, "'hbsd'");
  expect(
      "causal", [](Safetensors& s) { s.metadata["causal"] = "yes"; }, "'yes'");
  expect(
      "window", [](Safetensors& s) { s.metadata["window"] = "-1"; }, "'-1'");
  expect(
      "scale", [](Safetensors& s) { s.metadata["scale"] = "nan"; }, "'nan'");
  expect(
      "no q", [](Safetensors& s) { s.tensors.erase("q"); }, "q");
  expect(
      "no k", [](Safetensors& s) { s.tensors.erase("k"); }, "k");
  expect(
      "a recorded gradient without dout",
      [](Safetensors& s) {
        s.tensors["mine.dq"] = s.tensors["q"];
        s.tensors.erase("dout");
        s.tensors.erase("dlse");
      },
      "mine.dq");
  expect(
      "a recorded name that is no path's", [](Safetensors& s) { s.tensors["a/b.out"] = s.tensors["q"]; },
      "a/b.out");
  expect(
      "q of integers",
      [](Safetensors& s) {
        s.tensors["q"] = Tensor(DType::kInt32, {1, 4, 6, 8});
      },
      "i32");
  expect(
      "two formats",
      [](Safetensors& s) {
        s.tensors["k"] = Tensor(DType::kFp16, {1, 2, 6, 8});
      },
      "fp16");
  expect(
      "q of three dimensions",
      [](Safetensors& s) {
        s.tensors["q"] = Tensor(DType::kBf16, {4, 6, 8});
      },
      "[4, 6, 8]");
  expect(
      "k of other d",
      [](Safetensors& s) {
        s.tensors["k"] = Tensor(DType::kBf16, {1, 2, 6, 16});
      },
      "[1, 2, 6, 16]");
  expect(
      "heads that do not divide",
      [](Safetensors& s) {
        s.tensors["k"] = Tensor(DType::kBf16, {1, 3, 6, 8});
        s.tensors["v"] = Tensor(DType::kBf16, {1, 3, 6, 8});
      },
      "3");
  expect(
      "too few sinks", [](Safetensors& s) { s.tensors["sinks"] = Tensor(DType::kFp32, {3}); }, "[3]");
  expect(
      "documents that do not end",
      [](Safetensors& s) { s.tensors["cu_seqlens"] = Tensor(DType::kInt32, {3}); }, "cu_seqlens");
  expect(
      "lengths of another batch", [](Safetensors& s) { s.tensors["seqlens"] = Tensor(DType::kInt32, {2}); },
      "'seqlens' of shape [2], wanted [1]");
  expect(
      "lengths that are no whole numbers",
      [](Safetensors& s) { s.tensors["seqlens"] = Tensor(DType::kFp32, {1}); },
      "'seqlens' in fp32, wanted i32 or i64");
  expect(
      "a length beyond the rows",
      [](Safetensors& s) {
        s.tensors["seqlens"] = Tensor(DType::kInt64, {1});
        s.tensors["seqlens"].set(0, 7);
      },
      "seqlens= has 7, wanted lengths from 0 to sq, 6");
  expect(
      "a scalar", [](Safetensors& s) { s.tensors["dlse"] = Tensor(DType::kFp32, {}); }, "dlse");
  expect(
      "an unknown tensor", [](Safetensors& s) { s.tensors["wq"] = Tensor(DType::kFp32, {1}); }, "'wq'");
  expect(
      "a recorded output of another shape",
      [](Safetensors& s) {
        s.tensors["mine.dq"] = Tensor(DType::kBf16, {1, 4, 5, 8});
      },
      "mine.dq");
}

TEST_F(Hostile, RoundTrip) {
  for (const char* line :
       {"b2 hq4 hkv2 sq6 sk9 d8 bf16 causal w3 seed=1", "hq4 hkv2 d8 fp16 docs=3,0,4 docs_k=5,1,2 seed=2",
        "b1 hq2 hkv2 sq5 sk5 d8 fp32 full dlse scale=0.3 sink=none seed=3",
        "b1 hq2 hkv1 sq5 sk5 d8 fp32 causal layout=bshd sink_dtype=bf16 seed=4",
        "b2 hq2 hkv1 sq5 sk5 d8 bf16 causal seqlens=3,0 dlse layout=bshd seed=5"}) {
    SCOPED_TRACE(line);
    const Case saved = generate_case(parse_problem(line), "case");
    save_capture(path_, saved, true);
    Problem problem;
    problem.capture = path_;
    const Case loaded = load_capture(problem);
    EXPECT_EQ(inputs_sha256(loaded), inputs_sha256(saved));
    EXPECT_EQ(loaded.problem.shape, saved.problem.shape);
    EXPECT_TRUE(bitwise_equal(loaded.padded_dout, saved.padded_dout));
  }
}

}  // namespace
}  // namespace sinkscope
