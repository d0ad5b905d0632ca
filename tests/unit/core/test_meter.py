"""Operations that are counted, against their formulas."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from steer.core.ledger import Ledger
from steer.core.meter import FlopCounter, Meter


def test_layers_and_their_gradients() -> None:
    linear, conv = nn.Linear(8, 16).requires_grad_(False), nn.Conv2d(3, 5, 3, padding=1)
    conv.requires_grad_(False)
    x, image = torch.randn(4, 8, requires_grad=True), torch.randn(2, 3, 6, 7, requires_grad=True)
    for layer, given, flops in (
        (linear, x, 2 * 4 * 8 * 16),
        (conv, image, 2 * 2 * 6 * 7 * 3 * 5 * 9),
    ):
        with FlopCounter() as forward:
            y = layer(given)
        with FlopCounter() as backward:
            torch.autograd.grad(y.sum(), given)
        assert forward.total == backward.total == flops  # frozen weights: no further product


def test_attention() -> None:
    query, key = torch.randn(2, 4, 10, 8), torch.randn(2, 4, 12, 8)
    with FlopCounter() as counter:
        F.scaled_dot_product_attention(query, key, key)
    assert counter.total == 2 * (2 * 2 * 4 * 10 * 12 * 8)


def test_inside_inference_mode() -> None:
    linear = nn.Linear(8, 16)
    with FlopCounter() as counter, torch.inference_mode():
        linear(torch.randn(4, 8))
    assert counter.total == 2 * 4 * 8 * 16


def test_it_changes_no_bit() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 3, 3))
    x = torch.randn(2, 3, 16, 16, requires_grad=True)

    def run() -> list[torch.Tensor]:
        y = net(x)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), x)]

    plain = run()
    with FlopCounter():
        counted = run()
    assert all(map(torch.equal, plain, counted))


def test_counted_once_and_spent_every_time() -> None:
    ledger, x, w = Ledger(), torch.randn(4, 8), torch.randn(8, 16)
    meter = Meter(ledger, counts=True)
    for rows in (4, 2):
        with meter.count("score", rows):
            x[:rows] @ w
    each = 2 * 8 * 16
    assert meter.known == {"score": each}
    assert ledger.flops == {"score": 6 * each}
    assert meter.costs is None  # a row's cost is unknown

    meter.known |= {"row": 10.0, "decode": 3.0}
    costs = meter.costs
    assert costs is not None
    assert (costs.row, costs.decode, costs.preview, costs.score) == (10, 3, 3, each)
    assert (costs.row_backward, costs.gradient) == (20, 2 * (3 + each))  # upper bounds


def test_what_fails_is_not_known() -> None:
    meter = Meter(counts=True)
    try:
        with meter.count("decode", 1):
            raise RuntimeError
    except RuntimeError:
        pass
    assert not meter.known and not meter.ledger.flops


def test_stable_diffusion() -> None:
    """Of one row at 512 pixels: what others have counted, .80 and 2.5 TFLOPs."""
    blocks = (128, 256, 512, 512)
    with torch.device("meta"), torch.no_grad():
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=blocks,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        latents, words, t = torch.empty(1, 4, 64, 64), torch.empty(1, 77, 768), torch.tensor(1)
        with FlopCounter() as row:
            unet(latents, t, words)
        with FlopCounter() as decode:
            vae.decode(latents)
    assert abs(row.total / 1e12 - 0.803) < 1e-3
    assert abs(decode.total / 1e12 - 2.515) < 1e-3


def test_sdxl_and_a_large_judge() -> None:
    """Of one row and one decode at 1024 pixels, and of one image through a ViT-H."""
    plain, cross = "Block2D", "CrossAttn{}Block2D"
    with torch.device("meta"), torch.no_grad():
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=(f"Down{plain}", cross.format("Down"), cross.format("Down")),
            up_block_types=(cross.format("Up"), cross.format("Up"), f"Up{plain}"),
            transformer_layers_per_block=(1, 2, 10),  # pyright: ignore[reportArgumentType]
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        tower = VisionTransformer(224, 14, 1280, 32, 16, 4.0, output_dim=1024)
        latents, more = torch.empty(1, 4, 128, 128), {"text_embeds": torch.empty(1, 1280)}
        more["time_ids"] = torch.empty(1, 6)
        with FlopCounter() as row:
            unet(latents, torch.tensor(1), torch.empty(1, 77, 2048), added_cond_kwargs=more)
        with FlopCounter() as decode:
            vae.decode(latents)
        with FlopCounter() as score:
            tower(torch.empty(1, 3, 224, 224))
    for counted, known in ((row, 6.761), (decode, 10.470), (score, 0.335)):
        assert abs(counted.total / 1e12 - known) < 1e-3
