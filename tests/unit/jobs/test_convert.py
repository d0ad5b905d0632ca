"""`steer convert` from Python: what it refuses to write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from steer.core.errors import CheckpointError
from steer.jobs.convert import convert
from steer.rewards.clip.layout import to_open_clip


def test_keys_that_become_one_are_refused_and_both_named(tmp_path: Path) -> None:
    source, target = tmp_path / "in.pt", tmp_path / "out.safetensors"
    torch.save({1: torch.ones(2), "1": torch.zeros(2)}, source)
    with pytest.raises(CheckpointError, match=r"in\.pt.*1 and '1'"):
        convert(source, target)
    assert not target.exists()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("text_model.final_layer_norm.weight", "ln_final.weight"),
        ("text_projection.weight", "text_projection"),
        (
            "vision_model.encoder.layers.0.self_attn.q_proj.weight",
            "visual.transformer.resblocks.0.attn.in_proj_weight",
        ),
        (
            "vision_model.encoder.layers.0.self_attn.q_proj.weight",
            "visual.transformer.resblocks.0.self_attn.q_proj.weight",
        ),
    ],
)
def test_two_layouts_in_one_file_do_not_hide_each_other(theirs: str, ours: str) -> None:
    weight = torch.eye(2)
    state = {"text_model.embeddings.token_embedding.weight": weight, theirs: weight, ours: weight}
    for given in (state, dict(reversed(list(state.items())))):
        with pytest.raises(CheckpointError) as caught:
            to_open_clip(given)
        assert repr(theirs) in str(caught.value) and repr(ours) in str(caught.value)


def test_tensors_that_the_format_cannot_hold_are_told_with_their_file(tmp_path: Path) -> None:
    source, target = tmp_path / "in.pt", tmp_path / "out.safetensors"
    for odd in (
        torch.eye(2).to_sparse(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ):
        torch.save({"weight": odd}, source)
        with pytest.raises(CheckpointError, match=r"in\.pt.*'weight'.*dense"):
            convert(source, target)
        assert list(tmp_path.iterdir()) == [source]
