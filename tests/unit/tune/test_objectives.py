"""Objectives against hand-computed values, autograd in float64, limits, signs and known curves."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import UVit2DModel
from hypothesis import given, settings, strategies as st
from torch import Tensor

from steer import Threshold
from steer.core.errors import ThresholdError, TuneError
from steer.tune.goal import Errors
from steer.tune.goals import GOALS, KTO, SFT, TGO
from steer.tune.objectives import (
    csft,
    csft_prompts,
    diffusion_kto,
    implicit_reward,
    kto_baseline,
    log_likelihood,
    masked_log_likelihood,
    poly_dpo,
    sft,
    squared_error,
    tgo,
    tgo_targets,
)
from steer.tune.pair_goals import DiffusionDPO, PolyDPO


finite = st.floats(-30, 30)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def slope(loss: Tensor, at: Tensor) -> list[float]:
    return torch.autograd.grad(loss.sum(), at)[0].tolist()


def test_the_likelihood_is_minus_the_mean_squared_error_over_t() -> None:
    prediction = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]])
    target = torch.tensor([[[0.0, 4.0]], [[1.0, 1.0]]])
    assert squared_error(prediction, target).tolist() == [2.5, 1.0]
    assert log_likelihood(prediction, target, 0.5).tolist() == [-5.0, -2.0]
    assert log_likelihood(prediction, target).tolist() == pytest.approx([-2500, -1000])
    assert sft(prediction, target).tolist() == csft(prediction, target).tolist() == [2.5, 1.0]


def test_half_precision_is_computed_in_float32_and_float64_stays() -> None:
    error = squared_error(torch.full((1, 4), 300.0).half(), torch.zeros(1, 4).half())
    assert error.dtype == torch.float32 and float(error) == 9e4  # 300^2 overflows float16
    assert squared_error(torch.ones(1, 2).double(), torch.zeros(1, 2).double()).dtype.itemsize == 8
    assert tgo(torch.zeros(1).bfloat16(), torch.ones(1)).dtype == torch.float32


def test_the_masked_likelihood_is_the_mean_log_probability_of_masked_tokens() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    tokens = torch.randint(5, (2, 3, 3))
    mask = torch.rand(2, 3, 3) < 0.5
    mask[:, 0, 0] = True
    found = masked_log_likelihood(logits, tokens, mask)
    for b in range(2):
        each = [
            float(logits[b, :, i, j].softmax(0)[tokens[b, i, j]].log())
            for i in range(3)
            for j in range(3)
            if mask[b, i, j]
        ]
        assert float(found[b]) == pytest.approx(sum(each) / len(each), rel=1e-12)


def test_tgo_steers_amuseds_transformer_by_the_masked_likelihood() -> None:
    torch.manual_seed(0)
    model = UVit2DModel(
        hidden_size=16,
        cond_embed_dim=8,
        micro_cond_encode_dim=4,
        micro_cond_embed_dim=5 * 4,
        encoder_hidden_size=8,
        vocab_size=10,
        codebook_size=8,
        block_out_channels=16,
        in_channels=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        block_num_heads=2,
        intermediate_size=16,
    ).eval()
    codes = torch.randint(8, (2, 4, 4))
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    given = {
        "input_ids": torch.where(mask, 9, codes),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "pooled_text_emb": torch.randn(2, 8),
        "micro_conds": torch.zeros(2, 5),
    }
    before = masked_log_likelihood(model(**given), codes, mask)
    loss = tgo(implicit_reward(before, before.detach()), torch.tensor([1.0, 0.0])).sum()
    assert float(loss.detach()) == pytest.approx(2 * math.log(2), rel=1e-6)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
        after = masked_log_likelihood(model(**given), codes, mask)
    assert after[0] > before[0] and after[1] < before[1]


def test_targets_are_the_papers_labels_and_weights() -> None:
    scores = torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64)
    threshold = Threshold(0.3, spread=0.1)
    labels, weights = tgo_targets(scores, threshold, c=5)
    assert labels.tolist() == [0, 1, 1]  # a tie is positive
    assert weights.tolist() == pytest.approx([2, 1, 2])
    _, spreads = tgo_targets(scores, threshold, c=5, units="spread")
    assert spreads.tolist() == pytest.approx([11, 1, 11])
    _, none = tgo_targets(scores, threshold, c=0)
    assert none.tolist() == [1, 1, 1]


def test_targets_by_prompt_use_each_prompts_own_threshold() -> None:
    threshold = Threshold.fit({"a": [0.0, 1.0, 2.0], "b": [10.0, 11.0, 12.0]}, per_prompt=True)
    scores = torch.tensor([1.5, 10.5])
    labels, weights = tgo_targets(scores, threshold, ["a", "b"], c=2)
    assert labels.tolist() == [1, 0] and weights.tolist() == pytest.approx([2, 2])
    with pytest.raises(ThresholdError, match="'c'"):
        tgo_targets(scores, threshold, ["a", "c"])


def test_tgo_is_the_weighted_cross_entropy() -> None:
    reward = double(0.7, -1.2, 0.7)
    labels, weights = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 3.0])
    loss = tgo(reward, labels, weights)
    by_hand = [
        -math.log(sigma(0.7)),
        -2 * math.log(1 - sigma(-1.2)),
        -3 * math.log(1 - sigma(0.7)),
    ]
    assert loss.tolist() == pytest.approx(by_hand, rel=1e-12)
    slopes = [sigma(0.7) - 1, 2 * sigma(-1.2), 3 * sigma(0.7)]
    assert slope(loss, reward) == pytest.approx(slopes, rel=1e-12)


@settings(deadline=None, max_examples=50)
@given(finite, st.floats(-1, 20))
def test_poly_dpo_is_its_formula_and_its_gradient(logit: float, alpha: float) -> None:
    x = double(logit)
    loss, p = poly_dpo(x, alpha), sigma(logit)
    assert float(loss.detach()) == pytest.approx(
        math.log1p(math.exp(-logit)) + alpha * sigma(-logit), rel=1e-9, abs=1e-12
    )
    assert slope(loss, x)[0] == pytest.approx(-sigma(-logit) * (1 + alpha * p), rel=1e-9, abs=1e-12)
    assert slope(poly_dpo(x, alpha), x)[0] <= 0  # never away from the preference


def test_poly_dpo_without_alpha_is_diffusion_dpo() -> None:
    winner, loser, winner_ref, loser_ref = torch.rand(4, 7, dtype=torch.float64)
    beta = 5000.0
    inside = -0.5 * beta * ((winner - winner_ref) - (loser - loser_ref))
    published = -torch.nn.functional.logsigmoid(inside)
    errors = torch.cat([winner, loser]), torch.cat([winner_ref, loser_ref])
    found = DiffusionDPO(beta=beta).loss(Errors(*errors)).loss
    torch.testing.assert_close(found, published, rtol=1e-12, atol=1e-12)
    for other in (PolyDPO(beta=beta, alpha=0).loss(Errors(*errors)).loss, poly_dpo(inside)):
        torch.testing.assert_close(other, published, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", [2.0, 4.0, 8.0])
def test_the_gradient_of_poly_dpo_peaks_where_it_is_published(alpha: float) -> None:
    logit = torch.linspace(-12, 12, 240_001, dtype=torch.float64, requires_grad=True)
    size = -torch.autograd.grad(poly_dpo(logit, alpha).sum(), logit)[0]
    p = float(logit.detach()[size.argmax()].sigmoid())
    assert p == pytest.approx((alpha - 1) / (2 * alpha), abs=1e-4)
    assert float(size.max()) == pytest.approx((1 + alpha) ** 2 / (4 * alpha), rel=1e-8)
    if alpha == 8:
        assert p == pytest.approx(0.4375, abs=1e-4) and float(size.max()) == pytest.approx(
            2.53, abs=2e-3
        )


def test_the_gradient_of_diffusion_dpo_never_exceeds_one() -> None:
    logit = torch.linspace(-40, 40, 8001, dtype=torch.float64, requires_grad=True)
    size = -torch.autograd.grad(poly_dpo(logit).sum(), logit)[0]
    assert float(size.max()) == pytest.approx(1, abs=1e-12)
    assert bool((size.diff() <= 0).all())  # no peak: the worse the pair, the larger


def test_alpha_below_minus_one_is_refused_because_the_gradient_flips() -> None:
    x = double(math.log(0.9 / 0.1))
    flipped = -torch.nn.functional.logsigmoid(x) - 2 * torch.sigmoid(-x)
    assert slope(flipped, x)[0] > 0
    with pytest.raises(TuneError, match=r"alpha=-2.*at least -1"):
        poly_dpo(x, -2)
    with pytest.raises(ValueError, match=r"alpha=-1\.5"):
        PolyDPO(alpha=-1.5)


def test_kto_is_its_formula_and_its_gradient() -> None:
    reward, labels = double(0.5, -0.4, 2.0), torch.tensor([1.0, 0.0, 0.0])
    q = (0.5 - 0.4 + 2.0) / 3
    assert float(kto_baseline(reward)) == pytest.approx(q)
    assert float(kto_baseline(-reward)) == 0 and not kto_baseline(reward).requires_grad
    loss = diffusion_kto(reward, labels, positive=2.0, negative=3.0)
    by_hand = [
        2 * (1 - sigma(0.5 - q)),
        3 * (1 - sigma(-(-0.4 - q))),
        3 * (1 - sigma(-(2.0 - q))),
    ]
    assert loss.tolist() == pytest.approx(by_hand, rel=1e-12)
    bell = [sigma(x - q) * (1 - sigma(x - q)) for x in (0.5, -0.4, 2.0)]
    expected = [-2 * bell[0], 3 * bell[1], 3 * bell[2]]
    assert slope(loss, reward) == pytest.approx(expected, rel=1e-12)


def test_where_policy_and_reference_agree_the_losses_and_gradients_are_known() -> None:
    policy = double(0.3, 0.6, 0.2, 0.9)
    reference = policy.detach().clone()
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0])
    out = TGO(c=0).loss(Errors(policy, reference, labels, torch.ones(4)))
    assert out.loss.tolist() == pytest.approx([math.log(2)] * 4, rel=1e-12)
    assert slope(out.loss, policy) == pytest.approx([500, 500, -500, -500])  # beta / T times 1/2
    assert out.correct is not None and out.correct.tolist() == [0.5] * 4
    goal = DiffusionDPO(beta=5000)
    assert goal.loss(Errors(policy, reference)).loss.tolist() == pytest.approx([math.log(2)] * 2)
    assert slope(goal.loss(Errors(policy, reference)).loss, policy) == pytest.approx(
        [1250, 1250, -1250, -1250]
    )
    kto = KTO(beta=100).loss(Errors(policy, reference, labels))
    assert kto.loss.tolist() == pytest.approx([0.5] * 4)
    assert slope(kto.loss, policy) == pytest.approx([25, 25, -25, -25])
    poly = PolyDPO(alpha=4).loss(Errors(policy, reference))
    assert poly.loss.tolist() == pytest.approx([math.log(2) + 2] * 2)


@pytest.mark.parametrize(
    "goal", [TGO(), KTO(), PolyDPO(alpha=4), PolyDPO(alpha=-1), DiffusionDPO()]
)
def test_a_gradient_step_raises_the_good_ones_likelihood_and_lowers_the_bad_ones(goal) -> None:
    torch.manual_seed(0)
    prediction = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    target = torch.randn(4, 3, 2, dtype=torch.float64)
    error = squared_error(prediction, target)
    reference = error.detach() + 1e-4 * torch.randn(4, dtype=torch.float64)
    good = torch.tensor([1.0, 1.0, 0.0, 0.0])  # for pairs: two winners, two losers
    loss = goal.loss(Errors(error, reference, good, torch.ones(4))).loss.sum()
    (gradient,) = torch.autograd.grad(loss, prediction)
    moved = squared_error(prediction - 1e-9 * gradient, target)
    assert bool((moved[:2] < error[:2]).all()) and bool((moved[2:] > error[2:]).all())


@settings(deadline=None, max_examples=40)
@given(st.lists(finite, min_size=2, max_size=8), st.lists(st.booleans(), min_size=8, max_size=8))
def test_gradients_agree_with_finite_differences(rewards: list[float], good: list[bool]) -> None:
    x = double(*rewards)
    labels = torch.tensor(good[: len(rewards)]).double()
    for loss in (
        lambda r: tgo(r, labels, torch.full_like(r, 2)),
        lambda r: diffusion_kto(r, labels, 0.3),
        lambda r: poly_dpo(r, 8),
    ):
        assert torch.autograd.gradcheck(loss, (x,), eps=1e-6, atol=1e-6)


def test_extreme_rewards_stay_finite() -> None:
    x = torch.tensor([-1e30, -1e4, 1e4, 1e30], requires_grad=True)
    labels = torch.tensor([1.0, 0.0, 0.0, 1.0])
    for loss in (tgo(x.clamp(-1e8, 1e8), labels), diffusion_kto(x, labels, 0.0)):
        assert bool(loss.isfinite().all())
        assert bool(torch.autograd.grad(loss.sum(), x)[0].isfinite().all())
    assert bool(poly_dpo(x[1:3], 8).isfinite().all())


def test_supervised_goals_are_the_error_and_have_no_reference() -> None:
    error = torch.tensor([0.5, 2.0])
    for name in ("sft", "csft"):
        goal = GOALS[name]()
        assert not goal.reference and goal.loss(Errors(error)).loss.tolist() == [0.5, 2.0]
        assert goal.loss(Errors(error)).correct is None
    assert csft_prompts(["a", "b"], [1, 0]) == ["a", "Weird image. b"]


def test_bad_arguments_are_named() -> None:
    one = torch.zeros(1)
    with pytest.raises(TuneError, match=r"prediction \(1, 2\) and target \(2, 1\)"):
        squared_error(torch.zeros(1, 2), torch.zeros(2, 1))
    with pytest.raises(TuneError, match="temperature=0"):
        log_likelihood(one[None], one[None], 0)
    with pytest.raises(TuneError, match="beta=-1"):
        implicit_reward(one, one, -1)
    with pytest.raises(TuneError, match="c=-1"):
        tgo_targets(one, Threshold(0.0), c=-1)
    with pytest.raises(TuneError, match="units='std'"):
        tgo_targets(one, Threshold(0.0), units="std")  # type: ignore[arg-type]
    with pytest.raises(TuneError, match="positive=-1"):
        diffusion_kto(one, one, positive=-1)
    with pytest.raises(TuneError, match=r"logits \(1, 2\)"):
        masked_log_likelihood(torch.zeros(1, 2), torch.zeros(1, 2).long(), torch.ones(1, 2).bool())
    with pytest.raises(TuneError, match="mask"):
        masked_log_likelihood(
            torch.zeros(1, 3, 2), torch.zeros(1, 2).long(), torch.zeros(1, 2).bool()
        )
    for wrong in (
        lambda: TGO(beta=0),
        lambda: TGO(temperature=0),
        lambda: TGO(c=-1),
        lambda: TGO(units="x"),
        lambda: SFT(quantile=2),
        lambda: KTO(positive_share=1),
        lambda: KTO(negative=-1),
        lambda: DiffusionDPO(alpha=1),
    ):
        with pytest.raises(ValueError):
            wrong()
