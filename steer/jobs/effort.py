"""What a job's `method` and `compute` come to."""

from __future__ import annotations

from typing import Any

from steer.jobs.sample_job import COMPUTE
from steer.methods.text import Written, is_bare, method_class, parse_method


def effort(method: Written | None, compute: float | None) -> dict[str, Any]:
    """`method` and `compute` for `guided`.

    Args:
        method: As `steer sample --method` takes it; a bare name is made as large as `compute` pays
            for on the pipeline at hand; `None` leaves the choice to `compute`.
        compute: Plain calls of the base, decodes included; `None` is 4.

    Raises:
        ValueError: An unknown method, or arguments that do not fit.
    """
    if method is None:
        return {"compute": compute}
    if is_bare(method):
        assert isinstance(method, str)
        return {"method": method_class(method), "compute": compute or COMPUTE}
    return {"method": parse_method(method)}
