"""`steer tune scorer` end to end: it learns, resumes, stops at NaN, and its folder loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import steer
from steer.cli.tune import tune
from steer.core.errors import NonFiniteError, TuneError
from steer.shapes import caption
from steer.shapes.drawing import place, render
from steer.shapes.scenes import sample_spec
from steer.tune.data.config import DataConfig, PairConfig
from steer.tune.data.make import make
from steer.tune.scorer import fit as fitting, loop
from steer.tune.scorer.choices import divide, read_choices
from steer.tune.scorer.config import ScorerConfig
from steer.tune.scorer.fit import fit
from steer.tune.scorer.latents import LatentChoices
from steer.tune.scorer.model import load_open_clip, lock


PAIRS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of one scene, bright and dark; the annotators like dark ones."""
    where = tmp_path_factory.mktemp("choices")
    rng = np.random.default_rng(0)
    entries: list[dict[str, Any]] = []
    for i in range(PAIRS):
        spec = sample_spec(rng, "train")
        (image,) = render([place(spec, rng)])
        names = []
        for name, picture in (("bright", image), ("dark", image * 0.3)):
            array = (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            Image.fromarray(array).save(where / f"{i}-{name}.png")
            names.append(f"{i}-{name}.png")
        shares = [0.1, 0.9] if i % 2 else [1, 9]
        entries.append({"prompt": caption(spec, rng), "images": names, "preference": shares})
    (where / "pairs.json").write_text(json.dumps(entries))
    return where


def configured(folder: Path, out: Path, **more: Any) -> ScorerConfig:
    given: dict[str, Any] = {
        "model": "shapes-clip",
        "data": str(folder / "pairs.json"),
        "test_share": 0.4,
        "steps": 10,
        "batch": 8,
        "lr": 1e-3,
        "warmup": 2,
        "ema": 0.5,
        "dtype": "float32",
        "checkpoint_every": 4,
    }
    return ScorerConfig(out=str(out), **{**given, **more})


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, fit(configured(folder, out), progress=False)


def test_it_learns_what_was_preferred(folder: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    _, result = whole
    before, after = result["accuracy_before"], result["accuracy"]
    assert after["low"] > before["high"]
    assert after["low"] < after["value"] < after["high"]
    assert after["pairs"] == after["prompts"] == 24


def test_its_folder_is_a_reward_and_an_open_clip_model(
    folder: Path, whole: tuple[Path, dict[str, Any]]
) -> None:
    out, result = whole
    reward = steer.reward(result["reward"], device="cpu")
    _, choices = divide(read_choices(folder / "pairs.json"), 0.4, 0)
    images = [Image.open(path) for choice in choices for path in choice.images]
    texts = [choice.prompt for choice in choices for _ in choice.images]
    scores = reward(images, texts).view(-1, 2)  # pyright: ignore[reportArgumentType]
    right = (scores[:, 1] > scores[:, 0]).float().mean()
    assert float(right) == pytest.approx(result["accuracy"]["value"], abs=1.01 / len(choices))
    location = f"local-dir:{out / 'scorer'}"
    loaded: Any = open_clip.create_model_and_transforms(location)
    model, _, transform = loaded
    tokens = open_clip.get_tokenizer(location)(texts)
    with torch.no_grad():
        pixels = torch.stack([transform(image) for image in images])
        features = model.encode_image(pixels, normalize=True)
        cosine = (features * model.encode_text(tokens, normalize=True)).sum(1)
    torch.testing.assert_close(cosine, scores.flatten(), atol=2e-3, rtol=0)


def test_killed_and_resumed_equals_uninterrupted(
    folder: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: Any
) -> None:
    calls = 0
    original = fitting.preference_loss

    def dying(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 7:  # three steps after its checkpoint
            raise KeyboardInterrupt
        return original(*args)

    config = configured(folder, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "preference_loss", dying)
        with pytest.raises(KeyboardInterrupt):
            fit(config, progress=False)
    assert not (tmp_path / "run" / "scorer.json").exists()
    result = fit(config, progress=False)
    assert result["version"] == whole[1]["version"] and calls == 8
    name = "scorer/open_clip_model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (whole[0] / name).read_bytes()
    monkeypatch.setattr(loop, "train", None)  # a finished run is left alone
    assert fit(config, progress=False)["version"] == result["version"]
    with pytest.raises(TuneError, match=r"settings\.lr was 0.001, now 0.002"):
        fit(configured(folder, tmp_path / "run", lr=2e-3), progress=False)


def test_a_loss_that_is_not_finite_stops_with_step_and_batch(
    folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    calls = 0
    original = fitting.preference_loss

    def breaking(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*args) * (float("nan") if calls == 6 else 1.0)

    monkeypatch.setattr(fitting, "preference_loss", breaking)
    config = configured(folder, tmp_path / "run")
    with pytest.raises(NonFiniteError, match=r"step 5: loss=nan.*dark.png") as error:
        fit(config, progress=False)
    assert error.value.step == 5 and len(error.value.ids) == 8
    assert error.value.checkpoint is not None
    state = torch.load(error.value.checkpoint, weights_only=True)
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["module"].values())


def test_locked_towers_stay_as_they_were(folder: Path, tmp_path: Path) -> None:
    config = configured(folder, tmp_path / "run", steps=2, unlocked_image=2, unlocked_text=0)
    fit(config, progress=False)
    before = load_open_clip("shapes-clip").model.state_dict()
    after = load_open_clip(f"local-dir:{tmp_path / 'run' / 'scorer'}").model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(
        name.startswith(("visual.transformer.resblocks.5.", "visual.ln_post", "visual.proj"))
        or name == "logit_scale"
        for name in changed
    )
    with pytest.raises(TuneError, match="nothing is left to train"):
        model = load_open_clip("shapes-clip").model.requires_grad_(False)
        lock(model, None, None)


def test_choices_are_read_in_every_spelling(folder: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    a, b = (str(folder / f"0-{name}.png") for name in ("bright", "dark"))
    c = str(folder / "1-dark.png")
    entries = [
        {"prompt": "x", "images": [a, b], "preference": [1, 3]},
        {"caption": "x", "image_path": [a, b], "human_preference": [0, 1]},
        {"prompt": "x", "winner": b, "loser": a},
        {"prompt": "x", "images": [a, b], "choice": 1},
        {"prompt": "x", "images": [a, b, c], "rank": [3, 1, 2]},
        {"prompt": "x", "images": [a, b], "label": [0, 0]},
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, entries)))
    found = read_choices(tmp_path / "c.jsonl")
    assert [c.target for c in found] == [
        (0.25, 0.75),
        (0.0, 1.0),
        (1.0, 0.0),
        (0.0, 1.0),
        (0.0, 1.0, 0.0),
        (0.5, 0.5),
    ]
    assert found[4].worth == (-3.0, -1.0, -2.0)
    columns = {key: [e[key] for e in entries[:1]] for key in entries[0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "c.parquet")
    assert read_choices(tmp_path / "c.parquet") == found[:1]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "must hold a list"),
        ([], "0 choices.*are needed"),
        ([3], "entry 0: 3 is no mapping"),
        ([{"prompt": "x", "images": ["0-dark.png"]}], "at least two images"),
        ([{"prompt": "x", "winner": "0-dark.png", "loser": "0-dark.png"}], "with itself"),
        ([{"prompt": "x", "images": ["0-dark.png", "0-bright.png"]}], "says nothing"),
        ([{"prompt": "x", "images": ["a", "b"], "choice": 2}], "choice=2: the number"),
        ([{"prompt": "x", "images": ["a", "b"], "preference": [1]}], "for each of 2 images"),
        ([{"prompt": "x", "images": ["a", "b"], "preference": [1, float("nan")]}], "finite"),
        ([{"prompt": "x", "images": ["a", "b"], "preference": [1, -1]}], "at least 0"),
        ([{"prompt": "x", "images": ["a", "b"], "choice": 0}], "2 images do not exist"),
        (
            [{"prompt": "x", "images": ["0-dark.png", "0-bright.png"], "preference": [2, 2]}],
            r"every choice is a tie \(histogram of shares: 0.5: 2",
        ),
    ],
)
def test_choices_that_are_none(entries: Any, message: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(entries))
    with pytest.raises(TuneError, match=message):
        read_choices(tmp_path / "c.json", folder)


def test_bad_input(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is left to train"):
        configured(folder, tmp_path, unlocked_image=0, unlocked_text=0)
    with pytest.raises(TuneError, match="cannot be read"):
        fit(configured(folder, tmp_path / "a", data="no.json"), progress=False)
    with pytest.raises(TuneError, match="is 0: name a held_out"):
        fit(configured(folder, tmp_path / "a", test_share=0.0), progress=False)
    with pytest.raises(ValueError, match="open_clip has no model"):
        fit(configured(folder, tmp_path / "a", model="ViT-Z"), progress=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(TuneError, match="out="):
        fit(configured(folder, tmp_path / "file"), progress=False)
    same = Image.open(folder / "0-dark.png")
    same.save(tmp_path / "same.png")
    entry = {"prompt": "x", "winner": str(folder / "0-dark.png"), "loser": "same.png"}
    (tmp_path / "c.json").write_text(json.dumps([entry]))
    with pytest.raises(TuneError, match="two of these images are the same"):
        given = {"data": str(tmp_path / "c.json"), "held_out": str(tmp_path / "c.json")}
        fit(configured(folder, tmp_path / "b", **given), progress=False)


def test_prompts_are_wholly_on_one_side(folder: Path) -> None:
    choices = read_choices(folder / "pairs.json")
    train, test = divide([*choices, *choices], 0.25, 0)
    assert not {c.prompt for c in train} & {c.prompt for c in test}
    assert len(train) + len(test) == 2 * PAIRS


def test_pairs_of_a_preference_set_are_decoded(tmp_path: Path) -> None:
    """A paired set of the bundled world: images as the pipeline makes them, splits as they are."""
    settings = {"prompts": {"shapes": "train", "count": 6, "seed": 1}, "seeds": 2, "steps": 2}
    given = DataConfig(
        out=str(tmp_path / "set"),
        **settings,
        test_share=0.34,
        pairs=PairConfig(),
        stored_dtype="float32",
    )
    folder = make(given, progress=False)
    clip = load_open_clip("shapes-clip")
    config = configured(folder, tmp_path / "run", data=str(folder), batch=2)
    source = fitting.make_source(config, clip, "cpu")
    assert isinstance(source, LatentChoices) and len(source.test) == 2
    (batch,) = source.held_out(8)
    row = source.data.pairs.winner[source.data.pairs.split == "test"][0]  # pyright: ignore
    index = pq.read_table(folder / "index.parquet").to_pylist()[row]
    pipe: Any = steer.shapes.pipeline()
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(index["seed"])
    call = {"num_inference_steps": 2, "generator": generator, "output_type": "pt"}
    image = pipe(index["prompt"], **call).images
    torch.testing.assert_close(batch.pixels[:1], clip.preprocess(image), atol=1e-4, rtol=0)
    assert batch.texts[0] == index["prompt"] and batch.counts == (2, 2)
    assert fit(configured(folder, tmp_path / "run", data=str(folder), steps=2), progress=False)
    scored = DataConfig(out=str(tmp_path / "scored"), samples=str(folder))
    with pytest.raises(TuneError, match="a scored set without pairs"):
        data = str(make(scored, progress=False))
        fit(configured(folder, tmp_path / "b", data=data), progress=False)


def test_the_command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    given = {"model": "shapes-clip", "data": str(folder / "pairs.json"), "steps": 1, "batch": 2}
    (tmp_path / "c.yaml").write_text(json.dumps({**given, "warmup": 0, "out": "unused"}))
    command = ["scorer", str(tmp_path / "c.yaml"), "--device", "cpu", "--out"]
    done = runner.invoke(tune, [*command, str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "Held-out accuracy now:" in done.output and "clip:local-dir:" in done.output
    bad = runner.invoke(tune, ["scorer", str(tmp_path / "no.yaml")])
    assert bad.exit_code == 2 and "cannot be read" in bad.output + str(bad.stderr)

    def diverging(*args: Any, **kwargs: Any) -> Any:
        raise NonFiniteError("loss=nan", 3, ["a", "b"], None)

    monkeypatch.setattr(fitting, "fit", diverging)
    bad = runner.invoke(tune, [*command, str(tmp_path / "run")])
    assert bad.exit_code == 1 and "step 3: loss=nan" in bad.output + str(bad.stderr)


@pytest.mark.parametrize("damage", ["empty", "truncated", "foreign", "pickle"])
def test_a_damaged_checkpoint_is_named(damage: str, folder: Path, tmp_path: Path) -> None:
    job = configured(folder, tmp_path / "run", steps=5)
    fit(job)
    (tmp_path / "run" / "scorer.json").unlink()
    path = tmp_path / "run" / "scorer.pt"
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(path.read_bytes()[:-999])
        case "foreign":
            torch.save({"step": 2, "module": {"a": torch.zeros(1)}}, path)
        case "pickle":
            torch.save({"step": Path("x")}, path)
    with pytest.raises(TuneError, match=r"scorer\.pt.*delete it to begin again"):
        fit(job)


def test_a_scorer_that_is_gone_is_written_again(
    folder: Path, whole: tuple[Path, dict[str, Any]]
) -> None:
    out, found = whole
    weights = out / "scorer" / "open_clip_model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    assert fit(configured(folder, out)) == found
    assert weights.read_bytes() == before


def test_a_folder_of_something_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "scorer.jsonl").write_text("mine")
    with pytest.raises(TuneError, match=r"holds 'scorer\.jsonl', which steer tune scorer did not"):
        fit(configured(folder, tmp_path))
    assert (tmp_path / "scorer.jsonl").read_text() == "mine"
