"""The oracle: right on renders, soft and noisy ones too, and strict about what is wrong."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from steer.shapes.captions import caption
from steer.shapes.drawing import place, render
from steer.shapes.oracle import judge, neatness, oracle
from steer.shapes.reading import Reading, read
from steer.shapes.scenes import Group, Scene, Shape, Spec, is_true_of, perturb, sample_spec


RED, BLUE = (0.87, 0.13, 0.15), (0.13, 0.35, 0.87)
WHITE = (0.96, 0.96, 0.96)
RED_CIRCLE = Spec((Group(1, "red", "circle"),))


@cache
def world(count: int = 300) -> tuple[list[Spec], list[Scene], torch.Tensor]:
    rng = np.random.default_rng(11)
    specs = [sample_spec(rng) for _ in range(count)]
    scenes = [place(spec, rng) for spec in specs]
    return specs, scenes, render(scenes)


@cache
def readings() -> list[Reading]:
    return read(world()[2])


def softened(images: torch.Tensor, sigma: float, noise: float) -> torch.Tensor:
    blurred = ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma))
    grain = np.random.default_rng(0).normal(0, noise, blurred.shape)
    return torch.from_numpy(np.clip(blurred + grain, 0, 1).astype(np.float32))


def shown(*shapes: Shape, ground: tuple[float, float, float] = WHITE) -> torch.Tensor:
    return render([Scene(shapes, ground)])


def ball(x: float = 32.0, rgb: tuple[float, float, float] = RED, kind: str = "circle") -> Shape:
    return Shape(kind, rgb, x, 32.0, 22.0)


def met(verdicts: list[bool]) -> float:
    return float(np.mean(verdicts))


def test_renders_are_right() -> None:
    specs, _, images = world()
    assert met([verdict.all_met for verdict in oracle(images, specs)]) >= 0.99


@pytest.mark.parametrize(("sigma", "noise"), [(0.6, 0.03), (1.0, 0.02), (0.01, 0.05)])
def test_soft_and_noisy_renders_are_right(sigma: float, noise: float) -> None:
    specs, _, images = world()
    specs, images = specs[:150], softened(images[:150], sigma, noise)
    assert met([verdict.all_met for verdict in oracle(images, specs)]) >= 0.97


@pytest.mark.parametrize("aspect", ["color", "shape", "count", "size", "relation", "background"])
def test_wrong_aspects_are_rejected(aspect: str) -> None:
    rng = np.random.default_rng(3)
    rejected = []
    for reading, spec in zip(readings(), world()[0], strict=True):
        for wrong in {perturb(spec, rng) for _ in range(6)}:
            if aspect in changed(spec, wrong):
                rejected.append(not judge(reading, wrong).all_met)
    assert len(rejected) > 40
    assert met(rejected) >= 0.99


def changed(spec: Spec, other: Spec) -> set[str]:
    """Names of the fields in which the specs differ."""
    fields = {"relation"} if spec.relation != other.relation else set()
    fields |= {"background"} if spec.background != other.background else set()
    for a, b in zip(spec.groups, other.groups, strict=True):
        names = ("count", "color", "shape", "size")
        fields |= {name for name in names if getattr(a, name) != getattr(b, name)}
    return fields


def test_it_agrees_with_the_geometry_on_every_pair() -> None:
    specs, scenes, _ = world()
    for reading, scene in zip(readings()[:100], scenes, strict=False):
        for spec in specs[:100]:
            assert judge(reading, spec).all_met == is_true_of(spec, scene)


def test_objects_are_measured() -> None:
    for reading, scene in zip(readings(), world()[1], strict=True):
        found = sorted((o.x, o.y, o.diameter) for o in reading.objects)
        truth = sorted((s.x, s.y, s.diameter) for s in scene.shapes)
        assert np.abs(np.array(found) - np.array(truth)).max() < 0.5
        assert min(o.fit for o in reading.objects) > 0.8


def test_notes_say_what_failed() -> None:
    spec = Spec((Group(1, "red", "circle"), Group(1, "blue", "square")), "left of", "black")
    verdict = oracle(shown(ball(48), ball(16, BLUE, "square")), spec)[0]
    assert verdict.notes == (
        "the red circle is not left of the blue square",
        "the background is white, not black",
    )
    assert verdict.fraction == pytest.approx(5 / 7)
    assert not verdict.all_met
    extra = oracle(shown(ball(16), ball(48, BLUE, "triangle")), "a red circle")[0]
    assert extra.notes[0].startswith("there are 2 objects, not 1")


def test_an_empty_picture_meets_nothing() -> None:
    verdict = oracle(shown(), "a red circle on a white background")[0]
    assert verdict.fraction == pytest.approx(1 / 4)
    assert "red circle: missing, not red" in verdict.notes
    assert neatness(shown())[0] == 0


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_a_shape_in_between_is_not_a_circle(share: float) -> None:
    for kind in ("square", "triangle"):
        morph = (1 - share) * shown(ball()) + share * shown(ball(kind=kind))
        assert not oracle(morph, RED_CIRCLE)[0].all_met


def test_touching_objects_of_two_colours_are_parted() -> None:
    image = shown(ball(21), ball(43, BLUE, "square"))
    assert oracle(image, "a red circle left of a blue square")[0].all_met


def test_malformed_pictures_are_rejected() -> None:
    left = torch.arange(64) < 32
    two_tone = torch.where(left, shown(ball()), shown(ball(rgb=BLUE)))
    pale = shown(ball(rgb=(0.95, 0.6, 0.65)))
    cut = shown(ball(2))
    ghost = 0.7 * shown(ball(16)) + 0.3 * shown(ball(16), ball(48, BLUE))
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for image in (two_tone, pale, cut, ghost, noise, noise * float("nan")):
        assert not oracle(image, RED_CIRCLE)[0].all_met


def test_every_kind_of_input_is_read_alike() -> None:
    image = shown(ball())
    array = (image * 255).round().byte().permute(0, 2, 3, 1).numpy()
    picture = Image.fromarray(array[0])
    big = picture.resize((128, 128), Image.Resampling.LANCZOS)
    for given in (image, image[0], array, array / 255, [picture], [big], image.half()):
        verdict = oracle(given, "a large red circle on a white background")[0]
        assert verdict.all_met, verdict.notes


def test_prompts_are_one_or_one_each() -> None:
    images = shown(ball()).repeat(2, 1, 1, 1)
    assert [v.all_met for v in oracle(images, ["a red circle", "a red square"])] == [True, False]
    assert [v.all_met for v in oracle(images, caption(RED_CIRCLE))] == [True, True]
    with pytest.raises(ValueError, match="3 prompts for 2 images"):
        oracle(images, ["a red circle"] * 3)
    with pytest.raises(ValueError, match="images must be"):
        oracle(torch.rand(2, 4, 64, 64), "a red circle")
    with pytest.raises(ValueError, match="unknown word"):
        oracle(images, "a red dog")


def test_neatness_falls_as_the_picture_gets_worse() -> None:
    images = world()[2][:60]
    clean, grainy, worse = (
        neatness(x) for x in (images, softened(images, 0.6, 0.03), softened(images, 1.0, 0.06))
    )
    assert clean.shape == (60,)
    assert clean.min() > 0.9
    assert (clean > grainy).all()
    assert (grainy > worse).mean() > 0.95
    assert worse.min() >= 0
    assert clean.max() <= 1
