"""Names of rewards: built-in, registered in the program, or brought by installed packages.

A name ending in `:*` is a family: `"clip:*"` answers to every `"clip:<argument>"`. Nothing is
imported before it is asked for.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, TypeVar

from steer.core.checks import did_you_mean
from steer.core.types import Reward
from steer.core.weights.hub import FILES
from steer.rewards.function import FunctionReward
from steer.rewards.liveness import check_alive
from steer.rewards.parts import is_groupwise
from steer.rewards.text import as_text


BUILT_IN = {
    "aesthetic": "steer.rewards.models.aesthetic:aesthetic",
    "aesthetic-v1": "steer.rewards.models.aesthetic:aesthetic_v1",
    "aesthetic-v2.5": "steer.rewards.models.aesthetic_siglip:aesthetic_siglip",
    "augmented:*": "steer.rewards.registry:augmented",
    "clip:*": "steer.rewards.models.clip:clip",
    "compressibility": "steer.rewards.models.compressibility:compressibility",
    "cyclereward": "steer.rewards.models.cyclereward:cyclereward",
    "cyclereward:i2t": "steer.rewards.models.cyclereward:cyclereward_i2t",
    "cyclereward:t2i": "steer.rewards.models.cyclereward:cyclereward_t2i",
    "diversity:*": "steer.rewards.registry:diversity",
    "hpsv2": "steer.rewards.models.hpsv2:hpsv2",
    "hpsv2.0": "steer.rewards.models.hpsv2:hpsv2_0",
    "hpsv2.1": "steer.rewards.models.hpsv2:hpsv2_1",
    "hpsv3": "steer.rewards.vlm.hpsv3:hpsv3",
    "http:*": "steer.rewards.remote.served:http",
    "https:*": "steer.rewards.remote.served:https",
    "imagereward": "steer.rewards.models.imagereward:imagereward",
    "incompressibility": "steer.rewards.models.compressibility:incompressibility",
    "librehps": "steer.rewards.vlm.librehps:librehps",
    "librehps:alignment": "steer.rewards.vlm.librehps:librehps_alignment",
    "librehps:coherence": "steer.rewards.vlm.librehps:librehps_coherence",
    "librehps:style": "steer.rewards.vlm.librehps:librehps_style",
    "librehps:video": "steer.rewards.vlm.librehps_video:librehps_video",
    "librehps:video:alignment": "steer.rewards.vlm.librehps_video:librehps_video_alignment",
    "librehps:video:coherence": "steer.rewards.vlm.librehps_video:librehps_video_coherence",
    "librehps:video:style": "steer.rewards.vlm.librehps_video:librehps_video_style",
    "librehps:video:temporal": "steer.rewards.vlm.librehps_video:librehps_video_temporal",
    "mps": "steer.rewards.models.mps:mps",
    "ocr": "steer.rewards.ocr.reward:ocr",
    "openai:*": "steer.rewards.remote.judge:openai",
    "pickscore": "steer.rewards.models.pickscore:pickscore",
    "shapes": "steer.rewards.models.shapes:shapes",
    "shapes-clip": "steer.rewards.models.shapes:shapes_clip",
    "shapes-vqa": "steer.rewards.models.shapes_vqa:shapes_vqa",
    "soft-tifa:*": "steer.rewards.vlm.soft_tifa:soft_tifa",
    "unifiedreward": "steer.rewards.vlm.unifiedreward:unifiedreward",
    "unifiedreward:alignment": "steer.rewards.vlm.unifiedreward:unifiedreward_alignment",
    "unifiedreward:coherence": "steer.rewards.vlm.unifiedreward:unifiedreward_coherence",
    "unifiedreward:style": "steer.rewards.vlm.unifiedreward:unifiedreward_style",
    "videoreward": "steer.rewards.vlm.videoreward:videoreward",
    "videoreward:mq": "steer.rewards.vlm.videoreward:videoreward_mq",
    "videoreward:ta": "steer.rewards.vlm.videoreward:videoreward_ta",
    "videoreward:vq": "steer.rewards.vlm.videoreward:videoreward_vq",
    "vqa:*": "steer.rewards.vlm.vqa:vqa",
}
PRESETS = {
    "carinox": "steer.rewards.combine.presets:carinox",
    "reno": "steer.rewards.combine.presets:reno",
    "trio": "steer.rewards.combine.presets:trio",
    "trio:light": "steer.rewards.combine.presets:trio_light",
    "trio:standardise": "steer.rewards.combine.presets:trio_standardise",
}
"""Names that stand for a mixture; their functions return a sum's weights by name, or the text."""

ENTRY_POINTS = "steer.rewards"

_registered: dict[str, Callable[..., Any]] = {}
_T = TypeVar("_T")


def available_rewards() -> list[str]:
    """All names, sorted; `"clip:*"` stands for every `"clip:<argument>"`."""
    installed = {point.name for point in entry_points(group=ENTRY_POINTS)}
    return sorted({*BUILT_IN, *PRESETS, *_registered, *installed})


def register_reward(name: str, **declared: Any) -> Callable[[_T], _T]:
    """Decorator: make a function or a class available as `reward(name)`.

    A function `(images, prompts) -> (B,)` is wrapped in `FunctionReward` with what is declared
    here (`differentiable`, `range`, `needs_prompt`, `groupwise`, `batch`). A class is called with
    the options given to `reward` (`checkpoint`, `device`, `dtype`, ...: only those the user
    passed), for a family `"name:*"` after the argument. Registering a name again replaces it.

    Raises:
        ValueError: The name is empty or built in, or the function does not take images and prompts.
    """
    built_in = {*BUILT_IN, *PRESETS}
    if not name or name in built_in or f"{name.partition(':')[0]}:*" in built_in:
        raise ValueError(f"name={name!r} is built in or empty: choose another")

    def register(target: _T) -> _T:
        _registered[name] = _factory_of(target, {"name": name, **declared})
        return target

    return register


def make_named(name: str, options: dict[str, Any]) -> Reward:
    """The reward of a name.

    Args:
        name: Of a single reward.
        options: What its factory is called with; `device` is left out where it takes none.

    Raises:
        ValueError: An unknown name, or options that its factory does not take.
        CheckpointError: Weights that cannot be used, or (of built-in rewards) score all alike.
    """
    factory, arguments = _find_factory(name)
    takes = inspect.signature(factory).parameters
    if "device" not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        options.pop("device", None)  # it computes wherever the images are
    _check_options(name, factory, arguments, options)
    made = factory(*arguments, **options)
    if not isinstance(made, Reward):
        raise ValueError(f"reward {name!r}: its factory returned {made!r}, which is not a reward")
    has_weights = bool(getattr(made, "version", ""))
    if _is_built_in(name) and has_weights and not is_groupwise(made):
        check_alive(made, _source_of(made, options))
    return made


def check_hidden(name: str, given: Sequence[str]) -> None:
    """Raise ValueError where a named reward has an option that `steer.reward` keeps for itself.

    Args:
        name: Of a single reward.
        given: What `steer.reward` was given, of the options that it does not hand on.
    """
    factory, _ = _find_factory(name)
    kinds = inspect.signature(factory).parameters
    for option in given:
        if option in kinds:
            raise ValueError(
                f"{option}= is an option of reward {name!r}, and of steer.reward, which does not "
                "hand it on: rename it there, or make the reward yourself and pass the object"
            )


def preset_mixture(
    name: str, options: Mapping[str, Any], elsewhere: Sequence[str] = ()
) -> dict[str, float] | str:
    """What a preset stands for: the weights of a sum by name, or a mixture as text.

    Args:
        name: In `PRESETS`.
        options: Its own, such as `category`.
        elsewhere: Options that users may give too, for the error.

    Raises:
        ValueError: Options that it does not have.
    """
    factory = _load(PRESETS[name])
    _check_options(name, factory, (), options, elsewhere)
    return factory(**options)


def expanded(text: str) -> str:
    """The text of a reward; where it is a preset's name alone, that of what it stands for."""
    name = text.strip()
    return as_text(preset_mixture(name, {})) if name in PRESETS else text


def _is_built_in(name: str) -> bool:
    return name in BUILT_IN or f"{name.partition(':')[0]}:*" in BUILT_IN


def _source_of(made: Reward, options: Mapping[str, Any]) -> str:
    """Where the weights of a built-in reward come from, for errors."""
    given = {key: options[key] for key in ("checkpoint", "backbone") if options.get(key)}
    url: Any = getattr(made, "url", None)
    if url:  # it computes there
        return str(url)
    if given:
        return " and ".join(f"{key}={str(path)!r}" for key, path in given.items())
    file = FILES.get(made.name)
    return f"{file.filename!r} ({file.page})" if file else "its published files"


def _factory_of(target: Any, declared: dict[str, Any]) -> Callable[..., Any]:
    if isinstance(target, type):
        return target
    made = FunctionReward(target, **declared)
    return lambda: made


def _check_options(
    name: str,
    factory: Callable[..., Any],
    arguments: tuple[str, ...],
    options: Mapping[str, Any],
    elsewhere: Sequence[str] = (),
) -> None:
    signature = inspect.signature(factory)
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        own = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
        known = ", ".join([*own, *elsewhere])
        what = f"its options are {known}" if known else "it has no options"
        raise ValueError(f"reward {name!r}: {error}; {what}") from error


def _find_factory(name: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """The callable behind a name, and its positional arguments."""
    family, _, argument = name.partition(":")
    for key, arguments in ((name, ()), (f"{family}:*", (argument,))):
        if arguments == ("",):
            break
        if key in _registered:
            return _registered[key], arguments
        if key in BUILT_IN:
            return _load(BUILT_IN[key]), arguments
        for point in entry_points(group=ENTRY_POINTS, name=key):
            return _load_installed(point), arguments
    raise ValueError(_explain_unknown(name))


def _load(place: str) -> Callable[..., Any]:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _load_installed(point: Any) -> Callable[..., Any]:
    try:
        target = point.load()
    except Exception as error:
        raise ValueError(f"reward {point.name!r} ({point.value}) does not load: {error}") from error
    if isinstance(target, Reward) and not isinstance(target, type):
        return lambda: target
    return target


def _explain_unknown(name: str) -> str:
    names = available_rewards()
    family = name.partition(":")[0]
    if f"{family}:*" in names:
        return f"reward={name!r} lacks its model: write '{family}:<model>'"
    stems = {known.removesuffix(":*"): known for known in names}
    hint = did_you_mean(family.lower(), stems)
    return f"reward={name!r} is unknown; {hint}there are {', '.join(names)}"
