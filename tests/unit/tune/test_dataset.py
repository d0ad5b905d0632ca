"""The dataset's reader: what it gives back, and every inconsistency it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from tiny_sets import latents_of, write_pairs, write_set

from steer import Threshold
from steer.core.errors import ThresholdError, TuneError
from steer.tune.batches import Draws, Order, Siblings, Stream
from steer.tune.dataset import Dataset
from steer.tune.goals import SFT, TGO
from steer.tune.labels import make_labels


def test_latents_text_and_pairs_come_back_in_the_indexs_order(tmp_path: Path) -> None:
    folder = write_set(tmp_path, "sdxl")
    data = Dataset.load(folder)
    assert len(data) == 16 and data.latent_shape == (4, 8, 8)
    assert torch.equal(data.latents(range(16)), latents_of(folder, 16))
    assert torch.equal(data.latents([7, 2]), latents_of(folder, 16)[[7, 2]])
    files = [load_file(folder / f"text-{i:05d}.safetensors") for i in range(2)]
    ids = torch.cat([file["prompt_ids"] for file in files]).tolist()
    for name in ("encoder_hidden_states", "added_cond_kwargs.time_ids"):
        values = torch.cat([file[name] for file in files])
        expected = torch.stack([values[ids.index(int(data.prompt_ids[row]))] for row in (9, 0)])
        assert torch.equal(data.text([9, 0])[name], expected)
    assert data.uncond["encoder_hidden_states"].shape == (1, 16, 32) and data.shared == {}
    assert data.pairs is not None and len(data.pairs) == 12
    assert data.ids[data.pairs.winner[0]] == "p0-s1" and data.ids[data.pairs.loser[0]] == "p0-s0"
    assert set(data.pairs.split[-3:]) == {"test"}  # the winner's, where none is stated
    assert data.score("score_other").tolist() == (-data.scores).tolist()


def test_arguments_without_a_prompt_dimension_are_kept_apart(tmp_path: Path) -> None:
    data = Dataset.load(write_set(tmp_path, "flux"))
    assert data.latent_shape == (16, 16)
    assert {k: tuple(v.shape) for k, v in data.shared.items()} == {
        "img_ids": (16, 3),
        "txt_ids": (8, 3),
    }


def _drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _manifest(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:50])


def _resave(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return apply


def _cut(*part: slice) -> Callable[[Path], None]:
    name = "latents-00000.safetensors"
    return _resave(name, lambda t: t.update(latents=t["latents"][part].clone()))


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (_drop("manifest.json"), "holds no manifest.json"),
    (_drop("index.parquet"), "index.parquet.*cannot be read"),
    (_drop("pairs.parquet"), "missing from a dataset of kind 'pairs'"),
    (_drop("latents-00001.safetensors"), "latents-00001.*no such file"),
    (_manifest(format="other/1"), "not a steer-tune/1 manifest"),
    (_manifest(kind="triples"), "kind='triples'"),
    (_manifest(count=3), "has 16 images, the manifest says 3"),
    (_manifest(latent_shape=[4, 4, 4]), r"latent_shape is \(4, 4, 4\)"),
    (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read"),
    (_truncate("latents-00000.safetensors"), "latents-00000.*cannot be read"),
    (_truncate("index.parquet"), "index.parquet.*cannot be read"),
    (_cut(slice(3)), "3 rows"),
    (_cut(slice(None), slice(2)), "in other files"),
    (_resave("latents-00000.safetensors", lambda t: t.pop("latents")), "no tensor 'latents'"),
    (_resave("text-00001.safetensors", lambda t: t.pop("prompt_ids")), "no tensor 'prompt_ids'"),
    (_drop("text-00001.safetensors"), "no text features for prompt_id 12, 13"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_folders_are_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = write_set(tmp_path)
    damage(folder)
    with pytest.raises(TuneError, match=message):
        Dataset.load(folder)


def test_a_missing_folder_and_one_without_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(TuneError, match=r"no such folder.*steer tune data"):
        Dataset.load(tmp_path / "none")
    folder = write_set(tmp_path)
    for path in folder.glob("text-0*"):
        path.unlink()
    with pytest.raises(TuneError, match="no text-00000"):
        Dataset.load(folder)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["same"] * 16}, "id: the same for several images: 'same'"),
        ({"split": ["validation"] * 16}, "split='validation'"),
        ({"prompt": [f"text {i}" for i in range(16)]}, "prompt_id=10: stands for 'text 0'"),
        ({"row": [-1, *[0] * 15]}, "row -1 is asked for"),
        ({"score": [float("nan"), *[0.5] * 15]}, "score: not finite for 1 of 16 images: 'p0-s0'"),
        ({"score": [float("inf")] * 16}, "not finite for 16 of 16 .* and 11 more"),
        ({"score": [None, *[0.5] * 15]}, "not finite for 1 of 16"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    folder = write_set(tmp_path, pairs=None, columns=columns)
    with pytest.raises(TuneError, match=message):
        Dataset.load(folder)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("p0-s1", "p0-s1")], "same image in 1 pair.*'p0-s1'"),
        ([("p0-s1", "p9-s9")], "loser 'p9-s9' not in index"),
        ([("p0-s1", "p1-s0")], "no counterpart in 'p1-s0'.*'prompt 0', 'prompt 1'"),
    ],
)
def test_pairs_that_are_none_are_refused(
    tmp_path: Path, pairs: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(TuneError, match=message):
        Dataset.load(write_set(tmp_path, pairs=pairs))


def test_a_winner_with_its_losers_latents_is_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path, pairs=[("p0-s3", "p0-s2"), ("p0-s2", "p0-s0")])
    shard = folder / "latents-00000.safetensors"  # images 0, 2, 4, ...
    latents = load_file(shard)["latents"]
    latents[1] = latents[0]
    save_file({"latents": latents}, shard)
    with pytest.raises(TuneError, match=r"same image in 1 pair.*'p0-s2'"):
        Dataset.load(folder)


def test_margins_must_be_finite_and_a_stated_split_counts(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    write_pairs(folder, [("p0-s1", "p0-s0")], {"p0-s1": 10}, margin=[float("nan")])
    with pytest.raises(TuneError, match="margin: not finite"):
        Dataset.load(folder)
    write_pairs(folder, [("p0-s1", "p0-s0")], {"p0-s1": 10}, split=["test"])
    data = Dataset.load(folder)
    assert data.pairs is not None and data.pairs.split.tolist() == ["test"]


def test_missing_columns_and_unknown_scores_are_named(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    with pytest.raises(TuneError, match=r"score='score_x'.*score, score_other"):
        Dataset.load(folder).score("score_x")
    (folder / "index.parquet").write_bytes((folder / "pairs.parquet").read_bytes())
    with pytest.raises(TuneError, match=r"without the column\(s\) id, prompt, seed"):
        Dataset.load(folder)


def test_text_dropout_needs_features_of_the_empty_prompt(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    save_file({"other": torch.zeros(1, 2)}, folder / "text-uncond.safetensors")
    with pytest.raises(TuneError, match="must have the same names"):
        _ = Dataset.load(folder).uncond
    (folder / "text-uncond.safetensors").unlink()
    with pytest.raises(TuneError, match="set text_dropout: 0"):
        _ = Dataset.load(folder).uncond


def test_labels_follow_the_training_scores_alone(tmp_path: Path) -> None:
    scores = [0, 1, 2, 3, 0, 1, 2, 3, 100, 100, 100, 100]
    data = Dataset.load(write_set(tmp_path, prompts=3, scores=scores, pairs=None))
    made = make_labels(TGO(c=2.0), data)
    assert made.threshold.tau == 1.5 and made.threshold.reward == "toy"
    assert made.labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]
    assert made.weights.tolist()[:4] == [4, 2, 2, 4]
    assert set(make_labels(SFT(), data).weights.tolist()) == {1.0}
    assert make_labels(TGO(quantile=0.9), data).labels.tolist()[:4] == [0, 0, 0, 1]
    other = make_labels(TGO(score="score_other"), data)
    assert other.labels.tolist()[:4] == [1, 1, 0, 0] and other.threshold.reward == "other"


def test_labels_by_prompt_use_each_prompts_scores(tmp_path: Path) -> None:
    scores = [0, 1, 2, 3, 10, 11, 12, 13, 5, 5, 5, 5]
    data = Dataset.load(write_set(tmp_path, prompts=3, scores=scores, pairs=None))
    made = make_labels(TGO(per_prompt=True), data)
    assert made.labels.tolist()[:8] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert made.threshold.prompts == {"prompt 0": 1.5, "prompt 1": 11.5}


def test_a_saved_threshold_is_used_and_one_of_another_reward_refused(tmp_path: Path) -> None:
    data = Dataset.load(write_set(tmp_path / "data", pairs=None))
    path = tmp_path / "tau.json"
    Threshold.fit([2.5], reward="toy").save(path)
    assert make_labels(TGO(threshold=str(path)), data).threshold.tau == 2.5
    Threshold.fit([2.5], reward="hpsv2").save(path)
    with pytest.raises(ThresholdError, match="'hpsv2'"):
        make_labels(TGO(threshold=str(path)), data)


def test_scores_that_nothing_separates_are_refused_with_their_histogram(tmp_path: Path) -> None:
    flat = Dataset.load(write_set(tmp_path / "a", scores=[0.5] * 16, pairs=None))
    with pytest.raises(TuneError, match=r"Histogram of 12 scores: 0\.5: 12\. All scores are equal"):
        make_labels(TGO(), flat)
    low = write_set(tmp_path / "b", scores=[0.0, *[1.0] * 15], pairs=None)
    with pytest.raises(TuneError, match=r"Histogram.*all of the images are good.*quantile"):
        make_labels(TGO(quantile=0.0), Dataset.load(low))


def test_prompts_without_a_counterpart_are_refused_for_thresholds_by_prompt(tmp_path: Path) -> None:
    data = Dataset.load(write_set(tmp_path, prompts=4, seeds=1, pairs=None))
    with pytest.raises(TuneError, match=r"3 prompt\(s\) have one image and no counterpart"):
        make_labels(TGO(per_prompt=True), data)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 20), st.integers(1, 15), st.integers(0, 30), st.integers(0, 5))
def test_a_stream_passes_over_all_rows_and_any_cut_of_it_is_the_same(
    rows: int, batch: int, start: int, seed: int
) -> None:
    names = np.arange(100, 100 + rows)
    whole = Stream(names, seed).take(0, 3 * rows)
    for number in range(3):
        assert sorted(whole[number * rows : (number + 1) * rows]) == names.tolist()
    long = Stream(names, seed).take(0, start + batch)
    assert long[start:].tolist() == Stream(names, seed).take(start, batch).tolist()


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.floats(0.05, 0.95), st.integers(0, 9))
def test_a_share_of_good_images_is_kept_in_every_batch(batch: int, share: float, step: int) -> None:
    labels = np.array([1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0], dtype=np.float32)
    order = Order(np.arange(12), batch, 0, labels, share)
    rows = order.at(step)
    assert len(rows) == batch
    assert labels[rows].sum() == min(max(round(batch * share), 1), batch - 1)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 7), min_size=2, max_size=6), st.integers(2, 3), st.integers(0, 9))
def test_siblings_stand_together_and_every_image_comes_as_often_as_its_groups_allow(
    families: list[int], size: int, seed: int
) -> None:
    prompts = np.repeat(np.arange(len(families)), families)
    rows = np.arange(50, 50 + len(prompts))
    whole = sum(n // size for n in families) * size
    if not whole:
        with pytest.raises(TuneError, match=f"siblings={size}: no prompt has as many images"):
            Siblings(rows, prompts, size, seed)
        return
    stream = Siblings(rows, prompts, size, seed)
    for number in range(3):
        found = stream.take(number * whole, whole)
        assert len(set(found.tolist())) == whole
        groups = prompts[found - 50].reshape(-1, size)
        assert (groups == groups[:, :1]).all()
        assert np.bincount(groups[:, 0], minlength=len(families)).tolist() == [
            n // size for n in families
        ]
    again = Siblings(rows, prompts, size, seed)
    assert again.take(size, whole).tolist() == stream.take(0, size + whole)[size:].tolist()


def test_siblings_share_their_randomness_and_nobody_elses() -> None:
    drawn = Draws.at(3, 7, 6, (2, 2), 10**6, 0.5, siblings=3)
    noise = drawn.noise.reshape(2, 3, 4)
    assert (noise == noise[:, :1]).all() and not torch.equal(noise[0], noise[1])
    for values in (drawn.index, drawn.dropped):
        assert (values.reshape(2, 3) == values.reshape(2, 3)[:, :1]).all()
    assert drawn.index[0] != drawn.index[3]


def test_too_few_rows_or_labels_are_refused() -> None:
    with pytest.raises(TuneError, match="batch=8: the dataset has only 7 rows"):
        Order(np.arange(7), 8, 0)
    with pytest.raises(TuneError, match=r"positive_share=0\.5.*both labels"):
        Order(np.arange(4), 2, 0, np.ones(4, dtype=np.float32), 0.5)


def test_draws_depend_on_seed_and_step_alone_and_timesteps_are_uniform() -> None:
    one, same = (Draws.at(3, 7, 4, (2, 2), 1000, 0.5) for _ in range(2))
    assert torch.equal(one.noise, same.noise) and torch.equal(one.index, same.index)
    assert not torch.equal(one.noise, Draws.at(3, 8, 4, (2, 2), 1000, 0.5).noise)
    assert not torch.equal(one.noise, Draws.at(3, 7, 4, (2, 2), 1000, 0.5, tag=1).noise)
    many = Draws.at(0, 0, 20_000, (1,), 10, 0.25)
    counts = torch.bincount(many.index, minlength=10).double()
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 27.9  # chi-squared of 9 at 0.001
    assert float(many.dropped.double().mean()) == pytest.approx(0.25, abs=0.015)
    assert abs(float(many.noise.mean())) < 0.03 and float(many.noise.std()) == pytest.approx(
        1, abs=0.03
    )
