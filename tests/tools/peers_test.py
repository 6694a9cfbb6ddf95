# SPDX-License-Identifier: Apache-2.0
"""What tools/bench_peers judges by, on a CPU: its truth against float64 autograd, its counts, its mirror of the kernel's
structs. The argument is the kernel's shared library, or nothing where it is not built. Skipped where Python's torch is
not to be had: tools/python_env brings what a build needs, which without a GPU is less."""
import pathlib
import sys

try:
    import torch
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
from peers import report, targets, truth  # noqa: E402
from peers.cases import Case, capture  # noqa: E402
from peers.kernel import Library  # noqa: E402
from peers.timing import spread  # noqa: E402


def example(window: int, offsets: list[int] | None) -> Case:
    generator = torch.Generator().manual_seed(5)
    b, s, hq, hkv, d = (1 if offsets else 2), 90, 4, 2, 16
    q, dout = (torch.randn(b, s, hq, d, generator=generator, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(b, s, hkv, d, generator=generator, dtype=torch.float64) for _ in range(2))
    sinks = torch.randn(hq, generator=generator, dtype=torch.float64)
    return Case("example", q, k, v, dout, sinks, 0.25, window, torch.tensor(offsets, dtype=torch.int32) if offsets else None)


def visible(case: Case) -> torch.Tensor:
    s = case.q.shape[1]
    mask = torch.zeros(s, s, dtype=torch.bool)
    for first, last in case.documents():
        for i in range(first, last):
            for j in range(first, i + 1):
                mask[i, j] = not case.window or i - j < case.window
    return mask


def naive(case: Case, sink: bool) -> dict[str, torch.Tensor]:
    """Softmax over the scores with the sink as one more column, gradients by autograd."""
    q, k, v, sinks = (t.clone().requires_grad_() for t in (case.q, case.k, case.v, case.sinks))
    group = q.shape[2] // k.shape[2]
    keys, values = (t.repeat_interleave(group, 2) for t in (k, v))
    scores = case.scale * torch.einsum("bihd,bjhd->bhij", q, keys)
    scores = scores.masked_fill(~visible(case), -torch.inf)
    column = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
    p = torch.softmax(torch.cat([scores, column], -1) if sink else scores, -1)[..., : k.shape[1]]
    out = torch.einsum("bhij,bjhd->bihd", p, values)
    gradients = torch.autograd.grad(out, (q, k, v, *((sinks,) if sink else ())), case.dout)
    return {"out": out.detach(), **dict(zip(("dq", "dk", "dv", "dsinks"), gradients))}


def test_truth_is_that_of_autograd() -> None:
    truth.ROWS = 32  # several blocks
    for window, offsets in ((0, None), (7, None), (200, None), (0, [0, 20, 20, 90]), (9, [0, 50, 90])):
        case = example(window, offsets)
        assert case.visible_pairs() == int(visible(case).sum()) * case.q.shape[0] * case.q.shape[2], (window, offsets)
        for sink in (True, False):
            wanted = naive(case, sink)
            for kv_head in range(2):
                found = truth.errors(wanted, truth.truth_of(case, kv_head, sink), case, kv_head)
                assert set(found) >= {"out", "dq", "dk", "dv"} and ("dsinks" in found) == sink
                for name, values in found.items():
                    assert name == "bias" or max(values) < 1e-12, (window, offsets, sink, name, values)


def test_a_wrong_head_is_seen() -> None:
    case = example(7, None)
    wanted = naive(case, True)
    wanted["dk"][:, :, 1] *= 1.1
    wanted["dsinks"][3] += 0.5
    found = truth.errors(wanted, truth.truth_of(case, 1, True), case, 1)
    assert abs(found["dk"][0] - 0.1) < 1e-9 and found["dsinks"][1] > 1e-3 and found["dq"][0] < 1e-12


def test_captures_are_read() -> None:
    torch.Tensor.cuda = lambda self: self
    case = capture(pathlib.Path("datasets/captures/packed_layer1.safetensors"))
    assert case.documents() == [(0, 100), (100, 137), (137, 512)] and case.q.shape == (1, 512, 8, 64)
    assert capture(pathlib.Path("datasets/captures/calm_layer0.safetensors")).window == 128


def test_a_wrong_contestant_has_no_row() -> None:
    problem = {"problem": "b1", "gemm_tflops": 700.0, "copy_tbytes": 3.0, "checked": "all", "contestants": {
        "fast": {"unavailable": "", "repeatable": True, "wrong": "dq has an error of 0.5", "worst": {"dq": 0.5}}}}
    text = "\n".join(report.timed(problem))
    assert "| fast |" not in text and "**wrong**" in text


def test_a_target_is_short_of_the_best_peer_alone() -> None:
    against = {"flash_attention_4": {"median": 1.02}, "flash_attention_2": {"median": 1.9}}
    own = {which: {"ms": {"median": 1.0}, "against": against} for which in ("forward", "backward")}
    heads = {"out": [1e-3, 2e-3], "dq": [3e-3, 5e-3]}
    errors_ = {"dq": {"median": 4e-3, "max": 5e-3}, "out": {"median": 1.5e-3, "max": 2e-3}}
    figures = {"problems": [{"problem": targets.S8192, "contestants": {"sink_kernel": own}}],
               "captures": {"sink_kernel": {"errors": errors_, "per_head": heads},
                            "flash_attention_4": {"per_head": {"out": [1e-3, 1e-3], "dq": [4e-3, 5e-3]}}}}
    text = "\n".join(targets.table(figures))
    assert f"| {targets.S8192}, forward | 1.08 x the best peer | 1.02, **short** (flash_attention_4) | - |" in text, text
    assert "| captures, median dq over heads | 0.0034 | 4.00e-03, **short** | - |" in text
    assert "| captures, median out over heads | 0.0018 | 1.50e-03, met | - |" in text
    assert "whose out is worse than flash_attention_4's | 0 | 1, **short** of 2 | - |" in text
    assert "whose dq is worse than flash_attention_4's | 0 | 0, met of 2 | - |" in text
    assert targets.SHORT not in text, "not measured"


def test_quartiles() -> None:
    assert spread([5, 1, 4, 2, 3]) == {"median": 3, "q1": 2, "q3": 4, "min": 1, "max": 5, "rounds": 5}


def test_structs_are_the_librarys(path: str) -> None:
    Library(path)


if __name__ == "__main__":
    test_truth_is_that_of_autograd()
    test_a_wrong_head_is_seen()
    test_captures_are_read()
    test_a_wrong_contestant_has_no_row()
    test_a_target_is_short_of_the_best_peer_alone()
    test_quartiles()
    for library in sys.argv[1:]:
        test_structs_are_the_librarys(library)
    print("ok")
