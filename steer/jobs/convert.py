"""Reward weights from a torch pickle to safetensors, once: a format that cannot hold code."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from safetensors.torch import save_file
from torch import Tensor

from steer.core.errors import CheckpointError, first_line
from steer.core.files.atomic import file_sha256, replacement
from steer.core.files.versions import versions
from steer.core.weights.reading import load_into, load_state_dict
from steer.rewards.clip.encoder import quiet
from steer.rewards.clip.layout import to_open_clip


ANY = "any"
ARCHITECTURES = {"hpsv2": "ViT-H-14", "hpsv2.0": "ViT-H-14", "hpsv2.1": "ViT-H-14"}
"""Rewards whose weights can be checked before they are written, and their open_clip models."""


@dataclass(frozen=True)
class Converted:
    """A finished conversion.

    Attributes:
        path: The new file.
        tensors: How many it holds.
        parameters: How many numbers these hold.
        dtypes: Their precisions, as `"float16"`.
        size_bytes: Its size.
        sha256: Of the file it was made from, in hexadecimal.
    """

    path: Path
    tensors: int
    parameters: int
    dtypes: tuple[str, ...]
    size_bytes: int
    sha256: str


def convert(
    source: str | Path,
    target: str | Path,
    *,
    reward: str = ANY,
    force: bool = False,
    model_config: Mapping[str, Any] | None = None,
) -> Converted:
    """Write the tensors of a checkpoint as `.safetensors`, in their stored precision.

    The pickle is read with `weights_only=True`: nothing in it is run. The file appears in one step,
    so that an interruption leaves none, or the old one. Its metadata holds `source` (the name of
    the file it was made from), `sha256` (of that file), `steer` (this version) and `reward`.

    Args:
        source: A torch pickle, its tensors on top or under `state_dict`; or a `.safetensors`.
        target: The file to write.
        reward: Whose weights they are, one of `ARCHITECTURES`: names and shapes of all tensors are
            checked against its model before anything is written. `"any"` does not check.
        force: Replace an existing file.
        model_config: Another open_clip model config to check against.

    Returns:
        What was written.

    Raises:
        ValueError: An unknown reward, a target that exists, is the source, lies in no folder or
            does not end in `.safetensors`.
        CheckpointError: The source is missing, corrupt, truncated, needs code to load, or does not
            fit the reward's model.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    _check(source, target, reward, force)
    state = load_state_dict(source)
    _check_dense(state, source)
    check_weights(state, reward, str(source), model_config)
    digest = file_sha256(source)
    metadata = {
        "format": "pt",
        "source": source.name,
        "sha256": digest,
        "steer": versions()["steer"],
    }
    _save(state, target, metadata | {"reward": reward})
    return Converted(
        path=target,
        tensors=len(state),
        parameters=sum(tensor.numel() for tensor in state.values()),
        dtypes=tuple(sorted({str(t.dtype).removeprefix("torch.") for t in state.values()})),
        size_bytes=target.stat().st_size,
        sha256=digest,
    )


def check_weights(
    state: Mapping[str, Tensor],
    reward: str,
    source: str = "weights",
    model_config: Mapping[str, Any] | None = None,
) -> None:
    """See that tensors have the names and shapes of a reward's model, which is not materialised.

    Args:
        state: Names and tensors, in open_clip's or transformers' layout.
        reward: One of `ARCHITECTURES`, or `"any"`, which fits everything.
        source: What to call them in an error.
        model_config: Another open_clip model config, in place of the reward's.

    Raises:
        CheckpointError: Missing or unexpected tensors, or other shapes; the first are named.
    """
    if reward == ANY:
        return
    config = model_config or open_clip.get_model_config(ARCHITECTURES[reward]) or {}
    with quiet(), torch.device("meta"):
        model = open_clip.CLIP(**copy.deepcopy(dict(config)))
    weights = convert_state_dict(model, to_open_clip(dict(state), source))
    load_into(model, weights, f"{source!r} ({reward})", assign=True)


def _check(source: Path, target: Path, reward: str, force: bool) -> None:
    if reward != ANY and reward not in ARCHITECTURES:
        raise ValueError(
            f"reward={reward!r}: one of {', '.join(map(repr, ARCHITECTURES))}, or {ANY!r} to "
            "convert without checking what it is"
        )
    if target.suffix != ".safetensors":
        raise ValueError(f"target={str(target)!r}: name a file that ends in .safetensors")
    if not target.parent.is_dir():
        raise ValueError(f"target={str(target)!r}: there is no folder {str(target.parent)!r}")
    if not target.exists():
        return
    if target.is_dir() or (source.exists() and target.samefile(source)):
        what = "is a folder" if target.is_dir() else "is the source itself"
        raise ValueError(f"target={str(target)!r} {what}: name another file")
    if not force:
        raise ValueError(f"target={str(target)!r} exists: pass force (--force) to replace it")


def _check_dense(state: Mapping[str, Tensor], source: Path) -> None:
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            raise CheckpointError(
                f"checkpoint {str(source)!r}: its tensor {name!r} is sparse, quantised or nested, "
                "and safetensors holds dense ones only: save it again as a dense tensor"
            )


def _save(state: Mapping[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
    """Write beside the name, then rename over it."""
    try:
        with replacement(target) as temporary:
            save_file(_unshare(state), temporary, metadata)
    except (ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"target={str(target)!r}: cannot be written as safetensors ({first_line(error)}): only "
            "dense tensors can"
        ) from error


def _unshare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each with memory of its own, which the format asks for; copied where needed."""
    seen: set[int] = set()
    made = {}
    for name, tensor in state.items():
        memory = tensor.untyped_storage()
        whole = tensor.is_contiguous() and memory.nbytes() == tensor.numel() * tensor.element_size()
        alone = whole and memory.data_ptr() not in seen
        seen.add(memory.data_ptr())
        made[name] = tensor if alone else tensor.clone(memory_format=torch.contiguous_format)
    return made
