"""What is checked of a pipeline: identity with the plain call, then every method, tiny."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import steer
from benchmarks.conformance.cases import Case
from benchmarks.conformance.compare import Brightness, difference, frames
from benchmarks.conformance.results import Result
from benchmarks.conformance.subject import Limit, Subject, generator_state, prepare, sentence
from steer import methods as m
from steer.core.errors import SteerError
from steer.search.method import Method


ROUNDING = 2e-4
"""How far a mean brightness may be off: images of another batch differ in their last bits."""
PIXEL = 5e-3
"""How far a pixel may be off: more than a step of 8 bits, as in PIL images.

(The same latents in another memory layout are decoded up to .0015 apart by a random decoder.)
"""
WIDTH = 1e-4
"""How far a final reward may be off where only the lane width or the cuts are others."""
NARROW = " at lane width 1"
COMPUTE, LONG = 3, 14
"""Of a bare `compute=`: plain calls, and their steps."""
_STEERED = steer.between(0.2, 0.9)

METHODS: dict[str, Method] = {
    "BestOfN": m.BestOfN(3),
    "BestOfN, strides=2": m.BestOfN(3, strides=2),
    "Adaptive": m.Adaptive(3, price=0),
    "Prune": m.Prune(4, (2,), (0.5,)),
    "Prune, strides=2": m.Prune(3, (1,), (0.75,), strides=2),
    "Gate": m.Gate(m.BestOfN(2), math.inf, 2),
    "Budget": m.Budget(3, m.BestOfN(8)),
    "Then": m.Then(m.BestOfN(2), m.BestOfN(1)),
    "NoiseSearch": m.NoiseSearch(n=2, rounds=2),
    "NoiseOptimization": m.NoiseOptimization(2, through=2),
    "PCNL": m.PCNL(m.BestOfN(2), chains=1, burn_in=1, thin=1, through=2),
    "BestOfNGuidance": m.BestOfNGuidance(3),
    "LookaheadGuidance": m.LookaheadGuidance(lookaheads=3, through=2),
    "Guide": m.Guide(m.Prune(2, (1,), (0.5,)), when=_STEERED),
    "Guide, through the denoiser": m.Guide(m.BestOfN(1), when=_STEERED, through="denoiser"),
    "SMC": m.SMC(4),
    "SMC, kernel='ddim'": m.SMC(3, kernel="ddim"),
    "GradientProposal": m.SMC(2, proposal=m.GradientProposal()),
    "GradientProposal, through a map": m.SMC(
        2, lookahead="map", proposal=m.GradientProposal(through="map")
    ),
    "NoiseTilt": m.SMC(2, kernel=m.NoiseTilt()),
    "Beam": m.Beam(2),
    "Blockwise": m.Blockwise(2, block=2),
    "RBF": m.RBF(2),
    "RBF, kernel='ddim'": m.RBF(2, kernel="ddim"),
    "EvoSearch": m.EvoSearch((2, 2, 1), at=(0.0, 0.5), elites=2),
    "DepthFirst": m.DepthFirst(2, threshold=math.inf),
    "Tree": m.Tree(4, batch=2),
    "Tree, kernel='ddim'": m.Tree(4, batch=2, kernel="ddim"),
}
"""One row per method: what its column on the page stands for."""

Check = Callable[[Subject], list[str]]
"""Runs guided calls and returns what is wrong with them, in words."""


def examine(case: Case, names: Collection[str] | None = None) -> Iterator[tuple[str, Result]]:
    """Checks of a case, all of them or these, each as soon as it is done."""
    due = CHECKS if names is None else {name: CHECKS[name] for name in CHECKS if name in names}
    try:
        subject = prepare(case)
    except Limit as limit:
        yield from ((name, Result("test limit", str(limit))) for name in due)
        return
    for name, check in due.items():
        yield name, judge(partial(check, subject))


def judge(check: Callable[[], list[str]]) -> Result:
    """Run a check and say what came of it."""
    try:
        faults = check()
    except Limit as limit:
        return Result("test limit", str(limit))
    except Exception as error:
        return of_error(error)
    return Result("wrong", "; ".join(faults)) if faults else Result("right")


def of_error(error: Exception) -> Result:
    """A refusal is steer's own error, or a ValueError or TypeError that steer's code raises."""
    trace = traceback.extract_tb(error.__traceback__)
    folder = Path(steer.__file__).parent
    ours = [frame for frame in trace if Path(frame.filename).is_relative_to(folder)]
    raised_here = bool(ours) and trace[-1] is ours[-1]
    if isinstance(error, SteerError) or (raised_here and isinstance(error, ValueError | TypeError)):
        return Result("refused", str(error).replace("\n", " "))
    where = [f"{Path(f.filename).relative_to(folder)}:{f.lineno} {f.name}" for f in ours[-1:]]
    return Result("crash", sentence(error), "".join(where))


def identity(subject: Subject) -> list[str]:
    """Best of one is the plain call, bit for bit, and leaves the generator alike."""
    reward, inputs = Brightness(), subject.inputs()
    call = steer.guided(subject.pipe, reward=reward, method=m.BestOfN(1))
    output = call(**inputs)[0]
    faults: list[str] = []
    if (gap := difference(subject.plain, output)) != 0:
        faults.append(f"differs from the plain call by {gap:.2g}")
    if subject.state is not None and not subject.state.equal(_known(generator_state(inputs))):
        faults.append("leaves the generator in another state")
    if reward.nearest(frames(output)) > PIXEL:
        faults.append("the returned image was not scored")
    return faults


def latent(subject: Subject) -> list[str]:
    """With `output_type="latent"` steer decodes for the reward as the pipeline does."""
    if not subject.takes("output_type"):
        raise Limit("the pipeline has no output_type")
    reward = Brightness()
    try:
        subject.guided(m.BestOfN(1), reward, output_type="latent")
    except Exception:
        _plain(subject, output_type="latent")
        raise
    gap = reward.nearest(subject.pictures)
    return [f"decodes another image, off by {gap:.2g}"] if gap > PIXEL else []


def two_prompts(subject: Subject) -> list[str]:
    """Two prompts in one call: both are the plain call's, and each is chosen for on its own."""
    own = subject.inputs()
    if not isinstance(own.get("prompt"), str):
        raise Limit("the test has no prompt of text")
    both: dict[str, Any] = {"prompt": [own["prompt"], "a dog"]}
    if isinstance(own.get("negative_prompt"), str):
        both["negative_prompt"] = [own["negative_prompt"]] * 2
    plain = _plain(subject, **both)[0]
    pictures = frames(plain)
    if pictures is None or len(pictures) % 2:
        raise Limit("the plain call does not return two images for two prompts")
    faults: list[str] = []
    if difference(plain, subject.guided(m.BestOfN(1), Brightness(), **both)[0]) != 0:
        faults.append("differs from the plain call")
    reward = Brightness()
    output = subject.guided(m.BestOfN(2), reward, **both)
    for base, part in zip(output.report.base_reward, pictures.chunk(2), strict=True):
        if base is None or abs(base - float(part.mean())) > ROUNDING:
            faults.append("the base reward is not the plain image's")
        if reward.nearest(part) > PIXEL:
            faults.append("the plain image is not among the candidates")
    return list(dict.fromkeys(faults))


def unchanged(subject: Subject) -> list[str]:
    """After all that, the plain call is what it was and the scheduler is in its place."""
    faults = [] if getattr(subject.pipe, "scheduler", None) is subject.scheduler else ["scheduler"]
    plain = subject.pipe(**subject.inputs())[0]
    return faults + ["the plain call"] * (difference(plain, subject.plain) != 0)


def best_of_n(subject: Subject, lane_width: int | None = None) -> list[str]:
    """Three different images, the plain call's among them, the brightest returned."""
    name = "BestOfN" if lane_width is None else f"BestOfN{NARROW}"
    reward, method = Brightness(), METHODS["BestOfN"]
    output = subject.guided(method, reward, lane_width)
    rewards = subject.finals[name] = finals(output.report)
    wanted = method.draws * len(output.rewards)
    faults = search_faults(subject, output, reward)
    if len(rewards) != wanted:
        faults.append(f"{len(rewards)} final images, not {wanted}")
    elif len({round(value, 7) for value in rewards.values()}) < wanted and subject.varies():
        faults.append("particles are equal")
    if reward.nearest(subject.pictures) > PIXEL:
        faults.append("the plain image is not among the candidates")
    return faults + _width_faults(subject, name)


def prune(subject: Subject, lane_width: int | None = None) -> list[str]:
    """Survivors are what they would have been without the cuts."""
    name = "Prune" if lane_width is None else f"Prune{NARROW}"
    reward = Brightness()
    output = subject.guided(METHODS["Prune"], reward, lane_width)
    subject.finals[name] = finals(output.report)
    alone = subject.finals.get("BestOfN") or subject.finals.get(f"BestOfN{NARROW}") or {}
    faults = search_faults(subject, output, reward)
    if _apart(alone, subject.finals[name]) > WIDTH:
        faults.append("a survivor is not what it would have been alone")
    return faults + _width_faults(subject, name)


def any_method(subject: Subject, method: Method) -> list[str]:
    """What holds for every method."""
    reward = Brightness()
    return search_faults(subject, subject.guided(method, reward), reward)


def default(subject: Subject) -> list[str]:
    """A bare `compute=`, in steps enough for drafts and short runs: within its budget, too.

    Or the next call is, when the first has found out how wide lanes may be.
    """
    if not isinstance(subject.inputs().get("num_inference_steps"), int):
        raise Limit("the test gives no number of steps")
    longer = {"num_inference_steps": LONG}
    plain = _plain(subject, **longer)[0]
    subject = replace(subject, given=subject.given | longer, plain=plain)
    reward = Brightness()
    call = steer.guided(subject.pipe, reward=reward, compute=COMPUTE)
    output = call(**subject.inputs())
    faults = search_faults(subject, output, reward)
    if _overspent(output) and _overspent(call(**subject.inputs())):
        faults.append("it spends more than it was given")
    return faults


def _overspent(output: Any) -> bool:
    ledger = output.report.ledger
    return 0 < COMPUTE * ledger.plain_flops < sum(ledger.flops.values())


def search_faults(subject: Subject, output: Any, reward: Brightness) -> list[str]:
    """What is wrong with the output of a search: its form, its rewards, or what was scored."""
    pictures, plain = frames(output[0]), subject.pictures
    if pictures is None or plain is None or pictures.shape != plain.shape:
        return ["the output has another form than the plain call's"]
    faults: list[str] = []
    mean = sum(output.rewards) / len(output.rewards)
    if abs(mean - float(pictures.mean())) > ROUNDING:
        faults.append("the reward is not that of the output")
    bases = [base for base in output.report.base_reward if base is not None]
    if len(bases) == len(output.rewards):
        base = sum(bases) / len(bases)
        if mean < base - 1e-6:
            faults.append("the reward is below the plain call's")
        if abs(base - float(plain.mean())) > ROUNDING:
            faults.append("the base reward is not the plain call's")
    if reward.nearest(pictures) > PIXEL:
        faults.append("the returned image was not scored")
    return faults


def finals(report: Any) -> dict[str, float]:
    """Rewards of final images by prompt and particle."""
    return {
        f"{prompt}.{particle}": reward
        for prompt in range(len(report.prompts))
        for row in report.trace.of("score", prompt)
        if not row["preview"]
        for particle, reward in zip(row["particle"], row["reward"], strict=True)
    }


def _plain(subject: Subject, **more: Any) -> Any:
    try:
        return subject.pipe(**subject.inputs(**more))
    except Exception as error:
        raise Limit(f"the plain call does not run either: {sentence(error)}") from error


def _known(state: Any) -> Any:
    assert state is not None  # the plain call had a generator too
    return state


def _apart(one: dict[str, float], other: dict[str, float]) -> float:
    return max((abs(one[key] - other[key]) for key in one.keys() & other.keys()), default=0.0)


def _width_faults(subject: Subject, name: str) -> list[str]:
    """Whether the lane width changes who ends where."""
    wide = subject.finals.get(name.removesuffix(NARROW), {})
    here = subject.finals[name]
    same = not wide or (wide.keys() == here.keys() and _apart(wide, here) <= WIDTH)
    return [] if same else ["the lane width changes the result"]


CHECKS: dict[str, Check] = {
    "identity": identity,
    "latent": latent,
    "two prompts": two_prompts,
    f"compute={COMPUTE}": default,
    "BestOfN": best_of_n,
    f"BestOfN{NARROW}": partial(best_of_n, lane_width=1),
    "Prune": prune,
    f"Prune{NARROW}": partial(prune, lane_width=1),
    **{
        name: partial(any_method, method=method)
        for name, method in METHODS.items()
        if name not in ("BestOfN", "Prune")
    },
    "pipeline unchanged": unchanged,
}
"""In the order in which they run."""
