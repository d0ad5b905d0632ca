"""`Blockwise` in pipelines: cost, what it reduces to, invariance to batches, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counted_work import agrees, counting
from families import arguments, redness, seeded, shared
from hypothesis import given, settings, strategies as st

from steer.methods import BestOfN, Blockwise, Gate
from steer.pipeline.guided import guided
from steer.search.kernels.rho import Rho


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(2, 60))
def test_it_costs_what_best_of_n_costs(n: int, block: int, steps: int) -> None:
    assert Blockwise(n, block).cost(steps) == BestOfN(n).cost(steps)


@pytest.mark.parametrize(
    ("method", "steps", "rows"),
    [
        (Blockwise(4, 5), 1, 4),
        (Blockwise((8, 4, 2), 2), 6, 8 + 8 * 2 + 4 * 2 + 2),
        (Blockwise((2, 6), 1), 4, 2 + 2 * 2 + 6),  # the last step alone has nothing to choose
        (Blockwise.for_compute(4.9, 20), 20, 80),
    ],
)
def test_cost(method: Blockwise, steps: int, rows: int) -> None:
    assert method.cost(steps) == rows


@pytest.mark.parametrize("method", [Blockwise(3, 2), Blockwise(2, 1), Blockwise((4, 1, 2), 2)])
def test_work_is_counted_as_it_is_done(method: Blockwise) -> None:
    pipe = shared("sd", "euler_a")
    with counting(pipe) as seen:
        given_ = arguments("sd", num_inference_steps=5, prompt=["a", "b"])
        out = guided(pipe, redness, method=method, lane_width=1)(**given_)
    assert agrees(seen, out.report) or seen.decodes == out.report.ledger.decodes
    assert seen.rows in (out.report.ledger.denoiser_rows, 2 * out.report.ledger.denoiser_rows)
    assert out.report.ledger.denoiser_rows == 2 * method.cost(5)


@pytest.mark.sample(0, 2)
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "sde-dpm++"])
def test_lanes_do_not_matter(scheduler: str) -> None:
    pipe, method = shared("sd", scheduler), Blockwise(3, 2)
    outs = [
        guided(pipe, redness, method=method, lane_width=width)(
            **arguments("sd", num_inference_steps=6, prompt=["a", "b"], num_images_per_prompt=2)
        )
        for width in (1, 3, 8)
    ]
    for out in outs[1:]:
        assert out.report.chosen == outs[0].report.chosen
        torch.testing.assert_close(out.images, outs[0].images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
def test_prompts_together_equal_prompts_apart(scheduler: str) -> None:
    steered = guided(shared("sd", scheduler), redness, method=Blockwise(2, 1))
    pair = lambda: [seeded(1), seeded(2)]  # noqa: E731
    both = steered(**arguments("sd", prompt=["a", "b"], generator=pair()))
    for number, text in enumerate("ab"):
        alone = steered(**arguments("sd", prompt=text, generator=pair()[number]))
        assert alone.rewards[0] == pytest.approx(both.rewards[number], abs=1e-5)
        assert alone.report.chosen[0][1] == both.report.chosen[number][1]


@pytest.mark.parametrize("scheduler", ["euler_a", "sde-dpm++"])
def test_one_block_is_best_of_n_and_one_way_the_plain_call(scheduler: str) -> None:
    pipe = shared("sd", scheduler)
    whole = guided(pipe, redness, method=Blockwise(3, 4))(**arguments("sd"))
    best = guided(pipe, redness, method=BestOfN(3))(**arguments("sd"))
    assert torch.equal(whole.images, best.images)
    alone = guided(pipe, redness, method=Blockwise(1, 1))(**arguments("sd"))
    assert torch.equal(alone.images, pipe(**arguments("sd"))[0])


def test_every_line_goes_on_from_its_own_best() -> None:
    """Two images: ways of different lines do not compete, even where one line has both best."""
    out = guided(shared("sd", "euler_a"), redness, method=Blockwise(2, 2))(
        **arguments("sd", num_inference_steps=4, num_images_per_prompt=2)
    )
    trace = out.report.trace
    first = next(row for row in trace.of("score") if row["preview"])
    reward = dict(zip(first["particle"], first["reward"], strict=True))
    lines = ((0, 2), (1, 3))  # dealt out in turn
    best = {max(line, key=reward.__getitem__) for line in lines}
    kept = next(row for row in trace.of("select") if "kept" in row)
    assert set(kept["kept"]) == best
    assert out.rewards == sorted(out.rewards, reverse=True)


def test_a_gate_around_it() -> None:
    method = Gate(Blockwise(2, 2), threshold=9, max_rounds=2)
    out = guided(shared("sd", "euler_a"), redness, method=method)(**arguments("sd"))
    assert out.report.ledger.denoiser_rows == method.cost(4)
    assert out.accepted == [False]


def test_blocks_without_noise_have_one_way() -> None:
    """sigma is 1, 0.9, 0.75 and 0.5 in four steps with shift 3."""
    late = Rho("flow-sde", noise_window=(0.0, 0.76))
    for kernel, rows in (("flow-sde", 8), (late, 8), ("ode", 7)):
        method = Blockwise(2, 2, kernel=kernel)
        out = guided(shared("sd3"), redness, method=method)(**arguments("sd3"))
        assert out.report.ledger.denoiser_rows == rows
        assert out.images.isfinite().all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": 0}, "n=0"),
        ({"n": ()}, r"n=\(\)"),
        ({"n": (4, True)}, "n=True"),
        ({"block": 0}, "block=0"),
        ({"block": 2.5}, "block=2.5"),
        ({"eta": -1.0}, "eta=-1.0"),
        ({"kernel": "glass"}, "kernel='glass'"),
    ],
)
def test_bad_input(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Blockwise(**options)


def test_bad_compute() -> None:
    with pytest.raises(ValueError, match=r"compute=0\.5"):
        Blockwise.for_compute(0.5, 20)


def test_lists_become_tuples() -> None:
    assert Blockwise([2, 6]) == Blockwise((2, 6))  # pyright: ignore[reportArgumentType]
