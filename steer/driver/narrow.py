"""A denoiser asked for some rows of the pipeline's batch: padding then costs nothing.

A pipeline's batch is fixed when its loop begins. Where a population is smaller, the rest of the
batch is padding. `Narrow` stands around the denoiser's `forward`, takes the rows that are needed
out of everything that has one entry per row, and puts the answers back in their places.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from steer.core.errors import PaddedLaneError
from steer.core.shortage import is_shortage
from steer.core.types import wide
from steer.driver.denoisers.tensors import has_lists, is_opaque, picked, rows_of
from steer.driver.replaced import replaced


Checked: TypeAlias = MutableMapping[nn.Module, set[tuple[int, int]]]
"""Denoisers that were seen to answer fewer rows alike: lane and rows of their batch."""

_DENOISERS = ("unet", "unet_2", "transformer", "transformer_2")
_OTHERS = ("controlnet",)
_SAME = {torch.float16: 0.02, torch.bfloat16: 0.05}
_SAME_IN_FULL = 5e-3  # of the answer's norm; TF32 and other kernels for other batches


def can_narrow(pipe: Any) -> bool:
    """Whether the pipeline's denoiser may take batches of other sizes.

    One that is compiled would be compiled again for each.
    """
    modules = denoisers_of(pipe)
    compiled = any(map(is_compiled, modules.values()))
    return any(name in _DENOISERS for name in modules) and not compiled


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` stands around a module."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def denoisers_of(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's denoisers, and its ControlNet, by name."""
    found = {name: getattr(pipe, name, None) for name in (*_DENOISERS, *_OTHERS)}
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def is_denoiser(name: str) -> bool:
    """Whether a part of this name is a denoiser, whose rows count; a ControlNet's do not."""
    return name in _DENOISERS


class Narrow:
    """The pipeline's denoisers, and its ControlNet, on the rows that are needed.

    Whether a denoiser answers fewer rows as it answers all of them is seen once for every size of
    the batch. Where all rows are needed, the last is asked by itself too, at the price of one row
    more; elsewhere all are asked as well. Only what is returned is recorded for a gradient.

    Args:
        pipe: The pipeline.
        lane: Rows of its batch, without those that guidance adds.
        wanted: Slots that are needed now; empty for all of them.
        eager: See at the first call whether it can be done; else before it is first needed.
        checked: What was seen before.
        count: Told how many rows were asked twice.

    Attributes:
        groups: How many rows of the denoiser's batch each of those was: 2 where guidance doubles
            the batch, 1 where it makes a call of its own. 0 before a check.
    """

    def __init__(
        self,
        pipe: Any,
        lane: int,
        wanted: Callable[[], Sequence[int]],
        eager: bool,
        checked: Checked,
        count: Callable[[int], None],
    ) -> None:
        self.pipe, self.lane, self.wanted, self.eager = pipe, lane, wanted, eager
        self.checked, self.count = checked, count
        self.groups = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace `forward` of the instances; restored afterwards."""
        with ExitStack() as stack:
            for name, module in denoisers_of(self.pipe).items():
                inner: Callable[..., Any] = module.forward
                around = functools.partial(self._forward, inner, module, is_denoiser(name))
                own = {"forward": functools.wraps(inner)(around)}
                stack.enter_context(replaced(module, own))
            yield

    def _forward(
        self, inner: Callable[..., Any], module: nn.Module, counts: bool, *args: Any, **kwargs: Any
    ) -> Any:
        rows, slots = rows_of(args, kwargs), tuple(self.wanted()) or tuple(range(self.lane))
        whole = len(slots) == self.lane
        seen = self.checked.setdefault(module, set())
        known = (self.lane, rows) in seen
        if known or (whole and not self.eager):
            return inner(*args, **kwargs) if whole else self._some(inner, slots, args, kwargs)
        if rows == 0 or rows % self.lane:
            raise self._refusal(f"it is asked for {rows} rows in a batch of {self.lane}")
        if is_opaque((args, kwargs)):
            raise self._refusal("it is given a cache")
        recorded = torch.is_grad_enabled()
        with torch.set_grad_enabled(recorded and whole):
            every = inner(*args, **kwargs)
        if is_opaque(every):
            raise self._refusal("it returns a cache")
        asked = slots[-1:] if whole else slots
        try:
            with torch.set_grad_enabled(recorded and not whole):
                some = self._some(inner, asked, args, kwargs)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            if is_shortage(error):
                raise
            raise self._refusal(str(error)) from error
        places = [place + slot for place in range(0, rows, self.lane) for slot in asked]
        lists = has_lists(args, kwargs)
        if not alike(every, some, rows, places, lists):
            raise self._refusal("rows by themselves are not answered as in their batch")
        seen.add((self.lane, rows))
        if counts:
            self.groups = rows // self.lane
            self.count(1 if whole else self.lane)
        return every if whole else some

    def _some(
        self,
        inner: Callable[..., Any],
        slots: Sequence[int],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """The answer of all rows, of which only those in `slots` were asked."""
        rows, lists = rows_of(args, kwargs), has_lists(args, kwargs)
        groups = range(rows // self.lane)  # null prompt and prompt
        kept = [group * self.lane + slot for group in groups for slot in slots]
        given = picked(args, rows, kept, lists), picked(kwargs, rows, kept, lists)
        answer = inner(*given[0], **given[1])
        place = {slot: number for number, slot in enumerate(slots)}
        back = [
            group * len(slots) + place.get(slot, 0) for group in groups for slot in range(self.lane)
        ]
        return picked(answer, len(kept), back, lists)

    def _refusal(self, why: str) -> PaddedLaneError:
        return refusal(self.pipe, why)


def refusal(pipe: Any, why: str) -> PaddedLaneError:
    """The error for a denoiser that answers whole batches only."""
    return PaddedLaneError(f"{type(pipe).__name__}: no narrower batches ({why})")


def alike(one: Any, other: Any, rows: int, places: Sequence[int], lists: bool = False) -> bool:
    """Whether two outputs of `rows` rows agree in some of them, but for rounding."""
    pairs = zip(_tensors(one, rows, lists), _tensors(other, rows, lists), strict=True)
    return all(_alike(a[places], b[places]) for a, b in pairs)


def _tensors(value: Any, rows: int, lists: bool = False) -> list[Tensor]:
    """All tensors of an output that have one entry per row; lists of them as in `picked`."""
    if isinstance(value, Tensor):
        return [value] if value.ndim and len(value) == rows else []
    items = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple):
        return []
    if len(items) == rows and all(isinstance(item, Tensor) for item in items):
        shapes = {item.shape for item in items}
        batches = any(len(item) == rows for item in items if item.ndim)
        if len(shapes) == 1 and (lists or not batches):
            return [torch.stack(list(items))]
    return [tensor for item in items for tensor in _tensors(item, rows, lists)]


def _alike(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    gap, size = (wide(one) - wide(other)).norm(), wide(one).norm()
    return bool(gap <= _SAME.get(one.dtype, _SAME_IN_FULL) * size)
