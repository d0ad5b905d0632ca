"""The world as shipped: it loads with the public libraries, paints, and its scorer can judge."""

from __future__ import annotations

import time
from typing import Any

import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import steer
from recipes.shapes_world.scorer import within_caption_auc
from steer.core.meter import FlopCounter


CAPTIONS, IMAGES, STEPS = 16, 4, 6
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    pipe = steer.shapes.pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def samples(pipe: Any) -> tuple[list[str], Tensor]:
    """Captions of held-out combinations and `(captions, images, 3, 64, 64)` samples."""
    texts = steer.shapes.prompts("held_out", CAPTIONS, seed=5)
    parts = []
    for i in range(0, CAPTIONS, 8):
        batch = [text for text in texts[i : i + 8] for _ in range(IMAGES)]
        noise = torch.Generator().manual_seed(i)
        out = pipe(
            batch,
            num_inference_steps=STEPS,
            guidance_scale=3.5,
            generator=noise,
            output_type="pt",
        )
        parts.append(out.images)
    return texts, torch.cat(parts).unflatten(0, (CAPTIONS, IMAGES))


def test_all_weights_are_safetensors_and_small() -> None:
    files = [path for path in steer.shapes.weights_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 60e6
    tiny = [path for path in files if "tiny" in path.parts]
    assert 0 < sum(path.stat().st_size for path in tiny) <= 0.3e6
    assert not [p for p in files if p.suffix in {".pt", ".pth", ".bin", ".ckpt", ".pkl"}]
    assert (steer.shapes.weights_folder() / "README.md").exists()
    configs = [path.read_text("utf-8") for path in files if path.suffix == ".json"]
    assert not [text for text in configs if "_name_or_path" in text]


def test_diffusers_loads_and_runs_the_folder_as_it_is() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(steer.shapes.weights_folder() / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a red circle", num_inference_steps=4, output_type="pt")
    assert out.images.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("name", ["clip", "scorer"])
def test_open_clip_loads_the_folder_and_agrees_with_the_reward(name: str) -> None:
    folder = steer.shapes.weights_folder() / name
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    prompts = ["a red circle left of a blue square", "two small green triangles"]
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model.eval()
    with torch.no_grad():
        image = model.encode_image((images - 0.5) / 0.5, normalize=True)  # pyright: ignore
        text = model.encode_text(tokenize(prompts), normalize=True)  # pyright: ignore
    reward = steer.reward({"clip": "shapes-clip", "scorer": "shapes"}[name], device="cpu")
    torch.testing.assert_close(reward(images, prompts), (image * text).sum(-1), atol=1e-5, rtol=0)


def test_one_image_takes_under_three_seconds(pipe: Any) -> None:
    pipe("a red circle", num_inference_steps=2)
    start = time.process_time()
    pipe("a red circle", num_inference_steps=20)
    assert time.process_time() - start < 3


def test_there_is_room_to_steer(samples: tuple[list[str], Tensor]) -> None:
    texts, images = samples
    repeated = [text for text in texts for _ in range(IMAGES)]
    verdicts = steer.shapes.oracle(images.flatten(0, 1), repeated)
    assert 0.2 < sum(v.all_met for v in verdicts) / len(verdicts) < 0.8


def test_the_scorer_tells_right_from_wrong(samples: tuple[list[str], Tensor]) -> None:
    texts, images = samples
    repeated = [text for text in texts for _ in range(IMAGES)]
    scores = steer.reward("shapes", device="cpu")(images.flatten(0, 1), repeated)
    correct = [float(v.all_met) for v in steer.shapes.oracle(images.flatten(0, 1), repeated)]
    shape = (CAPTIONS, IMAGES)
    auc = within_caption_auc(scores.view(shape), torch.tensor(correct).view(shape))
    assert auc > 0.75


@pytest.fixture(scope="module")
def turbo() -> Any:
    pipe = steer.shapes.pipeline("turbo")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, texts: list[str], **more: Any) -> Tensor:
    seeds = [torch.Generator().manual_seed(place) for place in range(len(texts))]
    return pipe(texts, generator=seeds, output_type="pt", **more).images


def test_the_few_step_model_takes_no_guidance(turbo: Any) -> None:
    texts = ["a red circle", "two small green triangles"]
    one, other = (draw(turbo, texts, num_inference_steps=2, guidance_scale=w) for w in (1.0, 7.5))
    assert torch.equal(one, other)


def test_the_few_step_model_is_recognisable(turbo: Any) -> None:
    """One step against chance (a caption of another scene), four steps against the plain model."""
    texts = steer.shapes.prompts("held_out", 48, seed=5)
    one, four = (draw(turbo, texts, num_inference_steps=n) for n in (1, 4))
    wrong = steer.shapes.oracle(one, [*texts[1:], texts[0]])
    parts = steer.shapes.oracle(one, texts)
    assert sum(v.fraction for v in parts) > 1.3 * sum(v.fraction for v in wrong)
    assert sum(v.all_met for v in steer.shapes.oracle(four, texts)) > 0.25 * len(texts)


@pytest.fixture(scope="module")
def flow() -> Any:
    pipe = steer.shapes.pipeline("flow")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.exhaustive
def test_the_flow_model_leaves_room_to_steer(flow: Any) -> None:
    texts = steer.shapes.prompts("held_out", 32, seed=5)
    images = draw(flow, texts, num_inference_steps=8, guidance_scale=3.5, max_sequence_length=0)
    verdicts = steer.shapes.oracle(images, texts)
    assert 0.2 < sum(v.all_met for v in verdicts) / len(verdicts) < 0.8


def test_the_flow_model_knows_the_tokens_in_t5s_place(flow: Any) -> None:
    """With and without them it draws pictures of the same reward."""
    texts = steer.shapes.prompts("held_out", 8, seed=5)
    reward = steer.reward("shapes", device="cpu")
    scores = [
        reward(draw(flow, texts, num_inference_steps=10, guidance_scale=3.5, **more), texts)
        for more in ({"max_sequence_length": 0}, {})
    ]
    assert (scores[0].mean() - scores[1].mean()).abs() < 0.05


@pytest.mark.parametrize(("tokens", "gflops"), [(0, 0.95), (256, 4.4)])
def test_what_a_row_of_the_flow_model_costs(flow: Any, tokens: int, gflops: float) -> None:
    totals = []
    for steps in (1, 2):
        with FlopCounter() as counter:
            draw(flow, ["a red circle"], num_inference_steps=steps, max_sequence_length=tokens)
        totals.append(counter.total)
    assert (totals[1] - totals[0]) / 1e9 == pytest.approx(gflops, rel=0.02)


def test_the_flow_model_is_searched(flow: Any) -> None:
    guided = steer.guided(flow, reward="shapes")
    out = guided(
        "a red circle",
        method=steer.SMC(3, when=steer.at(0.5)),
        num_inference_steps=9,
        guidance_scale=3.5,
        max_sequence_length=0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )
    assert out.report.ledger.denoiser_rows == 27 and out.report.ledger.decodes >= 6


def test_worlds_have_names() -> None:
    with pytest.raises(ValueError, match="world='cpu': must be 'diffusion', 'flow', 'turbo'"):
        steer.shapes.pipeline("cpu")  # pyright: ignore[reportArgumentType, reportCallIssue]
