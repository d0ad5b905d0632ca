"""How wide a call's lanes are: as speed and memory allow, and what calls before it taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from steer.core.errors import PaddedLaneError, UnsupportedPipelineError
from steer.core.warn import warn
from steer.driver.call import Call
from steer.driver.facts import edits_latents
from steer.driver.narrow import Checked, can_narrow
from steer.driver.noise import can_widen
from steer.driver.replicas import check_replicas
from steer.search.method import Method


if TYPE_CHECKING:
    from steer.driver.denoisers.models import Models


ROWS = 8
"""Rows of a lane, unless the call itself has more: wider ones are no faster (benchmarks/lanes)."""


@dataclass(eq=False)
class Widths:
    """What a guided pipeline's calls have taught about the batches that it bears.

    Attributes:
        checked: Batches whose denoiser was seen to answer some of the rows by themselves.
    """

    checked: Checked = field(default_factory=WeakKeyDictionary)
    _fixed: set[type] = field(default_factory=set)
    _padded: set[type] = field(default_factory=set)
    _fitting: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def spares(self, call: Call, models: Models | None) -> bool:
        """Whether padding is left out of the denoiser's batch, and so costs nothing.

        Not where a blend answers the null prompt by a model of its own.
        """
        if models is not None and any(models.mix(i, call.steps).split for i in range(call.steps)):
            return False
        return type(call.pipe) not in self._padded and can_narrow(call.pipe)

    def width(
        self, call: Call, method: Method, spares: bool, given: int | None = None, devices: int = 1
    ) -> int:
        """Particles per returned image in one denoiser call.

        At most `ROWS` rows or as many as the call itself has, what fitted into memory before, and
        as many as the method makes use of: lanes of a population are equally wide, and as many as
        there are devices are asked together. Where padding costs, the width divides all
        populations.
        """
        own = call.prompts * call.images
        if self._is_fixed(call):
            return 1
        if given is not None or not call.can_widen:
            return given or 1
        most = max(min(ROWS, self._fitting.get(_size(call, method), ROWS)) // own, 1)
        most = min(most, method.widest)
        if not spares:
            sizes = method.populations
            return max(w for w in range(1, most + 1) if all(size % w == 0 for size in sizes))
        size, most = max(method.populations), min(most * devices, method.widest)
        return -(-size // (-(-size // most) * devices))

    def _is_fixed(self, call: Call) -> bool:
        """Whether the pipeline's batch is the call's own."""
        return type(call.pipe) in self._fixed or edits_latents(call.pipe)

    def devices(
        self, call: Call, spares: bool, given: Sequence[torch.device]
    ) -> tuple[torch.device, ...]:
        """The devices that a call can use; none, with a warning, where only the pipeline's own can.

        Raises:
            ValueError, UnsupportedPipelineError: See `check_replicas`.
        """
        if len(given) < 2:
            return ()
        check_replicas(call.pipe, given)
        if spares and call.can_widen and not self._is_fixed(call):
            return tuple(given)
        warn(
            f"devices: {type(call.pipe).__name__} takes no batch that could be divided in this "
            f"call, so that {given[0]} alone is used",
            stacklevel=4,
        )
        return ()

    def check(self, call: Call, width: int) -> int:
        """A width that the call may have: `width`, or 1 with a warning.

        Raises:
            UnsupportedPipelineError: The pipeline cannot be widened.
        """
        width = call.allowed(width)
        if width > 1 and not can_widen(call.pipe):
            raise UnsupportedPipelineError(
                f"lane_width={width}: {type(call.pipe).__name__} has no "
                "prepare_latents(batch_size, generator) to widen its batch with; leave it out"
            )
        return width

    def refused(self, call: Call, error: Exception) -> None:
        """Note that the pipeline does not bear the batch, or none that is narrower than a lane."""
        padded = isinstance(error, PaddedLaneError)
        (self._padded if padded else self._fixed).add(type(call.pipe))

    def fitted(self, call: Call, method: Method, width: int) -> None:
        """Note how wide a lane memory was enough for, after it was not for a wider one."""
        self._fitting[_size(call, method)] = width * call.prompts * call.images


def _size(call: Call, method: Method) -> tuple[Any, ...]:
    """What the memory of a row depends on."""
    names = ("height", "width", "num_frames")
    shape = tuple(call.values.get(name) for name in names)
    return type(call.pipe), type(method), str(call.device), *shape
