"""Devices by name."""

from __future__ import annotations

from steer.core.errors import first_line


def usable_device(name: str) -> str:
    """`name` itself, or the accelerator if there is one and the CPU otherwise for `"auto"`.

    Raises:
        ValueError: The device is not usable on this machine.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name!r}: not usable here ({first_line(error)})") from error
    return name
