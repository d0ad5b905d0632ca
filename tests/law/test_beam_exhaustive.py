"""`Beam` and `Blockwise` where every path can be written down: noise of plus or minus one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from toy import SCHEDULERS, Mixture, Toy, on_points, run

from steer.driver.grid import Schedule
from steer.methods import Beam, Blockwise
from steer.search.starts import Starts


TWO = Mixture([[-2.0], [1.0]], [0.5, 0.4], [0.3, 0.7])
STEPS = 4


def reward(x: float) -> float:
    return math.sin(5 * x) - 0.1 * (x - 0.4) ** 2


REWARD = on_points(lambda x: torch.sin(5 * x[:, 0]) - 0.1 * (x[:, 0] - 0.4) ** 2)


@pytest.fixture(autouse=True)
def _signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children of a particle move with noise +1, -1, +1, ... instead of random noise."""

    def noise(self: Starts, names: Any, salt: Any, like: Any) -> Any:
        signs = torch.tensor([1.0 if row % 2 == 0 else -1.0 for row in range(len(names))])
        return signs.view(-1, 1, 1, 1).expand(len(names), *like.shape[1:]).to(like.dtype)

    monkeypatch.setattr(Starts, "noise", noise)


class Reference:
    """The DDIM(1) chain in float64, written out from the grid's coefficients."""

    def __init__(self) -> None:
        scheduler = SCHEDULERS["ddim"]()
        scheduler.set_timesteps(STEPS)
        self.grid = list(Schedule.from_scheduler(scheduler))

    def x0(self, index: int, x: float) -> float:
        step = self.grid[index]
        one = torch.ones(1, dtype=torch.float64)
        answer = TWO.posterior_mean(
            torch.tensor([[x]], dtype=torch.float64), step.alpha * one, step.sigma * one
        )
        return float(answer)

    def move(self, index: int, x: float, sign: float, eta: float = 1.0) -> float:
        step = self.grid[index]
        clean = self.x0(index, x)
        ratio = 0.0
        if step.sigma_next > 0:
            ratio = step.alpha * step.sigma_next / (step.alpha_next * step.sigma)
        fresh = eta * math.sqrt(1 - ratio**2)
        kept = math.sqrt(1 - fresh**2)
        epsilon = (x - step.alpha * clean) / step.sigma
        return step.alpha_next * clean + step.sigma_next * (kept * epsilon + fresh * sign)

    def ahead(self, index: int, x: float, count: int) -> float:
        """`count` deterministic steps from point `index` to the end, on the grid itself."""
        for at in range(index, index + count - 1):
            x = self.move(at, x, 0.0, eta=0.0)
        return self.x0(index + count - 1, x)

    def path(self, x: float, signs: tuple[float, ...]) -> float:
        for index, sign in enumerate((*signs, 0.0)):
            x = self.move(index, x, sign)
        return x


def found(method: Any, n: int = 1, seed: int = 3) -> tuple[float, float]:
    """What a method makes of one noise, and that noise."""
    noise: list[float] = []

    def search(ctx: Any, start: Any) -> Any:
        noise.append(float(start.x[0]))
        return (yield from method(ctx, start))

    best, _ = run(Toy(TWO, dtype=torch.float64), search, n, REWARD, steps=STEPS, seed=seed, width=1)
    return float(best.x.flatten()[0]), noise[0]


def greedy(judge: Callable[[int, float], float], x: float) -> float:
    """The better of both signs at every step."""
    reference = Reference()
    for index in range(STEPS - 1):
        both = [reference.move(index, x, sign) for sign in (1.0, -1.0)]
        x = max(both, key=lambda y, at=index + 1: reward(judge(at, y)))
    return reference.move(STEPS - 1, x, 0.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("lookahead", [1, 3])
def test_a_full_width_beam_is_exhaustive_search(seed: int, lookahead: int) -> None:
    best, noise = found(Beam((1, 2, 4, 8), 2, lookahead=lookahead), seed=seed)
    reference = Reference()
    paths = [reference.path(noise, signs) for signs in itertools.product((1.0, -1.0), repeat=3)]
    assert len({round(x, 9) for x in paths}) == 8
    assert best == pytest.approx(max(paths, key=reward), abs=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("lookahead", [1, 2, 9])
def test_one_beam_is_greedy_by_its_lookahead(seed: int, lookahead: int) -> None:
    """9 steps of lookahead are as many as are left; 2 are two evenly spread ones."""
    best, noise = found(Beam(1, 2, lookahead=lookahead), seed=seed)
    reference = Reference()

    def judge(at: int, x: float) -> float:
        left = STEPS - at
        if lookahead == 2 and left == 3:  # the points 1 and 2 of 1, 2, 3
            return _two(reference, at, x)
        return reference.ahead(at, x, min(lookahead, left))

    assert best == pytest.approx(greedy(judge, noise), abs=1e-5)


def _two(reference: Reference, at: int, x: float) -> float:
    """Two deterministic steps over three points: from the first to the second, then to the end."""
    return reference.x0(at + 1, reference.move(at, x, 0.0, eta=0.0))


def test_a_wider_beam_finds_no_less_here() -> None:
    rewards = [reward(found(Beam(beams, 2), seed=1)[0]) for beams in (1, (1, 2), (1, 2, 4, 8))]
    assert rewards[0] <= rewards[1] + 1e-9 <= rewards[2] + 2e-9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blocks_of_one_are_greedy_by_their_previews(seed: int) -> None:
    """SVDD: from one noise the same choices as a beam of one."""
    best, noise = found(Blockwise((1, 2, 2, 2), 1), seed=seed)
    reference = Reference()
    x = reference.move(0, noise, 1.0)  # the first block has one way here
    for index in (1, 2):
        both = [reference.move(index, x, sign) for sign in (1.0, -1.0)]
        x = max(both, key=lambda y, at=index + 1: reward(reference.x0(at, y)))
    assert best == pytest.approx(reference.move(3, x, 0.0), abs=1e-5)


def test_blocks_of_two_choose_among_whole_blocks() -> None:
    """Children differ by all of their noises: +, + or -, - (a row keeps its sign here)."""
    best, noise = found(Blockwise((1, 2), 2), seed=0)
    reference = Reference()
    x = reference.move(1, reference.move(0, noise, 1.0), 1.0)
    ends = [reference.move(3, reference.move(2, x, sign), 0.0) for sign in (1.0, -1.0)]
    assert best == pytest.approx(max(ends, key=reward), abs=1e-5)
