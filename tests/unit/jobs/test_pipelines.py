"""Pipelines from folders that are damaged: one sentence that names the file."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from steer.core.errors import PipelineNotFoundError
from steer.jobs.pipelines import load_pipeline
from steer.shapes import weights_folder


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model_index.json", "[]"),
        ("model_index.json", "{"),
        ("model_index.json", "[" * 100_000),
        ("unet/config.json", ""),
        ("unet/config.json", "[]"),
        ("scheduler/scheduler_config.json", "{"),
        ("tokenizer/tokenizer_config.json", "{"),
        ("text_encoder/config.json", "{"),
        (WEIGHTS, ""),
        (WEIGHTS, "<html>404</html>"),
        ("text_encoder/model.safetensors", ""),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(weights_folder() / "pipeline", folder)
    (folder / name).write_text(content)
    with pytest.raises(PipelineNotFoundError, match=re.escape(str(folder))) as caught:
        load_pipeline(str(folder), "cpu", torch.float32)
    assert name.split("/")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("model_index.json", {"_class_name": 3}),
        ("model_index.json", {"_class_name": "NoSuchPipeline"}),
        ("model_index.json", {"unet": 3}),
        ("model_index.json", {"unet": ["diffusers"]}),
        ("model_index.json", {"unet": ["diffusers", "NoSuchModel"]}),
        ("model_index.json", {"unet": ["nolib", "UNet2DConditionModel"]}),
        ("model_index.json", {"unet": ["diffusers", "DDIMScheduler"]}),
        ("unet/config.json", {"block_out_channels": "many"}),
        ("unet/config.json", {"block_out_channels": [32, 32]}),
        ("vae/config.json", {"latent_channels": "x"}),
        ("text_encoder/config.json", {"hidden_size": "x"}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "x"}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "x"}),
    ],
)
def test_the_file_with_a_value_that_makes_no_sense_is_named(
    tmp_path: Path, name: str, values: dict[str, Any]
) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(weights_folder() / "pipeline", folder)
    whole = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**whole, **values}))
    with pytest.raises(PipelineNotFoundError, match=re.escape(str(folder / name))) as caught:
        load_pipeline(str(folder), "cpu", torch.float32)
    assert "\n" not in str(caught.value)


def test_a_component_without_its_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(weights_folder() / "pipeline", folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(PipelineNotFoundError, match=re.escape(str(folder / "vae"))):
        load_pipeline(str(folder), "cpu", torch.float32)


def test_nothing_named_by_an_index_is_imported(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(weights_folder() / "pipeline", folder)
    index = folder / "model_index.json"
    whole = json.loads(index.read_text())
    index.write_text(json.dumps({**whole, "unet": ["antigravity", "UNet2DConditionModel"]}))
    with pytest.raises(PipelineNotFoundError, match="unet"):
        load_pipeline(str(folder), "cpu", torch.float32)
    assert "antigravity" not in sys.modules
