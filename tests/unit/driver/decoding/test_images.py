"""`decode` against pipelines with other decoders than a VAE: MOVQ, VQ, VQGAN, and pixels."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_cascade.pipeline_stable_cascade import PaellaVQModel
from families import redness, seeded
from families.models import vae
from families.text import EMBED, clip_config, clip_tokenizer, t5, t5_tokenizer
from torch import Tensor
from transformers import CLIPTextModel

import steer
from steer.core.errors import UnsupportedPipelineError
from steer.driver.decoding.asked import Asked
from steer.driver.decoding.decode import check, decode, returned
from steer.methods import SMC, BestOfN, Guide, Prune
from steer.rewards.function import FunctionReward


Built = tuple[Any, dict[str, Any]]
reddish = FunctionReward(redness, name="reddish", differentiable=True, needs_prompt=False)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(1))


def movq() -> Any:
    return diffusers.VQModel(
        block_out_channels=[32, 32],
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )


def kandinsky() -> Built:
    """Kandinsky 2.2, whose `pt` outputs are in [-1, 1] and whose U-Net learned a variance."""
    unet = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(8, 16),
        layers_per_block=1,
        encoder_hid_dim=8,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
    )
    pipe = diffusers.KandinskyV22Pipeline(
        unet=unet, scheduler=diffusers.DDIMScheduler(clip_sample=False), movq=movq()
    )
    embeds = {"image_embeds": noise(1, 8), "negative_image_embeds": noise(1, 8)}
    return pipe, {**embeds, "height": 32, "width": 32}


def ldm() -> Built:
    """LDM, with its autoencoder under another name and no image processor."""
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=EMBED,
        norm_num_groups=4,
    )
    config = clip_config()
    config.max_position_embeddings = 77
    pipe = diffusers.LDMTextToImagePipeline(
        vqvae=vae(),
        bert=CLIPTextModel(config),
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
    )
    return pipe, {"prompt": "a red circle", "height": 16, "width": 16}


def deepfloyd() -> Built:
    """DeepFloyd IF: pixels in [-1, 1], and a variance behind the noise that the scheduler reads."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        in_channels=3,
        out_channels=6,
        norm_num_groups=4,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        cross_attention_dim=8,
        encoder_hid_dim=8,
        attention_head_dim=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    pipe = diffusers.IFPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(8),
        unet=unet,
        scheduler=diffusers.DDPMScheduler(variance_type="learned_range"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    return pipe, {"prompt": "a red circle", "clean_caption": False}


def deepfloyd_image() -> Built:
    """DeepFloyd IF from a given image, which it noises in `prepare_intermediate_images`."""
    base, call = deepfloyd()
    pipe = diffusers.IFImg2ImgPipeline(**base.components, requires_safety_checker=False)
    return pipe, call | {"image": torch.rand(1, 3, 8, 8, generator=seeded(5)), "strength": 0.9}


def deepfloyd_inpainting() -> Built:
    """DeepFloyd IF that puts the clean image back outside a mask after every step."""
    base, call = deepfloyd()
    pipe = diffusers.IFInpaintingPipeline(**base.components, requires_safety_checker=False)
    given = {
        "image": torch.rand(1, 3, 8, 8, generator=seeded(5)),
        "mask_image": torch.zeros(1, 1, 8, 8),
    }
    given["mask_image"][..., 4:] = 1
    return pipe, call | given | {"strength": 1.0}


def run(build: Any, method: Any, reward: Any = redness, **more: Any) -> Any:
    torch.manual_seed(0)
    pipe, call = build()
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    call = {**call, "generator": seeded(0), "num_inference_steps": 4, **more}
    return steer.guided(pipe, reward, method=method, lane_width=1)(**call, reward_prompt="a")


def in_unit(images: Any) -> Tensor:
    """What a pipeline returned as `np`, which is in [0, 1], as `(B, 3, H, W)`."""
    return torch.from_numpy(np.asarray(images)).movedim(-1, 1)


@pytest.mark.parametrize(
    "build", [kandinsky, ldm, deepfloyd, deepfloyd_image, deepfloyd_inpainting]
)
def test_rewards_are_those_of_the_images(build: Any) -> None:
    """Decoded by the search, and read off either output, they are the same."""
    made = run(build, BestOfN(3), output_type="np")
    images = in_unit(made.images)
    assert made.rewards == pytest.approx(redness(images, []).tolist(), abs=1e-5)
    assert float(images.std()) > 0.02
    plain = run(build, BestOfN(1), output_type="np")
    assert made.report.base_reward == pytest.approx(plain.rewards, abs=1e-5)
    assert plain.rewards == pytest.approx(redness(in_unit(plain.images), []).tolist(), abs=1e-6)
    assert run(build, BestOfN(1), output_type="pt").rewards == pytest.approx(
        plain.rewards, abs=1e-5
    )


@pytest.mark.parametrize(
    "method",
    [
        Prune(start=3, keep=(1,), at=(0.5,)),
        SMC(3),
        Guide(BestOfN(1), 0.3),
        Guide(BestOfN(1), 0.3, through="denoiser"),
    ],
)
def test_deepfloyd_inpainting_scores_what_it_returns_and_keeps_the_image(method: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no "returns other images than its latents decode to"
        made = run(deepfloyd_inpainting, method, reddish, output_type="np")
    images = in_unit(made.images)
    assert made.rewards == pytest.approx(reddish(images, ["a"]).tolist(), abs=1e-5)
    plain = in_unit(run(deepfloyd_inpainting, BestOfN(1), output_type="np").images)
    assert torch.equal(images[..., :4], plain[..., :4])
    assert not torch.equal(images[..., 4:], plain[..., 4:])


@pytest.mark.parametrize(
    "method", [Prune(start=3, keep=(1,), at=(0.5,)), SMC(3), Guide(BestOfN(1), 0.3)]
)
def test_a_learned_variance_is_no_part_of_x0(method: Any) -> None:
    """Previews, kernels and guidance read the prediction alone; the scheduler's step reads both."""
    made = run(deepfloyd, method, reddish, output_type="np")
    assert made.rewards == pytest.approx(redness(in_unit(made.images), []).tolist(), abs=1e-5)
    if isinstance(method, Guide):
        assert made.rewards[0] > run(deepfloyd, BestOfN(1), output_type="np").rewards[0] + 1e-3


def test_a_vqgan_returns_images_in_the_unit_range() -> None:
    """Wuerstchen and Stable Cascade: scaled by multiplication, clamped, not shifted."""
    torch.manual_seed(0)
    decoder = PaellaVQModel(
        bottleneck_blocks=1, embed_dim=8, latent_channels=4, num_vq_embeddings=8, levels=2
    )
    pipe = diffusers.StableCascadeDecoderPipeline(
        tokenizer=None, text_encoder=None, decoder=None, scheduler=None, vqgan=decoder.eval()
    )
    latents = noise(2, 4, 4, 4)
    with torch.no_grad():
        expected = decoder.decode(decoder.config.scale_factor * latents).sample.clamp(0, 1)
    torch.testing.assert_close(decode(pipe, latents), expected)


def test_pixels_that_were_returned_as_they_are() -> None:
    pipe, _ = deepfloyd()
    assert torch.equal(
        returned(pipe, torch.tensor([-2.0, -1.0, 0.0, 1.0])), torch.tensor([0.0, 0.0, 0.5, 1.0])
    )
    pipe, _ = ldm()
    x = torch.tensor([0.0, 0.25, 1.0])
    assert torch.equal(returned(pipe, x), x)


def test_predictions_that_are_no_images() -> None:
    class MarigoldDepthPipeline:
        vae = vae()

    with pytest.raises(UnsupportedPipelineError, match="no images"):
        check(MarigoldDepthPipeline(), noise(1, 4, 4, 4), Asked())
