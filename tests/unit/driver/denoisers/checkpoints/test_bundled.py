"""The tuned checkpoints that come with the package."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import steer
from steer.driver.denoisers.checkpoints import KNOWN, load
from steer.driver.denoisers.checkpoints.known import is_bundled
from steer.driver.denoisers.checkpoints.lora import ADAPTER


BUNDLED = [name for name, known in KNOWN.items() if is_bundled(known)]


@pytest.mark.parametrize("name", BUNDLED)
def test_all_of_a_bundled_checkpoint_is_loaded_and_the_base_stays(name: str) -> None:
    whole = KNOWN[name].base == "shapes-turbo"
    pipe = steer.shapes.pipeline("turbo" if whole else "diffusion")
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 3, "guidance_scale": 3.5, "output_type": "pt"}
    text = "a red circle left of a blue square"

    def drawn(model: object) -> torch.Tensor:
        assert callable(model)
        return model(text, generator=torch.Generator().manual_seed(0), **call).images

    base = drawn(pipe)
    tuned = load(pipe, name)
    assert (tuned.lora is None) == whole
    if tuned.lora is not None:
        layers: Any = tuned.lora.layers
        assert len(layers) == 77 and layers.keys() <= dict(pipe.unet.named_modules()).keys()
        assert all(layer.lora_B[ADAPTER].weight.abs().sum() > 0 for layer in layers.values())
    other = drawn(steer.guided(pipe, "shapes", method=steer.BestOfN(1), tuned=tuned))
    assert 1e-3 < float((other - base).abs().mean()) < 0.1
    assert torch.equal(drawn(pipe), base)
