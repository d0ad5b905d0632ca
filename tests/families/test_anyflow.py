"""AnyFlow: the flow maps of diffusers, whose loop keeps its latents in another order of axes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counted_work import reddish
from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
)

from families import build, redness, seeded
from families.text import EMBED
from steer.methods import SMC, BestOfN, GradientProposal, LookaheadGuidance, NoiseSearch, Prune
from steer.pipeline.guided import guided
from steer.search.method import Method


FEW: dict[str, Any] = {
    "height": 16,
    "width": 16,
    "num_inference_steps": 4,
    "max_sequence_length": 8,
    "output_type": "pt",
}


def anyflow(kind: type = AnyFlowPipeline, denoiser: type = AnyFlowTransformer3DModel) -> Any:
    """With Wan's decoder and text encoder."""
    wan = build("wan")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = denoiser(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=EMBED,
            freq_dim=8,
            ffn_dim=16,
            num_layers=1,
            rope_max_seq_len=32,
        )
    pipe = kind(
        tokenizer=wan.tokenizer,
        text_encoder=wan.text_encoder,
        vae=wan.vae,
        transformer=transformer.eval(),
        scheduler=FlowMapEulerDiscreteScheduler(shift=5.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(
    pipe: Any,
    method: Method | None = None,
    lane_width: int = 8,
    reward: Any = redness,
    **more: Any,
) -> Any:
    made = pipe
    if method is not None:
        made = guided(pipe, reward, method=method, lane_width=lane_width)
    return made("a red circle", generator=seeded(0), **{**FEW, "num_frames": 5, **more})


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_one_particle_is_the_plain_call(scale: float) -> None:
    pipe = anyflow()
    plain = call(pipe, guidance_scale=scale).frames
    assert torch.equal(call(pipe, BestOfN(1), guidance_scale=scale).frames, plain)


@pytest.mark.sample
@pytest.mark.parametrize("frames", [5, 7])  # 3 latent frames, and as many as channels
@pytest.mark.parametrize(
    "method",
    [
        BestOfN(3),
        Prune(4),
        NoiseSearch(2, rounds=2),
        LookaheadGuidance(lookaheads=3, through=1),
        SMC(3, lookahead="map"),
    ],
    ids=lambda method: type(method).__name__,
)
def test_narrow_lanes_find_what_wide_ones_do(method: Method, frames: int) -> None:
    pipe = anyflow()
    wide = call(pipe, method, num_frames=frames)
    narrow = call(pipe, method, num_frames=frames, lane_width=1)
    assert narrow.rewards == pytest.approx(wide.rewards, abs=1e-5)
    torch.testing.assert_close(narrow.frames, wide.frames, atol=1e-4, rtol=1e-3)
    elsewhere = isinstance(method, LookaheadGuidance)  # the pipeline's first call jumped elsewhere
    assert wide.report.ledger.denoiser_rows == method.cost(4) + elsewhere
    assert wide.rewards[0] == pytest.approx(float(redness(wide.frames[0], [""]).mean()), abs=1e-4)


def test_a_gradient_through_the_map_is_the_same_in_narrow_lanes() -> None:
    pipe = anyflow()
    method = SMC(3, lookahead="map", proposal=GradientProposal(through="map"))
    wide, narrow = (call(pipe, method, width, reddish, guidance_scale=3.0) for width in (8, 1))
    assert narrow.rewards == pytest.approx(wide.rewards, abs=1e-5)
    torch.testing.assert_close(narrow.frames, wide.frames, atol=1e-4, rtol=1e-3)
    assert wide.report.ledger.backward_rows == 3 * 2  # the first step has no noise, nor the last
    assert wide.report.ledger.equivalent_rows == method.cost(4) - 3 * 3


def test_a_call_with_a_given_video_is_made_again() -> None:
    pipe = anyflow()
    given = {"video_latents": torch.randn(1, 1, 4, 8, 8, generator=seeded(3))}
    with pytest.warns(UserWarning, match="a given video replaces its first frames"):
        out = call(pipe, BestOfN(3), **given)
    plain = call(pipe, **given)
    assert float(out.rewards[0]) >= float(redness(plain.frames[0], [""]).mean()) - 1e-4


def test_videos_in_chunks_are_called_again() -> None:
    pipe = anyflow(AnyFlowFARPipeline, AnyFlowFARTransformer3DModel)
    with pytest.warns(UserWarning, match="its videos are made in sections"):
        out = call(pipe, BestOfN(2), chunk_partition=[1, 2])
    assert len(out.rewards) == 1
