"""Which file of a pipeline's folder is at fault when diffusers cannot load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steer.core.errors import first_line
from steer.core.weights.reading import broken_file, read_json


def fault_of(folder: Path, error: Exception) -> str:
    """The file that makes a folder fail to load, and why, as part of a sentence.

    A file that cannot be read comes first; then the first component that does not load by itself;
    and where all of them do, the `model_index.json` that puts them together.

    Args:
        folder: What `save_pretrained` wrote, with a `model_index.json` in it.
        error: What diffusers raised for the whole.
    """
    broken = broken_file(folder)
    if broken:
        return broken
    index = folder / "model_index.json"
    for name, entry in read_json(index).items():
        fault = "" if name.startswith("_") else _fault_of_component(index, name, entry)
        if fault:
            return fault
    return f"{str(index)!r}: {_said(error)}"


def _fault_of_component(index: Path, name: str, entry: Any) -> str:
    """Why a component does not load; empty where it does, or is a plain setting."""
    is_folder = (index.parent / name).is_dir()
    if not isinstance(entry, list):
        return f"{str(index)!r}: its {name} is {entry!r}" if is_folder else ""
    if len(entry) != 2 or not all(isinstance(part, str) for part in entry):
        return "" if entry == [None, None] else f"{str(index)!r}: its {name} is {entry!r}"
    library, kind = entry
    module, folder = _module(library), index.parent / name
    loader: Any = getattr(module, kind, None)
    if not hasattr(loader, "from_pretrained"):
        what = "that library is not one of a pipeline's" if module is None else "there is none"
        return f"{str(index)!r}: its {name} is {library}.{kind}, and {what}"
    only = {"trust_remote_code": False} if library == "transformers" else {}
    try:
        loader.from_pretrained(folder, local_files_only=True, **only)
    except Exception as error:  # whatever odd values make diffusers and transformers raise
        return f"{_files(folder)}, read as a {kind} as {str(index)!r} says: {_said(error)}"
    return ""


def _module(library: str) -> Any:
    """Where diffusers looks for a component; nothing is imported because a file names it."""
    import diffusers
    import transformers

    known = {"diffusers": diffusers, "transformers": transformers}
    return known.get(library) or getattr(diffusers.pipelines, library, None)


def _files(folder: Path) -> str:
    """A component's configuration, and that it has weights; its folder where it has neither."""
    config = next(iter(sorted(folder.glob("*config.json"))), folder)
    weighed = any(folder.glob("*.safetensors"))
    return f"{str(config)!r}" + (" or the weights beside it" if weighed else "")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
