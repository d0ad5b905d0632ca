"""Calls of several prompts with more than text: what is repeated, and what keeps lanes narrow."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
)
from families import arguments, build, redness, seeded, shared
from PIL import Image
from torch import Tensor

from steer.driver.call import Call
from steer.methods import BestOfN
from steer.pipeline.guided import guided


def finals(report: Any) -> list[dict[int, float]]:
    """Final rewards of every prompt by particle."""
    found: list[dict[int, float]] = [{} for _ in report.prompts]
    for row in report.trace.of("score"):
        found[row["prompt"]] |= dict(zip(row["particle"], row["reward"], strict=True))
    return found


def with_channels(kind: Any, channels: int) -> Any:
    """A tiny Stable Diffusion whose denoiser sees an image beside the latents."""
    parts = build("sd").components
    torch.manual_seed(0)
    config = {k: v for k, v in parts["unet"].config.items() if k != "_use_default_values"}
    parts["unet"] = UNet2DConditionModel.from_config(config | {"in_channels": channels})
    pipe = kind(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def half(left: bool) -> Image.Image:
    pixels = np.zeros((16, 16), dtype=np.uint8)
    pixels[:, :8] = 255 * left
    pixels[:, 8:] = 255 * (not left)
    return Image.fromarray(pixels)


IMAGES = {"image": [noise(1), Image.new("RGB", (16, 16), "black")]}
MASKS = {"mask_image": [half(True), half(False)], "strength": 1.0, "height": 16, "width": 16}


@pytest.mark.parametrize(
    ("kind", "channels", "inputs"),
    [
        (StableDiffusionInstructPix2PixPipeline, 8, IMAGES),
        (StableDiffusionInpaintPipeline, 9, IMAGES | MASKS),
    ],
)
def test_each_prompt_keeps_its_own_image(kind: Any, channels: int, inputs: Any) -> None:
    pipe = with_channels(kind, channels)
    given = {"prompt": ["a red circle", "two"], "num_inference_steps": 3, "output_type": "pt"}
    given |= inputs
    plain = redness(pipe(**given, generator=seeded(0)).images, []).tolist()
    seen = []
    for width in (None, 1, 4):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            out = guided(pipe, redness, method=BestOfN(4), lane_width=width)(
                **given, generator=seeded(0)
            )
        assert out.report.base_reward == pytest.approx(plain, abs=1e-5)
        said = ["its own image" in str(w.message) for w in told].count(True)
        assert said == (width == 4) or channels == 9
        assert out.report.lane_width == 1
        seen.append(finals(out.report))
    assert seen[1] == seen[0] and seen[2] == seen[0]


def test_negative_text_stands_beside_embeddings() -> None:
    pipe = shared("sd")
    embeds, _ = pipe.encode_prompt("a red circle", "cpu", 1, False)
    given = arguments("sd", prompt=None, prompt_embeds=embeds, negative_prompt="two")
    outs = [
        guided(pipe, redness, method=BestOfN(4), lane_width=width)(
            **{**given, "generator": seeded(0)}, reward_prompt="a red circle"
        )
        for width in (1, 2, 4)
    ]
    assert outs[1].rewards == pytest.approx(outs[0].rewards, abs=1e-5)
    assert outs[2].rewards == pytest.approx(outs[0].rewards, abs=1e-5)


class Recorder:
    """A pipeline that keeps what it is called with."""

    scheduler = DDIMScheduler()

    def prepare_latents(self, batch_size: int, generator: Any) -> Tensor:
        raise NotImplementedError

    def __call__(
        self,
        prompt: Any = None,
        prompt_2: Any = None,
        negative_prompt: Any = None,
        image: Any = None,
        prompt_embeds: Any = None,
        prompt_embeds_llama: Any = None,
        prompt_cu_seqlens: Any = None,
        ip_adapter_image_embeds: Any = None,
        num_images_per_prompt: int = 1,
        original_size: Any = None,
        control_guidance_start: Any = None,
        timesteps: Any = None,
        latents: Any = None,
    ) -> Any:
        return {k: v for k, v in locals().items() if k != "self" and v is not None}


def two(*shape: int) -> Tensor:
    return torch.arange(2.0).view(2, *(1 for _ in shape)).expand(2, *shape)


def test_everything_of_a_prompt_is_repeated_beside_it() -> None:
    call = Call(
        Recorder(),
        (),
        {"prompt_embeds": two(3, 4), "negative_prompt": "no", "prompt_2": ["a", "b"]},
    )
    given = call.run(2)
    assert given["prompt_embeds"][:, 0, 0].tolist() == [0, 0, 1, 1]
    assert given["prompt_2"] == ["a", "a", "b", "b"] and given["negative_prompt"] == ["no"] * 4
    assert given["num_images_per_prompt"] == 1


@pytest.mark.parametrize("mask", ["prompt_attention_mask", "prompt_embeds_mask"])
def test_prompts_are_repeated_here_where_pipelines_mix_their_masks(mask: str) -> None:
    """Sana, Qwen-Image and others repeat embeddings A A B B, and masks A B A B."""

    class Masked(Recorder):
        def __call__(
            self,
            prompt: Any,
            num_images_per_prompt: int = 1,
            prompt_attention_mask: Any = None,
            prompt_embeds_mask: Any = None,
        ) -> Any:
            return prompt, num_images_per_prompt

    signature = inspect.signature(Masked.__call__)
    kept = [p for n, p in signature.parameters.items() if "mask" not in n or n == mask]
    Masked.__call__.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    assert Call(Masked(), (), {"prompt": ["a", "b"]}).run(2) == (["a", "a", "b", "b"], 1)
    assert Call(Masked(), (), {"prompt": ["a"]}).run(2) == (["a"], 2)


def test_lists_of_embeddings_are_counted_and_repeated() -> None:
    embeds = [torch.zeros(3, 4), torch.ones(5, 4)]  # Z-Image: one tensor a prompt, of any length
    call = Call(Recorder(), (), {"prompt_embeds": embeds})
    assert call.prompts == 2
    assert [len(row) for row in call.run(2)["prompt_embeds"]] == [3, 3, 5, 5]


@pytest.mark.parametrize(
    "more",
    [
        {"image": [noise(0), noise(1)]},
        {"image": torch.zeros(2, 3, 16, 16)},
        {"image": np.zeros((2, 16, 16, 3))},
        {"image": [[noise(0), noise(1)]] * 3},  # three ControlNets
        {"prompt_embeds": two(3, 4), "prompt_embeds_llama": torch.zeros(5, 2, 3, 4)},  # HiDream
        {"prompt_embeds": two(3, 4), "prompt_cu_seqlens": torch.tensor([0, 3, 6])},  # Kandinsky 5
    ],
)
def test_lanes_are_narrow_where_prompts_have_inputs_of_their_own(more: dict[str, Any]) -> None:
    text = {} if "prompt_embeds" in more else {"prompt": ["a", "b"]}
    call = Call(Recorder(), (), text | more)
    assert call.prompts == 2 and call.widest((4,)) == 1
    with pytest.warns(UserWarning, match="lane_width=4: each of 2 prompts has its own"):
        assert call.allowed(4) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"image": noise(0), "original_size": (16, 16), "control_guidance_start": [0.0, 0.5]},
        {"image": torch.zeros(1, 3, 16, 16), "timesteps": [999, 0], "latents": two(4, 8, 8)},
        {"ip_adapter_image_embeds": [torch.zeros(2, 1, 4)], "negative_prompt": ["", ""]},
    ],
)
def test_lanes_are_wide_where_prompts_share_their_inputs(more: dict[str, Any]) -> None:
    call = Call(Recorder(), (), {"prompt": ["a", "b"]} | more)
    assert call.widest((4,)) == call.allowed(4) == 4
    assert call.run(4)["num_images_per_prompt"] == 4


def test_lanes_are_narrow_where_a_pipeline_does_not_repeat_an_input() -> None:
    embeddings = {"prompt": "a", "ip_adapter_image_embeds": [torch.zeros(2, 1, 4)]}
    call = Call(type("KolorsPAGPipeline", (Recorder,), {})(), (), embeddings)
    assert call.widest((4,)) == 1
    with pytest.warns(UserWarning, match="does not repeat ip_adapter_image_embeds"):
        assert call.allowed(4) == 1


def test_a_pipeline_that_writes_into_its_arguments_leaves_those_of_the_user_alone() -> None:
    class Writer(Recorder):
        def __call__(
            self,
            prompt: Any,
            ip_adapter_image_embeds: Any,
            num_images_per_prompt: int = 1,
            generator: Any = None,
        ) -> Any:
            ip_adapter_image_embeds[0] = None
            return ip_adapter_image_embeds

    embeddings = [torch.zeros(2, 1, 4)]
    call = Call(Writer(), (), {"prompt": "a", "ip_adapter_image_embeds": embeddings})
    for run in (call.run(1), call.run(2), call.again([0])):
        assert run == [None]
        assert embeddings[0] is not None


def test_one_prompt_with_embeddings_that_cannot_be_repeated_is_left_to_the_pipeline() -> None:
    given = {"prompt_embeds": two(3, 4)[:1], "prompt_embeds_llama": torch.zeros(5, 1, 3, 4)}
    call = Call(Recorder(), (), given)
    assert call.allowed(4) == 4
    assert call.run(4)["num_images_per_prompt"] == 4 and len(call.run(4)["prompt_embeds"]) == 1


def test_pipelines_without_prompts_count_their_inputs() -> None:
    unconditional = DiTPipeline(
        DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            sample_size=8,
            num_embeds_ada_norm=10,
        ),
        build("sd").vae,
        cast(Any, DDIMScheduler()),
    )
    assert Call(unconditional, ([1, 2, 3],), {}).prompts == 3
    video = StableVideoDiffusionPipeline.__new__(StableVideoDiffusionPipeline)
    object.__setattr__(video, "scheduler", DDIMScheduler())
    assert Call(video, ([noise(0), noise(1)],), {}).prompts == 2
    assert Call(video, (noise(0),), {}).prompts == 1
    assert Call(video, (torch.zeros(3, 16, 16),), {}).prompts == 1
