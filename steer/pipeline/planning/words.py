"""Plans in words, for the terminal and the page."""

from __future__ import annotations

import re

from steer.core.costs import Work
from steer.core.intervals import Estimate
from steer.pipeline.planning.choice import Plan
from steer.pipeline.planning.found import Found
from steer.pipeline.report.plots import number
from steer.search.method import Method


def described(plans: Found) -> str:
    """A table of the plans, then what the pilots say."""
    rows = [(f"{p.budget:g}", shown(p.method), f"{p.calls:.2f}", *_scores(p)) for p in plans.plans]
    head = ("compute", "plan", "costs", "judge", "above plain")
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    start = (
        f"Plans for {plans.pipeline}, {plans.asked} steps, reward {plans.reward}, judged by "
        f"{plans.judge}; {plans.prompts} prompts, {plans.n} pilots each"
    )
    return "\n".join([start, *lines, *findings(plans)])


def _scores(plan: Plan) -> tuple[str, str]:
    return number(plan.judge.mean), interval(plan.gain, sign=True)


def shown(method: Method) -> str:
    """A plan as people write it."""
    if repr(method) == "BestOfN(n=1)":
        return "the plain call"
    return re.sub(r", \w+=None", "", repr(method))


def interval(value: Estimate, sign: bool = False) -> str:
    """A mean with its interval."""

    def one(x: float) -> str:
        return ("+" if sign and x > 0 else "") + number(x)

    if value.low is None or value.high is None:
        return one(value.mean)
    return f"{one(value.mean)} [{one(value.low)}, {one(value.high)}]"


def findings(plans: Found) -> list[str]:
    """What to take away, a sentence each."""
    found = [_paying(plans), _crowding(plans), _showing(plans), _reach(plans)]
    short = [row for row in plans.shorter if row.calls < plans.steps]
    if short:
        nearest = max(short, key=lambda row: row.judge.mean)
        full = plans.shorter[-1].judge.mean
        found.append(
            f"Fewer steps: {nearest.calls} of {plans.steps} denoiser calls come to "
            f"{number(nearest.judge.mean)} by the judge, all of them to {number(full)}."
        )
    if plans.unsampled:
        found.append(f"No drafts: {next(iter(plans.unsampled.values()))}.")
    if plans.judge == plans.reward:
        found.append(
            "Nobody judged: plans are chosen by the reward itself, which hides over-optimisation; "
            "give a held-out judge."
        )
    return [line for line in found if line]


def _paying(plans: Found) -> str:
    idle = [plan.budget for plan in plans.plans if not plan.pays]
    if not idle:
        return ""
    listed = ", ".join(f"{budget:g}" for budget in idle)
    return (
        f"Searching does not pay at compute {listed}: no plan is above the plain call with an "
        "interval clear of zero. More prompts narrow the interval."
    )


def _crowding(plans: Found) -> str:
    best, last = (
        next(c for c in plans.crowds if c.n == n) for n in (plans.peak, plans.crowds[-1].n)
    )
    level = next(c for c in plans.crowds if c.behind.low is None or c.behind.low <= 0)
    if best is last:
        more = (
            f"; from best-of-{level.n} on nothing is clearly below it" if level is not best else ""
        )
        return (
            f"More candidates: the judge has its highest mean, {number(best.judge.mean)}, at all "
            f"{best.n}{more}."
        )
    clear = last.behind.low is not None and last.behind.low > 0
    verdict = "over-optimised: clearly lower" if clear else "not clearly lower"
    return (
        f"More candidates: the judge has its highest mean, {number(best.judge.mean)}, at "
        f"best-of-{best.n}, and {number(last.judge.mean)} at best-of-{last.n} ({verdict}), while "
        f"the reward rises from {number(best.reward.mean)} to {number(last.reward.mean)}; from "
        f"best-of-{level.n} on nothing is clearly below the highest."
    )


def _showing(plans: Found) -> str:
    if not plans.decoders:
        return ""

    def named(name: str) -> str:
        return f"preview={name!r}" if name else "the decoder at hand"

    each = "; ".join(
        f"{named(d.name)}: {number(d.cost)} denoiser rows each, "
        f"{interval(d.gain, sign=True)} above the plain call"
        for d in plans.decoders
    )
    return f"Previews, over all budgets: {each}. Plans are for {named(plans.preview)}."


def _reach(plans: Found) -> str:
    return (
        f"No plan with more than {plans.n} particles was looked at; compute above "
        f"{plans.plans[-1].budget:g} takes the last plan. More pilots (n=) reach further."
    )


def told(work: Work, steps: int, prompts: int, n: int) -> str:
    """What calibrating costs, in one line."""
    calls = work.rows / steps
    gradients = f" and {work.gradients:,} gradients of the reward" if work.gradients else ""
    return (
        f"calibrating: {prompts} prompts with {n} particles each, sampled in every step, as drafts "
        f"and with fewer steps: {calls:,.0f} plain calls of denoising, "
        f"{work.decodes + work.previews:,} images to decode and {work.scores:,} scores"
        f"{gradients}"
    )
