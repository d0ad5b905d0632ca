"""`Then` and `Budget`: composition, and a limit that holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import arguments, build, seeded, shared
from torch import Tensor

from steer.methods import (
    BestOfN,
    Budget,
    Gate,
    Method,
    NoiseOptimization,
    NoiseSearch,
    Prune,
    Sphere,
    Then,
)
from steer.pipeline.guided import guided
from steer.rewards.function import FunctionReward


def red(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2))


RED = FunctionReward(red, differentiable=True, needs_prompt=False)
CLIMB = NoiseOptimization(iterations=3, through=2)


def run(method: Any, width: int | None = None, family: str = "sd", **more: Any) -> Any:
    return guided(shared(family), RED, method=method, lane_width=width)(**arguments(family, **more))


@pytest.mark.parametrize("first", [BestOfN(4), NoiseSearch(n=2, rounds=2), Prune(4, (2,), (0.5,))])
def test_the_second_climbs_from_the_firsts_best(first: Any) -> None:
    alone, both = run(first), run(Then(first, CLIMB))
    assert both.rewards[0] > alone.rewards[0]
    ledger = both.report.ledger
    # the first's best is finished already: it is not sampled again
    assert ledger.equivalent_rows == first.cost(4) + CLIMB.cost(4) - 4
    assert ledger.equivalent_rows <= both.report.method.cost(4)


def test_never_worse_than_the_first() -> None:
    wild = NoiseOptimization(2, through=2, ascent=Sphere(step=30.0), keep_start=False)
    alone, both = run(BestOfN(3)), run(Then(BestOfN(3), wild))
    assert both.rewards[0] >= alone.rewards[0]


def test_the_noise_handed_over_is_the_winners() -> None:
    seen: list[Tensor] = []

    class Look(Method):
        n = 2

        def cost(self, steps: int) -> int:
            return 0

        def __call__(self, ctx: Any, start: Any) -> Any:
            yield from ()
            seen.append(start.x)
            ranked = sorted((k for k in ctx.finals if k[1] < 4), key=lambda k: -ctx.finals[k])
            assert [ctx.starts.origin[name] for name in start.ids] == ranked[:2]
            ctx.finals |= dict.fromkeys(start.ids, -1.0)
            drawn = ctx.draw([k for _, k in ranked[:2]])
            assert torch.equal(drawn.x, start.x)
            return start

    run(Then(BestOfN(4), Look()))
    assert len(seen) == 1


def test_gates_and_images_around() -> None:
    both = Then(BestOfN(2), CLIMB)
    gated = run(Gate(both, threshold=9.0, max_rounds=2))
    assert gated.accepted == [False]
    assert gated.rewards[0] >= run(both).rewards[0]
    several = run(both, num_images_per_prompt=2, prompt=["a red circle", "a blue square"])
    assert len(several.rewards) == 4
    for pair in (several.rewards[:2], several.rewards[2:]):
        assert pair == sorted(pair, reverse=True)


def test_then_is_batch_invariant() -> None:
    method = Then(BestOfN(3), NoiseOptimization(iterations=2, through=2, starts=2))
    prompts = ["a red circle", "a blue square"]
    narrow, odd, wide = (
        run(method, width=w, prompt=prompts, generator=[seeded(0), seeded(1)]) for w in (1, 3, 8)
    )
    for other in (odd, wide):
        assert other.rewards == pytest.approx(narrow.rewards, abs=2e-5)
        assert other.report.chosen == narrow.report.chosen
    alone = run(method, prompt="a blue square", generator=[seeded(1)])
    assert alone.rewards[0] == pytest.approx(narrow.rewards[1], abs=2e-5)


@pytest.mark.sample
@pytest.mark.parametrize("compute", [1, 2.5, 8])
@pytest.mark.parametrize(
    "method",
    [
        BestOfN(8),
        Prune(8, (4, 2), (0.5, 0.75)),
        NoiseSearch(n=2, rounds=8),
        NoiseOptimization(iterations=40, through=2),
        NoiseOptimization(iterations=40, through=None, keep_start=False),
        Then(BestOfN(2), NoiseOptimization(iterations=40, through=2, starts=2)),
    ],
)
def test_a_budget_is_never_exceeded_and_never_worse_than_plain(compute: float, method: Any) -> None:
    pipe, rows = build_counted()
    out = guided(pipe, RED, method=Budget(compute, method))(**arguments("sd"))
    ledger = out.report.ledger
    assert ledger.equivalent_rows <= compute * 4
    assert ledger.denoiser_rows + ledger.checked_rows == sum(rows)
    assert len(out.rewards) == 1
    plain = run(BestOfN(1))
    if not isinstance(method, Prune) and getattr(method, "keep_start", True):
        assert out.rewards[0] >= plain.rewards[0] - 1e-6


_COUNTED: list[Any] = []


def build_counted() -> tuple[Any, list[int]]:
    """One pipeline with a hook that counts denoiser rows, and an empty list for them."""
    if not _COUNTED:
        pipe, rows = build("sd"), []
        pipe.unet.conv_in.register_forward_hook(lambda m, i, o: rows.append(len(o) // 2))
        _COUNTED.extend((pipe, rows))
    _COUNTED[1].clear()
    return _COUNTED[0], _COUNTED[1]


def test_more_budget_is_never_worse() -> None:
    search = NoiseSearch(n=2, rounds=8)
    rewards = [run(Budget(c, search), width=1).rewards[0] for c in (1, 2, 4, 8, 99)]
    assert rewards == sorted(rewards)
    assert rewards[-1] == run(search, width=1).rewards[0]


def test_climbing_ends_in_good_time_to_sample_what_it_found() -> None:
    out = run(Budget(6, NoiseOptimization(iterations=99, through=2)))
    assert out.rewards[0] > out.report.base_reward[0]
    assert out.report.ledger.equivalent_rows > 6 * 4 - 7  # and wastes less than an iteration
    assert not out.report.trace.of("budget")
    starved = run(Budget(2, NoiseOptimization(iterations=99, through=2)))
    assert starved.report.chosen == [(0, 0)]


def test_budgets_nest_and_leave_nothing_behind() -> None:
    inner = Budget(3, BestOfN(50))
    both = run(Budget(2, inner))
    assert both.report.ledger.equivalent_rows <= 8
    gated = run(Gate(inner, threshold=9.0, max_rounds=2))
    assert gated.report.ledger.equivalent_rows <= 2 * 3 * 4
    assert gated.rewards[0] >= both.rewards[0]


def test_several_prompts_share_the_budget() -> None:
    out = run(
        Budget(3, BestOfN(50)), prompt=["a red circle", "a blue square"], num_images_per_prompt=2
    )
    assert len(out.rewards) == 4
    assert out.report.ledger.equivalent_rows <= 3 * 4 * 4


def test_a_lane_beyond_the_budget_where_padding_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steer.pipeline.widths.can_narrow", lambda pipe: False)
    with pytest.raises(ValueError, match="width=4 with compute=2"):
        run(Budget(2, BestOfN(8)), width=4)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"compute=0\.5"):
        Budget(0.5, BestOfN(2))
    with pytest.raises(ValueError, match="compute=nan"):
        Budget(float("nan"), BestOfN(2))
    with pytest.raises(ValueError, match="method=4"):
        Budget(2, 4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="first='x'"):
        Then("x", CLIMB)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="put it outside"):
        Then(BestOfN(2), Gate(BestOfN(2), threshold=0.5))
    with pytest.raises(ValueError, match=r"starts from 3 noises per prompt.*finished 2"):
        run(Then(BestOfN(2), NoiseOptimization(starts=3)))
