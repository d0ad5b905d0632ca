"""Safety checkers: asked as the pipelines ask them, and their answers read off outputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import IFPipeline, StableDiffusionPipeline, StableDiffusionUpscalePipeline
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn

from steer.driver.safety import asks_guardrail, check_of, flags_of


IMAGES = torch.tensor([0.2, 0.9, 0.4])[:, None, None, None].expand(3, 3, 8, 8).contiguous()


class Bright(nn.Module):
    """Flags what is bright, by the small images that it is given to look at, as the real one."""

    def __init__(self, watermarks: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float16))
        self.watermarks = watermarks

    def forward(self, clip_input: Tensor, images: Any) -> tuple[Any, ...]:
        assert clip_input.dtype == torch.float16
        level = clip_input.float().mean((1, 2, 3))
        bright, marked = (level > 0.8).tolist(), (level < 0.3).tolist()
        for row, flag in enumerate(bright):
            if flag or (self.watermarks and marked[row]):
                images[row] = images[row] * 0
        return (images, bright, marked) if self.watermarks else (images, bright)


def extract(pictures: list[Any], return_tensors: str) -> Any:
    pixels = [np.asarray(picture, dtype=np.float32) / 255 for picture in pictures]

    class Batch(SimpleNamespace):
        def to(self, device: Any) -> Batch:
            return self

    return Batch(pixel_values=torch.from_numpy(np.stack(pixels)))


def bare(kind: Any, **parts: Any) -> Any:
    """A pipeline with nothing but what its checker needs."""
    pipe = kind.__new__(kind)
    for name, part in {"feature_extractor": extract, **parts}.items():
        object.__setattr__(pipe, name, part)
    return pipe


@pytest.fixture(autouse=True)
def _anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steer.driver.safety.execution_device", lambda pipe: torch.device("cpu"))


def test_stable_diffusion_blacks_out() -> None:
    pipe = bare(
        StableDiffusionPipeline, safety_checker=Bright(), image_processor=VaeImageProcessor()
    )
    check = check_of(pipe, "np")
    assert check is not None
    shown, flags = check(IMAGES)
    assert flags == [False, True, False]
    assert torch.equal(shown[[0, 2]], IMAGES[[0, 2]]) and not shown[1].any()
    assert IMAGES[1].mean() == pytest.approx(0.9)


def test_watermarks_are_flagged_too() -> None:
    pipe = bare(IFPipeline, safety_checker=Bright(watermarks=True))
    check = check_of(pipe, "pil")
    assert check is not None
    shown, flags = check(IMAGES)
    assert flags == [True, True, False]
    assert not shown[:2].any() and torch.equal(shown[2], IMAGES[2])
    upscaler = bare(
        StableDiffusionUpscalePipeline,
        safety_checker=Bright(watermarks=True),
        image_processor=VaeImageProcessor(),
    )
    check = check_of(upscaler, "pil")
    assert check is not None
    shown, flags = check(IMAGES)
    assert flags == [True, True, False]
    assert torch.equal(shown[0], torch.full((3, 8, 8), 0.5))  # what this pipeline shows then


@pytest.mark.parametrize("still", [False, True])
def test_guardrails_refuse_and_blur(still: bool) -> None:
    class Guardrail:
        def to(self, device: Any) -> None:
            self.device = device

        def check_video_safety(self, frames: np.ndarray) -> np.ndarray | None:
            assert frames.dtype == np.uint8 and frames.shape == (1 if still else 2, 8, 8, 3)
            return None if frames.mean() > 200 else frames // 2

    guardrail = Guardrail()
    check = check_of(SimpleNamespace(safety_checker=guardrail), "pt")
    assert check is not None
    shown, flags = check(IMAGES if still else IMAGES[:, None].expand(-1, 2, -1, -1, -1))
    assert flags == [False, True, False] and guardrail.device == "cpu"
    assert shown.shape == ((3, 3, 8, 8) if still else (3, 2, 3, 8, 8))
    assert shown.flatten(1).mean(1).tolist() == pytest.approx([25 / 255, 0, 51 / 255], abs=1e-6)


@pytest.mark.parametrize(
    ("guardrail", "pipeline", "asked"),
    [
        ("CosmosSafetyChecker", "Cosmos2_5_PredictBasePipeline", True),
        ("OwnGuardrail", "Cosmos2_5_PredictBasePipeline", False),
        ("OwnGuardrail", "CosmosTextToWorldPipeline", True),
    ],
)
def test_a_guardrail_that_the_pipeline_does_not_ask_is_not_asked(
    guardrail: str, pipeline: str, asked: bool
) -> None:
    checker = type(guardrail, (), {"check_video_safety": lambda self, frames: None})()
    pipe = type(pipeline, (), {"safety_checker": checker})()
    assert asks_guardrail(pipe) is asked is (check_of(pipe, "pt") is not None)


def test_what_the_pipeline_does_not_check_is_not_checked() -> None:
    checked = bare(StableDiffusionPipeline, safety_checker=Bright(), image_processor=None)
    assert check_of(checked, "latent") is None
    assert check_of(bare(StableDiffusionPipeline, safety_checker=None), "pil") is None
    assert check_of(bare(IFPipeline, safety_checker=Bright()), "pt") is None
    assert check_of(bare(IFPipeline, safety_checker=Bright()), "latent") is not None
    assert check_of(SimpleNamespace(), "pil") is None
    odd = SimpleNamespace(safety_checker=Bright(), run_safety_checker=lambda image, more: image)
    assert check_of(odd, "pil") is None


def test_flags_are_read_off_outputs() -> None:
    assert flags_of({"images": [0, 0], "nsfw_detected": [True, False]}, 2) == [True, False]
    two = ([0, 0], [False, False], [False, True])
    assert flags_of(two, 2) == [False, True]
    assert flags_of(([0, 0], None), 2) == flags_of(torch.zeros(2), 2) == [False, False]
    assert flags_of(([0, 0], [0.5, 0.5]), 2) == [False, False]
