"""What counts as a quoted text of a prompt."""

from __future__ import annotations

import pytest

from steer.rewards.ocr.quotes import quoted


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign that says "OPEN"', ["OPEN"]),
        ("a sign that says “Open Late”, at night", ["Open Late"]),
        ("ein Schild, auf dem „Offen“ steht", ["Offen"]),
        ("une enseigne « Bar »", ["Bar"]),
        ("写着「你好」的牌子", ["你好"]),
        ('写着"你好"的牌子', ["你好"]),
        ("a mug with 'Best Dad' on it", ["Best Dad"]),
        ("a mug with ‘Best Dad’ on it", ["Best Dad"]),
        ("a sign ‘Don’t panic’", ["Don’t panic"]),
        ("a sign 'Don't panic'!", ["Don't panic"]),
        ("a sign \"It's 'fine'\"", ["It's 'fine'"]),
        ('"Ada" above "Bea", and \'Cy\' below', ["Ada", "Bea", "Cy"]),
        ("the dogs' bowl says 'REX'", ["REX"]),
        ("a '90s poster that says 'WOW'", ["WOW"]),
        ("a rock 'n' roll band", []),
        ("don't, won't, the cats' and the dogs'", []),
        ('a 5" nail beside a 6" nail', []),
        ('a 5" nail beside a sign "NAILS"', ["NAILS"]),
        ('an empty sign "" or " " or "..."', []),
        ("no quotes", []),
        ('one that never ends "oops', []),
    ],
)
def test_quoted(prompt: str, texts: list[str]) -> None:
    assert quoted(prompt) == texts


def test_hostile_prompts_take_no_time() -> None:
    assert quoted("'" * 20_000) == [] == quoted("“" * 20_000)
    assert quoted("'a " * 5_000) == []
