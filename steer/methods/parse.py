"""Methods and rewards written as text: read as literals, never evaluated."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

from steer.core.expressions import Grammar


_PREDICATES = ("at", "between", "every")


def is_bare(text: str) -> bool:
    """Whether a method is written as a name alone, its size left to `compute`."""
    return re.fullmatch(r"[A-Za-z][\w-]*", text.strip()) is not None


def parse_method(text: str, compute: float = 4.0, steps: int = 20) -> Any:
    """The method that `text` names, such as `"BestOfN(16)"` or `"Gate(BestOfN(4), 0.6)"`.

    Names may be written in any case and with dashes (`best-of-n(16)`); arguments are literals,
    further methods, or step predicates (`smc(8, when=every(4) & between(0.25, 0.75))`). A bare
    name takes its size from `compute` and `steps`.

    Raises:
        ValueError: An unknown method, something that is not a literal, or arguments that do not
            fit; the message says which and what there is.
    """
    text = text.strip()
    methods = _known()
    if is_bare(text):
        name = _grammar(methods).name(text, text)
        return _sized(methods[name], text, compute, steps)
    return _grammar({**methods, **_predicates()}).read(text)


def _known() -> dict[str, Any]:
    import steer.methods as methods

    return {name: getattr(methods, name) for name in methods.__all__ if name[0].isupper()}


def _predicates() -> dict[str, Any]:
    from steer.core import when

    return {name: getattr(when, name) for name in _PREDICATES}


def _grammar(known: dict[str, Any]) -> Grammar:
    names = tuple(name for name in known if name[0].isupper())
    return Grammar(
        "method",
        known,
        names,
        hint=f"there are {', '.join(names)}, written like 'BestOfN(16)'",
        kinds="number, text, list, method or step predicate",
    )


def _sized(cls: Any, text: str, compute: float, steps: int) -> Any:
    """A method by its bare name, as large as `compute` pays for."""
    if hasattr(cls, "for_compute"):
        return cls.for_compute(compute, steps)
    if list(inspect.signature(cls).parameters) == ["n"]:
        return cls(math.floor(compute))
    needs = ", ".join(inspect.signature(cls).parameters)
    example = "Gate(BestOfN(4), threshold=0.6)"
    raise ValueError(f"method={text!r}: write its arguments out ({needs}), as in {example!r}")
