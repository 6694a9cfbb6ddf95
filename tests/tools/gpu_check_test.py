# SPDX-License-Identifier: Apache-2.0
"""tools/gpu_check without a GPU: it says so; what runs on the CPU instead is a failure; problem lines are reduced."""
import argparse
import importlib.machinery
import importlib.util
import pathlib
import subprocess
import sys
import tempfile

SINKSCOPE = pathlib.Path(sys.argv[1])
loader = importlib.machinery.SourceFileLoader("gpu_check", "tools/gpu_check")
gpu_check = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", loader))
sys.dont_write_bytecode = True
loader.exec_module(gpu_check)


def checker(folder: str, **changed) -> "gpu_check.Checker":
    arguments = argparse.Namespace(build=SINKSCOPE.parent, jobs=2, seeds=[3], count=20, show=5, reduce=1, only=[])
    return gpu_check.Checker(argparse.Namespace(**{**vars(arguments), **changed}), pathlib.Path(folder))


def drawn(count: int) -> list[str]:
    text = subprocess.run(["tools/draw_problems", str(count), "--seed", "3", "--formats", "bf16,fp16"],
                          capture_output=True, text=True, check=True).stdout
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_without_a_gpu_it_ends_with_3() -> None:
    ran = subprocess.run([sys.executable, "tools/gpu_check", "--build", SINKSCOPE.parent], capture_output=True, text=True,
                         env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}, check=False)
    assert ran.returncode == 3, ran
    assert "no GPU" in ran.stderr, ran.stderr


def test_an_unknown_part_is_a_usage_error() -> None:
    ran = subprocess.run([sys.executable, "tools/gpu_check", "--only", "swep"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and "'swep', wanted some of" in ran.stderr, ran


def test_a_sweep_on_the_cpu_fails_and_counts_every_problem() -> None:
    with tempfile.TemporaryDirectory() as folder:
        check = checker(folder)
        check.environment["SINKSCOPE_DEVICE"] = "cpu"
        check.sweep()
        assert len([f for f in check.report.failures if "on the CPU" in f]) == 20, check.report.failures
        row = next(line for line in check.report.lines if line.startswith("| 3 |"))
        assert "| 20 | 0, 20 |" in row and " passed" in row, row


def test_verdicts_that_are_not_good_are_listed_with_their_line() -> None:
    verdict = {"verdict": "failed", "path": "sink_kernel", "tensor": "dq", "metric": "z_max", "value": 9,
               "limit": 4.1, "reason": ""}
    path = {"path": "sink_kernel", "backend": "cuda H200", "judged": True, "verdicts": [verdict]}
    observed = {**path, "path": "eager", "judged": False}
    found = gpu_check.Verdicts([{"line": "b1 d64 bf16", "paths": [path, observed]}], 1)
    with tempfile.TemporaryDirectory() as folder:
        check = checker(folder)
        check.judge("sweep", found)
        assert check.report.failures == ["sweep: 1 tensors of 1 problems"], check.report.failures
        assert check.report.lines == ["* sink_kernel dq: z_max 9, limit 4.1 in `b1 d64 bf16`"], check.report.lines


def program(path: pathlib.Path, prints: str, code: int) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{prints}\nEND\nexit {code}\n")
    path.chmod(0o755)


def test_a_failing_test_program_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tests = pathlib.Path(folder) / "tests"
        program(tests / "good_cuda_test", "[  PASSED  ] 3 tests.\n[  SKIPPED ] 1 test, listed below:", 0)
        program(tests / "bad_gpu_test", "[  PASSED  ] 0 tests.\n[  FAILED  ] 1 test, listed below:\n[  FAILED  ] A.B/c, where x", 1)
        program(tests / "dies_cuda_test", "", 139)
        program(tests / "of_the_cpu_test", "", 1)
        check = checker(folder, build=folder)
        check.tests()
        assert check.report.failures == ["tests: bad_gpu_test ended with 1: A.B/c",
                                         "tests: dies_cuda_test ended with 139: "], check.report.failures
        assert any(line.startswith("| good_cuda_test | 3 | 1 | 0 |") for line in check.report.lines), check.report.lines


def test_the_summary_is_kept_part_by_part() -> None:
    with tempfile.TemporaryDirectory() as folder:
        build, output = pathlib.Path(folder), pathlib.Path(folder) / "reports/check.md"
        program(build / "sinkscope", "version  0.1\ncommit   abc\ncuda     13.0\nkernel   cuda H200, cpu", 0)
        program(build / "tests/good_cuda_test", "[  PASSED  ] 3 tests.", 0)
        check = checker(folder, build=folder, only=["tests"], output=str(output), compute_sanitizer="/bin/true")
        check.run()
        text = output.read_text()
        assert text.startswith("# GPU check: passed\n") and "| CUDA of the build | 13.0 |" in text, text
        assert "| good_cuda_test | 3 | 0 | 0 |" in text, text
        assert "the Python package, which `tools/gpu_check_python -o " in text, text
        check.write(gpu_check.Report(), ["sweep"])
        assert output.read_text().startswith("# GPU check: not finished: sweep\n")
        check.report.failed("tests: one")
        check.write(gpu_check.Report(), ["sweep"])
        assert "# GPU check: failed\n" in output.read_text() and "* FAILED tests: one\n" in output.read_text()


def test_what_a_sanitizer_finds_is_a_failure() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tool, bare = pathlib.Path(folder) / "sanitizer", pathlib.Path(folder) / "tests/kernels_cuda_bare_test"
        program(bare, "", 0)
        for summary, code, clean in (("ERROR SUMMARY: 0 errors", 0, True), ("ERROR SUMMARY: 2 errors", 0, False),
                                     ("RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", 0, True),
                                     ("RACECHECK SUMMARY: 10 hazards displayed (10 errors, 0 warnings)", 0, False),
                                     ("ERROR SUMMARY: 0 errors", 1, False), ("nothing", 0, False)):
            program(tool, f"[  PASSED  ] 18 tests.\n========= {summary}", code)
            check = checker(folder, build=folder, compute_sanitizer=str(tool), sanitizers=["memcheck"])
            check.sanitizers()
            assert (check.report.failures == []) == clean, (summary, code, check.report.failures)


def test_reduction_keeps_what_makes_it_fail() -> None:
    def needs_window_and_two_documents(lines: list[str]) -> set[str]:
        return {s for s in lines if any(t.startswith("w") for t in s.split()) and "," in s and "d128" in s}

    line = "b1 hq24 hkv3 docs=70,0,129,40 docs_k=70,3,0,40 d128 fp16 causal w129 sink=20 " \
           "sink_dtype=bf16 dlse residual fill=ties seed=8"
    smaller = gpu_check.Reducer(needs_window_and_two_documents).reduce(line).split()
    assert "hq1" in smaller and "hkv1" in smaller and "w1" in smaller and "seed=8" in smaller, smaller
    assert not {"dlse", "residual", "fill=ties", "sink=20"} & set(smaller), smaller
    assert gpu_check.Reducer(lambda lines: set()).reduce(line) == line


def test_every_simpler_line_is_a_problem() -> None:
    """Refused lines would cost a run each, and hide smaller failures."""
    lines = [s for line in drawn(40) for s in gpu_check.Reducer.simpler(line)]
    lines = sorted(set(lines))[::12]
    with tempfile.TemporaryDirectory() as folder:
        suite = pathlib.Path(folder) / "simpler.txt"
        suite.write_text("\n".join(lines) + "\n")
        ran = subprocess.run([SINKSCOPE, "compare", "--suite", suite, "--paths", "sink_kernel", "--quiet"],
                             capture_output=True, text=True, check=False)
        assert ran.returncode in (0, 1, 4), ran


tests = [value for name, value in list(globals().items()) if name.startswith("test_")]
for test in tests:
    test()
print(f"{len(tests)} tests of tools/gpu_check passed")
