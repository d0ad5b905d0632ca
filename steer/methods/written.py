"""A method as the shell or a YAML file gives it, as the one line of text that names it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


_CALL = re.compile(r"\s*\(*\s*[A-Za-z][\w-]*\s*\(.*\)\s*", re.S)
_EXAMPLE = "SMC: {n: 8, when: every(4)}"


def written(method: str | None, arguments: str | None = None) -> str | None:
    """`--method` and `--method-args` as one expression, such as `"smc(n=8, lam=2.0)"`.

    Args:
        method: A name, an expression, or a `.yaml` file; `None` leaves the choice to `compute`.
        arguments: What stands between the brackets: `"n=8, lam=2.0, when=every(4)"`.

    Returns:
        Text for `steer.cli.parse.parse_method`, which checks it; a bare name stays bare.

    Raises:
        ValueError: Arguments without a method's name before them, or a file that is no method's.
    """
    if method is None:
        if arguments is not None:
            raise ValueError(f"--method-args {arguments!r}: of which method? Add --method smc")
        return None
    method = method.strip()
    is_file = Path(method).suffix.lower() in (".yaml", ".yml")
    text = from_yaml(Path(method)) if is_file else method
    if arguments is None:
        return text
    if "(" in text:
        raise ValueError(
            f"--method-args {arguments!r} with --method {method!r}, which has its arguments "
            "already: give them in one place"
        )
    return f"{text}({arguments})"


def from_yaml(path: Path) -> str:
    """The method that a YAML file names, as text.

        SMC:
          n: 8
          lam: 2.0
          when: every(4) & between(0.25, 0.75)

    One key, the method's name, with its arguments below it; methods within methods in the same
    way, or written out as text. A file may also hold the expression alone: `SMC(8, lam=2.0)`.

    Raises:
        ValueError: Not YAML, or not of this form.
        OSError: The file cannot be read.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"method={str(path)!r}: not YAML ({reason})") from error
    if isinstance(content, str):
        return content.strip()
    if _is_method(content):
        return _call(content, str(path))
    raise ValueError(f"method={str(path)!r}: must hold one method by its name, as in {_EXAMPLE!r}")


def _is_method(value: Any) -> bool:
    """Whether this is `{name: {argument: value}}`, or `{name: null}` for no arguments."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    ((name, arguments),) = value.items()
    return isinstance(name, str) and (arguments is None or isinstance(arguments, Mapping))


def _call(method: Mapping[str, Any], where: str) -> str:
    ((name, arguments),) = method.items()
    given = [f"{key}={_value(value, where)}" for key, value in (arguments or {}).items()]
    return f"{name}({', '.join(given)})"


def _value(value: Any, where: str) -> str:
    """A value as it is written in an expression; text that looks like a call is one."""
    if _is_method(value):
        return _call(value, where)
    if isinstance(value, Mapping):
        raise ValueError(
            f"method={where!r}: {value!r} is no argument; a method within a method is written "
            f"{_EXAMPLE!r}"
        )
    if isinstance(value, str) and _CALL.fullmatch(value):
        return value.strip()
    return repr(value)
