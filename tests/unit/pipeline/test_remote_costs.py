"""What remote judges cost, in the report of the call that asked them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import pytest
from chat_servers import Faulty, failing, running
from families import arguments, shared

import steer
from steer.core.spent import Spent
from steer.methods import BestOfN
from steer.rewards.remote.judge import openai


@pytest.fixture
def faulty() -> Faulty:
    return Faulty()


@pytest.fixture
def url(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("OPENAI_API_KEY", "STEER_REWARD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with running(faulty.app) as address:
        yield f"{address}/v1"


def test_the_ledger_has_what_the_server_was_asked(faulty: Faulty, url: str) -> None:
    first, other = openai(f"m@{url}", retries=0), openai(f"judge@{url}", retries=0)
    guided = steer.guided(shared("sd"), {first: 1.0}, judge=other, method=BestOfN(3))
    ledger = guided(**arguments("sd")).report.ledger
    assert faulty.seen == ledger.remote.requests == 3 + 2  # the winner's, and particle 0's
    assert ledger.remote == Spent(5, 0, 500, 5)  # 100 tokens read and 1 written of each
    assert ledger.to_dict()["remote"] == asdict(ledger.remote)
    assert "Servers: 5 requests, 0 scores known before, 500 tokens read, 5 written" in str(
        guided.report
    )
    again = guided(**arguments("sd")).report.ledger  # the same images: nothing is asked
    assert again.remote == Spent(reused=5) and faulty.seen == 5
    assert first.spent == Spent(3, 3, 300, 3) and other.spent == Spent(2, 2, 200, 2)


def test_a_call_without_servers_has_none() -> None:
    report = steer.guided(shared("sd"), "compressibility", method=BestOfN(2))(
        **arguments("sd")
    ).report
    assert report.ledger.remote == Spent() and "Servers" not in str(report)


def test_answers_before_a_fault_are_on_the_reward(faulty: Faulty, url: str) -> None:
    reward = openai(f"m@{url}", retries=0, concurrency=1)
    faulty.faults = [None, failing(500)]
    guided = steer.guided(shared("sd"), reward, method=BestOfN(3))
    with pytest.raises(steer.SteerError, match="fails"):
        guided(**arguments("sd"))
    assert reward.spent.requests == faulty.seen - 1
