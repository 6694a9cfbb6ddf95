// SPDX-License-Identifier: Apache-2.0
#include "fmt/format.h"

#include "src/bench/bench.hpp"

namespace sinkscope {
namespace {

using nlohmann::json;

std::string percent(const json& share) {
  return share.is_null() ? "-" : fmt::format("{:.0f} %", 100 * share.get<double>());
}

std::string speedup(const json& spread) {
  return spread.is_null() ? "-" : fmt::format("{:.2f} x", spread["median"].get<double>());
}

std::string worst_errors(const json& rel_l2) {
  std::string text;
  for (const char* name : {"out", "dq", "dk", "dv", "dsinks"}) {
    if (rel_l2.contains(name))
      text += fmt::format("{}{} {:.1e}", text.empty() ? "" : ", ", name, rel_l2[name].get<double>());
  }
  return text;
}

void add_pass(std::string& table, const json& contestant, const char* pass) {
  const json& figures = contestant[pass];
  if (figures.is_null()) return;
  table +=
      fmt::format("| {} | {} | {} | {:.0f} | {} | {} | {} |\n", contestant["name"].get<std::string>(), pass,
                  spread_text(figures["ms"]), figures["tflops"].get<double>(), percent(figures["gemm_share"]),
                  percent(figures["copy_share"]), speedup(figures["speedup_over_flash_attention_2"]));
}

void add_price(std::string& text, const json& price, const char* what) {
  if (price.is_null()) return;
  text += fmt::format("Price of the {}:", what);
  for (const char* pass : {"forward", "backward"}) {
    const json& spread = price[pass];
    if (spread.is_null()) continue;
    text += fmt::format(" {} {:+.1f} % ({:+.1f} to {:+.1f})", pass, 100 * spread["median"].get<double>(),
                        100 * spread["q1"].get<double>(), 100 * spread["q3"].get<double>());
  }
  text += "  \n";
}

}  // namespace

std::string gpu_bench_heading(const json& figures) {
  return fmt::format("## {}, {} rounds\n\n", figures["device"].get<std::string>(),
                     figures["rounds"].get<int>());
}

std::string gpu_problem_table(const json& problem) {
  std::string text = fmt::format("### {}\n\n", problem["problem"].get<std::string>());
  const std::string gemm = problem["gemm_tflops"].is_null()
                               ? "No matrix rate (needs libtorch on the GPU)"
                               : fmt::format("GEMM {:.0f} TFLOP/s", problem["gemm_tflops"].get<double>());
  text += fmt::format("{}, copy {:.2f} TB/s. Checked: {}.\n\n", gemm, problem["copy_tbytes"].get<double>(),
                      problem["checked"].get<std::string>());
  text +=
      "| | | ms, median (quartiles) | TFLOP/s | of GEMM | of copy | against flash_attention_2 "
      "|\n|---|---|---|---|---|---|---|\n";
  std::string notes;
  for (const json& contestant : problem["contestants"]) {
    const std::string name = contestant["name"];
    add_pass(text, contestant, "forward");
    add_pass(text, contestant, "backward");
    const std::string unavailable = contestant["unavailable"], wrong = contestant["wrong"];
    if (!unavailable.empty()) notes += fmt::format("{}: not timed, {}  \n", name, unavailable);
    if (!wrong.empty()) notes += fmt::format("{}: **wrong**, so it has no time: {}  \n", name, wrong);
    if (unavailable.empty())
      notes += fmt::format("{}: relative L2 of the worst checked head: {}  \n", name,
                           worst_errors(contestant["rel_l2"]));
  }
  add_price(notes, problem["price_of_sink"], "sink");
  add_price(notes, problem["price_of_residual"], "residual");
  return text + fmt::format("\n{}\n", notes);
}

}  // namespace sinkscope
