"""Does the reward `ocr` tell right words from wrong ones? Rendered words, by distortion.

    python benchmarks/ocr.py --threads 1

Every text is drawn right and with one letter replaced, dropped, doubled, or swapped with the next,
then spoilt. AUC within texts: how often the right drawing scores
higher than a wrong one (ties count half).
"""

from __future__ import annotations

import string
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scorer_auc import caption_auc
from torch import Tensor
from tqdm.auto import tqdm

import steer


TEXTS = (
    "OPEN",
    "Bakery",
    "Happy Birthday",
    "Fresh Coffee",
    "Night Market",
    "No Parking",
    "Route 66",
    "Exit",
    "Welcome Home",
    "Library",
    "STOP",
    "Sale",
    "Taxi",
    "Hotel",
    "Pharmacy",
    "Museum",
    "Platform 9",
    "Gate B12",
    "Room 204",
    "Since 1987",
    "Closed",
    "Danger",
    "Wet Paint",
    "Keep Left",
    "Good Morning",
    "Thank You",
    "Book Shop",
    "Ice Cream",
    "Main Street",
    "Post Office",
    "Free Wifi",
    "Mind the Gap",
    "Grand Opening",
    "Jazz Club",
    "Flower Stand",
    "Bicycle Repair",
    "Quiet Please",
    "Vote Today",
    "Apollo 11",
    "Hello World",
    "Pizza",
    "Zebra Crossing",
)
SIDE = 512
Distortion = Callable[[Image.Image, np.random.Generator], Image.Image]


def wrong(text: str, noise: np.random.Generator) -> dict[str, str]:
    """A text with one mistake, by kind; only letters and digits are touched."""
    places = [k for k, sign in enumerate(text[:-1]) if sign.isalnum()]
    at = int(noise.choice(places))
    pairs = [k for k in places if text[k + 1].isalnum() and text[k].lower() != text[k + 1].lower()]
    swap = int(noise.choice(pairs))
    old = text[at]
    pool = string.digits if old.isdigit() else string.ascii_lowercase
    new = str(noise.choice([sign for sign in pool if sign != old.lower()]))
    return {
        "replaced": text[:at] + (new.upper() if old.isupper() else new) + text[at + 1 :],
        "dropped": text[:at] + text[at + 1 :],
        "doubled": text[:at] + old + text[at:],
        "swapped": text[:swap] + text[swap + 1] + text[swap] + text[swap + 2 :],
    }


def drawn(text: str, noise: np.random.Generator, size: int = 48) -> Image.Image:
    """A text somewhere on a plain ground, dark on light or light on dark."""
    ground = np.array(noise.integers(160, 256, 3))
    ink = np.array(noise.integers(0, 96, 3))
    if noise.random() < 0.5:
        ground, ink = ink, ground
    image = Image.new("RGB", (SIDE, SIDE), tuple(map(int, ground)))
    font = ImageFont.load_default(size)
    pen = ImageDraw.Draw(image)
    width, height = map(int, pen.textbbox((0, 0), text, font=font)[2:])
    place = (int(noise.integers(8, SIDE - width - 8)), int(noise.integers(8, SIDE - height - 8)))
    pen.text(place, text, fill=tuple(map(int, ink)), font=font)
    return image


def grain(deviation: float) -> Distortion:
    """Normal noise of a standard deviation in grey levels."""

    def spoil(image: Image.Image, noise: np.random.Generator) -> Image.Image:
        spoilt = np.asarray(image) + noise.normal(0, deviation, (SIDE, SIDE, 3))
        return Image.fromarray(spoilt.clip(0, 255).astype(np.uint8))

    return spoil


def blur(radius: float) -> Distortion:
    """A Gaussian blur of a radius in pixels."""
    return lambda image, noise: image.filter(ImageFilter.GaussianBlur(radius))


def turned(degrees: float) -> Distortion:
    """Turned about the centre."""

    def turn(image: Image.Image, noise: np.random.Generator) -> Image.Image:
        return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=image.getpixel((0, 0)))

    return turn


DISTORTIONS: dict[str, Distortion] = {
    "none": lambda image, noise: image,
    "noise 40": grain(40),
    "noise 80": grain(80),
    "noise 120": grain(120),
    "blur 2": blur(2),
    "blur 4": blur(4),
    "blur 6": blur(6),
    "turned 15": turned(15),
}


def as_tensor(images: list[Image.Image]) -> Tensor:
    """`(B, 3, SIDE, SIDE)` floats in [0, 1]."""
    arrays = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    reward = steer.reward("ocr", threads=args.threads or None)
    out = args.out or common.RESULTS / f"ocr_{common.hardware()}.json"
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    for number, text in enumerate(tqdm(TEXTS)):
        prompt = f'a sign that says "{text}"'
        for name, spoil in DISTORTIONS.items():
            # the same drawings, spoilt otherwise
            noise = np.random.default_rng([args.seed, number])
            grit = np.random.default_rng([args.seed, number, 1])
            versions = {"right": text, **wrong(text, noise)}
            images = [spoil(drawn(word, noise), grit) for word in versions.values()]
            start = time.process_time()
            scores = reward(as_tensor(images), [prompt] * len(images)).tolist()
            seconds = (time.process_time() - start) / len(images)
            row = {"text": text, "distortion": name, "versions": versions, "scores": scores}
            rows.append({**row, "cpu_seconds_per_image": round(seconds, 3)})
        found = write(out, rows, args.seed)
    for name, values in found.items():
        print(f"{name:10}  " + "  ".join(f"{key} {value:.3f}" for key, value in values.items()))


def write(out: Path, rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """All texts so far into the file, which is whole after each; what it says by distortion."""
    found = {name: summary([r for r in rows if r["distortion"] == name]) for name in DISTORTIONS}
    packages = ("rapidocr", "onnxruntime", "pillow")
    result = {
        "study": "ocr",
        **common.provenance(),
        "reader": {name: version(name) for name in packages},
        "seed": seed,
        "side": SIDE,
        "texts": len({row["text"] for row in rows}),
        "distortions": found,
        "rows": rows,
    }
    common.write_json(out, result)
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of one distortion: AUC within texts, mean scores, seconds of the CPU per image."""
    right = np.array([True, False, False, False, False])
    aucs = [caption_auc(np.array(row["scores"]), right) for row in rows]
    scores = np.array([row["scores"] for row in rows])
    return {
        "auc": round(float(np.mean([auc for auc in aucs if auc is not None])), 4),
        "right": round(float(scores[:, right].mean()), 4),
        "exact": round(float((scores[:, right] == 1).mean()), 4),
        "wrong": round(float(scores[:, ~right].mean()), 4),
        "cpu_seconds": round(float(np.median([row["cpu_seconds_per_image"] for row in rows])), 3),
    }


if __name__ == "__main__":
    main()
