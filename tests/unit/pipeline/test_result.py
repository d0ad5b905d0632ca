"""What guided calls return: candidates that the pipeline's safety checker blacks out lose."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from families import arguments, build, redness, seeded
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from steer.methods import SMC, BestOfN, Budget, Gate, NoiseSearch, Prune, Then, Tree
from steer.pipeline.guided import guided


class Prude(nn.Module):
    """Blacks out what is redder than `level`."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, level: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.level = level

    def forward(self, clip_input: Tensor, images: Tensor) -> tuple[Tensor, list[bool]]:
        flags = (redness((images / 2 + 0.5).clamp(0, 1), []) > self.level).tolist()
        for row, flag in enumerate(flags):
            if flag:
                images[row] = 0
        return images, flags


def prudish(level: float) -> Any:
    """The tiny Stable Diffusion with such a checker."""
    parts = build("sd").components
    extractor = CLIPImageProcessor(size=16, crop_size=16)
    pipe = StableDiffusionPipeline(
        **{**parts, "safety_checker": Prude(level), "feature_extractor": extractor}
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: Any, method: Any, **more: Any) -> Any:
    given = arguments("sd", **{"output_type": "pt", "generator": seeded(0), **more})
    return guided(pipe, redness, method=method)(**given)


def finals(out: Any) -> dict[int, float]:
    found: dict[int, float] = {}
    for row in out.report.trace.of("score"):
        if not row["preview"]:
            found |= dict(zip(row["particle"], row["reward"], strict=True))
    return found


METHODS = {
    "best-of-n": BestOfN(4),
    "gate": Gate(BestOfN(4), threshold=0.1, max_rounds=1),
    "prune": Prune(4, (3,), (0.5,)),
    "smc": SMC(4, kernel="ddim"),
    "tree": Tree(4, compute=4, kernel="ddim"),
    "then": Then(BestOfN(2), NoiseSearch(n=2, rounds=1)),
    "budget": Budget(4, BestOfN(4)),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_winner_is_one_that_passes(name: str) -> None:
    free = call(prudish(2.0), METHODS[name])
    best, second = sorted({round(r, 5) for r in finals(free).values()}, reverse=True)[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        out = call(prudish((best + second) / 2), METHODS[name])
    assert out.nsfw_content_detected == [False] and out.accepted == [True]
    assert out.rewards == pytest.approx(redness(out.images, []).tolist(), abs=1e-5)
    assert 0 < out.rewards[0] < best
    assert "the safety checker flagged particle" in str(out.report)


def test_a_black_image_loses_to_all_even_under_a_reward_that_likes_it() -> None:
    def darkness(images: Tensor, prompts: list[str]) -> Tensor:
        return 1 - images.mean((1, 2, 3))

    free = call(prudish(2.0), BestOfN(4))
    level = sorted(finals(free).values())[-2]
    given = arguments("sd", output_type="pt", generator=seeded(0))
    out = guided(prudish(level - 1e-4), darkness, method=BestOfN(4))(**given)
    assert out.nsfw_content_detected == [False] and out.images.any()
    assert max(finals(out).values()) == pytest.approx(1.0)


@pytest.mark.parametrize("method", [BestOfN(1), BestOfN(4), Gate(BestOfN(2), 0.0, 2)])
def test_where_nothing_passes_the_call_says_so(method: Any) -> None:
    with pytest.warns(UserWarning, match="safety checker flagged what is returned"):
        out = call(prudish(-1.0), method)
    black = redness(torch.zeros(1, 3, 16, 16), []).tolist()
    assert out.nsfw_content_detected == [True] and out.accepted == [False]
    assert not out.images.any() and out.rewards == pytest.approx(black)
    assert "not accepted" in str(out.report)


def test_each_prompt_has_its_own_flags() -> None:
    def given() -> dict[str, Any]:
        return {"prompt": ["a red circle", "two"], "generator": [seeded(0), seeded(1)]}

    levels = call(prudish(2.0), BestOfN(2), **given()).rewards
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        out = call(prudish(max(levels) - 1e-4), BestOfN(2), **given())
    assert out.accepted == [True, True]
    assert sum(new < old - 1e-5 for new, old in zip(out.rewards, levels, strict=True)) == 1


def test_latents_are_not_checked() -> None:
    out = call(prudish(-1.0), BestOfN(2), output_type="latent")
    assert out.accepted == [True] and not out.report.trace.of("flagged")


class Unscaling(StableDiffusionPipeline):
    """Returns latents otherwise than its loop has them, as Flux 2 and DeepFloyd IF do."""

    @functools.wraps(StableDiffusionPipeline.__call__)
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *args: Any, **kwargs: Any
    ) -> Any:
        out = super().__call__(*args, **kwargs)
        if kwargs.get("output_type") == "latent":
            assert not isinstance(out, tuple)
            out.images = 3 * out.images.movedim(1, -1) + 1  # pyright: ignore
        return out


@pytest.mark.parametrize("n", [1, 3])
def test_latents_are_judged_as_the_loop_has_them(n: int) -> None:
    pipe = Unscaling(**build("sd").components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    images, latents = (call(pipe, BestOfN(n), output_type=kind) for kind in ("pt", "latent"))
    assert latents.images.shape == (1, 8, 8, 4)
    assert latents.rewards == pytest.approx(images.rewards, abs=1e-6)
