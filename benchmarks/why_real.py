"""Renders of training captions as a dataset of the few-step model: the real images of its world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import steer
from steer.shapes.captions import parse
from steer.shapes.drawing import place, render
from steer.tune.data.features import Features
from steer.tune.data.folder import Folder, latents_name, text_name
from steer.tune.tables import FORMAT, INDEX, MANIFEST, SHARED


COUNT = 640


def write_renders(folder: Path, seed: int = 5) -> None:
    """Write it, unless it is there."""
    if (folder / MANIFEST).exists():
        return
    texts = steer.shapes.prompts("train", COUNT, seed=seed)
    pipe = steer.shapes.pipeline("turbo")
    scenes = [place(parse(text), np.random.default_rng([seed, i])) for i, text in enumerate(texts)]
    with torch.no_grad():
        encoded = pipe.vae.encode(render(scenes) * 2 - 1).latent_dist.mean
    latents = encoded * pipe.vae.config.scaling_factor
    call = {"num_inference_steps": 4, "guidance_scale": 1.0}
    features = Features(pipe, call, (texts[0], texts[1]))
    found = Folder(folder)
    found.write_tensors(latents_name(0), {"latents": latents})
    found.write_tensors(text_name(0), {"prompt_ids": torch.arange(len(texts)), **features(texts)})
    found.write_tensors(SHARED, features.layout.shared)
    rows = range(len(texts))
    found.write_table(
        INDEX,
        {
            "id": [f"r{i:05d}" for i in rows],
            "prompt": texts,
            "prompt_id": list(rows),
            "seed": list(rows),
            "shard": [latents_name(0)] * len(texts),
            "row": list(rows),
            "score": [0.0] * len(texts),
            "split": ["train"] * len(texts),
        },
    )
    about = {"format": FORMAT, "kind": "scored", "count": len(texts), "reward": "none"}
    found.write_json(MANIFEST, {**about, "latent_shape": list(latents.shape[1:])})
