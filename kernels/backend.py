"""Which implementation an op runs: the Triton kernel, or its plain PyTorch reference."""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import cache
from typing import Literal

import torch


logger = logging.getLogger("steer.kernels")

MINIMUM_CAPABILITY = (8, 0)


@cache
def backend(device: str) -> Literal["triton", "torch"]:
    """The implementation for tensors on `device` ("cpu", "cuda:0", ...), decided and logged once.

    Triton runs on NVIDIA GPUs from compute capability 8.0 on, and on the CPU under its interpreter
    (`TRITON_INTERPRET=1`); everything else runs the PyTorch reference.
    """
    choice: Literal["triton", "torch"] = "triton" if _can_run_triton(device) else "torch"
    logger.info("ops on %s run on %s", device, choice)
    return choice


def _can_run_triton(device: str) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    kind = torch.device(device).type
    if kind == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    if kind != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= MINIMUM_CAPABILITY
