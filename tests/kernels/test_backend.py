from __future__ import annotations

import pytest
from steer_kernels.backend import backend


@pytest.mark.parametrize(("interpret", "expected"), [("1", "triton"), ("0", "torch")])
def test_cpu_runs_triton_only_under_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, interpret: str, expected: str
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    backend.cache_clear()
    try:
        assert backend("cpu") == expected
    finally:
        backend.cache_clear()


def test_the_folder_does_not_shadow_the_public_kernels_package() -> None:
    import steer_kernels

    assert getattr(steer_kernels, "__file__", None) is None
