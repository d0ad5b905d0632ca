"""Runs that stop: killed, interrupted, changed, damaged, no longer finite; and how they go on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from families import build
from safetensors.torch import load_file, save_file
from tiny_sets import equal, rows, tiny_config as config, write_set

from steer.tune import NonFiniteError, TuneError, tune
from steer.tune.interrupts import Stopped
from steer.tune.trainer import Trainer


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


EVERYTHING: dict[str, Any] = {
    "steps": 6,
    "ema": 0.9,
    "text_dropout": 0.3,
    "accumulate": 2,
    "warmup": 2,
    "schedule": "cosine",
    "objective": {"name": "kto", "beta": 50, "positive_share": 0.75},
    "validation": {"every": 3, "rows": 5},
}


@pytest.mark.sample(0, 3)
@pytest.mark.parametrize(
    "change",
    [
        {"lora": {"rank": 4}},
        {"lora": False},
        {"lora": {"rank": 4}, "text_dropout": 0.0, "guidance_scale": 3.0},
        {"lora": False, "text_dropout": 0.0, "guidance_scale": 3.0, "guided_branch": "conditional"},
    ],
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_set(tmp_path / "data", "sd3")
    everything = {**EVERYTHING, **change}
    whole = config(tmp_path / "whole", data, **everything)
    tune(whole, build("sd3"), progress=False)
    cut = config(tmp_path / "cut", data, **everything)
    once = Trainer.advance

    def killed(self: Trainer) -> dict[str, float]:
        if self.step == 5:
            raise RuntimeError("power cut")
        return once(self)

    monkeypatch.setattr(Trainer, "advance", killed)
    with pytest.raises(RuntimeError, match="power cut"):
        tune(cut, build("sd3"), progress=False)
    assert len(rows(tmp_path / "cut")) > 4 and not (tmp_path / "cut" / "tuned").exists()
    monkeypatch.undo()
    (tmp_path / "cut" / "checkpoints" / ".partial-step-0000006").mkdir()  # killed while writing
    torch.randn(7)  # the process's own generator is elsewhere now
    tune(cut, build("sd3"), progress=False)
    files = [
        p.relative_to(tmp_path / "whole")
        for p in (tmp_path / "whole" / "tuned").rglob("*.safetensors")
    ]
    assert len(files) == 1
    one, other = (load_file(tmp_path / run / files[0]) for run in ("whole", "cut"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
    last = "checkpoints/step-0000006/state.pt"
    states = [torch.load(tmp_path / run / last) for run in ("whole", "cut")]
    assert equal(*states)


def test_an_interrupt_ends_the_step_and_writes_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = config(tmp_path / "run", write_set(tmp_path / "data", "sd3"), checkpoint_every=100)
    once = Trainer.advance

    def interrupted(self: Trainer) -> dict[str, float]:
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return once(self)

    monkeypatch.setattr(Trainer, "advance", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        tune(job, build("sd3"), progress=False)
    assert stopped.value.step == 2 and stopped.value.checkpoint.name == "step-0000002"
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    tune(job, build("sd3"), progress=False)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["config.yaml", "log.jsonl", "threshold.json", "tuned"])
def test_files_of_others_are_not_replaced(name: str, tmp_path: Path) -> None:
    job = config(tmp_path / "run", write_set(tmp_path / "data", "sd3"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(TuneError, match=f"holds '{name}', which steer tune run did not write"):
        tune(job, build("sd3"))
    assert (tmp_path / "run" / name).read_text() == "mine"


def test_a_torn_line_of_the_log_is_dropped_and_a_damaged_one_told(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", "sd3")
    tune(config(tmp_path / "run", data), build("sd3"))
    log = tmp_path / "run" / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole[:-20])
    tune(config(tmp_path / "run", data), build("sd3"))
    assert log.read_text() == "".join(whole.splitlines(keepends=True)[:-1])
    log.write_text("?\n" + whole)
    with pytest.raises(TuneError, match=r"log\.jsonl.*line 1 is damaged"):
        tune(config(tmp_path / "run", data), build("sd3"))


def test_a_finished_run_is_only_exported_again_and_old_checkpoints_go(tmp_path: Path) -> None:
    job = config(tmp_path / "run", write_set(tmp_path / "data", "sd3"), steps=6, keep=2)
    folder = tune(job, build("sd3"), progress=False)
    weights = folder / "pytorch_lora_weights.safetensors"
    before = load_file(weights)
    weights.unlink()
    tune(job, build("sd3"), progress=False)
    assert equal(before, load_file(weights))
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-0000004", "step-0000006"]


def test_another_configuration_or_dataset_is_refused_with_the_difference(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", "sd3")
    tune(config(tmp_path / "run", data), build("sd3"), progress=False)
    other = config(tmp_path / "run", data, lr=2e-3, objective={"name": "poly_dpo", "alpha": 2.0})
    with pytest.raises(TuneError) as refused:
        tune(other, build("sd3"), progress=False)
    for part in ("lr: 0.001 -> 0.002", "objective.name: 'dpo' -> 'poly_dpo'", "alpha: 0.0 -> 2.0"):
        assert part in str(refused.value)
    with pytest.raises(TuneError, match=r"lora\.rank: 8 -> 2"):
        tune(config(tmp_path / "run", data, lora={"rank": 2}), build("sd3"), progress=False)
    longer = config(tmp_path / "run", data, steps=5, keep=1, checkpoint_every=5)
    tune(longer, build("sd3"), progress=False)  # which does not touch what was done
    assert len(rows(tmp_path / "run")) == 5
    write_set(data, "sd3", scores=range(16))
    with pytest.raises(TuneError, match="the dataset's contents"):
        tune(longer, build("sd3"), progress=False)


def test_a_run_of_before_a_setting_existed_goes_on(tmp_path: Path) -> None:
    """Its checkpoint lacks the setting: that is the default, and another value a difference."""
    data = write_set(tmp_path / "data", "sd3")
    tune(config(tmp_path / "out", data, steps=2), build("sd3"))
    (meta,) = (tmp_path / "out" / "checkpoints").glob("*/meta.json")
    known = json.loads(meta.read_text())
    for name in ("noise_range", "sampling", "siblings"):
        del known["config"][name]
    del known["config"]["objective"]["guard"]
    meta.write_text(json.dumps(known))
    with pytest.raises(TuneError, match="noise_range: None -> "):
        tune(config(tmp_path / "out", data, steps=3, noise_range=[0.4, 1.0]), build("sd3"))
    tune(config(tmp_path / "out", data, steps=3), build("sd3"))
    assert len(rows(tmp_path / "out")) == 3


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    job = config(tmp_path / "run", write_set(tmp_path / "data", "sd3"))
    tune(job, build("sd3"), progress=False)
    (tmp_path / "run" / "checkpoints" / "step-0000004" / "state.pt").write_bytes(b"no")
    with pytest.raises(TuneError, match=r"step-0000004.*cannot be read.*delete it"):
        tune(job, build("sd3"), progress=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_step_ids_and_checkpoint(
    value: float, tmp_path: Path
) -> None:
    data = write_set(tmp_path / "data", "sd3", prompts=5, pairs=None)
    shard = data / "latents-00000.safetensors"
    latents = load_file(shard)["latents"]
    latents[6] = value  # p3-s0
    save_file({"latents": latents}, shard)
    job = config(tmp_path / "run", data, objective="tgo", batch=1, steps=16, checkpoint_every=1)
    with pytest.raises(NonFiniteError) as stopped:
        tune(job, build("sd3"), progress=False)
    error = stopped.value
    assert error.ids == ("p3-s0",) and error.step == len(rows(tmp_path / "run")) + 1
    assert "p3-s0" in str(error) and f"step {error.step}" in str(error)
    assert error.step > 1 and error.checkpoint is not None and error.checkpoint.is_dir()
    assert error.checkpoint.name == f"step-{error.step - 1:07d}"
    assert str(error.checkpoint) in str(error)
    assert not (tmp_path / "run" / "tuned").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_gpu_trains_and_continues_with_its_gradient_scale(dtype: str, tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", "sd3")
    objective = {"name": "dpo", "beta": 100.0}
    for steps in (2, 4):
        job = config(
            tmp_path / "run",
            data,
            steps=steps,
            cpu=False,
            dtype=dtype,
            objective=objective,
            gradient_checkpointing=True,
        )
        tune(job, build("sd3"), progress=False)
    log = rows(tmp_path / "run")
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    state = torch.load(tmp_path / "run" / "checkpoints" / "step-0000004" / "state.pt")
    assert (state["scaler"] is not None) == (dtype == "float16")
