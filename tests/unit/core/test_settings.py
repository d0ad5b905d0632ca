"""Settings: what a file may hold, and the one sentence that says what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from steer.core.settings import Settings, Several, build, read_yaml


class Part(Settings):
    share: float = Field(default=0.0, ge=0, le=1)
    margin: float | Mapping[str, float] = 0.0
    most: int | None = Field(default=None, ge=1)


class Whole(Settings):
    out: str
    steps: int = Field(default=10, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    seeds: int | Several[int] = 4
    names: Several[str] = ()
    kind: Literal["one", "two"] = "one"
    flag: bool = False
    part: Part | None = None
    parts: Several[Part] = ()

    @model_validator(mode="after")
    def _check(self) -> Whole:
        if self.flag and self.kind == "two":
            raise ValueError("flag=True: not with kind: two")
        return self


class OwnError(Exception):
    pass


def test_plain_values_become_settings_with_lists_as_tuples() -> None:
    found = build(
        Whole,
        {"out": "x", "lr": 1, "seeds": [1, 2], "names": ["a"], "part": {"margin": {"r": 1}}},
        OwnError,
    )
    assert found.seeds == (1, 2) and found.names == ("a",) and type(found.lr) is float
    assert found.part is not None and found.part.margin == {"r": 1.0}
    assert build(Whole, found, OwnError) is found
    with pytest.raises(ValidationError):
        found.steps = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"out": None}, "out=None: must be text"),
        ({"stepz": 3}, "'stepz' is unknown; did you mean 'steps'? there are out, steps, lr"),
        ({"qqq": 3}, "'qqq' is unknown; there are out, steps, lr"),
        ({"steps": 0}, "steps=0: must be a whole number of at least 1"),
        ({"steps": True}, "steps=True: must be a whole number of at least 1"),
        ({"steps": 2.5}, "steps=2.5: must be a whole number of at least 1"),
        ({"steps": "3"}, "(it is text: write 3 without quotes)"),
        ({"lr": 0}, "lr=0: must be a number above 0"),
        ({"lr": float("nan")}, "lr=nan: must be a number above 0"),
        ({"lr": "1e-5"}, "lr='1e-5': must be a number above 0 (YAML reads 1e-5 as text: write 1.0"),
        ({"lr": "fast"}, "lr='fast': must be a number above 0"),
        ({"names": "a"}, "names='a': must be a list"),
        ({"names": ["a", 3]}, "names[1]=3: must be text"),
        ({"seeds": [1, True]}, "seeds[1]=True: must be a whole number"),
        ({"kind": "three"}, "kind='three': one of one, two"),
        ({"flag": 1}, "flag=1: must be true or false"),
        ({"flag": True, "kind": "two"}, "flag=True: not with kind: two"),
        ({"part": 3}, "part=3: must hold 'name: value' lines"),
        ({"part": {"shair": 1}}, "part: 'shair' is unknown; did you mean 'share'"),
        ({"part": {"share": 2}}, "part.share=2: must be a number in [0, 1]"),
        ({"part": {"most": 0}}, "part.most=0: must be a whole number of at least 1"),
        ({"part": {"margin": {"r": "x"}}}, "part.margin.r='x': must be a valid number"),
        ({"parts": [{}, {"share": -1}]}, "parts[1].share=-1: must be a number in [0, 1]"),
    ],
)
def test_what_is_wrong_is_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OwnError) as refused:
        build(Whole, {"out": "x", **values}, OwnError, "here")
    assert str(refused.value).startswith("here: " + message) or message in str(refused.value)
    assert "\n" not in str(refused.value) and "pydantic" not in str(refused.value)


def test_a_missing_key_and_no_mapping_at_all_are_named() -> None:
    with pytest.raises(OwnError, match=r"'out' is missing: add a line 'out: ...'"):
        build(Whole, {}, OwnError)
    with pytest.raises(OwnError, match=r"\[3\]: must hold 'name: value' lines"):
        build(Whole, [3], OwnError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("just text", "must hold 'name: value' lines"),
        ("a: 1\na: 2", "the key 'a' stands there twice"),
        ("a: {b: 1, b: 2}", "the key 'b' stands there twice"),
        ("a: 2026-13-45", "not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_files_that_hold_no_settings(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(OwnError, match=message) as refused:
        read_yaml(path, OwnError)
    assert repr(str(path)) in str(refused.value)
    with pytest.raises(OwnError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml", OwnError)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(OwnError, match="cannot be read"):
        read_yaml(path, OwnError)


def test_numbers_with_an_exponent_and_merged_mappings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: 1e-5\nb: '1e-5'\nc: 1e-5x\nd: &d {x: 1, y: 2}\ne: {<<: *d, y: 3}\n")
    assert read_yaml(path, OwnError) == {
        "a": 1e-5,
        "b": "1e-5",
        "c": "1e-5x",
        "d": {"x": 1, "y": 2},
        "e": {"x": 1, "y": 3},
    }
