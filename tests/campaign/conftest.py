"""The campaign: kills, full disks, hostile files, fuzz and threads; `make campaign` runs it.

Its counts are settings (environment variables, for a short try):

    STEER_CAMPAIGN_KILLS=150  STEER_CAMPAIGN_CALLS=10000  STEER_CAMPAIGN_FILES=600
    STEER_CAMPAIGN_OUT=benchmarks/results/campaign.json     where the figures go; nowhere by default
    STEER_CAMPAIGN_SEED=0
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from campaign_books import OUT, SEED, Books


BOOKS = Books()


@pytest.fixture(scope="session")
def books() -> Books:
    """Where every test of the campaign writes down what it did and found."""
    return BOOKS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in here is the campaign."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.campaign)


def pytest_sessionstart(session: pytest.Session) -> None:
    BOOKS.started = time.perf_counter()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if OUT and BOOKS.counts:
        found = BOOKS.figures() | {"seed": SEED, "exit_status": int(exitstatus)}
        Path(OUT).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "utf-8")
