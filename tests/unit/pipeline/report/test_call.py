"""The report of one call, method by method: genealogy from real traces, as text and as a page."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import arguments, redness, shared

from steer.core.when import between, every
from steer.methods import (
    RBF,
    SMC,
    Beam,
    BestOfN,
    BestOfNGuidance,
    Blockwise,
    Budget,
    DepthFirst,
    EvoSearch,
    Gate,
    Guide,
    LookaheadGuidance,
    NoiseOptimization,
    NoiseSearch,
    Prune,
    Then,
    Tree,
)
from steer.pipeline.guided import guided
from steer.pipeline.report import genealogy
from steer.pipeline.report.descent import MADE, Descent, title
from steer.rewards.function import FunctionReward
from steer.search.starts import FIRST_MADE


reddish = FunctionReward(redness, name="reddish", differentiable=True, needs_prompt=False)
METHODS: dict[str, Any] = {
    "best-of-n": BestOfN(3),
    "prune": Prune(start=4, keep=(2,), at=(0.5,)),
    "smc": SMC(4, lam=20.0, when=every(1), ess=1.0),
    "smc-ddim": SMC(4, lam=20.0, when=every(2), kernel="ddim"),
    "beam": Beam(2, candidates=2),
    "blockwise": Blockwise(3, block=2),
    "rbf": RBF(3),
    "evolution-on-the-way": EvoSearch((3, 2, 2), at=(0.0, 0.5), elites=2),
    "depth-first": DepthFirst(3, threshold=(9.0, 9.0, 9.0), depth=0.4),
    "tree": Tree(8, batch=2, widen=(1.0, 0.5)),
    "neighbours": NoiseSearch(n=2, rounds=3),
    "evolution": NoiseSearch(n=3, rounds=2, strategy="evolution", through=2),
    "paths": NoiseSearch(n=4, rounds=2, strategy="paths", keep=2, back=1),
    "climb": NoiseOptimization(iterations=3, through=2, starts=2),
    "gradient": Guide(BestOfN(2), when=between(0.5, 0.8)),
    "pull": BestOfNGuidance(3, when=every(3)),
    "lookahead": LookaheadGuidance(1, lookaheads=3, through=2),
    "then": Then(BestOfN(3), NoiseOptimization(iterations=2, through=2)),
    "gate": Gate(BestOfN(2), threshold=9.0, max_rounds=2),
    "budget": Budget(2, BestOfN(8)),
}


@functools.cache
def called(name: str) -> Any:
    """Two prompts, six steps, small images kept."""
    call = guided(shared("sd", "euler_a"), reddish, method=METHODS[name], keep_images=True)
    given = arguments("sd", prompt=["a red circle", "two"], num_inference_steps=6)
    return call(**{**given, "output_type": "pt"})


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def found(name: str, prompt: int = 0) -> list[genealogy.Block]:
    report = called(name).report
    return genealogy.blocks(report.trace.events, prompt, report.steps)


def roots(report: Any, prompt: int) -> set[int]:
    """Particles that came from nobody: drawn, or in a lookahead, or new noise in a tree."""
    drawn = {k for row in report.trace.of("start", prompt) for k in row["particle"]}
    looked = {k for row in report.trace.of("lookahead", prompt) for k in row["particle"]}
    for row in report.trace.of("branch", prompt):
        pairs = zip(row["particle"], row["ancestors"], strict=True)
        drawn |= {child for child, parent in pairs if parent == -1}
    return drawn | looked


def test_everyone_descends_from_someone_drawn(name: str) -> None:
    report = called(name).report
    for prompt in (0, 1):
        known = roots(report, prompt)
        for block in found(name, prompt):
            for particle in {k for stage in block.stages for k in stage.cells}:
                assert block.descent.line(particle)[-1][0] in known


def test_the_chosen_are_marked_once_and_last(name: str) -> None:
    report = called(name).report
    for prompt in (0, 1):
        (winner,) = [k for p, k in report.chosen if p == prompt]
        marked = [
            (block, stage)
            for block in found(name, prompt)
            for stage in block.stages
            for cell in stage.cells.values()
            if cell.state == "chosen"
        ]
        assert len(marked) == 1
        _, stage = marked[0]
        assert stage.kind == "final"
        assert stage.cells[winner].reward == pytest.approx(report.rewards[prompt], abs=1e-5)


def test_stages_follow_time_and_hold_every_reward(name: str) -> None:
    """No score of the trace is lost, and within a population the way only goes on."""
    report = called(name).report
    judged = {"score", "iterate", "lookahead"}
    told = {k for e in report.trace.events if e["event"] in judged and e["prompt"] == 0
            for k in e["particle"]}  # fmt: skip
    shown = {k for b in found(name) for stage in b.stages for k in stage.cells}
    assert told == shown
    for block in found(name):
        ats = [stage.at for stage in block.stages if stage.kind in ("preview", "final")]
        assert block.climbs or ats == sorted(ats)
        for line in genealogy.lines(block):
            assert [at for at, _ in line.points] == sorted(at for at, _ in line.points)


def test_rewards_over_time_as_text(name: str) -> None:
    report = called(name).report
    text = str(report)
    assert repr(METHODS[name]) in text
    assert "Prompt 0, 'a red circle'" in text and "Prompt 1, 'two'" in text
    rows = report.ledger.denoiser_rows
    assert f"{rows} denoiser rows" in text and "Time:" in text
    assert "judged" in text and "1 chosen" in text
    assert len(text.splitlines()) < 80


def test_the_page(name: str, tmp_path: Path) -> None:
    out = called(name)
    path = out.report.save(tmp_path / "report.html", out.images)
    html = path.read_text("utf-8")
    assert html.count('<section class="prompt"') == 2
    assert html.count('class="plot') == 2
    assert "data:image/webp" in html and "{{" not in html
    body = re.sub(r"data:image/webp;base64,[\w+/=]+", "", html)
    assert "1 chosen" in body and "http" not in body.replace("http-equiv", "")
    previews = {(k, step) for p, k, step in out.report.trace.images}
    cells = [c for p in (0, 1) for b in found(name, p) for s in b.stages for c in s.cells.values()]
    seen = {cell.key for cell in cells if cell.key} & previews
    assert seen
    assert html.count('class="thumb') >= len(seen) / 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smc", "ESS"),
        ("smc-ddim", "Chosen: made"),
        ("beam", "Chosen: made"),
        ("tree", r"Chosen: (made|#|plain)|1 chosen"),
        ("neighbours", "round 3"),
        ("evolution", "short runs"),
        ("climb", "iteration 3"),
        ("lookahead", "short runs"),
        ("gate", r"\(not accepted\)"),
        ("budget", "Ended by its budget of 2 plain calls, after 24 rows"),
        ("then", "round 3"),
    ],
)
def test_what_is_particular(name: str, words: str) -> None:
    assert re.search(words, str(called(name).report))


def test_copies_name_their_parent_and_their_step() -> None:
    report = called("smc").report
    rows = [e for e in report.trace.of("select", 0) if e["step"] is not None]
    copied = {
        child: (parent, row["step"])
        for row in rows
        for child, parent in zip(row["particle"], row["ancestors"], strict=True)
        if child != parent
    }
    assert copied
    cells = {c.particle: c for b in found("smc") for s in reversed(b.stages)
             for c in s.cells.values()}  # fmt: skip
    for child, (parent, step) in copied.items():
        assert (cells[child].parent, cells[child].since) == (parent, step)


def test_ess_stands_at_its_stage() -> None:
    report = called("smc").report
    (block,) = found("smc")
    told = {row["step"]: row["ess"] for row in report.trace.of("weights", 0)}
    assert {stage.step: stage.ess for stage in block.stages} == told


def test_lanes_one_after_the_other_are_one_population() -> None:
    """Guided a lane at a time, judged at the same steps: one stage per step."""
    call = guided(shared("sd"), reddish, method=METHODS["gradient"], lane_width=1)
    report = call(**arguments("sd", num_inference_steps=6)).report
    (block,) = genealogy.blocks(report.trace.events, 0, 6)
    assert [stage.label for stage in block.stages] == ["step 3 of 6", "step 4 of 6", "finished"]
    assert all(len(stage.cells) == 2 for stage in block.stages)


def test_lines_branch_off_their_ancestors() -> None:
    scores: dict[str, Any] = {"event": "score", "prompt": 0, "preview": True}
    events: list[dict[str, Any]] = [
        scores | {"step": 1, "particle": [0, 1], "reward": [0.1, 0.9]},
        {"event": "select", "step": 1, "prompt": 0, "particle": [7, 1], "ancestors": [1, 1]},
        scores | {"step": 3, "particle": [7, 1], "reward": [0.5, 0.6]},
    ]
    (block,) = genealogy.blocks(events, 0, 4)
    points = {line.particle: line.points for line in genealogy.lines(block)}
    assert points == {
        0: ((0.5, 0.1),),
        1: ((0.5, 0.9), (1.0, 0.6)),
        7: ((0.5, 0.9), (1.0, 0.5)),
    }


def test_a_start_that_no_iteration_improved() -> None:
    """It is chosen where it was finished, not at its last iteration."""
    common: dict[str, Any] = {"prompt": 0, "step": None}
    events: list[dict[str, Any]] = [
        {"event": "score", "preview": False, "particle": [0], "reward": [0.8], **common},
        {"event": "iterate", "iteration": 0, "particle": [0], "reward": [0.7], **common},
        {"event": "iterate", "iteration": 1, "particle": [0], "reward": [0.3], **common},
        {"event": "branch", "particle": [MADE], "ancestors": [0], **common},
        {"event": "score", "preview": False, "particle": [MADE], "reward": [0.6], **common},
        {"event": "final", "chosen": [0], **common},
    ]
    climb, last = genealogy.blocks(events, 0, 4)
    assert [stage.cells[0].state for stage in climb.stages] == ["chosen", "kept", "kept"]
    assert [stage.at for stage in climb.stages] == [1.0, 0.5, 1.0]
    assert climb.climbs and not last.climbs
    assert last.stages[0].cells[MADE].state == "dropped"
    assert last.stages[0].cells[MADE].parent == 0
    (line,) = genealogy.lines(climb)
    assert line.points == ((0.5, 0.7), (1.0, 0.3))


def test_names() -> None:
    assert MADE == FIRST_MADE
    assert [title(k) for k in (0, 3, MADE, MADE + 4)] == ["plain", "#3", "made 1", "made 5"]
    tree = Descent({MADE: (0, None), MADE + 1: (MADE, 4)})
    assert tree.words(MADE + 1) == "made 2 < made 1 at step 5 < plain"


@pytest.mark.parametrize("kind", ["pil", "np", "pt", None])
def test_pages_of_any_images(kind: str | None, tmp_path: Path) -> None:
    call = guided(shared("sd"), redness, method=BestOfN(2), keep_images=kind is None)
    out = call(**arguments("sd", output_type=kind or "pt"))
    out.report.save(tmp_path / "page.html", *([] if kind is None else [out.images]))
    assert "data:image/webp" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (None, "keep_images=True"),
        (torch.zeros(1, 4, 8, 8), "not latents"),
        (np.zeros((3, 8, 8, 3)), "3 for a call that returned 1"),
    ],
)
def test_pages_without_images(images: Any, words: str, tmp_path: Path) -> None:
    out = guided(shared("sd"), redness, method=BestOfN(2))(**arguments("sd"))
    with pytest.raises(ValueError, match=words):
        out.report.save(tmp_path / "page.html", images)


def test_an_interrupted_call(tmp_path: Path) -> None:
    def stop(pipe: Any, i: int, t: Any, tensors: Any) -> Any:
        pipe._interrupt = i == 1
        return {}

    call = guided(shared("sd"), redness, method=BestOfN(2), lane_width=1)
    out = call(**arguments("sd", callback_on_step_end=stop))
    assert out.report.interrupted
    assert "Prompt 0" in str(out.report)
    with pytest.raises(ValueError, match="interrupted"):
        out.report.save(tmp_path / "page.html")


def test_an_alarm_where_the_judge_falls_and_the_reward_rises(tmp_path: Path) -> None:
    def redless(images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return -images[:, 0].mean((1, 2))

    def agrees(images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return 2 * images[:, 0].mean((1, 2))

    run = guided(shared("sd"), reddish, method=BestOfN(6), judge=[redless, agrees])
    out = run(**arguments("sd", output_type="pt"))
    assert out.rewards[0] > (out.report.base_reward[0] or 0)
    lines = [line for line in str(out.report).splitlines() if line.startswith("Alarm")]
    assert len(lines) == 1
    assert "judge redless falls" in lines[0]
    page = out.report.save(tmp_path / "page.html", out.images).read_text()
    assert page.count("judge redless falls") == 1


def test_no_alarm_for_the_plain_image() -> None:
    run = guided(shared("sd"), reddish, method=BestOfN(1), judge=[redness])
    assert "Alarm" not in str(run(**arguments("sd", output_type="pt")).report)
