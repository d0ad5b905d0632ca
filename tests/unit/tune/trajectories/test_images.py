"""Images of a dataset in sampling runs: their denoising error beside the reward, and ImageReFL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate.state import AcceleratorState
from families import build, redness
from safetensors.torch import load_file
from tiny_sets import equal, latents_of, rows, tiny_config, write_set
from torch import Tensor

import steer
from steer.tune import TuneConfig, TuneError, tune
from steer.tune.data.config import DataConfig
from steer.tune.data.make import make
from steer.tune.trainer import Trainer
from steer.tune.trajectories.trainer import SampledTrainer


@pytest.fixture(autouse=True)
def _fresh() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


def configured(
    out: Path, data: Path | str, objective: Any, sampling: Any = None, **more: Any
) -> TuneConfig:
    own: dict[str, Any] = {"reward": "redness", "steps": 4, "call": {"height": 16, "width": 16}}
    if (objective if isinstance(objective, str) else objective["name"]) != "image_refl":
        own["prompts"] = ["a red circle", "a blue square", "a circle"]
    given = {"objective": objective, "sampling": {**own, **(sampling or {})}, **more}
    return tiny_config(out, cast(Path, data), **given)


def trainer(config: TuneConfig, family: str = "sd") -> SampledTrainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    reward = steer.reward(redness, differentiable=True)
    return SampledTrainer(config, build(family), reward=reward)


def gradients(one: Trainer, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss.sum(), one.parameters, materialize_grads=True))


@pytest.mark.parametrize(
    "objective",
    [{"name": "draft"}, {"name": "draft", "noisings": 2, "leash": 0.1}, {"name": "refl"}],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_the_real_term_is_the_guided_denoising_error_of_images(
    objective: dict[str, Any], tmp_path: Path
) -> None:
    """Against the UNet's own answers, one row at a time, in both loss and gradient."""
    folder = write_set(tmp_path / "data")
    given = {"guidance_scale": 2.0, "lora": False}
    with_real = configured(tmp_path / "a", folder, {**objective, "real": 0.5}, **given)
    one = trainer(with_real)
    plain = trainer(configured(tmp_path / "b", "", objective, **given))
    runs = one.loader.at(0)
    found, alone = one.losses(runs), plain.losses(plain.loader.at(0))
    assert equal(found.reward, alone.reward)

    names = [f"p{p}-s{s}" for p in range(4) for s in range(4)]
    latents, texts = latents_of(folder, 16).float(), [load_file(p) for p in sorted(
        folder.glob("text-0*.safetensors"))]  # fmt: skip
    text = torch.cat([part["encoder_hidden_states"] for part in texts]).float()
    alphas, empty = one.pipe.scheduler.alphas_cumprod, one.pipe.encode_prompt("", "cpu", 1, False)
    errors = []
    assert len(set(runs.images.ids)) == 4
    for k, name in enumerate(runs.images.ids):
        t, noise = runs.images.draws.index[k], runs.images.draws.noise[k]
        x = alphas[t].sqrt() * latents[names.index(name)] + (1 - alphas[t]).sqrt() * noise
        states = torch.stack([empty[0][0], text[int(name[1])]])
        u, c = one.pipe.unet(torch.stack([x, x]), t, states).sample
        errors.append((u + 2.0 * (c - u) - noise).square().mean())
    error = torch.stack(errors)
    torch.testing.assert_close(found.further["real"], error, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.loss, alone.loss + 0.5 * error, rtol=1e-4, atol=1e-5)
    total, own = gradients(one, found.loss), gradients(plain, alone.loss)
    for grad, reward, exact in zip(total, own, gradients(one, error), strict=True):
        scale = max(float(exact.abs().max()), 1e-3)
        torch.testing.assert_close(grad, reward + 0.5 * exact, rtol=1e-3, atol=1e-3 * scale)


def test_the_real_term_is_the_loss_of_sft_on_the_same_rows(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "data", "sd3")
    call = {"call": {"height": 16, "width": 16, "max_sequence_length": 8}}
    one = trainer(configured(tmp_path / "a", folder, {"name": "refl", "real": 1.0}, call), "sd3")
    AcceleratorState._reset_state(reset_partial_state=True)
    sft = Trainer(tiny_config(tmp_path / "b", folder, objective="sft"), build("sd3"))
    images = one.loader.at(3).images
    assert images is not None
    known = sft.losses(replace(images, labels=torch.ones(4), weights=torch.ones(4)))
    assert equal(one.losses(one.loader.at(3)).further["real"], known.loss)
    one.close()
    sft.close()


REAL: list[dict[str, Any]] = [
    {"name": "drtune", "real": 0.3},
    {"name": "image_refl", "window": [0.25, 1.0], "leash": 0.1},
]


@pytest.mark.parametrize("objective", REAL, ids=lambda o: o["name"])
def test_parts_of_an_update_do_not_change_it(objective: dict[str, Any], tmp_path: Path) -> None:
    folder, found = write_set(tmp_path / "data"), []
    for parts in (1, 2, 4):
        one = trainer(configured(tmp_path / str(parts), folder, objective, accumulate=parts))
        batch = one.loader.at(2)
        rows = [part.images.x0 for part in batch.parts(parts)]
        assert len(rows) == parts and equal(torch.cat(rows, 1), batch.images.x0)
        texts = [text for part in batch.parts(parts) for text in part.prompts]
        assert tuple(texts) == batch.prompts
        log = one.advance()
        found.append((log, [p.detach().clone() for p in one.parameters]))
        one.close()
    for log, weights in found[1:]:
        assert log == pytest.approx(found[0][0], rel=1e-3)
        for one_weight, other in zip(found[0][1], weights, strict=True):
            torch.testing.assert_close(one_weight, other, rtol=1e-3, atol=1e-5)


def test_image_refl_takes_captions_and_features_of_its_images(tmp_path: Path) -> None:
    asked: list[str] = []

    def noted(images: Tensor, prompts: Any) -> Tensor:
        asked.extend(prompts)
        return redness(images, prompts)

    folder = write_set(tmp_path / "data", prompts=6)
    config = configured(tmp_path, folder, {"name": "image_refl", "real": 0.0})
    one = SampledTrainer(config, build("sd"), reward=steer.reward(noted, differentiable=True))
    assert one.prompts == [f"prompt {p}" for p in range(5)]  # the last one is of the split "test"
    given: list[Tensor] = []
    one.model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["encoder_hidden_states"]),
        with_kwargs=True,
    )
    seen: list[str] = []
    for step in range(5):
        batch = one.loader.at(step)
        found = one.losses(batch)
        numbers = [int(name[1]) for name in batch.images.ids]
        assert asked[-4:] == [f"prompt {p}" for p in numbers]
        assert len(given) == step + 1  # an update costs one call
        places = [one.data.ids.index(name) for name in batch.images.ids]
        assert equal(given[-1], one.data.text(places)["encoder_hidden_states"].float())
        assert "real" not in found.further and equal(found.loss, -found.reward)
        seen += batch.images.ids
    assert len(set(seen)) == 20  # all images come once before one comes again
    one.close()


def test_image_refl_raises_the_reward_of_noised_images(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "data")
    objective = {"name": "image_refl", "window": [0.0, 0.5]}
    given: dict[str, Any] = {"lora": False, "lr": 1e-2, "guidance_scale": 2.0, "batch": 12}
    config = configured(tmp_path, folder, objective, **given)
    one = trainer(config)
    again = one.loader.at(0)
    before = one.losses(again)
    logs = [one.advance() for _ in range(3)]
    after = one.losses(again)
    assert float((after.reward - before.reward).detach().mean()) > 1e-3
    assert all(log["grad_norm"] > 0 and log["real"] > 0 for log in logs)
    loss = 0.01 * before.further["real"] - before.reward
    torch.testing.assert_close(before.loss, loss)
    one.close()


def test_levels_of_image_refl_stay_in_their_window(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "data")
    objective = {"name": "image_refl", "window": [0.25, 0.75]}
    one = trainer(configured(tmp_path, folder, objective, {"steps": 8}))
    ends = [one.losses._cut(step).end - 1 for step in range(40)]
    assert set(ends) == {2, 3, 4, 5}
    assert ends == [one.losses._cut(step).end - 1 for step in range(40)]
    one.close()


@pytest.mark.parametrize("objective", REAL, ids=lambda o: o["name"])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    objective: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_set(tmp_path / "data")
    reward = steer.reward(redness, differentiable=True)

    def run(out: Path, **more: Any) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        given: dict[str, Any] = {"accumulate": 2, "guidance_scale": 2.0, **more}
        tune(configured(out, folder, objective, **given), build("sd"), rewards=[reward])

    run(tmp_path / "whole")
    advance = SampledTrainer.advance

    def killed(self: SampledTrainer) -> dict[str, float]:
        if self.step == 3:
            raise RuntimeError("power cut")
        return advance(self)

    monkeypatch.setattr(SampledTrainer, "advance", killed)
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "cut")
    monkeypatch.undo()
    torch.randn(3)
    run(tmp_path / "cut")
    one, other = (
        load_file(next((tmp_path / name / "tuned").rglob("*.safetensors")))
        for name in ("whole", "cut")
    )
    assert equal(one, other) and rows(tmp_path / "whole") == rows(tmp_path / "cut")
    changed = write_set(folder, seeds=5)
    assert changed == folder
    with pytest.raises(TuneError, match="the dataset's contents"):
        run(tmp_path / "cut", steps=5)


@pytest.mark.parametrize(
    ("objective", "made", "sentence"),
    [
        (
            {"name": "draft", "real": 0.1},
            {"family": "sd3"},
            "has text features of shape.*the calls",
        ),
        ("image_refl", {"family": "sdxl"}, "has text features of shape"),
        (
            {"name": "draft", "real": 0.1},
            {"prompts": 2, "seeds": 3},
            "batch=4: the dataset has only",
        ),
    ],
)
def test_datasets_of_another_pipeline_are_refused(
    objective: Any, made: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "data", **made)
    with pytest.raises(TuneError, match=sentence):
        trainer(configured(tmp_path, folder, objective))


def test_images_of_another_size_cannot_be_decoded_and_can_be_denoised(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "data")
    larger = {"call": {"height": 32, "width": 32}}
    with pytest.raises(TuneError, match=r"has latents of shape \(4, 8, 8\), and the calls.*16, 16"):
        trainer(configured(tmp_path, folder, "image_refl", larger))
    one = trainer(configured(tmp_path, folder, {"name": "draft", "real": 0.1}, larger))
    assert one.advance()["real"] > 0
    one.close()


@pytest.mark.slow
@pytest.mark.parametrize("objective", [{"name": "refl", "real": 0.1}, {"name": "image_refl"}])
def test_two_updates_on_the_bundled_world(objective: dict[str, Any], tmp_path: Path) -> None:
    prompts = ["a red circle", "two blue squares"]
    make(
        DataConfig(
            out=str(tmp_path / "data"), prompts=prompts, seeds=2, steps=2, test_share=0.0,
            guidance_scale=3.5, rewards=("shapes",), device="cpu",
        )
    )  # fmt: skip
    own = {"reward": "shapes", "steps": 2}
    if objective["name"] == "refl":
        own["prompts"] = prompts
    given = {"objective": objective, "sampling": own, "guidance_scale": 3.5}
    config = tiny_config(tmp_path / "run", tmp_path / "data", steps=2, **given)
    tuned = tune(config)
    logs = rows(tmp_path / "run")
    assert [log["step"] for log in logs] == [1, 2]
    assert all(log["real"] > 0 and log["grad_norm"] > 0 for log in logs)
    assert (tuned / "pytorch_lora_weights.safetensors").is_file()
