"""Decoders of previews: against the pipeline with that decoder as its VAE, and closed forms."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderTiny
from families import arguments, build, shared
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from steer import shapes
from steer.core.errors import CheckpointError
from steer.driver.decoding import tiny as tiny_module
from steer.driver.decoding.asked import Asked
from steer.driver.decoding.decode import decode, unfitted
from steer.driver.decoding.previews import LinearDecoder, ModuleDecoder, preview_decoder


ASKED = Asked({"height": 16, "width": 16})


def tiny(levels: int = 2, channels: int = 4, **config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return AutoencoderTiny(
            encoder_block_out_channels=(4,) * levels,
            decoder_block_out_channels=(4,) * levels,
            num_encoder_blocks=(1,) * levels,
            num_decoder_blocks=(1,) * levels,
            latent_channels=channels,
            **config,
        ).eval()


def latents_of(family: str) -> Tensor:
    return shared(family)(**arguments(family)).images


@pytest.mark.parametrize("config", [{}, {"scaling_factor": 0.7, "shift_factor": 0.2}])
@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "pixart"])
def test_previews_are_the_pipelines_pictures_with_the_tiny_one_as_vae(
    family: str, config: dict[str, Any]
) -> None:
    if family in ("sd", "sdxl", "pixart"):
        config = {k: v for k, v in config.items() if k != "shift_factor"}  # which these do not read
    pipe, decoder = build(family), tiny(**config)
    latents = pipe(**arguments(family)).images
    shown = decode(pipe, latents, asked=ASKED, by=preview_decoder(pipe, decoder))
    other = build(family)
    other.vae = decoder
    wanted = other(**arguments(family, output_type="pt")).images
    assert wanted.std() > 0.01
    torch.testing.assert_close(shown, wanted, rtol=0, atol=1e-6)


def test_another_autoencoder_is_scaled_by_its_own_config() -> None:
    pipe, other = build("sd3"), build("sd3")
    other.vae = build("sd").vae
    other.vae.register_to_config(scaling_factor=0.5, shift_factor=0.3)
    latents = pipe(**arguments("sd3")).images
    shown = decode(pipe, latents, asked=ASKED, by=preview_decoder(pipe, other.vae))
    wanted = other(**arguments("sd3", output_type="pt")).images
    torch.testing.assert_close(shown, wanted, rtol=0, atol=1e-6)


def test_a_module_without_config_gets_latents_as_they_stand() -> None:
    class Plain(nn.Module):
        def decode(self, z: Tensor) -> Tensor:
            return z[:, :3] / 10

    latents = latents_of("sd")
    shown = decode(shared("sd"), latents, by=preview_decoder(shared("sd"), Plain()))
    torch.testing.assert_close(shown, (latents[:, :3] / 20 + 0.5).clamp(0, 1))


class Linear(nn.Module):
    """A VAE that is a linear map, enlarged bilinearly."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(2)) / 20
        self.weight = nn.Parameter(weight)
        self.config = SimpleNamespace(scaling_factor=0.4, shift_factor=0.1, latent_channels=4)
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.decodes = 0

    def decode(self, z: Tensor, return_dict: bool = True) -> Any:
        self.decodes += len(z)
        image = torch.einsum("bchw,ck->bkhw", z, self.weight) + 0.05
        return (F.interpolate(image, scale_factor=2, mode="bilinear"),)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_the_linear_map_of_a_linear_vae_is_exact(family: str) -> None:
    pipe = build(family)
    pipe.vae = Linear()
    latents, decoder = latents_of(family), LinearDecoder()
    assert unfitted(pipe, latents, ASKED, decoder) == 16
    shown = decode(pipe, latents, asked=ASKED, by=decoder)
    assert pipe.vae.decodes == 16 and unfitted(pipe, latents, ASKED, decoder) == 0
    wanted = decode(pipe, latents, asked=ASKED)
    assert wanted.std() > 0.01
    torch.testing.assert_close(shown, wanted, rtol=0, atol=1e-5)


def test_a_linear_map_is_fitted_once_for_every_shape_and_vae() -> None:
    pipe, decoder, latents = build("sd"), LinearDecoder(), latents_of("sd")
    pipe.vae = first = Linear()
    for _ in range(2):
        shown = decode(pipe, latents, by=decoder)
    decode(pipe, latents.repeat(3, 1, 1, 1), by=decoder)
    assert first.decodes == 16
    assert unfitted(pipe, latents[..., :4], ASKED, decoder) == 16
    decode(pipe, latents[..., :4], by=decoder)
    assert first.decodes == 32
    torch.testing.assert_close(decode(pipe, latents, by=LinearDecoder()), shown, rtol=0, atol=0)
    pipe.vae = Linear()
    decode(pipe, latents, by=decoder)
    assert pipe.vae.decodes == 16


@pytest.mark.parametrize("preview", ["linear", tiny()], ids=["linear", "tiny"])
def test_gradients_agree_with_finite_differences(preview: Any) -> None:
    pipe = build("sd", dtype=torch.float64)
    if preview != "linear":
        preview = preview.double()
    decoder = preview_decoder(pipe, preview)
    assert decoder is not None
    z = latents_of("sd").double()[..., :3, :3].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: decoder.images(pipe, z, True, ASKED), z, eps=1e-6, atol=1e-5, rtol=1e-4
    )
    shown = decode(pipe, z, grad=True, by=decoder)
    (gradient,) = torch.autograd.grad(shown.sum(), z)
    assert gradient.abs().sum() > 0
    assert not decode(pipe, z, by=decoder).requires_grad


SPACES = {
    "madebyollin/taesd": {"latent_channels": 4, "scaling_factor": 0.18215},
    "madebyollin/taesdxl": {"latent_channels": 4, "scaling_factor": 0.13025},
    "madebyollin/taesd3": {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
    "madebyollin/taef1": {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
}


@pytest.mark.parametrize("source", SPACES)
def test_the_tiny_one_is_found_by_latent_space(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = build("sd")
    pipe.vae = diffusers.AutoencoderKL(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        **SPACES[source],
    )
    asked = []

    def load(source: Any) -> Any:
        asked.append(source)
        return tiny(4, pipe.vae.config.latent_channels)

    monkeypatch.setattr(tiny_module, "load", load)
    decoder = preview_decoder(pipe, "tiny")
    assert isinstance(decoder, ModuleDecoder) and decoder.name == "tiny"
    assert asked == [source]


def test_a_tiny_one_is_loaded_from_a_folder(tmp_path: Path) -> None:
    saved, latents = tiny(), latents_of("sd")
    saved.save_pretrained(tmp_path)
    for path in (tmp_path, str(tmp_path)):
        decoder = preview_decoder(shared("sd"), path)
        assert decoder is not None and decoder.name == str(tmp_path)
        shown = decode(shared("sd"), latents, by=decoder)
        wanted = decode(shared("sd"), latents, by=preview_decoder(shared("sd"), saved))
        torch.testing.assert_close(shown, wanted)


def test_none_and_vae_are_the_pipelines_own() -> None:
    assert preview_decoder(shared("sd"), None) is None
    assert preview_decoder(shared("sd"), "vae") is None


@pytest.mark.parametrize(
    ("family", "preview", "named"),
    [
        ("sd", 3, "preview=3: must be None or 'vae'"),
        ("sd", "", "preview='': must be"),
        ("sd", torch.nn.ReLU(), "preview=ReLU.*must be"),
        ("sd", "tiny", "preview='tiny': no tiny autoencoder is known.*StableDiffusionPipeline"),
        ("sana", "tiny", "preview='tiny'.*AutoencoderDC"),
        ("sd", tiny(channels=16), "latents of 16 channels, and those of StableDiff.* have 4"),
        ("sd", tiny(levels=4), "enlarges latents 8 times, and the VAE .* 2 times"),
        ("wan", "linear", "preview='linear': the VAE of WanPipeline shrinks videos in time"),
        ("wan", tiny(), "preview: the VAE of WanPipeline .* pass a loaded autoencoder of videos"),
    ],
)
def test_refusals(family: str, preview: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        preview_decoder(shared(family), preview)


def test_pixels_need_no_decoder() -> None:
    with pytest.raises(ValueError, match="preview='linear': SimpleNamespace denoises pixels"):
        preview_decoder(SimpleNamespace(), "linear")


def test_a_video_autoencoder_may_be_given() -> None:
    pipe = build("wan")
    latents = pipe(**arguments("wan")).frames
    asked = Asked({"height": 16, "width": 16, "num_frames": 5})
    shown = decode(pipe, latents, asked=asked, by=preview_decoder(pipe, build("wan").vae))
    torch.testing.assert_close(shown, decode(pipe, latents, asked=asked))


def _broken(folder: Path, kind: str) -> Path:
    """Folders that hold no AutoencoderTiny."""
    if kind == "missing":
        return folder / "nowhere"
    if kind == "another class":
        build("sd").vae.save_pretrained(folder)
        return folder
    tiny().save_pretrained(folder, safe_serialization=kind != "pickle")
    file = folder / "diffusion_pytorch_model.safetensors"
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:200])
    if kind == "incomplete":
        state = load_file(file)
        del state["decoder.layers.0.weight"]
        save_file(state, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["missing", "another class", "pickle", "truncated", "incomplete"])
def test_folders_that_hold_no_tiny_one(tmp_path: Path, kind: str) -> None:
    folder = _broken(tmp_path, kind)
    with pytest.raises(CheckpointError, match="preview=") as error:
        preview_decoder(shared("sd"), folder)
    assert folder.name in str(error.value) and "\n" not in str(error.value)


def test_the_bundled_pipeline_has_a_tiny_one_that_shows_much_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipe = shapes.pipeline()
    pipe.set_progress_bar_config(disable=True)
    decoder = preview_decoder(pipe, "tiny")
    assert isinstance(decoder, ModuleDecoder) and not caplog.messages
    given = {"num_inference_steps": 8, "guidance_scale": 3.5, "output_type": "latent"}
    prompts = shapes.prompts("held_out", 4)
    latents = pipe(prompts, generator=torch.Generator().manual_seed(0), **given).images
    wanted, shown = decode(pipe, latents), decode(pipe, latents, by=decoder)
    error = ((wanted - shown) ** 2).mean()
    spread = ((wanted - wanted.mean((2, 3), keepdim=True)) ** 2).mean()
    assert error < spread / 10
    assert pipe.vae.num_parameters() > 10 * sum(
        w.numel() for w in decoder.module.decoder.parameters()
    )
