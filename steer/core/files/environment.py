"""What a report of a fault needs to know of the machine: versions and devices, nothing private."""

from __future__ import annotations

import importlib.util
import os
import platform

import torch

from steer.core.files.versions import versions


_EXTRAS = ("pyarrow", "rapidocr", "onnxruntime", "openai", "fastapi", "triton", "xformers", "peft")


def environment() -> dict[str, str]:
    """Versions, devices and switches, by name; no paths, no host name, no user."""
    found = versions()
    found["platform"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    found["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    found["devices"] = "; ".join(_devices()) or "cpu only"
    found["offline"] = "yes" if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True") else "no"
    there = [name for name in _EXTRAS if importlib.util.find_spec(name)]
    found["also installed"] = ", ".join(there) or "none of the extras"
    return found


def _devices() -> list[str]:
    """Every accelerator that torch sees, with its memory."""
    names = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        names.append(f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {torch.version.cuda}")
    if torch.backends.mps.is_available():
        names.append("Apple mps")
    return names
