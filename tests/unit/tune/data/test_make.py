"""`steer tune data` end to end on tiny pipelines: what is stored, resumption, refusals."""

from __future__ import annotations

import errno
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from families import arguments, build, redness, seeded
from torch import Tensor

import steer
from steer.core.errors import RewardError, TuneError
from steer.rewards.families import warn_of_agreement
from steer.tune.data import make as making
from steer.tune.data.config import DataConfig, PairConfig, SearchConfig
from steer.tune.data.diversity import prompt_features
from steer.tune.data.features import denoiser_of
from steer.tune.data.folder import Folder
from steer.tune.data.make import make
from steer.tune.dataset import Dataset
from steer.tune.labels import found_labels


EXAMPLES = Path(__file__).parents[4] / "examples"
TEXTS = ["a red circle", "a blue square", "a circle", "left of a square", "red blue"]


def blueness(images: Tensor, prompts: Any) -> Tensor:
    return images[:, 2].mean((1, 2))


def constant(images: Tensor, prompts: Any) -> Tensor:
    return torch.full((len(images),), 0.25)


def broken(images: Tensor, prompts: Any) -> Tensor:
    return torch.where(torch.arange(len(images)) == 1, float("nan"), 0.5)


REWARDS = {f.__name__: steer.reward(f) for f in (redness, blueness, constant, broken)}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return build("sd")


def configured(out: Path, family: str = "sd", **more: Any) -> DataConfig:
    call = arguments(family)
    steps = call.pop("num_inference_steps")
    for name in ("prompt", "generator", "output_type"):
        call.pop(name)
    given: dict[str, Any] = {
        "prompts": TEXTS,
        "rewards": ("redness", "blueness"),
        "seeds": 3,
        "steps": steps,
        "call": call,
        "batch": 4,
        "shard": 6,
        "stored_dtype": "float32",
        "test_share": 0.2,
    }
    return DataConfig(out=str(out), **{**given, **more})


def made(config: DataConfig, pipe: Any) -> Path:
    rewards = [REWARDS[name] for name in config.rewards]
    return make(config, pipe=pipe, rewards=rewards, progress=False)


def contents(folder: Path) -> dict[str, Any]:
    """All files by name; the manifest without times and places."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    manifest = json.loads(files.pop("manifest.json"))
    for name in ("created", "last_run"):
        manifest.pop(name, None)
    return {**files, "manifest": manifest}


@pytest.fixture(scope="module")
def whole(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(configured(tmp_path_factory.mktemp("whole") / "set"), pipe)


def test_latents_and_scores_are_those_of_plain_calls(pipe: Any, whole: Path) -> None:
    data = Dataset.load(whole)
    assert len(data) == 15 and data.manifest["kind"] == "scored"
    index = pq.read_table(whole / "index.parquet").to_pylist()
    for row in (0, 7, 14):
        entry = index[row]
        call = arguments("sd", prompt=entry["prompt"], generator=seeded(entry["seed"]))
        latents = pipe(**call).images
        torch.testing.assert_close(data.latents([row]), latents, atol=1e-5, rtol=1e-4)
        image = pipe(**{**call, "generator": seeded(entry["seed"]), "output_type": "pt"}).images
        assert entry["score"] == pytest.approx(float(redness(image, [])[0]), abs=1e-5)
        assert entry["score_blueness"] == pytest.approx(float(blueness(image, [])[0]), abs=1e-5)
    assert len({entry["seed"] for entry in index}) == 15


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "pixart", "wan"])
def test_cached_text_features_give_the_pipelines_own_predictions(
    family: str, tmp_path: Path
) -> None:
    """The denoiser on cached features equals what it returned inside the pipeline's call."""
    pipe = build(family)
    config = configured(tmp_path / "set", family, seeds=1, prompts=TEXTS[:3], rewards=("redness",))
    if family == "wan":
        pytest.importorskip("ftfy")
    data = Dataset.load(made(config, pipe))
    name, module = denoiser_of(pipe)
    assert data.manifest["pipeline"]["denoiser"] == name
    seen: list[tuple[dict[str, Any], Tensor]] = []

    def note(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = {**dict(zip(["sample", "timestep"], args, strict=False)), **kwargs}
        seen.append((given, output[0]))

    handle = module.register_forward_hook(note, with_kwargs=True)
    pipe(**arguments(family, prompt=TEXTS[1]))
    handle.remove()
    given, expected = seen[0]
    x: Any = given.get("hidden_states", given.get("sample"))
    keywords: dict[str, Any] = {}
    for key, value in {**data.text([1]), **data.shared}.items():
        outer, _, inner = key.partition(".")
        keywords[outer] = {**keywords.get(outer, {}), inner: value} if inner else value
    with torch.no_grad():
        latent = "hidden_states" if name == "transformer" else "sample"
        t = given["timestep"]
        t = t[-1:] if t.ndim else t
        got = module(**{latent: x[-1:]}, timestep=t, **keywords, return_dict=False)[0]
        torch.testing.assert_close(got, expected[-1:], atol=1e-5, rtol=1e-4)
        if data.has_uncond and len(x) == 2:
            keywords = {}
            for key, value in {**data.uncond, **data.shared}.items():
                outer, _, inner = key.partition(".")
                keywords[outer] = {**keywords.get(outer, {}), inner: value} if inner else value
            got = module(**{latent: x[:1]}, timestep=t, **keywords, return_dict=False)[0]
            torch.testing.assert_close(got, expected[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.sample(every=2)
@pytest.mark.parametrize("after", [0, 1, 2, 4, 7])
def test_killed_anywhere_and_resumed_equals_uninterrupted(
    after: int, pipe: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while writing its n-th file, which leaves half a temporary file behind."""
    writes = 0
    atomic = Folder._write

    def dying(self: Folder, name: str, data: bytes) -> None:
        nonlocal writes
        if writes == after:
            (self.path / f".{name.replace('/', '-')}.x.tmp").write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        writes += 1
        atomic(self, name, data)

    config = configured(tmp_path / "set")
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "_write", dying)
        with pytest.raises(KeyboardInterrupt):
            made(config, pipe)
    assert not (tmp_path / "set" / "manifest.json").exists()
    assert contents(made(config, pipe)) == contents(whole)


def test_a_finished_set_is_left_alone(
    whole: Path, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    monkeypatch.setattr(making, "SetWorker", None)  # nothing is loaded either
    made(configured(whole), pipe)
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


def test_compiling_is_for_the_samples_only_and_changes_none(
    pipe: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def recorded(forward: Any, options: Any) -> Any:
        assert options == {"freezing": True}

        def run(*args: Any, **more: Any) -> Any:
            calls.append(len(args[0]))
            return forward(*args, **more)

        return run

    monkeypatch.setattr(torch, "compile", recorded)
    own = pipe.unet.forward
    other = made(configured(tmp_path / "compiled", compile=True), pipe)
    assert pipe.unet.forward == own and calls
    assert contents(other)["index.parquet"] == contents(whole)["index.parquet"]
    with pytest.raises(ValueError, match="compile"):
        configured(tmp_path, compile=1.5)


def test_batch_composition_does_not_matter(pipe: Any, whole: Path, tmp_path: Path) -> None:
    other = made(configured(tmp_path / "set", batch=1, prompts=TEXTS[2:4]), pipe)
    a, b = pq.read_table(whole / "index.parquet"), pq.read_table(other / "index.parquet")
    assert a["seed"].to_pylist()[6:12] == b["seed"].to_pylist()
    np.testing.assert_allclose(a["score"].to_numpy()[6:12], b["score"].to_numpy(), atol=1e-6)


def test_a_changed_configuration_is_refused_with_the_difference(
    pipe: Any, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(TuneError, match=r"config\.steps was 4, now 5"):
        made(configured(whole, steps=5), pipe)
    with pytest.raises(TuneError, match=r"config\.pairs"):
        made(configured(whole, pairs=PairConfig()), pipe)
    with pytest.raises(TuneError, match=r"prompts\.count was 5, now 4"):
        made(configured(whole, prompts=TEXTS[:4]), pipe)
    other = build("sd")
    with torch.no_grad():
        other.unet.conv_out.bias += 1
    (whole / "manifest.json").rename(tmp_path / "kept")
    try:
        with pytest.raises(TuneError, match=r"models.weights was"):
            made(configured(whole), other)
    finally:
        (tmp_path / "kept").rename(whole / "manifest.json")


def test_pairs_by_consensus_and_other_labels_on_the_same_samples(
    pipe: Any, whole: Path, tmp_path: Path
) -> None:
    pairs = PairConfig(per_prompt=None, consensus=True)
    folder = made(configured(tmp_path / "set", pairs=pairs), pipe)
    data = Dataset.load(folder)
    assert data.pairs is not None and len(data.pairs) == data.manifest["pairs"]
    for column in ("score", "score_blueness"):
        scores = data.score(column)
        assert (scores[data.pairs.winner] > scores[data.pairs.loser]).all()
    given = DataConfig(out=str(tmp_path / "again"), samples=str(whole), pairs=pairs)
    again = make(given, progress=False)
    ours, theirs = (pq.read_table(f / "pairs.parquet") for f in (folder, again))
    assert ours.equals(theirs)
    assert Dataset.load(again).manifest["samples"]["folder"] == str(whole)


def test_balance_keeps_as_many_prompts_of_every_category(pipe: Any, tmp_path: Path) -> None:
    prompts = [{"prompt": t, "category": "ab"[i > 2]} for i, t in enumerate(TEXTS)]
    folder = made(configured(tmp_path / "set", prompts=prompts, balance=True), pipe)
    assert json.loads((folder / "manifest.json").read_text())["categories"] == {"a": 6, "b": 6}
    assert len(Dataset.load(folder)) == 12


def test_equal_scores_are_refused_with_the_histogram(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(TuneError, match=r"constant.*all 15 scores are equal.*0.25: 15"):
        made(configured(tmp_path / "set", rewards=("constant",)), pipe)


def test_nan_scores_name_the_sample(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"p00000-s001|samples p00000-s000"):
        made(configured(tmp_path / "a", rewards=("broken",)), pipe)
    with pytest.raises(RewardError, match="broken"):
        made(configured(tmp_path / "b", rewards=("redness", "broken")), pipe)


def test_unusable_folders_and_full_disks(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TuneError, match="out="):
        made(configured(tmp_path / "file"), pipe)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "photo.png").write_text("x")
    with pytest.raises(TuneError, match=r"photo.png"):
        made(configured(tmp_path / "taken"), pipe)

    def full(path: Path, data: bytes) -> None:
        if "latents-00001" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    from steer.tune.data import folder

    write = folder.write_atomic
    config = configured(tmp_path / "set")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_atomic", full)
        with pytest.raises(TuneError, match="disk is full; what is finished is kept"):
            made(config, pipe)
    assert (tmp_path / "set" / "latents-00000.safetensors").is_file()
    usage = type("Usage", (), {"free": 10})
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage)
        with pytest.raises(TuneError, match="free on this disk"):
            made(config, pipe)


def test_bad_arguments(pipe: Any, tmp_path: Path, whole: Path) -> None:
    with pytest.raises(ValueError, match="hpsv3"):
        make(configured(tmp_path / "a", rewards=("hpsv3",)), pipe=pipe, progress=False)
    with pytest.raises(TuneError, match="compares candidates"):
        ranked = steer.reward({"compressibility": 1.0, "incompressibility": 0.5}, combine="rank")
        given = configured(tmp_path / "b", rewards=("ranked",))
        make(given, pipe=pipe, rewards=[ranked], progress=False)
    with pytest.raises(ValueError, match="a pair needs two"):
        configured(tmp_path, seeds=1, pairs=PairConfig())
    with pytest.raises(TuneError, match="holds no finished set"):
        make(DataConfig(out=str(tmp_path / "c"), samples=str(tmp_path)), progress=False)
    with pytest.raises(TuneError, match="the same folder"):
        make(DataConfig(out=str(whole), samples=str(whole)), progress=False)
    with pytest.raises(TuneError, match="would be 'score_a_b'"):
        make(configured(tmp_path / "d", rewards=("x", "a.b", "a-b")), progress=False)


def test_the_bundled_worlds_example_at_a_tiny_size(tmp_path: Path) -> None:
    """8 captions x 2 samples of 3 steps through the command, scored, then paired."""
    from typer.testing import CliRunner

    from steer.cli.tune import tune

    given = yaml.safe_load((EXAMPLES / "tune_shapes_data.yaml").read_text())
    small = {"prompts": {"shapes": "train", "count": 8, "seed": 1}, "seeds": 2, "steps": 3}
    quick = {"compile": False}
    (tmp_path / "a.yaml").write_text(
        yaml.safe_dump({**given, **small, "shard": 8, "batch": 8, **quick})
    )
    command = ["data", str(tmp_path / "a.yaml"), "--device", "cpu", "--out", str(tmp_path / "a")]
    done = CliRunner().invoke(tune, command)
    assert done.exit_code == 0 and "16 images of 8 prompts" in done.output, done.output
    data = Dataset.load(tmp_path / "a")
    assert data.latents([0]).shape == (1, 4, 16, 16) and data.has_uncond
    assert set(data.text([0, 3])) == {"encoder_hidden_states"}
    assert data.manifest["columns"] == {"shapes": "score", "shapes-clip": "score_shapes_clip"}
    assert all(data.manifest["rewards"].values())  # versions are known
    given = yaml.safe_load((EXAMPLES / "tune_shapes_pairs.yaml").read_text())
    given |= {"samples": str(tmp_path / "a"), "out": str(tmp_path / "b")}
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(given))
    done = CliRunner().invoke(tune, ["data", str(tmp_path / "b.yaml")])
    assert done.exit_code == 0, done.output
    pairs = Dataset.load(tmp_path / "b").pairs
    assert pairs is not None and 1 <= len(pairs) <= 8 and (pairs.margin > 0).all()
    bad = CliRunner().invoke(tune, ["data", str(tmp_path / "no.yaml")])
    assert bad.exit_code == 2 and "cannot be read" in bad.output + str(bad.stderr)


def test_a_search_finds_better_samples_than_the_plain_ones_beside_them(
    pipe: Any, whole: Path, tmp_path: Path
) -> None:
    search = SearchConfig(method="BestOfN(4)", plain=True)
    pairs = PairConfig(per_prompt=None, choose="winners", consensus=False)
    data = Dataset.load(made(configured(tmp_path / "set", search=search, pairs=pairs), pipe))
    plain = Dataset.load(whole)
    assert len(data) == 30 and int(data.searched.sum()) == 15
    for row, name in enumerate(plain.ids):
        own, found = data.ids.index(f"{name}-plain"), data.ids.index(name)
        torch.testing.assert_close(data.latents([own]), plain.latents([row]), atol=1e-5, rtol=1e-4)
        assert data.scores[own] == pytest.approx(plain.scores[row], abs=1e-5)
        assert data.scores[found] >= data.scores[own] - 1e-6
    assert data.pairs is not None and len(data.pairs)
    assert data.searched[data.pairs.winner].all() and not data.searched[data.pairs.loser].any()
    labels = found_labels(data, both=True)
    assert labels.labels.tolist() == data.searched.tolist()
    with pytest.raises(TuneError, match=r"targets='winners': .* was made without a search"):
        found_labels(plain, both=False)
    alone = made(configured(tmp_path / "alone", search=SearchConfig(compute=4), seeds=2), pipe)
    with pytest.raises(TuneError, match=r"has no plain samples beside those of the search"):
        found_labels(Dataset.load(alone), both=True)
    with pytest.raises(TuneError, match=r"pairs\.choose='winners': the samples were made without"):
        make(DataConfig(out=str(tmp_path / "again"), samples=str(whole), pairs=pairs))


def test_few_pairs_are_of_prompts_unlike_each_other(pipe: Any, tmp_path: Path) -> None:
    """Of twelve prompts eight are nearly one; of six pairs at most half are of these."""
    like = [f"a red circle{'.' * k}" for k in range(8)]
    texts = [*like, "7 blue squares", "left of x", "quiz", "zebra, 9"]
    common: dict[str, Any] = {"prompts": texts, "test_share": 0.0, "rewards": ("redness",)}
    whole = made(configured(tmp_path / "whole", **common), pipe)
    vectors = prompt_features(whole)
    assert len(vectors) == 12
    sizes = [float(np.linalg.norm(vector)) for vector in vectors.values()]
    assert sizes == pytest.approx([1.0] * 12, abs=1e-5)
    given = DataConfig(
        out=str(tmp_path / "few"),
        samples=str(whole),
        pairs=PairConfig(count=6, diversity=10.0, consensus=False),
    )
    data = Dataset.load(make(given))
    assert data.pairs is not None and len(data.pairs) == 6
    numbers = set(data.prompt_ids[data.pairs.winner].tolist())
    assert {8, 9, 10, 11} <= numbers


def test_agreement_of_kin_is_warned_of() -> None:
    with pytest.warns(
        UserWarning, match=r"'hpsv2' and 'pickscore' share their backbone clip-h and"
    ):
        warn_of_agreement(["hpsv2", "pickscore", "imagereward"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_agreement(["shapes-clip", "shapes-vqa"])
