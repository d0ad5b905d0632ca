"""Images of NaN pixels lose to all others, are never scored, and are told where nothing is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import arguments, build, redness, seeded
from PIL import Image
from torch import Tensor

from steer.core.errors import RewardError
from steer.methods import SMC, Beam, BestOfN, EvoSearch, Gate, NoiseSearch, Prune, Tree
from steer.pipeline.guided import guided


METHODS = [
    BestOfN(4),
    Prune(start=4, keep=(2,), at=(0.5,)),
    SMC(4),
    Beam(2, 2),
    Tree(iterations=3),
    NoiseSearch(n=3, rounds=2),
    EvoSearch((3, 2), at=(0.5,), elites=2),
    Gate(BestOfN(2), threshold=2.0, max_rounds=2),
]


def break_some(pipe: Any, doomed: Tensor | None) -> None:
    """NaN for latents like `doomed`; for all where that is None."""
    real = pipe.vae.decode

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = real(z, *args, **kwargs)
        factor = pipe.vae.config.scaling_factor
        for row in range(len(z)):
            if doomed is None or torch.allclose(z[row] * factor, doomed, atol=1e-2):
                out[0][row] = float("nan")
        return out

    pipe.vae.decode = decode


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_the_best_candidate_loses_where_its_image_is_nan(method: Any) -> None:
    pipe = build("sd")
    wrapped = guided(pipe, redness, method=method)
    best = wrapped(**arguments("sd"))
    break_some(pipe, best.images[0])
    out = wrapped(**arguments("sd", output_type="pil"))
    assert out.report.chosen != best.report.chosen
    assert out.rewards[0] < best.rewards[0]
    pixels = torch.from_numpy(np.asarray(out.images[0])).permute(2, 0, 1)[None] / 255
    assert out.rewards[0] == pytest.approx(float(redness(pixels, [""])), abs=5e-3)
    lost = [row for row in out.report.trace.events if row["event"] == "nan"]
    assert lost
    assert best.report.chosen[0][1] in lost[0]["particle"]
    scored = [
        k for row in out.report.trace.of("score") if not row["preview"] for k in row["particle"]
    ]
    assert best.report.chosen[0][1] not in scored


@pytest.mark.sample
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize(
    "method", [BestOfN(1), BestOfN(3), SMC(3), Gate(BestOfN(1), 0.1)], ids=repr
)
def test_where_all_are_nan_it_is_told(method: Any, output_type: str) -> None:
    pipe = build("sd")
    break_some(pipe, None)
    with pytest.raises(RewardError, match=r"prompt 0 \('a red circle'\).*NaN pixels"):
        guided(pipe, redness, method=method)(**arguments("sd", output_type=output_type))


def test_latents_that_are_nan_are_told() -> None:
    pipe = build("sd")
    real = pipe.unet.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = real(*args, **kwargs)
        return (out[0] * float("nan"), *out[1:])

    pipe.unet.forward = forward
    for method in (BestOfN(1), BestOfN(3), SMC(3)):
        with pytest.raises(RewardError, match="NaN"):
            guided(pipe, redness, method=method)(**arguments("sd", output_type="pil"))


def test_a_pipeline_that_is_called_again() -> None:
    class Own:
        """No scheduler that could be driven: one image a call."""

        scheduler = None

        def __init__(self, doomed: int) -> None:
            self.vae, self.doomed, self.calls = torch.nn.Identity(), doomed, 0
            self.vae.decode = self._decode
            self.scheduler = build("sd").scheduler

        def _decode(self, z: Tensor) -> tuple[Tensor]:
            out = z.clone()
            if self.calls - 2 == self.doomed or self.doomed < 0:
                out[:] = float("nan")
            return (out,)

        def __call__(self, prompt: str, generator: Any = None) -> Any:
            from diffusers import ImagePipelineOutput

            self.calls += 1
            z = torch.rand(1, 3, 16, 16, generator=generator)
            image = (self.vae.decode(z)[0][0].nan_to_num() * 255).byte().permute(1, 2, 0).numpy()
            return ImagePipelineOutput(images=[Image.fromarray(image)])

    whole = guided(Own(99), redness, method=BestOfN(3))("a", generator=seeded(0))
    best = whole.report.chosen[0][1]
    out = guided(Own(best), redness, method=BestOfN(3))("a", generator=seeded(0))
    assert out.report.chosen[0][1] != best
    with pytest.raises(RewardError, match="NaN pixels"):
        guided(Own(-1), redness, method=BestOfN(3))("a", generator=seeded(0))


def test_the_pipelines_own_decoder_comes_back() -> None:
    pipe = build("sd")
    guided(pipe, redness, method=BestOfN(2))(**arguments("sd", output_type="pil"))
    assert "decode" not in vars(pipe.vae)
