"""A lane's rows among several devices: each asks its own copy of the denoiser, at the same time.

A pipeline's loop runs once, on its own device, with a batch as wide as the lanes of all devices.
`Shares` stands around the denoiser's `forward`: every device gets the rows of its own lane, which
is the batch that one device alone would have, and the answers are put back in their places. So
nothing else of a search need know how many devices there are, and results are the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from typing import Any

import torch
from torch import nn

from steer.core.errors import SteerError, first_line
from steer.core.shortage import is_shortage
from steer.driver.denoisers.tensors import gathered, has_lists, is_opaque, moved, picked, rows_of
from steer.driver.narrow import Checked, alike, denoisers_of, is_denoiser, refusal
from steer.driver.replaced import replaced
from steer.driver.replicas import freeze_alike, replica


class Shares:
    """The pipeline's denoisers, and its ControlNet, with copies on further devices.

    Once for every size of the batch it is seen whether rows are answered alike in another batch: a
    device's lane and one row more are asked of the pipeline's own denoiser.

    Args:
        pipe: The pipeline.
        devices: Its own first, then those of the copies, which are made here.
        per_prompt: Rows of the pipeline's batch for each prompt, without those of guidance.
        prompts: How many prompts.
        wanted: Slots that are needed now; empty for all of them.
        checked: What was seen before.
        count: Told how many rows were asked twice.

    Attributes:
        groups: See `Narrow`.
        own: How many of the latest answer's rows the pipeline's own denoiser made.

    Raises:
        SteerError: A device has too little memory for its copies.
    """

    def __init__(
        self,
        pipe: Any,
        devices: Sequence[torch.device],
        per_prompt: int,
        prompts: int,
        wanted: Callable[[], Sequence[int]],
        checked: Checked,
        count: Callable[[int], None],
    ) -> None:
        self.pipe, self.devices, self.wanted = pipe, devices, wanted
        self.per_prompt, self.lane = per_prompt, per_prompt * prompts
        self.checked, self.count = checked, count
        self.groups = self.own = 0
        self._pool = ThreadPoolExecutor(len(devices) - 1, "steer")
        self._copies = {
            name: [replica(module, device, name) for device in devices[1:]]
            for name, module in denoisers_of(pipe).items()
        }

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace `forward` of the instances; copies and threads are gone afterwards."""
        with ExitStack() as stack:
            stack.callback(self._copies.clear)
            stack.enter_context(self._pool)
            for name, module in denoisers_of(self.pipe).items():
                inner: Callable[..., Any] = module.forward
                around = functools.partial(self._forward, inner, module, name)
                own = {"forward": functools.wraps(inner)(around)}
                stack.enter_context(replaced(module, own))
            yield

    def calls(self, slots: Sequence[int]) -> int:
        """How many devices have any of the slots; all of them for none."""
        return sum(map(bool, self._shares(slots or range(self.lane))))

    def _shares(self, slots: Sequence[int]) -> list[tuple[int, ...]]:
        """The slots of every device's lane: consecutive particles of each prompt."""
        each = self.per_prompt // len(self.devices)
        lanes: list[list[int]] = [[] for _ in self.devices]
        for slot in slots:
            lanes[slot % self.per_prompt // each].append(slot)
        return [tuple(lane) for lane in lanes]

    def _forward(
        self, inner: Callable[..., Any], module: nn.Module, name: str, *args: Any, **kwargs: Any
    ) -> Any:
        rows, slots = rows_of(args, kwargs), tuple(self.wanted()) or tuple(range(self.lane))
        seen = self.checked.setdefault(module, set())
        shares, tried = self._shares(slots), None
        if (self.lane, rows) not in seen:
            tried = self._try(inner, shares, slots, args, kwargs)
        for twin in self._copies[name]:
            freeze_alike(module, twin)
        found = self._ask(inner, name, shares, args, kwargs)
        if is_denoiser(name):
            self.own = len(shares[0])
        if tried is not None:
            self._compare(found, *tried, rows, slots, has_lists(args, kwargs))
            seen.add((self.lane, rows))
            if is_denoiser(name):
                self.groups = rows // self.lane
                self.count(len(tried[1]))
        return found

    def _ask(
        self,
        inner: Callable[..., Any],
        name: str,
        shares: Sequence[tuple[int, ...]],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """The answer of all rows, of which those in `shares` were asked, every device at once."""
        given = [self._given(share, args, kwargs) if share else None for share in shares]
        home, waiting = self.devices[0], list[Future[Any]]()
        asked = list(zip(self.devices[1:], self._copies[name], given[1:], strict=True))
        asked = [(device, one, what) for device, one, what in asked if what is not None]
        for device, one, what in asked:
            there, run = moved(what, device), copy_context().run
            waiting.append(self._pool.submit(run, _answer, one, device, _modes(device), *there))
        try:
            answers = [] if given[0] is None else [inner(*given[0][0], **given[0][1])]
        finally:
            wait(waiting)  # also where this device fails, or the user interrupts
        for (device, _, _), answer in zip(asked, waiting, strict=True):
            answers.append(moved(self._result(name, device, answer), home))
        return self._placed(answers, shares, args, kwargs)

    def _result(self, name: str, device: torch.device, answer: Future[Any]) -> Any:
        error = answer.exception()
        if error is None:
            return answer.result()
        if is_shortage(error) or not isinstance(error, Exception):
            raise error
        raise SteerError(
            f"devices: the copy of pipe.{name} on {device} raised {type(error).__name__} "
            f"({first_line(error)}), and the pipeline's own did not; leave {device} out of devices"
        ) from error

    def _placed(
        self,
        answers: Sequence[Any],
        shares: Sequence[tuple[int, ...]],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """The devices' answers as one, every row in its place; a row that nobody asked repeats one.

        Each answer is group by group (null prompt, prompt), and slot by slot in each.
        """
        rows, lists = rows_of(args, kwargs), has_lists(args, kwargs)
        groups, place, total = rows // self.lane, dict[int, int](), 0
        for share in filter(None, shares):
            for number, slot in enumerate(share):
                for group in range(groups):
                    place[group * self.lane + slot] = total + group * len(share) + number
            total += groups * len(share)
        whole = gathered(answers, [groups * len(share) for share in shares if share], lists)
        first = [min(place) % self.lane + group * self.lane for group in range(groups)]
        back = [place.get(row, place[first[row // self.lane]]) for row in range(rows)]
        return picked(whole, total, back, lists)

    def _given(
        self, slots: Sequence[int], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        """The arguments of some slots."""
        rows, lists = rows_of(args, kwargs), has_lists(args, kwargs)
        kept = [place + slot for place in range(0, rows, self.lane) for slot in slots]
        return picked(args, rows, kept, lists), picked(kwargs, rows, kept, lists)

    def _try(
        self,
        inner: Callable[..., Any],
        shares: Sequence[tuple[int, ...]],
        slots: Sequence[int],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, tuple[int, ...]]:
        """The pipeline's own denoiser on one lane and a row more: its answer, and whose it is.

        Raises:
            PaddedLaneError: It cannot be asked for some of the rows.
        """
        rows = rows_of(args, kwargs)
        if rows == 0 or rows % self.lane:
            raise refusal(self.pipe, f"it is asked for {rows} rows in a batch of {self.lane}")
        if is_opaque((args, kwargs)):
            raise refusal(self.pipe, "it is given a cache")
        lane = self._shares(range(self.lane))[0]
        more = slots[-1] if slots[-1] not in lane else self.lane - 1
        tried = (*lane, more)
        given = self._given(tried, args, kwargs)
        try:
            with torch.no_grad():
                answer = inner(*given[0], **given[1])
                return self._placed([answer], [tried], args, kwargs), tried
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            if is_shortage(error):
                raise
            raise refusal(self.pipe, str(error)) from error

    def _compare(
        self, found: Any, other: Any, tried: Sequence[int], rows: int, slots: Any, lists: bool
    ) -> None:
        """Raise PaddedLaneError unless rows are answered as in another batch."""
        if is_opaque(found):
            raise refusal(self.pipe, "it returns a cache")
        both = [slot for slot in tried if slot in slots]
        places = [place + slot for place in range(0, rows, self.lane) for slot in both]
        if not alike(found, other, rows, places, lists):
            raise refusal(self.pipe, "rows by themselves are not answered as in their batch")


def _modes(device: torch.device) -> tuple[bool, bool, torch.dtype]:
    """This thread's modes, which a new thread does not have: gradients, autocast and its dtype."""
    kind = device.type
    return torch.is_grad_enabled(), torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def _answer(
    module: nn.Module,
    device: torch.device,
    modes: tuple[bool, bool, torch.dtype],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """A copy's answer, in a thread of its own."""
    grad, autocast, dtype = modes
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        stack.enter_context(torch.autocast(device.type, dtype, enabled=autocast))
        stack.enter_context(torch.set_grad_enabled(grad))
        return module.forward(*args, **kwargs)
