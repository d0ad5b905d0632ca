"""Gradients of a short run: against autograd through an independent loop, and differences of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import arguments, build
from torch import Tensor

from steer.core.ledger import Ledger
from steer.core.meter import Meter
from steer.core.sphere import angles, radius, tangent
from steer.core.types import Population, Search, Step
from steer.methods.noise.ascent import ReNO, Sphere
from steer.pipeline.guided import guided
from steer.rewards.function import FunctionReward
from steer.search.context import Context
from steer.search.method import Method
from steer.search.short_runs import Leash, probe, short_grid, slope
from steer.search.starts import Starts


def curved(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A reward with curvature everywhere."""
    wave = torch.sin(3.0 * images[:, 0]) + images[:, 1] * images[:, 2]
    return 100.0 * wave.mean((1, 2))


CURVED = FunctionReward(curved, differentiable=True, needs_prompt=False)


class Ask(Method):
    """A method that asks for one gradient, keeps it, and gives up."""

    n = 3

    def __init__(self, through: int | None, checkpoint: bool = False) -> None:
        self.through, self.checkpoint = through, checkpoint

    def cost(self, steps: int) -> int:
        return 10 * steps

    def __call__(self, ctx: Context, start: Population) -> Search:
        self.start = start.x.clone()
        self.grid = short_grid(ctx.steps, self.through)
        before = ctx.ledger.denoiser_rows, ctx.ledger.backward_rows
        found = []
        for part in ctx.groups(start):
            found.append((yield from slope(ctx, part, self.grid, start.x.dtype, self.checkpoint)))
        self.gradient = torch.cat([one.gradient for one in found])
        self.reward = torch.cat([one.reward for one in found])
        self.rows = ctx.ledger.denoiser_rows - before[0]
        self.backward = ctx.ledger.backward_rows - before[1]
        return start.take([0])


def plain_reward(pipe: Any, x: Tensor, steps: int, guidance: float) -> Tensor:
    """DDIM (Song et al. 2020, eq. 12) through UNet and VAE, written out; (rows,) in x's dtype."""
    text, empty = pipe.encode_prompt("a red circle", "cpu", 1, True)
    text, empty = text.expand(len(x), -1, -1), empty.expand(len(x), -1, -1)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(4)
    times = [scheduler.timesteps[i * 4 // steps] for i in range(steps)]
    bars = [float(scheduler.alphas_cumprod[int(t)].double()) for t in times]
    bars.append(float(scheduler.final_alpha_cumprod.double()))
    for t, bar, after in zip(times, bars, bars[1:], strict=False):
        pair = pipe.unet(torch.cat([x, x]), t, torch.cat([empty, text])).sample
        base, conditional = pair.chunk(2)
        noise = base + guidance * (conditional - base)
        clean = (x - math.sqrt(1 - bar) * noise) / math.sqrt(bar)
        x = math.sqrt(after) * clean + math.sqrt(1 - after) * noise
    image = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    return curved((image / 2 + 0.5).clamp(0, 1), [])


@pytest.fixture(scope="module")
def pipe64() -> Any:
    return build("sd", "ddim", dtype=torch.float64)


def ask(pipe: Any, method: Ask, width: int = 1, family: str = "sd", **more: Any) -> Ask:
    guided(pipe, CURVED, method=method, lane_width=width)(**arguments(family, **more))
    return method


@pytest.mark.parametrize("through", [1, 2, None])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_equal_autograd_through_a_plain_loop(
    pipe64: Any, through: int | None, checkpoint: bool
) -> None:
    found = ask(pipe64, Ask(through, checkpoint))
    x = found.start.clone().requires_grad_()
    rewards = plain_reward(pipe64, x, through or 4, 7.5)
    (expected,) = torch.autograd.grad(rewards.sum(), x)
    assert found.gradient.dtype == torch.float64
    torch.testing.assert_close(found.reward.double(), rewards.detach(), rtol=1e-6, atol=1e-6)
    # decoded images and scores are float32
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.gradient, expected, rtol=1e-4, atol=1e-5 * scale)
    points = through or 4
    recomputed = 3 * (points - 1) if checkpoint else 0
    served = 1 if recomputed else 0  # the pipeline's first call answers what is asked first
    assert found.rows == 3 * points + recomputed - served
    assert found.backward == 3 * points


def test_gradients_match_finite_differences(pipe64: Any) -> None:
    found = ask(pipe64, Ask(2))
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        way = torch.randn(found.start.shape, generator=generator, dtype=torch.float64)
        h = 1e-5
        with torch.no_grad():
            up = plain_reward(pipe64, found.start + h * way, 2, 7.5)
            down = plain_reward(pipe64, found.start - h * way, 2, 7.5)
        expected = (up - down) / (2 * h)
        got = (found.gradient * way).flatten(1).sum(1)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_recomputing_and_retaining_agree_on_every_family(family: str) -> None:
    pipe = build(family)
    held = ask(pipe, Ask(None), family=family)
    lean = ask(pipe, Ask(None, checkpoint=True), family=family, width=1)
    wide = ask(pipe, Ask(2, checkpoint=True), family=family, width=3)
    narrow = ask(pipe, Ask(2), family=family)
    for a, b in ((held, lean), (wide, narrow)):
        size = float(a.gradient.abs().max())
        assert size > 0
        torch.testing.assert_close(a.gradient, b.gradient, rtol=1e-3, atol=1e-4 * size)


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_gradients_match_differences_of_the_run_itself(family: str) -> None:
    """On other families (float32): the reward's rise along the gradient is what it promises."""
    pipe = build(family)
    found = ask(pipe, Ask(2), family=family)
    way = found.gradient / found.gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    class Look(Ask):
        def __call__(self, ctx: Context, start: Population) -> Search:
            rewards = []
            for h in (0.02, -0.02):
                x = start.x + h * way
                rewards.append((yield from slope(ctx, start.at(x), found.grid, x.dtype, False)))
            self.rise = (rewards[0].reward - rewards[1].reward) / 0.04
            return start.take([0])

    look = Look(2)
    guided(pipe, CURVED, method=look, lane_width=3)(**arguments(family))
    expected = found.gradient.flatten(1).norm(dim=1)
    torch.testing.assert_close(look.rise, expected, rtol=2e-2, atol=1e-3)


MATRIX = torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
TARGET = torch.randn(6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


class Toy:
    """A linear denoiser and a concave reward: R(x) = b . A x - |A x|^2 / 2, by hand."""

    piece, prompts, pipe = 4, ("toy",), None
    steps = (Step(0, 1, torch.tensor(0), 0.0, 1.0, 1.0, 0.0, "sample"),)
    reward = CURVED

    def __init__(self) -> None:
        self.starts = Starts(seeds=(5,))
        self.ledger, self.meter = Ledger(), Meter()

    def backward(self, step: Step, rows: int) -> Any:
        return self.meter.count("row_backward", rows)

    def denoise(self, population: Population, step: Step, grad: bool = False) -> Any:
        yield from ()
        with torch.set_grad_enabled(grad):
            return population.x @ MATRIX.T

    def decode(self, x: Tensor, grad: bool = False) -> Tensor:
        return x.view(-1, 3, 1, 2)

    preview = decode

    def score(self, images: Tensor, ids: Any, reward: Any = None) -> Tensor:
        y = images.flatten(1)
        return y @ TARGET - 0.5 * (y * y).sum(1)


def finished(generator: Any) -> Any:
    with pytest.raises(StopIteration) as stop:
        next(generator)
    return stop.value.value


def toy_start(rows: int) -> Population:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return Population(x, tuple((0, k) for k in range(rows)))


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_gradient_of_a_linear_denoiser(checkpoint: bool) -> None:
    """grad R = A^T (b - A x), exactly."""
    toy: Any = Toy()
    start = toy_start(4)
    found = finished(slope(toy, start, short_grid(toy.steps, None), torch.float64, checkpoint))
    expected = (TARGET - start.x @ MATRIX.T) @ MATRIX
    torch.testing.assert_close(found.gradient, expected)
    torch.testing.assert_close(found.clean, start.x @ MATRIX.T)
    torch.testing.assert_close(found.reward, toy.score(found.clean, None))


def test_a_leash_takes_its_price_off_the_gradient() -> None:
    """R(x) - w |A x - y|^2 / d, by autograd; zero-order sees the same."""
    toy: Any = Toy()
    start, grid = toy_start(2), short_grid(toy.steps, None)
    leash = Leash(3.0, start.x.flip(0) @ MATRIX.T)
    leaf = start.x.clone().requires_grad_()
    clean = leaf @ MATRIX.T
    value = toy.score(clean, None) - 3.0 * ((clean - leash.start) ** 2).mean(1)
    (expected,) = torch.autograd.grad(value.sum(), leaf)
    found = finished(slope(toy, start, grid, torch.float64, False, leash))
    torch.testing.assert_close(found.gradient, expected)
    torch.testing.assert_close(found.reward - leash.price(found.clean), value.detach())
    torch.testing.assert_close(found.reward, toy.score(found.clean, None))
    flat = tangent(start.x, expected)
    near = finished(probe(toy, start, grid, torch.float64, 2000, 0.01, (0,), leash))
    assert (radius(near.gradient - flat) / radius(flat) < 3 * math.sqrt(5 / 2000)).all()
    torch.testing.assert_close(near.reward, toy.score(near.clean, None))


def test_block_spheres_find_the_best_direction_in_every_block() -> None:
    """A linear reward in one frequency: energy stays where the start has it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 16, 16, generator=generator, dtype=torch.float64)
    a = torch.ones(16, 16, dtype=torch.float64).expand_as(x)
    ends = {}
    for block in (None, 16):
        ascent, now, velocity = Sphere(block=block), x, None
        for _ in range(40):
            now, velocity = ascent.move(now, a, velocity, x, 1.0)
        torch.testing.assert_close(radius(now), radius(x))
        ends[block] = float((now * a).sum())
    assert ends[None] > 0.98 * float(radius(x) * radius(a))
    assert ends[16] < 0.35 * ends[None]  # two channels' lowest blocks: sqrt(2 * 16 / 512) = 0.25
    assert ends[16] > 5 * float((x * a).sum().abs())


def test_the_zero_order_gradient_is_unbiased() -> None:
    """Its mean is the exact gradient's tangential part; the best point asked is the best."""
    toy: Any = Toy()
    start, grid = toy_start(2), short_grid(toy.steps, None)
    exact = finished(slope(toy, start, grid, torch.float64, False)).gradient
    near = finished(probe(toy, start, grid, torch.float64, 2000, 0.01, (0,)))
    flat = tangent(start.x, exact)
    error = radius(near.gradient - flat) / radius(flat)
    assert (error < 3 * math.sqrt(5 / 2000)).all()  # m directions in D dimensions: sqrt(D / m)
    assert (near.gradient * start.x).sum(1).abs().max() < 1e-9
    assert angles(near.x, start.x).tolist() == pytest.approx([0.01] * 2)
    reached = near.reward - toy.score(start.x @ MATRIX.T, None)
    best = 0.01 * radius(start.x).flatten() * radius(flat).flatten()
    torch.testing.assert_close(reached, best, rtol=0.1, atol=0.0)
    again = finished(probe(toy, start, grid, torch.float64, 3, 0.01, (0,)))
    other = finished(probe(toy, start.take([1]), grid, torch.float64, 3, 0.01, (0,)))
    torch.testing.assert_close(again.gradient[1:], other.gradient)


def test_sphere_ascent_finds_the_optimum_of_a_linear_reward() -> None:
    """On a sphere of radius r the maximum of <a, x> is r a / |a|."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    a = torch.randn(50, generator=generator, dtype=torch.float64)
    ascent, start, velocity, r = Sphere(0.1, 0.7), x, None, x.norm(dim=1)
    values = []
    for _ in range(60):
        values.append(x @ a)
        x, velocity = ascent.move(x, a.expand_as(x), velocity, start, 1.0)
    torch.testing.assert_close(x.norm(dim=1), r)
    assert (torch.stack(values).amax(0) > 0.98 * r * a.norm()).all()


def test_reno_equals_torch_sgd_on_the_published_loss() -> None:
    """The update against torch's SGD and `clip_grad_norm_` on autograd of the loss, in noise z."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    a = torch.randn(30, generator=generator, dtype=torch.float64)
    scale = 14.6
    ascent, velocity = ReNO(step=5.0, momentum=0.9, clip=0.1, weight=0.01), None
    x = start = scale * z

    def reward(unit: Tensor) -> Tensor:
        return 0.05 * torch.tanh(unit @ a)

    parameters = [torch.nn.Parameter(row.clone()) for row in z]
    optimizers = [torch.optim.SGD([p], lr=5.0, momentum=0.9, nesterov=True) for p in parameters]
    for _ in range(6):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(reward(leaf / scale).sum(), leaf)
        x, velocity = ascent.move(x, gradient, velocity, start, scale)
        for parameter, optimizer in zip(parameters, optimizers, strict=True):
            optimizer.zero_grad()
            norm = parameter.norm()
            penalty = 0.5 * norm**2 - (30 - 1) * norm.log()
            (-reward(parameter) + 0.01 * penalty).backward()
            torch.nn.utils.clip_grad_norm_([parameter], 0.1)
            optimizer.step()
        torch.testing.assert_close(x / scale, torch.stack([p.detach() for p in parameters]))
