"""The training code: exact resumption, folded latents, losses against hand-computed values."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recipes.shapes_world import vae as vae_stage
from recipes.shapes_world.clip import (
    LABELS,
    build as build_clip,
    contrastive_loss,
    dense_target,
    truth_table,
    twin_loss,
)
from recipes.shapes_world.data import Pool, make_pool
from recipes.shapes_world.describe import describe
from recipes.shapes_world.inventory import UNSAID, of_scenes, of_specs
from recipes.shapes_world.preferences import NOISE, questions, votes
from recipes.shapes_world.recipe import Recipe, StageRecipe
from recipes.shapes_world.scorer import (
    mirror,
    pair_loss,
    sample_pairs,
    soup,
    twin_pairs,
    within_caption_auc,
)
from recipes.shapes_world.stage import learning_rate, train
from recipes.shapes_world.text import CONTEXT_LENGTH, Encoder, build_tokenizer, learn_merges
from recipes.shapes_world.tiny import previews, train_tiny
from steer import shapes
from steer.shapes.captions import VOCABULARY, caption, parse
from steer.shapes.oracle import judge, oracle
from steer.shapes.reading import read
from steer.shapes.scenes import is_held_out, is_true_of, perturb


@pytest.fixture(scope="module")
def pool() -> Pool:
    return make_pool(96, seed=3, labels=True)


def _regression(folder: Path, steps: int, total: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    calls = 0

    def loss(rng: np.random.Generator, noise: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        nonlocal calls
        calls += 1
        if calls > steps:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=noise) + float(rng.random())
        return ((model(x) - x.sum(1, keepdim=True)) ** 2).mean(), {}

    recipe = StageRecipe(total, 8, 0.05, warmup=2, ema=0.9)
    try:
        train("toy", model, loss, recipe, folder, seed=1)
    except KeyboardInterrupt:
        assert steps < total
    return model


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.shapes_world.stage.CHECKPOINT_EVERY", 5)
    whole = _regression(tmp_path / "whole", 20, 20)
    _regression(tmp_path / "parts", 13, 20)  # killed three steps after its checkpoint
    resumed = _regression(tmp_path / "parts", 20, 20)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    recipe = StageRecipe(steps=100, batch=1, lr=1.0, warmup=10)
    rates = [learning_rate(step, recipe) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)


def test_no_held_out_combination_is_trained_on(pool: Pool) -> None:
    assert not any(is_held_out(spec) for spec in pool.specs)


def test_every_word_is_one_token_and_the_fast_encoder_agrees(tmp_path: Path, pool: Pool) -> None:
    tokenizer = build_tokenizer(tmp_path)
    texts = pool.captions(np.arange(32), np.random.default_rng(0))
    slow = tokenizer(texts, padding="max_length", max_length=CONTEXT_LENGTH).input_ids
    assert Encoder(tokenizer)(texts).tolist() == slow
    assert tokenizer.eos_token_id == max(tokenizer.get_vocab().values())
    assert all(len(tokenizer(w, add_special_tokens=False).input_ids) == 1 for w in VOCABULARY)
    spelled = tokenizer("xylophone", add_special_tokens=False).input_ids
    assert tokenizer.eos_token_id not in spelled


def test_the_tokenizer_is_the_same_in_every_process(tmp_path: Path) -> None:
    """Hash seeds differ between processes; token ids must not, or towers and ranks disagree."""
    code = (
        "import sys, json; from pathlib import Path; from recipes.shapes_world.text import *;"
        "print(json.dumps(learn_merges(VOCABULARY)))"
    )
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": other},
        capture_output=True,
        check=True,
    )
    assert [tuple(pair) for pair in json.loads(run.stdout)] == learn_merges(VOCABULARY)
    again = [build_tokenizer(tmp_path / name).get_vocab() for name in "ab"]
    assert again[0] == again[1]


def test_normalising_the_latents_changes_no_reconstruction(pool: Pool) -> None:
    torch.manual_seed(0)
    vae = vae_stage.build().eval()
    x = pool.batch(np.arange(4), "cpu") * 2 - 1
    with torch.no_grad():
        before = vae.encode(x).latent_dist
        picture = vae.decode(before.mean).sample
        vae_stage.normalise(vae, pool, "cpu", count=32)
        after = vae.encode(x).latent_dist
        torch.testing.assert_close(vae.decode(after.mean).sample, picture, atol=1e-4, rtol=1e-3)
        ratio = (before.std / after.std)[:, :, 0, 0]
        scale = (before.mean[0] - before.mean[1]) / (after.mean[0] - after.mean[1])
    torch.testing.assert_close(ratio[0], scale.median(-1)[0].median(-1)[0], atol=0, rtol=2e-2)


def test_truth_table_equals_asking_one_by_one(pool: Pool) -> None:
    rng = np.random.default_rng(1)
    specs = [*pool.specs[:24], *(perturb(spec, rng) for spec in pool.specs[:24])]
    scenes = pool.scenes[:24]
    expected = [[is_true_of(spec, scene) for spec in specs] for scene in scenes]
    assert truth_table(specs, scenes).tolist() == expected


def test_contrastive_loss_masks_captions_that_are_true() -> None:
    logits = torch.tensor([[1.0, 5.0, 0.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
    truth = torch.tensor([[True, True, False], [False, True, False]])
    images = (-1 + math.log(math.e + 1)) + (-2 + math.log(math.exp(2) + 2))
    texts = (-1 + math.log(math.e + 1)) + 0.0  # image 0 is no negative of caption 1 either
    expected = (images + texts) / 4
    assert float(contrastive_loss(logits, truth)) == pytest.approx(expected)


def test_inventories_of_caption_and_picture_agree(pool: Pool) -> None:
    said, held = of_specs(pool.specs), of_scenes(pool.scenes)
    assert torch.equal(said.counts, held.counts)
    for part in ("sizes", "relation", "background"):
        told = getattr(said, part) != UNSAID
        assert told.any()
        assert torch.equal(getattr(said, part)[told], getattr(held, part)[told])


def test_twin_loss_compares_each_with_its_twin_only() -> None:
    logits = torch.zeros(2, 4, dtype=torch.float64)
    logits[0, 0], logits[1, 1] = 2.0, 1.0  # own; the twin's and the false caption at 0
    texts = (math.log(1 + 2 * math.exp(-2)) + math.log(1 + 2 * math.exp(-1))) / 2
    images = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert float(twin_loss(logits)) == pytest.approx((texts + images) / 2)


def test_dense_targets_are_distributions(pool: Pool) -> None:
    target = dense_target(pool.labels[:3])
    assert target.shape == (3, 64, LABELS)
    torch.testing.assert_close(target.sum(-1), torch.ones(3, 64))
    share = (pool.labels[:3] > 0).float().mean()
    torch.testing.assert_close(1 - target[..., 0].mean(), share)


def test_pair_loss_is_the_kl_divergence() -> None:
    scores = torch.tensor([[2.0, 0.5], [0.1, 0.3]], dtype=torch.float64)
    choice = torch.tensor([0.8, 0.0], dtype=torch.float64)
    p = 1 / (1 + math.exp(-1.5))
    q = 1 / (1 + math.exp(0.2))
    expected = (0.8 * math.log(0.8 / p) + 0.2 * math.log(0.2 / (1 - p)) - math.log(1 - q)) / 2
    assert float(pair_loss(scores, choice)) == pytest.approx(expected)


def test_votes_follow_the_bradley_terry_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    gap = 0.4
    share = votes(torch.full((20_000,), gap), torch.zeros(20_000), generator).mean()
    assert float(share) == pytest.approx(1 / (1 + math.exp(-gap / NOISE)), abs=0.01)


def test_auc_compares_only_images_of_one_caption() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.2, 0.2], [5.0, 6.0, 7.0]])
    correct = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert within_caption_auc(scores, correct) == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)


def test_recipe_scales_every_stage() -> None:
    small = Recipe().scaled(0.001)
    assert small.denoiser.steps == max(2, round(Recipe().denoiser.steps * 0.001))
    assert small.denoiser.lr == Recipe().denoiser.lr
    assert json.dumps(small.scenes)
    assert all(caption(spec) for spec in make_pool(4, 0).specs)


def test_twin_pairs_are_right_and_wrong_by_the_oracle() -> None:
    pairs = twin_pairs(12, np.random.default_rng(4))
    texts = [caption(spec) for spec in pairs.specs]
    assert all(v.all_met for v in oracle(pairs.images[:, 0], texts))
    assert not any(v.all_met for v in oracle(pairs.images[:, 1], texts))
    assert pairs.choice.tolist() == [1.0] * 12


def test_descriptions_are_met_by_their_pictures_and_never_held_out(pool: Pool) -> None:
    rng = np.random.default_rng(2)
    readings = read(pool.images)
    specs = [describe(reading, rng) for reading in readings]
    found = [(r, s) for r, s in zip(readings, specs, strict=True) if s is not None]
    assert len(found) > 0.9 * len(readings)
    assert all(judge(r, s).all_met and not is_held_out(s) for r, s in found)
    assert any(s.relation for _, s in found) and any(s.background for _, s in found)
    assert any(g.size for _, s in found for g in s.groups)


def test_unclear_pictures_are_not_described() -> None:
    assert [describe(r, np.random.default_rng(0)) for r in read(torch.rand(2, 3, 64, 64))] == [
        None,
        None,
    ]


def test_a_group_is_asked_about_under_the_captions_that_describe_it(pool: Pool) -> None:
    texts = ["a red circle", "two blue squares"]
    readings = [read(pool.images[:4]), read(pool.images[4:8])]
    asked, groups = questions(texts, readings, np.random.default_rng(1))
    assert asked[:2] == texts and groups[:2] == [0, 1]
    for text, group in list(zip(asked, groups, strict=True))[2:]:
        assert any(judge(reading, parse(text)).all_met for reading in readings[group])
    assert questions(texts, readings, None) == (texts, [0, 1])


def test_sample_pairs_follow_the_votes() -> None:
    samples = {
        "fraction": torch.tensor([[1.0, 0.2], [0.3, 0.9]]),
        "correct": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "neat": torch.ones(2, 2),
        "group": torch.tensor([1, 0]),
        "images": torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8)
        .view(2, 2, 1, 1, 1)
        .expand(2, 2, 3, 64, 64),
    }
    rng, noise = np.random.default_rng(0), torch.Generator().manual_seed(0)
    pairs = sample_pairs(["a red circle", "two blue squares"], samples, 64, rng, noise)
    white_first = pairs.images[:, 0].mean((1, 2, 3)) > 0.5
    assert white_first.any() and not white_first.all()
    assert ((pairs.choice > 0.5) == white_first).float().mean() > 0.95


def test_mirrored_pairs_stay_right_and_wrong() -> None:
    rng = np.random.default_rng(6)
    pairs = mirror(twin_pairs(24, rng), rng)
    texts = [caption(spec) for spec in pairs.specs]
    assert any("left" in text or "right" in text for text in texts)
    assert all(v.all_met for v in oracle(pairs.images[:, 0], texts))
    assert not any(v.all_met for v in oracle(pairs.images[:, 1], texts))


def test_soup_is_the_mean_of_the_weights() -> None:
    torch.manual_seed(0)
    models = [build_clip(64) for _ in range(3)]
    mixed = soup(models)
    torch.testing.assert_close(
        mixed["visual.proj"], sum(m.visual.proj for m in models) / 3, check_dtype=True
    )
    assert mixed.keys() == models[0].state_dict().keys()


def test_the_tiny_decoder_learns_from_the_x0_of_every_step(tmp_path: Path) -> None:
    pipe = shapes.pipeline()
    recipe = replace(Recipe(), tiny=StageRecipe(12, 8, 4e-3, warmup=2), tiny_captions=2)
    latents, images = previews(pipe, recipe.tiny_captions, seed=5)
    assert latents.shape == (2 * 20, 4, 16, 16) and images.shape == (2 * 20, 3, 64, 64)
    rows = slice(30, 34)
    with torch.no_grad():
        shown = pipe.vae.decode(latents[rows].float()).sample.clamp(-1, 1)
    torch.testing.assert_close(shown, images[rows].float(), atol=0.02, rtol=0)
    assert latents[0].std() < latents[-1].std()  # from a mean of pictures to one of them
    tiny = train_tiny(pipe, recipe, tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "tiny.jsonl").open()]
    assert losses[-1] < losses[0] / 1.2
    with torch.no_grad():
        assert tiny.decode(latents[:2].float()).sample.shape == (2, 3, 64, 64)
