"""The whole vision tower by the kernels, against open_clip in float64."""

from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F
from steer_kernels.attention_cls import HEAD_DIMS

from steer.rewards.clip.preprocess import Preprocess
from steer.rewards.clip.tower import VitTower
from steer.rewards.clip.tower_weights import unfit, vit_weights


VISION = {"image_size": 28, "layers": 3, "width": 64, "head_width": 64, "patch_size": 14}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}


def test_scores_and_gradients_of_a_small_tower(device: torch.device) -> None:
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = open_clip.CLIP(embed_dim=24, vision_cfg=VISION, text_cfg=TEXT, quick_gelu=True)
    model = model.eval().requires_grad_(False).to(device)
    for parameter in model.parameters():
        parameter.data = (parameter + 0.05 * torch.randn_like(parameter)).half().float()
    images = torch.rand(1, 3, 30, 24).to(device)
    texts = F.normalize(torch.randn(1, 24), dim=-1).to(device)
    preprocess = Preprocess(size=(28, 28), resize="longest", clamp=False)

    exact = images.double().requires_grad_()
    reference = model.double().encode_image(preprocess(exact))
    expected = (F.normalize(reference, dim=-1) * texts).sum(-1)
    expected.sum().backward()
    tower = VitTower(model.half())
    with torch.no_grad():
        patches = tower.patches(images, preprocess)
        got = tower.scores(patches, texts)
    assert (got - expected).abs().max() < 3e-3
    leaf = images.clone().requires_grad_()
    tower.scores(tower.patches(leaf, preprocess), texts).sum().backward()
    one, other = leaf.grad, exact.grad
    assert one is not None and other is not None
    assert F.cosine_similarity(one.double().flatten(), other.flatten(), dim=0) > 0.999
    if device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 9):
        fast = VitTower(model.bfloat16(), fp8=True)
        scores = fast.rows(fast.patches(images, preprocess))
        assert torch.isfinite(scores).all()


@pytest.mark.parametrize(
    ("name", "blocks", "gelu"),
    [
        ("ViT-B-32", 12, "erf"),
        ("ViT-B-32-quickgelu", 12, "quick"),
        ("ViT-L-14", 24, "erf"),
        ("ViT-L-14-quickgelu", 24, "quick"),
        ("ViT-H-14", 32, "erf"),
        ("ViT-bigG-14", 48, "erf"),
    ],
)
def test_the_published_towers_fit(name: str, blocks: int, gelu: str) -> None:
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(name) or {})
    assert unfit(model) is None
    weights = vit_weights(model)
    assert (len(weights.blocks), weights.gelu) == (blocks, gelu)
    assert weights.patch_embed.shape[0] // weights.heads in HEAD_DIMS


def test_images_and_texts_elsewhere_are_refused() -> None:
    model = open_clip.CLIP(embed_dim=24, vision_cfg=VISION, text_cfg=TEXT).eval()
    tower = VitTower(model.requires_grad_(False))
    preprocess = Preprocess(size=(28, 28))
    images, texts = torch.rand(2, 3, 30, 24), torch.randn(2, 24)
    with pytest.raises(ValueError, match="images on meta, the tower on cpu: move them to one dev"):
        tower.patches(images.to("meta"), preprocess)
    patches = tower.patches(images, preprocess)
    with pytest.raises(ValueError, match=r"texts on meta.*move them to one device"):
        tower.scores(patches, texts.to("meta"))
    with pytest.raises(ValueError, match=r"texts on meta.*move them to one device"):
        tower.scores(patches.requires_grad_(), texts.to("meta"))
