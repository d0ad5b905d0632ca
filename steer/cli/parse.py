"""Methods and rewards written as text: read as literals, never evaluated."""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import operator
import re
from typing import Any


_PREDICATES = ("at", "between", "every")
_JOINS: dict[type[ast.operator], Any] = {ast.BitAnd: operator.and_, ast.BitOr: operator.or_}


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
    known = methods | _predicates()
    source = re.sub(r"[A-Za-z][\w-]*[A-Za-z](?=\s*\()", lambda m: _name(m[0], known, text), text)
    if is_bare(text):
        return _sized(methods[_name(text, methods, text)], text, compute, steps)
    try:
        node = ast.parse(source, mode="eval").body
    except SyntaxError as error:
        raise ValueError(
            f"method={text!r}: cannot be read ({error.msg}); {_hint(known)}"
        ) from error
    if not isinstance(node, ast.Call) or getattr(node.func, "id", None) in _PREDICATES:
        raise ValueError(f"method={text!r}: not a method; {_hint(known)}")
    return _build(node, known, text)


def parse_reward(text: str) -> str | dict[str, float]:
    """A reward's name, weights, `"hpsv2=0.7,pickscore=0.01"`, or `"rank(hpsv2,pickscore)"`.

    Raises:
        ValueError: A weight that is not a number.
    """
    if "=" not in text or re.fullmatch(r"\s*\w+\(.*\)\s*", text):
        return text
    weights = {}
    for part in text.split(","):
        name, _, weight = part.rpartition("=")
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            raise ValueError(
                f"reward={text!r}: {part.strip()!r} is not name=weight; "
                "write for example 'hpsv2=0.7,clip:ViT-B-32:openai=0.3'"
            ) from None
    return weights


def _known() -> dict[str, Any]:
    from steer import methods

    return {name: getattr(methods, name) for name in methods.__all__ if name[0].isupper()}


def _predicates() -> dict[str, Any]:
    from steer import when

    return {name: getattr(when, name) for name in _PREDICATES}


def _plain_name(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def _name(written: str, known: dict[str, Any], text: str) -> str:
    names = {_plain_name(name): name for name in known}
    found = names.get(_plain_name(written))
    if found is None:
        near = difflib.get_close_matches(_plain_name(written), names, n=1, cutoff=0.5)
        guess = f"did you mean {names[near[0]]}? " if near else ""
        raise ValueError(f"method={text!r}: {written!r} is unknown; {guess}{_hint(known)}")
    return found


def _hint(known: dict[str, Any]) -> str:
    methods = ", ".join(name for name in known if name[0].isupper())
    return f"there are {methods}, written like 'BestOfN(16)'"


def _build(node: ast.Call, known: dict[str, Any], text: str) -> Any:
    if not isinstance(node.func, ast.Name):
        raise ValueError(f"method={text!r}: not a method's name; {_hint(known)}")
    cls = known[_name(node.func.id, known, text)]
    arguments = [_value(argument, known, text) for argument in node.args]
    if any(keyword.arg is None for keyword in node.keywords):
        raise ValueError(f"method={text!r}: write the arguments out, without **")
    options = {str(k.arg): _value(k.value, known, text) for k in node.keywords}
    return _call(cls, text, arguments, options)


def _value(node: ast.expr, known: dict[str, Any], text: str) -> Any:
    if isinstance(node, ast.Call):
        return _build(node, known, text)
    if isinstance(node, ast.BinOp) and type(node.op) in _JOINS:
        left, right = _value(node.left, known, text), _value(node.right, known, text)
        return _call(_JOINS[type(node.op)], text, [left, right], {})
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(
            f"method={text!r}: {ast.unparse(node)!r} is not a number, text, list, method or step "
            "predicate"
        ) from None


def _call(cls: Any, text: str, arguments: list[Any], options: dict[str, Any]) -> Any:
    try:
        return cls(*arguments, **options)
    except TypeError as error:
        reason = str(error).replace("__init__()", "").replace(f"{cls.__name__}. ", "").strip()
        raise ValueError(f"method={text!r}: {reason}") from error
    except ValueError as error:
        raise ValueError(f"method={text!r}: {error}") from error


def _sized(cls: Any, text: str, compute: float, steps: int) -> Any:
    """A method by its bare name, as large as `compute` pays for."""
    if hasattr(cls, "for_compute"):
        return cls.for_compute(compute, steps)
    if list(inspect.signature(cls).parameters) == ["n"]:
        return cls(math.floor(compute))
    needs = ", ".join(inspect.signature(cls).parameters)
    example = "Gate(BestOfN(4), threshold=0.6)"
    raise ValueError(f"method={text!r}: write its arguments out ({needs}), as in {example!r}")
