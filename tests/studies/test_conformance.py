"""`benchmarks/conformance`: what it says of pipelines that hold, refuse, crash and are wrong."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import steer
from benchmarks.conformance import __main__ as command, page, worker
from benchmarks.conformance.cases import Case, discover
from benchmarks.conformance.checks import CHECKS, METHODS, judge, of_error, search_faults
from benchmarks.conformance.compare import Brightness, difference, frames
from benchmarks.conformance.results import Result, load, worst
from benchmarks.conformance.subject import Limit
from steer.core.errors import UnsupportedPipelineError
from steer.search.method import Method


MODULE = '''
import functools
import os

from diffusers import FlowMatchEulerDiscreteScheduler, PixArtSigmaPipeline, SanaPipeline

from families import arguments, build

PLAIN = PixArtSigmaPipeline.__call__


def steered(pipe):
    return not type(pipe.scheduler).__module__.startswith("diffusers")


class WrongPipeline(PixArtSigmaPipeline):
    @functools.wraps(PLAIN)
    def __call__(self, *args, **kwargs):
        output = PLAIN(self, *args, **kwargs)
        output.images = output.images + 0.1 * steered(self)
        return output


class CrashPipeline(PixArtSigmaPipeline):
    @functools.wraps(PLAIN)
    def __call__(self, *args, **kwargs):
        if steered(self):
            raise KeyError("lost")
        return PLAIN(self, *args, **kwargs)


class Pixart:
    pipeline_class = PixArtSigmaPipeline

    def get_dummy_components(self):
        return build("pixart").components

    def get_dummy_inputs(self, device, seed=0):
        return {**arguments("pixart"), "output_type": "pil"}


class PixartOnceMore(Pixart):
    """Same pipeline and inputs: counts once."""


class Wrong(Pixart):
    pipeline_class = WrongPipeline


class Crash(Pixart):
    pipeline_class = CrashPipeline


class Brownian(FlowMatchEulerDiscreteScheduler):
    noise_sampler = None


class Refused:
    pipeline_class = SanaPipeline

    def get_dummy_components(self):
        return {**build("sana").components, "scheduler": Brownian()}

    def get_dummy_inputs(self, device, seed=0):
        return arguments("sana")


class Unbuilt(Refused):
    def get_dummy_components(self):
        raise OSError("we are offline")
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with tests of diffusers' form, and no other `tests` in the way."""
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    tiny = tmp_path / "tests" / "pipelines" / "tiny"
    tiny.mkdir(parents=True)
    for package in (tiny, tiny.parent, tiny.parent.parent):
        (package / "__init__.py").touch()
    (tiny / "test_tiny.py").write_text(MODULE)
    (tiny / "test_broken.py").write_text("import nothing_of_that_name")
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def whole() -> Iterator[None]:
    """All checks again afterwards, and in their order."""
    every = dict(CHECKS)
    yield
    CHECKS.clear()
    CHECKS.update(every)


def few(*names: str) -> None:
    for name in set(CHECKS) - set(names):
        del CHECKS[name]


def test_the_command_tells_outcomes_apart_and_resumes(
    folder: Path, whole: None, capsys: pytest.CaptureFixture[str]
) -> None:
    few("identity", "BestOfN", "SMC", "pipeline unchanged")
    out = folder / "found.jsonl"
    given = ["--tests", str(folder), "--out", str(out)]
    command.main([*given, "--only", "tiny:Pixart", "tiny:Wrong"])
    assert [case.split(":")[1] for case in load(out)] == ["Pixart", "Wrong"]
    command.main(given)
    found = load(out)
    said = {
        key.split(":")[-1]: {name: r.outcome for name, r in record.checks.items()}
        for key, record in found.items()
    }
    right = dict.fromkeys(CHECKS, "right")
    assert said == {
        "tiny.test_broken": {},
        "Pixart": right,
        "Wrong": right | {"identity": "wrong"},  # searches call it again, or score it again
        "Crash": right | {"identity": "crash", "BestOfN": "crash", "SMC": "crash"},
        "Refused": right | {"SMC": "refused"},
        "Unbuilt": dict.fromkeys(CHECKS, "test limit"),
    }
    checks = {key.split(":")[-1]: record.checks for key, record in found.items()}
    assert checks["Wrong"]["identity"].why.startswith("differs from the plain call by 0.1")
    assert "KeyError: 'lost'" in checks["Crash"]["identity"].why and checks["Crash"]["SMC"].where
    assert "one Brownian path" in checks["Refused"]["SMC"].why
    assert "we are offline" in checks["Unbuilt"]["SMC"].why
    assert "nothing_of_that_name" in found["tiny.test_broken"].why

    keep, CHECKS["another"] = out.read_text(), CHECKS["identity"]
    command.main([*given, "--only", "tiny:Pixart"])
    assert load(out)["tiny.test_tiny:Pixart"].checks.keys() == {*right, "another"}
    out.write_text(keep)
    command.main([*given, "--only", "tiny:Pixart", "tiny:Refused", "--add"])
    added = {key.split(":")[-1]: record for key, record in load(out).items()}
    assert [added[name].kept for name in ("Pixart", "Refused", "Wrong")] == [4, 3, 0]
    assert list(added["Refused"].checks) == list(CHECKS)
    assert added["Refused"].checks["another"].outcome == "right"
    assert "one Brownian path" in added["Refused"].checks["SMC"].why
    assert "7 of 10 checks are of earlier runs" in page.made_with(
        [added["Pixart"], added["Refused"]]
    )
    command.main([*given, "--only", "tiny:Refused", "tiny:Wrong", "--add", "another"])
    added = {key.split(":")[-1]: record for key, record in load(out).items()}
    assert (added["Wrong"].kept, added["Refused"].kept) == (4, 3)  # the latter had it already
    del CHECKS["another"]
    out.write_text(keep)

    lines = len(out.read_text().splitlines())
    assert lines == 6  # the first two were not run twice
    command.main([*given, "--only", "tiny:Unbuilt", "--again"])
    assert len(out.read_text().splitlines()) == lines + 1 and len(load(out)) == lines
    capsys.readouterr()
    command.main([*given, "--list", "--shard", "2/2"])
    listed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1] for line in listed[:2]] == ["Wrong", "Refused"]


def test_classes_of_the_same_pipeline_and_inputs_count_once(folder: Path) -> None:
    cases, broken = discover(folder)
    assert [case.test.__name__ for case in cases] == [
        *("Pixart", "Wrong", "Crash", "Refused", "Unbuilt")
    ] and list(broken) == ["tiny.test_broken"]


@pytest.mark.parametrize("given", [[], ["--tests", "none"], ["--shard", "3/2"]])
def test_arguments_without_sense_end_the_command(given: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        command.main([*given, "--out", str(tmp_path / "found.jsonl")])


def test_every_method_has_a_column() -> None:
    exported = [getattr(steer.methods, name) for name in steer.methods.__all__]
    methods = {kind for kind in exported if inspect.isclass(kind) and issubclass(kind, Method)}
    assert {type(method) for method in METHODS.values()} == methods - {Method}
    assert {"GradientProposal", "NoiseTilt"} < set(METHODS) <= set(CHECKS)


def test_an_error_is_a_refusal_only_where_steer_says_so() -> None:
    def own() -> list[str]:
        raise UnsupportedPipelineError("cannot\nbe driven")

    def argument() -> list[str]:
        steer.BestOfN(0)
        return []

    def foreign() -> list[str]:
        return [torch.zeros(2).reshape(3)][:0]  # type: ignore[return-value]

    def limit() -> list[str]:
        raise Limit("offline")

    assert judge(own) == Result("refused", "cannot be driven")
    assert judge(argument).outcome == "refused"
    assert judge(foreign).outcome == "crash" and judge(foreign).where == ""
    assert judge(limit) == Result("test limit", "offline")
    assert judge(lambda: []) == Result("right")
    assert judge(lambda: ["a", "b"]) == Result("wrong", "a; b")
    assert of_error(ValueError("not steer's")).outcome == "crash"


def dies(case: Case) -> Iterator[tuple[str, Result]]:
    yield "a", Result("right")
    os._exit(3)


def sleeps(case: Case) -> Iterator[tuple[str, Result]]:
    yield "a", Result("right")
    time.sleep(600)


def test_a_process_that_dies_or_hangs_is_one_case() -> None:
    case, names = Case("tiny", object), ("a", "b", "c")
    assert worker.results(case, dies, names, 60) == {
        "a": Result("right"),
        "b": Result("crash", "the process ended with code 3"),
        "c": Result("test limit", "the process died before"),
    }
    late = Result("test limit", "not done within 1 s")
    assert worker.results(case, sleeps, names, 1) == {"a": Result("right"), "b": late, "c": late}


def test_outputs_are_compared_by_form_bits_and_nan() -> None:
    one = torch.rand(2, 3, 4, 4)
    assert difference([one], (one.clone(),)) == 0
    assert difference(one, one + 0.5) == pytest.approx(0.5)
    assert difference(one, one[:1]) == difference([], []) == float("inf")
    assert difference(one, one.masked_fill(one > 0.5, float("nan"))) == float("inf")
    video = torch.rand(2, 5, 3, 4, 4)
    for output in (video, video.movedim(2, -1).numpy(), list(video)):
        shown = frames(output)
        assert shown is not None and shown.equal(video.flatten(0, 1))
    assert frames(np.zeros(7)) is None and frames(["a"]) is None


def test_the_reward_knows_what_it_was_shown() -> None:
    reward, shown = Brightness(), torch.rand(4, 3, 8, 8)
    assert reward.nearest(shown) == float("inf")
    assert torch.allclose(reward(shown[:2], []), shown[:2].mean((1, 2, 3)))
    reward(shown[2:], [])
    assert reward.nearest(shown[2:]) == 0 and reward.nearest(shown[1:2]) == 0
    assert reward.nearest(shown[:2] + 0.25) == pytest.approx(0.25)
    assert reward.nearest(torch.rand(1, 3, 4, 4)) == reward.nearest(None) == float("inf")


def test_a_search_is_wrong_in_its_form_its_rewards_or_what_it_scored() -> None:
    def faults(images: torch.Tensor, reward: float, base: float | None, *shown: Any) -> list[str]:
        seen = Brightness()
        seen.seen = [*shown]
        output: Any = Output([images])
        output.rewards, output.report = [reward], SimpleNamespace(base_reward=[base])
        return search_faults(subject, output, seen)

    dark, bright = torch.full((1, 3, 4, 4), 0.25), torch.full((1, 3, 4, 4), 0.75)
    subject: Any = SimpleNamespace(pictures=dark)
    assert faults(bright, 0.75, 0.25, dark, bright) == faults(bright, 0.75, None, bright) == []
    assert faults(bright[..., :2], 0.75, 0.25) == [
        "the output has another form than the plain call's"
    ]
    assert faults(bright, 0.5, 0.25, bright) == ["the reward is not that of the output"]
    assert faults(dark, 0.25, 0.3, dark) == [
        "the reward is below the plain call's",
        "the base reward is not the plain call's",
    ]
    assert faults(bright, 0.75, 0.25, dark) == ["the returned image was not scored"]


class Output(list[Any]):
    """A pipeline's output: images first, and attributes."""


def test_the_worst_result_counts() -> None:
    limit, right, refused = Result("test limit"), Result("right"), Result("refused", "no")
    assert worst([limit, right]) == right and worst([right, refused, limit]) == refused
    assert worst([refused, Result("crash"), Result("wrong")]).outcome == "wrong"
