"""The HTML page of a run: one self-contained file, built from `run.json` and its images."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from steer.core.files.atomic import write_atomic
from steer.core.files.png import open_image
from steer.core.files.run_folder import PAGE_FILE, RunFolder
from steer.pipeline.report import departure, genealogy, plots
from steer.pipeline.report.descent import title
from steer.pipeline.report.views import (
    SMALL,
    CostView,
    ImageView,
    JudgeView,
    PromptView,
    RunView,
    VerdictView,
)


MAX_EDGE = 768
"""Images larger than this are scaled down for the page; the files keep their size."""

_MAX_COLUMNS, _MAX_CUTS = 32, 6


def inline(image: Image.Image) -> str:
    """The image as a data URI: lossless when small, otherwise scaled down and compressed."""
    buffer = io.BytesIO()
    image = image.convert("RGB")
    if max(image.size) <= SMALL:
        image.save(buffer, "WEBP", lossless=True, quality=0)  # the effort, not the pixels
    else:
        image.thumbnail((MAX_EDGE, MAX_EDGE), Image.Resampling.LANCZOS)
        image.save(buffer, "WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def image_view(
    path: Path, *, alt: str, reward: float | None, verdict: Mapping[str, Any] | None
) -> ImageView:
    """The view of one image file of a run."""
    with open_image(path) as image:
        src, (width, height) = inline(image), image.size
    seen = None
    if verdict is not None:
        notes = tuple(str(note) for note in verdict.get("notes") or ())
        seen = VerdictView(float(verdict["fraction"]), bool(verdict["all_met"]), notes)
    return ImageView(src, width, height, alt, reward, seen, path.name)


def prompt_view(folder: Path, entry: Mapping[str, Any], reward: str) -> PromptView:
    """The view of one entry of `run.json`."""
    prompt, base, steps = entry["prompt"], entry.get("base"), int(entry["steps"])
    verdicts = entry.get("verdicts") or [None] * len(entry["images"])
    guided = [
        image_view(folder / name, alt=f"guided image {k + 1}: {prompt}", reward=score, verdict=seen)
        for k, (name, score, seen) in enumerate(
            zip(entry["images"], entry["rewards"], verdicts, strict=True)
        )
    ]
    shown = None
    if base:
        alt = f"image of the plain call: {prompt}"
        seen, score = base.get("verdict"), base.get("reward")
        shown = image_view(folder / base["image"], alt=alt, reward=score, verdict=seen)
    events, row = entry.get("trace") or (), entry.get("row", 0)
    found = genealogy.blocks(events, row, steps)
    _attach(found, folder, entry.get("previews"))
    level = base.get("reward") if base else None
    return PromptView(
        index=entry["index"],
        prompt=prompt,
        seed=entry.get("seed"),
        base=shown,
        guided=tuple(guided),
        accepted=entry.get("accepted"),
        judges=tuple(_judges(entry)),
        blocks=tuple(found),
        plot=reward_over_time(found, reward, level),
        cost=CostView.of(entry.get("ledger") or {}, steps * max(len(guided), 1)),
        steps=steps,
        lines=(*genealogy.lineage(events, row), *departure.lines(events, row)),
        notes=genealogy.notes(events),
    )


def _judges(entry: Mapping[str, Any]) -> Iterator[JudgeView]:
    base = (entry.get("base") or {}).get("judges") or {}
    for name, scores in (entry.get("judges") or {}).items():
        yield JudgeView(name, base.get(name), float(scores[0]))


def reward_over_time(found: Sequence[genealogy.Block], reward: str, base: float | None) -> Markup:
    """Rewards over the way or over the iterations; of several rounds, or one, where they ended."""
    if not found:
        return Markup("")
    bar = found[-1].threshold
    climb = next((block for block in reversed(found) if block.climbs), None)
    if climb is not None:
        lines = genealogy.lines(climb)
        return plots.reward_plot(lines, name=reward, base=base, threshold=bar, along="iterations")
    drawn = [genealogy.lines(block) for block in found]
    stages = found[0].stages
    if len(found) > 1 or len(stages) == 1:
        ended = [[line for line in lines if line.points[-1][0] == 1] or lines for lines in drawn]
        return plots.strip_plot(ended, name=reward, base=base, threshold=bar)
    cuts = [(s.at, f"keep {s.kept}") for s in stages[:-1] if s.kept < len(s.cells)]
    cuts = cuts if len(cuts) <= _MAX_CUTS else []
    return plots.reward_plot(drawn[0], name=reward, cuts=cuts, base=base, threshold=bar)


def _attach(
    found: Sequence[genealogy.Block], folder: Path, previews: Mapping[str, Any] | None
) -> None:
    """Give each cell its thumbnail, cut out of the prompt's sheet of previews."""
    path = folder / previews["file"] if previews else None
    if previews is None or path is None or not path.is_file():
        return
    width, height = previews["size"]
    place = {tuple(tile): column for column, tile in enumerate(previews["tiles"])}
    with open_image(path) as sheet:
        for cell in (c for b in found for s in b.stages for c in s.cells.values()):
            column = None if cell.key is None else place.get(cell.key)
            if column is not None:
                left = column * width
                cell.image = inline(sheet.crop((left, 0, left + width, height)))


def run_view(run: RunFolder) -> RunView:
    """The view of a run folder."""
    data = run.data
    configuration = {**data["arguments"], **data["configuration"]}
    asked = configuration.pop("prompts", [])
    reward = str(configuration.get("reward", "reward"))
    views = tuple(prompt_view(run.folder, entry, reward) for entry in run.entries)
    return RunView(
        title=_title(data["kind"], asked),
        kind=data["kind"],
        status=data["status"],
        reward=reward,
        prompts=views,
        asked=len(asked),
        cost=CostView.sum([view.cost for view in views]),
        configuration={k: v for k, v in configuration.items() if v is not None},
        versions=data["versions"],
        command=data["command"],
        when=str(data.get("updated", ""))[:16].replace("T", " ") + " UTC",
    )


def _title(kind: str, asked: Sequence[str]) -> str:
    if kind == "demo":
        return "The same seed, steered"
    return asked[0] if len(asked) == 1 else f"{len(asked)} prompts"


def render(view: RunView) -> str:
    """The page as HTML."""
    template = environment().get_template("report.html.j2")
    return template.render(run=view, max_columns=_MAX_COLUMNS)


def environment(*more: Any) -> Any:
    """What pages are rendered with: the report's templates and filters.

    Args:
        *more: jinja2 loaders that are asked first.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    env = Environment(
        loader=ChoiceLoader([*more, PackageLoader("steer.pipeline.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(
        number=plots.number,
        particle=title,
        seconds=seconds,
        bytes=size,
        value=_value,
        folded=_folded,
    )
    return env


def seconds(value: float) -> str:
    """A time for people."""
    if value < 0.95:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {value % 60:02.0f} s"


def size(value: float) -> str:
    """Bytes for people."""
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def _value(value: Any) -> str:
    return (
        ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    )


def _folded(command: str) -> str:
    """A command with one option a line, as a shell takes it."""
    lines: list[list[str]] = [[]]
    for word in shlex.split(command):
        if word.startswith("--") and lines[-1]:
            lines.append([])
        lines[-1].append(word)
    return " \\\n  ".join(shlex.join(line) for line in lines)


def write_report(run: RunFolder, view: RunView | None = None) -> Path:
    """Build `report.html` in the run's folder, from its files alone.

    Args:
        run: The folder.
        view: `run_view(run)`, where it is made already: it encodes every image.
    """
    path = run.folder / PAGE_FILE
    write_atomic(path, render(view or run_view(run)).encode())
    return path
