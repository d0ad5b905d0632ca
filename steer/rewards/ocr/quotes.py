"""The texts that a prompt puts in quotes: what is to be written in the image."""

from __future__ import annotations

import re


_PAIRS = (
    r"(?<!\d)\"(?=\S)([^\"]+)\"",  # not the inches of 5"
    r"[“„]([^“”„]+)[”“]",
    r"‘((?:[^‘’]|’(?=\w))+)’(?!\w)",
    r"«([^«»]+)»",
    r"「([^「」]+)」",
    r"『([^『』]+)』",
)
_CLIPPED = r"(?:tis|twas|til|em|cause|bout|round|n|\d0s)\b"
_SINGLE = rf"(?<![\w'])'(?!{_CLIPPED})(?=\S)((?:(?!\s'(?=\S))[^\"])+?)(?<=\S)'(?!\w)"
_QUOTES = re.compile("|".join((*_PAIRS, _SINGLE)), re.IGNORECASE)


def quoted(prompt: str) -> list[str]:
    """The texts in quotes, in order, without those that have no letter or digit.

    Straight and curly double quotes, curly and straight single ones, guillemets and corner
    brackets. A straight single quote counts only where it opens before a word and closes after one:
    `don't`, `the dogs' bowl`, `rock 'n' roll` and `'90s` are apostrophes. Neither do inches (`5"`)
    open a quote.
    """
    found = (next(filter(None, match.groups())) for match in _QUOTES.finditer(prompt))
    return [text.strip() for text in found if any(map(str.isalnum, text))]
