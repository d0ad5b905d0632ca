"""An open_clip model as two functions: images to features, prompts to features (cached)."""

from __future__ import annotations

import copy
import functools
import json
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from open_clip.convert import convert_state_dict
from torch import Tensor, nn

from steer.core.errors import CheckpointError, first_line
from steer.core.weights.reading import fingerprint, load_into, load_state_dict, stamp
from steer.rewards.clip.layout import to_open_clip
from steer.rewards.clip.preprocess import work_dtype
from steer.rewards.clip.tokens import Tokenizer


if TYPE_CHECKING:
    from steer.rewards.clip.tower import VitTower

_one_at_a_time = Lock()


@dataclass(frozen=True)
class Source:
    """Where an open_clip model comes from; equal sources share one loaded model.

    Attributes:
        config: The model config (`embed_dim`, `vision_cfg`, `text_cfg`, ...) as JSON.
        weights: The checkpoint file.
        tokenizer: Model name for `open_clip.get_tokenizer`; empty for CLIP's own BPE.
        stamp: The file's size and time, so that a rewritten file is loaded again.
    """

    config: str
    weights: str
    tokenizer: str
    stamp: tuple[int, int]

    @classmethod
    def of(cls, config: dict[str, Any], weights: str, tokenizer: str = "") -> Source:
        """From a config as a dict and an existing file."""
        return cls(json.dumps(config, sort_keys=True), weights, tokenizer, stamp(weights))


class Encoder:
    """The towers of one open_clip model, in evaluation mode, frozen.

    Args:
        model: An `open_clip.CLIP`, `CustomTextCLIP` or `CoCa`.
        tokenizer: Its tokenizer.
        device: Where it computes.
        dtype: Precision of the weights; features are always at least float32.
        cache: How many prompts' features are kept (least recently used go first).

    Attributes:
        scale: `exp(logit_scale)`, from the stored precision (bfloat16 would lose a percent of it).
        version: Fingerprint of the weights as stored.
        towers: Its fused image towers, where asked for; see `steer.rewards.fused`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        device: torch.device,
        dtype: torch.dtype,
        cache: int = 4096,
    ) -> None:
        logit_scale = getattr(model, "logit_scale", None)
        self.scale = 1.0 if logit_scale is None else float(logit_scale.detach().double().exp())
        self.version = fingerprint(model)
        self.model: Any = model.eval().requires_grad_(False).to(device, dtype)
        self.tokenizer = tokenizer
        self.device, self.dtype = device, dtype
        self.cache = cache
        self.towers: dict[bool, VitTower] = {}
        self._features: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images the model takes."""
        size = self.model.visual.image_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def images(self, pixels: Tensor) -> Tensor:
        """Preprocessed `(B, 3, *image_size)` to unit features `(B, D)`, differentiable."""
        features = self.model.encode_image(pixels.to(self.dtype), normalize=False)
        return F.normalize(features.to(work_dtype(self.dtype)), dim=-1)

    def prompts(self, prompts: Sequence[str]) -> Tensor:
        """B prompts to unit features `(B, D)`, without gradient; each text is encoded once.

        And each alone: in a batch, its last bits would hang on the other texts, and so on what was
        scored before.
        """
        with _one_at_a_time:  # rewards share encoders, and not every tokenizer bears two threads
            return self._prompts(prompts)

    def _prompts(self, prompts: Sequence[str]) -> Tensor:
        unique = list(dict.fromkeys(prompts))
        known = {p: self._features[p] for p in unique if p in self._features}
        known |= {p: self._encode([p])[0] for p in unique if p not in known}
        for prompt in unique:
            self._features[prompt] = known[prompt]
            self._features.move_to_end(prompt)
        while len(self._features) > self.cache:
            self._features.popitem(last=False)
        row = {prompt: index for index, prompt in enumerate(unique)}
        return torch.stack([known[p] for p in unique])[[row[p] for p in prompts]]

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        # Not in inference mode: cached features would be barred from later backward passes.
        with torch.inference_mode(False), torch.no_grad():
            ids = self.tokenizer(prompts).to(self.device)
            features = self.model.encode_text(ids, normalize=False)
            return F.normalize(features.to(work_dtype(self.dtype)), dim=-1)


@functools.lru_cache(maxsize=16)
def load_encoder(source: Source, device: torch.device, dtype: torch.dtype) -> Encoder:
    """Build and load an open_clip model; once per process for equal arguments.

    The weights may also be those of a transformers `CLIPModel`.

    Raises:
        CheckpointError: The weights cannot be read or do not fit the config.
    """
    with torch.inference_mode(False), quiet():
        tokenizer = _tokenizer(source)
        state = to_open_clip(load_state_dict(source.weights), source.weights)
        model = _model(source, state)
    return Encoder(model, Tokenizer(tokenizer), device, dtype)


def _tokenizer(source: Source) -> Any:
    if source.tokenizer:
        try:
            return open_clip.get_tokenizer(source.tokenizer)
        except Exception as error:  # transformers raises many kinds
            raise CheckpointError(
                f"cannot load the tokenizer of {source.tokenizer!r}: {first_line(error)}. Its "
                "files must lie in the model folder or in the Hugging Face cache, or the hub must "
                "be reachable"
            ) from error
    text = json.loads(source.config).get("text_cfg")
    window = text.get("context_length", 77) if isinstance(text, dict) else 77
    return open_clip.SimpleTokenizer(context_length=window)


def _model(source: Source, state: dict[str, Tensor]) -> nn.Module:
    try:
        return _build(json.loads(source.config), state, source.weights)
    except CheckpointError:
        raise
    except Exception as error:  # whatever odd values make open_clip's own code raise
        raise CheckpointError(
            f"no model can be built from the configuration for {source.weights!r} "
            f"({type(error).__name__}: {first_line(error)}): it needs embed_dim, vision_cfg and "
            "text_cfg as open_clip writes them"
        ) from error


def _build(config: dict[str, Any], state: dict[str, Tensor], source: str) -> nn.Module:
    """The model of an open_clip config with its weights; plain CLIP is never initialised twice."""
    config = copy.deepcopy(config)
    config["vision_cfg"]["timm_model_pretrained"] = False
    config["text_cfg"]["hf_model_pretrained"] = False
    custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    if custom or "timm_model_name" in config["vision_cfg"]:
        kind = CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
        model: Any = (kind if custom else open_clip.CLIP)(**config)
        load_into(model, convert_state_dict(model, state), repr(source))
        return model
    with torch.device("meta"):
        model = open_clip.CLIP(**config)
    load_into(model, convert_state_dict(model, state), repr(source), assign=True)
    if model.attn_mask is not None:  # the only tensor that checkpoints leave out
        window = model.context_length
        model.attn_mask = torch.full((window, window), float("-inf")).triu_(1)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps open_clip's log lines, and the root handler they would install, to itself."""
    root, before = logging.getLogger(), logging.root.manager.disable
    guard = logging.NullHandler()
    root.addHandler(guard)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(guard)
