"""Losses of pairs against their derivatives, targets, expectations and limits, in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
from families import build, seeded
from hypothesis import given, settings, strategies as st
from tiny_sets import rows, tiny_config as config, write_set
from torch import Tensor

from steer.tune import TuneConfig, TuneError, tune
from steer.tune.objectives import poly_dpo, squared_error
from steer.tune.pair_objectives import (
    dmpo,
    dpo_positive,
    guarded_loser,
    ipo,
    mapo,
    robust_dpo,
    smoothing,
    soft_dpo,
)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def slope(loss: Tensor, at: Tensor) -> list[float]:
    return torch.autograd.grad(loss.sum(), at)[0].tolist()


@given(st.floats(-12, 12), st.floats(0.001, 0.4))
@settings(max_examples=50, deadline=None)
def test_dmpo_pulls_to_its_margin_and_lets_hopeless_pairs_go(at: float, alpha: float) -> None:
    m = double(at)
    p, target = 1 / (1 + math.exp(-at)), math.log((1 - alpha) / alpha)
    assert slope(dmpo(m, alpha), m)[0] == pytest.approx(p * (1 - p) * (at - target), abs=1e-9)
    assert float(dmpo(double(target), alpha).detach()) == pytest.approx(0, abs=1e-12)


def test_dmpo_at_known_points() -> None:
    m = double(0.0, 4.59511985)
    assert slope(dmpo(m), m) == pytest.approx([-1.14878, 0], abs=1e-5)


@given(st.floats(-20, 20), st.floats(0, 0.45))
@settings(max_examples=50, deadline=None)
def test_robust_dpo_is_unbiased_under_flips(at: float, flips: float) -> None:
    m = double(at)
    mean = (1 - flips) * robust_dpo(m, flips) + flips * robust_dpo(-m, flips)
    assert float(mean.detach()) == pytest.approx(float(poly_dpo(m).detach()), rel=1e-9, abs=1e-12)
    assert torch.equal(robust_dpo(m, 0.0), poly_dpo(m))


def test_mapo_is_its_formula_and_finite_where_errors_are_zero() -> None:
    w, loser = double(0.0, 0.2, 1.5), double(0.0, 0.3, 0.4)

    def f(e: float) -> float:
        return 1.0 if e == 0 else 0.5 * e / (math.exp(0.5 * e) - 1)

    expected = [
        a + 0.1 * math.log1p(math.exp(min(700, -1000 * (f(a) - f(b)))))
        for a, b in zip(w.tolist(), loser.tolist(), strict=True)
    ]
    assert mapo(w, loser).tolist() == pytest.approx(expected, rel=1e-9)
    to_w, to_l = torch.autograd.grad(mapo(w, loser)[0], (w, loser))
    assert float(to_w[0]) == pytest.approx(1 + 0.1 * 1000 * 0.25 / 2)  # f'(0) = -s / 2
    assert float(to_l[0]) == pytest.approx(-0.1 * 1000 * 0.25 / 2)


def test_the_guard_keeps_the_values_and_the_winners_improvement() -> None:
    """With one layer under both rows, a step on E_w - E_l lowers E_w at least by that share."""
    draw = seeded(3)
    e_w = torch.randn(64, 8, generator=draw, dtype=torch.float64)
    e_l = torch.randn(64, 8, generator=draw, dtype=torch.float64) * 1.5 + 0.8 * e_w
    product, mu = (e_w * e_l).mean(1), 0.7
    winner, loser = (squared_error(e, torch.zeros_like(e)).requires_grad_() for e in (e_w, e_l))
    found = guarded_loser(winner, loser, product, mu)
    assert torch.equal(found, loser)
    factor = torch.autograd.grad(found.sum(), loser)[0]
    assert (factor[product <= 0] == 1).all() and bool(((factor >= 0) & (factor <= 1)).all())
    # gradients in prediction space are e_w and factor e_l; E_w changes by -<e_w, e_w - factor e_l>
    change = -((e_w * e_w).mean(1) - factor * product)
    assert bool((change <= -mu * winner.detach() + 1e-12).all())
    inside = (factor > 0) & (factor < 1) & (product > 0)
    assert int(inside.sum()) > 10
    torch.testing.assert_close(change[inside], -mu * winner.detach()[inside], rtol=1e-9, atol=0)


def test_settings_out_of_range_are_refused() -> None:
    one = torch.ones(1)
    for call, message in (
        (lambda: dmpo(one, 0.5), r"alpha=0\.5"),
        (lambda: robust_dpo(one, 0.5), r"flips=0\.5"),
        (lambda: mapo(one, one, 0), "beta=0"),
        (lambda: guarded_loser(one, one, one, 2), "guard=2"),
    ):
        with pytest.raises(TuneError, match=message):
            call()


@pytest.mark.parametrize(
    "objective",
    ["dmpo", "rdpo", "mapo", {"name": "dpo", "beta": 50, "guard": 0.9}],
    ids=["dmpo", "rdpo", "mapo", "guard"],
)
def test_the_trainer_takes_them(objective: Any, tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    job = config(tmp_path / "run", write_set(tmp_path / "data"), objective=objective, steps=2)
    assert tune(job, build("sd")).is_dir()
    log = rows(tmp_path / "run")
    assert all(row["grad_norm"] > 0 for row in log)
    if isinstance(objective, dict):  # the guard changes gradients and no values
        assert log[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)


@given(st.floats(-6, 6), st.floats(0.05, 0.95))
@settings(max_examples=30, deadline=None)
def test_soft_labels_pull_to_their_own_log_odds(at: float, share: float) -> None:
    m, p = double(at), 1 / (1 + math.exp(-at))
    assert slope(soft_dpo(m, share), m)[0] == pytest.approx(p - share, abs=1e-9)
    assert soft_dpo(m, 1.0).item() == pytest.approx(poly_dpo(m, 0.0).item())
    pairs = double(at, at)
    shares = torch.tensor([share, 1 - share], dtype=torch.float64)
    assert slope(soft_dpo(pairs, shares), pairs) == pytest.approx([p - share, p - 1 + share])


def test_soft_labels_correct_what_robust_ones_undo() -> None:
    """The mean of robust DPO over flips is DPO's; that of conservative labels is softened twice."""
    m, e = double(-1.0, 0.3, 2.0), 0.2
    mean = (1 - e) * robust_dpo(m, e) + e * robust_dpo(-m, e)
    torch.testing.assert_close(mean, soft_dpo(m, 1.0))
    mixed = (1 - e) * soft_dpo(m, 1 - e) + e * soft_dpo(-m, 1 - e)
    torch.testing.assert_close(mixed, soft_dpo(m, (1 - e) ** 2 + e**2))


@given(st.floats(-6, 6), st.floats(-6, 6), st.floats(0, 10))
@settings(max_examples=30, deadline=None)
def test_dpo_positive_charges_winners_for_what_they_lost(w: float, loser: float, k: float) -> None:
    """At the paper's terms: log(pi_ref / pi) of the winner where that is positive, times k."""
    won, lost = double(w), double(loser)
    m = w - loser - k * max(0.0, -w)
    found = dpo_positive(won, lost, k)
    assert found.item() == pytest.approx(float(poly_dpo(double(m)).detach()), rel=1e-9, abs=1e-12)
    pull = 1 / (1 + math.exp(m))
    assert slope(found, lost)[0] == pytest.approx(pull, abs=1e-9)
    if abs(w) > 1e-6:
        again = dpo_positive(won, lost, k)
        assert slope(again, won)[0] == pytest.approx(-pull * (1 + k * (w < 0)), abs=1e-8)


def test_a_run_of_dpo_positive_begins_as_dpo(tmp_path: Path) -> None:
    data, norms = write_set(tmp_path / "data", "sd"), {}
    for name in ("dpo", "dpop"):
        AcceleratorState._reset_state(reset_partial_state=True)
        own = config(tmp_path / name, data, objective={"name": name, "beta": 1e4}, steps=2)
        tune(own, build("sd"))
        norms[name] = [row["grad_norm"] for row in rows(tmp_path / name)]
    assert norms["dpo"][0] == pytest.approx(norms["dpop"][0], rel=1e-6)
    assert norms["dpo"][1] != norms["dpop"][1]


def test_ipo_has_its_papers_margin() -> None:
    beta, h = 20.0, double(0.01, 0.025, 0.2)
    torch.testing.assert_close(ipo(beta * h), beta**2 * (h - 1 / (2 * beta)).square())
    assert slope(ipo(beta * h), h)[1] == pytest.approx(0, abs=1e-12)


def test_smoothed_pairs_pull_by_how_certain_they_are() -> None:
    """k (2 p - 1) with p the softmax of both scores, each scaled to [0, 1] by the span."""
    scores, low, high = torch.tensor([0.25, 0.15]).double(), 0.115, 0.282
    p = ((scores - low) / (high - low)).softmax(0)[0]
    margin = (scores[0] - scores[1])[None]
    found = smoothing(margin, high - low)
    torch.testing.assert_close(found, 10 * (2 * p - 1)[None])
    assert smoothing(torch.zeros(1), 1.0).item() == 0
    assert smoothing(torch.tensor([1e3]), 1.0, 3.0).item() == pytest.approx(3.0)


def test_a_run_of_smoothed_pairs_reads_their_margins(tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    data = write_set(tmp_path / "data", "sd")
    first = []
    for span in (1e-6, 1.0):  # margins are 1: certain, or sigma(1)
        objective = {"name": "smpo", "beta": 1e4, "span": span, "factor": 1.0}
        tune(config(tmp_path / str(span), data, objective=objective, steps=1), build("sd"))
        AcceleratorState._reset_state(reset_partial_state=True)
        first.append(rows(tmp_path / str(span))[0]["grad_norm"])
    assert first[1] / first[0] == pytest.approx(2 / (1 + math.exp(-1)) - 1, rel=1e-4)


def _margins_of(data: Path, margin: float) -> Path:
    """The set with this margin for all pairs."""
    table = pq.read_table(data / "pairs.parquet")
    place = table.column_names.index("margin")
    margins = pa.array([margin] * len(table))
    pq.write_table(table.set_column(place, "margin", margins), data / "pairs.parquet")
    return data


@pytest.mark.parametrize(
    ("margin", "span", "share"),
    [
        (1.0, None, 1.0),
        (1 / 3, None, 2 / 3),
        (-0.5, None, 0.25),
        (0.3, 0.1, 1 / (1 + math.exp(-3))),
    ],
)
def test_a_run_of_soft_labels_pulls_by_the_share_of_votes(
    margin: float, span: float | None, share: float, tmp_path: Path
) -> None:
    """At the start sigma(m) is 1/2, so the slope is 1/2 minus the share; dpo's is -1/2."""
    data, norms = _margins_of(write_set(tmp_path / "data", "sd"), margin), {}
    for name in ("dpo", "soft_dpo"):
        AcceleratorState._reset_state(reset_partial_state=True)
        goal = {"name": name, "beta": 1e4} | ({"span": span} if name == "soft_dpo" else {})
        tune(config(tmp_path / name, data, objective=goal, steps=1), build("sd"))
        norms[name] = rows(tmp_path / name)[0]["grad_norm"]
    assert norms["soft_dpo"] / norms["dpo"] == pytest.approx(abs(2 * share - 1), rel=1e-4)


def test_margins_that_are_no_votes_are_refused_without_a_span(tmp_path: Path) -> None:
    data = _margins_of(write_set(tmp_path / "data", "sd"), 1.5)
    run = config(tmp_path / "run", data, objective="soft_dpo")
    with pytest.raises(TuneError, match=r"'soft_dpo': takes margins for shares.*up to 1\.5.*span"):
        tune(run, build("sd"))
    data = _margins_of(
        write_set(tmp_path / "other", "sd", config={"pairs": {"consensus": True}}), 0.5
    )
    with pytest.raises(TuneError, match=r"consensus: majority, or set span"):
        tune(config(tmp_path / "run", data, objective="soft_dpo"), build("sd"))
    rounds = {"count": 1, "updates": 1, "prompts": ["a"], "reward": "shapes"}
    with pytest.raises(TuneError, match=r"'soft_dpo' without span: rounds make pairs by"):
        TuneConfig.from_dict({"out": "x", "objective": "soft_dpo", "rounds": rounds})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda m: soft_dpo(m, 1.5), r"share=1\.5: must be in \[0, 1\]"),
        (lambda m: dpo_positive(m, m, -1.0), r"weight=-1\.0: must not be negative"),
        (lambda m: smoothing(m, 0.0), r"span=0\.0, factor=10\.0: must be positive"),
    ],
)
def test_soft_settings_out_of_range_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(TuneError, match=sentence):
        make(double(0.0))
