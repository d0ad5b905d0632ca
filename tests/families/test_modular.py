"""Modular pipelines: searched as the classic pipelines with the same parts are."""

from __future__ import annotations

import functools
import gc
from collections.abc import Sequence
from typing import Any

import diffusers
import pytest
import torch
from counted_work import counting, reddish
from diffusers.modular_pipelines import ModularPipelineBlocks
from PIL import Image
from torch import Tensor

from families import redness, seeded


pytest.importorskip("diffusers.modular_pipelines")

from families.modular import BLOCKS, calls, classic_of, modular_of
from steer.core.errors import UnsupportedPipelineError
from steer.driver.modular.adapted import resolves
from steer.methods import SMC, BestOfN, Guide, Prune
from steer.pipeline.guided import guided


pytestmark = pytest.mark.skipif(
    not resolves() or any(not hasattr(diffusers, name) for name in BLOCKS.values()),
    reason="this diffusers has not all of these modular pipelines",
)
PRUNE = Prune(4, (2,), (0.5,))


@functools.cache
def pair(family: str) -> tuple[Any, Any]:
    """A classic pipeline, and the modular one with the same parts."""
    classic = classic_of(family)
    return classic, modular_of(family, classic)


def made(state: Any) -> Tensor:
    """The images or videos of a modular pipeline's own state."""
    return state.get("images") if state.get("images") is not None else state.get("videos")


def inside(pipe: Any) -> list[Any]:
    """What a call could leave behind: attributes, and blocks with their classes."""

    def below(block: Any) -> list[Any]:
        return [block, *(one for part in block.sub_blocks.values() for one in below(part))]

    blocks = [(type(block), sorted(vars(block))) for block in below(pipe._blocks)]
    return [sorted(vars(pipe)), pipe.scheduler, type(pipe.scheduler), blocks]


@pytest.mark.parametrize("family", BLOCKS)
def test_best_of_one_is_the_modular_pipelines_own_image(family: str) -> None:
    _, pipe = pair(family)
    _, given = calls(family)
    plain = made(pipe(**given))
    before = inside(pipe)
    out = guided(pipe, redness, method=BestOfN(1))(**{**given, "generator": seeded(0)})
    assert torch.equal(out[0], plain) and torch.equal(made(out), plain)
    assert torch.equal(made(out.state), plain) and out.timesteps is out.state.timesteps
    assert inside(pipe) == before
    assert torch.equal(made(pipe(**{**given, "generator": seeded(0)})), plain)


@pytest.mark.sample
@pytest.mark.parametrize("method", [BestOfN(3), PRUNE, SMC(4), Guide(BestOfN(2), strength=0.1)])
@pytest.mark.parametrize("family", BLOCKS)
def test_a_search_is_that_of_the_classic_pipeline(family: str, method: Any) -> None:
    """The same particles, rewards, images and rows; the classic pipeline is driven without it."""
    outs = []
    for pipe, given in zip(pair(family), calls(family), strict=True):
        with counting(pipe) as seen:
            out = guided(pipe, reddish, method=method)(**given)
        outs.append((out, seen))
    (classic, _), (modular, seen) = outs
    assert modular.report.chosen == classic.report.chosen
    assert modular.rewards == pytest.approx(classic.rewards, abs=2e-4)
    assert torch.allclose(modular[0], classic[0], atol=2e-3)
    ours, theirs = modular.report.ledger, classic.report.ledger
    assert ours.denoiser_rows == theirs.denoiser_rows
    assert ours.cfg_rows == theirs.cfg_rows == (1 if family == "flux" else 2)
    checked = seen.rows - ours.denoiser_rows * ours.cfg_rows
    assert 0 <= checked <= ours.checked_rows * ours.cfg_rows
    # modular Flux embeds its timestep once, and not for every row
    assert ours.plain_flops == pytest.approx(theirs.plain_flops, rel=1e-2)


@pytest.mark.parametrize("family", BLOCKS)
def test_several_prompts_and_images(family: str) -> None:
    """Each image is what a call for that prompt alone finds, whatever the lane width."""
    _, pipe = pair(family)
    count = "num_videos_per_prompt" if family == "wan" else "num_images_per_prompt"
    prompts = ["a red circle", "a blue square"]
    more = {"prompt": prompts, count: 2}
    found = []
    for width in (1, 2):
        _, given = calls(family, **more)
        given["generator"] = [seeded(7), seeded(8), seeded(9), seeded(10)]
        found.append(guided(pipe, redness, method=BestOfN(2), lane_width=width)(**given))
    assert len(found[0][0]) == 4 and found[0].report.chosen == found[1].report.chosen
    assert torch.allclose(found[0][0], found[1][0], atol=2e-3)
    _, given = calls(family, **more)
    given["generator"] = [seeded(7), seeded(8), seeded(9), seeded(10)]
    plain = made(pipe(**given))
    scores = redness(plain.flatten(0, -4), []).view(4, -1).mean(1)
    for prompt in range(2):  # particles 0 and 1 of each prompt are the plain call's
        found_here = found[0].report.rewards[2 * prompt : 2 * prompt + 2]
        assert max(found_here) >= float(scores[2 * prompt : 2 * prompt + 2].max()) - 1e-4


@pytest.mark.parametrize("family", BLOCKS)
def test_everything_is_put_back_after_an_error(family: str) -> None:
    _, pipe = pair(family)
    before = inside(pipe)

    def broken(images: Tensor, prompts: Sequence[str]) -> Tensor:
        raise ZeroDivisionError("a reward's own")

    _, given = calls(family)
    with pytest.raises(ZeroDivisionError, match="a reward's own"):
        guided(pipe, broken, method=PRUNE)(**given)
    assert inside(pipe) == before and "enumerate" not in vars(_module_of(pipe))
    _, given = calls(family)
    assert torch.isfinite(made(pipe(**given))).all()


def _module_of(pipe: Any) -> Any:
    import importlib

    package = type(pipe).__module__.rpartition(".")[0]
    return importlib.import_module(f"{package}.denoise")


def test_the_output_is_as_asked_for() -> None:
    """`output=` as the pipeline itself takes it; the report is on the guided pipeline."""
    _, pipe = pair("flux")
    call = guided(pipe, redness, method=BestOfN(2))
    whole = call(**calls("flux")[1])
    assert torch.equal(call(**calls("flux")[1], output="images"), whole.images)
    assert call.report is not None and call.report.rewards == whole.rewards
    several = call(**calls("flux")[1], output=["images", "timesteps"])
    assert set(several) == {"images", "timesteps"} and torch.equal(several["images"], whole.images)
    with pytest.raises(UnsupportedPipelineError, match="state=PipelineState"):
        call(**calls("flux")[1], state=whole.state)
    with pytest.raises(TypeError, match="unexpected keyword"):
        call(**calls("flux")[1], strenght=0.3)


def test_the_pipeline_stays_the_users_own() -> None:
    _, pipe = pair("flux")
    call = guided(pipe, redness)
    assert call.pipe is pipe and call.transformer is pipe.transformer
    assert call.blocks.sub_blocks.keys() == pipe.blocks.sub_blocks.keys()
    call(**calls("flux")[1], method=BestOfN(2))
    kinds = {type(block) for block in gc.get_objects() if isinstance(block, type(pipe._blocks))}
    assert kinds == {type(pipe._blocks)}


@pytest.mark.parametrize("family", ["sdxl", "flux", "qwen", "z-image"])
def test_images_to_start_from(family: str) -> None:
    """Every particle is what a call with its own noise begins with; latents are drawn anew."""
    _, pipe = pair(family)
    image = Image.new("RGB", (16, 16), "red")
    more = {"image": image, "strength": 0.6}
    plain = made(pipe(**calls(family, **more)[1]))
    one = guided(pipe, redness, method=BestOfN(1))(**calls(family, **more)[1])
    assert torch.equal(one[0], plain)
    out = guided(pipe, redness, method=Prune(3, (1,), (0.7,)))(**calls(family, **more)[1])
    assert out.report.ledger.denoiser_calls > one.report.ledger.denoiser_calls
    starts = {round(row, 5) for row in _previews(out.report)}
    assert len(starts) == 3
    assert out.rewards[0] >= one.rewards[0] - 0.02


def _previews(report: Any) -> list[float]:
    return [value for row in report.trace.of("score", 0) for value in row["reward"]][:3]


def test_inpainting_is_refused_by_searches_and_called_again_by_best_of_n() -> None:
    _, pipe = pair("sdxl")
    image, mask = Image.new("RGB", (16, 16), "red"), Image.new("L", (16, 16), 255)
    more = {"image": image, "mask_image": mask, "strength": 0.9}
    with pytest.raises(UnsupportedPipelineError, match="given image into the latents"):
        guided(pipe, redness, method=PRUNE)(**calls("sdxl", **more)[1])
    with pytest.warns(UserWarning, match="every particle is a call"):
        out = guided(pipe, redness, method=BestOfN(2))(**calls("sdxl", **more)[1])
    assert out.report.ledger.denoiser_calls > 0 and len(out.images) == 1


def test_a_guider_with_momentum_is_refused_out_of_order() -> None:
    classic = classic_of("sdxl")
    pipe = modular_of("sdxl", classic)
    kind = diffusers.guiders.AdaptiveProjectedGuidance
    pipe.update_components(
        guider=kind(guidance_scale=3.0, adaptive_projected_guidance_momentum=-0.5)
    )
    with pytest.raises(UnsupportedPipelineError, match="momentum"):
        guided(pipe, redness, method=PRUNE, lane_width=1)(**calls("sdxl")[1])
    pipe.update_components(guider=kind(guidance_scale=3.0))
    out = guided(pipe, redness, method=PRUNE)(**calls("sdxl")[1])
    assert out.report.ledger.cfg_rows == 2


def test_guidance_that_is_off_costs_nothing() -> None:
    classic = classic_of("sdxl")
    pipe = modular_of("sdxl", classic)
    pipe.update_components(guider=diffusers.guiders.ClassifierFreeGuidance(guidance_scale=1.0))
    with counting(pipe) as seen:
        out = guided(pipe, redness, method=BestOfN(2))(**calls("sdxl")[1])
    assert out.report.ledger.cfg_rows == 1 and seen.rows == out.report.ledger.denoiser_rows


@pytest.mark.parametrize("which", [0, 1])
def test_rows_asked_twice_do_not_make_a_row_cheaper(which: int) -> None:
    """Guidance in two calls: the check of narrower batches asks one of them twice."""
    pipe, given = pair("wan")[which], calls("wan")[which]
    whole = guided(pipe, redness, method=BestOfN(3), lane_width=3)(**given).report.ledger
    given = calls("wan")[which]
    pruned = guided(pipe, redness, method=PRUNE)(**given).report.ledger
    assert whole.checked_rows == 0 < pruned.checked_rows
    assert pruned.plain_flops == pytest.approx(whole.plain_flops, rel=1e-6)


class Note(ModularPipelineBlocks):
    """A user's own block at the end of the loop."""

    model_name = "flux"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, float]] = []

    def __call__(self, components: Any, block_state: Any, i: int, t: Tensor) -> Any:
        self.seen.append((i, float(t)))
        return components, block_state


def test_blocks_of_the_users_own_are_run_with_the_step_that_is_evaluated() -> None:
    pipe = modular_of("flux", classic_of("flux"))
    loop = pipe._blocks.get_execution_blocks(prompt="a").sub_blocks["denoise.denoise"]
    note = loop.sub_blocks["note"] = Note()
    plain = made(pipe(**calls("flux")[1]))
    order, note.seen = note.seen, []
    one = guided(pipe, redness, method=BestOfN(1))(**calls("flux")[1])
    assert torch.equal(one[0], plain) and note.seen == order and len(order) == 4
    note.seen = []
    out = guided(pipe, redness, method=PRUNE, lane_width=1)(**calls("flux")[1])
    assert len(note.seen) == out.report.ledger.denoiser_calls == 12
    assert {*note.seen} == {*order}


def test_tuned_checkpoints_are_refused() -> None:
    _, pipe = pair("flux")
    with pytest.raises(UnsupportedPipelineError, match="update_components"):
        guided(pipe, redness, tuned=pipe.transformer)
