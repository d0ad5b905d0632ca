"""A search in the pipeline's loop, begun again with narrower lanes where it has to be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from steer.core.errors import LaneWidthError, PaddedLaneError
from steer.core.warn import warn
from steer.driver.call import Call
from steer.pipeline.drive import drive
from steer.pipeline.memory import with_room
from steer.pipeline.run import Run
from steer.pipeline.widths import Widths


def search(
    call: Call, run: Run, again: Callable[[Run, int | None], Run], widths: Widths
) -> tuple[Run, Any, bool, list[Run]]:
    """Drive the loop; begin again where memory is short, or the batch is not borne.

    Args:
        call: The pipeline's call.
        run: The first attempt's.
        again: Puts everything back as it was, and makes the run with another lane width; `None`
            for the width that is planned.
        widths: Where it is noted what the pipeline bears.

    Returns:
        The run that succeeded, the pipeline's output, whether the search came to its end, and the
        runs that failed.

    Raises:
        UnsupportedPipelineError: The loop was not driven.
        OutOfMemoryError: The lane cannot be halved any more.
    """
    attempt = partial(drive, call)
    wasted: list[Run] = []
    too_wide: LaneWidthError | None = None
    while True:
        try:
            run, (output, ended), failed = with_room(attempt, run, again)
            break
        except LaneWidthError as error:
            if run.breadth == 1:
                raise
            wasted.append(run)
            if isinstance(error, PaddedLaneError):
                widths.refused(call, error)
                run = again(run, None)
            else:
                too_wide = error  # if the call as it is runs; else it was not the width
                run = again(run, 1)
    if too_wide is not None:
        widths.refused(call, too_wide)
        warn(f"{too_wide}: lanes are as wide as the call itself; give lane_width=1", 5)
    if failed:
        widths.fitted(call, run.method, run.lane_width)
    return run, output, ended, [*wasted, *failed]
