"""Mixtures of rewards as text: one grammar for names, the command line, and configurations.

    mixture = terms | kind "(" terms ")"        kind = "rank" | "worst" | "standardise" | "bound"
    terms   = term ("," term)*
    term    = part "=" weight | part            a part alone has weight 1, in a kind's brackets
    part    = name | kind "(" terms ")" | "(" terms ")"

So `hpsv2=0.7,clip:ViT-B-32:openai=0.3` is a weighted sum and `rank(hpsv2,pickscore=0.5)` a rank
ensemble. A weight is what follows the last `=`, so a name may hold that sign where a weight
follows: `clip:local-dir:runs/lr=3=1`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from steer.rewards.weights import is_finite


Kind: TypeAlias = Literal["sum", "rank", "worst", "standardise", "bound"]
KINDS: tuple[Kind, ...] = ("sum", "rank", "worst", "standardise", "bound")

_WAY_OUT = "write for example 'hpsv2=0.7,clip:ViT-B-32:openai=0.3' or 'rank(hpsv2,pickscore=0.5)'"
_BY_PREFIX: dict[str, Kind] = {"": "sum", **dict(zip(KINDS[1:], KINDS[1:], strict=True))}
_CALL = re.compile(rf"({'|'.join(_BY_PREFIX)})\s*\((.*)\)", re.S)


@dataclass(frozen=True)
class Mixture:
    """What a text says: how scores become one, and the weight of every part.

    Attributes:
        kind: The weighted `"sum"`; the mean of ranks, `"rank"`, or the smallest, `"worst"`; the
            sum of z-scores, `"standardise"`, or their lower bound, `"bound"`.
        weights: By part: a reward's name, or the text of a mixture within the mixture.
    """

    kind: Kind
    weights: dict[str, float]


def read_mixture(text: str) -> Mixture | None:
    """The mixture that a text describes; `None` where it is a single name.

    Raises:
        ValueError: A part without a name or a weight, or one that is named twice.
    """
    kind, inside = _open_bracket(text)
    terms = list(_split(inside))
    if kind is None and len(terms) == 1 and _last(terms[0], "=") < 0:
        return None
    weights: dict[str, float] = {}
    for term in terms:
        name, weight = _read_term(term, text, needs_weight=kind in (None, "sum"))
        if name in weights:
            raise ValueError(f"reward={text!r}: {name!r} appears twice; {_WAY_OUT}")
        weights[name] = weight
    return Mixture(kind or "sum", weights)


def write_mixture(kind: Kind, weights: Mapping[str, float], *, exact: bool = False) -> str:
    """The text of a mixture, which `read_mixture` reads; weights in six digits unless `exact`."""
    alone = kind != "sum" and set(weights.values()) == {1.0}
    terms = [
        _within(name) + ("" if alone else f"={_number(weight, exact)}")
        for name, weight in weights.items()
    ]
    return ",".join(terms) if kind == "sum" else f"{kind}({','.join(terms)})"


def as_text(spec: object) -> str:
    """What a configuration file gives as a reward, text or weights by name, as text.

    Raises:
        ValueError: Neither, or a weight that is not a finite number.
    """
    if isinstance(spec, str):
        return spec
    if isinstance(spec, Mapping) and spec and all(map(is_finite, spec.values())):
        return write_mixture("sum", {str(name): float(spec[name]) for name in spec}, exact=True)
    raise ValueError(f"reward={spec!r}: a name, or weights by name; {_WAY_OUT}")


def names_in(text: str) -> list[str]:
    """The names of the single rewards in a text, at any depth."""
    mixture = read_mixture(text)
    if mixture is None:
        return [text.strip()]
    return [name for part in mixture.weights for name in _names_of_part(part)]


def is_ranking(text: str) -> bool:
    """Whether a text's mixture compares candidates, itself or in a part of weight."""
    mixture = read_mixture(text)
    if mixture is None:
        return False
    weighed = (part for part, weight in mixture.weights.items() if weight)
    return mixture.kind != "sum" or any(is_mixture(part) and is_ranking(part) for part in weighed)


def is_mixture(part: str) -> bool:
    """Whether a part of a mixture is a mixture itself, `kind(...)` or `(...)`, and no name."""
    return _open_bracket(part)[0] is not None


def _names_of_part(part: str) -> list[str]:
    return names_in(part) if is_mixture(part) else [part]


def _read_term(term: str, text: str, *, needs_weight: bool) -> tuple[str, float]:
    at = _last(term, "=")
    name, weight = (term[:at], term[at + 1 :]) if at >= 0 else (term, "")
    if not name.strip():
        raise ValueError(f"reward={text!r}: a part has no name; {_WAY_OUT}")
    if at < 0 and not needs_weight:
        return name.strip(), 1.0
    try:
        return name.strip(), float(weight)
    except ValueError:
        raise ValueError(
            f"reward={text!r}: {term.strip()!r} is not name=weight; {_WAY_OUT}"
        ) from None


def _open_bracket(text: str) -> tuple[Kind | None, str]:
    """The kind before a bracket that holds all the rest, and that rest; else None and the text."""
    found = _CALL.fullmatch(text.strip())
    if found is None or min(_depths(found[2]), default=0) < 0:
        return None, text
    return _BY_PREFIX[found[1]], found[2]


def _split(text: str) -> Iterator[str]:
    """A text at its commas outside brackets."""
    start = 0
    for at, (sign, depth) in enumerate(zip(text, _depths(text), strict=True)):
        if sign == "," and depth == 0:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def _last(text: str, sign: str) -> int:
    """Where `sign` stands last outside brackets; -1 where it does not."""
    places = zip(text, _depths(text), strict=True)
    return max((at for at, (s, depth) in enumerate(places) if s == sign and not depth), default=-1)


def _depths(text: str) -> Iterator[int]:
    """How many brackets are open after each character."""
    depth = 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        yield depth


def _within(name: str) -> str:
    """A part's name as it stands in a mixture: in brackets where it would be taken apart."""
    return f"({name})" if _last(name, ",") >= 0 or _last(name, "=") >= 0 else name


def _number(weight: float, exact: bool) -> str:
    short = f"{weight:g}"
    return repr(float(weight)) if exact and float(short) != float(weight) else short
