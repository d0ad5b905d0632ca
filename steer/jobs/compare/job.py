"""The comparison itself: draw what is missing, score it, analyse it, write it down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from steer.core.files.versions import versions
from steer.jobs.compare import results
from steer.jobs.compare.arms import check_arm
from steer.jobs.compare.config import Arm, Comparison
from steer.jobs.compare.prompt_sets import load_prompts
from steer.jobs.compare.prompts import PromptSet
from steer.jobs.compare.scoring import (
    Judges,
    check_judges,
    check_scorers,
    diversity_names,
    missing_blocks,
    reported_rewards,
)
from steer.jobs.compare.store import Store, Unit
from steer.jobs.compare.worker import Artist, Call, Drawn
from steer.jobs.reward_loader import scale_stamp
from steer.jobs.spread.cluster import Cluster
from steer.jobs.spread.crew import check_place, crew
from steer.jobs.spread.worker import Crew, Result, Unit as Task, Worker
from steer.rewards.families import warn_of_kin


class CompareJob:
    """A comparison in a folder, ready to be drawn.

    Args:
        comparison: What to compare.
        folder: Where everything goes; continued where it holds this comparison.
        pipe: The pipeline; loaded when left out.
        cluster: Whose workers draw and score; left out, this process does.

    Raises:
        SteerError, ValueError: Prompts, judges, arms or the folder cannot be used.
    """

    def __init__(
        self,
        comparison: Comparison,
        folder: str | Path,
        *,
        pipe: Any = None,
        cluster: Cluster | None = None,
    ) -> None:
        check_place(cluster, comparison.device, pipe=pipe)
        self.comparison, self._versions = comparison, versions()
        self.prompts = check(comparison)
        self.names = reported_rewards(comparison)
        self.store = Store(folder)
        self._pipe, self._cluster = pipe, cluster
        self.store.begin(setup(comparison, self.prompts), [a.name for a in comparison.arms])

    def missing(self) -> dict[str, list[Unit]]:
        """The images that are not there, by arm."""
        found = {}
        for arm in self.comparison.arms:
            units = [unit for call in self._calls(arm) for unit in call.units]
            found[arm.name] = [unit for unit in units if self.store.record(unit) is None]
        return found

    def draw(self, missing: dict[str, list[Unit]]) -> Iterator[Unit]:
        """Draw and store images; yields each when it is on the disk.

        A call of which an image is missing is made whole: nothing depends on what was there.

        Raises:
            SteerError, ValueError: What drawing raises; a disk that is full (`FolderError`).
        """
        wanting = {unit for units in missing.values() for unit in units}
        calls = [
            call
            for arm in self.comparison.arms
            for call in self._calls(arm)
            if wanting.intersection(call.units)
        ]
        if not calls:
            return
        judges = [name for name in self.names if name != self.comparison.reward]
        if self._cluster is None:  # whose workers have the devices that judges need
            check_scorers(self.comparison, self.prompts, judges)
        make = partial(Artist, self.comparison, self.prompts.texts, self._pipe)
        with self._crew(make, len(calls)) as artists:
            for call, drawn in artists.work_all(calls):
                yield from self._store(call, drawn, wanting)

    def score(self) -> Iterator[int]:
        """Score what is drawn; yields numbers of images as they are done.

        Raises:
            SteerError, ValueError: A reward that is not to be had or gives no number; a full disk.
        """
        missing = missing_blocks(self.store, self.comparison, self.prompts, self.names)
        if (first := next(missing, None)) is None:
            return
        most = self.scorings // len(first.files)
        with self._crew(partial(Judges, self.comparison, self.prompts.texts), most) as judges:
            for block, scores in judges.work_all(chain([first], missing)):
                images = list(block.digests)
                found = {"reward": block.reward, "images": images, "scores": scores}
                self.store.put_scores(block.reward, block.arm, block.number, found)
                yield len(images)

    @property
    def scorings(self) -> int:
        """How many images are scored at most, over all rewards."""
        rewards = len(self.names) + len(diversity_names(self.comparison))
        return rewards * self.comparison.images * len(self.prompts.prompts)

    def finish(self, command: str = "") -> Path:
        """Analyse and write results and page; the page's path.

        Raises:
            FolderError: The disk is full.
        """
        from steer.jobs.compare.page import write_page

        found = results.collect(self.store, self.comparison, self.prompts, self.names, command)
        results.write(self.store, self.comparison, self.prompts, found)
        return write_page(self.store, self.prompts, found)

    def _crew(
        self, make: Callable[[], Worker[Task, Result]], units: int
    ) -> AbstractContextManager[Crew[Task, Result]]:
        return crew(make, self._cluster, device=self.comparison.device, units=units)

    def _calls(self, arm: Arm) -> list[Call]:
        """The pipeline calls of an arm: fixed runs of its images."""
        prompts, seeds = range(len(self.prompts.prompts)), self.comparison.seeds
        units = [Unit(arm.name, prompt, seed) for prompt in prompts for seed in seeds]
        size = self.comparison.images_per_call
        runs = [tuple(units[k : k + size]) for k in range(0, len(units), size)]
        return [Call(run, tuple(self.prompts.texts[u.prompt] for u in run)) for run in runs]

    def _store(self, call: Call, drawn: Drawn, wanting: set[Unit]) -> Iterator[Unit]:
        """Store those of a call's images that are wanting."""
        shared = {k: v for k, v in self.comparison.to_dict().items() if k not in _PAGE_ONLY}
        shared = {k: v for k, v in shared.items() if k not in ("arms", "prompts", "judges")}
        common = {
            "arm": self.comparison.arm(call.arm).model_dump(mode="json"),
            "comparison": shared,
            "versions": self._versions,
        }
        kept = ("seed", "noise_seed", "method", "denoiser", "weights", "steps")
        for unit, text, (image, record) in zip(call.units, call.texts, drawn, strict=True):
            if unit in wanting:
                own = {"prompt": text, "index": unit.prompt, **{k: record[k] for k in kept}}
                self.store.put(unit, image, own | common, record)
                yield unit


def check(comparison: Comparison) -> PromptSet:
    """The prompts, after seeing that methods, blends and judges can be used; nothing is loaded.

    Raises:
        ComparisonError, PromptsError: What cannot be used.
    """
    for arm in comparison.arms:
        check_arm(arm)
    prompts = load_prompts(comparison.prompts)
    check_judges(comparison, prompts)
    for judge in comparison.judges:
        warn_of_kin(comparison.reward, judge)
    return prompts


_PAGE_ONLY = ("show", "title", "device")
_READ = "prompts"  # where they were read from does not matter, what they are does


def setup(comparison: Comparison, prompts: PromptSet) -> dict[str, Any]:
    """What decides images and scores; neither how the page looks nor the device."""
    kept = {k: v for k, v in comparison.to_dict().items() if k not in (*_PAGE_ONLY, _READ)}
    rows = [[p.text, p.category] for p in prompts.prompts]
    arms = [{k: v for k, v in arm.items() if k != "label"} for arm in kept.pop("arms")]
    if not kept["call"]:
        del kept["call"]  # folders of before there was such a key go on
    kept["scale"] = None if comparison.scale is None else scale_stamp(comparison.scale)
    return {**kept, "arms": arms, "prompts_sha256": prompts.sha256, "texts": rows}


def run(
    comparison: Comparison,
    folder: str | Path,
    *,
    pipe: Any = None,
    command: str = "",
    cluster: Cluster | None = None,
) -> Path:
    """Draw, score, analyse: the whole comparison, continued where it was left.

    Args:
        comparison: What to compare.
        folder: Where everything goes.
        pipe: The pipeline; loaded from the comparison when left out.
        command: For the page: how to do it again.
        cluster: Whose workers draw and score, as `steer.jobs.spread.cluster.connected` gives it;
            left out, this process does. The results are the same.

    Returns:
        The page.

    Raises:
        SteerError, ValueError: Whatever cannot be used; the message names it and the way out.
    """
    job = CompareJob(comparison, folder, pipe=pipe, cluster=cluster)
    try:
        for _ in job.draw(job.missing()):
            pass
        for _ in job.score():
            pass
        return job.finish(command)
    finally:
        job.store.release()
