"""Files that are broken, unsafe, or made for another model."""

from __future__ import annotations

import json
import pickle
import re
import sys
from collections import deque

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from steer.core.errors import CheckpointError
from steer.core.weights.reading import load_into, load_state_dict, read_json


STATE = {"weight": torch.randn(4, 3), "bias": torch.randn(4)}


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "module.", "model."])
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_forms_of_a_checkpoint(tmp_path, wrap, ending):
    path = tmp_path / f"weights{ending}"
    state = {wrap + k: v for k, v in STATE.items()} if wrap.endswith(".") else STATE
    if ending == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if wrap == "state_dict" else state, path)
    loaded = load_state_dict(path)
    assert set(loaded) == set(STATE)
    assert all(torch.equal(loaded[k], STATE[k]) for k in STATE)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"does not exist: pass a \.safetensors"):
        load_state_dict(tmp_path / "gone.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_state_dict(tmp_path)


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 0.5, 0.97])
def test_truncated(tmp_path, ending, keep):
    path = tmp_path / f"weights{ending}"
    (save_file if ending == ".safetensors" else torch.save)(STATE, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(CheckpointError, match="corrupt"):
        load_state_dict(path)


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_garbage(tmp_path, ending):
    path = tmp_path / f"weights{ending}"
    path.write_bytes(b"<html>404 not found</html>" * 9)
    with pytest.raises(CheckpointError, match="corrupt"):
        load_state_dict(path)


class Evil:
    def __reduce__(self):
        return (sys.exit, ("code in the checkpoint was run",))


def test_code_is_never_run(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(CheckpointError, match="would run code"):
        load_state_dict(path)
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(CheckpointError):
        load_state_dict(path)


HINTS = ("weights_only", "safe_globals", "trusted source", "two options", "trust_remote_code")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("odd", [Evil(), deque([1]), np.float64(3)])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_no_refusal_tells_how_to_load_unsafely(tmp_path, odd, protocol):
    path = tmp_path / "odd.pt"
    torch.save({"weight": odd}, path)
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps({"weight": odd}, protocol=protocol))
    for file in (path, plain):
        with pytest.raises(CheckpointError, match=re.escape(repr(str(file)))) as caught:
            load_state_dict(file)
        assert not any(hint in str(caught.value).lower() for hint in HINTS)
    with pytest.raises(CheckpointError, match="GLOBAL"):  # what it is that is not loaded is told
        load_state_dict(path)


def test_names_that_become_one_are_refused(tmp_path):
    path = tmp_path / "odd.pt"
    torch.save({1: STATE["weight"], "1": STATE["bias"]}, path)
    with pytest.raises(CheckpointError, match=r"odd\.pt.*1 and '1' .*both.*'1'"):
        load_state_dict(path)


def test_bytes_flipped_anywhere_in_a_pickle_are_one_kind_of_error(tmp_path):
    path, random = tmp_path / "weights.pt", np.random.default_rng(0)
    whole = pickle.dumps({"weight": [1.0, 2.0], "bias": ("a", 3)}, protocol=2)
    for _ in range(200):
        broken = bytearray(whole)
        broken[random.integers(len(whole))] = random.integers(256)
        path.write_bytes(bytes(broken))
        with pytest.raises(CheckpointError, match=r"weights\.pt"):
            load_state_dict(path)


def test_configurations_too_deep_to_read_are_named(tmp_path):
    path = tmp_path / "c.json"
    path.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"c\.json"):
        read_json(path)


@pytest.mark.parametrize("content", [{}, [1, 2], {"weight": 3}, {"state_dict": {}}])
def test_no_state_dict(tmp_path, content):
    path = tmp_path / "odd.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"holds no tensors|is not a state dict"):
        load_state_dict(path)


def test_mismatches_are_named():
    module = nn.Linear(3, 4)
    with pytest.raises(CheckpointError, match=r"1 missing \(bias\); 1 unexpected \(extra\)"):
        load_into(module, {"weight": STATE["weight"], "extra": STATE["bias"]}, "x.pt")
    message = (
        r"x.pt does not fit.*1 of another shape \(weight is \(3, 4\), the model has \(4, 3\)\)"
    )
    with pytest.raises(CheckpointError, match=message):
        load_into(module, {**STATE, "weight": STATE["weight"].T}, "x.pt")
    load_into(module, STATE, "x.pt")
    assert torch.equal(module.weight, STATE["weight"])


def test_read_json(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"a": 1}))
    assert read_json(path) == {"a": 1}
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        read_json(path)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_torchscript_archive_is_named_as_what_it_is(tmp_path):
    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.weight

    path = tmp_path / "archive.pt"
    torch.jit.save(torch.jit.script(Tiny()), path)
    with pytest.raises(CheckpointError, match=r"is a TorchScript archive.*state_dict"):
        load_state_dict(path)
