# SPDX-License-Identifier: Apache-2.0
"""The figures of tools/bench_peers as Markdown."""

ERRORS = {"out": "out", "bias": "one-signed share of out's error", "dq": "dq", "dk": "dk", "dv": "dv", "dsinks": "dsinks / M"}


def heading(figures: dict) -> list[str]:
    machine = ", ".join(f"{name} {value}" for name, value in figures["machine"].items())
    return [f"## {machine}; {figures['rounds']} rounds", ""]


def captures(found: dict) -> list[str]:
    lines = ["### Captures: relative L2 of a head, median (largest) over heads", ""]
    lines += ["| | " + " | ".join(ERRORS.values()) + " |", "|---" * (len(ERRORS) + 1) + "|"]
    notes = []
    for name, figures in found.items():
        if figures["unavailable"]:
            notes.append(f"{name}: {figures['unavailable']}  ")
            continue
        cells = [f"{e['median']:.2e} ({e['max']:.2e})" if (e := figures["errors"].get(key)) else "-" for key in ERRORS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, "", *notes, ""]


def timed(problem: dict) -> list[str]:
    peers = sorted({peer for f in problem["contestants"].values() for peer in f.get("forward", {}).get("against", {})})
    lines = [f"### {problem['problem']}", "", f"GEMM {problem['gemm_tflops']:.0f} TFLOP/s, copy {problem['copy_tbytes']:.2f} TB/s. "
             f"Checked: {problem['checked']}.", ""]
    lines += ["| | | ms, median (quartiles) | TFLOP/s | of GEMM |" + "".join(f" against {peer} |" for peer in peers),
              "|---" * (5 + len(peers)) + "|"]
    notes = []
    for name, figures in problem["contestants"].items():
        for which in ("forward", "backward"):
            if which in figures:
                lines.append(row(name, which, figures[which], peers))
        if figures["unavailable"]:
            notes.append(f"{name}: not timed, {figures['unavailable']}  ")
            continue
        if figures["wrong"]:
            notes.append(f"{name}: **wrong**, so it has no time: {figures['wrong']}  ")
        worst = ", ".join(f"{tensor} {value:.1e}" for tensor, value in figures["worst"].items() if tensor != "bias")
        same = "same bits twice" if figures["repeatable"] else "**bits differ from run to run**"
        notes.append(f"{name}: {same}; worst checked head: {worst}  ")
    return [*lines, "", *notes, ""]


def row(name: str, which: str, figures: dict, peers: list[str]) -> str:
    ms = figures["ms"]
    against = [f"{figures['against'][peer]['median']:.2f} x" if peer in figures["against"] else "-" for peer in peers]
    return (f"| {name} | {which} | {ms['median']:.4g} ({ms['q1']:.4g} to {ms['q3']:.4g}) | {figures['tflops']:.0f} | "
            f"{100 * figures['gemm_share']:.0f} % |" + "".join(f" {cell} |" for cell in against))
