"""A denoiser's arguments and outputs, split into halves, concatenated and summed with weights.

Pipelines pass tensors, lists of tensors (one per image), dicts and tuples of these; denoisers
return a tensor, a tuple, a list, or one of diffusers' output classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from steer.core.errors import UnsupportedPipelineError
from steer.core.types import wide


_EMBEDDINGS = ("encoder_hidden_states", "pooled_projections", "text_embeds")
_MASKS = ("encoder_attention_mask", "encoder_hidden_states_mask", "attention_mask")


def rows_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Rows of a denoiser call: those of its latents, the first tensor (or list) it is given."""
    return len(_latents_of(args, kwargs))


def has_lists(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a denoiser is given its latents as a list, one entry per row (Z-Image)."""
    return isinstance(_latents_of(args, kwargs), list)


def _latents_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor | list) and not (isinstance(value, Tensor) and not value.ndim):
            return value
    return ()


def halves(value: Any, rows: int) -> tuple[Any, Any]:
    """Both halves of everything that has `rows` rows; all else is in both."""
    if isinstance(value, Tensor):
        if value.ndim and len(value) == rows:
            return value[: rows // 2], value[rows // 2 :]
        return value, value
    if isinstance(value, Mapping):
        pairs = {key: halves(item, rows) for key, item in value.items()}
        return {k: low for k, (low, _) in pairs.items()}, {k: up for k, (_, up) in pairs.items()}
    if isinstance(value, list) and len(value) == rows and isinstance(value[0], Tensor):
        return value[: rows // 2], value[rows // 2 :]
    if isinstance(value, list | tuple):
        cut = [halves(item, rows) for item in value]
        kind = type(value)
        return kind(low for low, _ in cut), kind(up for _, up in cut)
    return value, value


def picked(value: Any, rows: int, index: Sequence[int], lists: bool = False) -> Any:
    """Entries `index` of everything that has `rows` of them; all else as it is.

    A list is one entry per row where it has that many items, and none of them is a batch itself;
    with `lists` also where they look like batches (images of as many channels as there are rows),
    and no tuple is.
    """
    if isinstance(value, Tensor):
        if value.ndim and len(value) == rows:
            chosen = torch.as_tensor(index, dtype=torch.long, device=value.device)
            return _laid_out(value[chosen], value)
        return value
    if isinstance(value, Mapping):
        made = {key: picked(item, rows, index, lists) for key, item in value.items()}
        return made if type(value) is dict else type(value)(**made)
    if isinstance(value, list | tuple):
        if _is_per_row(value, rows, lists):
            return type(value)([value[i] for i in index])
        return type(value)([picked(item, rows, index, lists) for item in value])
    return value


def gathered(answers: Sequence[Any], rows: Sequence[int], lists: bool = False) -> Any:
    """Outputs of several batches as one, row after row; the inverse of `picked`.

    Args:
        answers: Outputs of one structure.
        rows: How many rows each has.
        lists: As in `picked`.
    """
    first = answers[0]
    if len(answers) == 1:
        return first
    if isinstance(first, Tensor):
        per_row = first.ndim and len(first) == rows[0]
        return _laid_out(torch.cat(list(answers)), first) if per_row else first
    if isinstance(first, Mapping):
        return type(first)(**{k: gathered([a[k] for a in answers], rows, lists) for k in first})
    if isinstance(first, list | tuple):
        if _is_per_row(first, rows[0], lists):
            return type(first)([item for answer in answers for item in answer])
        parts = zip(*answers, strict=True)
        return type(first)([gathered(part, rows, lists) for part in parts])
    return first


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """The same values, the axes of a row in memory as in `like`: last digits depend on it.

    (Kernels differ for what is permuted, such as images that a transformer puts together.)
    """
    if like.is_contiguous() or 0 in like.stride():
        return value
    order = [0, *sorted(range(1, like.ndim), key=lambda axis: -like.stride(axis))]
    back = sorted(range(like.ndim), key=order.__getitem__)
    return value.permute(order).contiguous().permute(back)


def moved(value: Any, device: torch.device) -> Any:
    """All tensors of nested arguments on a device; all else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        made = {key: moved(item, device) for key, item in value.items()}
        return made if type(value) is dict else type(value)(**made)
    if isinstance(value, list | tuple):
        return type(value)([moved(item, device) for item in value])
    return value


def _is_per_row(value: list[Any] | tuple[Any, ...], rows: int, lists: bool) -> bool:
    """Whether a list has one entry per row; see `picked`."""
    if len(value) != rows:
        return False
    if lists:
        return isinstance(value, list)
    return not any(isinstance(v, Tensor) and v.ndim and len(v) == rows for v in value)


def is_opaque(value: Any) -> bool:
    """Whether a value holds an object that rows cannot be picked from, such as a cache of keys."""
    if isinstance(value, Mapping):
        return any(map(is_opaque, value.values()))
    if isinstance(value, list | tuple):
        return any(map(is_opaque, value))
    plain = Tensor | nn.Module | torch.Generator | Enum
    return not isinstance(value, plain) and not callable(value) and hasattr(value, "__dict__")


def joined(first: Any, second: Any) -> Any:
    """Two outputs as one, the rows of the first before those of the second."""
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    if isinstance(first, Mapping):
        return type(first)(**{key: joined(first[key], second[key]) for key in first})
    if isinstance(first, list):
        return [*first, *second]
    if isinstance(first, tuple):
        return tuple(joined(a, b) for a, b in zip(first, second, strict=True))
    return first


def weighted(answers: Sequence[Any], weights: Sequence[float]) -> Any:
    """The weighted sum of outputs, in float32 at least; a single one of weight 1 as it is."""
    first = answers[0]
    if len(answers) == 1 and weights[0] == 1:
        return first
    if isinstance(first, Tensor):
        if not first.is_floating_point():
            return first
        total = wide(first) * weights[0]
        for answer, weight in zip(answers[1:], weights[1:], strict=True):
            total = torch.add(total, wide(answer), alpha=weight)
        return total.to(first.dtype)
    if isinstance(first, Mapping):
        return type(first)(**{k: weighted([a[k] for a in answers], weights) for k in first})
    if isinstance(first, list | tuple):
        parts = zip(*answers, strict=True)
        return type(first)(weighted(part, weights) for part in parts)
    return first


def proxied(
    null: Mapping[str, Any], prompt: Mapping[str, Any], alpha: float, blend: str
) -> dict[str, Any]:
    """A null prompt's arguments with `(1 + alpha) * null - alpha * prompt` for its embeddings.

    Args:
        null, prompt: Keyword arguments of the two halves of one batch.
        alpha: The proxy's weight.
        blend: What to call the blend in an error.

    Raises:
        UnsupportedPipelineError: No text embeddings are found, or a mask of tokens, which the two
            prompts would not share.
    """
    masks = [name for name in _MASKS if isinstance(null.get(name), Tensor)]
    if masks or not isinstance(null.get("encoder_hidden_states"), Tensor):
        why = f"it masks tokens ({masks[0]})" if masks else "it has no encoder_hidden_states"
        raise UnsupportedPipelineError(
            f"blend={blend}: a proxy prompt mixes two prompts' embeddings token by token, and this "
            f"denoiser's cannot be: {why}; use steer.denoisers.NegativeGuidance"
        )
    made = dict(null)
    for name, value in null.items():
        other = prompt[name]
        if isinstance(value, Mapping):
            mixed = {k: _mixed(v, other[k], alpha) for k, v in value.items() if k in _EMBEDDINGS}
            made[name] = {**value, **mixed}
        elif name in _EMBEDDINGS:
            made[name] = _mixed(value, other, alpha)
    return made


def _mixed(null: Any, prompt: Any, alpha: float) -> Any:
    return weighted([null, prompt], [1.0 + alpha, -alpha])
