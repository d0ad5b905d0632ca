"""What `scorers.py` compares: ways from images on a device to CLIP scores there, on equal weights.

Every arm gets the same float images `(B, 3, H, W)` in [0, 1] and the same cached text features, so
none pays for text, files or copies to the host. The weights are random: speed does not depend on
them, and nothing is downloaded.
"""

# steer_kernels is the folder kernels/, which type checkers do not find by that name.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, UNet2DConditionModel
from steer_kernels.resize_patchify import resize_patchify
from torch import Tensor

from steer.rewards.hpsv2 import hpsv2_preprocess
from steer.rewards.preprocess import Preprocess
from steer.rewards.vit_graphs import Graphs
from steer.rewards.vit_tower import VitTower
from steer.rewards.vit_weights import VitWeights


TEXT: Any = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1}
TINY: Any = {"image_size": 56, "patch_size": 14, "width": 128, "layers": 3, "head_width": 64}
ARMS = ("eager", "compiled", "fused", "fused-no-graphs", "fp8")

Score = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Arm:
    """One way to score.

    Attributes:
        name: One of `ARMS`.
        score: Images `(B, 3, H, W)` and unit texts `(B, D)` to cosines `(B,)`.
        differentiable: Whether gradients reach the images.
    """

    name: str
    score: Score
    differentiable: bool = True


def random_model(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """An open_clip model with that image tower ("tiny" is one of ours) and a small text tower.

    Raises:
        SystemExit: open_clip has no such model, or its tower is not a vision transformer.
    """
    config = {"embed_dim": 24, "vision_cfg": TINY} if name == "tiny" else None
    config = config or open_clip.get_model_config(name)
    if config is None or "head_width" not in {"head_width": 64, **config["vision_cfg"]}:
        raise SystemExit(f"--model {name}: 'tiny', or a name of open_clip.list_models()")
    torch.manual_seed(0)
    with torch.device(device):
        model = open_clip.CLIP(
            config["embed_dim"],
            config["vision_cfg"],
            TEXT,
            quick_gelu=config.get("quick_gelu", False),
        )
        for parameter in model.parameters():  # else the features of all images are nearly one
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False).to(dtype)


def preprocess_of(model: Any) -> Preprocess:
    """HPS v2's preprocessing at the model's size."""
    return hpsv2_preprocess(tuple(model.visual.image_size))


def by_open_clip(model: Any, dtype: torch.dtype) -> Score:
    """PyTorch's resize on the device, open_clip's modules, a cosine."""
    preprocess = preprocess_of(model)

    def score(images: Tensor, texts: Tensor) -> Tensor:
        pixels = preprocess(images.to(torch.promote_types(images.dtype, torch.float32)))
        features = model.encode_image(pixels.to(dtype))
        return (F.normalize(features.to(texts.dtype), dim=-1) * texts).sum(-1)

    return score


def by_tower(tower: VitTower, preprocess: Preprocess) -> Score:
    """The fused tower."""
    return lambda images, texts: tower.scores(tower.patches(images, preprocess), texts)


def arms(names: list[str], model: Any, dtype: torch.dtype) -> Iterator[Arm]:
    """The arms of these names, on the weights of one model."""
    preprocess, plain = preprocess_of(model), by_open_clip(model, dtype)
    for name in names:
        if name == "eager":
            yield Arm(name, plain)
        elif name == "compiled":
            yield Arm(name, compiled(plain))
        elif name == "fp8":
            yield Arm(name, by_tower(VitTower(model, fp8=True), preprocess), False)
        else:
            tower = VitTower(model, graphs=name == "fused")
            yield Arm(name, by_tower(tower, preprocess))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` in its best form: static shapes, searched matrix products, CUDA graphs."""
    torch._dynamo.config.cache_size_limit = 256  # one entry per shape and mode
    return torch.compile(function, mode="max-autotune", dynamic=False)


def patch_chain(preprocess: Preprocess, patch: int, dtype: torch.dtype) -> Callable[..., Tensor]:
    """What `resize_patchify` replaces: interpolate, pad, normalise, cast, cut."""

    def chain(images: Tensor) -> Tensor:
        pixels = preprocess(images.float()).to(dtype)
        return F.unfold(pixels, patch, stride=patch).mT.contiguous()

    return chain


def patch_op(preprocess: Preprocess, patch: int, dtype: torch.dtype) -> Callable[..., Tensor]:
    """The same by `resize_patchify`."""
    return lambda images: resize_patchify(
        images,
        size=preprocess.size[0],
        patch=patch,
        fit="longest",
        mean=preprocess.mean,
        std=preprocess.std,
        clamp=preprocess.clamp,
        dtype=dtype,
    )


def flops(weights: VitWeights) -> float:
    """Floating-point operations of one image's features; a product and a sum are two.

    The whole network's, as others count it: the last block's unread rows are not subtracted.
    """
    tokens, width = len(weights.positions) + 1, weights.patch_embed.shape[0]
    total = 2 * (tokens - 1) * weights.patch_embed.numel() + 2 * weights.projection.numel()
    for block in weights.blocks:
        matrices = (block.qkv, block.out, block.fc1, block.fc2)
        total += 2 * tokens * sum(layer.weight.numel() for layer in matrices)
        total += 4 * tokens * tokens * width
    return float(total)


class Generator:
    """A one-step latent generator of SD-Turbo's size with a tiny decoder, random weights.

    The denoiser is Stable Diffusion 2.1's (866 M parameters, arXiv:2311.17042 starts from it) and
    the decoder is TAESD's (github.com/madebyollin/taesd): 512 x 512 images. `tiny` shrinks both.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, *, tiny: bool) -> None:
        torch.manual_seed(0)
        size, context = (8, 32) if tiny else (64, 1024)
        widths = (16,) * 4 if tiny else (64,) * 4
        small = {
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "attention_head_dim": 2,
        }
        full = {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
        kinds: dict[str, Any] = small if tiny else full
        with torch.device(device):
            unet: Any = UNet2DConditionModel(cross_attention_dim=context, **kinds)
            decoder: Any = AutoencoderTiny(decoder_block_out_channels=widths)
            text = torch.randn(1, 77, context)
        self.unet = unet.eval().requires_grad_(False).to(dtype)
        self.decoder = decoder.eval().requires_grad_(False).to(dtype)
        self.text, self.time = text.to(dtype), torch.tensor([999], device=device)
        self.shape, self.dtype = (1, 4, size, size), dtype

    def __call__(self, noise: Tensor) -> Tensor:
        """Noise `(1, 4, h, w)` to an image `(1, 3, 8 h, 8 w)` in [0, 1], one denoiser step."""
        alpha = 0.0047  # of Stable Diffusion's schedule at its last training step
        x = noise.to(self.dtype)
        eps = self.unet(x, self.time, self.text, return_dict=False)[0]
        latents = (x - (1 - alpha) ** 0.5 * eps) / alpha**0.5
        latents = 3 * torch.tanh(latents / latents.std() / 3)  # random weights: keep it in range
        return self.decoder.decode(latents, return_dict=False)[0].clamp(-1, 1) / 2 + 0.5


def ascent(generator: Generator, score: Score, texts: Tensor, graphed: bool) -> Score:
    """One step of noise optimisation: noise and rate to the moved noise, of the same length.

    With `graphed`, generator, decoder, scorer and their backward are one CUDA graph.
    """

    def slope(noise: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = noise.detach().requires_grad_()
            value = score(generator(leaf), texts)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return gradient, value.detach()

    graphs = Graphs(1) if graphed else None

    def step(noise: Tensor, rate: Tensor) -> Tensor:
        if graphs and graphs.usable(noise):
            gradient, _ = graphs.run(slope, noise)
        else:
            gradient, _ = slope(noise)
        moved = noise + rate * gradient * noise.norm() / gradient.norm().clamp_min(1e-12)
        return moved * (noise.norm() / moved.norm())

    return step


def plain_tower(model: Any) -> Score:
    """The fused tower as plain autograd, to be recorded as part of a larger graph."""
    tower, preprocess = VitTower(model, graphs=False), preprocess_of(model)

    def score(images: Tensor, texts: Tensor) -> Tensor:
        return tower.head(tower.trunk(tower.patches(images, preprocess)), texts)

    return score
