"""A pipeline by name or path, as commands and configuration files give it."""

from __future__ import annotations

import inspect
from pathlib import Path
from traceback import clear_frames
from typing import Any

import torch
from packaging.version import Version

from steer.core.errors import PipelineNotFoundError, first_line
from steer.jobs.pipeline_faults import fault_of
from steer.shapes.worlds import NAMES, STEPS, pipeline as shapes_pipeline


def load_pipeline(name: str, device: str, dtype: torch.dtype) -> Any:
    """A pipeline of the bundled world, one from a folder, or one from the hub.

    Raises:
        PipelineNotFoundError: There is none, or it cannot be loaded.
    """
    if name in NAMES:
        pipe = shapes_pipeline(NAMES[name], device)
        return pipe if dtype == torch.float32 else pipe.to(dtype)
    import diffusers
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise PipelineNotFoundError(
            f"pipeline={name!r}: this folder holds no model_index.json; name the folder that "
            "`save_pretrained` wrote"
        )
    if not folder.is_dir() and name.count("/") != 1:
        raise PipelineNotFoundError(
            f"pipeline={name!r}: unknown; there is {', '.join(map(repr, NAMES))}, a folder with a "
            "model_index.json, or a hub id such as 'stabilityai/stable-diffusion-xl-base-1.0'"
        )
    key = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
    try:
        pipe = DiffusionPipeline.from_pretrained(
            str(folder) if folder.is_dir() else name, **{key: dtype}
        )
    except Exception as error:  # whatever a damaged file makes diffusers and transformers raise
        where = "cannot be loaded" if folder.is_dir() else "neither a folder nor found on the hub"
        clear_frames(error.__traceback__)  # they hold the components that did load
        said = f"{type(error).__name__}: {first_line(error)}"
        why = fault_of(folder, error) if folder.is_dir() else said
        raise PipelineNotFoundError(f"pipeline={name!r}: {where} ({why})") from error
    return pipe.to(device)


def dtype_of(name: str, device: str, pipeline: str) -> torch.dtype:
    """The precision a pipeline runs in: as named, or half on a GPU for `"auto"`."""
    if name == "auto":
        half = device.startswith("cuda") and pipeline not in NAMES
        return torch.float16 if half else torch.float32
    known = ("float32", "float16", "bfloat16")
    if name not in known:
        raise ValueError(f"dtype={name!r}: must be auto, {', '.join(known)}")
    return getattr(torch, name)


def default_steps(pipe: Any, name: str) -> int:
    """The steps of a plain call that names none."""
    if name in NAMES:
        return STEPS[NAMES[name]]
    known = inspect.signature(type(pipe).__call__).parameters.get("num_inference_steps")
    return known.default if known is not None and isinstance(known.default, int) else 50
