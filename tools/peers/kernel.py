# SPDX-License-Identifier: Apache-2.0
"""The kernel's CUDA backend through its shared library (libsink_attention_c.so): the structs of
kernels/sink_attention.h, on torch's tensors and current stream."""
import ctypes
from ctypes import Structure, c_bool, c_char, c_float, c_int32, c_int64, c_size_t, c_void_p

import torch

FORMATS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
MESSAGE_BYTES = 256


class Problem(Structure):
    _fields_ = [("dtype", c_int32), ("sink_dtype", c_int32), ("b", c_int64), ("hq", c_int64), ("hkv", c_int64),
                ("sq", c_int64), ("sk", c_int64), ("d", c_int64), ("scale", c_float), ("causal", c_bool),
                ("window", c_int64), ("documents", c_int32), ("cu_seqlens_q", c_void_p), ("cu_seqlens_k", c_void_p)]


class Strided(Structure):
    _fields_ = [("data", c_void_p), ("stride_b", c_int64), ("stride_h", c_int64), ("stride_s", c_int64)]


class ForwardParams(Structure):
    _fields_ = [("problem", Problem), ("q", Strided), ("k", Strided), ("v", Strided), ("sinks", c_void_p), ("out", Strided),
                ("lse", c_void_p), ("residual", c_void_p), ("workspace", c_void_p), ("workspace_bytes", c_size_t)]


class BackwardParams(Structure):
    _fields_ = [("problem", Problem), ("q", Strided), ("k", Strided), ("v", Strided), ("sinks", c_void_p), ("out", Strided),
                ("lse", c_void_p), ("residual", c_void_p), ("dout", Strided), ("dlse", c_void_p), ("dq", Strided),
                ("dk", Strided), ("dv", Strided), ("dsinks", c_void_p), ("workspace", c_void_p),
                ("workspace_bytes", c_size_t)]


class Library:
    """The shared library; refuses one whose structs are not those above."""

    def __init__(self, path: str):
        self.c = ctypes.CDLL(path)
        for name in ("forward", "backward"):
            getattr(self.c, f"sink_attention_{name}_workspace_bytes").restype = c_size_t
            getattr(self.c, f"sink_attention_{name}").argtypes = [c_void_p, c_void_p, c_void_p]
        sizes = (c_size_t * 3)()
        self.c.sink_attention_struct_bytes(sizes)
        wanted = [ctypes.sizeof(s) for s in (Problem, ForwardParams, BackwardParams)]
        if list(sizes) != wanted:
            raise RuntimeError(f"{path} has structs of {list(sizes)} bytes, wanted {wanted}")

    def workspace(self, which: str, problem: Problem) -> torch.Tensor:
        size = getattr(self.c, f"sink_attention_{which}_workspace_bytes")(ctypes.byref(problem))
        return torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")

    def launch(self, which: str, params: Structure) -> None:
        message = (c_char * MESSAGE_BYTES)()
        stream = torch.cuda.current_stream().cuda_stream
        if getattr(self.c, f"sink_attention_{which}")(ctypes.byref(params), stream, message) != 0:
            raise RuntimeError(message.value.decode())


def strided(tensor: torch.Tensor) -> Strided:
    """A tensor [b, s, h, d] by its own strides."""
    return Strided(tensor.data_ptr(), tensor.stride(0), tensor.stride(2), tensor.stride(1))


class SinkKernel:
    """A case laid out for the kernel; outputs and workspaces are allocated once and start as NaN."""

    def __init__(self, library: Library, case, sink: bool, residual: bool):
        self.library, self.case, self.sink = library, case, sink
        q, k = case.q, case.k
        self.out, self.dq = torch.full_like(q, float("nan")), torch.full_like(q, float("nan"))
        self.dk, self.dv = torch.full_like(k, float("nan")), torch.full_like(k, float("nan"))
        rows = (q.shape[0], q.shape[2], q.shape[1])
        self.lse = torch.full(rows, float("nan"), device="cuda")
        self.dsinks = torch.full((q.shape[2],), float("nan"), device="cuda")
        self.residual = torch.zeros((*rows, q.shape[3]), dtype=torch.int8, device="cuda") if residual else None
        self.problem = self.describe()
        self.forward_params, self.backward_params = self.lay_out()

    def describe(self) -> Problem:
        case = self.case
        b, sq, hq, d = case.q.shape
        _, sk, hkv, _ = case.k.shape
        p = Problem(FORMATS[case.q.dtype], FORMATS[case.sinks.dtype], b, hq, hkv, sq, sk, d, case.scale, case.causal, case.window)
        if case.offsets is not None:
            p.documents = len(case.offsets) - 1
            p.cu_seqlens_q = p.cu_seqlens_k = case.offsets.data_ptr()
        return p

    def lay_out(self) -> tuple[ForwardParams, BackwardParams]:
        case, problem = self.case, self.problem
        sinks = case.sinks.data_ptr() if self.sink else None
        residual = self.residual.data_ptr() if self.residual is not None else None
        self.workspaces = [self.library.workspace(which, problem) for which in ("forward", "backward")]
        q, k, v = strided(case.q), strided(case.k), strided(case.v)
        out, lse = strided(self.out), self.lse.data_ptr()
        forward = ForwardParams(problem, q, k, v, sinks, out, lse, residual, self.workspaces[0].data_ptr(),
                                self.workspaces[0].numel())
        backward = BackwardParams(problem, q, k, v, sinks, out, lse, residual, strided(case.dout), None, strided(self.dq),
                                  strided(self.dk), strided(self.dv), self.dsinks.data_ptr() if self.sink else None,
                                  self.workspaces[1].data_ptr(), self.workspaces[1].numel())
        return forward, backward

    def forward(self) -> None:
        self.library.launch("forward", self.forward_params)

    def backward(self) -> None:
        self.library.launch("backward", self.backward_params)

    def outputs(self) -> dict[str, torch.Tensor]:
        outputs = {"out": self.out, "dq": self.dq, "dk": self.dk, "dv": self.dv}
        return {**outputs, "dsinks": self.dsinks} if self.sink else outputs
