"""What a guided call of a modular pipeline returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput


@dataclass
class ModularOutput(BaseOutput):
    """What a guided call of a modular pipeline returns: its images or videos, and its state.

    All other values of the state are attributes too, as they are of a `PipelineState`.

    Attributes:
        images: The images, or what else the pipeline makes; `None` where it makes videos.
        videos: The videos.
        state: The `PipelineState` that the pipeline returned.
    """

    images: Any = None
    videos: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "state" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["state"], name)

    def asked(self, names: str | Sequence[str] | None) -> Any:
        """What a modular pipeline returns for `output=names`."""
        if names is None:
            return self
        if isinstance(names, str):
            return getattr(self, names, None)
        return {name: getattr(self, name, None) for name in names}
