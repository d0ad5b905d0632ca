"""Sums, ensembles, minima and clipped gradients, against closed forms and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

import steer
from steer.core.errors import RewardError
from steer.rewards import names as names_module, reward
from steer.rewards.base import Composite, WeightedReward
from steer.rewards.combine.ensemble import RankEnsemble, Standardised
from steer.rewards.combine.minimum import FLOOR, AtLeast
from steer.rewards.function import FunctionReward
from steer.rewards.gradients import clip_rows, score_with_clipped_gradient
from steer.rewards.parts import check_absolute, is_relative


def table(column: int, name: str | None = None, **declared) -> FunctionReward:
    """A reward that reads its score off a pixel: column `column` of the image's only row."""

    def read(images, prompts):
        return 100 * (images[:, 0, 0, column] - 0.5)

    declared = {"differentiable": True, "needs_prompt": False} | declared
    return FunctionReward(read, name=name or f"t{column}", **declared)


def pictures(*columns) -> torch.Tensor:
    """Images of which `table(k)` reads `columns[k]` (within -50 to 50)."""
    rows = torch.tensor(np.stack([np.asarray(c, np.float64) for c in columns], 1)) / 100 + 0.5
    return rows[:, None, None, :].expand(-1, 3, 1, -1).clone()


FINITE = st.floats(-50, 50, allow_nan=False, width=32)
SCORES = arrays(np.float64, st.integers(1, 9), elements=st.integers(-40, 40).map(float))


def names(count: int, groups: int) -> list[str]:
    return [f"p{row % groups}" for row in range(count)]


def test_ranks_are_scipys_within_each_prompt() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-5, 6, (2, 40)).astype(float)
    prompts = names(40, 3)
    got = RankEnsemble([(table(0), 2.0), (table(1), -1.0)])(pictures(a, b), prompts)
    expected = np.empty(40)
    for prompt in set(prompts):
        rows = [i for i, p in enumerate(prompts) if p == prompt]
        up, down = scipy.stats.rankdata(a[rows]) - 1, scipy.stats.rankdata(-b[rows]) - 1
        expected[rows] = (2 * up + down) / 3 / (len(rows) - 1)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_standardised_is_scipys_zscore_within_each_prompt() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.uniform(-40, 40, (2, 30))
    prompts = names(30, 4)
    images = pictures(a, b)
    made = Standardised([(table(0), 0.7), (table(1), -0.3)])
    a, b = (p.double().numpy() for p in made.parts(images, prompts).values())
    expected = np.empty(30)
    for prompt in set(prompts):
        rows = [i for i, p in enumerate(prompts) if p == prompt]
        expected[rows] = 0.7 * scipy.stats.zscore(a[rows]) - 0.3 * scipy.stats.zscore(b[rows])
    np.testing.assert_allclose(made(images, prompts), expected, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(SCORES, st.sampled_from([np.tanh, np.cbrt, lambda x: 3 * x + 1, np.arcsinh]))
def test_ranks_know_no_scale(scores: np.ndarray, monotone) -> None:
    other = np.linspace(-10, 10, len(scores))
    mapped = 10 * monotone(scores / 10)
    made = RankEnsemble([(table(0), 1.0), (table(1), 0.5)])
    before, after = (made.combine(parts(values, other)) for values in (scores, mapped))
    assert torch.equal(before, after)
    assert float(before.mean()) == pytest.approx(0.5)
    assert bool(((before >= 0) & (before <= 1)).all())


@settings(deadline=None, max_examples=60)
@given(SCORES, st.floats(0.01, 100), st.floats(-100, 100))
def test_standardising_knows_no_scale_and_no_origin(scores, scale, shift) -> None:
    made = Standardised([(table(0), 1.0)])
    before, after = (made.combine(parts64(v)) for v in (scores, scale * scores + shift))
    assert torch.allclose(before, after, atol=1e-4)
    spread = float(before.double().std(correction=0))
    assert spread == pytest.approx(0.0 if np.ptp(scores) == 0 else 1.0, abs=1e-5)


def parts(*columns) -> dict[str, torch.Tensor]:
    return {
        f"t{k}": torch.tensor(np.asarray(c), dtype=torch.float32) for k, c in enumerate(columns)
    }


def parts64(*columns) -> dict[str, torch.Tensor]:
    return {f"t{k}": torch.tensor(np.asarray(c)) for k, c in enumerate(columns)}


@settings(deadline=None, max_examples=60)
@given(SCORES, st.floats(-30, 30), st.floats(0.1, 5))
def test_a_constant_part_changes_nothing(scores, constant, weight) -> None:
    both, alone = parts(scores, np.full(len(scores), constant)), parts(scores)
    terms = [(table(0), 1.0), (table(1), weight)]
    z = Standardised(terms).combine(both)
    assert torch.equal(z, Standardised(terms[:1]).combine(alone))
    mixed, plain = RankEnsemble(terms).combine(both), RankEnsemble(terms[:1]).combine(alone)
    assert torch.equal(order(mixed), order(plain))  # all ranks of the other part are the middle one


def order(values: torch.Tensor) -> torch.Tensor:
    return (values[:, None] - values[None, :]).mul(1e4).round().sign()


@settings(deadline=None, max_examples=40)
@given(SCORES, st.randoms(use_true_random=False), st.integers(1, 4))
def test_neither_order_nor_other_prompts_matter(scores, random, groups) -> None:
    keys = names(len(scores), groups)
    shuffled = list(range(len(scores)))
    random.shuffle(shuffled)
    for made in (RankEnsemble([(table(0), 1.0)]), Standardised([(table(0), 1.0)])):
        whole = made.combine(parts(scores), keys)
        mixed = made.combine(parts(scores[shuffled]), [keys[i] for i in shuffled])
        assert torch.allclose(mixed, whole[shuffled], atol=1e-6)
        for key in set(keys):
            rows = [i for i, other in enumerate(keys) if other == key]
            assert torch.allclose(made.combine(parts(scores[rows])), whole[rows], atol=1e-6)


def test_rounding_is_no_difference() -> None:
    noisy = {"t0": torch.tensor([0.3, 0.3 + 3e-8, 0.3 - 3e-8])}
    assert Standardised([(table(0), 1.0)]).combine(noisy).tolist() == [0, 0, 0]
    assert RankEnsemble([(table(0), 1.0)]).combine(noisy).tolist() == [0.5, 0.5, 0.5]


def test_one_candidate() -> None:
    assert RankEnsemble([(table(0), 1.0)])(pictures([7]), "a").tolist() == [0.5]
    assert Standardised([(table(0), 1.0)])(pictures([7]), "a").tolist() == [0.0]


@pytest.mark.parametrize("kind", [RankEnsemble, Standardised])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_candidate_leaves_the_others(kind, bad) -> None:
    made = kind([(table(0), 1.0)])
    found = made.combine(parts([1.0, bad, 3.0, 2.0]))
    assert found.isnan().tolist() == [False, True, False, False]
    assert torch.equal(found[[0, 2, 3]], made.combine(parts([1.0, 3.0, 2.0])))


def test_images_of_several_sizes_are_compared_with_each_other() -> None:
    def height(images, prompts):
        return torch.full((len(images),), float(images.shape[2]))

    images = [torch.rand(3, size, 4) for size in (6, 4, 5)]
    assert reward({height: 1.0}, combine="rank")(images, "a").tolist() == [1.0, 0.0, 0.5]


def test_an_ensemble_within_a_sum() -> None:
    a, b = [3.0, 1.0, 2.0], [0.1, 0.2, 0.3]
    inner = RankEnsemble([(table(0), 1.0), (table(1), 1.0)])
    total = 2 * inner + table(1)
    shown = total.parts(pictures(a, b), "x")
    assert list(shown) == ["rank(t0,t1)/t0", "rank(t0,t1)/t1", "t1"]
    assert total.relative and not total.differentiable
    expected = 2 * inner(pictures(a, b), "x") + torch.tensor(b)
    assert torch.allclose(total(pictures(a, b), "x"), expected, atol=1e-5)
    z = Standardised([(inner, 1.0)])
    ranks = inner(pictures(a, b), "x").double().numpy()
    np.testing.assert_allclose(z(pictures(a, b), "x"), scipy.stats.zscore(ranks), atol=1e-5)


def test_specs() -> None:
    spec = {table(0): 1, table(1): 2}
    assert isinstance(reward(spec), WeightedReward)
    ranked = reward(spec, combine="rank")
    assert isinstance(ranked, RankEnsemble) and ranked.name == "rank(t0=1,t1=2)"
    z = reward({table(0): 1, table(1): 1}, combine="standardise")
    assert isinstance(z, Standardised) and z.name == "standardise(t0,t1)"
    assert [is_relative(r) for r in (reward(spec), ranked, z, table(0))] == [
        False,
        True,
        True,
        False,
    ]
    assert ranked.range == (0.0, 1.0) and not ranked.needs_prompt
    assert reward(spec, clip_gradient=0.5).clip_gradient == 0.5


def test_ensembles_as_text(monkeypatch) -> None:
    monkeypatch.setattr(names_module, "_registered", {})
    for name, column in (("first", 0), ("second", 1)):
        steer.register_reward(name, needs_prompt=False)(table(column).function)
    for text in ("rank(first,second=0.5)", " rank( first , second = 0.5 ) "):
        made = reward(text)
        assert isinstance(made, RankEnsemble)
        assert made.weights == {"first": 1.0, "second": 0.5}
    assert isinstance(reward("standardise(first)", device="cpu"), Standardised)
    assert isinstance(reward("first=2"), WeightedReward)
    assert reward("first=2", minimum={"second": 0.0}).minimum == {"second": 0.0}
    for text, message in (
        ("rank(first,first)", "'first' appears twice"),
        ("rank()", "has no name"),
        ("rank(first,third)", "reward='third' is unknown"),
        ("mean(first)", "is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            reward(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "mean"}, "combine='mean': one of 'sum', 'rank', 'worst'"),
        ({"combine": "rank", "clip_gradient": 1.0}, "have no gradient; use combine='sum'"),
        ({"clip_gradient": 0.0}, r"clip_gradient=0.0: must be a finite number above 0"),
        ({"clip_gradient": math.inf}, "clip_gradient=inf"),
        ({"minimum": {}}, r"minimum={}: give scores by reward, such as {'aesthetic': 5.0}"),
        ({"penalty": 1.0}, r"minimum={}"),
        ({"minimum": {"t0": math.nan}}, "minimum=nan: must be a finite number"),
        ({"minimum": {"t0": 0}, "penalty": -1}, "penalty=-1: must be a finite number above 0"),
        ({"minimum": {"nothing": 0}}, "reward='nothing' is unknown"),
    ],
)
def test_refused_options(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        reward({table(0): 1.0}, **options)


def test_options_in_the_wrong_place() -> None:
    with pytest.raises(ValueError, match=r"combine= does not apply to a name: it goes with a dict"):
        reward("shapes", combine="rank")
    with pytest.raises(ValueError, match=r"combine= does not apply to a function"):
        reward(lambda images, prompts: images, combine="rank")
    with pytest.raises(ValueError, match=r"clip_gradient= does not apply to a reward object"):
        reward(table(0), clip_gradient=1.0)
    with pytest.raises(ValueError, match="one must not be zero"):
        reward({table(0): 0.0}, combine="rank")
    with pytest.raises(ValueError, match="needs a part"):
        reward({}, combine="rank")
    with pytest.raises(ValueError, match=r"len\(groups\)=2 for 3 images"):
        RankEnsemble([(table(0), 1.0)]).combine(parts([1.0, 2.0, 3.0]), ["a", "b"])


def test_relative_rewards_and_fixed_levels() -> None:
    ranked = reward({table(0): 1.0}, combine="rank")
    with pytest.raises(
        ValueError, match=r"threshold=0.5 cannot be held against reward 'rank\(t0\)'"
    ):
        check_absolute(ranked, "threshold=0.5")
    with pytest.raises(ValueError, match=r"minimum of 'rank\(t0\)'"):
        AtLeast(table(0), {ranked: 0.5})
    check_absolute(reward({table(0): 1.0}), "threshold=0.5")


@settings(deadline=None, max_examples=80)
@given(
    arrays(np.float32, (3, 12), elements=FINITE),
    st.sampled_from([-math.inf, -50.0, 0.0]),
    st.floats(-20, 20),
    st.floats(-20, 20),
)
def test_minima_come_first(scores, low, first, second) -> None:
    scores[0] = np.abs(scores[0]) if low == 0.0 else scores[0]
    judged = table(0, range=(low, 50.0))
    made = AtLeast(judged, {table(1): first, table(2): second})
    values = made.combine(parts(*scores))
    s = torch.tensor(scores)
    short = (first - s[1]).clamp(min=0) + (second - s[2]).clamp(min=0)
    kept = short == 0
    assert bool(torch.isfinite(values).all())
    assert torch.equal(values[kept], s[0][kept])
    assert bool((values[~kept] < (low if math.isfinite(low) else FLOOR)).all())
    assert made.range[0] <= float(values.min()) and float(values.max()) <= made.range[1]
    for i in range(12):
        for j in range(12):
            if short[i] > short[j] * 1.001 + 1e-3:
                assert values[i] < values[j]


def test_small_shortfalls_keep_their_order() -> None:
    unbounded, bounded = table(0), table(0, range=(-1.0, 1.0))
    short = torch.linspace(1e-3, 0.05, 50)
    for judged in (unbounded, bounded):
        values = AtLeast(judged, {table(1): 0.3}).combine({"t0": 0 * short, "t1": 0.3 - short})
        assert bool((values.diff() < 0).all())


def test_a_minimum_of_a_part_is_not_scored_twice() -> None:
    calls = []

    def counted(images, prompts):
        calls.append(len(images))
        return images.mean((1, 2, 3))

    one = FunctionReward(counted, name="one", range=(0.0, 1.0))
    mixed = WeightedReward([(one, 1.0), (table(1), 0.0)])
    for key in ("one", one):
        made = AtLeast(mixed, {key: 0.6})
        made(torch.rand(3, 3, 1, 2), "a")
        assert calls.pop() == 3 and not calls
    assert AtLeast(mixed, {"one": 0.6}).name == "one=1,t1=0 (one >= 0.6)"
    other = AtLeast(mixed, {table(0): 1.0}, floor=-7.0)
    assert list(other.parts(torch.rand(3, 3, 1, 2), "a")) == ["one", "t1", "t0"]
    assert other.floor == -7.0
    assert AtLeast(one, {"one": 0.6}).parts(torch.rand(2, 3, 1, 2), "a").keys() == {"one"}


def test_minima_and_frames_take_reward_objects() -> None:
    with pytest.raises(ValueError, match=r"'hpsv2' is not a reward: wrap it with steer.reward"):
        AtLeast("hpsv2", {table(0): 1.0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"smooth.* is not a reward: wrap it with steer.reward"):
        AtLeast(table(0), {smooth: 1.0})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"minimum of 'hps': no such part, there are t0, t1"):
        AtLeast(WeightedReward([(table(0), 1.0), (table(1), 1.0)]), {"hps": 1.0})
    other = AtLeast(table(0), {"mine": 1.0}, others={"mine": table(1)})
    assert (other.name, list(other.rewards)) == ("t0 (mine >= 1)", ["t0", "mine"])


def test_rewards_of_users_own_are_composed_by_structure() -> None:
    class Ranks:
        name, differentiable, range, needs_prompt = "mine", False, (0.0, 1.0), False
        relative, rewards = True, {"t0": table(0)}

        def parts(self, images, prompts):
            return {"t0": table(0)(images, prompts)}

        def combine(self, parts, groups=None):
            return parts["t0"] - parts["t0"].max()

        def __call__(self, images, prompts):
            return self.combine(self.parts(images, prompts))

    made = WeightedReward([(Ranks(), 2.0), (table(1), 1.0)])
    assert made.relative
    assert made(pictures([1, 2, 3], [5, 5, 5]), "a").tolist() == pytest.approx([1, 3, 5], abs=1e-4)
    with pytest.raises(ValueError, match="cannot be held against reward 'mine'"):
        check_absolute(Ranks(), "threshold=0.5")


def test_minima_of_an_ensemble() -> None:
    ranked = reward({table(0): 1.0, table(1): 1.0}, combine="rank", minimum={"t1": 2.0})
    assert ranked.relative and ranked.range == (-2.0, 1.0)
    values = ranked(pictures([1, 2, 3], [3, 2, 1]), "a")
    assert torch.allclose(values, torch.tensor([0.5, 0.5, -1.5]))


def test_a_reward_below_the_floor_is_named() -> None:
    made = AtLeast(table(0), {table(1): 0.0}, floor=-3.0)
    with pytest.raises(RewardError, match=r"'t0' scored -4, below floor=-3.*pass a lower floor="):
        made(pictures([-4.0], [1.0]), "a")


def test_the_hinge_and_its_gradient() -> None:
    images = pictures([1.0, 2.0, 3.0], [-1.0, 0.5, 4.0]).requires_grad_()
    made = reward({table(0): 2.0}, minimum={table(1): 1.0}, penalty=10.0)
    assert made.differentiable and not AtLeast(table(0), {table(1): 1.0}).differentiable
    values = made(images, "a")
    assert torch.allclose(values, torch.tensor([2.0 - 20, 4.0 - 5, 6.0]), atol=1e-4)
    values.sum().backward()
    slope = images.grad[:, 0, 0].float()
    assert torch.allclose(slope[:, 0], torch.full((3,), 200.0))
    assert torch.allclose(slope[:, 1], torch.tensor([1000.0, 1000.0, 0.0]))


def test_the_hinge_reaches_a_part_that_is_only_reported() -> None:
    images = pictures([1.0], [-1.0]).requires_grad_()
    made = AtLeast(WeightedReward([(table(0), 1.0), (table(1), 0.0)]), {"t1": 0.0}, penalty=1.0)
    made(images, "a").sum().backward()
    assert float(images.grad[0, 0, 0, 1]) == pytest.approx(100.0)


def smooth(images, prompts):
    return (images.flatten(1) ** 2).sum(1)


def steep(images, prompts):
    return 1e3 * images.flatten(1).sin().sum(1)


@pytest.mark.parametrize("limit", [0.1, 5.0, 1e6])
@pytest.mark.parametrize("scale", [1.0, 0.25, -3.0])
def test_clipped_gradients_are_those_of_the_parts(limit: float, scale: float) -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 5, 5, requires_grad=True)
    spec = {smooth: 0.5, steep: -2.0}
    for function in spec:
        function.differentiable = True
    made = reward(spec, clip_gradient=limit)
    values = made(images, "a")
    assert torch.equal(values, reward(spec)(images, "a"))
    (got,) = torch.autograd.grad((scale * values).sum(), images)
    expected = torch.zeros_like(images)
    for function, weight in spec.items():
        for row in range(4):
            (one,) = torch.autograd.grad(function(images[row : row + 1], "a").sum(), images)
            norm = float(one.norm())
            expected = expected + scale * weight * one * min(1.0, limit / norm)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_clipping_in_a_longer_graph_and_without_one() -> None:
    torch.manual_seed(0)
    latents = torch.rand(2, 3, 4, 4, requires_grad=True)
    made = reward({smooth: 1.0}, clip_gradient=0.5)
    made((latents * 0.5).clamp(0, 1), "a").mean().backward()
    norms = latents.grad.flatten(1).norm(dim=1)
    assert torch.allclose(norms, torch.full((2,), 0.5 * 0.5 / 2), atol=1e-6)
    assert not made(latents.detach(), "a").requires_grad
    with torch.no_grad():
        assert not made(latents, "a").requires_grad
    constant = FunctionReward(lambda i, p: torch.ones(len(i)), name="one", differentiable=True)

    def score(x):
        return constant(x, "a")

    assert not score_with_clipped_gradient(score, latents, 1.0).requires_grad


def test_zero_gradients_stay_zero() -> None:
    assert clip_rows(torch.zeros(2, 3), 1.0).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert clip_rows(torch.tensor([[3.0, 4.0]]), 1.0).tolist() == [pytest.approx([0.6, 0.8])]


def test_a_part_of_weight_zero_is_scored_without_gradient() -> None:
    seen = []

    def watched(images, prompts):
        seen.append(torch.is_grad_enabled())
        return images.mean((1, 2, 3))

    reward({smooth: 1.0, watched: 0.0})(torch.rand(1, 3, 2, 2, requires_grad=True), "a")
    assert seen == [False]


def test_sums_open_up_unless_they_clip() -> None:
    inner = reward({table(0): 2.0, table(1): 1.0})
    assert (0.5 * inner).weights == {"t0": 1.0, "t1": 0.5}
    clip = reward({table(0): 2.0}, clip_gradient=1.0)
    assert list((clip + table(1)).weights) == ["t0=2", "t1"]
    with pytest.raises(ValueError, match="must be a finite number"):
        _ = inner * math.nan


@pytest.fixture
def stand_ins(monkeypatch):
    """The presets' parts, replaced by functions that note how they were asked for."""
    asked: dict[str, dict] = {}

    def maker(name: str, column: int):
        def make(*arguments, device=None, dtype=None, checkpoint=None):
            title = f"{name}:{arguments[0]}" if arguments else name
            asked[title] = {"dtype": dtype, "checkpoint": checkpoint}
            return table(column, name)

        return make

    module = type(names_module)("tests_presets")
    for column, name in enumerate(("hpsv2.1", "imagereward", "pickscore", "clip", "vqa")):
        attribute = f"make{column}"
        setattr(module, attribute, maker(name, column))
        key = f"{name}:*" if name in ("clip", "vqa") else name
        monkeypatch.setitem(names_module.BUILT_IN, key, f"tests_presets:{attribute}")
    monkeypatch.setitem(__import__("sys").modules, "tests_presets", module)
    return asked


def test_reno_is_the_published_loss(stand_ins) -> None:
    hps, ir, pick, cosine = 0.27, 0.8, 21.5, 0.33
    made = reward("reno", checkpoint={"hpsv2.1": "hps.pt"}, clip_gradient=2.0)
    assert isinstance(made, WeightedReward) and made.clip_gradient == 2.0
    assert stand_ins["hpsv2.1"]["checkpoint"] == "hps.pt"
    assert set(stand_ins) == {
        "hpsv2.1",
        "imagereward",
        "pickscore",
        "clip:ViT-H-14:laion2b_s32b_b79k",
    }
    value = float(made(pictures([hps], [ir], [pick], [cosine], [0.0]), "a"))
    loss = 5 * (1 - hps) + (2 - ir) + 0.05 * (30 - pick) + 0.01 * (100 - 100 * cosine)
    assert value == pytest.approx(9.5 - loss, abs=1e-4)


def test_carinox_is_the_published_mixture(stand_ins) -> None:
    hps, ir, vqa = 0.27, 0.8, 0.4
    images = pictures([hps], [ir], [0], [0], [vqa])
    value = float(reward("carinox", vqa="vqa:some/model")(images, "a"))
    assert value + 2.5 == pytest.approx(5 * 2 * hps + 5 * (ir + 3) / 6 + vqa, abs=1e-4)
    assert "vqa:some/model" in stand_ins
    value = float(reward("carinox", category="numeracy", vqa="vqa:m")(images, "a"))
    expected = 5 * 1.02 * 2 * hps + 5 * 1.05 * (ir + 3) / 6 + 0.93 * vqa
    assert value + 2.5 * 1.05 == pytest.approx(expected, abs=1e-4)


def test_presets_refuse(stand_ins) -> None:
    with pytest.raises(ValueError, match=r"category='colour': one of 'none', 'color'"):
        reward("carinox", category="colour")
    with pytest.raises(ValueError, match=r"checkpoint has 'hps': no such part, there are hpsv2.1"):
        reward("reno", checkpoint={"hps": "x.pt"})
    with pytest.raises(ValueError, match=r"checkpoint='x.pt': give files by part"):
        reward("reno", checkpoint="x.pt")
    with pytest.raises(ValueError, match="its options are category, vqa"):
        reward("carinox", kind="color")


def test_names_are_exported() -> None:
    assert steer.rewards.AtLeast is AtLeast
    assert issubclass(AtLeast, Composite)
