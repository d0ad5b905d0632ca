"""MPS, the multi-dimensional preference score: a CLIP whose image looks at parts of the prompt.

Zhang et al. 2024 (arXiv:2405.14705); network, mask and score as the reference implementation
(github.com/Kwai-Kolors/MPS, commit 222ec56), weights in the names of imscore's port.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from steer.core.errors import CheckpointError, first_line
from steer.core.weights.hub import locate
from steer.core.weights.reading import fingerprint, load_into, load_state_dict, stamp
from steer.rewards.base import BaseReward, check_batch
from steer.rewards.clip.preprocess import work_dtype
from steer.rewards.clip.tokens import Tokenizer
from steer.rewards.families import FAMILIES
from steer.rewards.models.clip import default_device
from steer.rewards.models.cross import CrossTower
from steer.rewards.models.pickscore import pickscore_preprocess


NAME = "mps"
CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, "
    "structure, instance, texture, quantity, attributes, position, number, location, word, things."
)
"""What the published overall score is asked to look at."""

SIMILAR = 0.01
"""Words of the prompt are looked at whose likeness to the condition is a larger share of the
likest's."""

TOWERS: dict[str, dict[str, Any]] = {
    "text": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    "vision": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "hidden_act": "gelu",
    },
}
WIDTH, LAYERS, HEADS, HEAD_WIDTH = 1024, 4, 16, 64


class MpsNetwork(nn.Module):
    """CLIP's two towers, and layers in which the image's tokens look at the prompt's.

    Args:
        config: Of CLIP.
        heads: Of the added layers.
        head_width: Of these heads.
    """

    def __init__(self, config: CLIPConfig, heads: int, head_width: int) -> None:
        super().__init__()
        self.model = CLIPModel(config)
        width = config.projection_dim or WIDTH
        self.cross_model = CrossTower(width, LAYERS, heads, head_width)

    def words(self, ids: Tensor) -> Tensor:
        """`(B, T)` token ids to the features of every token, `(B, T, D)`."""
        return self.model.text_projection(self.model.text_model(input_ids=ids).last_hidden_state)

    def forward(self, pixels: Tensor, words: Tensor, seen: Tensor) -> Tensor:
        """The image's features `(B, D)`, after it looked at the words that are `seen`.

        Args:
            pixels: `(B, 3, S, S)`, normalised.
            words: `(B, T, D)`.
            seen: `(B, T)` bool.
        """
        tokens = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return self.cross_model(self.model.visual_projection(tokens), words, seen)[:, 0]


class MpsReward(BaseReward):
    """`exp(logit_scale) * cosine` of the prompt and of the image that looked at it; differentiable.

    A prompt's features are computed once.

    Args:
        network: With its weights.
        device: Where it computes.
        dtype: Precision of the network.
        condition: What to look at.
        batch: Most images scored at once.
    """

    name = NAME
    family = FAMILIES[NAME]
    differentiable = True
    needs_prompt = True

    def __init__(
        self,
        network: MpsNetwork,
        device: torch.device,
        dtype: torch.dtype,
        *,
        condition: str = CONDITION,
        batch: int | None = 32,
    ) -> None:
        if not condition.strip():
            raise ValueError("condition is empty: write what to look at, as 'light, color, hands'")
        self.network, self.version = network, fingerprint(network)
        self.device, self.dtype, self.work = device, dtype, work_dtype(dtype)
        self.condition = condition
        self.batch = check_batch(batch)
        vision: Any = network.model.config.vision_config
        self.preprocess = pickscore_preprocess((vision.image_size, vision.image_size))
        self.tokenizer = Tokenizer(open_clip.get_tokenizer("ViT-H-14"))
        self.scale = network.model.logit_scale.to(self.work).exp()
        self.range = (-float(self.scale), float(self.scale))
        self._read = functools.lru_cache(maxsize=512)(self._read_prompt)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pixels = self.preprocess(images.to(self.work)).to(self.dtype)
        read = [self._read(prompt) for prompt in prompts]
        words, whole, seen = (torch.stack(part) for part in zip(*read, strict=True))
        image = self.network(pixels, words, seen).to(self.work)
        return self.scale * F.cosine_similarity(whole.to(self.work), image, dim=-1)

    @torch.no_grad()
    def _read_prompt(self, prompt: str) -> tuple[Tensor, Tensor, Tensor]:
        """A prompt's tokens `(T, D)`, its features `(D,)`, and which tokens are looked at."""
        ids = _padded(self.tokenizer([prompt, self.condition])).to(self.device)
        words, condition = self.network.words(ids)
        likeness = (condition.to(self.work) @ words.to(self.work).T).amax(0)
        return words, words[ids[0].argmax()], likeness / likeness.max() > SIMILAR


def mps(
    *,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 32,
    revision: str | None = None,
    condition: str = CONDITION,
    model_config: Mapping[str, Mapping[str, Any]] | None = None,
) -> MpsReward:
    """MPS: the overall preference score, `exp(logit_scale) * cosine`; some 0 to 15.

    The shortest side is resized to 224 (antialiased bicubic) and the centre is cropped; prompts are
    cut after 75 tokens, with a warning. Differentiable with respect to the images.

    Args:
        checkpoint: A local `.safetensors` or `.pt` with the published names; default the port on
            the hub, whose commit is not pinned.
        device: Default: the accelerator if there is one.
        dtype: Precision of the network; default float32. The cosine is in float32.
        batch: Most images scored at once.
        revision: Commit, tag or branch of the port; default its main branch.
        condition: What to look at, in words; default the published one.
        model_config: For weights of another size: what differs under `"vision"`, `"text"` (names of
            `CLIPConfig`) and `"cross"` (`width`, `heads`, `head_width`).

    Raises:
        ValueError: An empty condition, an unknown part in `model_config`, or `batch` below 1.
        CheckpointError: Weights that cannot be found, read, or do not fit.
    """
    config = {part: dict(values) for part, values in (model_config or {}).items()}
    if not config.keys() <= {"vision", "text", "cross"}:
        raise ValueError(f"model_config has {sorted(config)}: 'vision', 'text' and 'cross' only")
    weights = locate(NAME, checkpoint, revision=revision)
    place, precision = default_device(device), dtype or torch.float32
    shape = json.dumps(config, sort_keys=True)
    network = load_network(weights, stamp(weights), shape, place, precision)
    return MpsReward(network, place, precision, condition=condition, batch=batch)


@functools.lru_cache(maxsize=4)
def load_network(
    path: str, _stamp: tuple[int, int], config: str, device: torch.device, dtype: torch.dtype
) -> MpsNetwork:
    """The network, frozen; once per process for equal arguments.

    Args:
        path: The checkpoint.
        _stamp: Of that file, so that a rewritten one is loaded again.
        config: `model_config` as JSON.
        device: Where it goes.
        dtype: Its precision.

    Raises:
        CheckpointError: Weights that cannot be read, or do not fit.
    """
    with torch.inference_mode(False):
        state = {
            name.removeprefix("mps."): tensor
            for name, tensor in load_state_dict(path).items()
            if not name.endswith("embeddings.position_ids")
        }
        network = _empty(json.loads(config), path)
        load_into(network, state, repr(path), assign=True)
        return network.eval().requires_grad_(False).to(device, dtype)


def _empty(config: Mapping[str, Mapping[str, Any]], path: str) -> MpsNetwork:
    cross = config.get("cross", {})
    towers = {part: TOWERS[part] | dict(config.get(part, {})) for part in TOWERS}
    try:
        clip = CLIPConfig(
            text_config=towers["text"],
            vision_config=towers["vision"],
            projection_dim=cross.get("width", WIDTH),
        )
        with init_empty_weights(include_buffers=False):
            return MpsNetwork(clip, cross.get("heads", HEADS), cross.get("head_width", HEAD_WIDTH))
    except Exception as error:  # whatever odd values make transformers' own code raise
        raise CheckpointError(
            f"no model can be built from model_config={config!r} for {path!r} "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def _padded(ids: Tensor) -> Tensor:
    """Token ids `(B, T)` with the end mark, the largest id, after the end too, as transformers'
    tokenizer of the published CLIP pads them (open_clip pads with 0)."""
    after = torch.arange(ids.shape[1]) > ids.argmax(1, keepdim=True)
    return torch.where(after, ids.amax(1, keepdim=True), ids)
