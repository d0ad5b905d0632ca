"""`benchmarks/gpu.py`: goes on after a stop, notes what failed, times nothing that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import steer
from benchmarks import full_size, gpu
from benchmarks.gpu import Piece, campaign
from benchmarks.kernels.__main__ import settings


def piece(name: str, code: str, gate: bool = False) -> Piece:
    return Piece(name, ("-c", code), gate)


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    record, log = tmp_path / "gpu.json", tmp_path / "log"
    note = f"open({str(log)!r}, 'a').write('x')"
    bad = piece("bad", "raise SystemExit(3)")
    assert campaign([piece("good", note), bad], record, again=False) == 1
    assert campaign([piece("good", note), piece("bad", note)], record, again=False) == 0
    assert log.read_text() == "xx"  # the good one once, the bad one when it was mended
    assert {name: entry["code"] for name, entry in json.loads(record.read_text()).items()} == {
        "good": 0,
        "bad": 0,
    }


def test_nothing_is_timed_where_a_gate_fails(tmp_path: Path) -> None:
    record = tmp_path / "gpu.json"
    todo = [piece("tests", "raise SystemExit(1)", gate=True), piece("timing", "pass")]
    assert campaign(todo, record, again=False) == 1
    assert list(json.loads(record.read_text())) == ["tests"]


def test_a_piece_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    record, slow = tmp_path / "gpu.json", piece("slow", "import time; time.sleep(60)")
    assert campaign([slow], record, again=False, limit=0.2) == 1
    assert json.loads(record.read_text())["slow"]["code"] == "stopped after 0.2 s"


def test_its_pieces_are_commands_that_exist() -> None:
    found = list(gpu.pieces())
    assert [p.gate for p in found] == sorted((p.gate for p in found), reverse=True)
    assert len({p.name for p in found}) == len(found)
    for one in found:
        if one.arguments[1] == "benchmarks.kernels":
            assert settings(list(one.arguments[2:])).parts
        elif one.arguments[1] == "benchmarks.full_size":
            assert one.arguments[-1] in full_size.SIZES
        else:
            paths = [word for word in one.arguments if "/" in word]
            assert paths and all((gpu.ROOT / path).exists() for path in paths)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        gpu.main([])
    with pytest.raises(SystemExit, match="no piece has that in its name; there are correct"):
        gpu.main(["--only", "nonsense"])


def test_full_size_measures_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model: every arm costs what its name says, in denoiser rows."""
    monkeypatch.setattr(full_size, "BUDGETS", (2,))
    size, dtype = full_size.SIZES["tiny"], torch.float32
    pipe = full_size.pipeline(size, "cpu", dtype)
    reward = full_size.scorer("cpu", dtype, tiny=True)
    given = {"num_inference_steps": 8, "height": 64, "width": 64, "output_type": "pt"}
    given |= full_size.embeddings(size, "cpu", dtype)
    made = full_size.arms(pipe, steer.guided(pipe, reward), reward, size, given)
    found = full_size.measure(made, 1, "cpu")
    assert list(found) == ["plain", "guided", "compute=2", "loop of 2"]
    assert found["guided"]["rows"] == 8
    assert 1 < found["compute=2"]["flops"] <= 2
    assert all(row["seconds"]["mean"] > 0 for row in found.values())
    assert 0 <= made["loop of 2"](0) < 2
