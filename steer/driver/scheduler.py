"""A scheduler with a search inside, which decides what the pipeline's loop evaluates next.

Every pipeline iterates over `scheduler.timesteps` and calls `scheduler.step`. `SteeredScheduler`
holds a search, a generator: `step` sends it the model output and returns the latents of its next
query, and `timesteps` yields that query's timestep, until the search returns its winners. Only this
file and `loop.py` know how the loops of diffusers work.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from steer.core.errors import AGAIN, UnsupportedPipelineError
from steer.core.ledger import Ledger
from steer.driver.loop import Driven, Loop, Opening
from steer.driver.solver_state import clone
from steer.driver.timeline import Timeline


class _MissingError(UnsupportedPipelineError, AttributeError):
    """The user's scheduler lacks a function; `hasattr` says so too."""


class SteeredScheduler:
    """The user's scheduler with a search inside; stands in `pipe.scheduler` during one call.

    It has all attributes of the user's scheduler, with the same signatures, and its class. The
    user's scheduler is copied and never changed.

    Args:
        scheduler: A diffusers scheduler.
        search: Called at the pipeline's first `step`; returns the search to run.
        ledger: Where denoiser calls are counted.
    """

    _inner: Any
    loop: Loop
    _bind: Callable[..., inspect.BoundArguments]
    _made: dict[str, Callable[..., Any]]

    def __init__(
        self, scheduler: Any, search: Callable[[Opening], Driven], ledger: Ledger | None = None
    ) -> None:
        inner = clone(scheduler)
        object.__setattr__(self, "_inner", inner)
        loop = Loop(inner, search, Ledger() if ledger is None else ledger)
        object.__setattr__(self, "loop", loop)
        object.__setattr__(self, "_bind", inspect.signature(inner.step).bind)
        object.__setattr__(self, "_made", {})

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self.__dict__["_inner"])

    def __getattr__(self, name: str) -> Any:
        if "_inner" not in self.__dict__:  # half-built copies
            raise AttributeError(name)
        own = _OWN.get(name)
        if own is not None and not hasattr(self._inner, name):
            raise _MissingError(
                f"{type(self._inner).__name__} has no {name}: the pipeline takes the stand-in of "
                f"a search for another scheduler; {AGAIN}"
            )
        value = getattr(self._inner, name)
        if own is None:
            return value
        if name == "timesteps":
            return Timeline.of(value, self.loop.iterate) if isinstance(value, Tensor) else value
        if name not in self._made:
            self._made[name] = functools.wraps(value)(functools.partial(own, self))
        return self._made[name]

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, value)

    def __copy__(self) -> Any:
        self.loop.copied = True
        return clone(self._inner)  # a second scheduler (for audio, say) is a plain one

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        self.loop.copied = True
        return copy.deepcopy(self._inner, memo)

    def __len__(self) -> int:
        return len(self._inner)

    def __repr__(self) -> str:
        return f"SteeredScheduler({type(self._inner).__name__})"


def _step(scheduler: SteeredScheduler, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
    given = scheduler._bind(*args, **kwargs).arguments
    given.pop("timestep", None)
    given |= given.pop("kwargs", {})
    output, sample = given.pop("model_output"), given.pop("sample")
    latents = scheduler.loop.answer(output, sample, given)
    if not return_dict:  # some schedulers return the clean sample as a second item
        return latents, latents
    return DDIMSchedulerOutput(prev_sample=latents, pred_original_sample=latents)


def _set_timesteps(scheduler: SteeredScheduler, *args: Any, **kwargs: Any) -> None:
    scheduler.loop.check_caller()
    scheduler._inner.set_timesteps(*args, **kwargs)
    scheduler.loop.rewind()


def _scale_model_input(scheduler: SteeredScheduler, sample: Tensor, timestep: Any = None) -> Tensor:
    return scheduler.loop.scale(sample, timestep)


def _set_begin_index(scheduler: SteeredScheduler, begin_index: int = 0) -> None:
    scheduler.loop.begin = begin_index  # positions come from the query, not from counting


def _add_noise(scheduler: SteeredScheduler, *args: Any, **kwargs: Any) -> Tensor:
    return scheduler.loop.noised("add_noise", args, kwargs)


def _scale_noise(scheduler: SteeredScheduler, *args: Any, **kwargs: Any) -> Tensor:
    return scheduler.loop.noised("scale_noise", args, kwargs)


_OWN: dict[str, Callable[..., Any]] = {
    "step": _step,
    "set_timesteps": _set_timesteps,
    "timesteps": Timeline.of,
    "add_noise": _add_noise,
    "scale_noise": _scale_noise,
    "scale_model_input": _scale_model_input,
    "set_begin_index": _set_begin_index,
}
