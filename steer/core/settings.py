"""Settings files: YAML in, frozen pydantic models out, every mistake in one sentence."""

from __future__ import annotations

import re
import types
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from steer.core.checks import near


T = TypeVar("T")
S = TypeVar("S", bound="Settings")

Several = Annotated[tuple[T, ...], Field(strict=False)]
"""A field of several values: `Several[str]`. A list, as YAML has it, becomes a tuple."""

_FIRST = ("extra_forbidden", "missing")
_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
_NUMBERS = ("int_type", "int_from_float", "float_type", "finite_number", *_BOUNDS)
_SENTENCES = {
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "model_type": "must hold 'name: value' lines",
    "model_attributes_type": "must hold 'name: value' lines",
    "dict_type": "must hold 'name: value' lines",
    "mapping_type": "must hold 'name: value' lines",
}


class Settings(BaseModel):
    """A frozen set of named values, with types that are checked and never converted.

    A whole number is taken for a float; nothing else changes its type. Bounds are written into the
    fields (`steps: int = Field(default=10, ge=1)`, also of `int | None`), rules between fields into
    validators that raise ValueError with a whole sentence.

    Raises:
        pydantic.ValidationError: Where it is constructed in Python; a ValueError. `build` and
            files raise the caller's own error with one sentence instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def read_yaml(path: str | Path, error: type[Exception]) -> dict[str, Any]:
    """The mapping in a YAML file.

    Numbers are read as YAML 1.2 has them: `1e-5` is one, which PyYAML takes for text.

    Args:
        path: The file; `~` is the home folder.
        error: What is raised where the file cannot be read, is not YAML, holds no mapping, or
            holds a key twice.
    """
    name = f"config={str(path)!r}"
    try:
        data = load_yaml(Path(path).expanduser().read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as cause:
        reason = getattr(cause, "strerror", None) or cause
        raise error(f"{name}: cannot be read ({reason})") from cause
    except (yaml.YAMLError, ValueError) as cause:  # a date that is none is a ValueError
        raise error(f"{name}: not YAML ({cause})") from cause
    if not isinstance(data, dict):
        raise error(f"{name}: must hold 'name: value' lines")
    return data


def load_yaml(text: str) -> Any:
    """What a YAML text holds; yaml.YAMLError or ValueError also where it is nested too deeply."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def build(cls: type[S], data: object, error: type[Exception], where: str = "") -> S:
    """Settings from plain values, such as a YAML file's.

    Args:
        cls: The settings.
        data: Values by field; fields with a default may be missing. Settings stay as they are.
        error: What is raised, with one sentence: the key, its value and what it must be.
        where: What the mapping is called, such as `"objective"`; stands before the sentence.
    """
    if isinstance(data, cls):
        return data
    place = f"{where}: " if where else ""
    if not isinstance(data, Mapping):
        raise error(f"{place}{data!r}: must hold 'name: value' lines")
    try:
        return cls.model_validate(dict(data))
    except ValidationError as cause:
        raise error(place + sentence(cls, data, cause)) from cause


def sentence(cls: type[Settings], data: Mapping[str, Any], found: ValidationError) -> str:
    """What is wrong with `data`, in one sentence: the first unknown key, missing key or value."""
    errors = [(_keys(e["loc"], data), e) for e in found.errors(include_url=False)]
    errors.sort(key=lambda pair: (*_FIRST, pair[1]["type"]).index(pair[1]["type"]))
    top = errors[0][1]["loc"][:1]
    # Of a union's errors, the deepest tells most.
    keys, first = max((e for e in errors if e[1]["loc"][:1] == top), key=lambda e: len(e[0]))
    name, value = _name(keys), first["input"]
    match first["type"]:
        case "value_error" | "assertion_error":
            return str(first.get("ctx", {}).get("error", first["msg"]))
        case "extra_forbidden":
            owner = _name(keys[:-1])
            known = list(_owner(cls, keys[:-1]).model_fields)
            place = f"{owner}: " if owner else ""
            return f"{place}{str(keys[-1])!r} is unknown{near(str(keys[-1]), known)}"
        case "missing":
            owner = _name(keys[:-1])
            place = f"{owner}: " if owner else ""
            return f"{place}{str(keys[-1])!r} is missing: add a line '{keys[-1]}: ...'"
        case "literal_error":
            return f"{name}={value!r}: one of {_choices(cls, keys) or first['msg']}"
        case kind if kind in _NUMBERS:
            return f"{name}={value!r}: {_number(cls, keys, first['msg'])}{_text_hint(value)}"
        case kind:
            return f"{name}={value!r}: {_SENTENCES.get(kind, _plain(first['msg']))}"


def _keys(loc: Sequence[int | str], data: object) -> list[int | str]:
    """A location without pydantic's own parts (the names of a union's members)."""
    keys: list[int | str] = []
    for i, part in enumerate(loc):
        mapped = isinstance(data, Mapping) and part in data
        if mapped or (isinstance(data, list | tuple) and isinstance(part, int)):
            keys.append(part)
            data = data[part]  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType]
        elif isinstance(data, Mapping) and i == len(loc) - 1 and not _is_tag(part):
            keys.append(part)  # of a missing value
    return keys or list(loc)


def _is_tag(part: int | str) -> bool:
    return not str(part).isidentifier() or part in (
        "int",
        "float",
        "str",
        "bool",
        "constrained-int",
    )


def _name(keys: Sequence[int | str]) -> str:
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys]
    return "".join(parts).removeprefix(".")


def _owner(cls: type[Settings], keys: Sequence[int | str]) -> type[Settings]:
    """The settings that hold what `keys` lead to."""
    for key in keys:
        field = cls.model_fields.get(str(key))
        if field is not None:
            cls = next(iter(_settings(field.annotation)), cls)
    return cls


def _settings(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, Settings) else []
    return [found for part in get_args(annotation) for found in _settings(part)]


def _field(cls: type[Settings], keys: Sequence[int | str]) -> FieldInfo | None:
    return _owner(cls, keys[:-1]).model_fields.get(str(keys[-1]))


def _choices(cls: type[Settings], keys: Sequence[int | str]) -> str:
    field = _field(cls, keys)
    members = _members(field.annotation) if field is not None else []
    literals = [kind for kind, _ in members if get_origin(kind) is Literal]
    return ", ".join(str(choice) for kind in literals for choice in get_args(kind))


def _members(annotation: Any) -> list[tuple[Any, list[Any]]]:
    """The members of a union with their bounds, or the annotation alone; without None."""
    union = get_origin(annotation) in (Union, types.UnionType)
    found: list[tuple[Any, list[Any]]] = []
    for kind in get_args(annotation) if union else (annotation,):
        if get_origin(kind) is Annotated:
            base, *notes = get_args(kind)
            found.append((base, [m for note in notes for m in getattr(note, "metadata", [note])]))
        elif kind is not type(None):
            found.append((kind, []))
    return found


def _number(cls: type[Settings], keys: Sequence[int | str], message: str) -> str:
    """`must be a whole number of at least 1`, from the field's type and bounds."""
    field = _field(cls, keys)
    members = [] if field is None else _members(field.annotation)
    found = next((m for kind in (float, int) for m in members if m[0] is kind), None)
    if field is None or found is None:
        return _plain(message)
    bounds = {
        sign: getattr(bound, sign)
        for bound in (*field.metadata, *found[1])
        for sign in ("ge", "gt", "le", "lt")
        if getattr(bound, sign, None) is not None
    }
    return f"must be a {'number' if found[0] is float else 'whole number'}{_span(**bounds)}"


def _span(
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> str:
    low, high = (ge if ge is not None else gt), (le if le is not None else lt)
    if low is not None and high is not None:
        ends = "[" if ge is not None else "(", "]" if le is not None else ")"
        return f" in {ends[0]}{low:g}, {high:g}{ends[1]}"
    if ge is not None or le is not None:
        return f" of at least {ge:g}" if ge is not None else f" of at most {le:g}"
    return f" above {gt:g}" if gt is not None else f" below {lt:g}" if lt is not None else ""


def _text_hint(value: object) -> str:
    if not isinstance(value, str):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    written = str(int(number)) if number.is_integer() else repr(number)
    if "e" not in value.lower():
        return f" (it is text: write {written} without quotes)"
    written = written if "." in written else written.replace("e", ".0e")
    return f" (YAML reads {value} as text: write {written})"


def _plain(message: str) -> str:
    return message.replace("Input should be", "must be").replace("valid integer", "whole number")


class _Loader(yaml.SafeLoader):
    """Safe; refuses a key given twice, which YAML forbids and PyYAML drops."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Hashable] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key, deep=True)
            if isinstance(name, Hashable):
                if name in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {name!r} stands there twice", key.start_mark
                    )
                seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
