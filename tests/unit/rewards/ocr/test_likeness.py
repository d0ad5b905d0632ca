"""Likeness of what is read to what should be there, by closed form and by a slow reference."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, strategies as st

from steer.rewards.ocr.likeness import edit_distance, gather, likeness, plain_text, written


WORDS = st.text("abc", max_size=6)


@given(WORDS, WORDS)
def test_edit_distance_is_its_definition(a: str, b: str) -> None:
    @cache
    def slow(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = a[i - 1] == b[j - 1]
        return min(slow(i - 1, j) + 1, slow(i, j - 1) + 1, slow(i - 1, j - 1) + (not same))

    assert edit_distance(a, b) == slow(len(a), len(b)) == edit_distance(b, a)
    assert 0 <= likeness(a, b) <= 1


@given(st.lists(WORDS.filter(bool), min_size=1, max_size=3), st.lists(WORDS, max_size=4))
def test_scores_lie_between_0_and_1_and_the_texts_alone_score_1(
    targets: list[str], lines: list[str]
) -> None:
    assert 0 <= written(targets, lines, extra=1.0) <= 1
    assert written(targets, targets, extra=1.0) == 1


def test_one_letter_of_four_is_a_quarter() -> None:
    assert likeness("open", "opem") == likeness("open", "opn") == 0.75
    assert likeness("open", "opens") == 0.8
    assert likeness("open", "") == 0


def test_a_long_text_around_the_target_is_not_the_target() -> None:
    assert written(["open"], ["we never open on a sunday, nor on any other day"]) < 0.1


def test_a_text_over_several_lines_is_found_in_any_order() -> None:
    assert gather("grandopeningtoday", ["today", "junk", "grand", "opening"]) == (1.0, [2, 3, 0])
    assert written(["grandopening"], ["grandopening"]) == 1


def test_every_text_has_lines_of_its_own() -> None:
    assert written(["aaaa", "bbbb"], ["bbbb", "aaaa"]) == 1
    assert written(["aaaa", "aaaa"], ["aaaa"]) == 0.5
    assert written(["aaaa", "bbbb"], ["aaaabbbb"]) == 1  # both on one line


def test_text_that_was_not_asked_for_costs_its_share() -> None:
    lines = ["open", "junk"]
    assert written(["open"], lines) == 1
    assert written(["open"], lines, extra=0.5) == 0.75
    assert written(["open"], lines, extra=1.0) == 0.5


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, "don'tpanic"),
        ({"spacing": True}, "don't panic"),
        ({"case": True}, "Don'tPANIC"),
    ],
)
def test_plain_text(options: dict[str, bool], plain: str) -> None:
    assert plain_text(" Don’t  ＰＡＮＩＣ ", **options) == plain
