"""`clip:` against open_clip's own models and transforms."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn.functional import normalize
from transformers_clip import random_transformers_clip, unit

import steer
from steer.core.errors import CheckpointError
from steer.rewards.clip.preprocess import Preprocess
from steer.rewards.models.clip import clip


TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
CONFIGS = {
    "tiny-vit": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT},
    "tiny-quick": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "tiny-resnet": {"embed_dim": 16, "vision_cfg": RESNET, "text_cfg": TEXT},
    "tiny-custom": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT, "custom_text": True},
    "tiny-unmasked": {
        "embed_dim": 16,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 4},
        "text_cfg": {**TEXT, "no_causal_mask": True},
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The configs above as models that open_clip knows by name."""
    import json

    folder = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield folder
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    for name in CONFIGS:
        open_clip.factory._MODEL_CONFIGS.pop(name)


def picture(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", CONFIGS)
def test_any_model_scores_as_open_clip(models, name, tmp_path):
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(name)
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    pictures, prompts = [picture(64, 64), picture(64, 64).rotate(90)], ["a dog", "two cats"]
    with torch.no_grad():
        image = normalize(model.eval().encode_image(torch.stack([transform(p) for p in pictures])))
        text = normalize(model.encode_text(open_clip.get_tokenizer(name)(prompts)))
    expected = (image * text).sum(-1)
    for spec, options in ((f"clip:{name}:{path}", {}), (f"clip:{name}", {"checkpoint": path})):
        got = steer.reward(spec, device="cpu", **options)(pictures, prompts)
        assert torch.allclose(got, expected, atol=1e-5)


MODES = [(m, i) for m in ("shortest", "longest", "squash") for i in ("bicubic", "bilinear")]


@pytest.mark.parametrize(("mode", "interpolation"), MODES)
@pytest.mark.parametrize("size", [(64, 64), (100, 77), (77, 130), (31, 200), (40, 50)])
@pytest.mark.parametrize("target", [64, (48, 80)])
def test_preprocess_is_open_clips(mode, interpolation, size, target):
    cfg = {"resize_mode": mode, "interpolation": interpolation, "fill_color": 128}
    cfg |= {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
    if mode == "shortest" and isinstance(target, tuple):
        cfg["interpolation"] = "bicubic"  # all that open_clip does in this case
    image = picture(*size)
    theirs = image_transform_v2(PreprocessCfg(size=target, **cfg), is_train=False)(image)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double() / 255
    mine = Preprocess.from_open_clip(cfg, target)(tensor)[0]
    assert mine.shape == theirs.shape
    levels = (mine - theirs).abs() * torch.tensor(cfg["std"])[:, None, None] * 255
    assert levels.max() < 1.5  # PIL rounds to 8 bits after each of two passes


def test_bad_preprocess_settings():
    with pytest.raises(ValueError, match="resize_mode='crop'"):
        Preprocess.from_open_clip({"resize_mode": "crop"}, 64)
    with pytest.raises(ValueError, match="interpolation='nearest'"):
        Preprocess.from_open_clip({"interpolation": "nearest"}, 64)


def test_a_tag_is_fetched_and_its_preprocessing_used(models, tmp_path, monkeypatch):
    path = tmp_path / "tagged.pt"
    torch.save(open_clip.create_model("tiny-quick").state_dict(), path)
    tag = {"hf_hub": "someone/tiny/", "quick_gelu": True, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: dict(tag))
    monkeypatch.setattr("steer.rewards.models.clip.download_pretrained", lambda cfg: str(path))
    reward = clip("tiny-vit:mine", device="cpu")
    assert reward.preprocess.mean == (0.5, 0.5, 0.5)
    assert "QuickGELU" in str(reward.encoder.model)

    def offline(cfg):
        raise ConnectionError("no network")

    monkeypatch.setattr("steer.rewards.models.clip.download_pretrained", offline)
    message = r"clip:tiny-vit:mine: cannot get its files from 'someone/tiny/' \(no network\)"
    with pytest.raises(CheckpointError, match=message):
        clip("tiny-vit:mine")


def test_hub_folder(folder_model, monkeypatch):
    folder, _ = folder_model
    local = clip(f"local-dir:{folder}", device="cpu")

    def fetch(repository, filename="open_clip_model.safetensors"):
        assert repository == "someone/model"
        return str(folder / filename)

    monkeypatch.setattr("steer.rewards.models.clip.download_pretrained_from_hf", fetch)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: local.encoder.tokenizer.tokenizer)
    images = torch.rand(2, 3, 64, 64)
    remote = clip("hf-hub:someone/model", device="cpu")
    # The same weights at other addresses: rounding may differ.
    found, wanted = (made(images, "a red circle") for made in (remote, local))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_no_random_weights_and_no_bare_messages(tmp_path):
    with pytest.raises(CheckpointError, match="cannot read the configuration"):
        clip(f"local-dir:{tmp_path}")
    with pytest.raises(CheckpointError, match="does not exist: pass a file"):
        clip("ViT-B-32", checkpoint=tmp_path / "gone.pt")


def test_logging_is_left_alone(folder_model, capsys):
    root = logging.getLogger()
    before = (list(root.handlers), root.manager.disable)
    clip(f"local-dir:{folder_model[0]}", device="cpu", dtype=torch.bfloat16)
    assert (list(root.handlers), root.manager.disable) == before
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def twins(models):
    """`tiny-vit` and `tiny-quick`, the latter also as `tiny-vit-quickgelu`."""
    import json

    path = models / "tiny-vit-quickgelu.json"
    path.write_text(json.dumps(CONFIGS["tiny-quick"]))
    open_clip.add_model_config(models)
    yield
    path.unlink()
    open_clip.factory._MODEL_CONFIGS.pop("tiny-vit-quickgelu")
    open_clip.factory._MODEL_CONFIG_PATHS.remove(models)


def test_a_file_that_does_not_tell_its_gelu_warns(twins, tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    torch.save(open_clip.create_model("tiny-vit").state_dict(), path)
    with pytest.warns(UserWarning, match="write 'clip:tiny-vit-quickgelu:.*if it was"):
        assert "QuickGELU" not in str(clip(f"tiny-vit:{path}", device="cpu").encoder.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        named = clip(f"tiny-vit-quickgelu:{path}", device="cpu")
        assert "QuickGELU" in str(named.encoder.model)
        monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"quick_gelu": True})
        tagged = clip("tiny-vit:openai", checkpoint=path, device="cpu")
        assert "QuickGELU" in str(tagged.encoder.model)


def test_openais_own_state_dict_is_known_by_its_sizes(twins, tmp_path):
    state = open_clip.create_model("tiny-vit").state_dict()
    sizes = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}
    torch.save(state | {k: torch.tensor(v) for k, v in sizes.items()}, tmp_path / "weights.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made = clip(f"tiny-vit:{tmp_path / 'weights.pt'}", device="cpu")
    assert "QuickGELU" in str(made.encoder.model)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-quick"])
def test_a_transformers_folder_names_its_gelu(twins, name, tmp_path):
    theirs = random_transformers_clip(CONFIGS[name])
    theirs.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made = clip(f"tiny-vit:{tmp_path / 'model.safetensors'}", device="cpu")
    assert ("QuickGELU" in str(made.encoder.model)) == (name == "tiny-quick")
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = unit(theirs.get_image_features(pixels))
    torch.testing.assert_close(made.encoder.images(pixels), expected, rtol=1e-4, atol=1e-5)


def test_embed_gives_the_unit_features_that_are_scored():
    reward = steer.reward("shapes-clip", batch=2)
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = reward.embed(images)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    text = reward.encoder.prompts(["a red circle"])
    torch.testing.assert_close((features * text).sum(1), reward(images, "a red circle"))
    assert not reward.embed(images.requires_grad_()).requires_grad
    videos = images.detach()[:, None].expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(reward.embed(videos), features)
