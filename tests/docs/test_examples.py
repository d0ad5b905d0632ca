"""Every script in examples/ runs; small random pipelines of the same classes are the downloads."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from families import build


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_runs_as_it_stands(script: str, offline: Path) -> None:
    names = runpy.run_path(str(EXAMPLES / script))
    assert names["out"].rewards
    picture = offline / f"{Path(script).stem}.png"
    assert script == "wan.py" or picture.stat().st_size > 0


def test_a_community_pipeline_searches_in_its_own_call(tmp_path: Path) -> None:
    build("sdxl").to(torch.bfloat16).save_pretrained(tmp_path)
    pipe = DiffusionPipeline.from_pretrained(
        tmp_path,
        custom_pipeline=str(EXAMPLES / "community" / "steered_sdxl.py"),
        trust_remote_code=True,
        torch_dtype=torch.bfloat16,
    )
    size = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt"}
    assert not hasattr(pipe("a fox", **size), "rewards")
    out = pipe.steer("compressibility")("a fox", compute=3, **size)
    assert out.rewards and len(out.images) == 1 and pipe.unet.dtype == torch.bfloat16
