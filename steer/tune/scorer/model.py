"""The open_clip model that is fine-tuned: loaded, frozen in part, written."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from steer.core.errors import TuneError
from steer.rewards.clip.encoder import Source, load_encoder
from steer.rewards.clip.preprocess import Preprocess
from steer.rewards.models.clip import locate_model
from steer.shapes.export import CONFIG_FILE, WEIGHTS_FILE, write_open_clip_folder


@dataclass(frozen=True)
class OpenClip:
    """An open_clip model to be trained.

    Attributes:
        model: Its weights, float32, of its own.
        config, preprocess_cfg: As in an open_clip folder.
        tokenizer: open_clip's.
        preprocess: From images in [0, 1] to pixels.
        version: Fingerprint of the weights it came with.
    """

    model: Any
    config: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    tokenizer: Any
    preprocess: Preprocess
    version: str


def load_open_clip(model: str, resize: str = "model") -> OpenClip:
    """What `model` names, as the reward `clip:` would load it, ready to be trained on the CPU.

    Args:
        model: See `ScorerConfig.model`.
        resize: Another way to come to the model's size, or `"model"`.

    Raises:
        ValueError, CheckpointError: As the reward `clip:`.
    """
    if model in ("shapes-clip", "shapes"):
        from steer.shapes import weights_folder

        model = f"local-dir:{weights_folder() / {'shapes': 'scorer'}.get(model, 'clip')}"
    config, preprocess_cfg, weights, tokenizer = locate_model(model)
    encoder = load_encoder(
        Source.of(config, str(Path(weights).expanduser()), tokenizer),
        torch.device("cpu"),
        torch.float32,
    )
    if resize != "model":
        preprocess_cfg = {**preprocess_cfg, "resize_mode": resize}
    with torch.inference_mode(False):
        own = copy.deepcopy(encoder.model).requires_grad_(True)
    return OpenClip(
        own,
        config,
        preprocess_cfg,
        encoder.tokenizer.tokenizer,
        Preprocess.from_open_clip(preprocess_cfg, encoder.image_size),
        encoder.version,
    )


def lock(model: Any, image: int | None, text: int | None) -> None:
    """Freeze all but the last `image` groups and `text` layers; None leaves a tower free.

    open_clip's own `lock_image_tower` and `lock_text_tower`.
    """
    if image is not None:
        model.lock_image_tower(unlocked_groups=image)
    if text is not None:
        model.lock_text_tower(unlocked_layers=text)
    if not any(p.requires_grad for p in model.parameters()):
        raise TuneError("unlocked_image, unlocked_text: nothing is left to train; unlock more")


def save_open_clip(folder: Path, clip: OpenClip, dtype: torch.dtype) -> Path:
    """Write the model as a folder that `clip:local-dir:FOLDER` and open_clip load, in one step."""
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    inner = getattr(clip.tokenizer, "tokenizer", None)
    if inner is not None:
        write_open_clip_folder(
            partial, clip.model, clip.config, clip.preprocess_cfg, inner, dtype=dtype
        )
    else:  # CLIP's own tokenizer is part of open_clip
        partial.mkdir(parents=True)
        config = {"model_cfg": clip.config, "preprocess_cfg": _plain(clip.preprocess_cfg)}
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tensors = {n: _on_cpu(v, dtype) for n, v in clip.model.state_dict().items()}
        save_file(tensors, partial / WEIGHTS_FILE, metadata={"format": "pt"})
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
    return folder


def _plain(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What open_clip's folders hold of a preprocessing config."""
    known = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
    kept = {k: v for k, v in cfg.items() if k in known}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}


def _on_cpu(value: Tensor, dtype: torch.dtype) -> Tensor:
    value = value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype)
    return value.clone().contiguous()
