"""The comparison itself: draw what is missing, score it, analyse it, write it down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steer.core.files.versions import versions
from steer.jobs.compare import results
from steer.jobs.compare.arms import Painter, Studio, check_arm
from steer.jobs.compare.config import Arm, Comparison
from steer.jobs.compare.processes import Processes, join
from steer.jobs.compare.prompt_sets import load_prompts
from steer.jobs.compare.prompts import PromptSet
from steer.jobs.compare.scoring import (
    check_judges,
    check_scorers,
    diversity_names,
    reported_rewards,
    score_missing,
)
from steer.jobs.compare.store import Store, Unit
from steer.jobs.reward_loader import scale_stamp
from steer.rewards.families import warn_of_kin
from steer.rewards.parts import check_prompts


class CompareJob:
    """A comparison in a folder, ready to be drawn.

    Args:
        comparison: What to compare.
        folder: Where everything goes; continued where it holds this comparison.
        processes: This process; joined from the launcher's when left out.
        pipe: The pipeline; loaded when left out.

    Raises:
        SteerError, ValueError: Prompts, judges, arms or the folder cannot be used.
    """

    def __init__(
        self,
        comparison: Comparison,
        folder: str | Path,
        *,
        processes: Processes | None = None,
        pipe: Any = None,
    ) -> None:
        self.comparison, self._pipe, self._versions = comparison, pipe, versions()
        self.prompts = check(comparison)
        self.names = reported_rewards(comparison)
        self.store = Store(folder)
        self.processes = processes or join(comparison.device)
        if self.processes.first:
            self.store.begin(setup(comparison, self.prompts), [a.name for a in comparison.arms])
        self.processes.meet()

    def missing(self) -> dict[str, list[Unit]]:
        """This process's share of the images that are not there, by arm.

        Shares are of all pipeline calls, drawn or not, so that who draws what does not depend on
        it.
        """
        found = {}
        for arm in self.comparison.arms:
            mine = [unit for call in self._calls(arm) for unit in call]
            found[arm.name] = [unit for unit in mine if self.store.record(unit) is None]
        return found

    def draw(self, missing: dict[str, list[Unit]]) -> Iterator[Unit]:
        """Draw and store images; yields each when it is on the disk.

        A call of which an image is missing is made whole: nothing depends on what was there.

        Raises:
            SteerError, ValueError: What drawing raises; a disk that is full (`FolderError`).
        """
        if not any(missing.values()):
            return
        judges = [name for name in self.names if name != self.comparison.reward]
        check_scorers(self.comparison, self.prompts, self.processes.device, judges)
        studio = Studio(self.comparison, self.processes.device, self._pipe)
        reported_rewards(self.comparison, studio.reward)
        check_prompts(studio.reward, self.prompts.texts)
        wanted = [arm for arm in self.comparison.arms if missing[arm.name]]
        for position, arm in enumerate(wanted):
            studio.keep_only(wanted[position:])
            with studio.arm(arm) as painter:
                for call in self._calls(arm):
                    wanting = set(missing[arm.name]).intersection(call)
                    if wanting:
                        yield from self._draw(painter, arm, call, wanting)

    def score(self) -> Iterator[int]:
        """Score this process's share of what is drawn; yields numbers of images as they are done.

        Raises:
            SteerError, ValueError: A reward that is not to be had or gives no number; a full disk.
        """
        self.processes.meet()
        yield from score_missing(
            self.store, self.comparison, self.prompts, self.processes, self.names
        )
        self.processes.meet()

    @property
    def scorings(self) -> int:
        """How many images this process scores at most, over all rewards."""
        rewards = len(self.names) + len(diversity_names(self.comparison))
        images = self.comparison.images * len(self.prompts.prompts)
        return rewards * -(-images // self.processes.count)

    def finish(self, command: str = "") -> Path | None:
        """Analyse and write results and page, in the first process; the page's path there.

        Raises:
            FolderError: The disk is full.
        """
        if not self.processes.first:
            return None
        from steer.jobs.compare.page import write_page

        found = results.collect(self.store, self.comparison, self.prompts, self.names, command)
        results.write(self.store, self.comparison, self.prompts, found)
        return write_page(self.store, self.prompts, found)

    def _calls(self, arm: Arm) -> list[list[Unit]]:
        """This process's pipeline calls of an arm: fixed runs of its images."""
        prompts, seeds = range(len(self.prompts.prompts)), self.comparison.seeds
        units = [Unit(arm.name, prompt, seed) for prompt in prompts for seed in seeds]
        size = self.comparison.images_per_call
        return self.processes.share([units[k : k + size] for k in range(0, len(units), size)])

    def _draw(
        self, painter: Painter, arm: Arm, call: list[Unit], wanting: set[Unit]
    ) -> Iterator[Unit]:
        """Draw one call's images, and store those that are wanting."""
        texts = [self.prompts.texts[unit.prompt] for unit in call]
        shared = {k: v for k, v in self.comparison.to_dict().items() if k not in _PAGE_ONLY}
        shared = {k: v for k, v in shared.items() if k not in ("arms", "prompts", "judges")}
        common = {
            "arm": arm.model_dump(mode="json"),
            "comparison": shared,
            "versions": self._versions,
        }
        kept = ("seed", "noise_seed", "method", "denoiser", "weights", "steps")
        drawn = painter.draw(call, texts)
        for unit, text, (image, record) in zip(call, texts, drawn, strict=True):
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
    kept["scale"] = None if comparison.scale is None else scale_stamp(comparison.scale)
    return {**kept, "arms": arms, "prompts_sha256": prompts.sha256, "texts": rows}


def run(
    comparison: Comparison, folder: str | Path, *, pipe: Any = None, command: str = ""
) -> Path | None:
    """Draw, score, analyse: the whole comparison, continued where it was left.

    Started several times by a launcher, each process does its share; the results are the same.

    Args:
        comparison: What to compare.
        folder: Where everything goes.
        pipe: The pipeline; loaded from the comparison when left out.
        command: For the page: how to do it again.

    Returns:
        The page; None in all processes but the first.

    Raises:
        SteerError, ValueError: Whatever cannot be used; the message names it and the way out.
    """
    job = CompareJob(comparison, folder, pipe=pipe)
    try:
        for _ in job.draw(job.missing()):
            pass
        for _ in job.score():
            pass
        page = job.finish(command)
    finally:
        job.store.release()
    job.processes.leave()
    return page
