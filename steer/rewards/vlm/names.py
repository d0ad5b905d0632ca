"""Names of tensors in published checkpoints of Qwen-VL rewards, and low-rank updates made part of
their weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from steer.core.errors import CheckpointError


_OLD = {"visual.": "visual.", "model.": "language_model."}
_NEW = {"model.visual.": "visual.", "model.language_model.": "language_model."}
_PEFT = "base_model.model."
_DOWN, _UP, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."


def head_and_backbone(
    state: Mapping[str, Tensor], prefix: str, lora_scale: float = 0.0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint's tensors under the names of the head and of transformers' `Qwen2VLModel`.

    Both the names of transformers up to 4.51 (`model.layers...`, `visual...`) and the later ones
    (`model.language_model...`, `model.visual...`) are read, and peft's around them. The last layer,
    over the vocabulary, is left out.

    Args:
        state: Names and tensors of the file.
        prefix: Of the head's names.
        lora_scale: By how much low-rank updates are multiplied before they are added.

    Raises:
        CheckpointError: Half a low-rank update, or one that is not expected.
    """
    plain = {name.removeprefix(_PEFT): tensor for name, tensor in state.items()}
    plain = _merged(plain, lora_scale)
    head = {n.removeprefix(prefix): t for n, t in plain.items() if n.startswith(prefix)}
    table = _NEW if any(name.startswith(tuple(_NEW)) for name in plain) else _OLD
    backbone: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        if name.startswith((prefix, "lm_head.")):
            continue
        old = next((start for start in table if name.startswith(start)), "")
        backbone[table.get(old, "") + name.removeprefix(old)] = tensor
    return head, backbone


def _merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The weights with `scale * up @ down` added in float32, in their stored precision."""
    downs = {n.removesuffix(_DOWN): t for n, t in state.items() if n.endswith(_DOWN)}
    ups = {n.removesuffix(_UP): t for n, t in state.items() if n.endswith(_UP)}
    odd = next(iter(downs.keys() ^ ups.keys()), None) or (downs and not scale and next(iter(downs)))
    if odd:
        raise CheckpointError(
            f"the checkpoint has a low-rank update of {odd!r} that cannot be used: it is not the "
            "published layout, pass the published file"
        )
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith((_DOWN, _UP)):
            continue
        plain = name.replace(_BASE, ".")
        layer = plain.removesuffix(".weight")
        if layer in downs and plain != layer:
            update = ups[layer].float() @ downs[layer].float()
            tensor = (tensor.float() + scale * update).to(tensor.dtype)
        merged[plain] = tensor
    return merged
