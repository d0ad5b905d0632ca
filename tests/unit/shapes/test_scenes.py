"""The world of shapes: what is drawn is what the spec says."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from steer.shapes.drawing import place, render, render_labels
from steer.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    Group,
    Scene,
    Shape,
    Spec,
    combination,
    is_held_out,
    is_true_of,
    perturb,
    relation_holds,
    sample_spec,
)


seeds = st.integers(0, 2**32 - 1)
RED, WHITE = (0.87, 0.13, 0.15), (0.96, 0.96, 0.96)


def drawn(seed: int) -> tuple[Spec, Scene, np.random.Generator]:
    rng = np.random.default_rng(seed)
    spec = sample_spec(rng)
    return spec, place(spec, rng), rng


def shown(*shapes: Shape) -> torch.Tensor:
    return render([Scene(shapes, WHITE)])


@given(seeds)
@settings(max_examples=150, deadline=None)
def test_a_spec_is_true_of_its_scenes_and_its_negatives_are_not(seed: int) -> None:
    spec, scene, rng = drawn(seed)
    assert is_true_of(spec, scene)
    assert is_true_of(replace(spec, background=None), scene)
    for _ in range(5):
        other = perturb(spec, rng)
        assert other != spec
        assert not is_true_of(other, scene)
        assert is_true_of(other, place(other, rng))


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_objects_keep_their_distance(seed: int) -> None:
    _, scene, _ = drawn(seed)
    covers = [shown(replace(s, rgb=(0.0, 0.0, 0.0)))[0, 0] < 0.5 for s in scene.shapes]
    points = [cover.nonzero().double() for cover in covers]
    for a, b in itertools.combinations(points, 2):
        assert torch.cdist(a, b).min() >= 3
    for p in points:
        assert p.min() >= 1
        assert p.max() <= 62


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_drawing_is_deterministic(seed: int) -> None:
    spec, scene, rng = drawn(seed)
    again, same, other = drawn(seed)
    assert (spec, scene, perturb(spec, rng)) == (again, same, perturb(again, other))
    assert torch.equal(render([scene]), render([same]))


@given(st.sampled_from(SHAPES), st.floats(13, 26), st.floats(-6, 6), st.floats(28, 36))
@settings(max_examples=80, deadline=None)
def test_the_area_is_that_of_the_equal_area_circle(
    kind: str, diameter: float, angle: float, x: float
) -> None:
    image = shown(Shape(kind, (0.0, 0.0, 0.0), x, 64 - x, diameter, angle))[0, 0]
    area = float((1 - image / WHITE[0]).sum())
    assert area == pytest.approx(math.pi / 4 * diameter**2, rel=0.03)


def test_the_hardest_specs_find_room() -> None:
    rng = np.random.default_rng(0)
    large = [Group(1, color, "triangle", "large") for color in ("red", "blue")]
    for relation in (*RELATIONS, None):
        spec = Spec(tuple(large), relation)
        assert all(is_true_of(spec, place(spec, rng)) for _ in range(20))


@given(seeds)
@settings(max_examples=150, deadline=None)
def test_held_out_depends_on_the_combination_only(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec = sample_spec(rng)
    plain = tuple(replace(group, size=None) for group in spec.groups)
    turned = OPPOSITE[spec.relation] if spec.relation else None
    for same in (Spec(plain, spec.relation, "black"), Spec(plain[::-1], turned)):
        assert combination(same) == combination(spec)
        assert is_held_out(same) == is_held_out(spec)
    assert not is_held_out(sample_spec(rng, "train"))
    assert is_held_out(sample_spec(rng, "held_out"))


def test_the_split_never_changes() -> None:
    """Trained weights depend on this choice."""
    held = {
        f"{n} {c} {s}"
        for n, c, s in itertools.product((1, 2, 3), COLORS, SHAPES)
        if is_held_out(Spec((Group(n, c, s),)))
    }
    assert held == {
        *("1 orange circle", "1 green square", "1 purple triangle", "2 red circle"),
        *("2 yellow square", "2 purple triangle", "3 orange triangle", "3 purple square"),
    }


def test_the_mix_of_specs() -> None:
    rng = np.random.default_rng(1)
    specs = [sample_spec(rng) for _ in range(3000)]
    alone = [spec.groups[0].count for spec in specs if len(spec.groups) == 1]
    groups = [group for spec in specs for group in spec.groups]
    related = np.mean([spec.relation is not None for spec in specs])
    assert np.mean([spec.background is not None for spec in specs]) == pytest.approx(0.4, abs=0.04)
    assert np.mean([g.size is not None for g in groups]) == pytest.approx(0.4, abs=0.04)
    assert np.mean([is_held_out(spec) for spec in specs]) == pytest.approx(1 / 8, abs=0.04)
    assert alone.count(1) / 3000 == pytest.approx(0.25, abs=0.03)
    assert len(alone) / 3000 == pytest.approx(0.5, abs=0.03)
    assert related == pytest.approx(0.35, abs=0.03)


def test_render_paints_the_colours_and_labels_name_them() -> None:
    circle = Shape("circle", RED, 20.0, 40.0, 24.0)
    square = Shape("square", (0.13, 0.35, 0.87), 48.0, 16.0, 14.0)
    scene = Scene((circle, square), WHITE)
    image, labels = render([scene])[0], render_labels([scene])[0]
    assert image.shape == (3, 64, 64)
    assert image.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert image[:, 40, 20].tolist() == pytest.approx(RED)
    assert image[:, 60, 60].tolist() == pytest.approx(WHITE)
    assert labels[40, 20] == 1 + list(COLORS).index("red") * 3 + SHAPES.index("circle")
    assert labels[16, 48] == 1 + list(COLORS).index("blue") * 3 + SHAPES.index("square")
    assert set(labels.unique().tolist()) == {0, 1, 1 + 4 * 3 + 1}


def test_rendering_a_batch_is_rendering_each() -> None:
    scenes = [drawn(seed)[1] for seed in range(6)] + [Scene((), WHITE)]
    alone = torch.cat([render([scene]) for scene in scenes])
    torch.testing.assert_close(render(scenes), alone, rtol=0, atol=1e-6)  # rounding near 1
    assert torch.equal(
        render_labels(scenes), torch.cat([render_labels([scene]) for scene in scenes])
    )


def test_truth_is_exact() -> None:
    red, blue = Group(1, "red", "circle"), Group(1, "blue", "square")
    scene = place(Spec((red, blue), "left of"), np.random.default_rng(0))
    assert is_true_of(Spec((red, blue)), scene)
    assert is_true_of(Spec((blue, red), "right of"), scene)
    for false in (
        Spec((red, blue), "above"),
        Spec((red, blue), "right of"),
        Spec((red,)),
        Spec((Group(2, "red", "circle"),)),
        Spec((Group(1, "blue", "circle"), Group(1, "red", "square")), "left of"),
    ):
        assert not is_true_of(false, scene)


@given(st.floats(-60, 60), st.floats(-60, 60))
def test_at_most_one_relation_holds(dx: float, dy: float) -> None:
    holds = [relation_holds(relation, dx, dy) for relation in RELATIONS]
    assert sum(holds) == (abs(dx) != abs(dy))


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_background_is_as_asked(background: str) -> None:
    spec = Spec((Group(1, "red", "circle"),), background=background)
    scene = place(spec, np.random.default_rng(0))
    assert scene.background == background
    assert render([scene])[0, :, 0, 0].tolist() == pytest.approx(list(scene.background_rgb))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, "red", "circle"), "count"),
        ((1, "pink", "circle"), "color"),
        ((1, "red", "star"), "shape"),
        ((1, "red", "circle", "huge"), "size"),
    ],
)
def test_impossible_groups_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Group(*cast(tuple[int, str, str], arguments))


def test_impossible_specs_are_refused() -> None:
    red = Group(1, "red", "circle")
    with pytest.raises(ValueError, match="three large"):
        Spec((Group(3, "red", "circle", "large"),))
    with pytest.raises(ValueError, match="differ"):
        Spec((red, red))
    with pytest.raises(ValueError, match="one object each"):
        Spec((red, Group(2, "blue", "square")))
    with pytest.raises(ValueError, match="relation"):
        Spec((red,), "left of")
    with pytest.raises(ValueError, match="background"):
        Spec((red,), background="pink")
    with pytest.raises(ValueError, match="one or two"):
        Spec(())
