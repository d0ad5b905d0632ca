"""Seconds and memory of `compute=` on models of full size: random weights, real shapes.

    python -m benchmarks.full_size --model sd15        # Stable Diffusion 1.5 at 512 pixels
    python -m benchmarks.full_size --model sdxl        # SDXL at 1024 pixels
    python -m benchmarks.full_size --model tiny        # the same code on a CPU, in seconds

The plain call, `guided(BestOfN(1))`, `compute=2, 4, 8`, and the loop that one writes by hand (as
many whole images in batches, scored, the best), all in turn in one run, in an order that turns with
the round. Ratios are taken round by round. Speed does not depend on the weights' values, so they
are random and nothing is downloaded; what the images look like says nothing. The prompt is given as
embeddings, and the reward is an HPS v2 tower of full size (ViT-H/14).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import open_clip
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from tqdm.auto import tqdm

import steer
from benchmarks import common
from benchmarks.kernels.models import build, preprocess_of
from steer.rewards.clip.encoder import Encoder
from steer.rewards.models.clip import ClipReward


STEPS = 20
BUDGETS = (2, 4, 8)
PROMPT = "a red fox"

Arm = Callable[[int], Any]


@dataclass(frozen=True)
class Size:
    """A pipeline's shapes, as published.

    Attributes:
        pixels: Side of its images.
        unet: Configuration of its denoiser, beside diffusers' defaults.
        channels: Of its autoencoder's blocks.
        pooled: Width of its pooled text features; 0 without them.
        text: Width of its text features.
        batch: Images that the loop draws at once.
    """

    pixels: int
    unet: dict[str, Any]
    channels: tuple[int, ...] = (128, 256, 512, 512)
    pooled: int = 0
    text: int = 768
    batch: int = 8


SIZES = {
    "sd15": Size(512, {"cross_attention_dim": 768, "sample_size": 64}),
    "sdxl": Size(
        1024,
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "use_linear_projection": True,
        },
        pooled=1280,
        text=2048,
        batch=4,
    ),
    "tiny": Size(
        64,
        {
            "cross_attention_dim": 32,
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 8,
        },
        channels=(32, 32, 32, 32),
        text=32,
    ),
}


def pipeline(size: Size, device: str, dtype: torch.dtype) -> DiffusionPipeline:
    """A pipeline of a size without text encoders, its weights random."""
    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "block_out_channels": size.channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(size.channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(size.channels),
    }
    with torch.device(device):
        vae = AutoencoderKL(layers_per_block=2, **blocks)
        unet = UNet2DConditionModel(**size.unet)
    models: dict[str, Any] = {"vae": vae, "unet": unet}
    parts = {name: model.to(dtype) for name, model in models.items()}
    none = ("text_encoder", "tokenizer", "feature_extractor", "image_encoder")
    parts |= dict.fromkeys(none)
    if size.pooled:
        parts |= dict.fromkeys(("text_encoder_2", "tokenizer_2"))
        parts |= {"scheduler": EulerDiscreteScheduler(), "add_watermarker": False}
        pipe = StableDiffusionXLPipeline(**parts)
    else:
        scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
        parts |= {"scheduler": scheduler, "safety_checker": None}
        pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(size: Size, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random embeddings in the place of a prompt and of its absence."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    found = {name: drawn(1, 77, size.text) for name in ("prompt_embeds", "negative_prompt_embeds")}
    if size.pooled:
        names = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        found |= {name: drawn(1, size.pooled) for name in names}
    return found


def arms(pipe: Any, guided: Any, reward: Any, size: Size, given: dict[str, Any]) -> dict[str, Arm]:
    """What is timed: a function of the seed for each."""

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def plain(seed: int, images: int = 1) -> Tensor:
        return pipe(**given, num_images_per_prompt=images, generator=seeded(seed)).images

    def loop(count: int, seed: int) -> int:
        best: list[float] = []
        while len(best) < count:
            images = plain(seed + len(best), min(size.batch, count - len(best)))
            best += reward(images, [PROMPT] * len(images)).tolist()
        return int(np.argmax(best))

    def search(effort: dict[str, Any], seed: int) -> Any:
        return guided(**given, reward_prompt=PROMPT, generator=seeded(seed), **effort)

    return {
        "plain": plain,
        "guided": partial(search, {"method": steer.BestOfN(1)}),
        **{f"compute={c}": partial(search, {"compute": c}) for c in BUDGETS},
        **{f"loop of {c}": partial(loop, c) for c in BUDGETS},
    }


def timed(arm: Arm, seed: int, device: str) -> tuple[float, float, Any]:
    """Seconds of a call, its highest memory in GiB (0 on a CPU), and what it returned."""
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    out = arm(seed)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0, out


def measure(made: dict[str, Arm], rounds: int, device: str) -> dict[str, Any]:
    """All arms in turn; a first round, which is not counted, warms up."""
    names = list(made)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory = dict.fromkeys(names, 0.0)
    reports: dict[str, Any] = {}
    for number in tqdm(range(-1, rounds), desc="rounds"):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            spent, most, out = timed(made[name], 1000 * (number + 1), device)
            if number < 0:
                continue
            seconds[name].append(spent)
            memory[name] = max(memory[name], most)
            if hasattr(out, "report"):
                reports[name] = out.report
    plain = np.asarray(seconds["plain"])
    return {
        name: {
            "seconds": common.interval(seconds[name]),
            "plain calls": common.interval(np.asarray(seconds[name]) / plain),
            "peak_gib": round(memory[name], 2),
            **(_spent(reports[name]) if name in reports else {}),
        }
        for name in names
    }


def _spent(report: Any) -> dict[str, Any]:
    """The plan of a guided call, and what its ledger says that it cost."""
    ledger = report.ledger
    flops = sum(ledger.flops.values()) / ledger.plain_flops if ledger.plain_flops else None
    return {"plan": repr(report.method), "flops": flops, "rows": ledger.denoiser_rows}


def scorer(device: str, dtype: torch.dtype, tiny: bool) -> ClipReward:
    """HPS v2 with random weights of full size; of a small tower for `tiny`."""
    where = torch.device(device)
    model = build("tiny" if tiny else "ViT-H-14", where, dtype, text=True)
    tokenizer: Any = open_clip.get_tokenizer("ViT-H-14")
    encoder = Encoder(model, tokenizer, where, dtype)
    return ClipReward("hpsv2", encoder, preprocess_of(model))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--model", choices=SIZES, default="sd15")
    parser.add_argument("--rounds", type=int, default=5)
    args = common.parsed(parser)
    size, tiny = SIZES[args.model], args.model == "tiny"
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    pipe, reward = pipeline(size, args.device, dtype), scorer(args.device, dtype, tiny)
    given = {
        "num_inference_steps": STEPS,
        "height": size.pixels,
        "width": size.pixels,
        "output_type": "pt",
        **embeddings(size, args.device, dtype),
    }
    made = arms(pipe, steer.guided(pipe, reward), reward, size, given)
    result = {
        "study": "full size",
        **common.provenance(),
        "model": args.model,
        "dtype": str(dtype),
        "steps": STEPS,
        "batch": size.batch,
        "rounds": args.rounds,
        "arms": measure(made, args.rounds, args.device),
    }
    common.write_json(common.RESULTS / f"full_size_{args.model}_{common.hardware()}.json", result)


if __name__ == "__main__":
    main()
