"""Pipelines from folders that are damaged: one sentence that names the file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

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
    ("name", "content"),
    [
        ("model_index.json", '{"_class_name": 3}'),
        ("model_index.json", '{"_class_name": "DiffusionPipeline", "unet": 3}'),
        ("unet/config.json", '{"block_out_channels": "x"}'),
        ("scheduler/scheduler_config.json", '{"num_train_timesteps": "many"}'),
    ],
)
def test_values_that_make_no_sense_are_one_sentence(
    tmp_path: Path, name: str, content: str
) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(weights_folder() / "pipeline", folder)
    (folder / name).write_text(content)
    with pytest.raises(PipelineNotFoundError, match=re.escape(str(folder))) as caught:
        load_pipeline(str(folder), "cpu", torch.float32)
    assert "\n" not in str(caught.value)
