"""`steer tune run CONFIG.yaml`: the file, the command, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from families import build
from safetensors.torch import load_file, save_file
from tiny_sets import write_set
from typer.testing import CliRunner

from steer.cli.app import app
from steer.tune import TuneConfig, TuneError, trainer
from steer.tune.goals import CSFT, GOALS, KTO, TGO
from steer.tune.pair_goals import DiffusionDPO, PolyDPO


EXAMPLES = Path(__file__).parents[3] / "examples"
LEAST: dict[str, Any] = {"data": "d", "out": "o", "objective": "tgo"}


def run(*arguments: Any) -> Any:
    AcceleratorState._reset_state(reset_partial_state=True)
    return CliRunner().invoke(app, [str(a) for a in arguments])


def written(folder: Path, **values: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_configuration_comes_back_from_its_own_values(tmp_path: Path) -> None:
    objective = {"name": "tgo", "c": 2, "per_prompt": True, "positive_share": 0.8}
    config = TuneConfig.from_dict(
        {
            **LEAST,
            "objective": objective,
            "lr": 1e-4,
            "lora": {"rank": 4, "targets": ["to_q"]},
            "validation": {"every": 5, "prompts": ["a"]},
        }
    )
    assert config.lr == 1e-4 and config.lora is not None and config.lora.targets == ("to_q",)
    assert config.objective == TGO(c=2, per_prompt=True, positive_share=0.8)
    path = written(tmp_path, **json.loads(json.dumps(config.to_dict())))
    assert TuneConfig.load(path) == config
    assert TuneConfig.load(path, out="elsewhere").out == "elsewhere"


def test_names_of_objectives_and_the_two_ways_to_write_them() -> None:
    assert set(GOALS) == {"tgo", "kto", "sft", "csft", "poly_dpo", "dpo", "nft", "awm"} | {
        "dmpo",
        "rdpo",
        "mapo",
        "cdpo",
        "soft_dpo",
        "ipo",
        "smpo",
        "dpop",
        "orw",
    }
    for name, kind in (("dpo", DiffusionDPO), ("kto", KTO), ("csft", CSFT)):
        assert TuneConfig.from_dict({**LEAST, "objective": name}).objective == kind()
    poly = {"name": "poly_dpo", "alpha": 8}
    assert TuneConfig.from_dict({**LEAST, "objective": poly}).objective == PolyDPO(alpha=8)
    assert TuneConfig.from_dict({**LEAST, "lora": False}).lora is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"siblings": 5}, r"siblings=5: must divide batch=32"),
        ({"siblings": 0}, r"siblings=0: must be a whole number of at least 1"),
        ({"siblings": 2, "objective": "dpo"}, r"siblings=2: is for objectives of single images"),
        ({"stepz": 5}, "stepz.*did you mean 'steps'"),
        ({"objective": "ppo"}, "objective='ppo': one of tgo, kto"),
        ({"objective": {"beta": 1}}, "a name and values"),
        ({"objective": {"name": "tgo", "alpha": 1}}, "objective.*alpha.*unknown"),
        ({"objective": {"name": "poly_dpo", "alpha": -2}}, r"alpha=-2.*at least -1"),
        ({"objective": {"name": "dpop", "weight": -1}}, r"weight=-1"),
        ({"objective": {"name": "orw", "advantage": "best_of_n"}}, "orw has weights of its own"),
        (
            {"objective": {"name": "tgo", "beta": "much"}},
            "objective: beta='much': must be a number above 0",
        ),
        ({"lora": {"rank": 0}}, "lora.rank=0"),
        ({"lora": {"alpha": -1.0}}, "lora.alpha"),
        ({"lora": {"targets": []}}, "lora.targets"),
        ({"lora": 3}, "lora"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 2.5}, "steps=2.5: must be a whole number"),
        ({"batch": True}, "batch=True"),
        ({"lr": 0}, "lr=0"),
        ({"lr": "fast"}, "lr='fast'"),
        ({"lr": "1e-5"}, r"lr='1e-5': must be a number above 0.*write 1\.0e-05"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"text_dropout": 1.5}, "text_dropout=1.5"),
        ({"guidance_scale": 1}, r"guidance_scale=1: .*leave the line out"),
        ({"guidance_scale": 0.5}, r"guidance_scale=0\.5: pipelines guide above 1"),
        ({"guided_branch": "both"}, r"guided_branch='both' without guidance_scale"),
        ({"guidance_scale": 3.5, "guided_branch": "empty"}, r"guided_branch='empty': one of both"),
        ({"guidance_scale": 3.5, "text_dropout": 0.1}, r"text_dropout=0\.1 with guidance_scale"),
        ({"noise_range": [0.6, 0.4]}, r"noise_range=\[0\.6, 0\.4\]: two shares"),
        ({"noise_range": 0.4}, "noise_range"),
        ({"schedule": "step"}, "schedule='step': one of constant"),
        ({"dtype": "int8"}, "dtype='int8': one of float32"),
        ({"base_dtype": "bfloat16", "lora": False}, "base_dtype='bfloat16' with lora: false"),
        ({"base_dtype": "int4"}, "base_dtype='int4'"),
        ({"warmup": -1}, "warmup=-1"),
        ({"keep": 0}, "keep=0"),
        ({"validation": {"every": -1}}, "validation.every=-1"),
        ({"validation": [1]}, "validation"),
        ({"data": 3}, "data=3: must be text"),
    ],
)
def test_what_is_wrong_in_a_configuration_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TuneError, match=message):
        TuneConfig.from_dict({**LEAST, **values})


@pytest.mark.parametrize("missing", ["data", "out", "objective"])
def test_what_is_missing_is_named(missing: str) -> None:
    with pytest.raises(TuneError, match=f"'{missing}' is missing"):
        TuneConfig.from_dict({k: v for k, v in LEAST.items() if k != missing})


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(TuneError, match=r"none\.yaml.*cannot be read"):
        TuneConfig.load(tmp_path / "none.yaml")
    for text in ("a: [", "just text"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(TuneError, match="config="):
            TuneConfig.load(tmp_path / "bad.yaml")


def test_the_example_is_valid() -> None:
    config = TuneConfig.load(EXAMPLES / "tune_shapes.yaml")
    assert config.pipeline == "shapes" and config.lora is not None


@pytest.mark.parametrize("name", ["draft", "ddpo"])
def test_the_examples_that_sample_are_valid(name: str) -> None:
    config = TuneConfig.load(EXAMPLES / f"tune_shapes_{name}.yaml")
    assert config.objective.name == name and config.sampling is not None and not config.data
    assert config.batch % config.accumulate == 0
    assert TuneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_example_in_rounds_is_valid_and_trains_whole_groups() -> None:
    config = TuneConfig.load(EXAMPLES / "tune_shapes_rounds.yaml")
    rounds = config.rounds
    assert rounds is not None and config.steps == rounds.count * rounds.updates
    assert rounds.guidance(config.guidance_scale) == config.guidance_scale == 3.5
    assert config.siblings == rounds.images
    assert config.batch == rounds.images * (rounds.prompts_per_round or 0)
    path = config.to_dict()
    assert TuneConfig.from_dict(path) == config


def test_the_command_trains_continues_and_says_where_the_weights_are(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    build("sd").save_pretrained(pipe)
    data = write_set(tmp_path / "data")
    path = written(
        tmp_path,
        **{**LEAST, "data": str(data), "out": "unused", "pipeline": str(pipe)},
        steps=2,
        batch=2,
        cpu=True,
    )
    out = tmp_path / "run"
    result = run("tune", "run", path, "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    assert str(out / "tuned") in result.output.replace("\n", "")
    assert load_file(out / "tuned" / "pytorch_lora_weights.safetensors")
    assert yaml.safe_load((out / "config.yaml").read_text())["steps"] == 2
    same = run("tune", "run", path, "--out", out, "--quiet")
    assert same.exit_code == 0
    path.write_text(path.read_text().replace("steps: 2", "steps: 2\nlr: 0.5"))
    other = run("tune", "run", path, "--out", out, "--quiet")
    assert other.exit_code == 2 and "lr: 1e-05 -> 0.5" in other.output


def test_bad_input_and_a_loss_that_is_not_finite_end_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "load_pipeline", lambda config: build("sd"))
    values = {**LEAST, "out": str(tmp_path / "run"), "steps": 2, "batch": 2, "cpu": True}
    lost = run(
        "tune", "run", written(tmp_path, **{**values, "data": str(tmp_path / "no")}), "--quiet"
    )
    assert lost.exit_code == 2 and "no such folder" in lost.output
    flat = write_set(tmp_path / "flat", scores=[0.25] * 16)
    refused = run("tune", "run", written(tmp_path, **{**values, "data": str(flat)}), "--quiet")
    assert refused.exit_code == 2 and "0.25: 12" in refused.output
    broken = write_set(tmp_path / "broken")
    for path in broken.glob("latents-*"):
        save_file({"latents": torch.full_like(load_file(path)["latents"], torch.nan)}, path)
    failed = run("tune", "run", written(tmp_path, **{**values, "data": str(broken)}), "--quiet")
    assert failed.exit_code == 1 and "step 1: the loss is nan" in failed.output
    assert run("tune", "run", tmp_path / "none.yaml").exit_code == 2


def test_the_group_knows_its_commands() -> None:
    shown = run("tune", "--help").output
    assert all(name in shown for name in ("run", "data", "scorer"))
    assert "Sample, score and pair" in run("tune", "data", "--help").output
    assert run("tune", EXAMPLES / "tune_shapes.yaml").exit_code == 2  # `run` is not left out


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = written(tmp_path, **LEAST)
    path.write_text(path.read_text() + "lr: 1e-4\n")
    assert TuneConfig.load(path).lr == 1e-4
