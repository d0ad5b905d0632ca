"""`NoiseOptimization`: what it keeps, what it costs, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from families import arguments, build, seeded, shared
from torch import Tensor

from steer.core.ddim import ddim
from steer.core.errors import GradientError, RewardError, UnsupportedPipelineError
from steer.driver.grid import Schedule
from steer.methods import BestOfN, Budget, NoiseOptimization, ReNO, Sphere, ZeroOrder
from steer.methods.noise.ascent import Best
from steer.pipeline.guided import guided
from steer.rewards.function import FunctionReward
from steer.search.short_runs import short_grid


def red(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2))


def blue(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 2].mean((1, 2))


RED = FunctionReward(red, differentiable=True, needs_prompt=False)
BLIND = FunctionReward(red, differentiable=False, needs_prompt=False)
SHORT: dict[str, Any] = {"iterations": 4, "through": 2}


def optimise(family: str = "sd", reward: Any = RED, width: int | None = None, **more: Any) -> Any:
    given = {k: more.pop(k) for k in list(more) if k in NoiseOptimization.__dataclass_fields__}
    method = NoiseOptimization(**{**SHORT, **given})
    return guided(shared(family), reward, method=method, lane_width=width)(
        **arguments(family, **more)
    )


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_the_reward_rises_on_every_family(family: str) -> None:
    out = optimise(family)
    climbed = [row["reward"][0] for row in out.report.trace.of("iterate")]
    assert climbed[0] < max(climbed)
    assert out.rewards[0] > out.report.base_reward[0]
    plain = guided(shared(family), RED, method=BestOfN(1))(**arguments(family))
    assert out.report.base_reward[0] == pytest.approx(plain.rewards[0], abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ascent": ReNO(step=50.0)},
        {"gradient": ZeroOrder(directions=2), "iterations": 2},
        {"through": None},
        {"checkpoint": True},
        {"finish": "both"},
        {"finish": "short"},
        {"starts": 2, "keep_start": False},
        {"ascent": Sphere(block=16)},
        {"leash": 2.0},
        {"leash": 2.0, "gradient": ZeroOrder(directions=2), "iterations": 2},
        {"ascent": Sphere(30.0, 0.0), "patience": 1},  # far too long: the start must survive
    ],
)
def test_never_worse_than_the_start_and_the_cost_is_as_told(settings: dict[str, Any]) -> None:
    out = optimise(**settings)
    report, method = out.report, out.report.method
    assert out.rewards[0] >= (report.base_reward[0] or 0.0)
    ledger, iterations = report.ledger, report.trace.of("iterate")
    if "patience" not in settings:
        assert ledger.equivalent_rows == method.cost(4)
        assert len(iterations) == method.iterations
    else:
        assert ledger.equivalent_rows <= method.cost(4)
    particle = report.chosen[0]
    assert (particle == (0, 0)) == (out.rewards[0] == report.base_reward[0])


def test_the_ledger_matches_an_independent_count() -> None:
    """Denoiser rows by a hook on the UNet; decodes and scores by wrapping them."""
    pipe, calls, images = build("sd"), [], []

    def count(module: Any, inputs: Any, output: Any) -> None:
        calls.append((len(inputs[0]) // 2, torch.is_grad_enabled()))  # guidance doubles the batch

    def seen(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        images.append(len(pictures))
        return red(pictures, prompts)

    pipe.unet.register_forward_hook(count)
    reward = FunctionReward(seen, differentiable=True)
    out = guided(pipe, reward, method=NoiseOptimization(**SHORT))(**arguments("sd"))
    ledger = out.report.ledger
    assert ledger.denoiser_rows == sum(rows for rows, _ in calls) == 4 + 4 * 2 + 4
    assert ledger.backward_rows == sum(rows for rows, grad in calls if grad) == 3 * 2
    assert ledger.reward_calls == ledger.decodes == sum(images) == 4 + 2


def test_the_pipeline_is_left_as_it_was() -> None:
    pipe = build("sd")
    odd = next(iter(pipe.unet.parameters())).requires_grad_(False)
    flags = [p.requires_grad for p in (*pipe.unet.parameters(), *pipe.vae.parameters())]
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    guided(pipe, RED, method=NoiseOptimization(**SHORT))(**arguments("sd"))
    weights = [*pipe.unet.parameters(), *pipe.vae.parameters()]
    assert [p.requires_grad for p in weights] == flags
    assert not odd.requires_grad
    assert all(p.grad is None for p in weights)
    assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())

    def broken(images: Tensor, prompts: Sequence[str]) -> Tensor:
        if torch.is_grad_enabled():
            assert not any(p.requires_grad for p in weights)
            raise ZeroDivisionError("inside")
        return red(images, prompts)

    reward = FunctionReward(broken, differentiable=True)
    with pytest.raises(ZeroDivisionError, match="inside"):
        guided(pipe, reward, method=NoiseOptimization(**SHORT))(**arguments("sd"))
    assert [p.requires_grad for p in weights] == flags
    assert torch.is_grad_enabled()


@pytest.mark.sample(1, 2)
@pytest.mark.parametrize(
    "more", [{}, {"gradient": ZeroOrder(directions=2), "leash": 1.0}, {"ascent": Sphere(block=16)}]
)
def test_batch_invariance(more: dict[str, Any]) -> None:
    """Lanes of 1, 3 and 8; prompts together or apart."""
    prompts = ["a red circle", "a blue square"]
    given = {"starts": 3, "iterations": 3, **more}
    narrow, even, wide = (
        optimise(width=w, **given, prompt=prompts, generator=[seeded(0), seeded(1)])
        for w in (1, 3, 8)
    )
    for other in (even, wide):
        assert other.rewards == pytest.approx(narrow.rewards, abs=2e-5)
        assert other.report.chosen == narrow.report.chosen
    for index, prompt in enumerate(prompts):
        alone = optimise(width=1, **given, prompt=prompt, generator=[seeded(index)])
        assert alone.rewards[0] == pytest.approx(narrow.rewards[index], abs=2e-5)
        assert alone.report.chosen[0][1] == narrow.report.chosen[index][1]


def test_half_precision_keeps_master_noise_in_float32() -> None:
    """bfloat16 weights: steps far below the resolution of the latents still add up."""
    pipe = build("sd", dtype=torch.bfloat16)
    method = NoiseOptimization(iterations=6, through=2, ascent=Sphere(step=0.002, momentum=0.0))
    out = guided(pipe, RED, method=method)(**arguments("sd"))
    angles = [row["angle"][0] for row in out.report.trace.of("iterate")]
    assert angles == sorted(angles)
    assert angles[-1] > 4 * angles[1] > 0
    assert out.images.dtype == torch.bfloat16
    assert out.rewards[0] >= out.report.base_reward[0]


@pytest.mark.parametrize("compute", [2, 4, 7])
def test_a_leash_within_a_budget(compute: int) -> None:
    """Too little to leave the start, and enough for some iterates and the leash."""
    inner = NoiseOptimization(iterations=20, through=2, leash=1.0)
    out = guided(shared("sd"), RED, method=Budget(compute, inner))(**arguments("sd"))
    assert out.report.ledger.equivalent_rows <= 4 * compute
    assert out.rewards[0] >= out.report.base_reward[0]


def test_limits_on_the_way() -> None:
    out = optimise(iterations=8, ascent=Sphere(max_angle=10.0))
    angles = [row["angle"][0] for row in out.report.trace.of("iterate")]
    assert max(angles) == pytest.approx(10.0, abs=0.01)
    out = optimise(iterations=8, ascent=Sphere(step=30.0, momentum=0.0), patience=2)
    assert len(out.report.trace.of("iterate")) < 8


def test_a_leash_holds_the_image_and_tells_how_far_it_went() -> None:
    """The stronger, the nearer; the best iterate is that of the leashed reward."""
    far = {}
    for weight in (1e-6, 1.0, 100.0):
        rows = optimise(leash=weight, iterations=5, finish="short").report.trace.of("iterate")
        assert rows[0]["moved"] == [0.0]
        best = max(rows, key=lambda row: row["reward"][0] - weight * row["moved"][0])
        far[weight] = best["moved"][0]
    assert far[1e-6] > far[1.0] >= far[100.0] == 0.0
    free = optimise(iterations=5, finish="short").report.trace.of("iterate")
    assert "moved" not in free[0]


@pytest.mark.parametrize("family", ["sd", "flux", "wan"])
def test_blocks_keep_their_norms_on_images_tokens_and_videos(family: str) -> None:
    method = NoiseOptimization(iterations=3, through=2, ascent=Sphere(block=16))
    out = guided(shared(family), RED, method=method)(**arguments(family))
    assert out.rewards[0] >= out.report.base_reward[0]


def test_a_monitor_chooses_the_iterate() -> None:
    watched = optimise(monitor=FunctionReward(blue, needs_prompt=False), finish="short")
    rows = watched.report.trace.of("iterate")
    best = max(rows, key=lambda row: row["monitor"][0])
    expected = max(best["reward"][0], watched.report.base_reward[0])
    assert watched.rewards[0] == pytest.approx(expected, abs=1e-6)


def test_best_keeps_the_best_and_stops_after_patience() -> None:
    x = torch.zeros(2, 1)
    best = Best.before(x, x, torch.zeros(2), patience=2)
    for number, values in enumerate([(1.0, 1.0), (2.0, 0.5), (0.0, 0.9), (1.0, 7.0), (9.0, 9.0)]):
        value = torch.tensor(values)
        best.offer(x + number, x, value, value)
    assert best.value.tolist() == [2.0, 1.0]  # both had stopped before the 9
    assert best.x.flatten().tolist() == [1.0, 0.0]
    assert best.stopped.tolist() == [True, True]


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "flow"])
def test_short_grids(name: str) -> None:
    from families import SCHEDULERS

    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(10)
    steps = Schedule.from_scheduler(scheduler)
    for through in (1, 3, None, 99):
        grid = short_grid(steps, through)
        assert grid[0].index == 0
        assert (grid[-1].alpha_next, grid[-1].sigma_next) == (
            steps[-1].alpha_next,
            steps[-1].sigma_next,
        )
        ratios = [step.alpha / step.sigma for step in grid]
        assert ratios == sorted(set(ratios))
        if through is not None and through < 10:
            assert len(grid) == through
        for step, after in pairwise(grid):
            assert (step.alpha_next, step.sigma_next) == (after.alpha, after.sigma)
        x = torch.randn(1, 4)
        for step in grid:
            x = ddim(step, x, torch.ones(1, 4)).mean
        assert float((x - 1).abs().max()) < 0.3  # all noise but the last level is gone
    if name == "ddim":
        assert [step.index for step in short_grid(steps, 4)] == [0, 2, 5, 7]


def test_refusals() -> None:
    with pytest.raises(RewardError, match=r"not differentiable.*gradient='zero-order'"):
        optimise(reward=BLIND)
    assert optimise(reward=BLIND, gradient="auto").rewards

    def cut(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return red(images.detach(), prompts)

    with pytest.raises(RewardError, match="carry no gradient"):
        optimise(reward=FunctionReward(cut, differentiable=True))

    def kink(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (images[:, 0] - images[:, 0]).mean((1, 2)).sqrt() + red(images, prompts)

    with pytest.raises(GradientError, match=r"not finite for prompt 0 \('a red circle'\)"):
        optimise(reward=FunctionReward(kink, differentiable=True, name="kink"))


def test_a_denoiser_without_gradients_is_named() -> None:
    pipe = build("sd")
    forward = pipe.unet.forward
    pipe.unet.forward = torch.no_grad()(forward)
    with pytest.raises(UnsupportedPipelineError, match="no gradient comes back"):
        guided(pipe, RED, method=NoiseOptimization(**SHORT))(**arguments("sd"))


def test_offloaded_weights_are_refused() -> None:
    from accelerate.hooks import CpuOffload, SequentialHook, add_hook_to_module

    pipe = build("sd")
    method = NoiseOptimization(**SHORT)
    add_hook_to_module(pipe.text_encoder, CpuOffload("cpu"))
    assert guided(pipe, RED, method=method)(**arguments("sd")).rewards
    add_hook_to_module(pipe.unet.mid_block, SequentialHook(CpuOffload("cpu")))
    with pytest.raises(UnsupportedPipelineError, match=r"pipe\.unet is offloaded"):
        guided(pipe, RED, method=method)(**arguments("sd"))


def test_calls_that_start_from_an_image_are_refused() -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline(**build("sd").components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(UnsupportedPipelineError, match="starts from an image"):
        guided(pipe, RED, method=NoiseOptimization(**SHORT))(
            "a red circle", torch.rand(1, 3, 16, 16), strength=0.5, num_inference_steps=4
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"iterations": 0}, "iterations=0"),
        ({"through": 0}, "through=0"),
        ({"through": 2.5}, "through=2.5"),
        ({"ascent": "reno"}, r"ascent='reno': must be Sphere\(...\) or ReNO"),
        ({"gradient": "none"}, "gradient='none'"),
        ({"finish": "no"}, "finish='no'"),
        ({"starts": True}, "starts=True"),
        ({"patience": 0}, "patience=0"),
        ({"leash": 0.0}, r"leash=0\.0"),
        ({"leash": 1.0, "monitor": "clip"}, r"leash=1\.0 with monitor='clip'.*give one of them"),
    ],
)
def test_bad_arguments(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseOptimization(**given)


@pytest.mark.parametrize(
    ("part", "given", "message"),
    [
        (Sphere, {"step": -1.0}, r"step=-1\.0"),
        (ReNO, {"step": float("nan")}, "step=nan"),
        (Sphere, {"momentum": 1.0}, r"momentum=1\.0"),
        (Sphere, {"max_angle": 0}, "max_angle=0"),
        (Sphere, {"block": 0}, "block=0"),
        (ReNO, {"clip": None}, "clip=None"),
        (ReNO, {"weight": -0.1}, r"weight=-0\.1"),
        (ZeroOrder, {"angle": 90}, "angle=90"),
        (ZeroOrder, {"directions": 0}, "directions=0"),
    ],
)
def test_bad_parts(part: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part(**given)


def test_planning_for_a_budget() -> None:
    for compute in (3, 4, 7.5, 8, 16):
        for steps in (8, 20, 50):
            plan = NoiseOptimization.for_compute(compute, steps)
            assert plan.cost(steps) <= compute * steps
            more = NoiseOptimization(iterations=plan.iterations + 1)
            assert more.cost(steps) > compute * steps
    with pytest.raises(ValueError, match=r"compute=2: one iteration .* costs 2\.2 plain calls"):
        NoiseOptimization.for_compute(2, 20)
