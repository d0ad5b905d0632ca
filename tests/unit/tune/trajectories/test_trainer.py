"""Training on sampling runs, end to end on tiny pipelines: runs, gains, resumption, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from families import arguments, build, redness
from safetensors.torch import load_file
from tiny_sets import equal, rows
from torch import Tensor

import steer
from steer.tune import TuneConfig, TuneError, tune
from steer.tune.backprop import Cut, run
from steer.tune.trajectories.policies import Chosen
from steer.tune.trajectories.trainer import SampledTrainer


def differentiable() -> Any:
    return steer.reward(redness, differentiable=True)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


def configured(out: Path, objective: Any, sampling: Any = None, **more: Any) -> TuneConfig:
    own = {
        "prompts": ["a red circle", "a blue square", "a circle"],
        "reward": "redness",
        "steps": 4,
        "call": {"height": 16, "width": 16},
        **(sampling or {}),
    }
    given: dict[str, Any] = {"steps": 3, "batch": 4, "lr": 1e-2, "cpu": True, **more}
    return TuneConfig.from_dict({"out": str(out), "objective": objective, "sampling": own, **given})


def made(config: TuneConfig, family: str = "sd", reward: Any = None) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    return tune(config, build(family), rewards=[reward or differentiable()])


def trainer(config: TuneConfig, family: str = "sd") -> SampledTrainer:
    return SampledTrainer(config, build(family), reward=differentiable())


@pytest.mark.parametrize(
    ("family", "guidance", "shape"),
    [("sd", None, (4, 8, 8)), ("sd", 3.0, (4, 8, 8)), ("sd3", 3.0, (4, 8, 8)), ("flux", None, ())],
)
def test_an_opened_run_is_the_pipelines_own(
    family: str, guidance: float | None, shape: tuple[int, ...], tmp_path: Path
) -> None:
    call = {k: v for k, v in arguments(family).items() if k not in ("prompt", "generator")}
    steps, _ = call.pop("num_inference_steps"), call.pop("output_type")
    config = configured(tmp_path, "draft", {"call": call, "steps": steps}, guidance_scale=guidance)
    sampler = trainer(config, family).sampler
    pipe = build(family)
    prompts, seeds = ["a red circle", "a circle"], [5, 6]
    start = sampler.start(seeds)
    assert start[1].tolist() == sampler.start([6])[0].tolist()
    given = {} if family == "flux" else {"guidance_scale": guidance or 1.0}
    own = pipe(
        prompts, latents=start.clone(), output_type="latent",
        num_inference_steps=steps, **call, **given,
    ).images  # fmt: skip
    denoise = sampler.denoiser(sampler._model, sampler.text(prompts))
    cut = Cut(frozenset(), steps)
    found = run(sampler.grid, start, denoise, cut, sampler.move, lambda at, x: x)
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-4)
    assert sampler.images(found).shape == (2, 3, 16, 16)


GRADIENTS: list[dict[str, Any]] = [
    {"name": "draft", "last": 2, "leash": 0.1},
    {"name": "draft", "noisings": 2, "leash": 0.1},
    {"name": "alignprop", "most": 3},
    {"name": "drtune"},
    {"name": "refl", "ceiling": 2.0, "window": [0.25, 1.0]},
    {"name": "direct_align", "jump": 0.3, "leash": 0.1},
]  # image_refl: test_images.py
POLICIES: list[dict[str, Any]] = [{"name": "ddpo", "kl": 0.1}, {"name": "flow_grpo"}]


@pytest.mark.parametrize("objective", GRADIENTS, ids=lambda o: "-".join(map(str, o.values())))
def test_rewards_rise_along_their_gradient(objective: dict[str, Any], tmp_path: Path) -> None:
    config = configured(
        tmp_path, objective, {"prompts": ["a circle"]}, lora=False, guidance_scale=2.0
    )
    one = trainer(config)
    reward = differentiable()

    def mean() -> float:
        with torch.no_grad():
            text = one.sampler.text(["a circle"] * 4)
            denoise = one.sampler.denoiser(one.model, text)
            whole, start = Cut(frozenset(), 4), one.sampler.start(range(4))
            clean = run(one.sampler.grid, start, denoise, whole, one.sampler.move, lambda at, x: x)
            return float(reward(one.sampler.images(clean), ["a circle"] * 4).mean())

    before = mean()
    logs = [one.advance() for _ in range(3)]
    assert mean() > before + 1e-3
    assert all(log["grad_norm"] > 0 for log in logs)
    assert logs[0].get("change", 0.0) == pytest.approx(0, abs=1e-6)


def test_recomputing_a_step_does_not_change_its_gradient(tmp_path: Path) -> None:
    grads = []
    for recompute in (True, False):
        AcceleratorState._reset_state(reset_partial_state=True)
        objective = {"name": "draft", "last": 4, "recompute": recompute}
        one = trainer(configured(tmp_path / str(recompute), objective, guidance_scale=2.0))
        one.accelerator.backward(one.losses(one.loader.at(0)).loss.sum())
        grads.append([p.grad for p in one.parameters])
    assert any(float(g.abs().max()) > 0 for g in grads[0])
    assert equal(*grads)


@pytest.mark.parametrize("objective", POLICIES, ids=lambda o: o["name"])
def test_policies_begin_at_themselves_and_learn_from_scores_alone(
    objective: dict[str, Any], tmp_path: Path
) -> None:
    family = "sd" if objective["name"] == "ddpo" else "sd3"
    sampling = {"images": 4, "prompts": ["a circle"]}
    config = configured(tmp_path, objective, sampling, lr=1e-4, guidance_scale=2.0)
    one = SampledTrainer(config, build(family), reward=steer.reward(redness))
    parts = one.loader.at(0).parts(1)
    assert len(parts) == len(one.sampler.noisy) > 1
    log = one.advance()
    assert log["loss"] == pytest.approx(0, abs=1e-5)
    assert log["clipped"] == 0 and log["kl"] == pytest.approx(0, abs=1e-6)
    after = [one.losses(part) for part in parts]
    assert sum(x.loss.sum().item() for x in after) < -1e-4
    assert sum(x.further["kl"].sum().item() for x in after) > 0


def test_the_first_updates_gradient_is_the_score_functions_own(tmp_path: Path) -> None:
    """Against autograd of the log densities that `Move.log_prob` gives, all steps at once."""
    sampling = {"images": 4, "prompts": ["a circle"]}
    one = trainer(configured(tmp_path, "ddpo", sampling))
    chosen = one.loader.at(0)
    assert isinstance(chosen, Chosen)
    for part in chosen.parts(1):
        one.accelerator.backward(one.losses(part).loss.sum())
    found = [p.grad for p in one.parameters]
    drawn, sampler = chosen.drawn, one.sampler
    denoise = sampler.denoiser(one.model, drawn.text)
    total: Any = 0.0
    for action in drawn.actions:
        step = sampler.grid[action.position]
        move = sampler.move(
            action.position, step, action.x, step.x0(action.x, denoise(action.x, step))
        )
        following = action.mean + move.std * sampler.noise(drawn.seeds, action.position)
        total = total - (drawn.advantages * move.log_prob(following)).sum()
    expected = torch.autograd.grad(total, one.parameters, allow_unused=True)
    assert abs(float(drawn.advantages.mean())) < 1e-6 < float(drawn.advantages.std())
    for grad, exact in zip(found, expected, strict=True):
        assert exact is not None
        scale = max(float(exact.abs().max()), 1e-3)
        torch.testing.assert_close(grad, exact, rtol=1e-3, atol=1e-3 * scale)


def outcome(out: Path) -> dict[str, Any]:
    return {
        "weights": [load_file(path) for path in sorted((out / "tuned").rglob("*.safetensors"))],
        "log": rows(out),
        "state": torch.load(sorted((out / "checkpoints").iterdir())[-1] / "state.pt"),
    }


@pytest.mark.parametrize(
    ("objective", "sampling", "more"),
    [
        (
            {"name": "alignprop", "leash": 0.1, "most": 2},
            {"preset": "ddim", "level": 0.5},
            {"lora": False},
        ),
        ("ddpo", {"images": 2, "updates": 2}, {"ema": 0.9, "accumulate": 1}),
    ],
    ids=["alignprop", "ddpo"],
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    objective: Any, sampling: Any, more: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = {**sampling, "steps": 3}
    given = {"checkpoint_every": 3, "steps": 4, "batch": 2, "accumulate": 2, **more}
    made(configured(tmp_path / "whole", objective, sampling, **given))
    cut = configured(tmp_path / "cut", objective, sampling, **given)
    advance = SampledTrainer.advance

    def killed(self: SampledTrainer) -> dict[str, float]:
        if self.step == 3:  # in the middle of a round
            raise RuntimeError("power cut")
        return advance(self)

    monkeypatch.setattr(SampledTrainer, "advance", killed)
    with pytest.raises(RuntimeError, match="power cut"):
        made(cut)
    monkeypatch.undo()
    torch.randn(3)
    made(cut)
    one, other = outcome(tmp_path / "whole"), outcome(tmp_path / "cut")
    for name, value in one.items():
        assert equal(value, other[name]), name


def cut_off(images: Tensor, prompts: Any) -> Tensor:
    return images.detach()[:, 0].mean((1, 2))


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        (steer.reward(redness), "objective='draft'.*'redness' is not differentiable.*ddpo or flow"),
        (steer.reward(cut_off, differentiable=True), "'cut_off': says that it is differentiable"),
    ],
)
def test_rewards_without_a_gradient_are_refused(reward: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TuneError, match=sentence):
        made(configured(tmp_path, "draft"), reward=reward)


@pytest.mark.parametrize(
    ("objective", "sampling", "more", "sentence"),
    [
        ("ddpo", {"images": 2, "preset": "ode"}, {}, r"preset='ode': draws no noise.*use ddim"),
        ("ddpo", {"images": 2, "preset": "cps", "level": 0.0}, {}, "'cps' with level=0: draws no"),
        ("ddpo", {}, {}, "images=1: ddpo compares at least 2"),
        ("ddpo", {"images": 3}, {}, "images=3: must divide batch=4"),
        ("flow_grpo", {"images": 2, "steps": 1}, {}, "steps=1: the last step draws no noise"),
        ("flow_grpo", {"images": 2, "preset": "sde"}, {}, "preset='sde': unknown"),
        ("draft", {"images": 2}, {}, "images=2: draft takes every run's own gradient"),
        ("draft", {}, {"data": "d"}, "data='d' with objective='draft': makes its own samples"),
        ("ddpo", {"images": 2}, {"data": "d"}, "data with objective='ddpo': is of datasets and"),
        ({"name": "refl", "real": 0.1}, {}, {}, r"objective\.real=0\.1 without data: it weighs"),
        ({"name": "ddpo", "real": 0.1}, {"images": 2}, {}, "'real' is unknown"),
        ({"name": "refl", "real": -1.0}, {}, {}, r"objective: real=-1\.0"),
        ("refl", {"prompts": None}, {}, "sampling: 'prompts' is missing"),
        ("image_refl", {"prompts": None}, {}, "'data' is missing: objective='image_refl' starts"),
        ("image_refl", {}, {"data": "d"}, r"sampling\.prompts with objective='image_refl'"),
        (
            "image_refl",
            {"prompts": None, "preset": "ddim"},
            {"data": "d"},
            r"sampling\.preset with objective='image_refl': .* no step before",
        ),
        ("draft", {}, {"siblings": 2}, "siblings with objective='draft'"),
        ("dpo", {}, {}, "sampling with objective='dpo': it learns from a dataset or in rounds"),
        ({"name": "draft", "last": 9}, {}, {}, r"last=9: runs have sampling\.steps=4"),
        ({"name": "draft", "last": 2, "noisings": 2}, {}, {}, "noisings=2 with last=2"),
        ({"name": "alignprop", "least": 3, "most": 2}, {}, {}, "most=2: is below least=3"),
        ({"name": "refl", "window": [0.5, 0.2]}, {}, {}, r"window=\[0\.5, 0\.2\]: two shares"),
        (
            {"name": "direct_align", "window": [0.0, 1.5]},
            {},
            {},
            r"window=\[0\.0, 1\.5\]: two",
        ),
        ({"name": "direct_align", "jump": 0.0}, {}, {}, r"jump=0\.0: must be a number"),
    ],
)
def test_what_does_not_go_together_is_refused_as_it_is_read(
    objective: Any, sampling: Any, more: Any, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(TuneError, match=sentence):
        configured(tmp_path, objective, sampling, **more)


def test_sampling_is_asked_for_where_it_is_missing() -> None:
    with pytest.raises(TuneError, match=r"'sampling' is missing: objective='draft' samples while"):
        TuneConfig.from_dict({"out": "o", "objective": "draft"})


def test_guidance_in_the_call_is_refused_where_the_loss_has_to_know_it(tmp_path: Path) -> None:
    config = configured(tmp_path, "draft", {"call": {"guidance_scale": 3.0}})
    with pytest.raises(TuneError, match=r"sampling\.call\.guidance_scale=3\.0"):
        trainer(config)
