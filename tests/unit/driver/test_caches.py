"""Feature caches: a search that would read another call's activations is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import apply_first_block_cache
from families import arguments, build, redness, shared

import steer
from steer.core.errors import UnsupportedPipelineError
from steer.driver.caches import check_caches
from steer.methods import (
    SMC,
    BestOfN,
    Budget,
    Gate,
    LookaheadGuidance,
    NoiseOptimization,
    NoiseSearch,
    Prune,
    Then,
)
from steer.pipeline.guided import guided
from steer.pipeline.previews import Previews


JUMPING = [
    Prune(start=4, keep=(2,), at=(0.5,)),
    Gate(SMC(2, kernel="ddim"), threshold=2.0, max_rounds=1),
    Budget(4, BestOfN(8)),
    Then(BestOfN(1), BestOfN(1)),
    LookaheadGuidance(1, lookaheads=2, through=2),
    NoiseSearch(n=2, rounds=2),
    NoiseSearch(n=2, rounds=1, strategy="paths", keep=1, back=1),
    NoiseSearch(n=1, rounds=1, through=2),
    NoiseOptimization(iterations=1, through=None, gradient="zero-order"),
]


@pytest.fixture(scope="module", params=["enabled", "applied"])
def cached(request: pytest.FixtureRequest) -> Any:
    """A pipeline with diffusers' first-block cache, switched on in either of the two ways."""
    pipe = build("flux")
    config = FirstBlockCacheConfig(threshold=0.1)
    if request.param == "enabled":
        pipe.transformer.enable_cache(config)
    else:
        apply_first_block_cache(pipe.transformer, config)
    return pipe


@pytest.mark.parametrize("method", JUMPING, ids=lambda method: type(method).__name__)
def test_whoever_jumps_is_refused(cached: Any, method: Any) -> None:
    with pytest.raises(UnsupportedPipelineError, match=r"pipe\.transformer has a feature cache"):
        guided(cached, redness, method=method)(**arguments("flux"))


def test_short_runs_for_a_lookahead_set_are_refused(cached: Any) -> None:
    with pytest.raises(UnsupportedPipelineError, match="asks in another order"):
        steer.pipeline.lookaheads(guided(cached, redness), ["a"], n=2, through=2, **_size())


@pytest.mark.parametrize("method", [BestOfN(1), BestOfN(2), Previews(n=2, at=(0.5,))])
def test_one_pass_in_order_may_use_the_cache(cached: Any, method: Any) -> None:
    out = guided(cached, redness, method=method)(**arguments("flux"))
    assert out.report.lane_width == method.populations[0]


def test_tuned_weights_beside_the_pipelines_are_refused(cached: Any) -> None:
    """They would be answered from the activations of the others."""
    with pytest.raises(UnsupportedPipelineError, match="a call with tuned weights asks"):
        check_caches(cached, False, "a call with tuned weights")


def test_other_hooks_are_no_caches() -> None:
    pipe = build("flux")
    pipe.transformer.enable_layerwise_casting(torch.float32, torch.float32)
    guided(pipe, redness, method=BestOfN(5))(**arguments("flux"))


@pytest.mark.parametrize(
    ("package", "method", "words"),
    [
        ("DeepCache", Prune(2, (1,), (0.5,)), r"helper\.disable\(\)"),
        ("cache_dit", Prune(5, (2,), (0.5,)), "switch cache_dit off"),
        ("para_attn", Prune(5, (2,), (0.5,)), "switch para_attn off"),
    ],
)
def test_caches_of_other_packages(package: str, method: Any, words: str) -> None:
    """They put a function of their own in place of a block's forward."""
    pipe = build("sd")
    block = pipe.unet.mid_block

    def wrapped_forward(*args: Any, **kwargs: Any) -> Any:
        return type(block).forward(block, *args, **kwargs)

    wrapped_forward.__module__ = f"{package}.extension"
    block.forward = wrapped_forward
    with pytest.raises(UnsupportedPipelineError, match=words):
        guided(pipe, redness, method=method)(**arguments("sd"))


def test_nothing_is_cached_by_default() -> None:
    guided(shared("sd"), redness, method=BestOfN(5))(**arguments("sd"))


def _size() -> dict[str, Any]:
    given = arguments("flux")
    return {k: v for k, v in given.items() if k not in ("prompt", "generator")}
