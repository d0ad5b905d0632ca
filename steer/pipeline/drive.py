"""One call of the pipeline with a search in its loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from steer.core.errors import AGAIN, LaneWidthError, SteerError, UnsupportedPipelineError
from steer.core.shortage import is_shortage
from steer.driver.call import Call, check_callbacks
from steer.driver.call_checks import check_loop, check_scheduler
from steer.driver.counting import counting
from steer.driver.decoding.nan import decoding_of
from steer.driver.facts import edits_latents, is_interrupted, keeps_image
from steer.driver.jumps import jumping
from steer.driver.loop import Loop
from steer.driver.metering import Metering, is_countable
from steer.driver.narrow import Narrow, denoisers_of
from steer.driver.scheduler import SteeredScheduler
from steer.driver.shares import Shares
from steer.pipeline.images import first_of, is_per_row
from steer.pipeline.run import Run


def drive(call: Call, run: Run) -> tuple[Any, bool]:
    """The pipeline's output with a search in its loop, and whether the search came to its end.

    Raises:
        UnsupportedPipelineError: The loop was not driven.
    """
    pipe = call.pipe
    check_scheduler(pipe)
    check_callbacks(call)
    check_loop(pipe)
    scheduler = SteeredScheduler(pipe.scheduler, run.search, run.ledger)
    loop = scheduler.loop
    loop.owner = type(pipe).__name__
    loop.noises, loop.callbacks = run.source.noises, call.has_callbacks
    loop.edited, loop.kept = edits_latents(pipe), keeps_image(pipe)
    stand_ins: dict[str, Any] = {"scheduler": scheduler}
    if run.source.prepare is not None:
        stand_ins[run.source.prepare.__name__] = run.source
    if hasattr(pipe, "progress_bar"):
        stand_ins["progress_bar"] = run.progress_bar
    loop.jump = run.jump
    models = nullcontext()
    if run.models is not None:
        loop.evaluations = run.evaluations
        from steer.driver.denoisers.forward import answering

        models = answering(run.models, loop.asked, run.rows * run.breadth)
    narrow = nullcontext()
    if run.checked is not None:
        loop.spares, loop.opening = True, run.opening
        narrow = _narrowed(run, loop)
    metering, metered = Metering(pipe, lambda: loop.started, run.weights.counted), nullcontext()
    if is_countable([*denoisers_of(pipe).values()]):
        run.counted, metered = (lambda: metering.total), metering.installed()
    returned = decoding_of(pipe, when=lambda: loop.finished)
    stands = _standing_in(pipe, stand_ins)
    jumps = jumping(pipe, lambda: None if loop.query is None else loop.jump(loop.query))
    with models, metered, narrow, jumps, counting(pipe), stands, returned as run.decoded:
        try:
            output = call.run(run.breadth)
        except Exception as error:
            within = loop.failed or (loop.started and not loop.finished)
            if run.breadth == 1 or within or _is_ours(error):
                raise
            raise LaneWidthError(
                f"{type(pipe).__name__} raised {type(error).__name__} for a batch "
                f"{run.breadth} times as wide ({error})"
            ) from error
        finally:
            loop.close()
    first = first_of(output)
    if loop.finished and run.breadth > 1 and is_per_row(first, run.rows * run.breadth):
        raise LaneWidthError(
            f"{type(pipe).__name__} returns {len(first)} rows for the {run.rows} that were chosen"
        )
    interrupted = loop.interrupted or is_interrupted(pipe)
    if not loop.finished and not interrupted:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__}: its loop cannot be driven (it does not iterate over "
            f"scheduler.timesteps and call scheduler.step); {AGAIN}"
        )
    return output, loop.finished


def _narrowed(run: Run, loop: Loop) -> AbstractContextManager[None]:
    """The denoiser on the rows that the loop wants; what a check costs is in the ledger."""

    def count(rows: int) -> None:
        run.ledger.checked_rows += rows * loop.evaluations(*loop.asked())

    assert run.checked is not None
    lane = run.rows * run.breadth
    if run.devices:
        share = lane // len(run.texts), len(run.texts)
        shares = Shares(run.pipe, run.devices, *share, loop.wanted, run.checked, count)
        run.groups, run.own, loop.calls = lambda: shares.groups, lambda: shares.own, shares.calls
        return shares.installed()
    narrow = Narrow(run.pipe, lane, loop.wanted, run.uneven, run.checked, count)
    run.groups = lambda: narrow.groups
    return narrow.installed()


def _is_ours(error: Exception) -> bool:
    """Whether an error says what is wrong already: steer's own, or memory that is short."""
    return isinstance(error, SteerError) or is_shortage(error)


@contextmanager
def _standing_in(pipe: Any, stand_ins: Mapping[str, Any]) -> Iterator[None]:
    """Attributes of `pipe` replaced for a while, past its config; put back whatever happens."""
    before = {name: pipe.__dict__[name] for name in stand_ins if name in pipe.__dict__}
    try:
        for name, value in stand_ins.items():
            object.__setattr__(pipe, name, value)
        yield
    finally:
        for name in stand_ins:
            if name in before:
                object.__setattr__(pipe, name, before[name])
            else:
                with suppress(AttributeError):
                    object.__delattr__(pipe, name)
