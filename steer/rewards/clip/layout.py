"""CLIP weights from transformers' layout to open_clip's, tensor by tensor.

Both packages hold the same network. transformers keeps query, key and value apart and the two
projections transposed; open_clip keeps them as the original release does. So one set of towers
serves checkpoints of either layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from steer.core.weights.reading import check_unmerged


OPENAI_SIZES = frozenset(("input_resolution", "context_length", "vocab_size"))
"""What the state dicts of OpenAI's own archives hold besides weights."""

_TRANSPOSED = {
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
}
_RENAMED = (
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),  # spelt so in transformers
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"(resblocks\.\d+)\.layer_norm([12])\.", r"\1.ln_\2."),
    (r"(resblocks\.\d+)\.self_attn\.out_proj\.", r"\1.attn.out_proj."),
    (r"(resblocks\.\d+)\.mlp\.fc1\.", r"\1.mlp.c_fc."),
    (r"(resblocks\.\d+)\.mlp\.fc2\.", r"\1.mlp.c_proj."),
)
_THIRD = re.compile(r"^(.*resblocks\.\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$")
_BUFFERS = {"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}


def is_transformers(state: Mapping[str, Tensor]) -> bool:
    """Whether `state` is named as transformers' `CLIPModel` names its tensors."""
    return any(name.startswith(("text_model.", "vision_model.")) for name in state)


def to_open_clip(state: dict[str, Tensor], source: str = "weights") -> dict[str, Tensor]:
    """A `CLIPModel` state dict under open_clip's names; any other is returned as it is.

    Names without a counterpart are kept, so that strict loading reports them. The index buffers
    `position_ids` of old files, and the sizes in OpenAI's, are no weights and are left out.

    Args:
        state: Names and tensors.
        source: What to call the checkpoint in an error.

    Raises:
        CheckpointError: Two tensors stand for one, as where a file holds both layouts.
    """
    if not is_transformers(state):
        sized = state.keys() >= OPENAI_SIZES
        return {k: v for k, v in state.items() if k not in OPENAI_SIZES} if sized else state
    mapped: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    names: dict[str, str] = {}
    for name, value in state.items():
        if name in _BUFFERS:
            continue
        if name in _TRANSPOSED:
            check_unmerged(names, _TRANSPOSED[name], name, source)
            mapped[_TRANSPOSED[name]] = value.T.contiguous()
            continue
        new = _rename(name)
        check_unmerged(names, new, name, source)
        if found := _THIRD.match(new):
            thirds.setdefault(_joined(new), {})[found[2]] = value
        else:
            mapped[new] = value
    for name, parts in thirds.items():
        if name in mapped:
            third = next(old for new, old in names.items() if new != name == _joined(new))
            check_unmerged(names, name, third, source)
        mapped[name] = torch.cat([parts[letter] for letter in "qkv" if letter in parts])
    return mapped


def _joined(name: str) -> str:
    """Where a query, key or value goes, by its name; any other name as it is."""
    return _THIRD.sub(r"\1.attn.in_proj_\3", name)


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
