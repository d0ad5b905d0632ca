"""Versions of the packages that an image depends on."""

from __future__ import annotations

import platform
from importlib import metadata


_PACKAGES = {
    "steer": "steer-diffusion",
    "torch": "torch",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "open_clip": "open_clip_torch",
    "safetensors": "safetensors",
    "numpy": "numpy",
}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that an image depends on, by name."""
    found = {"python": platform.python_version()}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            if name == "steer":  # a copy that was never installed
                found[name] = "0+unknown"
    return found
