"""Objects written as text, such as `"Gate(BestOfN(4), 0.6)"`: read as literals, never evaluated."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from steer.core.checks import did_you_mean


_JOINS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}
_WRITTEN_CALL = re.compile(r"\s*\(*\s*[A-Za-z][\w-]*\s*\(.*\)\s*", re.S)
_CALLED = re.compile(r"'[^']*'|\"[^\"]*\"|[A-Za-z][\w-]*[A-Za-z](?=\s*\()")


@dataclass(frozen=True)
class Grammar:
    """What may be written: calls of known names, with literals and further calls inside.

    Names may be written in any case and with dashes. Values may be joined by `&` and `|`.

    Attributes:
        what: What the text is, for errors: `"method"`.
        known: Everything that may be called, by name.
        outermost: Names that may stand outermost.
        hint: What there is, for errors.
        kinds: What an argument may be besides a literal, for errors.
    """

    what: str
    known: Mapping[str, Any]
    outermost: tuple[str, ...]
    hint: str
    kinds: str = "number, text, list or another expression"

    def read(self, text: str) -> Any:
        """The object that `text` describes.

        Raises:
            ValueError: An unknown name, something that is not a literal, or arguments that do not
                fit; the message says which and what there is.
        """
        node = self._parse(text)
        if not isinstance(node, ast.Call) or getattr(node.func, "id", None) not in self.outermost:
            raise ValueError(f"{self.what}={text!r}: not a {self.what}; {self.hint}")
        return self._build(node, text)

    def of_mapping(self, call: Mapping[str, Any]) -> Any:
        """The object that `{name: {argument: value}}` describes, as YAML gives it.

        Values are themselves such mappings, text that is written like a call, or literals.

        Raises:
            ValueError: As for `read`, or a mapping that is no call.
        """
        if not self.is_call(call):
            raise ValueError(f"{self.what}={call!r}: must be one name with its arguments")
        ((written, arguments),) = call.items()
        name, text = self.name(written, str(dict(call))), str(dict(call))
        if name not in self.outermost:
            raise ValueError(f"{self.what}={text!r}: not a {self.what}; {self.hint}")
        return self._of_call(name, arguments, text)

    @staticmethod
    def is_call(value: Any) -> bool:
        """Whether a value is `{name: {argument: value}}`, or `{name: None}` for no arguments."""
        if not isinstance(value, Mapping) or len(value) != 1:
            return False
        ((name, arguments),) = value.items()
        return isinstance(name, str) and (arguments is None or isinstance(arguments, Mapping))

    def _of_call(self, name: str, arguments: Mapping[str, Any] | None, text: str) -> Any:
        options = {str(k): self._of_value(v, text) for k, v in (arguments or {}).items()}
        return self._call(self.known[name], text, [], options)

    def _of_value(self, value: Any, text: str) -> Any:
        if self.is_call(value):
            ((written, arguments),) = value.items()
            return self._of_call(self.name(written, text), arguments, text)
        if isinstance(value, Mapping):
            raise ValueError(
                f"{self.what}={text!r}: {value!r} is no argument; what stands inside is written as "
                "{name: {argument: value}}"
            )
        if isinstance(value, str) and _WRITTEN_CALL.fullmatch(value):
            return self._value(self._parse(value), value)
        return value

    def name(self, written: str, text: str) -> str:
        """The known name that is meant. Raises ValueError, with a suggestion, for an unknown."""
        names = {_plain(name): name for name in self.known}
        found = names.get(_plain(written))
        if found is None:
            guess = did_you_mean(_plain(written), names)
            raise ValueError(f"{self.what}={text!r}: {written!r} is unknown; {guess}{self.hint}")
        return found

    def _parse(self, text: str) -> ast.expr:
        """The syntax tree of an expression, every name in it spelled as it is known."""
        source = _CALLED.sub(lambda m: m[0] if m[0][0] in "'\"" else self.name(m[0], text), text)
        try:
            return ast.parse(source.strip(), mode="eval").body
        except SyntaxError as error:
            raise ValueError(
                f"{self.what}={text!r}: cannot be read ({error.msg}); {self.hint}"
            ) from error

    def _build(self, node: ast.Call, text: str) -> Any:
        if not isinstance(node.func, ast.Name):
            raise ValueError(f"{self.what}={text!r}: not a {self.what}'s name; {self.hint}")
        made = self.known[self.name(node.func.id, text)]
        arguments = [self._value(argument, text) for argument in node.args]
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError(f"{self.what}={text!r}: write the arguments out, without **")
        options = {str(k.arg): self._value(k.value, text) for k in node.keywords}
        return self._call(made, text, arguments, options)

    def _value(self, node: ast.expr, text: str) -> Any:
        if isinstance(node, ast.Call):
            return self._build(node, text)
        if isinstance(node, ast.BinOp) and type(node.op) in _JOINS:
            sides = [self._value(node.left, text), self._value(node.right, text)]
            return self._call(_JOINS[type(node.op)], text, sides, {})
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise ValueError(
                f"{self.what}={text!r}: {ast.unparse(node)!r} is not a {self.kinds}"
            ) from None

    def _call(self, made: Any, text: str, arguments: list[Any], options: dict[str, Any]) -> Any:
        try:
            return made(*arguments, **options)
        except TypeError as error:
            name = getattr(made, "__name__", "")
            reason = str(error).replace("__init__()", "").replace(f"{name}. ", "").strip()
            raise ValueError(f"{self.what}={text!r}: {reason}") from error
        except ValueError as error:
            raise ValueError(f"{self.what}={text!r}: {error}") from error


def _plain(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()
