"""Rewards that compare candidates, through whole pipelines: the population is the prompt's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from families import arguments, build, redness, seeded, shared
from torch import Tensor

import steer
from steer.core.errors import RewardError
from steer.methods import BestOfN, Gate, Prune
from steer.pipeline.guided import guided


def blueness(images: Tensor, prompts: Any) -> Tensor:
    return 1e3 * images[:, 2].mean((1, 2))


def contrast(images: Tensor, prompts: Any) -> Tensor:
    return images.flatten(1).std(1)


SPEC = {redness: 1.0, blueness: 1.0, contrast: 0.5}
PROMPTS = ["a red circle", "two", "z"]


def mixed(kind: str, **options: Any) -> Any:
    return steer.reward(SPEC, combine=kind, **options)


def run(method: Any, reward: Any, width: int | None = None, **given: Any) -> Any:
    return guided(shared("sd"), reward, method=method, lane_width=width)(**arguments("sd", **given))


def scores(report: Any, prompt: int = 0) -> dict[int, float]:
    """Final rewards by particle, whatever the order in which they were scored."""
    rows = [row for row in report.trace.of("score", prompt) if not row["preview"]]
    return {
        k: value for row in rows for k, value in zip(row["particle"], row["reward"], strict=True)
    }


def raw(report: Any, prompt: int = 0) -> dict[str, list[float]]:
    """Final scores of the parts, particles in order."""
    rows = [row for row in report.trace.of("score", prompt) if not row["preview"]]
    found = {name: {} for name in rows[0]["parts"]}
    for row in rows:
        for name, values in row["parts"].items():
            found[name] |= dict(zip(row["particle"], values, strict=True))
    return {name: [values[k] for k in sorted(values)] for name, values in found.items()}


@pytest.mark.parametrize("kind", ["rank", "standardise"])
def test_lanes_do_not_matter(kind: str) -> None:
    outs = [run(BestOfN(8), mixed(kind), width) for width in (1, 3, 8)]
    assert len({out.report.chosen[0] for out in outs}) == 1
    for out in outs:
        assert scores(out.report) == pytest.approx(scores(outs[0].report), abs=1e-3)
        assert out.rewards[0] == max(scores(out.report).values())
    parts = raw(outs[0].report)
    assert list(parts) == ["redness", "blueness", "contrast"]
    columns = [np.array(values) for values in parts.values()]
    if kind == "rank":
        together = [(scipy.stats.rankdata(values) - 1) / 7 for values in columns]
        expected = (together[0] + together[1] + 0.5 * together[2]) / 2.5
    else:
        together = [scipy.stats.zscore(values) for values in columns]
        expected = together[0] + together[1] + 0.5 * together[2]
    assert list(scores(outs[0].report).values()) == pytest.approx(list(expected), abs=1e-4)


@pytest.mark.sample
@pytest.mark.parametrize("kind", ["rank", "standardise"])
@pytest.mark.parametrize("width", [1, 4])
def test_prompts_together_equal_prompts_apart(kind: str, width: int) -> None:
    generators = [seeded(i) for i in range(3)]
    together = run(BestOfN(4), mixed(kind), width, prompt=PROMPTS, generator=generators)
    for i, prompt in enumerate(PROMPTS):
        apart = run(BestOfN(4), mixed(kind), 1, prompt=prompt, generator=[seeded(i)])
        assert apart.report.chosen[0][1] == together.report.chosen[i][1]
        assert apart.rewards[0] == pytest.approx(together.rewards[i], abs=1e-3)
        assert apart.report.base_reward[0] == pytest.approx(
            together.report.base_reward[i], abs=1e-3
        )


@pytest.mark.parametrize("width", [1, 3])
def test_pruning_ranks_all_previews_of_a_step(width: int) -> None:
    method = Prune(start=6, keep=(3,), at=(0.5,))
    out = run(method, mixed("rank"), width, prompt=PROMPTS[:2])
    for prompt in (0, 1):
        (row,) = [r for r in out.report.trace.of("score", prompt) if r["preview"]]
        assert sorted(row["particle"]) == list(range(6))
        columns = {name: scipy.stats.rankdata(values) - 1 for name, values in row["parts"].items()}
        expected = columns["redness"] + columns["blueness"] + 0.5 * columns["contrast"]
        assert row["reward"] == pytest.approx(list(expected / 5 / 2.5), abs=1e-6)


def test_pruning_to_one_leaves_one_candidate() -> None:
    out = run(Prune(start=4, keep=(1,), at=(0.5,)), mixed("standardise"))
    assert out.rewards == [0.0]
    assert run(BestOfN(1), mixed("rank")).rewards == [0.5]


def test_several_images_per_prompt() -> None:
    out = run(BestOfN(3), mixed("rank"), 1, num_images_per_prompt=2, prompt=PROMPTS[:2])
    for prompt in (0, 1):
        pool = scores(out.report, prompt)
        assert len(pool) == 6
        best = sorted(pool.values(), reverse=True)[:2]
        assert out.rewards[2 * prompt : 2 * prompt + 2] == pytest.approx(best)


def test_a_fixed_threshold_is_refused_at_once() -> None:
    calls = []
    pipe = build("sd")
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    gate = Gate(BestOfN(2), threshold=0.9)
    with pytest.raises(ValueError, match=r"threshold=0.9 cannot be held against reward 'rank\("):
        guided(pipe, mixed("rank"), method=gate)(**arguments("sd"))
    assert len(calls) == 1  # the one with which the pipeline's loop opens


def test_a_minimum_decides_and_may_be_gated() -> None:
    plain = run(BestOfN(6), mixed("sum"))
    parts = raw(plain.report)
    level = sorted(parts["contrast"])[3] - 1e-6
    out = run(BestOfN(6), mixed("sum", minimum={"contrast": level}))
    allowed = {k: v for k, v in scores(plain.report).items() if parts["contrast"][k] >= level}
    assert len(allowed) == 3
    assert out.report.chosen[0][1] == max(allowed, key=allowed.__getitem__)
    assert out.rewards[0] == pytest.approx(max(allowed.values()), abs=1e-4)
    gate = Gate(BestOfN(2), threshold=0.0, max_rounds=2)
    assert run(gate, mixed("sum", minimum={"contrast": -1.0})).accepted == [True]
    assert run(gate, mixed("sum", minimum={"contrast": 2.0})).accepted == [False]


def test_judges_of_every_kind() -> None:
    judges = [
        steer.reward({redness: 0.5, contrast: 2.0}),
        mixed("rank"),
        mixed("standardise"),
        blueness,
        blueness,
        {contrast: 1.0},
    ]
    call = guided(shared("sd"), blueness, method=BestOfN(4), judge=judges)
    out = call(**arguments("sd", output_type="pt", prompt=PROMPTS[:2]))
    plain = shared("sd")(**arguments("sd", output_type="pt", prompt=PROMPTS[:2])).images
    report = out.report
    assert list(report.judges) == [
        "redness=0.5,contrast=2",
        "rank(redness=1,blueness=1,contrast=0.5)",
        "standardise(redness=1,blueness=1,contrast=0.5)",
        "blueness",
        "blueness#2",
        "contrast=1",
    ]
    for name, judge in zip(report.judges, [steer.reward(judge) for judge in judges], strict=True):
        both = judge(torch.cat([out.images, plain]), ["a", "b", "a", "b"])
        assert report.judges[name] == pytest.approx(both[:2].tolist(), rel=1e-4, abs=1e-5)
        assert report.base_judges[name] == pytest.approx(both[2:].tolist(), rel=1e-4, abs=1e-5)


def test_the_plain_image_as_winner_is_its_own_base() -> None:
    out = guided(shared("sd"), redness, method=BestOfN(1), judge=[mixed("rank"), contrast])(
        **arguments("sd", output_type="pil")
    )
    for name, values in out.report.judges.items():
        assert out.report.base_judges[name] == values
    assert out.report.judges["rank(redness=1,blueness=1,contrast=0.5)"] == [0.5]


def test_judges_are_hidden_from_the_method() -> None:
    seen = []

    def watched(images: Tensor, prompts: Any) -> Tensor:
        seen.append(len(images))
        return images.mean((1, 2, 3))

    judge = steer.reward({watched: 1.0, contrast: 1.0}, combine="rank")
    alone = run(BestOfN(4), redness)
    out = guided(shared("sd"), redness, method=BestOfN(4), judge=judge)(**arguments("sd"))
    assert sum(seen) == (1 if out.report.chosen == [(0, 0)] else 2)
    assert torch.equal(out.images, alone.images)


@pytest.mark.parametrize("kind", ["sum", "rank", "standardise"])
def test_a_broken_part_is_named(kind: str) -> None:
    def odd(images: Tensor, prompts: list[str]) -> Tensor:
        return torch.tensor([float("nan") if p == "two" else 1.0 for p in prompts])

    reward = steer.reward({redness: 1.0, odd: 1.0}, combine=kind)
    message = r"\(its part 'odd'\) returned nan for prompt 1 \('two'\), particle 0"
    with pytest.raises(RewardError, match=message):
        run(BestOfN(2), reward, 1, prompt=["one", "two"])
