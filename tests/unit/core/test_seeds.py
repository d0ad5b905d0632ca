"""The three rules by which a prompt gets its seed; committed results hang on each number."""

from __future__ import annotations

from hypothesis import given, strategies as st

from steer.core.seeds import pair_seed, prompt_seed, row_seed, text_seed


SEEDS = st.integers(0, 2**31)
INDICES = st.integers(0, 10_000)


def test_numbers_stay() -> None:
    assert prompt_seed(5, 3) == 8
    assert pair_seed(3, 1) == row_seed(3, 1) == 6370681954628640199
    assert text_seed(0, "a red circle", 2) == 47456867075961


@given(SEEDS, INDICES, SEEDS, INDICES)
def test_pairs_share_no_seed(seed: int, index: int, other: int, place: int) -> None:
    same = (seed, index) == (other, place)
    assert (pair_seed(seed, index) == pair_seed(other, place)) == same


@given(SEEDS, INDICES)
def test_seeds_fit_a_generator(seed: int, index: int) -> None:
    assert 0 <= pair_seed(seed, index) < 2**63 and 0 <= text_seed(seed, "x", index) < 2**48
