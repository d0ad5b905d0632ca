"""Every method from the shell and from YAML: a name, its arguments, an expression, a file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from steer import methods
from steer.cli.app import app
from steer.core.when import at, between, every
from steer.jobs.sample_job import SampleJob
from steer.methods import (
    SMC,
    Beam,
    BestOfN,
    BestOfNGuidance,
    Blockwise,
    Budget,
    Draft,
    Gate,
    GradientGuidance,
    GradientProposal,
    Guide,
    LookaheadGuidance,
    NoiseOptimization,
    NoiseSearch,
    Previews,
    Prune,
    StepGate,
    Then,
    Tree,
)
from steer.methods.parse import parse_method
from steer.methods.written import from_yaml, written
from steer.search.lookahead import LookaheadSet


WHEN = every(4) & between(0.25, 0.75) | at(0.9)
EVERY_ONE = [
    BestOfN(16),
    Prune(start=8, keep=(4, 2), at=(0.25, 0.5)),
    Draft(start=15, keep=(8, 2), at=(0.65, 0.7), through=5),
    SMC(8, lam=3.0, when=WHEN, potential="max", resample="ssp", ess=None, temper="adaptive"),
    SMC(4, proposal=GradientProposal(lam=2.0, pull=None, through="x0", when=every(2))),
    Beam((8, 4, 2), candidates=3, lookahead=2, when=between(0.3, 1.0)),
    Blockwise((2, 8), block=4, kernel="ddim"),
    Tree(compute=16, widen=(2.0, 0.8), at=(0.3, 0.6)),
    NoiseSearch(n=8, rounds=4, strategy="evolution", elites=4, through=4),
    NoiseOptimization(iterations=5, through=None, variant="reno", max_angle=30.0, monitor="clip"),
    GradientGuidance(n=2, strength=0.2, when=at(0.5, 0.6), schedule="noise"),
    Guide(Prune(6, (3,), (0.5,)), strength=0.2, when=between(0.5, 0.7)),
    BestOfNGuidance(4, pull=0.5, when=between(0.4, 0.44)),
    LookaheadGuidance(n=2, lookaheads=16, through=4),
    Previews(at=(0.5, 0.65), n=2),
    Gate(SMC(4, when=every(2)), threshold=0.6, max_rounds=3, on_reject="raise"),
    Budget(8, Tree(iterations=64)),
    Then(BestOfN(8), NoiseOptimization(iterations=4, starts=2)),
]


def as_yaml(value: Any) -> Any:
    """What a person would write: one key per method, text for step predicates."""
    if isinstance(value, tuple(type(method) for method in [*EVERY_ONE, GradientProposal()])):
        given = {f.name: as_yaml(getattr(value, f.name)) for f in fields(value)}
        return {type(value).__name__: given}
    if isinstance(value, tuple):
        return list(value)
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def test_nothing_is_left_out() -> None:
    known = {name for name in methods.__all__ if name[0].isupper()}
    parts = {"GradientProposal", "StepGate"}  # needed by methods, or calibrated
    reached = {type(method).__name__ for method in EVERY_ONE} | parts
    assert reached == known


@pytest.mark.parametrize("method", EVERY_ONE, ids=lambda m: type(m).__name__)
def test_every_method_from_its_own_repr(method: Any) -> None:
    assert parse_method(repr(method)) == method


@pytest.mark.parametrize("method", EVERY_ONE, ids=lambda m: type(m).__name__)
def test_every_method_from_a_name_and_arguments(method: Any) -> None:
    name, _, rest = repr(method).partition("(")
    text = written(name.lower(), rest.removesuffix(")"))
    assert text is not None and parse_method(text) == method


@pytest.mark.parametrize("method", EVERY_ONE, ids=lambda m: type(m).__name__)
def test_every_method_from_yaml(method: Any, tmp_path: Path) -> None:
    import yaml

    file = tmp_path / "method.yaml"
    file.write_text(yaml.safe_dump(as_yaml(method)))
    text = written(str(file))
    assert text is not None and parse_method(text) == method


def test_methods_that_read_files(tmp_path: Path) -> None:
    """A calibration and a lookahead set are named by their paths."""
    import torch

    path = tmp_path / "ahead.safetensors"
    LookaheadSet({"a": torch.zeros(2, 4, 1, 1)}, {"a": torch.zeros(2)}, ("x", "")).save(path)
    made = parse_method(f"lookahead-guidance(2, lookahead={str(path)!r})")
    assert isinstance(made.lookahead, LookaheadSet)
    with pytest.raises(ValueError, match="no-such-file"):
        parse_method("step-gate(4, calibration='no-such-file.json')")
    assert StepGate.__name__ in methods.__all__


@pytest.mark.parametrize(
    ("content", "method"),
    [
        ("SMC:\n  n: 8\n  when: every(4) & between(0.25, 0.75)\n",
         SMC(8, when=every(4) & between(0.25, 0.75))),
        ("smc(8, lam=2.0)\n", SMC(8, lam=2.0)),
        ("beam:\n", Beam()),
        ("gate:\n  method:\n    best-of-n: {n: 4}\n  threshold: 0.6\n", Gate(BestOfN(4), 0.6)),
        ("gate:\n  method: best-of-n(4)\n  threshold: 0.6\n", Gate(BestOfN(4), 0.6)),
    ],
)  # fmt: skip
def test_yaml_as_people_write_it(content: str, method: Any, tmp_path: Path) -> None:
    file = tmp_path / "method.yml"
    file.write_text(content)
    assert parse_method(from_yaml(file)) == method


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "not YAML"),
        ("- 1\n- 2\n", "one method by its name"),
        ("SMC: {n: 8}\nBeam: {}\n", "one method by its name"),
        ("SMC: {n: {a: 1, b: 2}}\n", "is no argument"),
        ("", "one method by its name"),
    ],
)
def test_yaml_that_is_no_method(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "method.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=words):
        written(str(file))


def test_arguments_need_one_place() -> None:
    assert written(None) is None
    assert written("smc") == "smc"
    assert written(" SMC(8) ") == "SMC(8)"
    with pytest.raises(ValueError, match="of which method"):
        written(None, "n=8")
    with pytest.raises(ValueError, match="in one place"):
        written("smc(8)", "lam=2.0")


def test_the_command_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SampleJob] = []
    monkeypatch.setattr("steer.cli.sample._sample", lambda job, *_: seen.append(job))
    file = tmp_path / "method.yaml"
    file.write_text("Tree: {iterations: 8}\n")
    for words in (["smc", "--method-args", "n=8, when=every(4)"], [str(file)]):
        given = ["sample", "a", "--out", str(tmp_path / "out"), "--method", *words]
        result = CliRunner().invoke(app, given, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert [job.method for job in seen] == ["smc(n=8, when=every(4))", "Tree(iterations=8)"]
    lost = ["sample", "a", "--out", str(tmp_path / "out"), "--method", str(tmp_path / "no.yaml")]
    result = CliRunner().invoke(app, lost)
    assert result.exit_code == 2 and "no.yaml" in result.stderr
