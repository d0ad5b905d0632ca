"""Reading weights: no code in a file is ever run; errors name the tensors that do not fit."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from steer.core.errors import CheckpointError, first_line


_SHOWN = 3
_SAMPLED = 32


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU, in their stored precision.

    `.safetensors`, or a torch pickle, which is read with `weights_only=True` and may keep its
    tensors under the key `state_dict`. A prefix `module.` or `model.` of all names is removed.

    Raises:
        CheckpointError: The file is missing, corrupt, truncated, needs code to load, or holds no
            tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint {str(path)!r} {what}: pass a .safetensors or .pt file")
    state = _read(path)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"checkpoint {str(path)!r} holds no tensors ({type(state).__name__})")
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is not a state dict: {odd[0]!r} is a "
            f"{type(state[odd[0]]).__name__}; save model.state_dict(), or it under 'state_dict'"
        )
    names: dict[str, Any] = {}
    for name in state:
        check_unmerged(names, str(name), name, str(path))
    return _without_prefix({str(name): value for name, value in state.items()})


def load_shards(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of one checkpoint in several files; see `load_state_dict`.

    Raises:
        CheckpointError: A file that cannot be read, or a tensor that is in two of them.
    """
    state: dict[str, Tensor] = {}
    homes: dict[str, Path] = {}
    for path in paths:
        shard = load_state_dict(path)
        twice = next((name for name in shard if name in homes), None)
        if twice is not None:
            raise CheckpointError(
                f"the tensor {twice!r} is in two shards, {str(homes[twice])!r} and {str(path)!r}, "
                "and one of them would be lost: download or copy the checkpoint again"
            )
        state |= shard
        homes |= dict.fromkeys(shard, path)
    return state


def check_unmerged(names: dict[str, Any], new: str, old: Any, source: str) -> None:
    """Note that the tensor `old` is called `new`; CheckpointError if another one is so called.

    Args:
        names: What was noted so far, old names by new ones; `old` is added.
        new: The name that is used.
        old: The name in the file.
        source: What to call the checkpoint in an error.
    """
    if new in names:
        raise CheckpointError(
            f"checkpoint {source!r}: its tensors {names[new]!r} and {old!r} are both read as "
            f"{new!r}, and one of them would be lost: remove the one that is not meant"
        )
    names[new] = old


def load_into(
    module: nn.Module, state: Mapping[str, Tensor], source: str, *, assign: bool = False
) -> None:
    """Load `state` into `module`, strictly.

    Args:
        module: Receives the weights.
        state: Names and tensors.
        source: What to call the checkpoint in an error.
        assign: Take the tensors themselves instead of copying (needed on the meta device).

    Raises:
        CheckpointError: Missing or unexpected tensors, or other shapes; the first are named.
    """
    own = module.state_dict()
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": shapes,
    }
    found = [f"{len(v)} {kind} ({_first(v)})" for kind, v in problems.items() if v]
    if found:
        raise CheckpointError(
            f"checkpoint {source} does not fit the model ({type(module).__name__}): "
            f"{'; '.join(found)}. It was made for another architecture: pass the matching file, or "
            "the matching model"
        )
    module.load_state_dict(state, strict=True, assign=assign)


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: The file is missing or is not a JSON object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read the configuration {str(path)!r}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"configuration {str(path)!r} is not a JSON object")
    return value


def broken_file(folder: str | Path) -> str:
    """The first JSON or safetensors file below `folder` that cannot be read, as a sentence.

    Empty where all can: what other libraries say of a model's folder seldom names the file.
    """
    for path in sorted(Path(folder).rglob("*")):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
            elif path.name.endswith(("config.json", "index.json")):
                read_json(path)
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
        except CheckpointError as error:
            return str(error)
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            return f"{str(path)!r} is corrupt or truncated: {first_line(error)}"
    return ""


def fingerprint(*tensors: Mapping[str, Tensor] | nn.Module) -> str:
    """Twelve hexadecimal digits that identify weights.

    A hash of every tensor's name, shape and some evenly spaced values: fast for models of any size,
    and equal for equal values stored in another dtype.
    """
    digest = hashlib.sha256()
    for part in tensors:
        state = part.state_dict() if isinstance(part, nn.Module) else part
        for name, value in sorted(state.items()):
            flat = value.detach().flatten()
            some = flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].float().cpu()
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(some.numpy().tobytes())
    return digest.hexdigest()[:12]


def stamp(path: str | Path) -> tuple[int, int]:
    """Size and modification time, to notice that a file was rewritten since it was loaded."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _read(path: Path) -> Any:
    way_out = "download or copy it again and compare its size with the original"
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, ValueError, OSError) as error:
            raise CheckpointError(
                f"checkpoint {str(path)!r} is corrupt or truncated ({error}): {way_out}"
            ) from error
    if _is_torchscript(path):
        raise CheckpointError(
            f"checkpoint {str(path)!r} is a TorchScript archive, a program that steer does not "
            "run: where you trust it, save its weights with "
            "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'weights.pt')"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is corrupt, or holds more than tensors, which is not loaded "
            f"because it would run code from the file ({first_line(error)}): {way_out}, or save "
            "its state dict as .safetensors where you trust it"
        ) from error
    except Exception as error:  # torch.load raises whatever the damage makes it raise
        raise CheckpointError(
            f"checkpoint {str(path)!r} is corrupt or truncated ({first_line(error)}): {way_out}"
        ) from error


def _is_torchscript(path: Path) -> bool:
    """Whether a file is what `torch.jit.save` writes: a zip file with code in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in ("module.", "model."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _first(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (", ..." if len(items) > _SHOWN else "")
