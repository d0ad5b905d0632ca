"""One page of plans and the curves behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from steer.core.files.atomic import write_atomic
from steer.pipeline.planning.charts import Curve, chart
from steer.pipeline.planning.found import Found
from steer.pipeline.planning.words import findings, interval, shown
from steer.pipeline.report.page import environment
from steer.pipeline.report.plots import number


@dataclass(frozen=True)
class Row:
    """A budget in the page's table."""

    budget: str
    plan: str
    calls: str
    reward: str
    judge: str
    gain: str
    pays: bool


@dataclass(frozen=True)
class PageView:
    """What the page shows."""

    title: str
    lede: str
    judge: str
    reward: str
    findings: tuple[str, ...]
    rows: tuple[Row, ...]
    charts: tuple[tuple[str, str, Markup], ...]
    costs: dict[str, str]
    facts: dict[str, Any]


def write_page(plans: Found, path: Path) -> None:
    """Write the page, whole or not at all."""
    write_atomic(path, render(page_view(plans)).encode())


def render(view: PageView) -> str:
    """The page as HTML."""
    from jinja2 import PackageLoader

    env = environment(PackageLoader("steer.pipeline.planning"))
    return env.get_template("plans.html.j2").render(page=view)


def page_view(plans: Found) -> PageView:
    """The page of these plans."""
    return PageView(
        title="What compute is best spent on",
        lede=(
            f"{plans.model}, {plans.asked} steps: {plans.prompts} prompts with {plans.n} pilots "
            f"each, steered by {plans.reward}, judged by {plans.judge}."
        ),
        judge=plans.judge,
        reward=plans.reward,
        findings=tuple(findings(plans)),
        rows=tuple(
            Row(
                f"{plan.budget:g}",
                shown(plan.method),
                f"{plan.calls:.2f}",
                interval(plan.reward),
                interval(plan.judge),
                interval(plan.gain, sign=True),
                plan.pays,
            )
            for plan in plans.plans
        ),
        charts=tuple(_charts(plans)),
        costs=_costs(plans),
        facts={"pipeline": plans.pipeline, "steps": plans.asked, **plans.call},
    )


def _charts(plans: Found) -> list[tuple[str, str, Markup]]:
    """Heading, explanation and curves of each chart."""
    notes = tuple(shown(plan.method) for plan in plans.plans)
    return [
        (
            "Plans by budget",
            "Above the plain call, of the plan that is chosen at each budget.",
            _gains(plans, "budget", plans.plans, along="compute, in plain calls", notes=notes),
        ),
        (
            "Best of n",
            "Above the plain call, of the best of n by reward. Where the reward goes on rising and "
            "the judge does not, more candidates only please the reward.",
            _gains(plans, "n", plans.crowds, along="candidates"),
        ),
        (
            "What previews know",
            "Rank correlation of the reward of an x0 preview with that of the finished image, "
            "within a prompt: of every step, and of drafts (strides, and the step they reach).",
            chart(_known(plans), along="% of the steps", name="Spearman"),
        ),
        (
            "Fewer steps",
            "Above the plain call (the last), of images that take fewer denoiser calls.",
            _gains(plans, "calls", plans.shorter, along="denoiser calls", log=False),
        ),
    ]


def _gains(
    plans: Found,
    place: str,
    rows: Sequence[Any],
    *,
    along: str,
    notes: tuple[str, ...] = (),
    log: bool = True,
) -> Markup:
    """Judge and reward above the plain call's, over what the attribute `place` says."""
    judge = Curve("judge", tuple((float(getattr(r, place)), r.gain) for r in rows), notes)
    reward = Curve("reward", tuple((float(getattr(r, place)), r.reward_gain) for r in rows), notes)
    curves = [reward] if plans.judge == plans.reward else [judge, reward]
    return chart(curves, along=along, name="above the plain call", log=log)


def _known(plans: Found) -> list[Curve]:
    kinds = dict.fromkeys(row.kind for row in plans.foresight)
    return [
        Curve(
            "every step" if kind == "full" else kind,
            tuple((100 * r.fraction, r.spearman) for r in plans.foresight if r.kind == kind),
        )
        for kind in kinds
    ]


def _costs(plans: Found) -> dict[str, str]:
    costs = plans.costs
    if costs.unit == "rows":
        return {"counted in": "denoiser rows alone"}
    names = {"row": "denoiser row", "decode": "decode", "preview": "preview", "score": "score"}
    found = {name: f"{number(getattr(costs, key) / 1e9)} GFLOPs" for key, name in names.items()}
    return {**found, "plain call": f"{number(costs.plain(plans.steps) / 1e9)} GFLOPs"}
