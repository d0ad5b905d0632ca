"""Masked generators: what is hidden, what a guess is worth, training from samples to samples."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import UVit2DModel
from families import build, redness, seeded
from families.masked import CODES, MASK, SIDE, amused
from safetensors.torch import load_file, save_file
from scipy import stats
from tiny_sets import equal, rows, write_set
from torch import Tensor
from torch.nn import functional as F

import steer
from steer.tune import Dataset, TuneConfig, TuneError, tune
from steer.tune.data.config import DataConfig
from steer.tune.data.make import make
from steer.tune.masking import GRID, Masking
from steer.tune.trainer import Trainer


TEXTS = ["a red circle", "a blue square", "a circle", "red blue"]
TOKENS = SIDE * SIDE


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


def made(folder: Path, pipe: Any = None, **more: Any) -> Path:
    given: dict[str, Any] = {
        "prompts": TEXTS,
        "rewards": ("redness",),
        "seeds": 4,
        "steps": 3,
        "guidance_scale": 3.0,
        "batch": 4,
        "test_share": 0.25,
    }
    config = DataConfig(out=str(folder), **{**given, **more})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no search fits its loop
        return make(config, pipe=pipe or amused(), rewards=[steer.reward(redness)])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("masked") / "set", pairs={"per_prompt": 2})


def configured(out: Path, data: Path | None, **more: Any) -> TuneConfig:
    given: dict[str, Any] = {
        "objective": {"name": "tgo", "temperature": 0.1},
        "steps": 3,
        "batch": 4,
        "lr": 1e-3,
        "lora": False,
        "cpu": True,
    }
    source = {} if data is None else {"data": str(data)}
    return TuneConfig.from_dict({"out": str(out), **source, **given, **more})


@contextmanager
def power_cut(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Training that begins here dies at its fourth update."""
    once = Trainer.advance

    def killed(self: Trainer) -> dict[str, float]:
        if self.step == 3:
            raise RuntimeError("power cut")
        return once(self)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(Trainer, "advance", killed)
        yield


def drawn(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, noise, and places in the grid."""
    draw = seeded(seed)
    return (
        torch.randint(CODES, (count, SIDE, SIDE), generator=draw),
        torch.randn(count, SIDE, SIDE, generator=draw),
        torch.randint(GRID, (count,), generator=draw),
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_shares_are_the_schedulers_and_as_many_tokens_are_hidden(schedule: str) -> None:
    pipe = amused()
    pipe.scheduler.register_to_config(masking_schedule=schedule)
    masking = Masking.of(pipe)
    time = (np.arange(GRID) + 0.5) / GRID
    shares = np.cos(time * np.pi / 2) if schedule == "cosine" else 1 - time
    np.testing.assert_allclose(masking.shares, shares, rtol=1e-5, atol=1e-6)
    tokens, noise, _ = drawn(GRID)
    index = torch.arange(GRID)
    seen = masking.add_noise(tokens, noise, index)
    hidden = seen == MASK
    assert torch.equal(hidden, masking.hidden(noise, index))
    assert torch.equal(seen[~hidden], tokens[~hidden])
    counts = np.maximum(np.round(TOKENS * shares.astype(np.float32)), 1)
    assert hidden.flatten(1).sum(1).tolist() == counts.tolist()


def test_every_place_is_hidden_as_often() -> None:
    masking = Masking.of(amused())
    _, noise, _ = drawn(4000)
    hidden = masking.hidden(noise, torch.full((4000,), GRID // 2)).flatten(1)
    count = int(hidden[0].sum())
    assert stats.chisquare(hidden.sum(0).numpy()).pvalue > 0.01
    both = (hidden[:, 0] & hidden[:, 1]).double().mean()
    exact = count * (count - 1) / (TOKENS * (TOKENS - 1))  # places are drawn without replacement
    assert abs(float(both) - exact) < 4 * math.sqrt(exact * (1 - exact) / 4000)


def test_the_noisiest_part_hides_the_most() -> None:
    masking = Masking.of(amused())
    part = masking.between(0.6, 1.0)
    assert len(part) == 400 and float(part.shares.min()) >= float(masking.shares.median())
    with pytest.raises(TuneError, match="holds nothing"):
        masking.between(0.5, 0.5001)


def test_errors_are_the_cross_entropy_of_what_is_hidden() -> None:
    """As diffusers' training script of aMUSEd takes it: other places have the label -100."""
    masking = Masking.of(amused())
    tokens, noise, index = drawn(6)
    logits = torch.randn(6, CODES, SIDE, SIDE, generator=seeded(1))
    seen = masking.add_noise(tokens, noise, index)
    labels = torch.where(seen == MASK, tokens, -100)
    expected = [
        float(F.cross_entropy(logits[i].flatten(1).T, labels[i].flatten())) for i in range(6)
    ]
    assert masking.error(logits, tokens, noise, index).tolist() == pytest.approx(expected, rel=1e-5)


def test_changes_are_kullback_leibler_divergences_of_what_is_hidden() -> None:
    masking = Masking.of(amused())
    _, noise, index = drawn(6)
    old, new = torch.randn(2, 6, CODES, SIDE, SIDE, generator=seeded(1)).double()
    p, q = (torch.distributions.Categorical(logits=x.movedim(1, -1)) for x in (old, new))
    each = torch.distributions.kl_divergence(p, q)
    hidden = masking.hidden(noise, index)
    expected = [float(each[i][hidden[i]].mean()) for i in range(6)]
    assert masking.change(new, old, noise, index).tolist() == pytest.approx(expected, rel=1e-6)
    assert masking.change(old, old, noise, index).abs().max() == 0


def test_sets_hold_the_tokens_of_plain_calls(data: Path) -> None:
    loaded, pipe = Dataset.load(data), amused()
    assert loaded.manifest["stored_dtype"] == "int32"
    assert loaded.latent_shape == (SIDE, SIDE) and len(loaded) == 16
    index = loaded._index
    for row in (0, 6, 15):
        call = {"num_inference_steps": 3, "guidance_scale": 3.0}
        tokens, images = (
            pipe(
                index["prompt"][row],
                generator=seeded(int(index["seed"][row])),
                output_type=kind,
                **call,
            ).images
            for kind in ("latent", "pt")
        )
        assert torch.equal(loaded.latents([row]).long(), tokens)
        assert loaded.scores[row] == pytest.approx(float(redness(images, [])[0]), abs=1e-6)


def test_cached_features_give_the_pipelines_own_logits(data: Path) -> None:
    """Both branches, at the first step of a call, where all is hidden."""
    pipe, loaded, found = amused(), Dataset.load(data), []
    pipe.transformer.register_forward_hook(lambda *given: found.append(given[2]))
    pipe(loaded.prompts[0], num_inference_steps=1, guidance_scale=3.0, generator=seeded(0))
    empty, own = found[0]
    tokens = torch.full((1, SIDE, SIDE), MASK)
    at = torch.zeros(1, dtype=torch.long)
    for features, expected in ((loaded.text([0]), own), (loaded.uncond, empty)):
        given = {name: value.float() for name, value in features.items()}
        with torch.no_grad():
            logits = Masking.of(pipe).predict(pipe.transformer, tokens, at, given)
        torch.testing.assert_close(logits[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.sample(0, 2, 5)
@pytest.mark.parametrize(
    ("objective", "first"),
    [
        ({"name": "tgo", "temperature": 0.1, "c": 0.0}, math.log(2)),
        ({"name": "kto", "beta": 5.0}, 0.5),
        ({"name": "dpo", "beta": 10.0}, math.log(2)),
        ({"name": "poly_dpo", "beta": 10.0, "alpha": 2.0}, math.log(2) + 1),
        ({"name": "smpo", "beta": 10.0}, math.log(2)),
        ({"name": "awm"}, None),
        ({"name": "orw"}, None),
        ({"name": "sft"}, None),
        ({"name": "csft"}, None),
    ],
    ids=lambda x: x["name"] if isinstance(x, dict) else "",
)
def test_every_objective_begins_where_it_must_and_trains(
    objective: dict[str, Any], first: float | None, data: Path, tmp_path: Path
) -> None:
    pipe = amused()
    folder = tune(configured(tmp_path / "run", data, objective=objective, batch=3), pipe)
    log = rows(tmp_path / "run")
    if first is not None:  # policy = reference
        assert log[0]["loss"] == pytest.approx(first, rel=1e-5)
    assert all(math.isfinite(row["loss"]) for row in log)
    loaded = UVit2DModel.from_pretrained(folder, subfolder="transformer")
    fresh = amused().transformer
    pairs = zip(loaded.parameters(), pipe.transformer.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    names = [n for n, p in fresh.named_parameters() if not torch.equal(p, loaded.get_parameter(n))]
    assert len(names) > 10


def test_the_loss_of_sft_is_the_guided_likelihood(data: Path, tmp_path: Path) -> None:
    """u + g (c - u) of the logits, as the pipeline guides them, at the trainer's own masks."""
    given = {"objective": "sft", "guidance_scale": 3.0}
    trainer = Trainer(configured(tmp_path / "run", data, **given), amused())
    batch = trainer.loader.at(0)
    masking, model = Masking.of(trainer.pipe), amused().transformer
    tokens, noise, index = batch.x0[0].long(), batch.draws.noise, batch.draws.index
    text = {name: value.float() for name, value in batch.text.items()}
    empty = {
        name: value.float().expand_as(text[name]) for name, value in trainer.data.uncond.items()
    }
    seen = masking.add_noise(tokens, noise, index)
    with torch.no_grad():
        c, u = model(seen, **text), model(seen, **empty)
    expected = float(masking.error(u + 3 * (c - u), tokens, noise, index).mean())
    assert trainer.advance()["loss"] == pytest.approx(expected, rel=1e-4)
    trainer.close()


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {
        "steps": 4,
        "accumulate": 2,
        "checkpoint_every": 2,
        "ema": 0.9,
        "text_dropout": 0.3,
        "noise_range": [0.3, 1.0],
        "validation": {"every": 2, "prompts": TEXTS[:1], "steps": 2, "rows": 3},
    }
    tune(configured(tmp_path / "whole", data, **given), amused())
    with power_cut(monkeypatch):
        tune(configured(tmp_path / "cut", data, **given), amused())
    tune(configured(tmp_path / "cut", data, **given), amused())
    one, other = (tmp_path / name for name in ("whole", "cut"))
    files = [p.relative_to(one) for p in (one / "tuned").rglob("*.safetensors")]
    assert len(files) == 1 and equal(*(load_file(out / files[0]) for out in (one, other)))
    assert rows(one) == rows(other) and "test_loss" in rows(one)[-1]
    assert len(list((one / "validation").glob("*.png"))) == 3


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "set"
    given: dict[str, Any] = {"seeds": 24, "test_share": 0.0, "batch": 24}
    return made(folder, guidance_scale=1.0, pairs={"per_prompt": 24}, **given)


@pytest.mark.sample(0, 2)
@pytest.mark.parametrize(
    "objective",
    [
        {"name": "sft", "quantile": 0.75},
        {"name": "tgo", "temperature": 0.4},
        {"name": "dpo", "beta": 5.0},
    ],
    ids=lambda x: x["name"],
)
def test_new_samples_of_what_was_trained_score_higher(
    objective: dict[str, Any], many: Path, tmp_path: Path
) -> None:
    pipe = amused()

    def scores() -> Tensor:
        call = {"num_inference_steps": 3, "guidance_scale": 1.0, "num_images_per_prompt": 48}
        return redness(pipe(TEXTS, **call, generator=seeded(7), output_type="pt").images, [])

    before = scores()
    given = {"objective": objective, "steps": 120, "batch": 16, "lr": 3e-3}
    tune(configured(tmp_path / "run", many, **given), pipe)
    gain = (scores() - before).double()
    assert float(gain.mean()) > 3 * float(gain.std()) / math.sqrt(len(gain))


def test_half_precision_keeps_weights_in_float32(data: Path, tmp_path: Path) -> None:
    run = configured(tmp_path / "run", data, dtype="bfloat16", guidance_scale=3.0)
    trainer = Trainer(run, amused())
    assert math.isfinite(trainer.advance()["loss"])
    assert {p.dtype for p in trainer.policy.parameters().values()} == {torch.float32}
    trainer.close()


def test_rounds_draw_score_and_train_and_go_on_where_they_were_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(out: Path) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        rounds = {
            "count": 2,
            "updates": 2,
            "prompts": TEXTS,
            "images": 2,
            "reward": "redness",
            "steps": 2,
        }
        given = {"rounds": rounds, "steps": 4, "objective": "awm", "checkpoint_every": 1}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tune(configured(out, None, **given), amused(), rewards=[steer.reward(redness)])

    run(tmp_path / "whole")
    with power_cut(monkeypatch):
        run(tmp_path / "cut")
    run(tmp_path / "cut")
    found = [
        load_file(tmp_path / name / "tuned/transformer/diffusion_pytorch_model.safetensors")
        for name in ("whole", "cut")
    ]
    assert equal(*found) and rows(tmp_path / "whole") == rows(tmp_path / "cut")
    sets = [tmp_path / "whole" / "rounds" / f"000{k}" / "data" for k in (0, 1)]
    tokens = [Dataset.load(folder).latents(range(8)) for folder in sets]
    assert not torch.equal(*tokens)


_SAMPLING = {"prompts": TEXTS, "reward": "shapes", "steps": 2}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"objective": "nft"}, r"'nft': is made of squared denoising errors.*awm in rounds"),
    ({"objective": {"name": "mapo"}}, r"'mapo': is made of squared denoising errors"),
    ({"objective": {"name": "dpo", "beta": 9, "guard": 0.9}}, r"'dpo' with guard: is made of"),
    ({"objective": "dpo"}, r"objective\.beta: the default, 5000, .* to begin with 3\.2$"),
    ({"objective": "kto"}, r"objective\.beta: the default, 5000, .* to begin with 1\.6$"),
    ({"objective": "tgo"}, r"objective\.temperature: the default, 0\.001, .* with 0\.625$"),
    ({"lora": True}, r"cannot load adapters in diffusers; train the whole.*lora: false"),
    ({"objective": "sft", "timestep_scale": 1.0}, r"timestep_scale=1: .* no timesteps"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_masked_generators_do_not_have_is_refused_before_a_step(
    change: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(TuneError, match=message):
        tune(configured(tmp_path / "run", data, **change), amused())
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_objectives_that_look_into_runs_are_refused(tmp_path: Path) -> None:
    change = {"sampling": _SAMPLING, "objective": "draft", "batch": 2}
    with pytest.raises(TuneError, match=r"'draft': looks into runs of latents, and AmusedPipeline"):
        tune(configured(tmp_path / "run", None, **change), amused())


def test_an_unknown_schedule_is_named() -> None:
    pipe = amused()
    pipe.scheduler.register_to_config(masking_schedule="square")
    with pytest.raises(TuneError, match=r"masking_schedule='square' of AmusedScheduler: unknown"):
        Masking.of(pipe)


def test_latents_of_another_kind_of_model_are_refused(data: Path, tmp_path: Path) -> None:
    other = write_set(tmp_path / "sd", "sd")
    with pytest.raises(TuneError, match=r"are no tokens, which UVit2DModel guesses"):
        tune(configured(tmp_path / "run", other), amused())
    with pytest.raises(TuneError, match=r"do not fit a denoiser"):
        tune(configured(tmp_path / "run", data), build("sd"))


def test_tokens_of_a_larger_codebook_are_refused(data: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "set")
    shard = next(folder.glob("latents-*.safetensors"))
    tokens = load_file(shard)["latents"]
    tokens[3, 0, 0] = CODES
    save_file({"latents": tokens}, shard, metadata={"format": "pt"})
    with pytest.raises(TuneError, match=r"tokens from \d+ to 24, and UVit2DModel knows 0 to 23"):
        tune(configured(tmp_path / "run", folder), amused())
    assert json.loads((folder / "manifest.json").read_text())["latent_shape"] == [SIDE, SIDE]
