"""One side of `hpsv2_speed.py`, in a process of its own; the last line it prints is JSON.

    python benchmarks/hpsv2_side.py make FOLDER
    python benchmarks/hpsv2_side.py steer FOLDER --images 16

The interpreter that runs the side `public` has `hpsv2` but not steer: nothing is imported here
that only one of the two has.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import resource
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from PIL import Image


Scorer: TypeAlias = Callable[[list[Image.Image], str], list[float]]

ARCHITECTURE = "ViT-H-14"
CHECKPOINT, CONFIG = "HPS_v2.1_compressed.pt", "config.json"
PROMPT = "a small red lighthouse on a cliff at dusk, waves below, oil painting"
ANOTHER = "two astronauts playing chess under a glass dome, wide angle photograph"
IMAGES, SIDE = 16, 512
ODD = {"wide": (512, 384), "tall": (480, 640), "small": (224, 224), "gray": (512, 512)}
PACKAGES = {
    "public": ("hpsv2", "torch", "torchvision", "timm", "transformers", "pillow"),
    "steer": ("steer-diffusion", "open_clip_torch", "torch", "torchvision", "pillow"),
}
TINY = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 224,
        "layers": 2,
        "width": 40,
        "head_width": 20,
        "patch_size": 28,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def layout(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Names and shapes of a CLIP's tensors, on the meta device."""
    import open_clip

    with torch.device("meta"):
        return open_clip.CLIP(**config).state_dict()


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float16 weights under which features stay finite and tell images apart."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, empty in layout(config).items():
        noise = torch.randn(empty.shape, generator=generator)
        if empty.ndim == 0:
            value = torch.tensor(100.0).log()
        elif empty.ndim == 1:
            value = 1 + 0.1 * noise if name.endswith(".weight") else 0.02 * noise
        else:
            value = noise / empty[0].numel() ** 0.5
        weights[name] = value.half()
    return weights


def make(folder: Path, tiny: bool) -> dict[str, Any]:
    """Write a checkpoint as published (pickled, float16, under `state_dict`), and the images."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    config = TINY if tiny else open_clip.get_model_config(ARCHITECTURE) or {}
    weights = random_weights(config)
    torch.save({"state_dict": weights}, folder / CHECKPOINT)
    (folder / CONFIG).write_text(json.dumps(config))
    write_images(folder)
    return {
        "architecture": "tiny" if tiny else ARCHITECTURE,
        "parameters": sum(value.numel() for value in weights.values()),
        "tensors": len(weights),
        "checkpoint_bytes": (folder / CHECKPOINT).stat().st_size,
    }


def write_images(folder: Path) -> None:
    """Random smooth pictures with some grain: 16 of 512x512, and four of other shapes."""
    generator = torch.Generator().manual_seed(1)
    shapes = {f"{i:02d}": (SIDE, SIDE) for i in range(IMAGES)} | ODD
    for name, (width, height) in shapes.items():
        coarse = torch.rand(1, 3, 6, 6, generator=generator)
        pixels = F.interpolate(coarse, (height, width), mode="bicubic")[0]
        pixels = pixels + 0.05 * torch.randn(pixels.shape, generator=generator)
        array = (255 * pixels.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
        image = Image.fromarray(array)
        (image.convert("L") if name == "gray" else image).save(folder / f"{name}.png")


def public_scorer(folder: Path, _: str) -> Scorer:
    """`hpsv2.score` as published, with its two downloads pointed at the local checkpoint.

    The base model that it downloads first is 3.9 GB; here that is the checkpoint of half the size
    too, which spares the package time and memory.
    """
    hub: Any = importlib.import_module("huggingface_hub")
    hub.hf_hub_download = lambda *_, **__: str(folder / CHECKPOINT)
    try:
        importlib.import_module("tkinter")
    except ImportError:  # its model factory imports `forward` from turtle, and does not use it
        sys.modules["turtle"] = types.ModuleType("turtle")
        sys.modules["turtle"].__dict__["forward"] = None
    package = importlib.import_module("hpsv2")
    importlib.import_module("hpsv2.img_score")
    factory: Any = importlib.import_module("hpsv2.src.open_clip.factory")
    factory._MODEL_CONFIGS[ARCHITECTURE] = json.loads((folder / CONFIG).read_text())
    return lambda images, prompt: package.score(images, prompt, hps_version="v2.1")


def steer_scorer(folder: Path, dtype: str) -> Scorer:
    """`steer.reward("hpsv2")`, asked for anew in every call, as a user's function would."""
    steer = importlib.import_module("steer")
    importlib.import_module("steer.rewards.models.hpsv2")
    config = json.loads((folder / CONFIG).read_text())

    def score(images: list[Image.Image], prompt: str) -> list[float]:
        checkpoint = folder / CHECKPOINT
        reward = steer.reward("hpsv2", checkpoint=checkpoint, dtype=dtype, model_config=config)
        return reward(images, prompt).tolist()

    return score


SIDES: dict[str, Callable[[Path, str], Scorer]] = {"public": public_scorer, "steer": steer_scorer}


def peak_gib() -> float:
    """The largest resident set of this process so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30


@contextmanager
def counted_loads() -> Iterator[dict[str, float]]:
    """Calls of `torch.load` and the seconds in it, kept up to date."""
    spent, original = {"loads": 0.0, "seconds": 0.0}, torch.load

    def load(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args, **options)
        finally:
            spent["loads"] += 1
            spent["seconds"] += time.perf_counter() - start

    torch.load = load
    try:
        yield spent
    finally:
        torch.load = original


def measured(score: Scorer, images: list[Image.Image], prompt: str, spent: dict) -> dict[str, Any]:
    """One call: its seconds, its checkpoint loads, its scores, and the peak so far."""
    before, cpu, start = dict(spent), time.process_time(), time.perf_counter()
    scores = score(images, prompt)
    seconds = time.perf_counter() - start
    return {
        "images": len(images),
        "seconds": round(seconds, 4),
        "cpu_seconds": round(time.process_time() - cpu, 4),
        "checkpoint_loads": int(spent["loads"] - before["loads"]),
        "load_seconds": round(spent["seconds"] - before["seconds"], 4),
        "peak_rss_gib": round(peak_gib(), 3),
        "scores": [round(float(value), 8) for value in scores],
    }


def measure(side: str, folder: Path, count: int, dtype: str = "float32") -> dict[str, Any]:
    """The calls of one side: the first, the same again, and for one image two more.

    Args:
        side: "public" or "steer".
        folder: What `make` wrote.
        count: Images in the first two calls, 1 to 16.
        dtype: Precision of steer's weights; the public scorer has float32 only.
    """
    start = time.perf_counter()
    score = SIDES[side](folder, dtype)
    imported = time.perf_counter() - start
    images = [_opened(folder / f"{i:02d}.png") for i in range(count)]
    plan = {"first": (images, PROMPT), "second": (images, PROMPT)}
    if count == 1:
        plan["another prompt"] = (images, ANOTHER)
        plan["odd shapes"] = ([_opened(folder / f"{name}.png") for name in ODD], PROMPT)
    with counted_loads() as spent:
        calls = {name: measured(score, *given, spent) for name, given in plan.items()}
    return {
        "side": side,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "import_seconds": round(imported, 3),
        "calls": calls,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES[side]},
    }


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("side", choices=["make", *SIDES])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.side == "make":
        print(json.dumps(make(args.folder, args.tiny)))
    else:
        print(json.dumps(measure(args.side, args.folder, args.images, args.dtype)))


if __name__ == "__main__":
    main()
