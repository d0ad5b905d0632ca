"""Where kernel tests run, and memory poisoned before it.

A test that asks for the fixture `device` launches kernels. It runs on the GPU where there is one,
and under Triton's interpreter in a process of its own: `TRITON_INTERPRET` must be set before Triton
is imported, and would turn every other op of the suite to the interpreter. `test_interpreter.py`
starts that process; by hand it is

    TRITON_INTERPRET=1 python -m pytest tests/kernels

All other tests of this folder run in the ordinary process only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from steer_kernels.backend import has_triton
from torch import Tensor


FOLDER = Path(__file__).parent
INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
LAUNCHES = INTERPRET or torch.cuda.is_available()

if INTERPRET and has_triton():
    from triton.runtime.interpreter import InterpretedFunction, _patch_lang

    _known: set[int] = set()

    def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
        """A function called from a kernel, which has already put the interpreter's ops in place.

        Only those of modules that no kernel is in, Triton's own, are put in place here, where they
        stay. The interpreter does so in every call: a third of the time of these tests.
        """
        module = self.fn.__globals__
        if id(module) not in _known:
            _patch_lang(self.fn)
            _known.add(id(module))
        return self.rewrite()(*args, **kwargs)

    InterpretedFunction.__call__ = _call


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Kernel tests stay where kernels run; all others stay out of the interpreter's process."""
    dropped = [item for item in items if FOLDER in item.path.parents and not _runs_here(item)]
    if dropped and len(dropped) == len(items) and not INTERPRET:
        raise pytest.UsageError("these tests launch kernels: set TRITON_INTERPRET=1")
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in set(dropped)]


def _runs_here(item: pytest.Item) -> bool:
    launches = "device" in getattr(item, "fixturenames", ())
    return LAUNCHES if launches else not INTERPRET


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Where kernels run; `torch.empty` and its kin return NaN, so that unwritten output shows."""
    if not has_triton():
        pytest.skip("the kernels need Triton 3.6")
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(Tensor, name, _poisoned(getattr(Tensor, name)))
    yield torch.device("cpu" if INTERPRET else "cuda")


def _poisoned(allocate: Any) -> Any:
    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        out = allocate(*args, **kwargs)
        if out.device.type == "meta" or type(out) not in (Tensor, torch.nn.Parameter):
            return out
        if out.dtype == torch.bool or not out.numel():
            return out
        return out.fill_(torch.nan if out.is_floating_point() else 85)

    return poisoned
