"""Masked generators: pipelines whose latents are tokens of a codebook (Amused)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from families import redness, seeded
from families.masked import CODES, SIDE, amused

from steer.core.errors import UnsupportedPipelineError, UnsupportedSchedulerError
from steer.core.seeds import row_seed
from steer.driver.decoding.decode import decode
from steer.driver.seeds import call_seeds
from steer.methods import BestOfN, Prune
from steer.pipeline.guided import guided


TEXTS = ["a red circle", "a blue square"]


def _plain(pipe: Any, text: str, generator: torch.Generator, kind: str = "pt") -> Any:
    return pipe(text, generator=generator, num_inference_steps=3, output_type=kind).images


def _guided(pipe: Any, count: int, **given: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return guided(pipe, redness, method=BestOfN(count))(num_inference_steps=3, **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tokens_are_decoded_as_the_pipeline_does(dtype: torch.dtype) -> None:
    pipe = amused()
    pipe.vqvae.register_to_config(force_upcast=True)
    pipe.vqvae.to(dtype)
    tokens = _plain(pipe, TEXTS[0], seeded(0), "latent")
    assert tokens.shape == (1, SIDE, SIDE) and not tokens.is_floating_point()
    assert int(tokens.min()) >= 0 and int(tokens.max()) < CODES
    assert torch.equal(decode(pipe, tokens), _plain(pipe, TEXTS[0], seeded(0)).float())
    assert pipe.vqvae.dtype == dtype


def test_whole_numbers_without_a_codebook_are_refused() -> None:
    from families import build

    with pytest.raises(UnsupportedPipelineError, match="no codebook"):
        decode(build("sd"), torch.zeros(1, 4, 4, dtype=torch.long))


@pytest.mark.parametrize("kind", ["pt", "latent"])
def test_every_prompt_has_the_image_of_its_own_generator(kind: str) -> None:
    pipe = amused()
    out = _guided(pipe, 1, prompt=TEXTS, generator=[seeded(5), seeded(6)], output_type=kind)
    for row, (text, seed) in enumerate(zip(TEXTS, (5, 6), strict=True)):
        assert torch.equal(out.images[row], _plain(pipe, text, seeded(seed), kind)[0])
        image = _plain(pipe, text, seeded(seed))
        assert out.rewards[row] == pytest.approx(float(redness(image, [text])))


def test_the_best_of_several_calls_is_returned_for_every_prompt() -> None:
    pipe = amused()
    generators = [seeded(5), seeded(6)]
    seeds = call_seeds([seeded(5), seeded(6)], 2, 1, "cpu")
    out = _guided(pipe, 3, prompt=TEXTS, generator=generators, output_type="pt")
    for row, text in enumerate(TEXTS):
        own = [seeded(5 + row), *(seeded(row_seed(seeds[row], k)) for k in (1, 2))]
        images = torch.cat([_plain(pipe, text, generator) for generator in own])
        best = redness(images, [text] * 3).argmax()
        assert torch.equal(out.images[row], images[best])


def test_given_latents_are_never_left_out() -> None:
    """A call per prompt would begin from masks of its own."""
    latents = _plain(amused(), TEXTS[0], seeded(0), "latent").repeat(2, 1, 1)
    with pytest.raises(AttributeError, match="'list' object has no attribute 'device'"):
        _guided(amused(), 1, prompt=TEXTS, generator=[seeded(5), seeded(6)], latents=latents)


def test_methods_that_step_latents_say_what_is_missing() -> None:
    with pytest.raises(UnsupportedSchedulerError, match=r"AmusedScheduler unmasks tokens"):
        guided(amused(), redness, method=Prune(4))(TEXTS[0], num_inference_steps=3)


def test_tuned_weights_belong_into_the_pipeline(tmp_path: Path) -> None:
    pipe = amused()
    pipe.transformer.save_pretrained(tmp_path / "transformer")
    run = guided(pipe, redness, method=BestOfN(2), tuned=str(tmp_path))
    with pytest.raises(UnsupportedSchedulerError, match="load the tuned weights into the pipeline"):
        run(TEXTS[0], num_inference_steps=3)


def test_what_the_pipeline_refuses_is_its_own_error() -> None:
    pipe = amused()
    with pytest.raises(ValueError, match=r"pass either both|only one"):
        _guided(
            pipe, 1, prompt=TEXTS, generator=[seeded(0), seeded(1)], prompt_embeds=torch.ones(1, 2)
        )
