"""The training of the world's second judge: what it may see, its targets, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import save_file

from recipes.shapes_world import vqa
from recipes.shapes_world.recipe import Recipe, StageRecipe
from recipes.shapes_world.vqa_data import shows_held_out
from steer.shapes.captions import caption
from steer.shapes.detector import cell_centers, load_detector
from steer.shapes.drawing import place, render
from steer.shapes.oracle import oracle
from steer.shapes.reading import read
from steer.shapes.scenes import Split, sample_spec


def drawn(split: Split, count: int):
    rng = np.random.default_rng(9)
    specs = [s for s in (sample_spec(rng, split) for _ in range(9 * count)) if _related(s)]
    return render([place(spec, rng) for spec in specs[:count]]), specs[:count]


def _related(spec) -> bool:
    return len(spec.groups) == 1 or spec.relation is not None


def test_pictures_of_held_out_combinations_are_left_out(tmp_path):
    held, _ = drawn("held_out", 16)
    train, _ = drawn("train", 16)
    assert all(map(shows_held_out, read(held)))
    assert not any(map(shows_held_out, read(train)))
    images = (torch.cat([held, train]) * 255).round().to(torch.uint8)
    save_file({"images": images}, tmp_path / "samples-0000.safetensors")
    pool = vqa.load_samples(tmp_path)
    assert torch.equal(pool.images, images[16:])
    assert len(pool.readings) == 16


def test_targets_are_what_the_oracle_reads():
    images, _ = drawn("train", 12)
    readings = read(images)
    truth = vqa.of_readings(readings)
    assert truth.count.tolist() == [r.count for r in readings]
    assert torch.bincount(truth.row, minlength=12).tolist() == [len(r.objects) for r in readings]
    own, row, obj = vqa._cells_of(truth)
    first = vqa.obj_first(obj)
    centers = cell_centers()[own[first]]
    assert torch.equal(row[first], truth.row)
    assert bool(((centers - truth.place).abs() <= 2.0 + 1e-4).all())


def test_moves_go_with_their_objects():
    images, specs = drawn("train", 8)
    moved, by = vqa.shifted(images, np.random.default_rng(0))
    for before, after, (dx, dy) in zip(read(images), read(moved), by.tolist(), strict=True):
        shifted = vqa._moved(before, dx, dy)
        for a, b in zip(shifted.objects, after.objects, strict=True):
            assert abs(a.x - b.x) < 1 and abs(a.y - b.y) < 1
    assert all(v.all_met for v in oracle(moved, [caption(s) for s in specs]))


def test_it_learns_and_is_read_back(tmp_path):
    short = StageRecipe(12, 16, 3e-3, warmup=2)
    recipe = replace(Recipe(), vqa_renders=64, vqa_start=short)
    model = vqa.start_vqa(recipe, tmp_path, "cpu")
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in _log(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]
    vqa.write_detector(model, tmp_path / "vqa" / "detector.safetensors")
    again = load_detector(tmp_path / "vqa" / "detector.safetensors")
    images, _ = drawn("train", 2)
    torch.testing.assert_close(
        again(images).centers, model.eval()(images).centers, atol=2e-2, rtol=0.1
    )


def _log(folder):
    return (folder / "vqa-renders.jsonl").read_text().splitlines()
