"""One run of the page, as a generator of what there is to see."""

from __future__ import annotations

import shlex
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, Literal, TypeAlias

from steer.core.errors import SteerError, first_line
from steer.core.files.run_folder import RunFolder
from steer.jobs.sample_job import SampleJob
from steer.jobs.sampling import Prompt
from steer.jobs.studio.cost import Pace
from steer.jobs.studio.studio import Studio
from steer.pipeline.progress import Progress
from steer.pipeline.report.page import write_report


State: TypeAlias = Literal["drawing", "finished", "stopped", "failed"]

_OFTEN = 0.25  # seconds between two looks at a run


@dataclass(frozen=True)
class Ask:
    """What a visitor asks for; the page's own values, checked when they become a job.

    Attributes:
        prompt, seed, steps, compute: As for `steer sample`.
        reward: One of the studio's.
        method: One of the studio's, or `None` for what `compute` chooses.
    """

    prompt: str
    reward: str
    seed: int | None = 0
    steps: int | None = None
    method: str | None = None
    compute: float | None = None

    def job(self, studio: Studio) -> SampleJob:
        """The job of the run. Bad values raise ValueError, one sentence each."""
        for name in ("seed", "steps", "compute"):
            if getattr(self, name) is None:
                raise ValueError(f"{name}: empty; give a number")
        return studio.job(
            self.reward,
            self.method,
            prompts=(self.prompt or "",),
            seed=self.seed,
            steps=self.steps,
            compute=self.compute,
        )


@dataclass(frozen=True, eq=False)
class Update:
    """What there is to see of a run.

    Attributes:
        state: `"failed"` has an `error` and nothing else.
        share: How much of the method's cost is spent, 0 to 1.
        reward: The best so far.
        image: The best so far, small, `(h, w, 3)` uint8.
        events: The trace's, so far.
        images: The trace's small images, by `(prompt, particle, step)`.
        steps: Of a plain call.
        run: The folder of a run that came to its end, or was stopped.
        error: What is wrong, in one sentence.
        notes: Warnings of the library.
    """

    state: State
    share: float = 0.0
    reward: float | None = None
    image: Any = None
    events: tuple[Mapping[str, Any], ...] = ()
    images: Mapping[tuple[int, int, int], Any] = field(default_factory=dict)
    steps: int = 0
    run: RunFolder | None = None
    error: str = ""
    notes: tuple[str, ...] = ()


@dataclass(eq=False)
class _Watch:
    """Follows a call in its own thread, and looks at it now and then."""

    stop: Event
    steps: int
    seen: SimpleQueue[Update | None] = field(default_factory=SimpleQueue)
    _next: float = 0.0

    def __call__(self, progress: Progress) -> None:
        if self.stop.is_set():
            progress.stop()
        if time.monotonic() >= self._next:
            self.seen.put(_look(progress, self.steps))
            self._next = time.monotonic() + _OFTEN


def draw(studio: Studio, ask: Ask, stop: Event) -> Iterator[Update]:
    """Run what is asked for; the last update says how it ended.

    Errors are updates too, so that the page shows one sentence. Where the caller goes away, the run
    is stopped.

    Args:
        studio: What there is to draw with; one run at a time.
        stop: Set from outside: the run ends with the best so far.
    """
    watch, ended = _Watch(stop, ask.steps or 0), []
    thread = Thread(target=_work, args=(studio, ask, watch, ended), daemon=True)
    thread.start()
    try:
        while (update := watch.seen.get()) is not None:
            yield _newest(watch.seen, update)
    finally:
        stop.set()
        thread.join()
    yield ended[0]


def _newest(seen: SimpleQueue[Update | None], update: Update) -> Update:
    """The newest of what waits; an end that waits goes back."""
    while True:
        try:
            following = seen.get_nowait()
        except Empty:
            return update
        if following is None:
            seen.put(None)
            return update
        update = following


def _work(studio: Studio, ask: Ask, watch: _Watch, ended: list[Update]) -> None:
    """The run itself, whatever comes of it."""
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            run = _run(studio, ask, watch)
        notes = tuple(dict.fromkeys(str(w.message) for w in told if w.category is UserWarning))
        ended.append(_end(studio, run, notes))
    except (SteerError, ValueError, ImportError) as error:
        ended.append(Update("failed", error=" ".join(str(error).split())))
    except Exception as error:  # a reward's or a pipeline's own: told here, shown whole in the log
        traceback.print_exc()
        ended.append(Update("failed", error=f"{type(error).__name__}: {first_line(error)}"))
    finally:
        watch.seen.put(None)


def _run(studio: Studio, ask: Ask, watch: _Watch) -> RunFolder:
    job = ask.job(studio)
    sampler = studio.sampler(job)
    watch.steps = sampler.steps
    folder = studio.new_folder()
    run = RunFolder.create(folder, job.to_dict(), kind="sample", command=_command(job))
    run.data["configuration"] = sampler.configuration()
    drawn = sampler.work(Prompt(0, job.prompts[0]), watch)
    drawn.save(folder)
    entry = drawn.entry
    assert sampler.guided.report is not None
    ledger = sampler.guided.report.ledger
    entry["ledger"] |= {"flops": ledger.flops, "plain_flops": ledger.plain_flops}
    run.add(entry)
    run.close("interrupted" if was_stopped(entry) else "finished")
    write_report(run)
    return run


def was_stopped(entry: Mapping[str, Any]) -> bool:
    """Whether a run's only prompt was stopped on its way."""
    return any(event["event"] == "stop" for event in entry["trace"])


def _end(studio: Studio, run: RunFolder, notes: tuple[str, ...]) -> Update:
    """How a run ended; its speed is kept for the next prediction."""
    entry = run.entries[0]
    pace = Pace.of(entry["ledger"])
    if pace is not None:
        studio.paces[run.data["arguments"]["reward"]] = pace
    return Update(
        "stopped" if was_stopped(entry) else "finished",
        share=1.0,
        reward=entry["rewards"][0],
        events=tuple(entry["trace"]),
        steps=entry["steps"],
        run=run,
        notes=notes,
    )


def _look(progress: Progress, steps: int) -> Update:
    """A call as it is now."""
    events, images = tuple(progress.trace.events), dict(progress.trace.images)
    image = images.get(_best(events))
    return Update("drawing", 1 - progress.left, progress.reward, image, events, images, steps)


def _best(events: tuple[Mapping[str, Any], ...]) -> tuple[int, int, int]:
    """The key, among a trace's images, of the best finished particle, or else the best preview."""
    scored = [event for event in events if event["event"] == "score"]
    finals = [event for event in scored if not event["preview"]]
    found = [
        (reward, (event["prompt"], particle, -1 if not event["preview"] else event["step"]))
        for event in finals or scored
        for particle, reward in zip(event["particle"], event["reward"], strict=True)
    ]
    return max(found, default=(0.0, (0, -1, -1)))[1]


def _command(job: SampleJob) -> str:
    """`steer sample` with the same job."""
    words = ["steer", "sample", *job.prompts, "--pipeline", job.pipeline, "--reward", job.reward]
    for judge in job.judges:
        words += ["--judge", judge]
    words += ["--compute", f"{job.compute:g}", "--seed", str(job.seed), "--steps", str(job.steps)]
    return shlex.join(words + (["--method", str(job.method)] if job.method else []))
