from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator

import pytest
import torch
from steer_kernels.backend import backend, has_triton


@pytest.fixture(autouse=True)
def _undecided() -> Iterator[None]:
    """Nothing decided before or after."""
    backend.cache_clear()
    yield
    backend.cache_clear()


@pytest.mark.parametrize(("interpret", "expected"), [("1", "triton"), ("0", "torch")])
def test_cpu_runs_triton_only_under_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, interpret: str, expected: str
) -> None:
    if not has_triton():
        pytest.skip("the kernels need Triton 3.6")
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    assert backend("cpu") == expected


@pytest.mark.parametrize(
    ("capability", "hip", "expected"),
    [((9, 0), None, "triton"), ((8, 0), None, "triton"), ((7, 5), None, "torch"),
     ((9, 4), "7.0", "torch")],
)  # fmt: skip
def test_old_and_amd_gpus_run_the_references(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None, expected: str
) -> None:
    if not has_triton():
        pytest.skip("the kernels need Triton 3.6")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert backend("cuda:0") == expected


def test_an_older_triton_runs_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steer_kernels.backend.MINIMUM_TRITON", (99,))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not has_triton() and backend("cpu") == "torch"


def test_without_triton_and_on_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend("meta") == "torch"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert backend("cuda:0") == "torch"


def test_the_choice_is_logged_once_per_device(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "steer.kernels"):
        for _ in range(3):
            backend("meta")
    assert [record.message for record in caplog.records] == ["ops on meta run on torch"]


def test_the_folder_does_not_shadow_the_public_kernels_package() -> None:
    import steer_kernels

    assert getattr(steer_kernels, "__file__", None) is None
