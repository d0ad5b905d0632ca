"""The export of a trained world: what is bundled must be read by transformers 4 and 5 alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel

from recipes.shapes_world import world
from recipes.shapes_world.recipe import Recipe
from steer.shapes import weights_folder


def test_text_encoder_and_tokenizer_are_exported_as_they_are_bundled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled, run, target = weights_folder(), tmp_path / "run", tmp_path / "target"
    shutil.copytree(bundled, run)
    loaded = CLIPTextModel.from_pretrained(bundled / "pipeline" / "text_encoder")
    fresh = CLIPTextModel(loaded.config)  # as training makes it: saved by the names it has
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(run / "pipeline" / "text_encoder")
    monkeypatch.setattr(world, "weights_folder", lambda: target)
    monkeypatch.setattr(world, "export_flow", lambda folder, target: None)  # tested by itself
    world.run_export(Recipe(), run, "cpu")

    file = Path("pipeline", "text_encoder", "model.safetensors")
    found, wanted = load_file(target / file), load_file(bundled / file)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    found, wanted = target / "pipeline" / "tokenizer", bundled / "pipeline" / "tokenizer"
    vocabularies = [json.loads((p / "vocab.json").read_bytes()) for p in (found, wanted)]
    assert vocabularies[0] == vocabularies[1]
    assert (found / "merges.txt").read_bytes() == (wanted / "merges.txt").read_bytes()
    for name in ("clip", "scorer"):
        assert (target / name / "open_clip_model.safetensors").is_file()
    assert (target / "tiny" / "diffusion_pytorch_model.safetensors").is_file()
