"""Public preference-tuned checkpoints under short names, and how to name any other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from steer.core.checks import near


Kind: TypeAlias = Literal["auto", "denoiser", "lora"]

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"
SHAPES, SHAPES_TURBO = "shapes", "shapes-turbo"
"""The bundled world's pipelines; their tuned checkpoints are bundled as well."""

_BUNDLED = Path(__file__).parents[3] / "shapes" / "weights" / "tuned"


@dataclass(frozen=True)
class Checkpoint:
    """Where a tuned denoiser is: `tuned=steer.denoisers.Checkpoint("org/name", subfolder="unet")`.

    A plain string stands for `Checkpoint(string)`, with everything else found by looking.

    Attributes:
        source: A hub id, a folder or a file.
        kind: `"denoiser"` for a whole UNet or transformer, `"lora"` for an adapter; `"auto"` finds
            out by the tensors' names.
        subfolder: Folder inside `source`; by default the pipeline's own name for its denoiser
            (`unet`, `transformer`), then the top.
        file: One file of that folder, where it holds several.
        weight: Strength of a LoRA inside the layers (`RLG` scales outputs instead).
        revision: Commit, tag or branch on the hub; the default branch if left out.
        base: The pipeline it was tuned from, where known.
        method, paper: What tuned it, where known; the paper as an arXiv number.
        guidance: Classifier-free guidance that its publisher uses, where stated.

    Raises:
        ValueError: An unknown kind, or a weight that is not a finite number.
    """

    source: str | Path
    kind: Kind = "auto"
    subfolder: str | None = None
    file: str | None = None
    weight: float = 1.0
    revision: str | None = None
    base: str = ""
    method: str = ""
    paper: str = ""
    guidance: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "denoiser", "lora"):
            raise ValueError(f"kind={self.kind!r}: one of 'auto', 'denoiser', 'lora'")
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not number or not math.isfinite(self.weight):
            raise ValueError(
                f"weight={self.weight!r}: a LoRA's strength, a finite number such as 1"
            )
        if not str(self.source).strip():
            raise ValueError("source='': a hub id, a folder, a file, or a name of `steer tuned`")


def _sd15(source: str, method: str, paper: str, guidance: float | None = None) -> Checkpoint:
    return Checkpoint(
        source, "denoiser", "unet", base=SD15, method=method, paper=paper, guidance=guidance
    )


def _sdxl(source: str, method: str, paper: str, guidance: float | None = None) -> Checkpoint:
    return Checkpoint(
        source, "denoiser", "unet", base=SDXL, method=method, paper=paper, guidance=guidance
    )


def _shapes(folder: str, method: str, paper: str) -> Checkpoint:
    return Checkpoint(
        _BUNDLED / folder,
        "lora",
        file="pytorch_lora_weights.safetensors",
        base=SHAPES,
        method=method,
        paper=paper,
        guidance=3.5,
    )


KNOWN: dict[str, Checkpoint] = {
    "poly-dpo-shapes": _shapes("poly-dpo", "Poly-DPO", "2604.24953"),
    "kto-shapes": _shapes("kto", "Diffusion-KTO", "2404.04465"),
    "draft-shapes-turbo": Checkpoint(
        _BUNDLED / "draft-turbo",
        "denoiser",
        base=SHAPES_TURBO,
        method="DRaFT",
        paper="2309.17400",
    ),
    "dpo-sd15": _sd15("mhdang/dpo-sd1.5-text2image-v1", "Diffusion-DPO", "2311.12908", 7.5),
    "dpo-sdxl": _sdxl("mhdang/dpo-sdxl-text2image-v1", "Diffusion-DPO", "2311.12908", 5.0),
    "dpo-sdxl-lora": Checkpoint(
        "radames/sdxl-DPO-LoRA",
        "lora",
        file="pytorch_lora_weights.safetensors",
        weight=1.4,
        base=SDXL,
        method="Diffusion-DPO (extracted)",
        paper="2311.12908",
        guidance=7.5,
    ),
    "kto-sd15": _sd15("jacklishufan/diffusion-kto", "Diffusion-KTO", "2404.04465", 7.5),
    "spo-sd15": _sd15("SPO-Diffusion-Models/SPO-SD-v1-5_4k-p_10ep", "SPO", "2406.04314", 7.5),
    "spo-sd15-lora": Checkpoint(
        "SPO-Diffusion-Models/SPO-SD-v1-5_4k-p_10ep_LoRA",
        "lora",
        file="spo-sd-v1-5_4k-p_10ep_lora_diffusers.safetensors",
        base=SD15,
        method="SPO",
        paper="2406.04314",
        guidance=7.5,
    ),
    "spo-sdxl": _sdxl("SPO-Diffusion-Models/SPO-SDXL_4k-p_10ep", "SPO", "2406.04314", 5.0),
    "spo-sdxl-lora": Checkpoint(
        "SPO-Diffusion-Models/SPO-SDXL_4k-p_10ep_LoRA",
        "lora",
        file="spo_sdxl_10ep_4k-data_lora_diffusers.safetensors",
        base=SDXL,
        method="SPO",
        paper="2406.04314",
        guidance=5.0,
    ),
    "mapo-sdxl": Checkpoint(
        "mapo-t2i/mapo-beta", "denoiser", "", base=SDXL, method="MaPO", paper="2406.06424"
    ),
    "inpo-sd15": _sd15("JaydenLu666/InPO-SD1.5", "DDIM-InPO", "2503.18454"),
    "inpo-sdxl": _sdxl("JaydenLu666/InPO-SDXL", "DDIM-InPO", "2503.18454"),
    "smpo-sd15": _sd15("JaydenLu666/SmPO-SD1.5", "SmPO-Diffusion", "2506.02698"),
    "smpo-sdxl": _sdxl("JaydenLu666/SmPO-SDXL", "SmPO-Diffusion", "2506.02698"),
    "dro-sd15": _sd15("ylwu/diffusion-dro-sd1.5", "Diffusion-DRO", "2510.18353", 7.5),
    "linear-dpo-sd15": _sd15("whynot0128/Linear-DPO", "Linear-DPO", "2605.21123"),
    "linear-dpo-sdxl": _sdxl("whynot0128/Linear-DPO-SDXL", "Linear-DPO", "2605.21123"),
    "linear-dpo-sd3": Checkpoint(
        "whynot0128/Linear-DPO-SD3",
        "denoiser",
        "transformer",
        base=SD3,
        method="Linear-DPO",
        paper="2605.21123",
    ),
    "chats-sdxl": Checkpoint(
        "AIDC-AI/CHATS",
        "denoiser",
        "unet_win",
        base=SDXL,
        method="CHATS (preferred)",
        paper="2502.12579",
        guidance=6.0,
    ),
    "chats-sdxl-dispreferred": Checkpoint(
        "AIDC-AI/CHATS",
        "denoiser",
        "unet_lose",
        base=SDXL,
        method="CHATS (dispreferred)",
        paper="2502.12579",
        guidance=6.0,
    ),
}
"""Checkpoints by short name. None is pinned to a commit: give `revision` to pin one."""


def named(source: object) -> tuple[str, Checkpoint]:
    """A checkpoint and what to call it.

    Args:
        source: A `Checkpoint`, a name of `KNOWN`, a hub id, a folder or a file.

    Raises:
        ValueError: Nothing that names a checkpoint; close short names are suggested.
    """
    if isinstance(source, Checkpoint):
        found = next((name for name, known in KNOWN.items() if known == source), None)
        return found or _label(source), source
    if not isinstance(source, str | Path):
        raise ValueError(
            f"tuned={source!r}: give a name of `steer tuned`, a hub id, a folder, a file, a "
            "steer.denoisers.Checkpoint, or the tuned denoiser itself (a torch module)"
        )
    if str(source) in KNOWN:
        return str(source), KNOWN[str(source)]
    checkpoint = Checkpoint(source)
    if at_home(source).exists() or is_repository(str(source)):
        return _label(checkpoint), checkpoint
    raise ValueError(f"tuned={str(source)!r}: {_guess(str(source))}")


def is_bundled(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint comes with the package."""
    return isinstance(checkpoint.source, Path) and checkpoint.source.parent == _BUNDLED


def at_home(source: str | Path) -> Path:
    """The path with `~` expanded, where that is possible."""
    try:
        return Path(source).expanduser()
    except RuntimeError:
        return Path(source)


def is_repository(source: str) -> bool:
    """Whether a text has the form of a hub id, `owner/name`."""
    plain = all(part and part.strip(".~") for part in source.split("/"))
    return source.count("/") == 1 and plain and not _is_file_name(source)


def _is_file_name(source: str) -> bool:
    endings = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".onnx")
    return source.lower().endswith(endings)


def _label(checkpoint: Checkpoint) -> str:
    parts = (str(checkpoint.source), checkpoint.subfolder, checkpoint.file)
    return "/".join(part for part in parts if part)


def _guess(source: str) -> str:
    if _is_file_name(source) or source.startswith((".", "/", "~")) or source.count("/") > 1:
        return "there is no such file or folder"
    hint = near(source.lower(), tuple(KNOWN))
    return f"unknown, and neither a file, a folder nor a hub id (owner/name){hint}"
