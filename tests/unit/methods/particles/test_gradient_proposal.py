"""`GradientProposal`: as the proposal of an SMC, and bad input; its law is in `tests/law`."""

from __future__ import annotations

import math
from typing import Any

import pytest
from counted_work import agrees, counting, reddish
from families import arguments, shared

from steer.core.when import between, every
from steer.methods import SMC, GradientProposal
from steer.pipeline.guided import guided


def test_as_a_proposal() -> None:
    proposal = GradientProposal(through="x0", when=between(0.3, 0.8), pull=0.2)
    method = SMC(4, when=every(2), proposal=proposal)
    pipe = shared("sd", "euler")
    with counting(pipe) as seen:
        out = guided(pipe, reddish, method=method)(**arguments("sd"))
    assert agrees(seen, out.report)
    assert out.report.ledger.equivalent_rows == method.cost(4)
    assert math.isfinite(out.rewards[0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lam": 0.0}, "lam=0.0"),
        ({"pull": -1.0}, "pull=-1.0"),
        ({"pull": None}, "lam=None and pull=None"),
        ({"temper": 0.0}, "temper=0.0"),
        ({"eta": 1.5}, "eta=1.5"),
        ({"through": "vae"}, "through='vae'"),
        ({"when": 0.5}, "when=0.5"),
    ],
)
def test_bad_proposals(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        GradientProposal(**options)
