"""The flow and the few-step model's training: against the schedulers and packages that run them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTokenizer

from recipes.shapes_world import flow, turbo, world
from recipes.shapes_world.data import make_pool
from recipes.shapes_world.recipe import Recipe, StageRecipe
from recipes.shapes_world.text import Encoder
from recipes.shapes_world.vae import encode_pool
from steer import shapes


TEXTS = ["a red circle", "two small blue squares above a green triangle"]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return shapes.pipeline()


@pytest.fixture(scope="module")
def tokenizers(pipe: Any) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    return pipe.tokenizer, CLIPTokenizer.from_pretrained(shapes.weights_folder() / "clip")


@pytest.fixture(scope="module")
def model(pipe: Any, tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]) -> flow.FlowDenoiser:
    torch.manual_seed(0)
    clip = world.load_clip(shapes.weights_folder() / "clip")
    return flow.FlowDenoiser(flow.from_unet(pipe), flow.from_clip(clip, tokenizers[1]), 128).eval()


@pytest.fixture(scope="module")
def pool(pipe: Any) -> tuple[Any, dict[str, Tensor]]:
    """A few scenes, their latents and patch features."""
    scenes = make_pool(32, 0)
    mean, std = encode_pool(pipe.vae, scenes, "cpu")
    clip = world.load_clip(shapes.weights_folder() / "clip")
    features = flow.patch_features(clip, scenes, "cpu")
    return scenes, {"mean": mean, "std": std, "features": features}


@torch.no_grad()
def test_text_encoders_begin_as_the_worlds_own(
    pipe: Any, tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]
) -> None:
    clip = world.load_clip(shapes.weights_folder() / "clip").eval()
    ids = Encoder(tokenizers[1])(TEXTS)
    found = flow.from_clip(clip, tokenizers[1]).eval()(ids).text_embeds
    torch.testing.assert_close(found, clip.encode_text(ids), atol=1e-4, rtol=1e-4)
    ids = Encoder(tokenizers[0])(TEXTS)
    found = flow.from_unet(pipe).eval()(ids).last_hidden_state
    torch.testing.assert_close(found, pipe.text_encoder(ids).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("zeros", [0, 256])
def test_training_sees_the_prompts_that_the_pipeline_makes(
    pipe: Any, model: flow.FlowDenoiser, tokenizers: Any, zeros: int
) -> None:
    whole = flow.assemble(model, pipe.vae, tokenizers)
    tokens, _, pooled, _ = whole.encode_prompt(
        TEXTS, None, None, do_classifier_free_guidance=False, max_sequence_length=zeros
    )
    ids = [Encoder(tokenizer)(TEXTS) for tokenizer in tokenizers]
    found = model.context(*ids, zeros)
    torch.testing.assert_close(found[0], tokens)
    torch.testing.assert_close(found[1], pooled)


def test_patch_features_have_unit_length_and_no_common_part(pool: Any) -> None:
    features = pool[1]["features"].float()
    assert features.shape == (32, 64, 128)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(32, 64), atol=1e-2, rtol=0)
    assert features.mean((0, 1)).norm() < 0.3


def test_flow_training_learns_and_is_exported(
    pipe: Any, model: flow.FlowDenoiser, tokenizers: Any, pool: Any, tmp_path: Path
) -> None:
    trained = copy.deepcopy(model)  # whose hook notes into the copy's own list
    recipe = replace(Recipe(), flow=StageRecipe(12, 4, 1e-3, warmup=2))
    specs, latents = pool[0].specs, pool[1]
    flow.train_flow(trained, specs, latents, tokenizers, recipe, tmp_path, "cpu")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "flow.jsonl").open()]
    assert losses[-1] < losses[0]
    flow.assemble(trained, pipe.vae, tokenizers).save_pretrained(tmp_path / "flow")
    world.export_flow(tmp_path / "flow", tmp_path / "target")
    parts: Any = {"vae": pipe.vae, "text_encoder_3": None, "tokenizer_3": None}
    loaded = StableDiffusion3Pipeline.from_pretrained(tmp_path / "target", **parts)
    for name in ("text_encoder", "text_encoder_2"):
        state, wanted = (getattr(m, name).state_dict() for m in (loaded, trained))
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    weight = trained.transformer.proj_out.weight
    assert torch.equal(loaded.transformer.proj_out.weight, weight.half().float())
    ids = loaded.tokenizer_2(TEXTS, padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(ids, Encoder(tokenizers[1])(TEXTS))


@torch.no_grad()
def test_the_teachers_path_is_the_samplers(pipe: Any) -> None:
    """Every step back along the path against `DDIMScheduler.step` with guidance by hand."""
    path = turbo.Path8(pipe, "cpu")
    scheduler = pipe.scheduler
    scheduler.set_timesteps(turbo.POINTS)
    assert path.t.flip(0).tolist() == scheduler.timesteps.tolist()
    words = pipe.text_encoder(Encoder(pipe.tokenizer)([*TEXTS, ""])).last_hidden_state
    context, empty = words[:2], words[2:]
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for place, t in enumerate(scheduler.timesteps):
        plain = pipe.unet(x, t, empty.expand_as(context)).sample
        v = plain + turbo.GUIDANCE * (pipe.unet(x, t, context).sample - plain)
        wanted = scheduler.step(v, t, x).prev_sample
        found = path.back(x, torch.full((2,), turbo.POINTS - place), context, empty)
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)
        x = wanted


def test_turbo_training_runs_and_leaves_the_teacher(pipe: Any, pool: Any, tmp_path: Path) -> None:
    before = copy.deepcopy(pipe.unet.state_dict())
    recipe = replace(Recipe(), turbo=StageRecipe(3, 4, 1e-4, warmup=1))
    student = turbo.train_turbo(pipe, pool[0].specs, pool[1], recipe, tmp_path, "cpu")
    after = pipe.unet.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert any(not torch.equal(before[key], value) for key, value in student.state_dict().items())
    whole = turbo.without_guidance(student)
    x, t = torch.randn(1, 4, 16, 16), torch.tensor(999)
    words = torch.randn(1, 20, 128)
    with torch.no_grad():
        one = student(x, t, words).sample
        two = whole(x, t, words, timestep_cond=torch.randn(1, 8)).sample
    torch.testing.assert_close(one, two)
