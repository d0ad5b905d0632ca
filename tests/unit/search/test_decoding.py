"""What decodes what in a search: previews by the cheap decoder, finals by the pipeline's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import arguments, build, redness, seeded
from torch import Tensor, nn

from steer.core.types import Population
from steer.core.when import every
from steer.methods import (
    SMC,
    Beam,
    BestOfN,
    BestOfNGuidance,
    Guide,
    LookaheadGuidance,
    NoiseOptimization,
    NoiseSearch,
    Prune,
)
from steer.pipeline.guided import guided
from steer.rewards.function import FunctionReward
from steer.search.guidance import reward_gradient


RED = FunctionReward(redness, name="redness", differentiable=True, needs_prompt=False)
PRUNE = Prune(start=4, keep=(1,), at=(0.5,))


class Negative(nn.Module):
    """Shows the negative of what the VAE shows."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.calls = vae, 0

    def decode(self, z: Tensor) -> Tensor:
        self.calls += 1
        return -self.vae.decode(z / self.vae.config.scaling_factor).sample


def call(**more: Any) -> dict[str, Any]:
    return arguments("sd", **{"output_type": "pt", "num_inference_steps": 6, **more})


def test_previews_decide_and_finals_are_judged_by_the_pipelines_own() -> None:
    pipe = build("sd")
    plain = guided(pipe, redness, method=PRUNE)(**call())
    negative = guided(pipe, redness, method=PRUNE, preview=Negative(pipe.vae))(**call())
    seen, mirrored = (
        next(row["reward"] for row in out.report.trace.of("score") if row["preview"])
        for out in (plain, negative)
    )
    assert len(set(seen)) == 4
    torch.testing.assert_close(torch.tensor(mirrored), 1 - torch.tensor(seen))
    chosen = negative.report.chosen[0][1]
    assert chosen == min(range(4), key=seen.__getitem__) != plain.report.chosen[0][1]
    torch.testing.assert_close(torch.tensor(negative.rewards), redness(negative.images, [""]))


def test_without_previews_nothing_changes() -> None:
    pipe = build("sd")
    decoder = Negative(pipe.vae)
    plain = guided(pipe, redness, method=BestOfN(3))(**call())
    other = guided(pipe, redness, method=BestOfN(3), preview=decoder)(**call())
    assert torch.equal(plain.images, other.images) and plain.rewards == other.rewards
    assert decoder.calls == other.report.ledger.previews == 0
    assert plain.report.ledger.decodes == other.report.ledger.decodes == 4


def test_the_ledger_counts_previews_and_what_the_linear_map_was_fitted_to() -> None:
    pipe = build("sd")
    steered = guided(pipe, redness, method=PRUNE, preview="linear")
    first, second = steered(**call()).report, steered(**call()).report
    plain = guided(pipe, redness, method=PRUNE)(**call()).report.ledger
    assert first.ledger.previews == second.ledger.previews == 4
    assert second.ledger.decodes == plain.decodes - 4
    assert first.ledger.decodes == second.ledger.decodes + 16  # the fit
    assert first.ledger.seconds["preview"] > 0 and "preview" not in plain.seconds
    assert "4 previews by another decoder" in str(first)
    assert first.ledger.to_dict()["previews"] == 4
    shown = [book.flops["preview"] for book in (first.ledger, second.ledger)]
    assert 0 < shown[0] == shown[1] < plain.flops["decode"] / 10
    fitted, one = first.ledger.flops["decode"], plain.flops["decode"] / plain.decodes
    assert fitted == pytest.approx(one * first.ledger.decodes, rel=0.05)
    assert "previews by another decoder" not in str(guided(pipe, redness)(**call()).report)


@pytest.mark.parametrize(
    "method",
    [
        SMC(4, when=every(2)),
        Beam(2),
        Guide(BestOfN(1), strength=0.5),
        BestOfNGuidance(2),
        LookaheadGuidance(lookaheads=4, through=2),
        NoiseOptimization(iterations=2, through=2),
        NoiseOptimization(iterations=2, through=2, gradient="zero-order"),
        NoiseSearch(n=2, rounds=2, through=2),
        NoiseSearch(n=4, rounds=2, strategy="paths"),
    ],
    ids=repr,
)
def test_methods_look_through_it_on_the_way_only(method: Any) -> None:
    pipe = build("sd")
    decoder = Negative(pipe.vae)
    steered = guided(pipe, RED, method=method, preview=decoder, judge=redness)
    out = steered(**call())
    ledger = out.report.ledger
    finals = {
        (row["prompt"], particle)
        for row in out.report.trace.of("score")
        if not row["preview"]
        for particle in row["particle"]
    }
    assert ledger.previews > 0 and decoder.calls > 0
    assert ledger.decodes <= len(finals) + 1
    torch.testing.assert_close(torch.tensor(out.rewards), redness(out.images, [""]))
    assert all(weight.grad is None for weight in pipe.vae.parameters())


def test_the_gradient_of_a_preview_is_that_of_its_decoder() -> None:
    pipe = build("sd", dtype=torch.float64)
    found: list[tuple[Tensor, Tensor, Tensor]] = []

    class Looking(type(BestOfN(1))):
        def __call__(self, ctx: Any, start: Population) -> Any:
            z = Population(start.x[:1] / 4, start.ids[:1])
            value, gradient = reward_gradient(ctx, z)
            way = torch.randn(z.x.shape, generator=seeded(1), dtype=torch.float64)
            ends = [redness(ctx.preview(z.x + h * way), [""]) for h in (1e-2, -1e-2)]
            found.append((value, (gradient * way).sum(), (ends[0] - ends[1]) / 2e-2))
            return (yield from super().__call__(ctx, start))

    guided(pipe, RED, method=Looking(1), preview="linear")(**call())
    value, slope, difference = found[0]
    assert 0 < float(value) < 1 and abs(float(slope)) > 1e-5
    torch.testing.assert_close(slope.float(), difference[0].float(), rtol=2e-2, atol=1e-6)


def test_preview_is_an_attribute_that_is_checked_where_it_is_assigned() -> None:
    steered = guided(build("sd"), redness, preview="linear")
    assert steered.preview.name == "linear"
    steered.preview = "vae"
    assert steered.preview is None
    with pytest.raises(ValueError, match="preview=7"):
        steered.preview = 7


def test_a_plan_pays_for_the_cheaper_previews() -> None:
    """The same compute buys more denoiser rows where previews cost less."""
    pipe = build("sd")
    rows = {}
    for preview in (None, "linear"):
        steered = guided(pipe, redness, compute=8, preview=preview)
        steered(**call(num_inference_steps=8))
        ledger = steered(**call(num_inference_steps=8)).report.ledger
        rows[preview] = ledger.denoiser_rows
        assert sum(ledger.flops.values()) <= 8 * ledger.plain_flops * 1.001
    assert rows["linear"] > rows[None]
