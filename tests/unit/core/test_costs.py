"""What work costs, and how much of it a budget pays for."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from steer.core.costs import ROWS, Costs, Work


SD15 = Costs(row=1.606, decode=2.515, preview=2.515, score=0.335, row_backward=1.606, gradient=2.85)
"""TFLOPs of Stable Diffusion 1.5 at 512 pixels, guidance included, and of a ViT-H."""


def test_all_kinds_count() -> None:
    costs = Costs(row=1, decode=10, preview=100, score=1e3, row_backward=1e4, gradient=1e5)
    work = Work(rows=1, backward_rows=5, decodes=2, previews=3, scores=4, gradients=6)
    assert costs.of(work) == 654321
    assert costs.of(work + work) == costs.of(work * 2) == 2 * 654321
    assert costs.plain(20) == 30
    assert costs.calls(Work(rows=20, decodes=1), 20) == 1


def test_rows_alone() -> None:
    work = Work(rows=7, backward_rows=2, decodes=9, previews=9, scores=9, gradients=9)
    assert ROWS.of(work) == work.equivalent_rows == 11


def test_a_single_candidate_is_decoded_by_the_pipeline_alone() -> None:
    assert Work.best_of(20, 1) == Work(rows=20, decodes=1, scores=1)
    assert Work.best_of(80, 4) == Work(rows=80, decodes=5, scores=4)
    assert Work.best_of(80, 4, 6) == Work(rows=80, decodes=5, previews=6, scores=10)


@given(compute=st.floats(1, 200), steps=st.integers(1, 60), least=st.integers(1, 5))
@pytest.mark.parametrize("costs", [ROWS, SD15])
def test_the_most_that_fits(costs: Costs, compute: float, steps: int, least: int) -> None:
    def work(n: int) -> Work:
        return Work.best_of(n * steps, n)

    most = costs.most(work, compute, steps, least)
    assert most >= least
    assert most == least or costs.fits(work(most), compute, steps)
    assert not costs.fits(work(most + 1), compute, steps)
