"""One process among several: its share of the work, its device, and the point where all meet.

Started by `accelerate launch` or `torchrun`, processes share a folder and nothing else: whose turn
it is follows from an item's number, so that results do not depend on how many there are. Only the
meeting points need a connection, for which gloo does on every device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from steer.core.errors import ComparisonError
from steer.jobs.device import usable_device


_PATIENCE = timedelta(days=30)  # the first to finish waits for the last
_T = TypeVar("_T")


@dataclass(frozen=True)
class Processes:
    """This process.

    Attributes:
        index: From 0.
        count: How many there are.
        device: Where it computes.
    """

    index: int
    count: int
    device: str

    @property
    def first(self) -> bool:
        """Whether this is the one that prepares the folder, writes the results, and speaks."""
        return self.index == 0

    def share(self, items: Sequence[_T]) -> list[_T]:
        """This process's items: every `count`-th one."""
        return list(items[self.index :: self.count])

    def meet(self) -> None:
        """Wait for all the others."""
        if self.count > 1:
            import torch.distributed

            torch.distributed.barrier()

    def leave(self) -> None:
        """Part from the others, at the end of all work."""
        if self.count > 1:
            import torch.distributed

            torch.distributed.destroy_process_group()


def join(device: str) -> Processes:
    """This process among those that a launcher started; alone without one.

    Args:
        device: `"auto"` (one GPU per process of a machine where there are some), or a device.

    Raises:
        ComparisonError: A single numbered device for several processes.
        ValueError: A device that is not usable here.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes(0, 1, usable_device(device))
    import torch
    from accelerate import PartialState

    cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if device not in ("auto", "cpu", "cuda"):
        raise ComparisonError(
            f"device={device!r}: several processes take one device each; write auto, cuda or cpu"
        )
    state = PartialState(cpu=cpu, backend="gloo", timeout=_PATIENCE)
    return Processes(state.process_index, state.num_processes, str(state.device))
