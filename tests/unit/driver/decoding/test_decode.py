"""`decode` against the tails of real pipelines (tiny, random weights)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from steer.core.errors import UnsupportedPipelineError
from steer.driver.decoding.asked import Asked
from steer.driver.decoding.decode import check, decode
from steer.methods import BestOfN
from steer.pipeline.guided import guided


CROSS = ("DownBlock2D", "CrossAttnDownBlock2D")
UNET: dict[str, Any] = {
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "sample_size": 8,
    "down_block_types": CROSS,
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "norm_num_groups": 2,
}


def embeds(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def autoencoder(channels: int = 4, **config: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=[4, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=channels,
        norm_num_groups=2,
        **config,
    ).eval()


def ddim() -> Any:
    return diffusers.DDIMScheduler(prediction_type="sample", clip_sample=False)


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def empty(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


Built = tuple[Any, dict[str, Any]]


def stable_diffusion(**config: Any) -> Built:
    pipe = diffusers.StableDiffusionPipeline(
        vae=autoencoder(**config),
        unet=diffusers.UNet2DConditionModel(**UNET),
        scheduler=ddim(),
        requires_safety_checker=False,
        **empty("text_encoder", "tokenizer", "safety_checker", "feature_extractor"),
    )
    return pipe, {"prompt_embeds": embeds(2, 5, 8), "negative_prompt_embeds": embeds(2, 5, 8)}


def sdxl(**config: Any) -> Built:
    unet = diffusers.UNet2DConditionModel(
        **UNET,
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=20,
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(**config),
        unet=unet,
        scheduler=ddim(),
        add_watermarker=False,
        **empty("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    )
    pipe.text_encoder_2 = SimpleNamespace(
        config=SimpleNamespace(projection_dim=8), dtype=torch.float32
    )
    return pipe, {
        "prompt_embeds": embeds(2, 5, 8),
        "pooled_prompt_embeds": embeds(2, 8),
        "guidance_scale": 1.0,
    }


def sdxl_normalized() -> Built:
    return sdxl(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.8, 1.1, 2.0])


def sd3() -> Built:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pooled_projection_dim=8,
    )
    parts = [f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")]
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=autoencoder(scaling_factor=1.3, shift_factor=0.06),
        **empty(*parts),
    )
    return pipe, {
        "prompt_embeds": embeds(2, 5, 8),
        "pooled_prompt_embeds": embeds(2, 8),
        "guidance_scale": 1.0,
    }


def flux() -> Built:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )
    pipe = diffusers.FluxPipeline(
        scheduler=flow(),
        vae=autoencoder(scaling_factor=0.36, shift_factor=0.12),
        transformer=transformer,
        **empty("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    )
    call = {"prompt_embeds": embeds(2, 5, 8), "pooled_prompt_embeds": embeds(2, 8)}
    return pipe, {**call, "height": 24, "width": 16}


def flux2() -> Built:
    if not hasattr(diffusers, "Flux2KleinPipeline"):
        pytest.skip("this diffusers has no Flux 2 Klein")
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
    ).eval()
    vae.bn.running_mean.copy_(embeds(16))
    vae.bn.running_var.copy_(embeds(16).abs() + 0.5)
    pipe = diffusers.Flux2KleinPipeline(
        scheduler=flow(), vae=vae, transformer=transformer, **empty("text_encoder", "tokenizer")
    )
    call = {"prompt_embeds": embeds(2, 5, 8), "guidance_scale": 1.0}
    return pipe, {**call, "height": 24, "width": 16}


def qwen() -> Built:
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.1, 2.0],
    ).eval()
    pipe = diffusers.QwenImagePipeline(
        scheduler=flow(), vae=vae, transformer=transformer, **empty("text_encoder", "tokenizer")
    )
    mask = torch.ones(2, 5, dtype=torch.long)
    call = {"prompt_embeds": embeds(2, 5, 8), "prompt_embeds_mask": mask, "true_cfg_scale": 1.0}
    return pipe, {**call, "height": 24, "width": 16}


def pixart() -> Built:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=32,
        num_layers=1,
        patch_size=2,
        attention_head_dim=4,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        caption_channels=8,
        cross_attention_dim=8,
        norm_num_groups=1,
    )
    pipe = diffusers.PixArtSigmaPipeline(
        vae=autoencoder(),
        transformer=transformer,
        scheduler=ddim(),
        **empty("text_encoder", "tokenizer"),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 5, 8),
        "prompt_attention_mask": torch.ones(1, 5),
        "negative_prompt": None,
        "guidance_scale": 1.0,
        "height": 200,
        "width": 260,
    }


FAMILIES = [stable_diffusion, sdxl, sdxl_normalized, sd3, flux, flux2, qwen, pixart]


def run(pipe: Any, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The latents at the end of the pipeline's loop, and its images for them."""
    pipe.set_progress_bar_config(disable=True)
    seen: list[Tensor] = []

    def keep(_: Any, __: int, ___: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"])
        return tensors

    old = isinstance(pipe, diffusers.PixArtSigmaPipeline)
    watch: dict[str, Any] = {"callback_on_step_end": keep}
    if old:
        watch = {"callback": lambda i, t, latents: seen.append(latents)}
    generator = torch.Generator().manual_seed(0)
    out = pipe(**call, **watch, generator=generator, num_inference_steps=2, output_type="pt")
    return seen[-1], out.images


@pytest.mark.parametrize("build", FAMILIES)
def test_equals_the_pipelines_own_tail(build: Any) -> None:
    torch.manual_seed(0)
    pipe, call = build()
    latents, expected = run(pipe, call)
    size = {k: call[k] for k in ("height", "width") if k in call}
    images = decode(pipe, latents, asked=Asked(size))
    assert torch.equal(images, expected)
    assert ((images > 0) & (images < 1)).float().mean() > 0.5
    if len(latents) > 1:
        torch.testing.assert_close(decode(pipe, latents, chunk=1, asked=Asked(size)), images)


@pytest.mark.parametrize("build", [sdxl, stable_diffusion])
def test_half_precision_is_upcast_where_the_pipeline_does(build: Any) -> None:
    """SDXL decodes in float32 when its VAE is float16; SD does not; weights come back the same."""
    torch.manual_seed(0)
    pipe, call = build(force_upcast=True)
    pipe.unet.to(torch.float16)
    pipe.text_encoder_2 = (
        None
        if build is stable_diffusion
        else SimpleNamespace(config=SimpleNamespace(projection_dim=8), dtype=torch.float16)
    )
    pipe.vae.to(torch.float16)
    call = {k: v.half() if isinstance(v, Tensor) else v for k, v in call.items()}
    before = {k: v.clone() for k, v in pipe.vae.state_dict().items()}
    latents, expected = run(pipe, call)
    images = decode(pipe, latents)
    assert images.dtype == torch.float32
    assert torch.equal(images, expected.float())
    for key, value in pipe.vae.state_dict().items():
        assert value.dtype == torch.float16
        assert torch.equal(value, before[key])


def test_gradients_through_an_upcast_vae() -> None:
    """Same images and same gradients as a VAE held in float32; the pipeline's stays float16."""
    torch.manual_seed(0)
    half, _ = sdxl(force_upcast=True)
    half.vae.to(torch.float16)
    full, _ = sdxl(force_upcast=False)
    full.vae.load_state_dict({k: v.float() for k, v in half.vae.state_dict().items()})
    gradients = []
    for pipe in (half, full):
        latents = embeds(2, 4, 8, 8).requires_grad_()
        images = decode(pipe, latents, grad=True, chunk=1)
        (images * embeds(*images.shape)).sum().backward()
        gradients.append(latents.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert half.vae.dtype == torch.float16


@pytest.mark.parametrize("build", [stable_diffusion, sd3, flux])
def test_gradients_are_the_slopes(build: Any) -> None:
    """Against a central difference in float64, inside a no_grad loop as in pipelines."""
    torch.manual_seed(0)
    pipe, call = build()
    latents = run(pipe, call)[0].double().requires_grad_()
    pipe.vae.double()
    size = {k: call[k] for k in ("height", "width") if k in call}
    direction = embeds(*latents.shape).double()
    with torch.no_grad():
        images = decode(pipe, latents, grad=True, asked=Asked(size))
        weights = embeds(*images.shape)
        up, down = (
            (decode(pipe, latents + h * direction, asked=Asked(size)) * weights).double().sum()
            for h in (1e-4, -1e-4)
        )
    (slope,) = torch.autograd.grad((images * weights).sum(), latents)
    assert float((slope * direction).sum()) == pytest.approx(float((up - down) / 2e-4), rel=0.01)
    assert not decode(pipe, latents, asked=Asked(size)).requires_grad


def test_default_size_of_packed_latents() -> None:
    torch.manual_seed(0)
    pipe, call = flux()
    call["height"] = call["width"] = 16
    pipe.default_sample_size = 8
    latents, expected = run(pipe, call)
    assert torch.equal(decode(pipe, latents), expected)


def test_sizes_that_the_call_does_not_name() -> None:
    """They are what the pipeline gave `prepare_latents`."""
    torch.manual_seed(0)
    pipe, call = flux()
    pipe.default_sample_size = 8
    given = {k: v for k, v in call.items() if k not in ("height", "width")}
    seen: list[Tensor] = []
    search = guided(pipe, lambda images, _: seen.append(images) or images.mean((1, 2, 3)))
    run(search, {**given, "method": BestOfN(2), "reward_prompt": ["a", "b"]})
    assert {images.shape[1:] for images in seen} == {(3, 16, 16)}


def test_latents_in_another_form_than_the_loops() -> None:
    """Flux 2 Klein returns them unpacked and scaled: the reward is still that of the image."""
    rewards = []
    for kind in ("pt", "latent"):
        torch.manual_seed(0)
        pipe, call = flux2()
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        search = guided(pipe, lambda images, _: images.mean((1, 2, 3)), method=BestOfN(1))
        given = {**call, "output_type": kind, "num_inference_steps": 2, "generator": generator}
        rewards.append(search(**given, reward_prompt=["a", "b"]).rewards)
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-6)


def test_sd3_inpainting_leaves_out_the_shift() -> None:
    parts = sd3()[0].components
    pipe = diffusers.StableDiffusion3InpaintPipeline(**parts)
    latents = embeds(1, 4, 8, 8)
    with torch.no_grad():
        expected = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    torch.testing.assert_close(decode(pipe, latents), (expected * 0.5 + 0.5).clamp(0, 1))


def test_latents_that_are_edited_after_the_loop_are_unknown() -> None:
    """Wan 2.2 of 5B from an image: the search would score other videos than are returned."""

    class WanImageToVideoPipeline:
        vae, config = autoencoder(), SimpleNamespace(expand_timesteps=True)

    with pytest.raises(UnsupportedPipelineError, match="after its loop"):
        check(WanImageToVideoPipeline(), torch.zeros(1, 4, 3, 8, 8), Asked())


def test_pixels_need_no_vae() -> None:
    x = torch.linspace(-2, 2, 24).view(2, 3, 2, 2)
    expected = ((x + 1) / 2).clip(0, 1)
    torch.testing.assert_close(decode(SimpleNamespace(), x), expected)


def test_the_vaes_hook_moves_it() -> None:
    """accelerate's offload hooks see the call: `decode` goes through `vae.decode`."""
    pipe, call = stable_diffusion()
    latents = run(pipe, call)[0]
    seen: list[nn.Module] = []
    pipe.vae._hf_hook = SimpleNamespace(pre_forward=seen.append, execution_device="cpu")
    decode(pipe, latents, chunk=1)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("shape", "said"),
    [((2, 7, 16), "7 tokens"), ((2, 4, 3, 8, 8), r"\(2, 4, 3, 8, 8\)"), ((2, 9), r"\(2, 9\)")],
)
def test_unknown_layouts_say_what_to_do(shape: tuple[int, ...], said: str) -> None:
    pipe, _ = flux()
    with pytest.raises(UnsupportedPipelineError, match=f"{said}.*use BestOfN"):
        decode(pipe, torch.zeros(shape), asked=Asked({"height": 16, "width": 16}))


def test_a_vae_without_scaling_is_unknown() -> None:
    vae: Any = nn.Identity()
    vae.dtype, vae.device, vae.config = torch.float32, torch.device("cpu"), SimpleNamespace()
    pipe = SimpleNamespace(vae=vae)
    with pytest.raises(UnsupportedPipelineError, match="without scaling_factor"):
        decode(pipe, torch.zeros(1, 4, 2, 2))


def test_only_rgb_counts() -> None:
    with pytest.raises(UnsupportedPipelineError, match="no vae"):
        decode(SimpleNamespace(), torch.zeros(1, 4, 2, 2))
