"""Write a trained open_clip model as a folder that open_clip itself loads, offline.

The folder holds `open_clip_config.json`, `open_clip_model.safetensors` and the tokenizer's files:
`open_clip.create_model_and_transforms("local-dir:FOLDER")` and `open_clip.get_tokenizer(...)` work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


def write_open_clip_folder(
    folder: str | Path,
    model: nn.Module,
    model_cfg: dict[str, Any],
    preprocess_cfg: dict[str, Any],
    tokenizer: Any,
    *,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write `model` and all that is needed to use it; returns the folder.

    Args:
        folder: Created if missing; files of the same names are overwritten.
        model: The `open_clip.CLIP` built from `model_cfg`.
        model_cfg: `embed_dim`, `vision_cfg`, `text_cfg`, as open_clip's own model configs. The
            tokenizer's name and, where left out, its vocabulary size are filled in.
        preprocess_cfg: `mean`, `std` and optionally `interpolation` ("bicubic", "bilinear"),
            `resize_mode` ("shortest", "longest", "squash"), `fill_color`; the size is the model's.
        tokenizer: A transformers tokenizer (`CLIPTokenizer`) whose end token ends every text.
        dtype: Stored precision of the floating-point weights.

    Raises:
        ValueError: `tokenizer` and `model_cfg` contradict each other.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model_cfg = _complete(model_cfg, tokenizer)
    config = {"model_cfg": model_cfg, "preprocess_cfg": _plain(preprocess_cfg)}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {name: _stored(value, dtype) for name, value in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    window, tokenizer.model_max_length = (
        tokenizer.model_max_length,
        model_cfg["text_cfg"]["context_length"],
    )
    tokenizer.save_pretrained(folder)
    tokenizer.model_max_length = window
    return folder


def _complete(model_cfg: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    cfg = json.loads(json.dumps(model_cfg))
    text = cfg["text_cfg"]
    text.setdefault("context_length", 77)
    text.setdefault("vocab_size", len(tokenizer))
    # open_clip looks for a transformers tokenizer only if this is set; from a local folder it then
    # always takes the folder's own files, whatever the name says.
    text.setdefault("hf_tokenizer_name", "openai/clip-vit-base-patch32")
    if len(tokenizer) > text["vocab_size"]:
        raise ValueError(
            f"tokenizer has {len(tokenizer)} tokens, model_cfg['text_cfg']['vocab_size'] is "
            f"{text['vocab_size']}: build the model with vocab_size={len(tokenizer)}"
        )
    pool, end = text.get("pool_type", "argmax"), tokenizer.eos_token_id
    if pool == "argmax" and end != max(tokenizer.get_vocab().values()):
        raise ValueError(
            f"tokenizer.eos_token_id={end} is not the highest id, which text pool_type 'argmax' "
            f"takes as the end: put the end token last, or set pool_type='eos', eos_id={end}"
        )
    if pool == "eos" and text.get("eos_id") != end:
        raise ValueError(
            f"model_cfg['text_cfg']['eos_id']={text.get('eos_id')}, but the tokenizer's "
            f"eos_token_id={end}: set eos_id={end}"
        )
    return cfg


def _plain(cfg: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in cfg.items()}


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    value = value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype)
    return value.clone().contiguous()
