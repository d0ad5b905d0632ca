"""Rewards on `BlipScorer`: prompts to token ids, published files to a loaded network, scores."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer

from steer.core.errors import CheckpointError, first_line
from steer.core.weights.hub import fetch, locate
from steer.core.weights.reading import fingerprint, load_state_dict, stamp
from steer.rewards.base import BaseReward, check_batch
from steer.rewards.clip.preprocess import Preprocess, work_dtype
from steer.rewards.families import family_of
from steer.rewards.models.blip import BlipScorer, Head, build
from steer.rewards.models.clip import default_device


_one_at_a_time = Lock()


@dataclass(frozen=True)
class Scale:
    """What tells the scores of one BLIP reward from those of another.

    Attributes:
        window: Tokens that the text encoder is given, the first and the last mark included.
        mean, std: Score x of the network becomes `(x - mean) / std`.
    """

    window: int
    mean: float = 0.0
    std: float = 1.0


class BlipReward(BaseReward):
    """The number that a BLIP with a head makes of an image and a prompt; unbounded.

    Differentiable with respect to the images. The text encoder attends to the image in every layer,
    so only the token ids of a prompt can be kept, not its features: each image costs one pass
    through both towers. The head computes in float32 whatever the precision of the rest.

    Args:
        name: Short name.
        model: The network, with its weights.
        tokenizer: BERT's, with `[DEC]` and `[ENC]` added.
        scale: Length of the prompts, and scale of the scores.
        device: Where it computes.
        dtype: Precision of the two towers.
        batch: Most images scored at once.
    """

    differentiable = True
    needs_prompt = True

    def __init__(
        self,
        name: str,
        model: BlipScorer,
        tokenizer: Any,
        scale: Scale,
        device: torch.device,
        dtype: torch.dtype,
        *,
        batch: int | None = 32,
    ) -> None:
        self.name, self.family, self.scale = name, family_of(name), scale
        self.model, self.version = model, fingerprint(model)
        self.tokenizer = tokenizer
        self.device, self.dtype = device, dtype
        self.batch = check_batch(batch)
        self.preprocess = Preprocess(size=model.image_size)
        self._tokens = functools.lru_cache(maxsize=4096)(self._tokenise)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pixels = self.preprocess(images.to(work_dtype(self.dtype))).to(self.dtype)
        ids, mask = torch.stack([self._tokens(prompt) for prompt in prompts], 1)
        return (self.model(pixels, ids, mask) - self.scale.mean) / self.scale.std

    def _tokenise(self, prompt: str) -> Tensor:
        """Token ids and mask of one prompt, `(2, window)` int64."""
        window = self.scale.window
        options = {"padding": "max_length", "truncation": True, "max_length": window}
        with _one_at_a_time:  # fast tokenizers keep padding and truncation in themselves
            self._warn_if_cut(prompt)
            tokens = self.tokenizer(prompt, **options)
        with torch.inference_mode(False):
            return torch.tensor([tokens.input_ids, tokens.attention_mask], device=self.device)

    def _warn_if_cut(self, prompt: str) -> None:
        ids = self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        room = self.scale.window - self.tokenizer.num_special_tokens_to_add()
        if len(ids) > room:
            warnings.warn(
                f"the prompt has {len(ids)} tokens, {self.name} reads {room}; cut off: "
                f"{self.tokenizer.decode(ids[room:])!r} (prompt: {prompt!r})",
                stacklevel=2,
            )


def open_blip(
    name: str,
    head: Head,
    scale: Scale,
    *,
    checkpoint: str | Path | None = None,
    tokenizer: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 32,
    revision: str | None = None,
    model_config: Mapping[str, Mapping[str, Any]] | None = None,
) -> BlipReward:
    """A reward from a published file, or from a local one of its layout.

    Args:
        name: Of the reward, and of its published file in `steer.core.weights.hub.FILES`.
        head: The file's head.
        scale: Length of the prompts, and scale of the scores.
        checkpoint, tokenizer, device, dtype, batch, revision, model_config: As for `imagereward`.

    Raises:
        ValueError: An unknown part in `model_config`, or `batch` below 1.
        CheckpointError: Weights or a tokenizer that cannot be found, read, or do not fit.
    """
    config = {part: dict(values) for part, values in (model_config or {}).items()}
    if not config.keys() <= {"vision", "text"}:
        raise ValueError(f"model_config has the parts {sorted(config)}: 'vision' and 'text' only")
    weights = locate(name, checkpoint, revision=revision)
    vocabulary = Path(tokenizer or fetch("bert-base-uncased", option="tokenizer")).expanduser()
    if not vocabulary.exists():
        raise CheckpointError(f"tokenizer={str(vocabulary)!r} does not exist: {_BERT}")
    stamps = (stamp(weights), stamp(vocabulary))
    shape = json.dumps(config, sort_keys=True)
    source = Source(weights, str(vocabulary), shape, stamps, head)
    place, precision = default_device(device), dtype or torch.float32
    model, words = load_scorer(source, place, precision)
    return BlipReward(name, model, words, scale, place, precision, batch=batch)


@dataclass(frozen=True)
class Source:
    """Where a scorer comes from; equal sources share one loaded model.

    Attributes:
        weights: The checkpoint file.
        tokenizer: A folder, or a `vocab.txt`.
        config: `model_config` as JSON.
        stamps: Sizes and times of the two, so that rewritten files are loaded again.
        head: The layers behind the first token.
    """

    weights: str
    tokenizer: str
    config: str
    stamps: tuple[tuple[int, int], ...]
    head: Head


@functools.lru_cache(maxsize=8)
def load_scorer(
    source: Source, device: torch.device, dtype: torch.dtype
) -> tuple[BlipScorer, BertTokenizer]:
    """The network, frozen, and its tokenizer; once per process for equal arguments.

    Raises:
        CheckpointError: Weights or a tokenizer that cannot be read, or do not fit.
    """
    config = json.loads(source.config)
    with torch.inference_mode(False):
        state = load_state_dict(source.weights)
        model = _model(source, state, config)
        model = model.eval().requires_grad_(False).to(device, dtype)
        model.head.to(work_dtype(dtype))
    return model, _tokenizer(source.tokenizer, model.text.config.vocab_size)


def _model(
    source: Source, state: dict[str, Tensor], config: Mapping[str, Mapping[str, Any]]
) -> BlipScorer:
    parts = config.get("vision", {}), config.get("text", {})
    try:
        return build(state, repr(source.weights), *parts, source.head)
    except CheckpointError:
        raise
    except Exception as error:  # whatever odd values make transformers' own code raise
        raise CheckpointError(
            f"no model can be built from model_config={config!r} for {source.weights!r} "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def _tokenizer(path: str, size: int) -> BertTokenizer:
    try:
        tokenizer = BertTokenizer.from_pretrained(path)
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(
            f"tokenizer={path!r} cannot be read ({first_line(error)}): {_BERT}"
        ) from error
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    if len(tokenizer) != size:
        raise CheckpointError(
            f"tokenizer={path!r} has {len(tokenizer)} tokens with [DEC] and [ENC], the weights "
            f"have {size}: {_BERT}"
        )
    return tokenizer


_BERT = "pass a folder with the tokenizer of google-bert/bert-base-uncased, or its vocab.txt"
