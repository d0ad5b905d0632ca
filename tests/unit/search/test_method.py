"""`Method`: what a method has without writing it, and what a wrapper says of the one inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from families import arguments, redness, shared

from steer.core.types import Population, Search
from steer.methods import SMC, BestOfN, Budget, Gate, Guide, Method, Prune, Then, Tree
from steer.pipeline.guided import guided
from steer.search.context import Context


@dataclass(frozen=True)
class Plain(Method):
    """As little as a method can be."""

    n: int | tuple[int, ...] = 2

    def cost(self, steps: int) -> int:
        return self.populations[0] * steps

    def __call__(self, ctx: Context, start: Population) -> Search:
        return ctx.winners((yield from ctx.sample(start)))


def test_the_least_that_a_method_is() -> None:
    assert Plain(3).populations == (3,) and Plain((4, 2)).populations == (4, 2)
    assert Plain(3).draws == 3 and not Plain(3).reorders
    assert repr(Plain(3)) == "Plain(n=3)" and Plain(3) == Plain(3)
    assert Plain.for_compute(4.9, 20) == Plain(4)
    with pytest.raises(ValueError, match=r"compute=0\.5"):
        Plain.for_compute(0.5, 20)
    out = guided(shared("sd"), redness, method=Plain())(**arguments("sd"))
    assert (
        out.rewards == guided(shared("sd"), redness, method=BestOfN(2))(**arguments("sd")).rewards
    )


def test_what_a_method_must_have() -> None:
    class Free(Method):
        def cost(self, steps: int) -> int:
            return 0

    with pytest.raises(TypeError, match="abstract method"):
        Free()  # pyright: ignore[reportAbstractUsage]

    class Stranger:
        populations = (1,)

    stranger: Any = Stranger()
    for make in (lambda: Budget(2, stranger), lambda: Gate(stranger, 0.5), lambda: Guide(stranger)):
        with pytest.raises(ValueError, match="must be a method"):
            make()


@pytest.mark.parametrize(
    ("outer", "draws", "reorders"),
    [
        (Guide(SMC(4)), 4, True),
        (Guide(Prune(8)), 8, False),
        (Gate(SMC(4), 0.5, max_rounds=3), 12, True),
        (Gate(Guide(BestOfN(2)), 0.5, max_rounds=2), 4, False),
        (Budget(2, Tree(8)), 8, True),
        (Then(BestOfN(3), SMC(2)), 3, True),
        (Then(SMC(3), BestOfN(1)), 3, True),
    ],
)
def test_wrappers_say_what_is_inside(outer: Method, draws: int, reorders: bool) -> None:
    assert (outer.draws, outer.reorders) == (draws, reorders)
