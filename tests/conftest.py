"""Shared set-up: no network, one thread (the models are tiny, threads only get in the way), and no
deadlines for property tests, which a busy machine would miss. And what transformers 4 needs for
references in float64."""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy
import pytest
import torch
from hypothesis import settings
from packaging.version import Version


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")


@pytest.fixture(autouse=True)
def _same_noise() -> None:
    """A test that draws without a seed of its own draws the same, whatever ran before it."""
    torch.manual_seed(0)
    numpy.random.seed(0)
    random.seed(0)


def pytest_configure(config: pytest.Config) -> None:
    """Files are given out in the order below: pytest-xdist would go by their numbers of tests alone
    and leave the longest test, the only one of its file, to the end."""
    if hasattr(config.option, "loadscopereorder"):  # since 3.7; before, there is no way
        config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what `-m` does not ask for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is not in a table's sample is marked `exhaustive`. Files with slow tests first, then
    those with many, so that no process is left alone with one at the end."""
    for item in items:
        mark = item.get_closest_marker("sample")
        if mark is not None and not in_the_sample(item, *mark.args, **mark.kwargs):
            item.add_marker(pytest.mark.exhaustive)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -tests[item.path]))


def in_the_sample(item: Any, *rows: int, every: int = 1) -> bool:
    """Whether the suite runs a case of a table whose test has the marker `sample`.

    Args:
        item: The case.
        *rows: Of a single table, the rows that are run.
        every: Of a single table where no rows are named: the first row, and each `every` rows on.

    Of crossed tables it is a diagonal: the longest one from top to bottom, beside it the others in
    turn. So each row of each table is in the sample.
    """
    tables = [mark.args for mark in item.iter_markers("parametrize")]
    places = [_row_of(item.callspec.params, *table) for table in tables]
    if len(tables) == 1:
        return places[0] in rows if rows else places[0] % every == 0
    sizes = [len(cases) for _, cases in tables]
    turn = places[sizes.index(max(sizes))]
    return all(place == turn % size for place, size in zip(places, sizes, strict=True))


_Param: Any = type(pytest.param())


def _row_of(params: Mapping[str, Any], names: str | Sequence[str], cases: Sequence[Any]) -> int:
    """Which row of a table a case's parameters are; the very objects, which may have no `==`."""
    names = re.split(r"[, ]+", names) if isinstance(names, str) else names
    own = [params[name] for name in names]
    for place, case in enumerate(cases):
        plain = [case] if len(names) == 1 else case
        row = case.values if isinstance(case, _Param) else plain
        if all(value is mine for value, mine in zip(row, own, strict=True)):
            return place
    raise LookupError(f"{own} is in no row")


def _mask_in_its_own_type(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(shape: torch.Size, dtype: torch.dtype, *args: Any, **kwargs: Any) -> torch.Tensor:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype if dtype == torch.float64 else before)
        try:
            return make(shape, dtype, *args, **kwargs)
        finally:
            torch.set_default_dtype(before)

    return made


if Version(version("transformers")).major < 5:
    # It fills CLIP's causal mask in torch's default type, in which float64's lowest has no place.
    # Only references in tests run CLIP in float64.
    from transformers.modeling_attn_mask_utils import AttentionMaskConverter

    AttentionMaskConverter._make_causal_mask = staticmethod(
        _mask_in_its_own_type(AttentionMaskConverter._make_causal_mask)
    )
