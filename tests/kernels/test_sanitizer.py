"""Every kernel under NVIDIA's memory checker: reads and writes outside of tensors are errors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch


FOLDER = Path(__file__).parent
AGAINST_FLOAT64 = (
    "test_kernel_against_float64 or test_kernels_against_float64 or test_gelu_alone "
    "or test_sum_norm_and_gradients_match_float64 or test_scores_and_gradients_match_float64 "
    "or test_fused_output_and_gradient_match_float64 or test_norm_quant or test_gelu_quant"
)
FOUND = 86
"""Exit status for errors that the checker found: none of pytest's own."""


def sanitizer() -> str | None:
    """The program, on the path or in the CUDA toolkit."""
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=toolkit)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_kernel_reads_or_writes_outside_its_tensors() -> None:
    program = sanitizer()
    if program is None:
        pytest.skip("compute-sanitizer is not installed")
    check = [program, "--tool", "memcheck", "--error-exitcode", str(FOUND)]
    tests = [sys.executable, "-m", "pytest", str(FOLDER), "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*check, *tests, "-m", "not gpu", "-k", AGAINST_FLOAT64],  # the whole tables
        # One allocation per tensor: inside PyTorch's pool an overrun would hit a neighbour.
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    text = done.stdout + done.stderr
    if "ERROR SUMMARY" not in text:
        pytest.skip(f"compute-sanitizer does not work here: {text[-300:]}")
    assert done.returncode == 0, text[-8000:]


def test_the_tests_that_it_runs_exist() -> None:
    names = AGAINST_FLOAT64.split(" or ")
    sources = "".join(path.read_text() for path in FOLDER.glob("test_*.py"))
    assert all(f"def {name}(" in sources for name in names)
