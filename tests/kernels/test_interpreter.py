"""The kernel tests of this folder under Triton's interpreter, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from steer_kernels.backend import has_triton


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked", ["not exhaustive", pytest.param("exhaustive", marks=pytest.mark.exhaustive)]
)
def test_kernels_under_the_interpreter(asked: str) -> None:
    if not has_triton():
        pytest.skip("the kernels need Triton 3.6")
    folder = Path(__file__).parent
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", str(folder), "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-m", asked, "--tb=short", "--durations=5"],
        env=environment,
        cwd=folder.parents[1],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert "SKIPPED" not in done.stdout, done.stdout[-2000:]
