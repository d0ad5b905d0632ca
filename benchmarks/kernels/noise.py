"""Noise optimisation through a one-step generator of SD-Turbo's size, a tiny decoder and the score.

Random weights: what is measured is time, and that the reward rises. On a GPU our arm records the
whole step, denoiser, decoder, scorer and their backward, as one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import Tensor

from benchmarks.kernels.arms import Score, Setting, by_open_clip, compiled, plain_tower
from benchmarks.kernels.clock import Clock
from benchmarks.kernels.models import texts_of
from steer.rewards.clip.graphs import Graphs


Step = Callable[[Tensor, Tensor], Tensor]

STANDS_IN = "a stand-in of the same code: a U-Net of two blocks, 64 x 64 images"
FULL = "U-Net of Stable Diffusion 2.1 (866 M parameters), TAESD's decoder, 512 x 512 images"


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


def ascent(generator: Callable[[Tensor], Tensor], score: Score, texts: Tensor, way: str) -> Step:
    """One step of noise optimisation: noise and rate to the moved noise, of the same length.

    Args:
        generator: Noise to an image.
        score: Images and texts to scores.
        texts: The prompt's features.
        way: "plain", "compiled", or "graphed": the step's gradient is one CUDA graph.
    """

    def reward(noise: Tensor) -> Tensor:
        return score(generator(noise), texts)

    value_of = compiled(reward) if way == "compiled" else reward

    def slope(noise: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = noise.detach().requires_grad_()
            value = value_of(leaf)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return gradient, value.detach()

    graphs = Graphs(1) if way == "graphed" else None

    def step(noise: Tensor, rate: Tensor) -> Tensor:
        if graphs and graphs.usable(noise):
            gradient, _ = graphs.run(slope, noise)
        else:
            gradient, _ = slope(noise)
        moved = noise + rate * gradient * noise.norm() / gradient.norm().clamp_min(1e-12)
        return moved * (noise.norm() / moved.norm())

    return step


def optimisation(
    setting: Setting, clock: Clock, steps: int, tiny: bool, with_compiled: bool
) -> dict[str, Any]:
    """Seconds of `steps` steps on one image, interleaved, and the reward before and after them."""
    model, device = setting.build(), setting.device
    generator = Generator(device, setting.dtype, tiny=tiny)
    texts = texts_of(1, model.visual.output_dim, device)
    plain = by_open_clip(model, setting.dtype)
    ways = {"eager": (plain, "plain"), "fused": (plain_tower(model), "graphed")}
    if with_compiled:
        ways["compiled"] = (plain, "compiled")
    start = torch.randn(generator.shape, generator=torch.Generator().manual_seed(0)).to(device)
    rate = torch.tensor(0.05, device=device)
    made = {name: ascent(generator, score, texts, way) for name, (score, way) in ways.items()}

    def run(step: Step) -> Tensor:
        x = start
        for _ in range(steps):
            x = step(x, rate)
        return x

    calls = {name: (lambda step=step: run(step)) for name, step in made.items()}
    found, failed = clock.compare(calls)
    rows = []
    with torch.no_grad():
        before = float(plain(generator(start), texts))
    for name, time_ in found.items():
        with torch.no_grad():
            after = float(plain(generator(run(made[name])), texts))
        rows.append(
            {"arm": name, "seconds": time_["p50"] / 1e3, **time_}
            | {"reward_before": before, "reward_after": after}
        )
    rows += [{"arm": name, "note": note} for name, note in failed.items()]
    return {"steps": steps, "generator": STANDS_IN if tiny else FULL, "rows": rows}
