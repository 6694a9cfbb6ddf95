# SPDX-License-Identifier: Apache-2.0
"""What the kernel is to reach on an H200, beside what was measured: against the best peer of the same run, or in
milliseconds, and on the captures."""

OURS = ("sink_kernel", "sink_kernel/residual")
S8192, S16384 = (f"b1 hq64 hkv8 sq{s} sk{s} d64 bf16 causal" for s in (8192, 16384))
SHORT = "b4 hq64 hkv8 sq2048 sk2048 d64 bf16 causal"
WIDE = tuple(f"b1 hq32 hkv8 sq{s} sk{s} d128 bf16 causal" for s in (8192, 16384))

# Problem, pass, times faster than the best peer at least.
SPEEDUPS = [*((p, "forward", 1.08) for p in (S8192, S16384)), *((p, "backward", 1.05) for p in (S8192, S16384)),
            *((p, which, 1.0) for p in WIDE for which in ("forward", "backward")),
            *((SHORT, which, 1.1) for which in ("forward", "backward"))]
# Problem, pass, milliseconds at most.
MILLISECONDS = [(f"{S16384} w128", "forward", 0.13), (f"{S16384} w128", "backward", 0.30)]
# Error, which of its figures over heads, at most.
ERRORS = [("out", "median", 1.8e-3), ("bias", "median", 0.1), ("dq", "median", 3.4e-3), ("dk", "median", 2.6e-3),
          ("dsinks", "max", 1e-3)]
PEER = "flash_attention_4"


def table(figures: dict) -> list[str]:
    """Markdown; what was not measured has no row."""
    rows = [*speed_rows(figures.get("problems", [])), *error_rows(figures.get("captures", {}))]
    if not rows:
        return []
    return ["### Targets (for an H200)", "", "| | wanted | " + " | ".join(OURS) + " |", "|---|---|---|---|", *rows, ""]


def mark(value: float, met: bool, form: str) -> str:
    return f"{value:{form}}, {'met' if met else '**short**'}"


def row(what: str, wanted: str, cells: list[str]) -> str:
    return f"| {what} | {wanted} | " + " | ".join(cells) + " |"


def speed_rows(problems: list[dict]) -> list[str]:
    by_line = {problem["problem"]: problem["contestants"] for problem in problems}
    rows = []
    for line, which, least in SPEEDUPS:
        if line in by_line:
            cells = [speedup_cell(by_line[line].get(name, {}).get(which), least) for name in OURS]
            rows.append(row(f"{line}, {which}", f"{least:.2f} x the best peer", cells))
    for line, which, most in MILLISECONDS:
        if line in by_line:
            own = [by_line[line].get(name, {}).get(which) for name in OURS]
            cells = [mark(o["ms"]["median"], o["ms"]["median"] <= most, ".3f") + " ms" if o else "-" for o in own]
            rows.append(row(f"{line}, {which}", f"{most} ms", cells))
    return rows


def speedup_cell(own: dict | None, least: float) -> str:
    if not own or not own["against"]:
        return "-"
    peer, worst = min(((peer, spread["median"]) for peer, spread in own["against"].items()), key=lambda pair: pair[1])
    return mark(worst, worst >= least, ".2f") + f" ({peer})"


def error_rows(captures: dict) -> list[str]:
    rows = []
    measured = [captures.get(name, {}).get("errors", {}) for name in OURS]
    for error, which, most in ERRORS:
        cells = [mark(m[error][which], m[error][which] <= most, ".2e") if error in m else "-" for m in measured]
        if any(cell != "-" for cell in cells):
            rows.append(row(f"captures, {which} {error} over heads", f"{most:g}", cells))
    peer = captures.get(PEER, {}).get("per_head", {})
    for error in ("out", "dq", "dk", "dv"):
        if error in peer:
            cells = [worse_cell(captures.get(name, {}).get("per_head", {}).get(error), peer[error]) for name in OURS]
            rows.append(row(f"captures, heads whose {error} is worse than {PEER}'s", "0", cells))
    return rows


def worse_cell(own: list[float] | None, peer: list[float]) -> str:
    if not own:
        return "-"
    worse = sum(not ours <= theirs for ours, theirs in zip(own, peer))
    return mark(worse, worse == 0, "d") + f" of {len(peer)}"
