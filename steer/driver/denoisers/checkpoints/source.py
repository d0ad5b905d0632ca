"""Finding a checkpoint's files: in a folder, or downloaded from a repository on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
from safetensors import SafetensorError, safe_open

from steer.core.errors import CheckpointError, first_line
from steer.core.weights.reading import read_json
from steer.driver.denoisers.checkpoints.known import Checkpoint, at_home, is_repository


PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_DENOISER = ("diffusion_pytorch_model", "model")
_LORA = ("pytorch_lora_weights", "adapter_model")
_MARKS = ("lora_", ".lora", "_lora", "lokr_", "hada_", "dora_scale")
_INDEX = ".safetensors.index.json"
_WHOLE = ("model.diffusion_model.", "cond_stage_model.", "first_stage_model.")


@dataclass(frozen=True)
class Found:
    """Files of one checkpoint.

    Attributes:
        kind: `"denoiser"` or `"lora"`.
        files: The safetensors, all shards of them.
        config: The denoiser's `config.json`, or a LoRA's `adapter_config.json`, where there is one.
    """

    kind: str
    files: tuple[Path, ...]
    config: Path | None = None


def find(checkpoint: Checkpoint, component: str, label: str) -> Found:
    """The files of a checkpoint, downloaded if they are on the hub and not cached.

    Args:
        checkpoint: Where to look.
        component: What the pipeline calls its denoiser, `"unet"` or `"transformer"`.
        label: What to call the checkpoint in errors.

    Raises:
        CheckpointError: There is nothing, only pickles, or several files and none named; or it is
            not cached and there is no network. The message says what to do.
    """
    path = at_home(checkpoint.source)
    if path.is_file():
        return _of_file(path, checkpoint, label)
    if path.is_dir():
        names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        return _of_folder(path, choose(names, checkpoint, component, label), checkpoint, label)
    if isinstance(checkpoint.source, Path) or not is_repository(checkpoint.source):
        raise CheckpointError(f"tuned={label!r}: there is no such file or folder")
    return _of_repository(str(checkpoint.source), checkpoint, component, label)


def choose(
    names: Sequence[str], checkpoint: Checkpoint, component: str, label: str
) -> tuple[str, ...]:
    """Which files of a folder or repository to read: weights first, then their configuration.

    Args:
        names: All files, as relative POSIX paths.
        checkpoint: With its subfolder, file and kind.
        component: The pipeline's name for its denoiser.
        label: What to call the checkpoint in errors.
    """
    given = checkpoint.subfolder
    folders = [given] if given is not None else [component, ""]
    for folder in folders:
        here = [name for name in names if _folder(name) == folder.strip("/")]
        weights = _weights(here, checkpoint, label)
        if weights:
            configs = ("adapter_config.json",) if _is_lora(weights[0]) else ("config.json",)
            return (*weights, *(n for n in here if PurePosixPath(n).name in configs))
    here = [name for name in names if _folder(name) in folders]
    pickles = [name for name in here if name.lower().endswith(PICKLES)]
    if pickles:
        raise CheckpointError(refusal(label, pickles[0]))
    where = " or ".join(repr(folder) if folder else "at its top" for folder in folders)
    raise CheckpointError(
        f"tuned={label!r}: no safetensors in {where} (it has {_some(names)}); name the place with "
        "steer.denoisers.Checkpoint(source, subfolder='...', file='...')"
    )


def refusal(label: str, name: str) -> str:
    """The error for a pickle: why it is not read, and what to do."""
    target = PurePosixPath(name).with_suffix(".safetensors")
    return (
        f"tuned={label!r}: {name!r} is a pickle, which can run code when it is loaded; convert it "
        f"once with `steer convert any {name} {target}` (tensors only, nothing in it is run) and "
        "pass the new file, or its folder"
    )


def keys_of(path: Path, label: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, without its tensors.

    Raises:
        CheckpointError: Corrupt or truncated.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"tuned={label!r}: {str(path)!r} is corrupt or truncated ({error}): download or copy "
            "it again and compare its size with the original"
        ) from error


def _of_file(path: Path, checkpoint: Checkpoint, label: str) -> Found:
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(refusal(label, str(path)))
    if path.suffix != ".safetensors":
        raise CheckpointError(f"tuned={label!r}: not a .safetensors file, which is what is read")
    config = path.with_name("adapter_config.json" if _is_lora(path.name) else "config.json")
    return _kind((path,), config if config.is_file() else None, checkpoint, label)


def _of_folder(root: Path, names: Sequence[str], checkpoint: Checkpoint, label: str) -> Found:
    index = next((root / name for name in names if name.endswith(_INDEX)), None)
    files = [root / name for name in names if name.endswith(".safetensors")]
    if index is not None:
        files = _shards(index, label)
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise CheckpointError(f"tuned={label!r}: its shard {(missing or ['?'])[0]!r} is missing")
    configs = (root / n for n in names if n.endswith("config.json"))
    return _kind(tuple(files), next(configs, None), checkpoint, label)


def _shards(index: Path, label: str) -> list[Path]:
    """The files that an index names, all of them beside it."""
    table = read_json(index).get("weight_map")
    found = list(table.values()) if isinstance(table, dict) else []
    names = {name for name in found if isinstance(name, str) and Path(name).name == name}
    if not names or any(name not in names for name in map(str, found)):
        raise CheckpointError(
            f"tuned={label!r}: the index {str(index)!r} has no weight_map from tensors to files "
            "beside it: download or copy it again"
        )
    return [index.with_name(name) for name in sorted(names)]


def _kind(
    files: tuple[Path, ...], config: Path | None, checkpoint: Checkpoint, label: str
) -> Found:
    keys = keys_of(files[0], label)
    lora = any(mark in key for key in keys for mark in _MARKS)
    if any(key.startswith(_WHOLE) for key in keys) and not lora:
        raise CheckpointError(
            f"tuned={label!r} is a whole pipeline in the original layout, in one file: load it "
            "with diffusers' from_single_file, write pipe.save_pretrained('folder'), and pass "
            "that folder"
        )
    kind = "lora" if lora else "denoiser"
    if checkpoint.kind not in ("auto", kind):
        raise CheckpointError(
            f"tuned={label!r}: kind={checkpoint.kind!r}, and its tensors "
            f"({_some(list(keys))}) are those of a {kind}; leave kind out"
        )
    if kind == "denoiser" and checkpoint.weight != 1:
        raise CheckpointError(
            f"tuned={label!r}: weight={checkpoint.weight!r} is a LoRA's strength, and this is a "
            f"whole denoiser: blend it with blend=steer.RLG({checkpoint.weight!r})"
        )
    return Found(kind, files, config)


def _of_repository(source: str, checkpoint: Checkpoint, component: str, label: str) -> Found:
    revision = checkpoint.revision
    try:
        if HF_HUB_OFFLINE:
            root = Path(snapshot_download(source, revision=revision, local_files_only=True))
        else:
            names = HfApi().list_repo_files(source, revision=revision)
            chosen = choose(names, checkpoint, component, label)
            wanted = [*chosen, *_shard_pattern(chosen)]
            root = Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
    except CheckpointError:
        raise
    except Exception as error:  # the hub's client raises many kinds
        folder = component if checkpoint.subfolder is None else checkpoint.subfolder
        only = f" --include '{folder}/*'" if folder and checkpoint.kind == "denoiser" else ""
        only = f" {checkpoint.file}" if checkpoint.file else only
        raise CheckpointError(
            f"tuned={label!r}: not in the cache, and it cannot be downloaded "
            f"({type(error).__name__}: {first_line(error)}): where there is a network, run "
            f"`hf download {source}{only} --local-dir DIR`, then pass the folder, or copy the "
            f"cache folder to {HF_HUB_CACHE} on this machine"
        ) from error
    names = [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]
    return _of_folder(root, choose(names, checkpoint, component, label), checkpoint, label)


def _shard_pattern(chosen: Sequence[str]) -> list[str]:
    """A pattern for shards, whose names are in an index that is not downloaded yet."""
    indices = (name.removesuffix(_INDEX) for name in chosen if name.endswith(_INDEX))
    return [f"{stem}-*.safetensors" for stem in indices]


def _weights(here: Sequence[str], checkpoint: Checkpoint, label: str) -> list[str]:
    """The weights' files of one folder, or their index; nothing where there are none."""
    if checkpoint.file is not None:
        named = [name for name in here if PurePosixPath(name).name == checkpoint.file]
        if named and checkpoint.file.lower().endswith(PICKLES):
            raise CheckpointError(refusal(label, named[0]))
        return named
    known = (*_LORA, *_DENOISER) if checkpoint.kind == "lora" else (*_DENOISER, *_LORA)
    for stem in known:
        for ending in (_INDEX, ".safetensors", ".fp16.safetensors"):
            found = [name for name in here if PurePosixPath(name).name == f"{stem}{ending}"]
            if found:
                return found
    rest = [name for name in here if name.endswith(".safetensors")]
    if len(rest) > 1:
        raise CheckpointError(
            f"tuned={label!r}: has several weights ({_some(rest)}): name one with "
            f"steer.denoisers.Checkpoint({str(checkpoint.source)!r}, file='...')"
        )
    return rest


def _is_lora(name: str) -> bool:
    return PurePosixPath(name).name.startswith(_LORA)


def _folder(name: str) -> str:
    parent = str(PurePosixPath(name).parent)
    return "" if parent == "." else parent


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:4])
    return f"{shown}, ..." if len(names) > 4 else shown or "no files"
