"""`decode` against the tails of pipelines that make videos (tiny, random weights)."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from steer.core.errors import UnsupportedPipelineError
from steer.driver.decoding.asked import Asked
from steer.driver.decoding.decode import check, decode
from steer.driver.decoding.previews import preview_decoder


Built = tuple[Any, dict[str, Any]]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def autoencoder(**config: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=[4, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=2,
        **config,
    )


def ddim() -> Any:
    return diffusers.DDIMScheduler(prediction_type="sample", clip_sample=False)


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def no_text(count: int = 1) -> dict[str, None]:
    names = [kind + n for n in ("", "_2")[:count] for kind in ("text_encoder", "tokenizer")]
    return dict.fromkeys(names)


def cogvideox(patch_size_t: int | None = None) -> Built:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=8,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        patch_size=2,
        patch_size_t=patch_size_t,
        use_rotary_positional_embeddings=patch_size_t is not None,
        temporal_compression_ratio=4,
        max_text_seq_length=5,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    pipe = diffusers.CogVideoXPipeline(
        transformer=transformer, vae=vae, scheduler=ddim(), **no_text()
    )
    call = {"prompt_embeds": noise(1, 5, 8), "guidance_scale": 1.0}
    return pipe, {**call, "height": 32, "width": 32, "num_frames": 9}


def cogvideox_patched_in_time() -> Built:
    """Three latent frames in patches of two: one more at the front, which is dropped."""
    return cogvideox(patch_size_t=2)


def hunyuan() -> Built:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=8,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    vae = hunyuan_vae(4)
    pipe = diffusers.HunyuanVideoPipeline(
        transformer=transformer, vae=vae, scheduler=flow(), **no_text(2)
    )
    call = {
        "prompt_embeds": noise(1, 5, 8),
        "pooled_prompt_embeds": noise(1, 8),
        "prompt_attention_mask": torch.ones(1, 5),
    }
    return pipe, {**call, "height": 16, "width": 16, "num_frames": 5}


def hunyuan_vae(channels: int) -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=channels,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.476986,
    )


def kandinsky5() -> Built:
    if not hasattr(diffusers, "Kandinsky5T2VPipeline"):
        pytest.skip("this diffusers has no Kandinsky 5")
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=16,
        in_text_dim=8,
        in_text_dim2=8,
        time_dim=16,
        out_visual_dim=16,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(1, 1, 2),
        visual_cond=False,
        attention_type="regular",
    )
    pipe = diffusers.Kandinsky5T2VPipeline(
        transformer=transformer, vae=hunyuan_vae(16), scheduler=flow(), **no_text(2)
    )
    call = {
        "prompt_embeds_qwen": noise(1, 5, 8),
        "prompt_embeds_clip": noise(1, 8),
        "prompt_cu_seqlens": torch.tensor([0, 5], dtype=torch.int32),
        "guidance_scale": 1.0,
    }
    return pipe, {**call, "height": 16, "width": 16, "num_frames": 5}


def ltx(timestep_conditioning: bool = False) -> Built:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=8,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=timestep_conditioning,
        patch_size=1,
        patch_size_t=1,
    )
    vae.latents_mean.copy_(noise(8))
    vae.latents_std.copy_(noise(8).abs() + 0.5)
    pipe = diffusers.LTXPipeline(transformer=transformer, vae=vae, scheduler=flow(), **no_text())
    call = {
        "prompt_embeds": noise(1, 5, 8),
        "prompt_attention_mask": torch.ones(1, 5),
        "guidance_scale": 1.0,
    }
    return pipe, {**call, "height": 32, "width": 64, "num_frames": 9}


def ltx_with_a_denoising_decoder() -> Built:
    return ltx(timestep_conditioning=True)


def mochi() -> Built:
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=8,
        time_embed_dim=4,
        max_sequence_length=5,
    )
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )
    pipe = diffusers.MochiPipeline(transformer=transformer, vae=vae, scheduler=flow(), **no_text())
    call = {
        "prompt_embeds": noise(1, 5, 8),
        "prompt_attention_mask": torch.ones(1, 5, dtype=torch.bool),
        "guidance_scale": 1.0,
    }
    return pipe, {**call, "height": 16, "width": 16, "num_frames": 7}


def animatediff() -> Built:
    """A VAE of images, frame by frame."""
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        norm_num_groups=2,
    )
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=4,
    )
    pipe = diffusers.AnimateDiffPipeline(
        unet=unet, motion_adapter=adapter, vae=autoencoder(), scheduler=ddim(), **no_text()
    )
    call = {"prompt_embeds": noise(1, 5, 8), "guidance_scale": 1.0, "decode_chunk_size": 2}
    return pipe, {**call, "height": 16, "width": 16, "num_frames": 3}


def latte() -> Built:
    transformer = diffusers.LatteTransformer3DModel(
        sample_size=8,
        video_length=3,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=8,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
    )
    pipe = diffusers.LattePipeline(
        transformer=transformer, vae=autoencoder(), scheduler=ddim(), **no_text()
    )
    call = {"prompt_embeds": noise(1, 5, 8), "negative_prompt": "", "mask_feature": False}
    size = {"height": 16, "width": 16, "video_length": 3, "decode_chunk_size": 2}
    return pipe, {**call, **size, "guidance_scale": 1.0}


def allegro() -> Built:
    """Decoded in tiles only, and cut to the frames that were asked for."""
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=4,
        sample_height=4,
        sample_frames=2,
        caption_channels=8,
    )
    vae = diffusers.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    vae.enable_tiling()
    vae.kernel, vae.stride = (8, 32, 32), (4, 16, 16)
    pipe = diffusers.AllegroPipeline(
        transformer=transformer, vae=vae, scheduler=ddim(), **no_text()
    )
    call = {
        "prompt_embeds": noise(1, 5, 8),
        "prompt_attention_mask": torch.ones(1, 5),
        "negative_prompt": None,
        "guidance_scale": 1.0,
    }
    return pipe, {**call, "height": 32, "width": 32, "num_frames": 6}


def stable_video_diffusion() -> Built:
    """Frames before channels, and a decoder that sees a chunk of frames at once."""
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=8,
        num_attention_heads=(2, 2),
        projection_class_embeddings_input_dim=24,
        addition_time_embed_dim=8,
    )
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        latent_channels=4,
    )
    vision = CLIPVisionConfig(
        hidden_size=8,
        projection_dim=8,
        intermediate_size=8,
        num_attention_heads=2,
        num_hidden_layers=1,
        image_size=16,
        patch_size=8,
    )
    pipe = diffusers.StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=CLIPVisionModelWithProjection(vision),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="v_prediction"),
        feature_extractor=CLIPImageProcessor(crop_size=16, size=16),
    )
    image = noise(1, 3, 16, 16).sigmoid()
    call = {"image": image, "num_frames": 3, "decode_chunk_size": 2, "min_guidance_scale": 1.0}
    return pipe, {**call, "max_guidance_scale": 1.0, "height": 16, "width": 16}


FAMILIES = [
    allegro,
    animatediff,
    cogvideox,
    cogvideox_patched_in_time,
    hunyuan,
    kandinsky5,
    latte,
    ltx,
    ltx_with_a_denoising_decoder,
    mochi,
    stable_video_diffusion,
]


def run(pipe: Any, call: dict[str, Any], kind: str) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    generator = torch.Generator().manual_seed(0)
    return pipe(**call, generator=generator, num_inference_steps=2, output_type=kind).frames


@pytest.mark.parametrize("build", FAMILIES)
def test_equals_the_pipelines_own_tail(build: Any) -> None:
    torch.manual_seed(0)
    pipe, call = build()
    latents, expected = run(pipe, call, "latent"), run(pipe, call, "pt")
    asked = Asked(call)
    check(pipe, latents, asked)
    videos = decode(pipe, latents, asked=asked)
    assert videos.shape[2] == 3 and videos.ndim == 5
    torch.testing.assert_close(videos, expected, atol=1e-6, rtol=0)
    assert ((videos > 0) & (videos < 1)).float().mean() > 0.5
    both = decode(pipe, torch.cat([latents + 0.1, latents]), asked=asked)
    torch.testing.assert_close(both[1:], videos)


@pytest.mark.parametrize("build", [animatediff, cogvideox, ltx])
def test_gradients_reach_the_latents(build: Any) -> None:
    torch.manual_seed(0)
    pipe, call = build()
    latents = run(pipe, call, "latent").requires_grad_()
    decode(pipe, latents, grad=True, asked=Asked(call)).mean().backward()
    assert latents.grad is not None and float(latents.grad.abs().max()) > 0


def test_frames_go_through_a_vae_of_images_in_the_calls_chunks() -> None:
    pipe, call = animatediff()
    latents, rows = noise(2, 4, 5, 8, 8), []
    own = pipe.vae.decode
    pipe.vae.decode = lambda z, *a, **k: (rows.append(len(z)), own(z, *a, **k))[1]
    decode(pipe, latents, asked=Asked(call))
    assert rows == [2, 2, 1, 2, 2, 1]


def test_previews_by_a_tiny_vae_are_the_pipelines_own_with_it() -> None:
    torch.manual_seed(0)
    pipe, call = animatediff()
    latents = run(pipe, call, "latent")
    tiny: Any = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    shown = decode(pipe, latents, asked=Asked(call), by=preview_decoder(pipe, tiny))
    linear = decode(pipe, latents, asked=Asked(call), by=preview_decoder(pipe, "linear"))
    assert linear.shape == shown.shape == (1, 3, 3, 16, 16)
    pipe.vae = tiny
    torch.testing.assert_close(shown, run(pipe, call, "pt"), atol=1e-6, rtol=0)


@pytest.mark.parametrize("build", [cogvideox, stable_video_diffusion])
def test_videos_that_the_pipeline_alone_decodes_have_no_other_previews(build: Any) -> None:
    pipe, _ = build()
    with pytest.raises(ValueError, match=r"preview: the VAE of .* shrinks videos .* leave it out"):
        preview_decoder(pipe, pipe.vae)


def test_a_part_of_the_latents_is_no_video() -> None:
    """Pipelines from an image may step what is behind its frame: refused before sampling."""
    pipe, call = ltx()
    with pytest.raises(UnsupportedPipelineError, match="behind the first frame"):
        check(pipe, noise(1, 8, 2, 8, 8), Asked(call))
    pipe, call = hunyuan()
    with pytest.raises(UnsupportedPipelineError, match="behind the first frame"):
        check(pipe, noise(1, 4, 1, 2, 2), Asked(call, {"num_frames": 5}))


def test_tokens_of_a_video_need_its_length() -> None:
    pipe, _ = ltx()
    with pytest.raises(UnsupportedPipelineError, match="num_frames is not known"):
        decode(pipe, noise(1, 192, 8))
