"""Blends as values: weights, costs, schedules, and their text form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import steer
from steer.core.errors import UnsupportedPipelineError
from steer.driver.denoisers import Blend, Mix, linear, parse_blend, window
from steer.driver.denoisers.blend import cost, shown
from steer.driver.denoisers.checkpoints import Checkpoint
from steer.driver.denoisers.tensors import halves, joined, proxied, rows_of, weighted
from steer.methods import BestOfN
from steer.pipeline.plan import affordable, per_row


finite = st.floats(-8, 8, allow_nan=False).map(lambda x: round(x, 3))
shares = st.floats(0, 1, allow_nan=False).map(lambda x: round(x, 3))
schedules = st.one_of(
    finite,
    st.builds(linear, finite, finite),
    st.builds(
        lambda s, ends, o: window(s, min(ends), max(ends), o),
        finite,
        st.tuples(shares, shares),
        finite,
    ),
)
blends: st.SearchStrategy[Blend] = st.one_of(
    st.builds(steer.RLG, schedules),
    st.builds(steer.denoisers.SwitchAt, shares),
    st.builds(steer.denoisers.PreferenceGuidance, st.just("owner/worse"), schedules),
    st.builds(steer.denoisers.NegativeGuidance, st.just("a 'quoted' (path)/x.safetensors"), shares),
    st.builds(steer.denoisers.CHATS, st.just(Checkpoint("a/b", subfolder="unet_lose")), shares),
)


@given(blends)
def test_text_form_is_read_back(blend: Blend) -> None:
    assert parse_blend(repr(blend)) == blend


@given(blends, st.integers(1, 60))
def test_cost_is_the_dearest_step_and_rows_are_counted(blend: Blend, steps: int) -> None:
    rows = [blend.mix(index, steps).rows for index in range(steps)]
    assert cost(blend, steps) == max(rows)
    for index in range(steps):
        mix = blend.mix(index, steps)
        apart = mix.unconditional is not None
        sides = [mix.conditional, mix.unconditional if apart else mix.conditional]
        # both halves of a guided batch cost as many rows as their arms together, halved
        assert mix.rows == sum(sum(1 for w in (side or {}).values() if w) for side in sides) / 2


@given(schedules, st.integers(1, 60), st.data())
def test_rlg_weights_sum_to_one(scale: Any, steps: int, data: st.DataObject) -> None:
    weights = steer.RLG(scale).mix(data.draw(st.integers(0, steps - 1)), steps).conditional
    assert math.isclose(sum(weights.values()), 1.0, abs_tol=1e-9)


def test_scales_over_the_steps() -> None:
    def scales(scale: Any, steps: int) -> list[float]:
        return [steer.RLG(scale).mix(i, steps).conditional["tuned"] for i in range(steps)]

    assert scales(linear(1.0, 3.0), 5) == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert scales(linear(1.0, 3.0), 1) == [3.0]
    assert scales(window(2.0, 0.5, 1.0, outside=0.0), 4) == [0.0, 2.0, 2.0, 2.0]
    # the same steps as steer.between
    inside = [i for i, s in enumerate(scales(window(2.0, 0.25, 0.7), 20)) if s == 2.0]
    assert inside == steer.between(0.25, 0.7).indices(20)


@pytest.mark.parametrize(
    ("fraction", "steps", "first"), [(0.6, 50, 30), (0.7, 50, 35), (0.5, 5, 3)]
)
def test_switch_at_gives_the_first_steps_to_the_base(
    fraction: float, steps: int, first: int
) -> None:
    blend = steer.denoisers.SwitchAt(fraction)
    arms = [next(iter(blend.mix(index, steps).conditional)) for index in range(steps)]
    assert arms == ["base"] * first + ["tuned"] * (steps - first)


def test_names_in_any_case_and_with_dashes() -> None:
    assert parse_blend("rlg(2)") == steer.RLG(2)
    assert parse_blend("switch-at(0.5)") == steer.denoisers.SwitchAt(0.5)
    assert parse_blend("negative-guidance('a/b', merge=1)") == steer.denoisers.NegativeGuidance(
        "a/b", 1
    )
    assert parse_blend("RLG(scale=window(2.0, 0.2, 1.0))") == steer.RLG(window(2.0, 0.2, 1.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RGL(2.0)", "did you mean 'RLG'"),
        ("RLG(two)", "not a number"),
        ("RLG(float('inf'))", "unknown"),
        ("RLG()", "scale"),
        ("RLG(2.0", "cannot be read"),
        ("linear(1, 2)", "not a blend"),
        ("RLG(**{})", "without \\*\\*"),
        ("2.0", "not a blend"),
        ("SwitchAt(1.5)", "from 0 to 1"),
    ],
)
def test_text_that_is_no_blend(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_blend(text)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: steer.RLG(math.nan), "scale=nan.*or a schedule"),
        (lambda: steer.RLG("2"), "scale='2'"),  # pyright: ignore[reportArgumentType]
        (lambda: steer.RLG(True), "scale=True"),
        (lambda: steer.denoisers.SwitchAt(-0.1), "fraction=-0.1"),
        (lambda: linear(1, math.inf), "end=inf"),
        (lambda: window(2, 0.6, 0.4), "must not end before"),
        (lambda: window(2, 0.6, 1.4), "end=1.4"),
        (lambda: steer.denoisers.NegativeGuidance(""), "negative=''"),
        (lambda: steer.denoisers.NegativeGuidance("a/b", merge=2), "merge=2"),
        (lambda: steer.denoisers.CHATS(None), "dispreferred=None"),
        (lambda: steer.denoisers.CHATS("a/b", proxy=-1), "proxy=-1"),
        (lambda: steer.denoisers.PreferenceGuidance("a/b", scale=math.inf), "scale=inf"),
        (lambda: Mix({"base": 0.0}), "must not be 0"),
    ],
)
def test_arguments_out_of_range_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_long_repr_is_cut() -> None:
    assert (
        shown(steer.denoisers.NegativeGuidance("a/b"))
        == "NegativeGuidance(negative='a/b', merge=0.0)"
    )
    deep = nn.Sequential(*(nn.Linear(2, 2) for _ in range(20)))
    assert shown(steer.denoisers.NegativeGuidance(deep)) == "NegativeGuidance(...)"


class _Models:
    """As much of `Models` as the planning of compute looks at."""

    def __init__(self, blend: Blend) -> None:
        self.blend = blend

    def cost(self, steps: int) -> int:
        return cost(self.blend, steps)


@given(st.floats(3, 40), st.integers(1, 50), blends)
@settings(deadline=None)
def test_compute_counts_plain_calls_of_the_base(compute: float, steps: int, blend: Blend) -> None:
    models: Any = _Models(blend)
    method = affordable(compute, steps, models)
    assert method.cost(steps) * per_row(models, steps) <= compute * steps + 1e-6


def test_compute_below_one_blended_call_is_refused() -> None:
    models: Any = _Models(steer.RLG(2.0))
    with pytest.raises(ValueError, match=r"compute=1\.5.*2 denoisers per row.*compute=2"):
        affordable(1.5, 20, models)
    assert affordable(2, 4, models) == BestOfN(1)
    assert affordable(1.5, 4) == BestOfN(1)


# ---- what denoisers are given and answer ----


def _pack(x: torch.Tensor) -> Any:
    return ({"a": x, "b": (x + 1, 3)}, [x[0], x[1]])


def test_answers_are_weighed_whatever_they_are_packed_in() -> None:
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    total = weighted([_pack(a), _pack(b)], [0.25, 0.75])
    mean = 0.25 * a + 0.75 * b
    torch.testing.assert_close(total[0]["a"], mean)
    torch.testing.assert_close(total[0]["b"][0], mean + 1)
    assert total[0]["b"][1] == 3
    torch.testing.assert_close(torch.stack(total[1]), mean)
    answer = _pack(a)
    assert weighted([answer], [1.0]) is answer


def test_half_precision_is_weighed_in_single() -> None:
    a, b = torch.tensor([1000.0]).half(), torch.tensor([999.5]).half()
    total = weighted([a, b], [-7.0, 8.0])
    assert total.dtype == torch.float16
    assert total.item() == 996.0  # 7000 and 7996 have no exact half


def test_halves_and_joined_are_inverse() -> None:
    x = torch.randn(4, 2)
    given = {"x": x, "t": torch.tensor(3.0), "more": {"y": (x, x[:2])}, "list": list(x), "n": None}
    low, up = halves(given, 4)
    assert torch.equal(low["x"], x[:2]) and torch.equal(up["more"]["y"][0], x[2:])
    assert low["t"] is given["t"] and up["n"] is None
    assert torch.equal(low["more"]["y"][1], x[:2]) and torch.equal(up["more"]["y"][1], x[:2])
    assert len(low["list"]) == 2
    back = joined(*({name: half[name] for name in ("x", "list")} for half in (low, up)))
    assert isinstance(back, Mapping) and torch.equal(back["x"], x)
    assert torch.equal(torch.stack(back["list"]), x)


def test_rows_are_those_of_the_latents() -> None:
    x = torch.zeros(6, 2)
    assert rows_of((x, torch.tensor(1)), {}) == 6
    assert rows_of((), {"timestep": torch.tensor(1), "hidden_states": x}) == 6
    assert rows_of(([x, x],), {}) == 2


def test_a_proxy_needs_embeddings_that_can_be_mixed() -> None:
    x, y = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
    null = {"encoder_hidden_states": x, "added_cond_kwargs": {"text_embeds": x, "time_ids": x}}
    prompt = {"encoder_hidden_states": y, "added_cond_kwargs": {"text_embeds": y, "time_ids": y}}
    made = proxied(null, prompt, 0.5, "CHATS")
    torch.testing.assert_close(made["encoder_hidden_states"], 1.5 * x)
    torch.testing.assert_close(made["added_cond_kwargs"]["text_embeds"], 1.5 * x)
    assert made["added_cond_kwargs"]["time_ids"] is x
    with pytest.raises(UnsupportedPipelineError, match="encoder_attention_mask"):
        proxied({**null, "encoder_attention_mask": x}, prompt, 0.5, "CHATS")
    with pytest.raises(UnsupportedPipelineError, match="no encoder_hidden_states"):
        proxied({"y": x}, {"y": y}, 0.5, "CHATS")
