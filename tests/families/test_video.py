"""Videos through `guided`: Wan's latents, its 3-D decoder, rewards per frame, and the report."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor

import steer
from families import arguments, build, redness, seeded, shared
from steer.core.errors import RewardError, UnsupportedPipelineError
from steer.core.when import at
from steer.driver.decoding.decode import decode
from steer.methods import BestOfN, Guide, NoiseOptimization, Prune
from steer.pipeline.guided import guided
from steer.rewards import PerFrame
from steer.rewards.function import FunctionReward


reddish = FunctionReward(redness, name="reddish", differentiable=True, needs_prompt=False)


def tail(pipe: Any, **more: Any) -> tuple[Tensor, Tensor]:
    """Latents at the end of the pipeline's loop, and its own frames for them."""
    latents = pipe(**arguments("wan", **more)).frames
    return latents, pipe(**arguments("wan", output_type="pt", **more)).frames


@pytest.mark.parametrize("frames", [1, 3, 5])
def test_decodes_as_the_pipeline_does(frames: int) -> None:
    pipe = shared("wan")
    latents, expected = tail(pipe, prompt=["a red circle", "two"], num_frames=frames)
    images = decode(pipe, latents)
    assert expected.shape == (2, frames, 3, 16, 16)
    torch.testing.assert_close(images, expected)
    assert torch.equal(decode(pipe, latents, chunk=2), expected)


def test_videos_are_decoded_one_by_one() -> None:
    pipe, rows = build("wan"), []
    own = pipe.vae.decode
    pipe.vae.decode = lambda z, *a, **k: (rows.append(len(z)), own(z, *a, **k))[1]
    decode(pipe, torch.randn(3, 4, 3, 8, 8, generator=seeded(0)))
    decode(pipe, torch.randn(3, 4, 1, 8, 8, generator=seeded(0)))
    assert rows == [1, 1, 1, 3]


def test_gradients_through_the_decoder_are_the_slopes() -> None:
    """Against a central difference in float64, through the causal cache of frames."""
    pipe = build("wan")
    pipe.vae.double()
    x = torch.randn(2, 4, 3, 8, 8, generator=seeded(1), dtype=torch.float64).requires_grad_()
    direction = torch.randn(x.shape, generator=seeded(2), dtype=torch.float64)
    weights = torch.randn(2, 5, 3, 16, 16, generator=seeded(3))
    up, down = ((decode(pipe, x + h * direction) * weights).double().sum() for h in (1e-4, -1e-4))
    (slope,) = torch.autograd.grad((decode(pipe, x, grad=True) * weights).sum(), x)
    assert float((slope * direction).sum()) == pytest.approx(float((up - down) / 2e-4), rel=0.01)


class Motion:
    """A reward of whole videos: how much neighbouring frames differ."""

    name, differentiable, range, needs_prompt, videos = "motion", True, (0.0, 1.0), False, True

    def __call__(self, images: Tensor, prompts: Any) -> Tensor:
        assert images.ndim == 5
        return (images[:, 1:] - images[:, :-1]).abs().mean((1, 2, 3, 4))


@pytest.mark.parametrize("kind", ["latent", "pt", "np", "pil"])
def test_a_reward_of_whole_videos(kind: str) -> None:
    """Previews, finals and what the pipeline returns are judged as videos."""
    pipe, reward = shared("wan"), Motion()
    call = guided(pipe, reward, method=Prune(3, (1,), (0.5,)), judge=Motion())
    out = call(**arguments("wan", output_type=kind))
    film = decode(pipe, out.frames) if kind == "latent" else out.frames
    assert out.report.trace.of("score")[0]["preview"]
    assert out.report.judges["motion"] == pytest.approx(out.rewards, abs=2e-3)
    if kind in ("latent", "pt"):
        assert out.rewards == pytest.approx(reward(film, "").tolist(), abs=1e-5)


def test_a_video_of_one_frame() -> None:
    """Wan as a text-to-image model: an output of one frame, judged and returned as a video."""
    pipe = shared("wan")
    call = arguments("wan", num_frames=1, output_type="pt")
    out = guided(pipe, redness, method=BestOfN(3), judge=redness)(**call)
    assert out.frames.shape == (1, 1, 3, 16, 16)
    assert out.rewards == pytest.approx([float(out.frames[0, :, 0].mean())], abs=1e-5)


def test_frames_of_a_pipeline_of_images_are_unknown() -> None:
    pipe = shared("sd")
    with pytest.raises(UnsupportedPipelineError, match=r"\(1, 4, 3, 8, 8\)"):
        decode(pipe, torch.zeros(1, 4, 3, 8, 8))


@pytest.mark.parametrize("kind", ["latent", "pt", "np", "pil"])
def test_rewards_are_those_of_the_returned_videos(kind: str) -> None:
    pipe = shared("wan")
    given = arguments("wan", prompt=["a red circle", "two"], num_videos_per_prompt=2)
    out = guided(pipe, redness, method=BestOfN(2), lane_width=2)(**{**given, "output_type": kind})
    assert [p for p, _ in out.report.chosen] == [0, 0, 1, 1]
    films = decode(pipe, out.frames) if kind == "latent" else out.frames
    expected = PerFrame(steer.reward(redness))(films, ["a red circle"] * 2 + ["two"] * 2)
    assert out.rewards == pytest.approx(expected.tolist(), abs=2e-3 if kind == "pil" else 1e-5)
    assert len(set(out.rewards)) == 4
    assert out.report.reward == "redness per frame (mean)"
    ledger = out.report.ledger
    assert ledger.denoiser_rows == 4 * 2 * 4
    assert ledger.reward_calls == 5 * 8  # frames
    assert ledger.decodes == 8 + (0 if kind == "latent" else 4)


@pytest.mark.parametrize("aggregate", ["min", "last"])
def test_a_declared_aggregate_is_kept(aggregate: Any) -> None:
    pipe, reward = shared("wan"), PerFrame(steer.reward(redness), aggregate)
    call = guided(pipe, reward, method=BestOfN(3), judge=redness)
    out = call(**arguments("wan", output_type="pt"))
    assert call.reward is reward
    assert aggregate in repr(call)
    assert out.rewards == pytest.approx(reward(out.frames, "").tolist(), abs=1e-5)
    judged = out.report.judges["redness per frame (mean)"]
    assert judged == pytest.approx([float(out.frames[0, :, 0].mean())], abs=1e-5)
    assert out.report.base_judges["redness per frame (mean)"][0] is not None


def test_thumbnails_show_the_middle_frame() -> None:
    pipe = shared("wan")
    call = guided(pipe, redness, method=Prune(2, (1,), (0.5,)), keep_images=True)
    out = call(**arguments("wan", output_type="pt"))
    shown = out.report.trace.images
    assert {(0, 0, 1), (0, 1, 1)} <= set(shown)
    assert all(image.shape == (16, 16, 3) and image.dtype == np.uint8 for image in shown.values())
    single = guided(pipe, redness, method=BestOfN(1), keep_images=True)(**arguments("wan"))
    film = decode(pipe, single.frames)
    middle = (film[0, 2] * 255).round().byte().permute(1, 2, 0).numpy()
    last = single.report.trace.images[0, 0, -1].astype(int)
    assert np.abs(last - middle).max() <= 1  # a level, where a half rounds either way


@pytest.mark.parametrize("method", [Guide(BestOfN(1), 0.3, at(1, 2)), NoiseOptimization(3)])
def test_gradients_raise_the_reward(method: Any) -> None:
    pipe = shared("wan")
    (plain,) = guided(pipe, reddish, method=BestOfN(1))(**arguments("wan")).rewards
    (ours,) = guided(pipe, reddish, method=method)(**arguments("wan")).rewards
    assert ours > plain + 1e-3


def test_a_nan_frame_names_its_particle() -> None:
    pipe = build("wan")
    own = pipe.vae.decode

    def broken(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        (film,) = own(z, *args, **kwargs)
        film[:, :, 3] = float("nan")
        return (film,)

    pipe.vae.decode = broken
    with pytest.raises(RewardError, match="particle 0: its decoded image has NaN"):
        guided(pipe, redness, method=BestOfN(2))(**arguments("wan"))


@pytest.mark.skipif(
    "kwargs" not in inspect.signature(CacheMixin.cache_context).parameters,
    reason="the pipelines of a newer diffusers tell their caches the noise level",
)
def test_noise_levels_looked_up_by_iteration_are_those_of_the_query() -> None:
    """Wan tells its feature caches `scheduler.sigmas[i]`; a search has more iterations."""
    pipe, told, asked = build("wan"), [], []
    own = pipe.transformer.cache_context

    @contextmanager
    def watch(name: str, **context: Any) -> Any:
        told.append(context["sigma"])
        with own(name, **context):
            yield

    pipe.transformer.cache_context = watch
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: asked.append(float(kwargs["timestep"][0])), with_kwargs=True
    )
    guided(pipe, redness, method=BestOfN(3), lane_width=1)(**arguments("wan"))
    assert len(told) == 3 * 4 * 2
    assert told == pytest.approx([t / 1000 for t in asked], abs=1e-3)
    assert told[:8] == told[8:16] == told[16:]


def test_the_bare_drop_in_scores_frames_too() -> None:

    pipe = build("wan")
    plain = pipe(**arguments("wan")).frames
    wrapped = steer.drop_in(pipe, reward=redness, prompt="a red circle", method=BestOfN(1))
    pipe.scheduler = wrapped
    assert torch.equal(pipe(**arguments("wan")).frames, plain)
