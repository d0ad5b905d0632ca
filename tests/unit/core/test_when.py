"""Step predicates: which steps, how they join, and that a repr makes the same again."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from steer.core.when import When, at, between, every


SIMPLE = st.one_of(
    st.integers(1, 9).map(every),
    st.lists(st.floats(0, 1), min_size=2, max_size=2).map(lambda ends: between(*sorted(ends))),
    st.lists(st.integers(0, 30) | st.floats(0, 1, exclude_min=True), min_size=1, max_size=4).map(
        lambda places: at(*places)
    ),
)
PREDICATES = st.recursive(
    SIMPLE,
    lambda inner: st.tuples(inner, inner, st.booleans()).map(
        lambda both: both[0] & both[1] if both[2] else both[0] | both[1]
    ),
    max_leaves=4,
)


@pytest.mark.parametrize(
    ("when", "steps", "expected"),
    [
        (every(4), 20, [3, 7, 11, 15, 19]),
        (every(1), 3, [0, 1, 2]),
        (every(9), 5, []),
        (at(0.2, 0.4, 0.6, 0.8), 20, [3, 7, 11, 15]),
        (at(0.2, 0.4, 0.6, 0.8), 50, [9, 19, 29, 39]),
        (at(0.01, 1.0), 20, [0, 19]),
        (at(0, 7), 20, [0, 7]),
        (at(25), 20, []),
        (between(0.25, 0.5), 20, [4, 5, 6, 7, 8, 9]),
        (between(0, 1), 4, [0, 1, 2, 3]),
        (every(4) & between(0.25, 0.75), 20, [7, 11]),
        (every(5) | at(0), 10, [0, 4, 9]),
    ],
)
def test_steps(when: When, steps: int, expected: list[int]) -> None:
    assert when.indices(steps) == expected


@given(PREDICATES, PREDICATES, st.integers(1, 40))
def test_joins_are_set_operations_and_reprs_are_code(a: When, b: When, steps: int) -> None:
    both, either = set((a & b).indices(steps)), set((a | b).indices(steps))
    assert both == set(a.indices(steps)) & set(b.indices(steps))
    assert either == set(a.indices(steps)) | set(b.indices(steps))
    assert eval(repr(a), {"every": every, "between": between, "at": at}) == a
    assert hash(a) == hash(eval(repr(a), {"every": every, "between": between, "at": at}))


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "4"])
def test_every_checks(k: object) -> None:
    with pytest.raises(ValueError, match="write every"):
        every(k)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("ends", [(0.5, 0.2), (-0.1, 0.5), (0.1, 1.1), ("a", 1), (float("nan"), 1)])
def test_between_checks(ends: tuple[object, object]) -> None:
    with pytest.raises(ValueError, match="write between"):
        between(*ends)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("places", [(), (0.0,), (1.5,), (-1,), ("a",), (True,), (float("nan"),)])
def test_at_checks(places: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="write at"):
        at(*places)  # pyright: ignore[reportArgumentType]


def test_only_predicates_join() -> None:
    with pytest.raises(TypeError):
        every(2) & 3  # pyright: ignore[reportOperatorIssue]
