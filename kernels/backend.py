"""Which implementation an op runs: the Triton kernel, or its plain PyTorch reference."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from functools import cache
from typing import Literal

import torch
from packaging.version import Version


logger = logging.getLogger("steer.kernels")

MINIMUM_CAPABILITY = (8, 0)
MINIMUM_TRITON = (3, 6)
"""The oldest under which the kernels are tested; torch 2.10 brings it."""


@cache
def backend(device: str) -> Literal["triton", "torch"]:
    """The implementation for tensors on `device` ("cpu", "cuda:0", ...), decided and logged once.

    Triton (3.6 or newer) runs on NVIDIA GPUs from compute capability 8.0 on, and on the CPU under
    its interpreter (`TRITON_INTERPRET=1`); everything else runs the PyTorch reference.
    """
    choice: Literal["triton", "torch"] = "triton" if _can_run_triton(device) else "torch"
    logger.info("ops on %s run on %s", device, choice)
    return choice


def has_triton() -> bool:
    """Whether there is a Triton that the kernels are tested under."""
    if importlib.util.find_spec("triton") is None:
        return False
    return Version(importlib.import_module("triton").__version__).release >= MINIMUM_TRITON


def _can_run_triton(device: str) -> bool:
    if not has_triton():
        return False
    kind = torch.device(device).type
    if kind == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    if kind != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= MINIMUM_CAPABILITY
