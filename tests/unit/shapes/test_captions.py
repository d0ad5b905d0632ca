"""Captions say the spec, and parsing gives it back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from steer.shapes.captions import MAX_WORDS, VOCABULARY, caption, parse
from steer.shapes.scenes import Group, Spec, sample_spec


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_parse_inverts_caption(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec = sample_spec(rng)
    for text in (caption(spec), caption(spec, rng), caption(spec, rng)):
        assert parse(text) == spec
        assert set(text.split()) <= set(VOCABULARY)
        assert len(text.split()) <= MAX_WORDS


def test_the_plain_wording() -> None:
    red, blue = Group(1, "red", "circle"), Group(1, "blue", "square")
    assert caption(Spec((red, blue), "left of")) == "a red circle left of a blue square"
    assert caption(Spec((red, blue))) == "a red circle and a blue square"
    assert caption(Spec((Group(1, "orange", "circle"),))) == "an orange circle"
    two = Spec((Group(2, "green", "triangle", "small"),), background="black")
    assert caption(two) == "two small green triangles on a black background"


def test_paraphrases_use_the_whole_vocabulary() -> None:
    rng = np.random.default_rng(0)
    texts = [caption(sample_spec(rng), rng) for _ in range(3000)]
    assert {word for text in texts for word in text.split()} == set(VOCABULARY)
    assert len(VOCABULARY) <= 60


def test_the_same_seed_gives_the_same_wording() -> None:
    spec = Spec((Group(1, "red", "circle", "large"),), background="grey")
    texts = [caption(spec, np.random.default_rng(3)) for _ in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "text",
    [
        "  A Red CIRCLE, to the left  of a blue square. ",
        "an image with one red circle left of one blue square",
        "red circle left of blue square",
    ],
)
def test_loose_spelling_is_understood(text: str) -> None:
    assert parse(text) == Spec((Group(1, "red", "circle"), Group(1, "blue", "square")), "left of")


def test_gray_is_grey() -> None:
    assert parse("a red circle on a gray background").background == "grey"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a red dog", "unknown word 'dog'.*circle, square, triangle"),
        ("a circle", "expected a colour, found 'circle'"),
        ("a red", "expected a shape, found the end"),
        ("", "expected a colour, found the end"),
        ("a red circle left of", "expected a colour"),
        ("a red circle a blue square", "did not understand 'a blue square'"),
        ("a red circle on a red background", "expected a background, found 'red'"),
        ("three large red circles", "three large"),
        ("a red circle and a red circle", "differ"),
        ("two red circles and a blue square", "one object each"),
    ],
)
def test_what_is_outside_the_grammar_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)
