"""What is read off a chat server's answer."""

from __future__ import annotations

import math

import pytest

from steer.core.errors import RewardError
from steer.rewards.remote.replies import Word, read_number, yes_probability


def words(**likely: float) -> list[Word]:
    return [Word(token=token, logprob=math.log(p)) for token, p in likely.items()]


def test_spellings_of_yes_are_added_and_held_against_no() -> None:
    found = words(**{"Yes": 0.3, " yes": 0.1, "YES": 0.1, "No": 0.1, " no": 0.15, "The": 0.2})
    assert yes_probability(found) == pytest.approx(0.5 / 0.75)
    assert yes_probability(words(Yes=0.9, The=0.1)) == 1
    assert yes_probability(words(No=0.9, Yesterday=0.1)) == 0


def test_neither_yes_nor_no() -> None:
    with pytest.raises(RewardError, match="neither Yes nor No is among the 2 likeliest"):
        yes_probability(words(The=0.6, A=0.4))


@pytest.mark.parametrize(
    ("text", "score"),
    [("7", 0.7), ("7.5", 0.75), ("Score: 8/10", 0.8), ("**10**", 1), ("9 out of 10.", 0.9)],
)
def test_numbers(text: str, score: float) -> None:
    assert read_number(text) == score


@pytest.mark.parametrize("text", ["", "good", "7 or 8", "11", "-3", "3 5", "v2"])
def test_no_number(text: str) -> None:
    with pytest.raises(RewardError, match="is not one number from 0 to 10"):
        read_number(text)
