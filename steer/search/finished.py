"""What a reward's parts said of finished images, for rewards that compare the candidates."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer.core.types import Name
from steer.rewards.parts import Parts


@dataclass(eq=False)
class Finished:
    """Every finished particle of a call, as the reward's parts saw it; kept in main memory."""

    _rows: dict[Name, dict[str, Tensor]] = field(default_factory=dict)

    def add(self, ids: Sequence[Name], parts: Mapping[str, Tensor]) -> None:
        """Take in particles, those that are known already once more."""
        moved = {key: part.detach().cpu() for key, part in parts.items()}
        for row, name in enumerate(ids):
            self._rows[name] = {key: part[row].clone() for key, part in moved.items()}

    def of(self, prompts: Collection[int], device: torch.device) -> tuple[list[Name], Parts]:
        """The names of some prompts' particles, sorted, and their parts `(rows, ...)`."""
        names = sorted(name for name in self._rows if name[0] in prompts)
        keys = self._rows[names[0]]
        return names, {
            key: torch.stack([self._rows[name][key] for name in names]).to(device) for key in keys
        }

    def clear(self) -> None:
        """Forget them all."""
        self._rows.clear()
