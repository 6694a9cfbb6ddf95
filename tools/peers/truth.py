# SPDX-License-Identifier: Apache-2.0
"""The truth of one key/value head in float64 on the GPU, and errors against it."""
import torch

ROWS = 512  # query rows of a block: its scores are [group, ROWS, keys]


def truth_of(case, kv_head: int, sink: bool) -> dict[str, torch.Tensor]:
    """out, dq [b, s, group, d], dk, dv [b, s, 1, d], dsinks and its size M = sum p |Delta| [group], in float64."""
    group = case.q.shape[2] // case.k.shape[2]
    heads = slice(kv_head * group, (kv_head + 1) * group)
    sinks = case.sinks[heads].double() if sink else torch.full_like(case.sinks[heads], -torch.inf, dtype=torch.float64)
    q, dout = (t[:, :, heads].double().transpose(1, 2) for t in (case.q, case.dout))  # [b, group, s, d]
    k, v = (t[:, :, kv_head].double() for t in (case.k, case.v))  # [b, s, d]
    out, dq, dk, dv = (torch.zeros_like(t) for t in (q, q, k, v))
    dsinks, size = torch.zeros_like(sinks), torch.zeros_like(sinks)
    for batch in range(q.shape[0]):
        for first, last in case.documents():
            for row in range(first, last, ROWS):
                rows = slice(row, min(row + ROWS, last))
                keys = slice(max(first, row - case.window + 1) if case.window else first, rows.stop)
                block = rows_of(case, q[batch, :, rows], k[batch, keys], v[batch, keys], dout[batch, :, rows], sinks,
                                rows.start - keys.start)
                out[batch, :, rows], dq[batch, :, rows] = block["out"], block["dq"]
                dk[batch, keys] += block["dk"]
                dv[batch, keys] += block["dv"]
                dsinks += block["dsinks"]
                size += block["size"]
    return {"out": out.transpose(1, 2), "dq": dq.transpose(1, 2), "dk": dk.unsqueeze(2), "dv": dv.unsqueeze(2),
            "dsinks": dsinks, "size": size}


def rows_of(case, q, k, v, dout, sinks, ahead: int) -> dict[str, torch.Tensor]:
    """What a block of rows [group, rows, d] makes and adds; row i stands `ahead` + i keys after the first key."""
    distance = ahead + torch.arange(q.shape[1], device=q.device)[:, None] - torch.arange(k.shape[0], device=q.device)[None, :]
    hidden = distance < 0 if case.causal else torch.zeros_like(distance, dtype=torch.bool)
    if case.window:
        hidden |= distance >= case.window
    scores = (case.scale * (q @ k.T)).masked_fill_(hidden, -torch.inf)
    lse = torch.logaddexp(torch.logsumexp(scores, -1), sinks[:, None])
    p = scores.sub_(lse[..., None]).exp_()
    out = p @ v
    delta = (dout * out).sum(-1)
    ds = (dout @ v.T).sub_(delta[..., None]).mul_(p)
    p_sink = (sinks[:, None] - lse).exp()
    return {"out": out, "dq": case.scale * (ds @ k), "dk": case.scale * torch.einsum("grk,grd->kd", ds, q),
            "dv": torch.einsum("grk,grd->kd", p, dout), "dsinks": -(p_sink * delta).sum(-1),
            "size": (p_sink * delta).abs().sum(-1)}


def errors(outputs: dict[str, torch.Tensor], truth: dict[str, torch.Tensor], case, kv_head: int) -> dict[str, list[float]]:
    """Per head: relative L2 of out, dq, dk, dv; |error| / M of dsinks; the share of out's error that has one sign along
    the truth, |sum e r| / sum |e r|."""
    group = case.q.shape[2] // case.k.shape[2]
    of_queries, of_keys = slice(kv_head * group, (kv_head + 1) * group), slice(kv_head, kv_head + 1)
    found = {}
    for name in ("out", "dq", "dk", "dv"):
        got = outputs[name][:, :, of_keys if name in ("dk", "dv") else of_queries].double()
        error = got - truth[name]
        found[name] = (norm(error) / norm(truth[name])).tolist()
        if name == "out":
            along = error * truth[name]
            found["bias"] = (along.sum((0, 1, 3)).abs() / along.abs().sum((0, 1, 3))).tolist()
    if "dsinks" in outputs:
        found["dsinks"] = ((outputs["dsinks"][of_queries].double() - truth["dsinks"]).abs() / truth["size"]).tolist()
    return found


def norm(tensor: torch.Tensor) -> torch.Tensor:
    """Of each head of [b, s, h, d]."""
    return tensor.square().sum((0, 1, 3)).sqrt()
