"""Arguments of a guided call: rewards, effort, and the texts that rewards read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, get_args

import torch

from steer.core.checks import one_of
from steer.core.costs import Unit
from steer.core.errors import SteerError
from steer.core.types import Reward
from steer.driver.call import Call
from steer.driver.call_checks import check_pipeline
from steer.driver.decoding.previews import preview_decoder
from steer.driver.facts import makes_videos, named_device
from steer.driver.replicas import as_devices
from steer.methods.default import for_compute
from steer.pipeline.planning.plans import as_plans
from steer.rewards.judges import with_auto
from steer.rewards.parts import check_prompts
from steer.rewards.registry import resolve
from steer.search.method import Method
from steer.search.picks.base import check_pick


COMPUTE = 4.0
"""Plain calls' worth of denoiser rows, unless told otherwise."""


def resolve_reward(reward: Any, pipe: Any) -> Reward:
    """What `steer.reward` takes as a reward on the pipeline's device, fit for what it makes."""
    return resolve(reward, named_device(pipe), videos=makes_videos(pipe))


def check_grad_mode() -> None:
    """Raise SteerError under `torch.inference_mode`."""
    if torch.is_inference_mode_enabled():
        raise SteerError(
            "torch.inference_mode is on: searches need ordinary tensors; use torch.no_grad "
            "(the pipeline does so itself)"
        )


def is_family(method: Any) -> TypeGuard[type[Method]]:
    """Whether a method is given as a class, its size left to `compute`."""
    return isinstance(method, type) and issubclass(method, Method)


def check_effort(method: Any, compute: Any) -> None:
    """Raise ValueError for something that is no method, and for `compute` out of range."""
    if is_family(method):
        method.for_compute(COMPUTE if compute is None else compute, 50)
        return
    if method is not None and not isinstance(method, Method):
        raise ValueError(
            f"method={method!r}: unknown; pass a method such as steer.BestOfN(4), steer.Prune() or "
            "steer.Gate(steer.BestOfN(4), threshold=0.6); one of your own has steer.methods.Method "
            "as its base class"
        )
    if method is not None and compute is not None:
        raise ValueError(
            f"compute={compute!r} beside method={method!r}: the method sets its own cost; give one"
        )
    if compute is not None:
        for_compute(compute, 1)


def fitting(name: str, value: Any, own: Mapping[str, Any]) -> Any:
    """A value for an attribute of `Guided`, resolved and checked; `own` are those that it has.

    Raises:
        ValueError, UnsupportedPipelineError, CheckpointError: As `guided`.
    """
    if name == "pipe":
        check_pipeline(value)
    if name == "reward":
        return resolve_reward(value, own["pipe"])
    if name == "judges":
        judges = value if isinstance(value, list | tuple) else [] if value is None else [value]
        return [resolve_reward(j, own["pipe"]) for j in with_auto(judges, own["reward"])]
    if name == "select" and value is not None:
        check_pick("select", value)
    if name == "preview":
        return preview_decoder(own["pipe"], value)
    if name in ("method", "compute"):
        effort = {"method": own.get("method"), "compute": own.get("compute"), name: value}
        check_effort(effort["method"], effort["compute"])
    if name == "plans":
        value = as_plans(value)
        if value is not None:
            value.check(own["pipe"], own["reward"])
    if name == "devices":
        return as_devices(value)
    if name == "compute_unit":
        one_of("compute_unit", value, get_args(Unit))
    if name == "lane_width" and value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"lane_width={value!r}: particles per denoiser call, at least 1")
    return value


def reward_texts(call: Call, rewards: list[Reward], given: str | Sequence[str] | None) -> list[str]:
    """One text per prompt for the rewards; ValueError for one that they cannot score."""
    texts = _reward_texts(call, rewards, given)
    for reward in rewards:
        check_prompts(reward, texts)
    return texts


def _reward_texts(
    call: Call, rewards: list[Reward], given: str | Sequence[str] | None
) -> list[str]:
    if given is not None:
        several = isinstance(given, list | tuple) and all(isinstance(text, str) for text in given)
        if not isinstance(given, str) and not several:
            raise ValueError(f"reward_prompt={given!r}: must be a text, or a list of texts")
        texts = [given] * call.prompts if isinstance(given, str) else list(given)
        if len(texts) != call.prompts:
            raise ValueError(
                f"reward_prompt has {len(texts)} texts for {call.prompts} prompts: give one each"
            )
        return texts
    if call.texts:
        return call.texts
    needy = [reward.name for reward in rewards if reward.needs_prompt]
    if needy:
        raise ValueError(
            f"reward {needy[0]!r} reads the prompt, and the call gives none as text: pass "
            "reward_prompt='...' beside prompt_embeds"
        )
    return [""] * call.prompts
