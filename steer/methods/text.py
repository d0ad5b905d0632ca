"""Methods written as text or as YAML, turned into objects: read as literals, never evaluated.

Importing this module does not import torch; reading a method does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from steer.core.expressions import Grammar
from steer.core.settings import load_yaml


if TYPE_CHECKING:
    from steer.search.method import Method

Written: TypeAlias = str | Mapping[str, Any]
"""A method as text (`"SMC(8, lam=2.0)"`), or as YAML has it (`{"SMC": {"n": 8, "lam": 2.0}}`)."""

_PREDICATES = ("at", "between", "every")
_PICKS = ("Best", "Diverse", "Pessimistic", "Quantile", "SoftBest")
_PARTS = ("GradientProposal", "NoiseTilt", "ReNO", "Rho", "Sphere", "ZeroOrder")
"""What may stand inside a method, besides further methods and step predicates."""


def is_bare(method: Written) -> bool:
    """Whether a method is written as a name alone, its size left to `compute`."""
    return isinstance(method, str) and re.fullmatch(r"[A-Za-z][\w-]*", method.strip()) is not None


def method_class(name: str) -> type[Method]:
    """The method that a bare name stands for. Raises ValueError for an unknown one."""
    methods, _ = _known_methods()
    return methods[_grammar(methods, {}).name(name.strip(), name.strip())]


def sized_methods() -> list[str]:
    """The methods that a bare name stands for: `compute` alone says how large they are."""
    found = []
    for name, kind in _known_methods()[0].items():
        with suppress(ValueError):
            kind.for_compute(4.0, 20)
            found.append(name)
    return found


def parse_method(method: Written, compute: float = 4.0, steps: int = 20) -> Method:
    """The method that is written, such as `"BestOfN(16)"` or `"Gate(BestOfN(4), 0.6)"`.

    Names may be written in any case and with dashes (`best-of-n(16)`); arguments are literals,
    further methods, or step predicates (`smc(8, when=every(4) & between(0.25, 0.75))`). A bare
    name takes its size from `compute` and `steps`. What YAML gives is a name with its arguments
    below it, with methods inside in the same way or as text:

        Gate:
          method: {SMC: {n: 8, when: every(4) & between(0.25, 0.75)}}
          threshold: 0.6

    The repr of a method is read as an equal method.

    Raises:
        ValueError: An unknown method, something that is not a literal, or arguments that do not
            fit; the message says which and what there is.
    """
    methods, parts = _known_methods()
    grammar = _grammar(methods, parts)
    if not isinstance(method, str):
        return grammar.of_mapping(method)
    text = method.strip()
    if not is_bare(text):
        return grammar.read(text)
    try:
        return method_class(text).for_compute(compute, steps)
    except ValueError as error:
        raise ValueError(f"method={text!r}: {error}") from error


def method_option(method: str | None, arguments: str | None = None) -> Written | None:
    """What `--method` and `--method-args` say together; `parse_method` reads it.

    Args:
        method: A name, an expression, or a `.yaml` file; `None` leaves the choice to `compute`.
        arguments: What stands between the brackets: `"n=8, lam=2.0, when=every(4)"`.

    Raises:
        ValueError: Arguments without a method's name before them, or a file that is no method's.
        OSError: The file cannot be read.
    """
    if method is None:
        if arguments is not None:
            raise ValueError(f"--method-args {arguments!r}: of which method? Add --method smc")
        return None
    is_file = Path(method.strip()).suffix.lower() in (".yaml", ".yml")
    content = read_yaml(Path(method.strip())) if is_file else method.strip()
    if arguments is None:
        return content
    if not isinstance(content, str) or "(" in content:
        raise ValueError(
            f"--method-args {arguments!r} with --method {method.strip()!r}, which has its "
            "arguments already: give them in one place"
        )
    return f"{content}({arguments})"


def read_yaml(path: Path) -> Written:
    """The method in a YAML file: one name with its arguments, or an expression alone.

    Raises:
        ValueError: Not YAML, or not of this form.
        OSError: The file cannot be read.
    """
    import yaml

    try:
        content = load_yaml(path.read_text("utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"method={str(path)!r}: not YAML ({reason})") from error
    if isinstance(content, str):
        return content.strip()
    if Grammar.is_call(content):
        return content
    raise ValueError(
        f"method={str(path)!r}: must hold one method by its name, as in "
        "'SMC: {n: 8, when: every(4)}'"
    )


def _known_methods() -> tuple[dict[str, type[Method]], dict[str, Any]]:
    """All methods by name, and what may stand inside them."""
    import steer.methods as exported
    from steer.core import when
    from steer.rewards.thresholds.prior import Prior
    from steer.search import picks
    from steer.search.method import Method

    found = {name: getattr(exported, name) for name in exported.__all__}
    methods = {
        name: value
        for name, value in found.items()
        if isinstance(value, type) and issubclass(value, Method) and value is not Method
    }
    parts = {name: found[name] for name in _PARTS}
    parts |= {name: getattr(picks, name) for name in _PICKS} | {"Prior": Prior}
    return methods, parts | {name: getattr(when, name) for name in _PREDICATES}


def _grammar(methods: Mapping[str, Any], parts: Mapping[str, Any]) -> Grammar:
    return Grammar(
        "method",
        {**methods, **parts},
        tuple(methods),
        hint=f"there are {', '.join(methods)}, written like 'BestOfN(16)'",
        kinds="number, text, list, method or step predicate",
    )
