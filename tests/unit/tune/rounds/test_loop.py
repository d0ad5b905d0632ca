"""On-policy rounds end to end on a tiny pipeline: whose samples, resumption, judges, refusals."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from families import arguments, build, redness, seeded
from safetensors.torch import load_file
from tiny_sets import equal, rows
from torch import Tensor

import steer
from steer.tune import Dataset, TuneConfig, TuneError, tune
from steer.tune.data.folder import Folder
from steer.tune.interrupts import Stopped
from steer.tune.rounds.loop import Rounds
from steer.tune.trainer import Trainer


TEXTS = ["a red circle", "a blue square", "a circle", "left of a square"]
LORA = "pytorch_lora_weights.safetensors"


def blueness(images: Tensor, prompts: Any) -> Tensor:
    return images[:, 2].mean((1, 2))


def falling(images: Tensor, prompts: Any) -> Tensor:
    """A judge that likes every call less than the one before."""
    calls.append(len(images))
    return torch.full((len(images),), -float(len(calls)))


calls: list[int] = []
REWARDS = [steer.reward(redness), steer.reward(blueness)]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    calls.clear()


def configured(out: Path, rounds: dict[str, Any] | None = None, **more: Any) -> TuneConfig:
    own = {
        "count": 3,
        "updates": 2,
        "prompts": TEXTS,
        "images": 3,
        "reward": "redness",
        "judge": "blueness",
        "steps": 2,
        "call": {"height": 16, "width": 16},
        "batch": 6,
        **(rounds or {}),
    }
    given: dict[str, Any] = {"objective": "nft", "batch": 6, "lr": 1e-2, "cpu": True}
    return TuneConfig.from_dict({"out": str(out), "rounds": own, **given, **more})


def made(config: TuneConfig, pipe: Any = None, rewards: Any = REWARDS) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    return tune(config, build("sd") if pipe is None else pipe, rewards=rewards)


def outcome(out: Path) -> dict[str, Any]:
    """What a run came to: weights, log, record, and every round's samples."""
    files = {path.name: load_file(path) for path in (out / "tuned").rglob("*.safetensors")}
    sets = sorted((out / "rounds").glob("*/data/index.parquet"))
    latents = sorted((out / "rounds").glob("*/data/latents-*"))
    return {
        "weights": files,
        "log": rows(out),
        "record": json.loads((out / "rounds.json").read_text()),
        "tables": [path.read_bytes() for path in sets],
        "latents": [path.read_bytes() for path in latents],
        "state": torch.load(sorted((out / "checkpoints").iterdir())[-1] / "state.pt"),
    }


SETTINGS: list[dict[str, Any]] = [
    {"rounds": {"old_decay": 0.5}},
    {"rounds": {"keep": 1, "prompts_per_round": 3}, "objective": "awm", "guidance_scale": 3.0},
    {"rounds": {"reference": "round"}, "objective": {"name": "dpo", "beta": 50}, "batch": 3},
    {
        "rounds": {"search": {"method": "BestOfN(2)", "plain": True}},
        "objective": "sft",
        "targets": "winners",
        "lora": False,
    },
]


@pytest.mark.sample
@pytest.mark.parametrize("settings", SETTINGS, ids=["nft", "awm", "dpo", "sft"])
@pytest.mark.parametrize("place", ["sampling", "training"])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    settings: dict[str, Any], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**settings, "checkpoint_every": 1}
    made(configured(tmp_path / "whole", **given))
    cut = configured(tmp_path / "cut", **given)
    write, advance = Folder._write, Trainer.advance
    writes = 0

    def dying(self: Folder, name: str, data: bytes) -> None:
        nonlocal writes
        writes += "0001/data" in str(self.path)
        if writes == 3:
            raise RuntimeError("power cut")
        write(self, name, data)

    def killed(self: Trainer) -> dict[str, float]:
        if self.step == 3:
            raise RuntimeError("power cut")
        return advance(self)

    if place == "sampling":
        monkeypatch.setattr(Folder, "_write", dying)
    else:
        monkeypatch.setattr(Trainer, "advance", killed)
    with pytest.raises(RuntimeError, match="power cut"):
        made(cut)
    monkeypatch.undo()
    torch.randn(3)
    made(cut)
    one, other = outcome(tmp_path / "whole"), outcome(tmp_path / "cut")
    for name, value in one.items():
        assert equal(value, other[name]), name
    assert [look["round"] for look in one["record"]["looks"]] == [0, 1, 2]


def test_samples_are_the_policys_own_and_the_first_rounds_the_bases(tmp_path: Path) -> None:
    made(configured(tmp_path / "run"))
    tuned = build("sd")
    tuned.load_lora_weights(tmp_path / "run" / "tuned", weight_name=LORA)
    sets = [Dataset.load(tmp_path / "run" / "rounds" / f"{k:04d}" / "data") for k in range(3)]
    call = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "latent"}
    base = build("sd")
    for data, same in zip(sets, (True, False, False), strict=True):
        row = 4
        seed = data._index["seed"][row]
        own = base(data.prompts[row], generator=seeded(seed), guidance_scale=1.0, **call).images
        close = torch.allclose(data.latents([row]), own, atol=1e-5)
        assert close is same
    assert len({name for data in sets for name in map(str, data._index["seed"])}) == 36


@pytest.mark.sample
@pytest.mark.parametrize(
    ("given", "moved"),
    [
        ({"objective": "nft"}, True),
        ({"objective": {"name": "dpo", "beta": 50}, "batch": 3}, False),
        ({"objective": "dpo", "batch": 3, "rounds": {"reference": "round"}}, True),
    ],
)
@pytest.mark.parametrize("lora", [{"rank": 4}, False])
def test_the_reference_stays_the_base_or_moves_with_the_rounds(
    given: dict[str, Any], moved: bool, lora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a round's first step a reference that moved equals the policy."""
    seen: dict[int, bool] = {}
    advance = Trainer.advance

    def watched(self: Trainer) -> dict[str, float]:
        errors = self.losses.errors(self.loader.at(self.step))
        assert errors.reference is not None
        seen[self.step] = bool(torch.equal(errors.policy, errors.reference))
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", watched)
    made(configured(tmp_path / "run", lora=lora, **given))
    assert seen == {0: True, 1: False, 2: moved, 3: False, 4: moved, 5: False}


def test_old_policies_are_averaged_with_the_declared_decay(tmp_path: Path) -> None:
    config = configured(tmp_path / "run", {"old_decay": 0.75})
    rounds = Rounds(config, build("sd"), rewards=REWARDS)
    refresh, ends = rounds._refresh, []

    def noted(number: int) -> None:
        ends.append(rounds.trainer.policy.weights())
        refresh(number)
        expected = ends[0]
        for new in ends[1:]:
            expected = {k: 0.75 * v + 0.25 * new[k] for k, v in expected.items()}
        assert rounds.trainer.old is not None
        for name, value in expected.items():
            torch.testing.assert_close(rounds.trainer.old[name], value, rtol=1e-5, atol=1e-7)

    rounds._refresh = noted
    rounds.run()
    assert len(ends) == 3


def test_kept_rounds_are_trained_on_and_compared_within_their_round(tmp_path: Path) -> None:
    config = configured(tmp_path / "run", {"keep": "all"}, batch=12)
    made(config)
    data = Dataset.load(tmp_path / "run" / "rounds" / "0002" / "pool")
    assert len(data) == 36 and len(set(data.prompt_ids.tolist())) == 12
    for k in range(3):
        own = Dataset.load(tmp_path / "run" / "rounds" / f"{k:04d}" / "data")
        place = [data.ids.index(f"r{k:04d}-{name}") for name in own.ids]
        assert torch.equal(data.latents(place), own.latents(range(12)))
        assert data.scores[place].tolist() == own.scores.tolist()
        for name, value in data.text(place).items():
            assert torch.equal(value, own.text(range(12))[name])


def test_a_judge_that_falls_ends_the_run_with_the_best_judged_weights(tmp_path: Path) -> None:
    rewards = [steer.reward(redness), steer.reward(falling)]
    config = configured(tmp_path / "run", {"count": 6, "judge": "falling", "patience": 2})
    with pytest.warns(UserWarning, match=r"stopped after round 3: judge 'falling' fell from -1\.5"):
        made(config, rewards=rewards)
    record = json.loads((tmp_path / "run" / "rounds.json").read_text())
    assert [look["round"] for look in record["looks"]] == [0, 1, 2]
    assert json.loads((tmp_path / "run" / "tuned" / "tune.json").read_text())["step"] == 0
    weights = load_file(tmp_path / "run" / "tuned" / LORA)
    ups = [value for name, value in weights.items() if "lora_B" in name or ".lora.up." in name]
    assert ups and not any(value.any() for value in ups)  # as adapters begin
    assert len(rows(tmp_path / "run")) == 4
    (tmp_path / "run" / "tuned" / LORA).unlink()
    with pytest.warns(UserWarning, match="stopped after round 3"):  # and not continued
        made(config, rewards=rewards)
    assert equal(weights, load_file(tmp_path / "run" / "tuned" / LORA))
    assert len(rows(tmp_path / "run")) == 4 and len(calls) == 6


def test_ctrl_c_keeps_what_is_done_and_the_same_command_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path / "run")
    once = Trainer.advance

    def interrupted(self: Trainer) -> dict[str, float]:
        if self.step in (1, 2):
            os.kill(os.getpid(), signal.SIGINT)
        return once(self)

    monkeypatch.setattr(Trainer, "advance", interrupted)
    for step in (2, 3):  # at a round's end, and within one
        with pytest.raises(Stopped) as stopped:
            made(config)
        assert stopped.value.step == step
    monkeypatch.undo()
    made(config)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_other_rounds_are_refused_in_the_same_folder(tmp_path: Path) -> None:
    made(configured(tmp_path / "run", {"count": 1}))
    for change, message in (
        ({"count": 2}, r"rounds\.count was 1, now 2"),
        ({"count": 1, "images": 4}, r"rounds\.images was 3, now 4"),
        ({"count": 1, "judge": None}, r"rounds\.judge was 'blueness', now None"),
    ):
        with pytest.raises(TuneError, match=message):
            made(configured(tmp_path / "run", change), rewards=REWARDS)
    with pytest.raises(TuneError, match=r"lr: 0\.01 -> 0\.5"):
        made(configured(tmp_path / "run", {"count": 1}, lr=0.5))


@pytest.mark.parametrize(
    ("rounds", "more", "message"),
    [
        ({"judge": "redness"}, {}, r"rounds\.judge='redness': is the reward itself"),
        ({}, {"data": "set"}, r"data='set' with rounds"),
        ({}, {"steps": 100}, r"steps=100 with rounds: .* 3 x 2 = 6 updates; leave steps out"),
        ({"guidance_scale": 1.0}, {"guidance_scale": 3.5}, r"rounds\.guidance_scale=1 with guid"),
        ({}, {"text_dropout": 0.1}, r"rounds\.guidance_scale=1 with text_dropout=0\.1"),
        ({"pairs": {}}, {}, r"rounds\.pairs with objective='nft'"),
        ({"images": 1}, {}, r"rounds\.images=1: nft compares at least 2"),
        ({}, {"objective": {"name": "nft", "advantage": "best_of_n"}}, r"images=3: .* at least 4"),
        ({"keep": "none"}, {}, r"rounds\.keep"),
        ({"keep": 0}, {}, r"rounds\.keep"),
        ({"search": {}}, {}, "search: name a method"),
        ({"search": {"method": "BestOfM(3)"}}, {}, "BestOfM"),
        ({"search": {"method": "BestOfN(3)", "compute": 4}}, {}, "sets its own cost"),
        ({"count": 0}, {}, r"rounds\.count=0"),
        ({"pairs": {"choose": "winners"}}, {"objective": "dpo"}, "pairs.choose='winners': needs"),
        ({}, {"objective": "dpo", "targets": "winners"}, "targets='winners' with objective='dpo'"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(
    rounds: dict[str, Any], more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TuneError, match=message):
        configured(tmp_path / "run", rounds, **more)


def test_batches_larger_than_a_round_and_the_reward_as_its_own_judge_are_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(TuneError, match=r"batch=64: a round has only 4 prompts x 3 images = 12"):
        made(configured(tmp_path / "run", batch=64))
    with pytest.raises(TuneError, match=r"rounds\.judge='blueness': is the reward 'redness' its"):
        made(configured(tmp_path / "run"), rewards=[REWARDS[0], REWARDS[0]])
    with pytest.warns(UserWarning, match=r"rounds\.guidance_scale=3 and guidance_scale=None"):
        Rounds(configured(tmp_path / "run", {"guidance_scale": 3.0}), build("sd"), rewards=REWARDS)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("sd", {"dtype": "bfloat16", "gradient_checkpointing": True, "guidance_scale": 3.0}),
        ("sd3", {"guidance_scale": 3.0, "guided_branch": "conditional"}),
        ("flux", {"ema": 0.9}),
    ],
)
def test_rounds_run_in_other_precisions_and_families(
    family: str, more: dict[str, Any], tmp_path: Path
) -> None:
    call = {name: arguments(family)[name] for name in ("height", "width")}
    if family == "flux":
        call["max_sequence_length"] = 8
    config = configured(tmp_path / "run", {"count": 2, "call": call}, **more)
    folder = made(config, build(family))
    assert load_file(folder / LORA)
    log = rows(tmp_path / "run")
    assert log[0]["loss"] == 0 and log[0]["grad_norm"] > 0 and log[2]["loss"] == 0


def opposite(images: Tensor, prompts: Any) -> Tensor:
    return -images[:, 0].mean((1, 2))


def test_the_judge_has_no_say_in_pairs(tmp_path: Path) -> None:
    """Best against worst by the reward, of every prompt, although the judge prefers the worst."""
    more = {"objective": {"name": "dpo", "beta": 50}, "batch": 3}
    config = configured(tmp_path, {"count": 1, "updates": 1}, **more)
    made(config, rewards=[REWARDS[0], steer.reward(opposite)])
    data = Dataset.load(tmp_path / "rounds" / "0000" / "data")
    assert len(data.pairs) == len(TEXTS)
    groups = [np.flatnonzero(data.prompt_ids == k) for k in range(len(TEXTS))]
    for own, winner, loser in zip(groups, data.pairs.winner, data.pairs.loser, strict=True):
        assert data.scores[winner] == data.scores[own].max()
        assert data.scores[loser] == data.scores[own].min()
