"""Captions of the shapes world: a small closed grammar, its paraphrases and their parser.

The grammar, with optional parts in brackets::

    caption    = [opening] group [relation group | "and" group] [background]
    opening    = "a picture of" | "an image with" | "there is" | ...
    group      = (article or number) [size] colour shape
    relation   = "left of" | "to the left of" | "above" | "over" | ...
    background = ("on" | "against") "a" ("white" | "grey" | "black") ("background" | "backdrop")
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from steer.shapes.scenes import BACKGROUNDS, COLORS, SHAPES, Group, Spec


MAX_WORDS = 18
"""The longest caption of the grammar, in words."""

_COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
_SIZE_WORDS = {"small": ("small", "tiny", "little"), "large": ("large", "big")}
_RELATION_PHRASES = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_PICTURES = ("a picture of", "a picture with", "an image of", "an image with")
_OPENINGS = (*_PICTURES, "there is", "there are")
_SURFACES = ("on", "against")
_GROUNDS = ("background", "backdrop")

_SIZE_OF = {word: size for size, words in _SIZE_WORDS.items() for word in words}
_SHAPE_OF = {shape + ending: shape for shape in SHAPES for ending in ("", "s")}
_PHRASES = {phrase: name for name, phrases in _RELATION_PHRASES.items() for phrase in phrases}
_GRAMMAR = (
    "a caption is like 'two small green triangles on a black background', 'a red circle left of "
    "a blue square' or 'a red circle and a blue square', with "
    f"colours {', '.join(COLORS)}; shapes {', '.join(SHAPES)}; sizes {', '.join(_SIZE_OF)}; "
    f"backgrounds {', '.join(BACKGROUNDS)}; up to three objects of a kind"
)


def _words() -> tuple[str, ...]:
    phrases = [*_COUNTS, *_SIZE_OF, *COLORS, *_SHAPE_OF, *_PHRASES, "and", *_SURFACES]
    phrases += [*BACKGROUNDS, *_GROUNDS, *_OPENINGS]
    return tuple(dict.fromkeys(word for phrase in phrases for word in phrase.split()))


VOCABULARY: tuple[str, ...] = _words()
"""Every word that a caption may contain, in a fixed order."""


def caption(spec: Spec, rng: np.random.Generator | None = None) -> str:
    """The caption of `spec`: the plain wording, or a random paraphrase when `rng` is given."""
    first = spec.groups[0]
    opening = _choose(rng, ("", *_PICTURES, "there is" if first.count == 1 else "there are"))
    parts = [opening, _group_text(first, rng)]
    if len(spec.groups) == 2:
        wordings = _RELATION_PHRASES[spec.relation] if spec.relation else ("and",)
        parts += [_choose(rng, wordings), _group_text(spec.groups[1], rng)]
    if spec.background is not None:
        surface, ground = _choose(rng, _SURFACES), _choose(rng, _GROUNDS)
        parts.append(f"{surface} a {spec.background} {ground}")
    words = " ".join(parts).split()
    if len(words) > MAX_WORDS:  # too wordy: leave the opening out
        words = " ".join(parts[1:]).split()
    return " ".join(words)


def _choose(rng: np.random.Generator | None, options: Sequence[str]) -> str:
    """The first (plain) option half of the time, any option otherwise."""
    if rng is None or rng.random() < 0.5:
        return options[0]
    return options[int(rng.integers(len(options)))]


def _group_text(group: Group, rng: np.random.Generator | None) -> str:
    size = _choose(rng, _SIZE_WORDS[group.size]) + " " if group.size else ""
    described = f"{size}{group.color} {group.shape}"
    if group.count > 1:
        return f"{'two' if group.count == 2 else 'three'} {described}s"
    article = "an" if described[0] in "aeiou" else "a"
    return f"{_choose(rng, (article, 'one'))} {described}"


class _Reader:
    """Reads words from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.words = re.sub(r"[,.]", " ", text.lower()).replace("gray", "grey").split()
        self.at = 0
        for word in self.words:
            if word not in VOCABULARY:
                raise ValueError(f"unknown word {word!r} in {text!r}: {_GRAMMAR}")

    def phrase(self, options: Sequence[str]) -> str | None:
        """Steps over the first option found here and returns it, else None."""
        for option in options:
            parts = option.split()
            if self.words[self.at : self.at + len(parts)] == parts:
                self.at += len(parts)
                return option
        return None

    def expect(self, options: Sequence[str], what: str) -> str:
        """Like `phrase`, but one of the options must be there."""
        found = self.phrase(options)
        if found is None:
            here = repr(self.words[self.at]) if self.at < len(self.words) else "the end"
            raise ValueError(f"expected {what}, found {here} in {self.text!r}: {_GRAMMAR}")
        return found

    def group(self) -> Group:
        """A counted, coloured shape; a missing article counts as one."""
        count = _COUNTS[self.phrase(tuple(_COUNTS)) or "one"]
        size = self.phrase(tuple(_SIZE_OF))
        color = self.expect(tuple(COLORS), "a colour")
        shape = _SHAPE_OF[self.expect(tuple(_SHAPE_OF), "a shape")]
        return Group(count, color, shape, _SIZE_OF[size] if size else None)

    def background(self) -> str | None:
        """A closing background phrase, if there is one."""
        if self.phrase(_SURFACES) is None:
            return None
        self.expect(("a",), "'a'")
        name = self.expect(tuple(BACKGROUNDS), "a background")
        self.expect(_GROUNDS, "'background'")
        return name


def parse(text: str) -> Spec:
    """The meaning of `text`: the inverse of `caption` for all of its paraphrases.

    Case, extra spaces, commas and full stops do not matter.

    Raises:
        ValueError: An unknown word, or a caption that is not in the grammar; the message says where
            and what the grammar accepts.
    """
    reader = _Reader(text)
    reader.phrase(_OPENINGS)
    groups, relation = [reader.group()], None
    joint = reader.phrase((*_PHRASES, "and"))
    if joint is not None:
        relation = _PHRASES.get(joint)
        groups.append(reader.group())
    background = reader.background()
    if reader.at < len(reader.words):
        rest = " ".join(reader.words[reader.at :])
        raise ValueError(f"did not understand {rest!r} in {text!r}: {_GRAMMAR}")
    return Spec(tuple(groups), relation, background)
