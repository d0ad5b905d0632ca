"""`Plans`: what is taken at a budget, files and their refusals, words and the page."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from families import arguments, build, redness, shared
from pools import PLANNED_STEPS as STEPS, made_plans as made

from steer.core.costs import ROWS, Costs
from steer.core.errors import PlansError, SteerError
from steer.core.when import between
from steer.methods import BestOfN, Guide, Prune
from steer.pipeline.guided import guided
from steer.pipeline.planning.plans import Plans
from steer.pipeline.planning.words import shown
from steer.rewards.function import FunctionReward


@pytest.fixture(scope="module")
def plans() -> Plans:
    return made()


def test_the_largest_budget_not_above(plans: Plans) -> None:
    two, four, eight = (plan.method for plan in plans.plans)
    assert len({repr(two), repr(four), repr(eight)}) == 3
    for compute, method in ((1, BestOfN(1)), (1.99, BestOfN(1)), (2, two), (3.9, two), (4, four)):
        assert plans.at(compute) == method
    assert plans.at(7) == four and plans.at(8) == plans.at(100) == eight


def test_never_over_budget_at_the_costs_of_the_call(plans: Plans) -> None:
    dear = Costs(row=1.0, decode=5.0, preview=5.0, score=20.0, unit="flops")
    for compute in (1, 2, 3, 4, 6, 8, 20):
        method = plans.at(compute, dear)
        assert method == BestOfN(1) or dear.fits(method.work(STEPS), compute, STEPS)
    assert plans.at(4, dear) != plans.at(4)
    assert plans.at(100, dear) == plans.at(100)


def test_what_does_not_suit_the_call_is_left_out(plans: Plans) -> None:
    wide = replace(plans.plans[1], method=Prune(8, (4, 2), (0.5, 0.65), strides=4))
    given = replace(plans, plans=(plans.plans[0], wide))
    assert given.at(4) == wide.method
    assert given.at(4, drafts=False) == plans.plans[0].method
    assert given.at(4, lane=2) == wide.method
    assert given.at(4, lane=3) == BestOfN(3)


def test_another_guidance_scale_than_the_pilots_had_is_told(plans: Plans) -> None:
    given = replace(plans, call={"guidance_scale": 3.5})
    with pytest.warns(UserWarning, match=r"guidance 3\.5, and this call has 7\.5"):
        given.check_guidance(7.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given.check_guidance(3.5)
        replace(plans, call={"guidance_scale": 0}).check_guidance(1.0)  # both without
        replace(plans, call={}).check_guidance(2.0)


def test_a_file_and_back(plans: Plans, tmp_path: Path) -> None:
    plans.save(tmp_path / "plans.json")
    assert Plans.load(tmp_path / "plans.json") == plans
    data = json.loads((tmp_path / "plans.json").read_text())
    assert data["format"] == "steer-plans/1"
    assert data["plans"][0]["method"] == repr(plans.plans[0].method)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "steer-plans/9"}, "not a steer-plans/1 file"),
        ({"plans": []}, "damaged"),
        ({"plans": [{"budget": 2}]}, "damaged"),
        ({"steps": "20"}, "steps='20'"),
        ({"n": 0}, "n=0"),
        ({"costs": {"row": 1}}, "damaged"),
        ({"costs": {**vars(ROWS), "row": 0.0}}, "row=0.0"),
        ({"more": 1}, "more"),
    ],
)
def test_what_is_no_plans_file(
    plans: Plans, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    path = tmp_path / "plans.json"
    path.write_text(json.dumps({**plans.to_dict(), **change}))
    with pytest.raises(PlansError, match=named) as told:
        Plans.load(path)
    assert str(path) in str(told.value)


@pytest.mark.parametrize("method", ["__import__('os')", "Nothing(1)", "BestOfN(n=0)", 3])
def test_methods_in_files_are_read_and_never_run(plans: Plans, tmp_path: Path, method: Any) -> None:
    data = plans.to_dict()
    data["plans"][0]["method"] = method
    (tmp_path / "plans.json").write_text(json.dumps(data))
    with pytest.raises(PlansError, match="damaged plans file"):
        Plans.load(tmp_path / "plans.json")


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_what_is_no_json_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "plans.json").write_text(content)
    with pytest.raises(PlansError, match=r"plans=.*write one with steer.calibrate"):
        Plans.load(tmp_path / "plans.json")


def test_guided_takes_the_decoder_of_the_plans(plans: Plans, tmp_path: Path) -> None:
    replace(plans, preview="linear").save(tmp_path / "plans.json")
    path = tmp_path / "plans.json"
    taken = guided(shared("sd"), redness, plans=path).preview
    assert taken is not None and taken.name == "linear"
    assert guided(shared("sd"), redness, plans=path, preview="vae").preview is None
    assert guided(shared("sd"), redness, plans=plans).preview is None


def test_files_of_before_windows_and_decoders(plans: Plans) -> None:
    data = plans.to_dict()
    del data["preview"], data["decoders"]
    assert Plans.from_dict(data) == plans


def test_guided_plans_are_planned_and_kept(plans: Plans, tmp_path: Path) -> None:
    method = Guide(Prune(8, (4, 2), (0.5, 0.65), strides=4), when=between(0.7, 0.95))
    given = replace(plans, plans=(plans.plans[0], replace(plans.plans[1], method=method)))
    given.save(tmp_path / "plans.json")
    assert Plans.load(tmp_path / "plans.json") == given
    dear = Costs(row=1.0, gradient=100.0, unit="flops")
    assert given.at(4) == method and given.at(4, dear) != method
    assert given.at(4, drafts=False) == plans.plans[0].method


def test_guided_takes_the_plan(plans: Plans, tmp_path: Path) -> None:
    plans.save(tmp_path / "plans.json")
    for given in (plans, tmp_path / "plans.json", str(tmp_path / "plans.json")):
        steered = guided(shared("sd"), redness, plans=given, compute=4, compute_unit="rows")
        out = steered(**arguments("sd", num_inference_steps=STEPS))
        assert out.report.method == plans.at(4)
        assert out.report.ledger.denoiser_rows <= 4 * STEPS
    other = steered(**arguments("sd", num_inference_steps=STEPS), compute=2)
    assert other.report.method == plans.at(2)
    own = steered(**arguments("sd"), method=BestOfN(2))  # a method needs no plan
    assert own.report.method == BestOfN(2)
    steered.plans = None
    assert steered(**arguments("sd", num_inference_steps=4)).report.method != plans.at(4)


def test_costs_of_the_call_decide(plans: Plans) -> None:
    """Counted in FLOPs, decodes and scores of the tiny pipeline take from the budget."""
    steered = guided(shared("sd"), redness, plans=plans, compute=4)
    report = steered(**arguments("sd", num_inference_steps=STEPS)).report
    spent = sum(report.ledger.flops.values()) / report.ledger.plain_flops
    assert spent <= 4 and report.method in [BestOfN(1), *(plan.method for plan in plans.plans)]


def test_what_plans_are_not_for(plans: Plans) -> None:
    with pytest.raises(PlansError, match="for StableDiffusionPipeline, and the pipeline is Flux"):
        guided(shared("flux"), redness, plans=plans)
    other = FunctionReward(redness, name="other", needs_prompt=False)
    with pytest.raises(PlansError, match=r"with reward 'redness'.*'other'.*calibrate again"):
        guided(shared("sd"), other, plans=plans)
    steered = guided(shared("sd"), redness, plans=plans)
    rows = shared("sd").unet.forward
    with pytest.raises(PlansError, match="with 20 steps, and this call has 7"):
        steered(**arguments("sd", num_inference_steps=7))
    assert shared("sd").unet.forward == rows
    steered.reward = other
    with pytest.raises(PlansError, match=r"'redness'.*'other'"):
        steered(**arguments("sd", num_inference_steps=STEPS))
    with pytest.raises(ValueError, match=r"plans=3: must be what steer.calibrate returns"):
        guided(shared("sd"), redness, plans=3)  # pyright: ignore[reportArgumentType]
    assert issubclass(PlansError, SteerError)


def test_a_solver_that_asks_twice_per_step(plans: Plans) -> None:
    """20 steps of Heun are 39 denoiser calls: told at the first of them."""
    steered = guided(shared("sd", "heun"), redness, plans=plans)
    with pytest.raises(PlansError, match="with 20 denoiser calls, and this call makes 39"):
        steered(**arguments("sd", num_inference_steps=STEPS))


def test_a_solver_without_drafts(plans: Plans) -> None:
    """PNDM cannot begin in the middle: the next smaller plan that has no strides up to a cut."""
    drafts = replace(plans.plans[1], method=Prune(8, (4, 2), (0.5, 0.65), strides=4))
    given = replace(plans, plans=(plans.plans[0], drafts))
    pipe = build("sd", "pndm")
    steered = guided(pipe, redness, plans=replace(given, steps=21), compute=4)
    method = steered(**arguments("sd", num_inference_steps=STEPS)).report.method
    assert method in (plans.plans[0].method, BestOfN(1))


def test_words(plans: Plans) -> None:
    text = str(plans)
    for plan in plans.plans:
        assert shown(plan.method) in text
    assert "does not pay" not in text and "Nobody judged" not in text
    idle = str(made(honest=-1.0))
    assert "Searching does not pay at compute 2, 4, 8" in idle and "the plain call" in idle
    assert "Nobody judged" in str(replace(plans, judge="redness"))
    kept = {"draft 4-12": "cannot begin in the middle"}
    assert "cannot begin in the middle" in str(replace(plans, unsampled=kept))


def test_the_page(plans: Plans, tmp_path: Path) -> None:
    plans.page(tmp_path / "plans.html")
    page = (tmp_path / "plans.html").read_text()
    for plan in plans.plans:
        assert shown(plan.method) in page
    assert page.count("<svg") == 4 and "<script" not in page and "https://" not in page
    for heading in ("Plans by budget", "Best of n", "What previews know", "Fewer steps"):
        assert heading in page
    evil = replace(plans, model="<script>alert(1)</script>")
    evil.page(tmp_path / "evil.html")
    assert "<script" not in (tmp_path / "evil.html").read_text()
