"""CLIP similarity as a reward: the cosine between image and prompt, by any open_clip model.

Radford et al. 2021 (arXiv:2103.00020); as a score, Hessel et al. 2021 (arXiv:2104.08718).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf
from torch import Tensor

from steer.core.checks import did_you_mean
from steer.core.errors import CheckpointError, first_line
from steer.core.weights.reading import read_json
from steer.rewards.base import BaseReward, check_batch
from steer.rewards.clip.activation import trained_with_quick_gelu
from steer.rewards.clip.encoder import Encoder, Source, load_encoder, quiet
from steer.rewards.clip.fused import Fused, choose_tower, cosines
from steer.rewards.clip.preprocess import Preprocess, work_dtype
from steer.rewards.families import family_of
from steer.rewards.inputs import Images, as_batches


_log = logging.getLogger("steer")
_QUICK = "-quickgelu"
_FOLDER, _HUB = "local-dir:", "hf-hub:"
_CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class FeatureReward(BaseReward):
    """A reward on the unit image features of an open_clip model.

    Differentiable; computed in float32 whatever the precision of the weights.

    Args:
        name: Short name.
        encoder: The model.
        preprocess: From images to its pixels.
        batch: Most images scored at once.
        fused: Whether the fused image tower runs; see `Fused`.

    Attributes:
        tower: The fused image tower, or None.

    Raises:
        ValueError: `batch`, or a tower that is asked for and does not fit.
    """

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        preprocess: Preprocess,
        *,
        batch: int | None = 32,
        fused: Fused = None,
    ) -> None:
        self.name, self.family = name, family_of(name)
        self.encoder, self.version = encoder, encoder.version
        self.tower = choose_tower(encoder, fused)
        self.differentiable = fused != "fp8"
        self.preprocess = preprocess
        self.batch = check_batch(batch)
        self.device = encoder.device

    @torch.no_grad()
    def embed(self, images: Images) -> Tensor:
        """The unit features of images, `(B, D)` float32, as `Diverse(features=reward.embed)` asks.

        Args:
            images: As the reward takes them, or videos `(B, F, 3, H, W)`: their middle frames.

        Raises:
            ValueError: Images that do not fit.
        """
        if isinstance(images, Tensor) and images.ndim == 5:
            images = images[:, images.shape[1] // 2]
        work = work_dtype(self.encoder.dtype)
        parts = [p for batch in as_batches(images) for p in batch.split(self.batch or len(batch))]
        moved = (part.to(self.device or part.device, work) for part in parts)
        return torch.cat([self.encoder.images(self.preprocess(x)).float() for x in moved])

    def cosines(self, images: Tensor, directions: Tensor, scale: float = 1.0) -> Tensor:
        """`scale * <f_i, directions_i>` with f the unit features of the images, `(B,)` float32.

        Args:
            images: `(B, 3, H, W)` in [0, 1].
            directions: `(B, D)`, of any length.
            scale: A factor.
        """
        return cosines(self.encoder, self.tower, self.preprocess, images, directions, scale)


class ClipReward(FeatureReward):
    """The cosine of image and prompt features, times `scale` (1 unless a reward says otherwise).

    Args:
        scale: Factor of the cosine; `range` follows it.
        name, encoder, preprocess, batch, fused: As for `FeatureReward`.
    """

    needs_prompt = True

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        preprocess: Preprocess,
        *,
        scale: float = 1.0,
        batch: int | None = 32,
        fused: Fused = None,
    ) -> None:
        super().__init__(name, encoder, preprocess, batch=batch, fused=fused)
        self.scale = scale
        self.range = (-scale, scale)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.cosines(images, self.encoder.prompts(prompts), self.scale)


def clip(
    model: str,
    *,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 32,
    name: str | None = None,
    fused: Fused = None,
) -> ClipReward:
    """CLIP score by an open_clip model, with that model's own preprocessing.

    The reward `"clip:ViT-B-32:laion2b_s34b_b79k"` is `clip("ViT-B-32:laion2b_s34b_b79k")`. Where a
    tag says that its weights were trained with QuickGELU, the model is built so; for a file without
    a tag, where its names or a `config.json` beside it say so, and with a warning where none does.

    Args:
        model: `"<open_clip name>:<pretrained tag or file>"`, `"local-dir:<folder>"` or
            `"hf-hub:<repository>"`.
        checkpoint: Weights file, in place of the tag.
        device: Default: the accelerator if there is one.
        dtype: Precision of the weights; default float32.
        batch: Most images scored at once.
        name: What the reward calls itself; default `"clip:<model>"`.
        fused: The fused image tower: `None` on NVIDIA GPUs where the model fits, `True`, `False`,
            or `"fp8"`, which has no gradient.

    Raises:
        ValueError: Unknown model or tag, no weights named, or `fused` where it cannot be.
        CheckpointError: Weights that cannot be found, read, or do not fit.
    """
    config, preprocess_cfg, weights, tokenizer = locate_model(model, checkpoint)
    weights = str(Path(weights).expanduser())
    if not Path(weights).is_file():
        raise CheckpointError(f"clip:{model}: checkpoint={weights!r} does not exist: pass a file")
    encoder = open_encoder(config, weights, device, dtype, tokenizer)
    preprocess = Preprocess.from_open_clip(preprocess_cfg, encoder.image_size)
    made = ClipReward(name or f"clip:{model}", encoder, preprocess, batch=batch, fused=fused)
    made.family = made.family or family_of(f"clip:{model}")
    return made


def open_encoder(
    config: dict[str, Any],
    weights: str,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    tokenizer: str = "",
) -> Encoder:
    """The model of an open_clip config with the weights of a file; see `load_encoder`.

    Args:
        config: Its model config.
        weights: A file that exists.
        device: Default: the accelerator if there is one.
        dtype: Precision of the weights; default float32.
        tokenizer: Whose tokenizer; empty for CLIP's own.
    """
    source = Source.of(config, weights, tokenizer)
    return load_encoder(source, default_device(device), dtype or torch.float32)


def architecture(name: str) -> dict[str, Any]:
    """open_clip's config of a model that it knows."""
    return open_clip.get_model_config(name) or {}


def default_device(device: str | torch.device | None) -> torch.device:
    """The device asked for (with its index), else the accelerator, else the CPU."""
    if device is None:
        found = torch.accelerator.is_available()
        device = torch.accelerator.current_accelerator() if found else None
    device = torch.device(device or "cpu")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def locate_model(
    model: str, checkpoint: str | Path | None = None
) -> tuple[dict[str, Any], dict[str, Any], str, str]:
    """Model config, preprocessing config, weights file, tokenizer name; as `clip` finds them.

    Raises:
        ValueError, CheckpointError: As `clip`.
    """
    if model.startswith(_FOLDER):
        folder = Path(model.removeprefix(_FOLDER)).expanduser()
        config = _folder_config(folder, read_json(folder / _CONFIG))
        weights = checkpoint or _folder_weights(folder)
        return config[0], config[1], str(weights), f"{_FOLDER}{folder}"
    if model.startswith(_HUB):
        repository = model.removeprefix(_HUB)
        path = _download(download_pretrained_from_hf, repository, repository, filename=_CONFIG)
        config = _folder_config(repository, read_json(path))
        weights = checkpoint or _download(download_pretrained_from_hf, repository, repository)
        return config[0], config[1], str(weights), model
    return _locate_named_model(model, checkpoint)


def _locate_named_model(
    model: str, checkpoint: str | Path | None
) -> tuple[dict[str, Any], dict[str, Any], str, str]:
    name, _, tag = model.partition(":")
    config = open_clip.get_model_config(name)
    if config is None:
        hint = did_you_mean(name, open_clip.list_models())
        raise ValueError(
            f"clip:{model}: open_clip has no model {name!r}; {hint}open_clip.list_models() has all"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    weights = checkpoint or (tag if tag and Path(tag).expanduser().is_file() else None)
    pretrained = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    if not weights and not pretrained:
        what = f"{tag!r} is neither a file nor a tag of {name}" if tag else "no weights are named"
        raise ValueError(
            f"clip:{model}: {what}; add one, as in 'clip:{name}:{(tags or ['weights.pt'])[0]}', or "
            f"pass checkpoint=FILE. Tags: {', '.join(tags) or 'none'}"
        )
    if "quick_gelu" in pretrained:
        config["quick_gelu"] = pretrained["quick_gelu"]
    if weights and not pretrained and f"{name}{_QUICK}" in open_clip.list_models():
        config["quick_gelu"] = _quick_gelu(name, weights, tags)
    weights = weights or _download(download_pretrained, pretrained, model)
    return config, pretrained, str(weights), name


def _quick_gelu(name: str, weights: str | Path, tags: Sequence[str]) -> bool:
    """Whether a file of no known tag was trained with QuickGELU; warns where nothing tells."""
    weights = Path(weights).expanduser()
    told = trained_with_quick_gelu(weights) if weights.is_file() else False
    if told is None:
        message = (
            f"clip:{name}:{weights}: the file does not tell whether it was trained with QuickGELU "
            f"(OpenAI's, MetaCLIP's and DFN's were), and is computed without: write "
            f"'clip:{name}{_QUICK}:{weights}' if it was, or name the tag that the file is of, as "
            f"in steer.reward('clip:{name}:{tags[-1] if tags else 'openai'}', checkpoint=FILE)"
        )
        warnings.warn(message, UserWarning, stacklevel=2)
        _log.warning(message)
    return bool(told)


def _folder_config(
    where: str | Path, config: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    model_cfg, preprocess_cfg = config.get("model_cfg", {}), config.get("preprocess_cfg", {})
    if not isinstance(model_cfg, dict) or not isinstance(preprocess_cfg, dict):
        raise CheckpointError(
            f"{_CONFIG} of {str(where)!r}: model_cfg and preprocess_cfg must be JSON objects"
        )
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model_cfg]
    if missing:
        raise CheckpointError(f"{_CONFIG} of {str(where)!r} lacks model_cfg[{missing[0]!r}]")
    return model_cfg, preprocess_cfg


def _folder_weights(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"model folder {str(folder)!r} has no weights: put {_WEIGHTS[0]} there, or pass "
        "checkpoint=FILE"
    )


def _download(fetch: Any, what: Any, model: str, **options: Any) -> str:
    try:
        with quiet():
            return fetch(what, **options)
    except Exception as error:  # the hub's client raises many kinds
        where = what if isinstance(what, str) else what.get("hf_hub") or what.get("url")
        raise CheckpointError(
            f"clip:{model}: cannot get its files from {where!r} ({first_line(error)}). Where there "
            "is a network, download them, then pass checkpoint=FILE, or put them into the Hugging "
            "Face cache of this machine"
        ) from error
