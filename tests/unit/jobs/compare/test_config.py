"""Configurations: what YAML says, what is refused, and what a changed one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steer.core.errors import ComparisonError
from steer.jobs.compare.config import Arm, Comparison, from_dict, read
from steer.rewards.text import read_mixture


ARMS = [{"name": "base"}, {"name": "steered", "compute": 4}]


def plan(**more: Any) -> dict[str, Any]:
    return {"arms": ARMS, **more}


def test_defaults_are_written_out() -> None:
    made = from_dict(plan())
    assert (made.baseline, made.seeds, made.pipeline, made.reward) == (
        "base",
        (0,),
        "shapes",
        "shapes",
    )
    assert made.to_dict()["arms"][1]["compute"] == 4
    assert made.images == 2


def test_short_forms() -> None:
    made = from_dict(plan(seeds=3, judges="oracle", size=64, reward="shapes=0.5,shapes-clip=0.25"))
    assert made.seeds == (0, 1, 2) and made.judges == ("oracle",) and made.size == (64, 64)
    assert made.reward == "shapes=0.5,shapes-clip=0.25"
    assert from_dict({"arms": ["a", "b"]}).arms == (Arm(name="a"), Arm(name="b"))


def test_weights_of_a_mapping_keep_every_digit() -> None:
    made = from_dict(plan(reward={"shapes": 1 / 3, "shapes-clip": 1234567}))
    parts = read_mixture(made.reward)
    assert parts is not None and parts.weights == {"shapes": 1 / 3, "shapes-clip": 1234567.0}
    with pytest.raises(ComparisonError, match="a name, or weights by name"):
        from_dict(plan(reward={"shapes": "much"}))


def test_yaml_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a red circle\n")
    file = tmp_path / "plan.yaml"
    file.write_text(
        "prompts: mine.txt\nseeds: [1, 5]\narms:\n  - name: base\n"
        "  - {name: long, steps: 40, differs: steps}\n"
    )
    made = read(file)
    assert made.prompts == str(tmp_path / "mine.txt") and made.seeds == (1, 5)
    assert made.arm("long").differs == ("steps",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arms: [", "not YAML"),
        ("- a", "must hold 'name: value' lines"),
        ("arms: [{name: a}, {name: b}]\nseeds: 1\nseeds: 2", "'seeds' stands there twice"),
        ("arms: [{name: a}, {name: b, !!python/object:os.system {}: 1}]", "not YAML"),
    ],
)
def test_yaml_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(ComparisonError, match=said):
        read(file)


def test_missing_file() -> None:
    with pytest.raises(ComparisonError, match=r"nowhere\.yaml.*cannot be read"):
        read("nowhere.yaml")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (plan(promts="x"), "'promts' is unknown; did you mean 'prompts'"),
        ({"arms": [{"name": "a", "compte": 2}, "b"]}, "arm 'a'.*'compte'.*did you mean 'compute'"),
        ({"arms": [{"compute": 2}, "b"]}, "arms: 'name' is missing"),
        ({"arms": "base"}, "arms='base': must be a list"),
        ({"arms": ["a"]}, "a comparison needs two"),
        ({"arms": ["a", "A"]}, "'A' stands there twice"),
        ({"arms": ["a", "b/c"]}, "names a folder"),
        ({"arms": ["a", "../b"]}, "names a folder"),
        (plan(baseline="stered"), "not an arm; did you mean 'steered'"),
        (plan(seeds=[]), "at least one"),
        (plan(seeds=[1, 1]), "each once"),
        (
            plan(seeds=[-1]),
            r"seeds\[0\]=-1: must be",
        ),
        (plan(seeds=0), "or how many"),
        (plan(steps=0), "steps=0: must be a whole number of at least 1"),
        (plan(images_per_call=0), "images_per_call=0: must be"),
        (plan(guidance_scale="high"), "guidance_scale='high': must be a number"),
        (plan(guidance_scale=float("nan")), "guidance_scale=nan: must be a"),
        (plan(size=[64]), "size="),
        (plan(call={"width": 64}), "call.width=64: write size"),
        (plan(call={"generator": 1}), "call.generator=1: noise follows from the seed"),
        (plan(checkpoints=["x"]), "checkpoints=.*must hold"),
        (plan(judges=["oracle", "oracle"]), "each once"),
        (plan(judges=["shapes"]), "optimised reward is reported anyway"),
        (plan(show=-1), "show=-1"),
        (plan(checkpoints={"shape": "x.pt"}), "no reward here is called 'shape'; did you mean"),
        (plan(reward="shapes=much"), "not name=weight"),
        (plan(pipeline="x/y"), "reward: missing"),
        (
            {"arms": [{"name": "a", "compute": 0.5}, "b"]},
            "arm 'a': compute=0.5: must be a number of at least 1",
        ),
        ({"arms": [{"name": "a", "compute": 2, "method": "BestOfN(4)"}, "b"]}, "has its own cost"),
        ({"arms": [{"name": "a", "differs": ["seed"]}, "b"]}, "may name steps, guidance_scale"),
    ],
)
def test_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ComparisonError, match=said):
        from_dict(data)


@pytest.mark.parametrize(
    ("key", "shared", "own"),
    [
        ("steps", 20, 40),
        ("guidance_scale", 5.0, 7.5),
        ("scheduler", "DDIMScheduler", "PNDMScheduler"),
    ],
)
def test_undeclared_differences(key: str, shared: Any, own: Any) -> None:
    def arms(**more: Any) -> dict[str, Any]:
        return {key: shared, "arms": ["base", {"name": "odd", key: own, **more}]}

    with pytest.raises(ComparisonError, match=rf"arm 'odd': {key}=.*differs: \[{key}\]"):
        from_dict(arms())
    assert getattr(from_dict(arms(differs=[key])).arm("odd"), key) == own
    with pytest.raises(ComparisonError, match="does not differ"):
        from_dict({key: shared, "arms": ["base", {"name": "odd", "differs": [key]}]})


def test_the_same_value_is_no_difference() -> None:
    assert isinstance(
        from_dict({"steps": 20, "arms": ["a", {"name": "b", "steps": 20}]}), Comparison
    )
