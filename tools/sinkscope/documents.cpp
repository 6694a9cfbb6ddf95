// SPDX-License-Identifier: Apache-2.0
// The man page and the shell completions, from the commands' own definitions.
#include <algorithm>
#include <memory>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "sinkscope_version.hpp"
#include "tools/sinkscope/commands.hpp"

namespace sinkscope::cli {
namespace {

// Every way of writing an option: "-o", "--output".
std::vector<std::string> spellings(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) names.push_back("--" + name);
  return names;
}

std::vector<const CLI::App*> commands_of(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

// roff reads a leading dot or quote as a request, and a backslash as an escape.
std::string roff(std::string_view text) {
  std::string out;
  bool line_start = true;
  for (const char c : text) {
    if (line_start && (c == '.' || c == '\'')) out += "\\&";
    if (c == '\\')
      out += "\\e";
    else if (c == '-')
      out += "\\-";
    else
      out += c;
    line_start = c == '\n';
  }
  return out;
}

std::string man_options(const CLI::App& app) {
  std::string text;
  for (const CLI::Option* option : app.get_options()) {
    const std::vector<std::string> names = spellings(*option);
    const std::string title =
        names.empty() ? option->get_name(true) : fmt::format("{}", fmt::join(names, ", "));
    text += fmt::format(".TP\n.B {}\n{}\n", roff(title), roff(option->get_description()));
  }
  return text;
}

std::string man_page(const CLI::App& app) {
  std::string text =
      fmt::format(".TH SINKSCOPE 1 \"\" \"sinkscope {}\" \"User Commands\"\n.SH NAME\nsinkscope \\- {}\n",
                  kVersion, roff(app.get_description()));
  text += ".SH SYNOPSIS\n.B sinkscope\n.I COMMAND\n[options]\n.SH OPTIONS\n" + man_options(app) +
          ".SH COMMANDS\n";
  for (const CLI::App* command : commands_of(app)) {
    text += fmt::format(".SS {}\n{}\n{}.PP\n.nf\n{}\n.fi\n", command->get_name(),
                        roff(command->get_description()), man_options(*command), roff(command->get_footer()));
  }
  text +=
      ".SH EXIT STATUS\n0 passed, 1 gate failed or something got worse, 2 usage or input, 3 environment, 4 "
      "inconclusive, 5 internal, 130 interrupted.\n"
      ".SH ENVIRONMENT\n.TP\n.B NO_COLOR\nno colours\n.TP\n.B SINKSCOPE_DATA\nfolder of gates and "
      "suites\n.TP\n.B SINKSCOPE_TORCH_MODULE\nthe module of the libtorch paths\n"
      ".TP\n.B SINKSCOPE_ISA\nthe kernel's instruction set: avx2, avx512 or amx\n.TP\n.B "
      "SINKSCOPE_DEVICE\nwhere "
      "the kernel runs: cpu or cuda\n";
  return text;
}

std::string words_of(const CLI::App& app) {
  std::vector<std::string> words;
  for (const CLI::Option* option : app.get_options()) {
    for (std::string& name : spellings(*option)) words.push_back(std::move(name));
  }
  return fmt::format("{}", fmt::join(words, " "));
}

std::string command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : commands_of(app)) names.push_back(command->get_name());
  return fmt::format("{}", fmt::join(names, " "));
}

std::string bash_completion(const CLI::App& app) {
  std::string cases;
  for (const CLI::App* command : commands_of(app))
    cases += fmt::format("    {}) words=\"{}\" ;;\n", command->get_name(), words_of(*command));
  return fmt::format(
      "_sinkscope() {{\n  local current=\"${{COMP_WORDS[COMP_CWORD]}}\" words=\"\"\n  if [ \"$COMP_CWORD\" "
      "-eq 1 ]; then\n"
      "    COMPREPLY=($(compgen -W \"{} {}\" -- \"$current\"))\n    return\n  fi\n  case "
      "\"${{COMP_WORDS[1]}}\" in\n{}  esac\n"
      "  case \"$current\" in\n    -*) COMPREPLY=($(compgen -W \"$words\" -- \"$current\")) ;;\n    *) "
      "COMPREPLY=($(compgen -f -- \"$current\")) ;;\n  esac\n}}\n"
      "complete -o filenames -F _sinkscope sinkscope\n",
      command_names(app), words_of(app), cases);
}

std::string zsh_completion(const CLI::App& app) {
  return fmt::format("#compdef sinkscope\nautoload -U +X bashcompinit && bashcompinit\n{}",
                     bash_completion(app));
}

std::string fish_quoted(std::string text) {
  std::replace(text.begin(), text.end(), '\'', ' ');
  return "'" + text + "'";
}

std::string fish_completion(const CLI::App& app) {
  std::string text;
  for (const CLI::App* command : commands_of(app)) {
    text += fmt::format("complete -c sinkscope -n __fish_use_subcommand -a {} -d {}\n", command->get_name(),
                        fish_quoted(command->get_description()));
    for (const CLI::Option* option : command->get_options()) {
      for (const std::string& name : option->get_lnames()) {
        text += fmt::format("complete -c sinkscope -n '__fish_seen_subcommand_from {}' -l {} -d {}\n",
                            command->get_name(), name, fish_quoted(option->get_description()));
      }
    }
  }
  return text;
}

}  // namespace

void add_document_commands(CLI::App& app, Context&) {
  CLI::App* completion = app.add_subcommand("completion", "Print shell completion");
  auto shell = std::make_shared<std::string>();
  completion->add_option("SHELL", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  completion->footer("Example:\n  source <(sinkscope completion bash)");
  completion->callback([shell, &app] {
    fmt::print("{}", *shell == "bash"  ? bash_completion(app)
                     : *shell == "zsh" ? zsh_completion(app)
                                       : fish_completion(app));
  });
  CLI::App* man = app.add_subcommand("man", "Print the man page");
  man->footer("Example:\n  sinkscope man | man -l -");
  man->callback([&app] { fmt::print("{}", man_page(app)); });
}

}  // namespace sinkscope::cli
