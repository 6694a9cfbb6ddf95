# SPDX-License-Identifier: Apache-2.0
"""A record read by h5py and xarray alone says what the command said.

    python record_test.py SINKSCOPE
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import xarray as xr

ROOT = Path(__file__).resolve().parents[2]
CAPTURE = "datasets/captures/calm_layer1.safetensors"
PATHS = "sink_kernel,recorded.eager,recorded.flash_attention_2"


def check_numbers(record: Path) -> None:
    """The figures of datasets/captures/README.md, one xarray expression each."""
    dq = xr.open_dataset(record, engine="h5netcdf", group="problems/calm_layer1/dq")
    sinkless = dq.rel_l2.sel(path="recorded.flash_attention_2").isel(batch=0)
    published = [0.679, 0.919, 0.233, 0.357, 1.62, 1.48, 3.47, 1.10]
    np.testing.assert_allclose(sinkless, published, rtol=5e-3)
    assert dq.rel_l2.attrs["units"] == "1" and "error" in dq.rel_l2.attrs["long_name"]
    assert dq.z_rms.dims == ("path", "batch", "head") and dq.profile.dims == ("path", "batch", "head", "bin")

    facts = xr.open_dataset(record, engine="h5netcdf", group="problems/calm_layer1/heads")
    assert abs(float(facts.p_sink_mean.sel(head=6)[0]) - 0.9075) < 5e-5
    dk = xr.open_dataset(record, engine="h5netcdf", group="problems/calm_layer1/dk")
    assert dk.rel_l2.sizes == {"path": 3, "batch": 1, "kv_head": 2}


def check_verdicts(record: Path, verdicts: dict) -> None:
    """/verdicts and --json hold the same rows."""
    rows = [row for case in verdicts["cases"] for path in case["paths"] for row in path["verdicts"]]
    with h5py.File(record) as file:
        assert file.attrs["complete"] == 1 and file.attrs["encoding-type"] == "sinkscope-record"
        assert file["problems/calm_layer1"].attrs["layer"] == "1"
        assert file["problems/calm_layer1/dq/rel_l2"].compression == "gzip"
        assert file["problems/calm_layer1/dq/rel_l2"].fletcher32
        table = file["verdicts"]
        assert len(table["verdict"]) == len(rows)
        for i, row in enumerate(rows):
            assert table["tensor"][i].decode() == row["tensor"]
            assert table["verdict"][i].decode() == row["verdict"]
            assert table["repro"][i].decode() == row["repro"]


def check_tensors(record: Path) -> None:
    """Stored bf16 is its bits, with the format beside them; eager's out is what the capture brought."""
    with h5py.File(record) as file:
        stored = file["problems/calm_layer1/tensors/recorded.eager/out"]
        assert stored.dtype == np.uint16 and stored.attrs["format"] == "bf16"
        header_bytes = int.from_bytes((ROOT / CAPTURE).read_bytes()[:8], "little")
        raw = (ROOT / CAPTURE).read_bytes()
        entry = json.loads(raw[8 : 8 + header_bytes])["eager.out"]
        begin, end = entry["data_offsets"]
        original = np.frombuffer(raw[8 + header_bytes + begin : 8 + header_bytes + end], np.uint16)
        np.testing.assert_array_equal(stored[:].ravel(), original)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        record, verdicts = Path(folder) / "a.h5", Path(folder) / "a.json"
        command = [sys.argv[1], "compare", CAPTURE, "--quiet", "--save-tensors", "--paths", PATHS, "-o", record, "--json", verdicts]
        subprocess.run(command, check=True, cwd=ROOT)
        check_numbers(record)
        check_verdicts(record, json.loads(verdicts.read_text()))
        check_tensors(record)
    print("record: h5py and xarray read what was written")


if __name__ == "__main__":
    main()
