"""The grammar of mixtures as text: what it reads, that names read back, and its refusals."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from steer.rewards import registry, reward
from steer.rewards.function import FunctionReward
from steer.rewards.text import (
    KINDS,
    Mixture,
    as_text,
    is_mixture,
    is_ranking,
    names_in,
    read_mixture,
    write_mixture,
)


CLIP = "clip:ViT-L-14:openai"


@pytest.mark.parametrize(
    ("text", "kind", "weights"),
    [
        ("hpsv2=0.7,aesthetic=0.3", "sum", {"hpsv2": 0.7, "aesthetic": 0.3}),
        (f" a=0.7, {CLIP} = -2e-3 ", "sum", {"a": 0.7, CLIP: -0.002}),
        ("rank(a,b=0.5)", "rank", {"a": 1.0, "b": 0.5}),
        (" standardise( a ) ", "standardise", {"a": 1.0}),
        ("rank(a,b)=2,c=1", "sum", {"rank(a,b)": 2.0, "c": 1.0}),
        ("rank((a=1,b=2)=3,c)", "rank", {"(a=1,b=2)": 3.0, "c": 1.0}),
        ("clip:local-dir:runs/lr=3=1", "sum", {"clip:local-dir:runs/lr=3": 1.0}),
        ("clip:local-dir:run (2)/x=1", "sum", {"clip:local-dir:run (2)/x": 1.0}),
    ],
)
def test_reads(text: str, kind: str, weights: dict[str, float]) -> None:
    assert read_mixture(text) == Mixture(kind, weights)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["hpsv2.1", CLIP, "mean(a,b=1)", "clip:local-dir:a (b)/c", "a)b("])
def test_single_names_are_no_mixture(name: str) -> None:
    assert read_mixture(name) is None
    assert names_in(name) == [name]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a=0.7,b", "'b' is not name=weight"),
        ("a,b", "'a' is not name=weight"),
        ("a=x", "'a=x' is not name=weight"),
        ("a=", "'a=' is not name=weight"),
        ("(a)", "'a' is not name=weight"),
        ("a=1,", "a part has no name"),
        ("=1", "a part has no name"),
        ("rank()", "a part has no name"),
        ("rank(a,a)", "'a' appears twice"),
        ("a=1,a=2", "'a' appears twice"),
    ],
)
def test_refuses_and_says_how_to_write_it(text: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_mixture(text)
    assert told in str(caught.value)
    assert "write for example 'hpsv2=0.7,clip:ViT-B-32:openai=0.3' or 'rank(" in str(caught.value)


names = st.sampled_from(["hpsv2", "hpsv2.1", CLIP, "vqa:Qwen/Qwen2.5-VL-3B-Instruct", "a#2"])
weights = st.floats(-1e9, 1e9, allow_nan=False)


def mixtures(parts: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, dict[str, float]]]:
    return st.tuples(st.sampled_from(KINDS), st.dictionaries(parts, weights, min_size=1))


inner = mixtures(names).map(lambda m: write_mixture(m[0], m[1], exact=True))  # type: ignore[arg-type]


@given(mixtures(names | inner))
def test_what_is_written_reads_back_exactly(mixture: tuple[str, dict[str, float]]) -> None:
    kind, parts = mixture
    made = read_mixture(write_mixture(kind, parts, exact=True))  # type: ignore[arg-type]
    bracketed = {
        name if read_mixture(name) is None or is_mixture(name) else f"({name})": weight
        for name, weight in parts.items()
    }
    assert made == Mixture(kind, bracketed)  # type: ignore[arg-type]


def test_names_at_any_depth_and_rankings() -> None:
    text = f"rank(a,b)=2,(c=1,{CLIP}=2)=1"
    assert names_in(text) == ["a", "b", "c", CLIP]
    assert is_ranking(text) and is_ranking("rank(a)") and is_ranking("standardise(a,b=2)")
    assert not is_ranking("a=1,rank(b,c)=0")  # only reported
    assert not is_ranking("a=1,(b=1,c=2)=3") and not is_ranking("a")


def test_configurations_may_give_a_mapping() -> None:
    assert as_text("rank(a,b)") == "rank(a,b)"
    assert as_text({"a": 0.5, CLIP: 2}) == f"a=0.5,{CLIP}=2"
    assert read_mixture(as_text({"a": 1 / 3, "b": 1234567})) == Mixture(
        "sum", {"a": 1 / 3, "b": 1234567.0}
    )
    for spec in ({}, {"a": "x"}, {"a": True}, {"a": float("nan")}, 3, ["a"]):
        with pytest.raises(ValueError, match="a name, or weights by name"):
            as_text(spec)


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict]:
    """Rewards a, b and c, which note what they were asked for with."""
    asked: dict[str, dict] = {}

    def maker(name: str):
        def make(*, device=None, dtype=None, checkpoint=None):
            asked[name] = {"dtype": dtype, "checkpoint": checkpoint}
            return FunctionReward(lambda images, prompts: images.mean((1, 2, 3)), name=name)

        return make

    registered = {name: maker(name) for name in ("a", "b", "c", "d=1")}
    monkeypatch.setattr("steer.rewards.names._registered", registered)
    return asked


@pytest.mark.parametrize(
    "text", ["a=0.5,b=2", "rank(a,b)=2,c=-1", "rank((a=1,b=2)=3,c=1)", "standardise(a,c)"]
)
def test_a_reward_s_name_is_the_text_that_makes_it(letters: dict, text: str) -> None:
    made = registry.reward(text)
    assert made.name == text
    assert registry.reward(made.name).name == text


def test_local_weights_by_part_at_any_depth(letters: dict) -> None:
    reward("rank(a,b)=1,c=2", checkpoint={"b": "b.pt", "c": "c.pt"}, dtype="bfloat16")
    assert [letters[name]["checkpoint"] for name in "abc"] == [None, "b.pt", "c.pt"]
    assert len({letters[name]["dtype"] for name in "abc"}) == 1
    reward({"a": 1.0}, checkpoint={"a": "a.pt"})
    assert letters["a"]["checkpoint"] == "a.pt"
    with pytest.raises(ValueError, match="checkpoint has 'd': no such part, there are a, b"):
        reward("a=1,b=1", checkpoint={"d": "d.pt"})
    with pytest.raises(ValueError, match=r"checkpoint='x\.pt': give files by part"):
        reward("a=1,b=1", checkpoint="x.pt")


def test_a_weight_after_a_name_with_the_sign_in_it(letters: dict) -> None:
    assert list(reward("d=1=2").weights) == ["d=1"]  # pyright: ignore[reportAttributeAccessIssue]
    assert list(reward({"d=1": 2.0}).weights) == ["d=1"]  # pyright: ignore[reportAttributeAccessIssue]
