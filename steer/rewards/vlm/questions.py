"""Questions about an image: a user's own, or those that a simple prompt asks by itself.

A simple prompt names things, with counts, colours and places: "three red apples left of a bowl".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer.core.errors import CheckpointError


_NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen twenty"""
_COLOURS = """red orange yellow green blue purple violet pink brown black white gray grey gold
golden silver beige cyan magenta turquoise teal"""

NUMBERS = _NUMBERS.split()
COLOURS = frozenset(_COLOURS.split())
RELATIONS = {
    "to the left of": "left of",
    "on the left of": "left of",
    "left of": "left of",
    "to the right of": "right of",
    "on the right of": "right of",
    "right of": "right of",
    "in front of": "in front of",
    "on top of": "on top of",
    "next to": "next to",
    "behind": "behind",
    "beside": "beside",
    "above": "above",
    "below": "below",
    "under": "under",
    "over": "over",
    "inside": "inside",
    "near": "near",
    "on": "on",
}
MOST_WORDS = 3
"""A thing's name has at most so many words."""

_OPENING = re.compile(
    r"(an?|the) ([a-z]+ )?(photo|photograph|picture|image|painting|drawing|illustration) of "
)
_PLURAL = re.compile(r"[^sui]s$")
_ARTICLES = ("a", "an", "the")
_JOINT = re.compile(rf"\s*,?\s+(and|{'|'.join(RELATIONS)})\s+|\s*,\s*")
_NO_NAME = frozenset({*_ARTICLES, *NUMBERS, *COLOURS, "with", "in", "at", "of", "to", "and", "is"})
_GRAMMAR = (
    "things joined by 'and', a comma or a place ('left of', 'on top of', 'behind', ...), each with "
    "a count and a colour if you like, such as 'three red apples left of a bowl'"
)


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: What is asked.
        answers: What counts as right; any of them. `"four"` and `"4"` are two.
    """

    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class _Thing:
    count: int | None
    colours: tuple[str, ...]
    name: str

    @property
    def many(self) -> bool:
        return self.count != 1 if self.count is not None else bool(_PLURAL.search(self.name))

    @property
    def verb(self) -> str:
        return "Are" if self.many else "Is"


def questions_of(prompt: str) -> list[Question]:
    """What a simple prompt asks of its image: is each thing there, how many, its colours, places.

    Raises:
        ValueError: A prompt that is not of this kind.
    """
    things, joints = _read(prompt)
    names = [_singular(thing) for thing in things]
    told_apart = [names.count(name) > 1 for name in names]
    labels = [_label(*pair) for pair in zip(things, told_apart, strict=True)]
    found = [
        question
        for thing, label, apart in zip(things, labels, told_apart, strict=True)
        for question in _about(thing, label, colours=not apart)
    ]
    for joint, thing, first, second in zip(joints, things, labels, labels[1:], strict=False):
        if joint in RELATIONS:
            text = f"{thing.verb} the {first} {RELATIONS[joint]} the {second}?"
            found.append(Question(text, ("yes",)))
    return found


def as_questions(given: Any) -> dict[str, list[Question]]:
    """A user's questions by prompt.

    Args:
        given: `{prompt: [[question, answer], ...]}`, or a JSON file of that. An answer is a text,
            or a list of texts that are all right; a number is right as a word and as a digit.

    Raises:
        ValueError: Anything else.
        CheckpointError: A file that cannot be read.
    """
    source = given if isinstance(given, Mapping) else _from_file(given)
    return {str(prompt): _checked(prompt, pairs) for prompt, pairs in source.items()}


def accepted(answers: Sequence[str]) -> list[list[str]]:
    """For each right answer the ways to write it; numbers are words and digits."""
    words: dict[str, None] = {}
    for answer in answers:
        low = answer.strip().lower()
        words[low if low in NUMBERS or low == "yes" else answer.strip()] = None
        if low in NUMBERS:
            words[str(NUMBERS.index(low))] = None
        elif low.isdecimal() and int(low) < len(NUMBERS):
            words[NUMBERS[int(low)]] = None
    return [_spellings(word) for word in words]


def _spellings(word: str) -> list[str]:
    ways = dict.fromkeys((word, word.capitalize(), word.lower()))
    return [space + way for way in ways for space in ("", " ")]


def _read(prompt: str) -> tuple[list[_Thing], list[str]]:
    """The things of a prompt, and what joins each to the next."""
    text = " ".join(prompt.lower().split()).strip(" .")
    text = _OPENING.sub("", text, count=1) if _OPENING.match(text) else text
    pieces = _JOINT.split(text)
    things = [_thing(piece, prompt) for piece in pieces[::2]]
    return things, [joint or "," for joint in pieces[1::2]]


def _thing(piece: str, prompt: str) -> _Thing:
    words = piece.split()
    count = None
    if words and words[0] in _ARTICLES:
        count = None if words[0] == "the" else 1
        words = words[1:]
    elif words and (words[0] in NUMBERS or words[0].isdecimal()):
        count = NUMBERS.index(words[0]) if words[0] in NUMBERS else int(words[0])
        words = words[1:]
    colours = tuple(word for word in words[:-1] if word in COLOURS)
    name = words[len(colours) :]
    plain = all(word.replace("-", "").isalpha() and word not in _NO_NAME for word in name)
    if not name or len(name) > MOST_WORDS or not plain:
        raise ValueError(
            f"prompt {prompt!r} has no questions, and cannot be taken apart at {piece!r}: pass "
            f"questions={{prompt: [[question, answer], ...]}}, or write {_GRAMMAR}"
        )
    return _Thing(count, colours, " ".join(name))


def _about(thing: _Thing, label: str, *, colours: bool) -> Iterator[Question]:
    if thing.count == 0:
        yield Question(f"How many {label} are in the image?", ("zero",))
        return
    there = f"any {label}" if thing.many else f"{'an' if label[0] in 'aeiou' else 'a'} {label}"
    yield Question(f"{thing.verb} there {there} in the image?", ("yes",))
    if thing.count is not None and thing.count > 1:
        number = NUMBERS[thing.count] if thing.count < len(NUMBERS) else str(thing.count)
        yield Question(f"How many {label} are in the image?", (number,))
    for colour in thing.colours if colours else ():
        yield Question(f"{thing.verb} the {label} {colour}?", ("yes",))


def _label(thing: _Thing, apart: bool) -> str:
    """How a thing is called; with its colours where another one has the same name."""
    return " ".join([*thing.colours, thing.name]) if apart else thing.name


def _singular(thing: _Thing) -> str:
    return thing.name.removesuffix("s") if thing.many else thing.name


def _from_file(path: Any) -> Mapping[str, Any]:
    if not isinstance(path, str | Path):
        raise ValueError(
            f"questions={path!r}: pass {{prompt: [[question, answer], ...]}}, or a JSON file of it"
        )
    try:
        found = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"questions={str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"questions={str(path)!r} holds no object: write {{prompt: [[question, answer], ...]}}"
        )
    return found


def _checked(prompt: Any, pairs: Any) -> list[Question]:
    if not isinstance(pairs, Sequence) or isinstance(pairs, str) or not pairs:
        raise ValueError(
            f"questions of {prompt!r} are {pairs!r}: pass a list of [question, answer]"
        )
    return [_question(prompt, pair) for pair in pairs]


def _question(prompt: Any, pair: Any) -> Question:
    if isinstance(pair, Question):
        return pair
    if isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2:
        text, answer = pair
        answers = (answer,) if isinstance(answer, str | int) else tuple(answer)
        right = tuple(str(a) for a in answers)
        if isinstance(text, str) and text.strip() and right and all(a.strip() for a in right):
            return Question(text, right)
    raise ValueError(f"a question of {prompt!r} is {pair!r}: write [question, answer]")
