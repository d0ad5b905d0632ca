"""`calibrate` on a tiny pipeline: what it records, what it costs, and that nothing paid is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import arguments, redness, seeded, shared
from torch import Tensor

import steer
from steer.core.errors import RecordError, RewardError
from steer.core.when import between
from steer.methods import BestOfN, Guide, Prune
from steer.pipeline.guided import Guided, guided
from steer.pipeline.planning.calibrate import Study, calibrate
from steer.pipeline.planning.records import Records
from steer.pipeline.planning.replay import Pool, Pools
from steer.rewards.function import FunctionReward


STEPS, N = 8, 4
PROMPTS = ["a", "b", "c", "d"]
CALL = {k: v for k, v in arguments("sd", num_inference_steps=STEPS).items()}
CALL = {k: v for k, v in CALL.items() if k not in ("prompt", "generator", "output_type")}


def blueness(images: Tensor, prompts: list[str]) -> Tensor:
    return images[:, 2].mean((1, 2))


def steered(scheduler: str | None = None, **more: Any) -> Any:
    return guided(shared("sd", scheduler), redness, **{"judge": blueness, **more})


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def pilots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pilots") / "pilots.jsonl"
    calibrate(steered(), PROMPTS, n=N, seed=3, out=path, tell=lambda line: None, **CALL)
    return path


def test_pilots_are_the_methods_own_particles(pilots: Path) -> None:
    """Best-of-n and prune, run for real, return what the recordings say that they return."""
    study = Study.of(steered(), PROMPTS, n=N, seed=3, call=CALL)
    kinds = {kind.name: kind for kind in study.kinds}
    found = records(pilots)
    for index, text in enumerate(PROMPTS):
        mine = {unit["kind"]: unit for unit in found if unit["prompt"] == index}
        assert set(mine) == set(kinds)

        def run(method: Any, index: int = index, text: str = text) -> float:
            call = arguments("sd", **CALL, prompt=text, generator=seeded(3 + index))
            return steered()(**call, method=method).rewards[0]

        assert run(BestOfN(N)) == pytest.approx(max(mine["full"]["rewards"]), abs=1e-5)
        short = mine["short 4"]["rewards"]
        assert run(BestOfN(N, strides=4)) == pytest.approx(max(short), abs=1e-5)
        for name, strides, at in (("full", None, 0.5), ("draft 4-4", 4, 0.65)):
            plan = Prune(N, (2,), (at,), strides)
            pool = Pool.of(kinds[name], [mine[name]])
            assert run(plan) == pytest.approx(pool.prune(plan).reward[0], abs=1e-5)


def test_guided_pilots_are_the_method_s_own_particles(tmp_path: Path) -> None:
    """In every step and as drafts, whatever decodes the previews that guide and rank them."""
    path = tmp_path / "pilots.jsonl"
    reward = FunctionReward(redness, name="redness", differentiable=True)
    given: Any = {"windows": [(0.7, 0.9)], "previews": ["linear"]}
    steered_by = guided(shared("sd"), reward, judge=blueness)
    lines: list[str] = []
    plans = calibrate(
        steered_by, PROMPTS, n=N, seed=3, out=path, tell=lines.append, **given, **CALL
    )
    assert "gradients of the reward" in lines[0]
    assert steered_by.preview is None
    study = Study.of(steered_by, PROMPTS, n=N, seed=3, call=CALL, **given)
    kinds = {kind.name: kind for kind in study.kinds}
    mine = {unit["kind"]: unit for unit in records(path) if unit["prompt"] == 0}
    assert set(mine) == set(kinds)
    for way, plan in (
        ("full guided 0.7-0.9", BestOfN(N)),
        ("full guided 0.7-0.9", Prune(N, (2,), (0.8,))),
        ("draft 4-4 guided 0.7-0.9", Prune(N, (2, 1), (0.65, 0.8), 4)),
    ):
        method = Guide(plan, when=between(0.7, 0.9))
        for decoder, name in ((None, way), ("linear", f"{way} by linear")):
            steered_by.preview = decoder
            pools = Pools(
                [Pool.of(kinds[name], [mine[name]]), Pool.of(kinds["full"], [mine["full"]])]
            )
            found = pools.shown_by(decoder or "") if decoder else pools
            call = arguments("sd", **CALL, prompt="a", generator=seeded(3))
            out = steered_by(**call, method=method)
            pool = found.by_name[way]
            outcome = pool.best_of(N) if isinstance(plan, BestOfN) else pool.prune(plan)
            assert out.rewards[0] == pytest.approx(outcome.reward[0], abs=1e-5)
    assert {d.name for d in plans.decoders} == {"", "linear"}
    assert {d.cost for d in plans.decoders} != {0.0}
    assert plans.preview in ("", "linear") and "preview='linear'" in str(plans)


def test_judges_see_the_same_images(pilots: Path) -> None:
    call = arguments("sd", **CALL, prompt="a", generator=seeded(3))
    report = steered()(**call, method=BestOfN(1)).report
    unit = records(pilots)[0]
    assert unit["rewards"][0] == pytest.approx(report.rewards[0], abs=1e-5)
    assert unit["judged"][0] == pytest.approx(report.judges["blueness"][0], abs=1e-5)


def test_it_costs_what_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    spent: list[tuple[int, int]] = []
    own = Guided.__call__

    def counted(self: Guided, *args: Any, **kwargs: Any) -> Any:
        out = own(self, *args, **kwargs)
        ledger = out.report.ledger
        spent.append((ledger.denoiser_rows, ledger.decodes))
        return out

    monkeypatch.setattr(Guided, "__call__", counted)
    calibrate(steered(), PROMPTS, n=N, tell=lines.append, **CALL)
    rows, decodes = np.sum(spent, 0)
    work = Study.of(steered(), PROMPTS, n=N, seed=0, call=CALL).work
    assert work.rows == rows and len(lines) == 1
    assert f"{rows / STEPS:,.0f} plain calls" in lines[0]
    returned = len(spent)  # images that are decoded once more
    assert decodes == work.decodes + work.previews + returned


def test_an_interruption_loses_nothing(pilots: Path, tmp_path: Path) -> None:
    path = tmp_path / "pilots.jsonl"
    count = 0

    def tired(images: Tensor, prompts: list[str]) -> Tensor:
        nonlocal count
        count += 1
        if count == 40:
            raise KeyboardInterrupt
        return redness(images, prompts)

    def named(function: Any) -> FunctionReward:
        return FunctionReward(function, name="redness")

    with pytest.raises(KeyboardInterrupt):
        calibrate(
            guided(shared("sd"), named(tired), judge=blueness),
            PROMPTS,
            n=N,
            seed=3,
            out=path,
            **CALL,
        )
    paid = records(path)
    assert 0 < len(paid) < len(records(pilots))
    with path.open("ab") as file:
        file.write(b'{"prompt": 3, "kind": "fu')  # a power cut in the middle of a line
    before = count
    again = guided(shared("sd"), named(redness), judge=blueness)
    plans = calibrate(again, PROMPTS, n=N, seed=3, out=path, **CALL)
    assert records(path)[: len(paid)] == paid and count == before
    whole = {(u["prompt"], u["kind"]): u["rewards"] for u in records(pilots)}
    for unit in records(path):
        assert unit["rewards"] == pytest.approx(whole[unit["prompt"], unit["kind"]], abs=1e-6)
    made = path.read_bytes()
    assert calibrate(again, PROMPTS, n=N, seed=3, out=path, **CALL) == plans
    assert path.read_bytes() == made


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"n": 5}, "n=4.*n=5"),
        ({"seed": 4}, "seed=3.*seed=4"),
        ({"prompts": [*PROMPTS, "e"]}, "prompts="),
        ({"num_inference_steps": 9}, "steps=8.*steps=9"),
        ({"guidance_scale": 2.0}, "call="),
    ],
)
def test_pilots_of_others(pilots: Path, changed: dict[str, Any], named: str) -> None:
    given = {"prompts": PROMPTS, "n": N, "seed": 3, **CALL, **changed}
    with pytest.raises(RecordError, match=named):
        calibrate(steered(), out=pilots, tell=lambda line: None, **given)


@pytest.mark.parametrize("content", [b"mine\n", b'{"format": "steer-scores/1"}\n', b"\xff\xfe\n"])
def test_files_of_others_stay_as_they_are(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pilots.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordError, match="pilots file"), Records({}, path).open():
        pass
    assert path.read_bytes() == content


def test_plans_say_what_was_done(pilots: Path) -> None:
    plans = calibrate(steered(), PROMPTS, n=N, seed=3, out=pilots, budgets=(2, 3, 50, 64), **CALL)
    assert [plan.budget for plan in plans.plans] == [2, 3, 50]  # 64 is not told apart from 50
    assert (plans.pipeline, plans.steps, plans.asked) == ("StableDiffusionPipeline", STEPS, STEPS)
    assert (plans.reward, plans.judge, plans.n, plans.prompts) == ("redness", "blueness", N, 4)
    assert plans.costs.unit == "flops" and plans.costs.row > plans.costs.score >= 0
    for plan in plans.plans:
        assert plans.costs.fits(plan.method.work(STEPS), plan.budget, STEPS) or not plan.pays
    rows = calibrate(
        steered(compute_unit="rows"), PROMPTS, n=N, seed=3, out=pilots, budgets=(2,), **CALL
    )
    assert rows.costs.unit == "rows"
    assert isinstance(plans, steer.Plans)


def test_schedulers_that_ask_twice_or_cannot_begin_in_the_middle() -> None:
    heun = calibrate(steered("heun"), PROMPTS, n=2, budgets=(2,), **CALL)
    assert (heun.asked, heun.steps) == (STEPS, 2 * STEPS - 1)
    pndm = calibrate(steered("pndm"), PROMPTS, n=2, budgets=(2,), **CALL)
    assert pndm.unsampled and all(name.startswith("draft") for name in pndm.unsampled)
    assert not any(row.kind.startswith("draft") for row in pndm.foresight)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"prompts": "one"}, "prompts='one': must be a list"),
        ({"prompts": ["a", "b", "c"]}, "prompts: 3 of them; give 4 at least"),
        ({"prompts": ["a", "b", "c", 4]}, "must be a list of texts"),
        ({"n": 1}, "n=1"),
        ({"n": 2.5}, "n=2.5"),
        ({"budgets": ()}, r"budgets=\(\)"),
        ({"budgets": (0.5,)}, "compute=0.5"),
        ({"generator": None}, "generator: set by the pilots"),
        ({"windows": "0.5"}, "windows='0.5': a list of pairs"),
        ({"windows": [0.5]}, "0.5 is no pair of fractions"),
        ({"windows": [(0.9, 0.2)]}, "between"),
        ({"windows": [(0.01, 0.02)]}, "no step of 8 lies in"),
        ({"windows": [(0.5, 0.9)]}, "'redness' is not differentiable.*leave windows out"),
        ({"previews": "tiny"}, "previews='tiny': a list of names"),
        ({"previews": [3]}, "3 is no name of a decoder"),
        ({"previews": ["no/such"]}, "no/such"),
    ],
)
def test_bad_arguments(given: dict[str, Any], named: str) -> None:
    with pytest.raises((ValueError, RewardError), match=named):
        calibrate(steered(), **{"prompts": PROMPTS, **CALL, **given})
