"""`report.html`: one self-contained file from a comparison's results and images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from steer.core.files.atomic import write_atomic
from steer.jobs.compare import findings, panels, views
from steer.jobs.compare.analysis import TIE
from steer.jobs.compare.config import SHARED
from steer.jobs.compare.plot import text_of
from steer.jobs.compare.prompts import PromptSet
from steer.jobs.compare.results import as_array
from steer.jobs.compare.store import Store, Unit, disk
from steer.pipeline.report.page import environment, inline
from steer.pipeline.report.views import SMALL


REPORT = "report.html"
_MANY_SMALL, _MANY_LARGE = 800, 240
"""Most images on a page, by their size; further seeds are left out first."""

_EDGE = 384


def write_page(store: Store, prompts: PromptSet, found: Mapping[str, Any]) -> Path:
    """Build the page in the comparison's folder; its path.

    Raises:
        FolderError: The disk is full.
    """
    path = store.folder / REPORT
    html = render(page_view(store, prompts, found))
    with disk():
        write_atomic(path, html.encode())
    return path


def page_view(store: Store, prompts: PromptSet, found: Mapping[str, Any]) -> views.PageView:
    """The page of a comparison's results."""
    configuration = dict(found["configuration"])
    shown = findings.chosen_prompts(found, configuration["show"])
    seeds = _choose_seeds(store, found, len(shown))
    names = [reward["name"] for reward in found["rewards"]]
    images = len(found["arms"]) * found["prompts"]["count"] * len(configuration["seeds"])
    per_image = sum(arm["cost"]["seconds"] for arm in found["arms"]) / len(found["arms"])
    for key in ("arms", "title", "show"):
        configuration.pop(key)
    return views.PageView(
        title=found["configuration"]["title"] or _title(found),
        when=found["when"][:16].replace("T", " ") + " UTC",
        lede=_lede(found),
        arms=tuple(panels.arm_view(found, k) for k in range(len(found["arms"]))),
        rewards=tuple(panels.reward_view(found, name) for name in names),
        diversity=str(configuration["diversity"]) if len(configuration["seeds"]) > 1 else "",
        prompts=tuple(prompt_view(store, prompts, found, index, seeds) for index in shown),
        seeds=tuple(seeds),
        asked=found["prompts"]["count"],
        images=images,
        seconds=per_image * images,
        warnings=findings.warnings_of(found),
        configuration={k: v for k, v in configuration.items() if v is not None},
        versions=found["versions"],
        command=found["command"],
        headlines=findings.headlines(found),
    )


def prompt_view(
    store: Store, prompts: PromptSet, found: Mapping[str, Any], index: int, seeds: list[int]
) -> views.PromptView:
    """One prompt with every arm's images."""
    rewards = [reward["name"] for reward in found["rewards"]]
    scores = {name: as_array(found, name)[:, index] for name in rewards}
    digits = {name: findings.digits_of(found, name) for name in rewards}
    order = found["configuration"]["seeds"]
    shots = []
    for seed in seeds:
        s, row = order.index(seed), []
        for a, arm in enumerate(found["arms"]):
            best = tuple(_leads(v[:, s], a) for v in scores.values())
            texts = tuple(
                text_of(v[a, s] * reward["scale"], digits[reward["name"]])
                for v, reward in zip(scores.values(), found["rewards"], strict=True)
            )
            row.append(_shot(store.image(Unit(arm["name"], index, seed)), texts, best))
        shots.append(tuple(row))
    prompt = prompts.prompts[index]
    spreads = tuple(float(v.mean(1).max() - v.mean(1).min()) for v in scores.values())
    return views.PromptView(index, prompt.text, prompt.category or "", spreads, tuple(shots))


def render(view: views.PageView) -> str:
    """The page as HTML."""
    from jinja2 import PackageLoader

    env = environment(PackageLoader("steer.jobs.compare"))
    return env.get_template("compare.html.j2").render(page=view)


def _leads(scores: np.ndarray, arm: int) -> bool:
    """Whether an arm's score is the best of all arms', where they differ at all."""
    return bool(scores[arm] >= scores.max() - TIE and np.ptp(scores) > TIE)


def _shot(path: Path, texts: tuple[str, ...], best: tuple[bool, ...]) -> views.Shot:
    with Image.open(path) as image:
        image = image.convert("RGB")
    small = max(image.size) <= SMALL
    if not small:
        image.thumbnail((_EDGE, _EDGE), Image.Resampling.LANCZOS)
    return views.Shot(inline(image), *image.size, small, texts, best)


def _choose_seeds(store: Store, found: Mapping[str, Any], prompts: int) -> list[int]:
    """As many seeds as keep the page light."""
    seeds = list(found["configuration"]["seeds"])
    arm = found["arms"][0]["name"]
    with Image.open(store.image(Unit(arm, 0, seeds[0]))) as image:
        most = _MANY_SMALL if max(image.size) <= SMALL else _MANY_LARGE
    return seeds[: max(1, most // max(1, prompts * len(found["arms"])))]


def _title(found: Mapping[str, Any]) -> str:
    labels = [arm["label"] for arm in found["arms"]]
    if len(labels) == 2:
        return f"{labels[0]} or {labels[1]}?"
    return f"{len(labels)} arms, {found['prompts']['count']} prompts"


def _lede(found: Mapping[str, Any]) -> str:
    seeds, count = len(found["configuration"]["seeds"]), found["prompts"]["count"]
    odd = sorted({key for arm in found["arms"] for key in arm["differs"]})
    shared = [key for key in SHARED if key not in odd]
    same = ", ".join(["prompts", "noise", *shared])
    text = (
        f"{len(found['arms'])} ways to draw {count} prompts "
        f"({found['prompts']['source']}) with {seeds} seed{'s' if seeds > 1 else ''} each, on the "
        f"pipeline {found['configuration']['pipeline']}. All share the same {same}"
    )
    return text + (f"; arms that differ in {', '.join(odd)} say so." if odd else ".")
