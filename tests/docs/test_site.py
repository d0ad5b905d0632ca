"""README and the site's first pages run as typed, and the API names everything public."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import open_clip
import pytest
import torch
from families import build

import steer


ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    "README.md",
    "docs/index.md",
    "docs/start/install.md",
    "docs/start/sdxl.md",
    "docs/start/flux.md",
]
STAND_INS = {
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/sdxl-turbo": "sdxl",
    "black-forest-labs/FLUX.1-dev": "flux",
}
"""Small random pipelines of the same classes, in place of the downloads."""
TINY_HPS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 56},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which hub ids are small random models, and a card is the CPU."""
    torch.manual_seed(0)
    file = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": open_clip.CLIP(**TINY_HPS).state_dict()}, file)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: TINY_HPS)
    for name in ("StableDiffusionXLPipeline", "FluxPipeline"):
        family = getattr(diffusers, name)
        monkeypatch.setattr(family, "from_pretrained", stand_in(family))
        monkeypatch.setattr(family, "to", lambda self, *_, **__: self)
        monkeypatch.setattr(family, "enable_model_cpu_offload", lambda self: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stand_in(family: type) -> Any:
    """What `from_pretrained` of a class returns here."""

    def from_pretrained(name: str, **more: Any) -> Any:
        pipe = build(STAND_INS[name])
        assert isinstance(pipe, family)
        pipe.default_sample_size = 8  # Flux has one for all its models
        return pipe

    return from_pretrained


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_typed(page: str, offline: Path) -> None:
    """Its blocks one after the other, as a reader would type them."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        exec(compile(block, page, "exec"), names)
    assert names["out"].rewards
    assert (offline / "best.png").stat().st_size > 0


def test_the_api_names_everything_public() -> None:
    pages = "".join(page.read_text() for page in DOCS.glob("api/*.md"))
    shown = set(re.findall(r"^::: \S+\.(\w+)$", pages, re.M))
    folders = {"methods", "rewards", "denoisers", "errors", "picks", "pipeline", "shapes", "tune"}
    public = {*steer.__all__, *steer.methods.__all__, *steer.tune.__all__} - folders
    members = {"at", "between", "every", "SteerError"}  # on the pages of their modules
    assert public - members <= shown
