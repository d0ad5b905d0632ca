"""The world's detector: answers by hand-made cells, and by the packaged weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steer import shapes
from steer.shapes.captions import parse
from steer.shapes.detector import CELLS, Detector, Seen, answers, cell_centers, load_detector
from steer.shapes.drawing import place, render
from steer.shapes.scenes import COLORS, SHAPES, perturb, sample_spec


SURE = 12.0


def seen_of(*objects: tuple[str, str, float, float, bool], ground: int = 0) -> Seen:
    """One picture of (colour, shape, x, y, large), as a detector without doubts would see it."""
    middle = cell_centers()
    centers = torch.zeros(1, CELLS**2)
    colors, shape = torch.zeros(1, CELLS**2, 7), torch.zeros(1, CELLS**2, 4)
    large, places = torch.zeros(1, CELLS**2), middle[None].clone()
    for color, kind, x, y, big in objects:
        cell = int((middle - torch.tensor([x, y])).norm(dim=1).argmin())
        centers[0, cell] = 1.0
        colors[0, cell, list(COLORS).index(color)] = SURE
        shape[0, cell, SHAPES.index(kind)] = SURE
        large[0, cell] = SURE if big else -SURE
        places[0, cell] = torch.tensor([x, y])
    back = torch.zeros(1, 4)
    back[0, ground] = SURE
    return Seen(
        centers,
        colors.log_softmax(-1),
        shape.log_softmax(-1),
        large,
        places,
        back.log_softmax(-1),
        torch.tensor([SURE]),
        torch.tensor(8.0),
    )


PAIR = (("red", "circle", 14.0, 30.0, False), ("blue", "square", 46.0, 34.0, True))


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a red circle left of a blue square", []),
        ("a small red circle and a large blue square on a white background", []),
        ("a red circle right of a blue square", [3]),
        ("a red circle above a blue square", [3]),
        ("a large red circle left of a blue square", [2]),
        ("a red circle left of a blue square on a black background", [4]),
        ("a red triangle and a blue square", [1]),
        ("a green circle and a blue square", [1]),
        ("a red circle", [0]),
        ("two blue squares", [1]),
    ],
)
def test_each_statement_is_answered_by_itself(caption, wrong):
    found = answers(seen_of(*PAIR), parse(caption))[0].exp()
    assert [i for i, p in enumerate(found.tolist()) if p < 0.05] == wrong
    assert all(p > 0.95 for i, p in enumerate(found.tolist()) if i not in wrong)


def test_several_of_a_kind_are_counted_and_must_all_fit():
    three = seen_of(*[("green", "triangle", x, 20.0, x > 40) for x in (10.0, 30.0, 50.0)])
    right, wrong = (
        answers(three, parse(f"{n} green triangles"))[0].exp() for n in ("three", "two")
    )
    assert right.min() > 0.95
    assert wrong.max() < 0.05
    assert answers(three, parse("three small green triangles"))[0, 2].exp() < 0.05


def test_a_centre_split_over_two_cells_is_one_object():
    seen = seen_of(PAIR[0])
    cell = int(seen.centers[0].argmax())
    for part in (seen.colors, seen.shapes, seen.large, seen.places):
        part[0, cell + 1] = part[0, cell]
    seen.centers[0, cell : cell + 2] = 0.5
    assert answers(seen, parse("a small red circle"))[0].exp().min() > 0.95


def test_packaged_weights_tell_held_out_scenes_from_their_twins():
    rng = np.random.default_rng(3)
    specs = [sample_spec(rng, "held_out") for _ in range(48)]
    twins = [perturb(spec, rng) for spec in specs]
    model = load_detector(shapes.weights_folder() / "vqa" / "detector.safetensors")
    seen = model(render([place(spec, rng) for spec in specs]))
    rows = [seen.rows(torch.tensor([i])) for i in range(len(specs))]
    own = [float(answers(row, spec).mean()) for row, spec in zip(rows, specs, strict=True)]
    other = [float(answers(row, spec).mean()) for row, spec in zip(rows, twins, strict=True)]
    assert np.mean(np.array(own) > np.array(other)) > 0.9


def test_other_sizes_are_resized_and_gradients_reach_every_pixel_block():
    torch.manual_seed(0)
    model = Detector().eval()
    images = torch.rand(2, 3, 128, 128, requires_grad=True)
    answers(model(images), parse("a red circle left of a blue square")).sum().backward()
    assert images.grad is not None
    blocks = images.grad.abs().unflatten(2, (8, 16)).unflatten(4, (8, 16)).amax((1, 3, 5))
    assert bool((blocks > 0).all())


def test_another_network_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"stem.0.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(RuntimeError, match="stem"):
        load_detector(tmp_path / "other.safetensors")
