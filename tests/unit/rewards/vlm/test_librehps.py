"""LibreHPS on a tiny random folder of the published layout, against its restatement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import librehps_reference as reference
import pytest
import torch
from librehps_reference import MARK
from safetensors.torch import load_file, save_file
from torch import Tensor

from steer.core.errors import CheckpointError
from steer.rewards.names import BUILT_IN
from steer.rewards.vlm.librehps import AXES, LibreHpsReward, librehps


transformers = pytest.importorskip("transformers", minversion="5.0")
PROMPTS = ["a red circle", "a blue square left of a red circle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference.save(tmp_path_factory.mktemp("librehps"))


def make(folder: Path, *axis: Any) -> LibreHpsReward:
    return librehps(*axis, checkpoint=folder, device="cpu", dtype=torch.float32)


def images(count: int, size: int = 448) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    small = 0.1 + 0.8 * torch.rand(count, 3, 4, 6, generator=noise)
    large = torch.nn.functional.interpolate(small, (size, size), mode="bilinear")
    return (large * 255).round() / 255


def test_scores_are_the_restatements(folder):
    reward, pictures = make(folder), images(2)
    both = torch.stack(
        [reference.expected(folder, x, p) for x, p in zip(pictures, PROMPTS, strict=True)]
    )
    assert torch.allclose(reward.axes(pictures, PROMPTS), both, rtol=1e-3, atol=1e-3)
    assert both[0].sub(both[1]).abs().min() > 1e-3
    for index, axis in enumerate(AXES[:-1]):
        one = make(folder, axis)
        assert one.name in BUILT_IN and one.family == "vlm/human"
        assert torch.allclose(one(pictures, PROMPTS), both[:, index, 0], rtol=1e-3, atol=1e-3)


def test_weights_are_in_bfloat16_whatever_the_file_has(folder):
    assert librehps(checkpoint=folder, device="cpu").model.dtype == torch.bfloat16


def test_images_have_a_gradient(folder):
    pictures = images(2, 256).requires_grad_()
    make(folder)(pictures, PROMPTS).sum().backward()
    assert (pictures.grad.flatten(1).norm(dim=1) > 0).all()


def test_bad_input_and_folders_that_are_not_it(folder, tmp_path):
    reward = make(folder)
    with pytest.raises(ValueError, match=r"has '<\|Reward\|>', a special token"):
        reward(images(1), f"a {MARK}")
    with pytest.raises(ValueError, match="axis='temporal': one of 'overall'"):
        librehps("temporal", checkpoint=folder, device="cpu")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="`hf download nobody/nothing`"):
        librehps(model="nobody/nothing", device="cpu")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(folder / "model.safetensors")
    bare = {name: t for name, t in state.items() if not name.startswith("multi_axis_head")}
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks multi_axis_head\.proj"):
        librehps(checkpoint=tmp_path, device="cpu")
