"""What `write_open_clip_folder` writes, open_clip loads, and so does the reward."""

from __future__ import annotations

import json
import re
import shutil

import open_clip
import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import normalize

import steer
import steer.shapes
from steer.core.errors import CheckpointError
from steer.rewards.models.clip import clip
from steer.rewards.models.shapes import shapes
from steer.shapes.export import write_open_clip_folder


PROMPTS = ["a red circle left of a blue square", "two small green squares"]


def test_open_clip_loads_the_folder(folder_model):
    folder, model = folder_model
    loaded, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    for (name, mine), theirs in zip(
        model.state_dict().items(), loaded.state_dict().values(), strict=True
    ):
        assert torch.equal(mine.half().float(), theirs), name
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(PROMPTS)
    assert ids.shape == (2, 24)
    assert ids.argmax(-1).tolist() == [9, 5]  # every word is one token, the end token is highest
    assert "Resize(size=64" in str(transform)


def test_the_file_is_half_precision_and_small(folder_model):
    folder, model = folder_model
    with safe_open(folder / "open_clip_model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    size = sum(p.numel() for p in model.parameters()) * 2
    assert (folder / "open_clip_model.safetensors").stat().st_size < size + 20_000


def test_reward_equals_open_clip(folder_model):
    folder, _ = folder_model
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(PROMPTS)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        image = normalize(model.encode_image(images * 2 - 1), dim=-1)
        expected = (image * normalize(model.encode_text(tokens), dim=-1)).sum(-1)
    for name in ("shapes", f"clip:local-dir:{folder}"):
        options = {"checkpoint": folder} if name == "shapes" else {}
        got = steer.reward(name, device="cpu", **options)(images, PROMPTS)
        assert got.dtype == torch.float32
        assert torch.allclose(got, expected, atol=1e-6)


def test_packaged_names(folder_model, monkeypatch):
    folder, _ = folder_model
    shutil.copytree(folder, folder.parent / "clip", dirs_exist_ok=True)
    monkeypatch.setattr(steer.shapes, "weights_folder", lambda: folder.parent, raising=False)
    for name in ("shapes", "shapes-clip"):
        reward = steer.reward(name, device="cpu")
        assert (reward.name, reward.differentiable, reward.needs_prompt) == (name, True, True)
        assert reward.range == (-1, 1)
        assert reward(torch.rand(1, 3, 64, 64), PROMPTS[:1]).shape == (1,)


def test_models_are_loaded_once(folder_model):
    folder, _ = folder_model
    first, second = shapes(checkpoint=folder, batch=4), shapes(checkpoint=folder)
    assert first.encoder is second.encoder
    assert shapes(checkpoint=folder, dtype=torch.float64).encoder is not first.encoder


def test_a_rewritten_file_is_loaded_again(folder_model, tmp_path):
    folder = shutil.copytree(folder_model[0], tmp_path / "scorer")
    before = shapes(checkpoint=folder, device="cpu")
    state = {k: v + 0.1 for k, v in folder_model[1].state_dict().items()}
    from safetensors.torch import save_file

    save_file(state, folder / "open_clip_model.safetensors")
    after = shapes(checkpoint=folder, device="cpu")
    images = torch.rand(1, 3, 64, 64)
    assert not torch.allclose(before(images, PROMPTS[0]), after(images, PROMPTS[0]))


def test_words_outside_the_vocabulary_are_named(folder_model):
    reward = shapes(checkpoint=folder_model[0], device="cpu")
    with pytest.warns(UserWarning, match=r"vocabulary: 'zebra!'"):
        reward(torch.rand(1, 3, 64, 64), "a red zebra!")


def test_missing_pieces(folder_model, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        steer.reward("shapes", checkpoint=tmp_path / "nowhere")
    folder = shutil.copytree(folder_model[0], tmp_path / "scorer")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        steer.reward("shapes", checkpoint=folder)
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="lacks model_cfg"):
        steer.reward("shapes", checkpoint=folder)
    (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read the configuration"):
        steer.reward("shapes", checkpoint=folder)


def test_export_refuses_contradictions(folder_model, tmp_path):
    folder, model = folder_model
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}").tokenizer
    config = {"embed_dim": 24, "vision_cfg": {}, "text_cfg": {"vocab_size": 3}}
    with pytest.raises(ValueError, match=f"build the model with vocab_size={len(tokenizer)}"):
        write_open_clip_folder(tmp_path, model, config, {}, tokenizer)
    config["text_cfg"] = {"pool_type": "eos", "eos_id": 2}
    with pytest.raises(ValueError, match="set eos_id="):
        write_open_clip_folder(tmp_path, model, config, {}, tokenizer)
    tokenizer.add_tokens(["later"])
    config["text_cfg"] = {}
    with pytest.raises(ValueError, match="put the end token last"):
        write_open_clip_folder(tmp_path, model, config, {}, tokenizer)


@pytest.mark.parametrize(
    "config",
    [
        {"model_cfg": []},
        {"model_cfg": {"embed_dim": "x", "vision_cfg": {}, "text_cfg": {}}},
        {"model_cfg": {"embed_dim": 8, "vision_cfg": 3, "text_cfg": {}}},
        {"model_cfg": {"embed_dim": 8, "vision_cfg": {"layers": "many"}, "text_cfg": {}}},
        {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}, "odd": 1}},
    ],
)
def test_a_broken_model_configuration_names_its_folder(folder_model, tmp_path, config):
    folder = tmp_path / "model"
    shutil.copytree(folder_model[0], folder)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=re.escape(str(folder))):
        clip(f"local-dir:{folder}", device="cpu")
