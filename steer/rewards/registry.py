"""From what users pass as a reward to a reward: names, text, functions, dicts of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from steer.core.types import Reward
from steer.rewards.combine.augmented import Augmented
from steer.rewards.combine.minimum import AtLeast, parts_by_name
from steer.rewards.combine.mixtures import mixture
from steer.rewards.frames import for_videos
from steer.rewards.function import FunctionReward
from steer.rewards.groupwise import Diversity, whole_groups
from steer.rewards.names import (
    PRESETS,
    available_rewards as available_rewards,
    check_hidden,
    make_named,
    preset_mixture,
    register_reward as register_reward,
)
from steer.rewards.parts import is_reward
from steer.rewards.text import is_mixture, names_in, read_mixture


if TYPE_CHECKING:
    from steer.rewards.thresholds.scale import Scale, Scales

_MIXED = ("checkpoint", "device", "dtype", "combine", "clip_gradient")
_SPECS = "pass a function (images, prompts) -> (B,), a dict of weights, a reward, or a name"


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
    scale: Scales | Scale | str | Path | None = None,
    **options: Any,
) -> Reward:
    """A reward from a name, a function, a dict of weights, or a reward.

    Models are loaded once per process for the same checkpoint, device and dtype.

    Args:
        spec: A name, as `available_rewards` lists them; or a mixture as text, such as
            `"hpsv2=0.7,aesthetic=0.3"` or `"rank(hpsv2,pickscore)"`; or a function
            `(images, prompts) -> (B,)`; or weights, `{"hpsv2": 0.7, my_function: 0.3}`; or a
            reward, returned as it is.
        checkpoint: Local weights, for a name; for a mixture by name,
            `{"hpsv2": "HPS_v2.1_compressed.pt"}`.
        device: For names; default the accelerator if there is one.
        dtype: Precision of the weights, for names; default float32.
        combine: How a dict becomes one score: the weighted `"sum"` (default), the weighted mean of
            per-prompt ranks (`"rank"`) or the smallest of them (`"worst"`), the weighted sum of
            per-prompt z-scores (`"standardise"`) or their mean less one deviation (`"bound"`).
        clip_gradient: For weighted sums: largest norm of each part's image gradient; see
            `WeightedReward`.
        minimum, penalty: Scores that other rewards must keep, `{"aesthetic": 5.0}`; see `AtLeast`.
        scale: Puts the reward, or every part of a weighted sum, on the scale of each prompt's own
            plain images: `Scales`, or the file of some; see `Scaled`.
        **options: What the named reward (for example `batch=8`) or `FunctionReward` takes.

    Returns:
        A reward: images `(B, 3, H, W)` in [0, 1] and B prompts to `(B,)` float32.

    Raises:
        ValueError: Unknown name or option, `minimum`, `penalty` or `scale` where the named reward
            has an option of that name, or a spec that is none of these.
        CheckpointError: Weights that cannot be found, read, or do not fit.
    """
    shared = {
        "checkpoint": checkpoint,
        "device": device,
        "dtype": _as_dtype(dtype),
        "combine": combine,
        "clip_gradient": clip_gradient,
    }
    given = {key: value for key, value in shared.items() if value is not None}
    kept = {"minimum": minimum, "penalty": penalty, "scale": scale}
    _check_hidden(spec, [key for key, value in kept.items() if value is not None])
    made = whole_groups(_make(spec, given | options))
    if scale is not None:
        from steer.rewards.combine.scaled import on_scale  # scipy is slow to import

        made = on_scale(made, scale)
    if minimum is None and penalty is None:
        return made
    return _with_minima(made, minimum or {}, penalty, device, dtype)


def resolve(spec: Any, device: str | torch.device | None = None, *, videos: bool = False) -> Reward:
    """`reward(spec)` on `device`, for images or for videos; what a pipeline wrapper calls.

    Args:
        spec: As in `reward`.
        device: For names.
        videos: Whether videos `(B, F, 3, H, W)` are to be scored: a reward for images then becomes
            `PerFrame` with the mean.

    Raises:
        ValueError: As for `reward`; or a reward for videos where images are to be scored.
    """
    made = reward(spec, device=device)
    if videos:
        return for_videos(made)
    if getattr(made, "least_frames", 1) > 1:
        raise ValueError(
            f"reward {made.name!r} judges the motion of videos, and images are to be scored: take "
            "a reward for images"
        )
    return made


def augmented(name: str, /, **options: Any) -> Augmented:
    """`Augmented` of a named reward; what `"augmented:<name>"` stands for.

    Args:
        name: Of the reward inside.
        **options: Those of `Augmented` (`n`, `shift`, `brightness`, `noise`), and the inner ones.
    """
    own = {key: options.pop(key) for key in ("n", "shift", "brightness", "noise") if key in options}
    return Augmented(reward(name, **options), **own)


def diversity(name: str, /, *, batch: int | None = 32, **options: Any) -> Diversity:
    """`Diversity` of a named reward's image features; what `"diversity:<name>"` stands for.

    Args:
        name: Of the reward whose features are compared.
        batch: Most images embedded at once.
        **options: Of that reward.
    """
    return Diversity(reward(name, **options), batch=batch)


def _make(spec: Any, options: dict[str, Any]) -> Reward:
    if isinstance(spec, str):
        return _from_text(spec, options)
    if isinstance(spec, Mapping):
        _refuse(_leave_out(options, *_MIXED), "a dict of weights")
        return _from_weights(spec, **options)
    if is_reward(spec):
        _refuse(_leave_out(options, "device"), "a reward object")
        return spec
    if callable(spec) and not isinstance(spec, type):
        _refuse(_only(options, *_leave_out(dict.fromkeys(_MIXED), "device")), "a function")
        return FunctionReward(spec, **_leave_out(options, "device"))  # where the images are
    raise ValueError(f"reward={spec!r}: {_SPECS} ({', '.join(available_rewards())})")


def _check_hidden(spec: Any, given: list[str]) -> None:
    """See that a name alone has no options of its own by the names of those that are kept here."""
    if given and isinstance(spec, str) and read_mixture(spec) is None and spec not in PRESETS:
        check_hidden(spec, given)


def _from_text(text: str, options: dict[str, Any]) -> Reward:
    found = read_mixture(text)
    if found is None:
        return _from_name(text, options)
    return _make(found.weights, {"combine": found.kind} | options)


def _from_name(name: str, options: dict[str, Any]) -> Reward:
    _refuse(_only(options, "combine"), "a name")
    if name not in PRESETS:
        return make_named(name, options)
    mixed = ("checkpoint", "device", "dtype", "clip_gradient")
    found = preset_mixture(name, _leave_out(options, *mixed), elsewhere=mixed)
    if isinstance(found, str):
        return _from_text(found, _only(options, *mixed))
    return _from_weights(found, **_only(options, *mixed))


def _from_weights(
    weights: Mapping[Any, Any],
    *,
    checkpoint: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Reward:
    """A mixture of names, texts in brackets, functions and rewards."""
    files = _files_by_name(checkpoint, weights)
    terms = [(_part(key, files, device, dtype), weight) for key, weight in weights.items()]
    named = zip(weights, terms, strict=True)
    names = [key if isinstance(key, str) else part.name for key, (part, _) in named]
    return mixture(terms, names, **options)


def _part(
    key: Any,
    files: Mapping[str, str | Path],
    device: str | torch.device | None,
    dtype: torch.dtype | None,
) -> Reward:
    """A part of a mixture. As text it is a name, whatever its signs, or a mixture in brackets."""
    if not isinstance(key, str):
        return reward(key, device=device)
    shared = {"device": device, "dtype": dtype}
    if is_mixture(key):
        own = _only(files, *names_in(key)) or None
        return reward(key, checkpoint=own, **shared)
    given = {k: v for k, v in shared.items() if v is not None} | _file(files.get(key))
    return _from_name(key, given)


def _file(path: str | Path | None) -> dict[str, Any]:
    return {} if path is None else {"checkpoint": path}


def _files_by_name(checkpoint: Any, weights: Mapping[Any, Any]) -> Mapping[str, str | Path]:
    """Checkpoints of the parts; ValueError for one of no part."""
    files = checkpoint if checkpoint is not None else {}
    if not isinstance(files, Mapping):
        example = {"hpsv2.1": "HPS_v2.1_compressed.pt"}
        raise ValueError(f"checkpoint={files!r}: give files by part, such as {example}")
    keys = [key for key in weights if isinstance(key, str)]
    known = {name for key in keys for name in (names_in(key) if is_mixture(key) else [key])}
    strange = [name for name in files if name not in known]
    if strange:
        raise ValueError(
            f"checkpoint has {strange[0]!r}: no such part, there are {', '.join(keys)}"
        )
    return files


def _with_minima(
    made: Reward,
    minimum: Mapping[Any, float],
    penalty: float | None,
    device: str | torch.device | None,
    dtype: torch.dtype | str | None,
) -> AtLeast:
    """`made` under conditions; names that are none of its parts are looked up."""
    own = parts_by_name(made)
    new = [key for key in minimum if isinstance(key, str) and key not in own]
    others = {key: reward(key, device=device, dtype=dtype) for key in new}
    levels = {
        key if isinstance(key, str) else reward(key, device=device): level
        for key, level in minimum.items()
    }
    return AtLeast(made, levels, others=others, penalty=penalty)


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if found is None or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise ValueError(f"dtype={dtype!r}: one of 'float32', 'bfloat16', 'float16', 'float64'")


def _only(options: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key in keys}


def _leave_out(options: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in keys}


def _refuse(options: Mapping[str, Any], what: str) -> None:
    if options:
        name = next(iter(options))
        home = "a dict of weights" if name in ("combine", "clip_gradient") else "a name"
        raise ValueError(f"{name}= does not apply to {what}: it goes with {home}")
