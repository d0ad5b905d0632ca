"""The trainer: families, exact resumption, what it writes, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from families import build
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_sets import equal, rows, tiny_config as config, write_set

from steer.core.errors import CheckpointError
from steer.core.files.png import read
from steer.driver.denoisers.checkpoints import load
from steer.tune import TuneError, tune
from steer.tune.noising import denoiser, nest, predict
from steer.tune.trainer import Trainer


_LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


def answer(pipe: Any, trainer: Trainer) -> torch.Tensor:
    """What the pipeline's denoiser says to the first training batch."""
    batch = trainer.loader.measurement(torch.arange(3).numpy(), 1)
    noisy = trainer.noising.add_noise(batch.x0[0], batch.draws.noise, batch.draws.index)
    given = {k: v.float() for k, v in (dict(batch.text) | dict(batch.shared)).items()}
    with torch.no_grad():
        at = trainer.noising.timesteps[batch.draws.index]
        return predict(denoiser(pipe)[1], noisy, at, nest(given))


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "wan", "sana"])
def test_adapters_of_every_family_are_saved_as_diffusers_loads_them(
    family: str, tmp_path: Path
) -> None:
    data = write_set(tmp_path / "data", family)
    lora = {"rank": 4, "alpha": 2.0}
    trainer = Trainer(config(tmp_path / "run", data, lora=lora), build(family), progress=False)
    before = answer(build(family), trainer)
    folder = trainer.run()
    log = rows(tmp_path / "run")
    assert log[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)  # policy = reference
    assert log[0]["accuracy"] == 0.5 and log[0]["margin"] == 0
    assert log[-1]["loss"] != log[0]["loss"] and [row["step"] for row in log] == [1, 2, 3, 4]
    fresh = build(family)
    fresh.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    after = answer(trainer.pipe, trainer)
    torch.testing.assert_close(answer(fresh, trainer), after, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-4)
    with trainer.policy.reference() as reference:
        assert reference is trainer.policy.module
        torch.testing.assert_close(answer(trainer.pipe, trainer), before, rtol=1e-5, atol=1e-6)


def test_adapters_beyond_attention_are_all_loaded_again(tmp_path: Path) -> None:
    """diffusers drops attention's adapters without a word where two naming schemes are mixed."""
    data = write_set(tmp_path / "data", "sd")
    lora = {"rank": 4, "targets": ["to_q", "to_out.0", "conv1", "proj_in", "time_emb_proj"]}
    trainer = Trainer(config(tmp_path / "run", data, lora=lora), build("sd"), progress=False)
    folder = trainer.run()
    after = answer(trainer.pipe, trainer)
    fresh = build("sd")
    fresh.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    assert lora_parameters(fresh.unet) == len(trainer.policy.parameters())
    torch.testing.assert_close(answer(fresh, trainer), after, rtol=1e-4, atol=1e-5)
    other = build("sd")
    tuned = load(other, str(folder))
    assert tuned.lora is not None
    layers = tuned.lora.layers.values()
    assert sum(map(lora_parameters, layers)) == len(trainer.policy.parameters())
    assert lora_parameters(other.unet) == 0
    state = load_file(folder / "pytorch_lora_weights.safetensors")
    names = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
    mixed = {
        k.replace(*x) if "to_q" in k else k: v
        for k, v in state.items()
        for x in names.items()
        if x[0] in k
    }
    save_file(mixed, tmp_path / "mixed.safetensors")
    with pytest.raises(CheckpointError, match=r"names of two kinds.*to_q\.lora\.down"):
        load(build("sd"), str(tmp_path / "mixed.safetensors"))


def lora_parameters(module: Any) -> int:
    return sum("lora_" in name for name, _ in module.named_parameters())


@pytest.mark.parametrize("family", ["sd", "pixart"])
def test_a_whole_denoiser_is_saved_as_diffusers_loads_it(family: str, tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", family)
    settings = config(tmp_path / "run", data, lora=False, objective="tgo")
    trainer = Trainer(settings, build(family), progress=False)
    before = answer(build(family), trainer)
    folder = trainer.run()
    name, module = denoiser(trainer.pipe)
    loaded = type(module).from_pretrained(folder, subfolder=name)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), module.parameters(), strict=True)
    )
    assert not torch.equal(answer(trainer.pipe, trainer), before)
    with trainer.policy.reference() as reference:
        carrier = type("Carrier", (), {name: reference})()
        assert torch.equal(answer(carrier, trainer), before)  # the frozen copy
    origin = json.loads((folder / "tune.json").read_text())
    assert origin["step"] == 4 and origin["config"]["objective"]["name"] == "tgo"
    assert origin["labels"]["positive"] == 0.5


def test_the_division_of_a_batch_does_not_matter(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", "sd3")
    results = []
    for parts in (1, 4):
        job = config(tmp_path / f"run{parts}", data, accumulate=parts)
        results.append(load_file(tune(job, build("sd3"), progress=False) / _LORA))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-3, atol=1e-4)


def test_gradient_checkpointing_changes_memory_alone(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", "sd3")
    results = [
        load_file(
            tune(
                config(tmp_path / f"run{on}", data, gradient_checkpointing=on, steps=2),
                build("sd3"),
                progress=False,
            )
            / _LORA
        )
        for on in (False, True)
    ]
    assert equal(*results)


@pytest.mark.parametrize(
    "dtypes", [{"dtype": "bfloat16"}, {"base_dtype": "bfloat16"}], ids=["autocast", "weights"]
)
def test_half_precision_trains_adapters_in_float32(dtypes: dict[str, str], tmp_path: Path) -> None:
    dtype = torch.bfloat16 if "base_dtype" in dtypes else torch.float32
    data = write_set(tmp_path / "data", "sd3")
    job = config(tmp_path / "run", data, objective={"name": "dpo", "beta": 100}, **dtypes)
    trainer = Trainer(job, build("sd3", dtype=dtype), progress=False)
    assert {p.dtype for p in trainer.policy.parameters().values()} == {torch.float32}
    assert next(trainer.pipe.transformer.parameters()).dtype == dtype
    trainer.run()
    log = rows(tmp_path / "run")
    assert log[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert all(math.isfinite(row["loss"]) for row in log)


def test_the_average_of_the_weights_is_exported(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", "sd3")
    trainer = Trainer(config(tmp_path / "run", data, ema=0.5), build("sd3"), progress=False)
    shadow = [p.detach().clone() for p in trainer.parameters]
    decays = [0.0, *(1 - (1 + k) ** (-2 / 3) for k in range(1, 4))]  # warm-up of diffusers' EMA
    once = trainer.advance

    def followed() -> dict[str, float]:
        row = once()
        decay = min(decays[trainer.step - 1], 0.5)
        for mean, parameter in zip(shadow, trainer.parameters, strict=True):
            mean.lerp_(parameter.detach(), 1 - decay)
        return row

    trainer.advance = followed
    trainer.run()
    raw = [p.detach().clone() for p in trainer.parameters]
    with trainer.average():
        for mean, parameter in zip(shadow, trainer.parameters, strict=True):
            torch.testing.assert_close(parameter.detach(), mean, rtol=1e-5, atol=1e-7)
    assert all(map(torch.equal, raw, [p.detach() for p in trainer.parameters]))
    fresh = build("sd3")
    fresh.load_lora_weights(tmp_path / "run" / "tuned", weight_name=_LORA)
    with trainer.average():
        after = answer(trainer.pipe, trainer)
    torch.testing.assert_close(answer(fresh, trainer), after, rtol=1e-4, atol=1e-5)


def test_reward_weighted_rows_have_their_prompts_advantages(tmp_path: Path) -> None:
    """Of two prompts with scores 0 and 1 the weights are e and 1 / e, and no row is far from it."""
    data = write_set(tmp_path / "data", prompts=2, test_prompts=0, scores=[0.0, 1.0] * 4)
    given = {"name": "orw", "tau": 5.0, "leash": 0.0}
    one = Trainer(config(tmp_path / "run", data, objective=given, steps=1, batch=8), build("sd"))
    weights = one.loader.at(0).weights
    assert sorted((5 * weights).tolist()) == pytest.approx([-1.0] * 4 + [1.0] * 4, abs=1e-3)
    assert one.advance()["loss"] > 0
    one.close()


@pytest.mark.parametrize("objective", ["tgo", "poly_dpo", "nft", "awm", "dpop"])
def test_training_learns_the_preferences_of_a_tiny_set(objective: str, tmp_path: Path) -> None:
    beta = {
        "tgo": {"temperature": 0.02, "c": 0},
        "poly_dpo": {"beta": 40},
        "dpop": {"beta": 40},
    }
    good = [i for i in range(8) if i % 2 == 0]  # the images of the first shard
    data = write_set(
        tmp_path / "data",
        prompts=2,
        test_prompts=0,
        scores=[float(i in good) for i in range(8)],
        pairs=[(f"p{i // 4}-s{i % 4}", f"p{i // 4}-s{i % 4 + 1}") for i in good] * 2,
    )
    for shard, offset in enumerate((1, -1)):  # bright images are good, dark ones bad
        path = data / f"latents-{shard:05d}.safetensors"
        save_file({"latents": 0.2 * load_file(path)["latents"] + offset}, path)
    job = config(
        tmp_path / "run",
        data,
        objective={"name": objective, **beta.get(objective, {})},
        steps=24,
        batch=8,
        lr=2e-3,
        lora=False,
        checkpoint_every=100,
    )
    tune(job, build("sd"), progress=False)
    log = rows(tmp_path / "run")
    early, late = log[:10], log[-10:]

    def mean(part: list[dict[str, float]], name: str) -> float:
        return sum(row[name] for row in part) / len(part)

    assert mean(late, "loss") < mean(early, "loss")
    assert mean(late, "accuracy") > 0.7 and mean(late, "margin") > mean(early, "margin")


def test_supervised_tuning_takes_the_good_images_alone(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", "sd3", pairs=None)
    trainer = Trainer(
        config(tmp_path / "run", data, objective="sft", batch=3), build("sd3"), progress=False
    )
    used = {name for step in range(4) for name in trainer.loader.at(step).ids}
    assert used == {f"p{p}-s{s}" for p in range(3) for s in (2, 3)}
    assert "accuracy" not in trainer.advance()
    trainer.loader.close()


def test_conditional_tuning_marks_the_prompts_of_bad_images(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", pairs=None)
    job = config(tmp_path / "run", data, objective={"name": "csft", "mark": "bad "}, batch=12)
    trainer = Trainer(job, build("sd"), progress=False)
    batch = trainer.loader.at(0)
    pipe = build("sd")
    for row, name in enumerate(batch.ids):
        prompt, seed = int(name[1]), int(name[4])
        index = trainer.data.ids.index(name)
        if seed < 2:
            given = pipe.encode_prompt(f"bad prompt {prompt}", "cpu", 1, False)[0][0]
            torch.testing.assert_close(
                batch.text["encoder_hidden_states"][row].float(), given, rtol=0, atol=2e-3
            )
        else:
            own = trainer.data.text([index])["encoder_hidden_states"][0]
            assert torch.equal(batch.text["encoder_hidden_states"][row], own)
    trainer.loader.close()


def test_winner_and_loser_share_noise_timestep_and_text_and_dropped_rows_get_the_empty_prompt(
    tmp_path: Path,
) -> None:
    from steer.tune.loader import to_device

    data = write_set(tmp_path / "data")
    job = config(tmp_path / "run", data, text_dropout=0.5, batch=8)
    trainer = Trainer(job, build("sd"), progress=False)
    batch = trainer.loader.at(0)
    x0, text, noise, index = to_device(batch, torch.device("cpu"), torch.float32)
    assert x0.shape == (16, 4, 8, 8) and not torch.equal(x0[:8], x0[8:])
    for values in (noise, index, text["encoder_hidden_states"]):
        assert torch.equal(values[:8], values[8:])
    dropped = batch.draws.dropped
    assert 0 < int(dropped.sum()) < 8
    empty = (batch.text["encoder_hidden_states"] == 0.5).flatten(1).all(1)
    assert torch.equal(empty, dropped)
    assert all(w[:3] == x[:3] for w, x in zip(batch.ids[:8], batch.ids[8:], strict=True))
    trainer.loader.close()


def test_looking_on_the_way_writes_grids_and_held_out_losses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = config(
        tmp_path / "run",
        write_set(tmp_path / "data"),
        validation={"every": 2, "prompts": ["a red circle", "a"], "steps": 2, "seed": 3},
    )
    pipe = build("sd")
    scheduler = pipe.scheduler
    tune(job, pipe)
    assert "it/s" not in capsys.readouterr().err  # no bar unless asked for
    assert pipe.scheduler is scheduler
    grids = sorted((tmp_path / "run" / "validation").iterdir())
    assert [path.name for path in grids] == [f"step-000000{k}.png" for k in (0, 2, 4)]
    sizes = [Image.open(path).size for path in grids]
    assert sizes[1] == sizes[2] == (2 * sizes[0][0], sizes[0][1])
    base = Image.open(grids[0])
    assert Image.open(grids[2]).crop((0, 0, *base.size)).tobytes() == base.tobytes()
    assert read(grids[2])["step"] == 4
    looked = [row for row in rows(tmp_path / "run") if "test_loss" in row]
    assert [row["step"] for row in looked] == [0, 2, 4]
    assert looked[0]["test_loss"] == pytest.approx(math.log(2)) and looked[0][
        "test_accuracy"
    ] == pytest.approx(0.5)


def test_prompts_without_a_counterpart_are_told_and_left_out(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", "sd3", pairs=[("p0-s1", "p0-s0"), ("p0-s2", "p0-s0")])
    with pytest.warns(UserWarning, match=r"2 prompt\(s\) are without a counterpart.*'prompt 1'"):
        trainer = Trainer(config(tmp_path / "run", data, batch=2), build("sd3"), progress=False)
    assert set(trainer.loader.at(0).ids) == {"p0-s0", "p0-s1", "p0-s2"}
    trainer.loader.close()


def test_what_cannot_be_trained_is_refused_before_the_first_step(tmp_path: Path) -> None:
    scored = write_set(tmp_path / "scored", pairs=None)
    with pytest.raises(TuneError, match="learns from pairs"):
        Trainer(config(tmp_path / "run", scored), build("sd"))
    with pytest.raises(TuneError, match="batch=64: the dataset has only 12 rows"):
        Trainer(config(tmp_path / "run", scored, objective="tgo", batch=64), build("sd"))
    with pytest.raises(TuneError, match="batch=5: must divide"):
        Trainer(
            config(tmp_path / "run", scored, objective="tgo", batch=5, accumulate=2), build("sd")
        )
    with pytest.raises(TuneError, match=r"lora\.targets=.*has no such modules"):
        Trainer(
            config(tmp_path / "run", scored, objective="tgo", lora={"targets": ["nothing"]}),
            build("sd"),
        )
    with pytest.raises(TuneError, match="do not fit a denoiser with 16 channels"):
        Trainer(config(tmp_path / "run", write_set(tmp_path / "d")), build("flux"))
    with pytest.raises(TuneError, match=r"PixArt.*lora: false"):
        Trainer(config(tmp_path / "run", scored, objective="tgo"), build("pixart"))
    adapted = build("sd")
    Trainer(config(tmp_path / "run", scored, objective="tgo"), adapted).loader.close()
    with pytest.raises(TuneError, match="adapters already"):
        Trainer(config(tmp_path / "run", scored, objective="tgo"), adapted)
    (scored / "text-uncond.safetensors").unlink()
    with pytest.raises(TuneError, match="text_dropout"):
        Trainer(config(tmp_path / "run", scored, objective="tgo", text_dropout=0.1), build("sd"))
