"""What does a score take on a CPU? Seconds of it and peak memory, at published sizes.

    python benchmarks/vlm_seconds.py

Networks of full size with random weights, one score each, in a process of its own that may use one
thread. Seconds are the process's own on the CPU, so that other work on the machine does not count.
What is timed is the network: neither the resize of the image nor the tokenizer, and not the text
where a reward keeps a prompt's features; a model that writes is timed with what it writes.
Leave out what needs more memory than there is, by `--cases`.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from vlm_costs import (
    FPS,
    IMAGE,
    NEWER,
    PLAIN,
    SECONDS,
    SEEN,
    TOGETHER,
    WRITTEN,
    asked,
    qwen2,
    qwen3,
    qwen25,
    qwen35,
)

from steer.rewards.models import aesthetic_siglip
from steer.rewards.models.blip import BlipScorer
from steer.rewards.models.mps import TOWERS, MpsNetwork
from steer.rewards.vlm import hpsv3, librehps, prompts, videoreward
from steer.rewards.vlm.patches import Patches
from steer.rewards.vlm.vqa import QUESTION


BASE: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
LARGE: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
SHORT: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
}


@dataclass(frozen=True)
class Case:
    """One network at full size.

    Attributes:
        rewards: Those that score with it.
        model: What it is.
        make: Builds it; called where tensors have no values.
        inputs: Of one score, by name.
        dtype: Of the weights; that which the rewards take by default.
    """

    rewards: tuple[str, ...]
    model: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    dtype: torch.dtype = torch.float32


def picture(side: int) -> dict[str, Any]:
    """A grey image, as a network takes it."""
    return {"pixel_values": torch.zeros(1, 3, side, side)}


def clip_inputs() -> dict[str, Any]:
    """An image and the 77 tokens of a prompt."""
    return {"input_ids": torch.full((1, 77), 49407), **picture(224)}


def blip_inputs() -> dict[str, Any]:
    """An image and 35 tokens; they are padded no further."""
    ids = torch.full((1, 35), 1000)
    return {"pixels": torch.zeros(1, 3, 224, 224), "ids": ids, "mask": torch.ones_like(ids)}


def mps_inputs() -> dict[str, Any]:
    """An image, and a prompt's features, which the reward keeps."""
    seen = torch.ones(1, 77, dtype=torch.bool)
    return {"pixels": torch.zeros(1, 3, 224, 224), "words": torch.zeros(1, 77, 1024), "seen": seen}


def clip_of(text: dict[str, Any], vision: dict[str, Any], width: int) -> nn.Module:
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))


def huge() -> CLIPConfig:
    """Settings of CLIP ViT-H/14."""
    return CLIPConfig(
        text_config=TOWERS["text"], vision_config=TOWERS["vision"], projection_dim=1024
    )


def large() -> nn.Module:
    config = CLIPVisionConfig(**LARGE, num_attention_heads=16, patch_size=14)
    return CLIPVisionModel(config)


def base() -> nn.Module:
    return clip_of(SHORT, BASE | {"patch_size": 32}, 512)


def siglip() -> nn.Module:
    settings: dict[str, Any] = dict(aesthetic_siglip.VISION)
    return SiglipVisionModel(SiglipVisionConfig(**settings))


def of(found: tuple[Any, Any]) -> Callable[[], nn.Module]:
    kind, config = found
    return lambda: kind(config)


def video() -> dict[str, Any]:
    chosen = len(videoreward.frames(SECONDS * FPS, FPS))
    return asked(videoreward.PATCHES, prompts.read("videoreward"), chosen)


class Writer(nn.Module):
    """Qwen3-VL-4B that writes greedily, after it has read.

    Args:
        tokens: That it writes.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        config = qwen3()[1]
        config.tie_word_embeddings = True
        self.model: Any = Qwen3VLForConditionalGeneration(config)
        self.tokens = tokens

    def forward(self, **inputs: Any) -> Any:
        """The ids of what it writes, however little sense that makes."""
        exactly = {"max_new_tokens": self.tokens, "min_new_tokens": self.tokens}
        return self.model.generate(**inputs, do_sample=False, **exactly)


def rated() -> dict[str, Any]:
    """An image and UnifiedReward's question, as `generate` takes them."""
    found = asked(NEWER, prompts.read("unifiedreward"))
    ids = found["input_ids"]
    seen = {name: found[name] for name in ("pixel_values", "image_grid_thw")}
    marks = {"attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == IMAGE).int()}
    return {"input_ids": ids, **marks, **seen}


half = torch.bfloat16
CASES = {
    "clip-b": Case(("clip:ViT-B-32:...",), "CLIP ViT-B/32", base, clip_inputs),
    "clip-l": Case(("aesthetic",), "CLIP ViT-L/14, image", large, lambda: picture(224)),
    "blip": Case(
        ("imagereward", "cyclereward"), "BLIP ViT-L/16", lambda: BlipScorer({}, {}), blip_inputs
    ),
    "clip-h": Case(("hpsv2", "pickscore"), "CLIP ViT-H/14", lambda: CLIPModel(huge()), clip_inputs),
    "mps": Case(("mps",), "CLIP ViT-H/14", lambda: MpsNetwork(huge(), 16, 64), mps_inputs),
    "siglip": Case(("aesthetic-v2.5",), "SigLIP so400m, 384 px", siglip, lambda: picture(384)),
    "qwen3": Case(
        ("vqa",), "Qwen3-VL-4B, 512 px", of(qwen3()), lambda: asked(NEWER, QUESTION), half
    ),
    "qwen25": Case(
        ("vqa",), "Qwen2.5-VL-3B, 512 px", of(qwen25()), lambda: asked(PLAIN, QUESTION), half
    ),
    "unified": Case(
        ("unifiedreward",),
        f"Qwen3-VL-4B, 512 px, {WRITTEN} tokens written",
        lambda: Writer(WRITTEN),
        rated,
        half,
    ),
    "librehps": Case(
        ("librehps",),
        "Qwen3.5-4B",
        lambda: of(qwen35())(),
        lambda: asked(librehps.PATCHES, "{prompt}"),
        half,
    ),
    "librehps-video": Case(
        ("librehps:video",),
        f"Qwen3.5-4B, {SEEN} frames",
        lambda: of(qwen35())(),
        lambda: asked(TOGETHER, "{prompt}", SEEN),
        half,
    ),
    "hpsv3": Case(
        ("hpsv3",),
        "Qwen2-VL-7B",
        of(qwen2("7b")),
        lambda: asked(Patches(hpsv3.AREA, hpsv3.AREA), prompts.read("hpsv3")),
        half,
    ),
    "qwen2": Case(("videoreward",), "Qwen2-VL-2B, 10 of 80 frames", of(qwen2("2b")), video, half),
}


def materialise(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network with weights: one block of random numbers over and over, small enough that
    nothing overflows."""
    block = (torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    made: dict[nn.Parameter, nn.Parameter] = {}  # those that are used twice stay one
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter in made:
                setattr(module, name, made[parameter])
                continue
            values = torch.empty(parameter.shape, dtype=dtype)
            flat, whole = values.view(-1), parameter.numel() // len(block) * len(block)
            flat[:whole].view(-1, len(block)).copy_(block)
            flat[whole:] = block[: len(flat) - whole]
            made[parameter] = nn.Parameter(values, requires_grad=False)
            setattr(module, name, made[parameter])
    return model.eval()


_PLAIN = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
"""Freed memory goes back at once, so that the peak is of what is in use."""


def peak() -> float:
    """This process's largest resident set so far, 10^9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def processor() -> str:
    """What the machine calls its processor, and whether it multiplies bfloat16 matrices itself."""
    told = Path("/proc/cpuinfo")
    facts = told.read_text() if told.exists() else ""
    names = [line.partition(": ")[2] for line in facts.splitlines() if "model name" in line]
    return (names or [platform.processor()])[0] + (", AMX" if "amx_bf16" in facts else "")


@torch.no_grad()
def measure(name: str, passes: int, dtype: torch.dtype | None) -> dict[str, Any]:
    """The least seconds of so many scores, and the peak; in the case's own type, or another."""
    case = CASES[name]
    dtype = dtype or case.dtype
    before = peak()
    with init_empty_weights(include_buffers=False):
        model = case.make()
    model = materialise(model, dtype)
    inputs = {
        key: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for key, value in case.inputs().items()
    }
    seconds = []
    for _ in range(passes):
        start = time.process_time()
        model(**inputs)
        seconds.append(time.process_time() - start)
    facts = {k: v for k, v in asdict(case).items() if k in ("rewards", "model")}
    return {
        "case": name,
        **facts,
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
        "cpu_seconds": round(min(seconds), 2),
        "passes": passes,
        "peak_gb": round(peak(), 2),
        "peak_before_gb": round(before, 2),
    }


def table(found: list[dict[str, Any]]) -> str:
    """For docs/rewards/vlm.md."""
    rows = ["| reward | model | weights | CPU seconds | peak memory |", "|---|---|---|---|---|"]
    for x in found:
        names = ", ".join(f"`{name}`" for name in x["rewards"])
        rows.append(
            f"| {names} | {x['model']} | {x['dtype']} | {x['cpu_seconds']:.1f} "
            f"| {x['peak_gb']:.1f} GB |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "vlm_seconds.jsonl")
    parser.add_argument("--one", choices=CASES, help="Measure this one, here, and print it.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--append", action="store_true", help="Keep the lines of earlier runs.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="Of the weights.")
    parser.set_defaults(threads=1)
    args = common.parsed(parser)
    if args.one:
        print(json.dumps(measure(args.one, args.passes, getattr(torch, args.dtype or "", None))))
        return
    found, kept = [], args.out.read_text() if args.append and args.out.exists() else ""
    for name in args.cases:
        command = [sys.executable, __file__, "--one", name, "--passes", str(args.passes)]
        command += ["--dtype", args.dtype] if args.dtype else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=_PLAIN)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        lines = [common.provenance() | {"processor": processor()}, *found]
        args.out.write_text(kept + "".join(json.dumps(line) + "\n" for line in lines))
    print(table(found))


if __name__ == "__main__":
    main()
