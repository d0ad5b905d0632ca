"""Rewards by name: built-in, registered in the program, or brought by installed packages.

A name ending in `:*` is a family: `"clip:*"` answers to every `"clip:<argument>"`. Nothing is
imported before it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from types import FunctionType
from typing import Any, TypeVar

import torch

from steer.core.types import Reward
from steer.rewards.combine.mixtures import mixture, read_mixture
from steer.rewards.function import FunctionReward


BUILT_IN = {
    "aesthetic": "steer.rewards.models.aesthetic:aesthetic",
    "aesthetic-v1": "steer.rewards.models.aesthetic:aesthetic_v1",
    "carinox": "steer.rewards.combine.presets:carinox",
    "clip:*": "steer.rewards.models.clip:clip",
    "compressibility": "steer.rewards.models.compressibility:compressibility",
    "hpsv2": "steer.rewards.models.hpsv2:hpsv2",
    "hpsv2.0": "steer.rewards.models.hpsv2:hpsv2_0",
    "hpsv2.1": "steer.rewards.models.hpsv2:hpsv2_1",
    "imagereward": "steer.rewards.models.imagereward:imagereward",
    "incompressibility": "steer.rewards.models.compressibility:incompressibility",
    "pickscore": "steer.rewards.models.pickscore:pickscore",
    "reno": "steer.rewards.combine.presets:reno",
    "shapes": "steer.rewards.models.shapes:shapes",
    "shapes-clip": "steer.rewards.models.shapes:shapes_clip",
    "vqa:*": "steer.rewards.models.vqa:vqa",
}
ENTRY_POINTS = "steer.rewards"
_SPECS = "pass a function (images, prompts) -> (B,), a dict of weights, a reward, or a name"

_registered: dict[str, Callable[..., Any]] = {}
_T = TypeVar("_T")


def reward(
    spec: Any,
    *,
    checkpoint: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    combine: str | None = None,
    clip_gradient: float | None = None,
    minimum: Mapping[Any, float] | None = None,
    penalty: float | None = None,
    **options: Any,
) -> Reward:
    """A reward from a name, a function, a dict of weights, or a reward.

    Models are loaded once per process for the same checkpoint, device and dtype.

    Args:
        spec: A name, as `available_rewards` lists them, or an ensemble in text, such as
            `"rank(hpsv2,pickscore)"`; or a function `(images, prompts) -> (B,)`; or weights,
            `{"hpsv2": 0.7, my_function: 0.3}`; or a reward, returned as it is.
        checkpoint: Local weights, for a name.
        device: For names; default the accelerator if there is one.
        dtype: Precision of the weights, for names; default float32.
        combine: How a dict becomes one score: the weighted `"sum"` (default), the weighted mean of
            per-prompt ranks (`"rank"`), or the weighted sum of per-prompt z-scores
            (`"standardise"`).
        clip_gradient: For weighted sums: largest norm of each part's image gradient; see
            `WeightedReward`.
        minimum, penalty: Scores that other rewards must keep, `{"aesthetic": 5.0}`; see `AtLeast`.
        **options: What the named reward (for example `batch=8`) or `FunctionReward` takes.

    Returns:
        A reward: images `(B, 3, H, W)` in [0, 1] and B prompts to `(B,)` float32.

    Raises:
        ValueError: Unknown name or option, or a spec that is none of these.
        CheckpointError: Weights that cannot be found, read, or do not fit.
    """
    given = _given(
        checkpoint=checkpoint,
        device=device,
        dtype=_dtype(dtype),
        combine=combine,
        clip_gradient=clip_gradient,
    )
    made = _made(spec, given | options)
    if minimum is None and penalty is None:
        return made
    from steer.rewards.combine.minimum import AtLeast

    return AtLeast(made, minimum or {}, penalty=penalty, device=device, dtype=dtype)


def _made(spec: Any, options: dict[str, Any]) -> Reward:
    written = read_mixture(spec) if isinstance(spec, str) else None
    if written is not None:
        spec, options = written[1], {"combine": written[0]} | options
    if isinstance(spec, str):
        _refuse(_only(options, "combine"), "a name")
        return _named(spec, options)
    if isinstance(spec, Mapping):
        kept = ("device", "dtype", "combine", "clip_gradient")
        _refuse({k: v for k, v in options.items() if k not in kept}, "a dict of weights")
        return _weighted(spec, **options)
    if isinstance(spec, Reward) and not isinstance(spec, type | FunctionType):
        _refuse({k: v for k, v in options.items() if k != "device"}, "a reward object")
        return spec
    if callable(spec) and not isinstance(spec, type):
        _refuse(_only(options, "checkpoint", "dtype", "combine", "clip_gradient"), "a function")
        options.pop("device", None)  # it computes wherever the images are
        return FunctionReward(spec, **options)
    raise ValueError(f"reward={spec!r}: {_SPECS} ({', '.join(available_rewards())})")


def resolve(spec: Any, device: str | torch.device | None = None) -> Reward:
    """`reward(spec)` on `device`; what a pipeline wrapper calls."""
    return reward(spec, device=device)


def available_rewards() -> list[str]:
    """All names, sorted; `"clip:*"` stands for every `"clip:<argument>"`."""
    installed = {point.name for point in entry_points(group=ENTRY_POINTS)}
    return sorted({*BUILT_IN, *_registered, *installed})


def register_reward(name: str, **declared: Any) -> Callable[[_T], _T]:
    """Decorator: make a function or a class available as `reward(name)`.

    A function `(images, prompts) -> (B,)` is wrapped in `FunctionReward` with what is declared
    here (`differentiable`, `range`, `needs_prompt`, `batch`). A class is called with the options
    given to `reward` (`checkpoint`, `device`, `dtype`, ...: only those the user passed), for a
    family `"name:*"` after the argument. Registering a name again replaces it.

    Raises:
        ValueError: The name is empty or built in, or the function does not take images and prompts.
    """
    if not name or name in BUILT_IN or f"{name.partition(':')[0]}:*" in BUILT_IN:
        raise ValueError(f"name={name!r} is built in or empty: choose another")

    def register(target: _T) -> _T:
        _registered[name] = _maker(target, {"name": name, **declared})
        return target

    return register


def _maker(target: Any, declared: dict[str, Any]) -> Callable[..., Any]:
    if isinstance(target, type):
        return target
    made = FunctionReward(target, **declared)
    return lambda: made


def _named(name: str, options: dict[str, Any]) -> Reward:
    factory, arguments = _factory(name)
    takes = inspect.signature(factory).parameters
    if "device" not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        options.pop("device", None)  # it computes wherever the images are
    try:
        inspect.signature(factory).bind(*arguments, **options)
    except TypeError as error:
        keywords = [p.name for p in takes.values() if p.kind is p.KEYWORD_ONLY]
        what = f"its options are {', '.join(keywords)}" if keywords else "it has no options"
        raise ValueError(f"reward {name!r}: {error}; {what}") from error
    made = factory(*arguments, **options)
    if not isinstance(made, Reward):
        raise ValueError(f"reward {name!r}: its factory returned {made!r}, which is not a reward")
    return made


def _factory(name: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """The callable behind a name, and its positional arguments."""
    family, _, argument = name.partition(":")
    for key, arguments in ((name, ()), (f"{family}:*", (argument,))):
        if arguments == ("",):
            break
        if key in _registered:
            return _registered[key], arguments
        if key in BUILT_IN:
            module, _, attribute = BUILT_IN[key].partition(":")
            return getattr(importlib.import_module(module), attribute), arguments
        for point in entry_points(group=ENTRY_POINTS, name=key):
            return _installed(point), arguments
    raise ValueError(_unknown(name))


def _installed(point: Any) -> Callable[..., Any]:
    try:
        target = point.load()
    except Exception as error:
        raise ValueError(f"reward {point.name!r} ({point.value}) does not load: {error}") from error
    if isinstance(target, Reward) and not isinstance(target, type):
        return lambda: target
    return target


def _unknown(name: str) -> str:
    names = available_rewards()
    family = name.partition(":")[0]
    if f"{family}:*" in names:
        return f"reward={name!r} lacks its model: write '{family}:<model>'"
    stems = {known.removesuffix(":*"): known for known in names}
    near = difflib.get_close_matches(family.lower(), stems, n=1, cutoff=0.5)
    hint = f"did you mean {stems[near[0]]!r}? " if near else ""
    return f"reward={name!r} is unknown: {hint}there are {', '.join(names)}"


def _weighted(
    spec: Mapping[Any, Any],
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Reward:
    parts = [
        (reward(key, device=device, dtype=dtype if isinstance(key, str) else None), weight)
        for key, weight in spec.items()
    ]
    named = zip(spec, parts, strict=True)
    names = [key if isinstance(key, str) else part.name for key, (part, _) in named]
    return mixture(parts, names, **options)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if found is None or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise ValueError(f"dtype={dtype!r}: one of 'float32', 'bfloat16', 'float16', 'float64'")


def _given(**options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _only(options: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key in keys}


def _refuse(options: dict[str, Any], what: str) -> None:
    if options:
        name = next(iter(options))
        home = "a dict of weights" if name in ("combine", "clip_gradient") else "a name"
        raise ValueError(f"{name}= does not apply to {what}: it goes with {home}")
