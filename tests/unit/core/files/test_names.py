"""Names: their natural order, and as folders."""

from __future__ import annotations

from hypothesis import given, strategies as st

from steer.core.files.names import natural_key, slug


@given(st.lists(st.text("0123456789ab/.", max_size=8), max_size=6))
def test_natural_order_is_total(names: list[str]) -> None:
    """Numbers by value, and no two different names compare as a mixture that cannot be sorted."""
    ordered = sorted(names, key=natural_key)
    assert sorted(reversed(ordered), key=natural_key) == sorted(ordered, key=natural_key)


def test_natural_order() -> None:
    names = ["b2.png", "b10.png", "a/10.png", "a/9.png", "b1.png"]
    assert sorted(names, key=natural_key) == ["a/9.png", "a/10.png", "b1.png", "b2.png", "b10.png"]


def test_reward_names_become_folders() -> None:
    assert slug("hpsv2.1") == "hpsv2.1"
    made = [
        slug(name) for name in ("a=1,b=2", "a=1;b=2", "clip:ViT-B-32:openai", "../..", "rank(a)")
    ]
    assert len(set(made)) == 5
    assert all("/" not in name and ".." not in name[:2] for name in made)
