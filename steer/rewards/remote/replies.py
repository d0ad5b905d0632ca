"""What a chat server answers, and the score that is read off it."""

from __future__ import annotations

import math
import re

from pydantic import BaseModel, Field

from steer.core.errors import RewardError


YES, NO = "yes", "no"
TOP = 10
"""The best number that a judge may name."""

_SLACK = 1e-3  # how far a log-probability may be above 0 in low precision
_OUT_OF = re.compile(rf"\s*(?:/|out of)\s*{TOP}(?:\.0+)?\b")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w|\.\d)")
_THOUGHT = re.compile(r"^.*</think>", re.S)


class Word(BaseModel):
    """A token and its log-probability."""

    token: str
    logprob: float = Field(le=_SLACK)


class Place(BaseModel):
    """One place of the answer: the likeliest tokens there."""

    top_logprobs: list[Word] = []


class Likely(BaseModel):
    """Log-probabilities along the answer."""

    content: list[Place] | None = None


class Message(BaseModel):
    """The answer's text."""

    content: str | None = None


class Choice(BaseModel):
    """One answer."""

    message: Message
    logprobs: Likely | None = None


class Usage(BaseModel):
    """Tokens that a request cost."""

    prompt_tokens: int = Field(0, ge=0)
    completion_tokens: int = Field(0, ge=0)


class Reply(BaseModel):
    """The parts of a chat completion that are read; others are not looked at."""

    choices: list[Choice]
    usage: Usage | None = None

    @property
    def first_words(self) -> list[Word]:
        """The likeliest tokens at the answer's first place; none where the server tells none."""
        likely = self.choices[0].logprobs if self.choices else None
        return likely.content[0].top_logprobs if likely and likely.content else []

    @property
    def text(self) -> str:
        """The answer, without the thoughts before it."""
        return _THOUGHT.sub("", (self.choices[0].message.content or "")).strip()


def yes_probability(words: list[Word]) -> float:
    """`P(yes) / (P(yes) + P(no))` of the likeliest first tokens, in [0, 1].

    Tokens that differ in case and in spaces around them are one answer.

    Raises:
        RewardError: Neither is among them.
    """
    sums = dict.fromkeys((YES, NO), 0.0)
    for word in words:
        answer = word.token.strip().lower()
        if answer in sums:
            sums[answer] += math.exp(min(word.logprob, 0.0))
    if not sum(sums.values()):
        shown = ", ".join(repr(word.token) for word in words[:3])
        raise RewardError(
            f"neither Yes nor No is among the {len(words)} likeliest first tokens ({shown}, ...): "
            "take an instruct model, switch thinking off, or ask with form='number'"
        )
    return sums[YES] / (sums[YES] + sums[NO])


def read_number(text: str) -> float:
    """The one number from 0 to 10 in a text, as a share of 10, in [0, 1].

    Raises:
        RewardError: None, several, or one out of range.
    """
    found = {float(number) for number in _NUMBER.findall(_OUT_OF.sub("", text))}
    if len(found) != 1 or not 0 <= (number := found.pop()) <= TOP:
        raise RewardError(
            f"the answer {text[:80]!r} is not one number from 0 to {TOP}: take an instruct model, "
            "or write number_question= more clearly"
        )
    return number / TOP
