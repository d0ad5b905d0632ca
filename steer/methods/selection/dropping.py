"""A round that need not see the end: particles whose preview is hopeless are dropped on the way."""

from __future__ import annotations

from steer.core.rows import rows_by_prompt
from steer.core.types import Population, Search, Step
from steer.rewards.thresholds.calibration import Calibration
from steer.search.context import Context


def sample_hopeful(
    ctx: Context, start: Population, calibration: Calibration, lacking: dict[int, int]
) -> Search:
    """Sample `start` to the end, but for particles that a calibrated preview gives up on.

    Args:
        ctx: The call.
        start: Initial latents.
        calibration: At which steps previews are scored, and which are hopeless there.
        lacking: How many particles of every prompt go on whatever their previews are.

    Returns:
        The particles that were not dropped, finished; maybe none.
    """
    alive, solver = start, ctx.solver(start)
    for step in ctx.steps:
        output = yield from ctx.denoise(alive, step)
        if step.index in calibration.steps:
            previews = alive.at(step.x0(alive.x, output))
            rows = _survivors(ctx, previews, step, calibration, lacking)
            if not rows:
                return alive.take([])
            solver.gather(rows)
            alive, output = alive.take(rows), output[rows]
        alive = alive.at(solver.step(step, alive.x, output, alive.ids))
    return alive


def _survivors(
    ctx: Context,
    previews: Population,
    step: Step,
    calibration: Calibration,
    lacking: dict[int, int],
) -> list[int]:
    """Rows that go on, in their old order: those above the cut, and the best that must."""
    rows = rows_by_prompt(previews.ids)
    if all(len(own) <= lacking[p] for p, own in rows.items()):
        return list(range(len(previews)))
    values = ctx.evaluate(previews, step).tolist()
    texts = [ctx.prompts[prompt] for prompt, _ in previews.ids]
    doomed = calibration.drops(step.index, values, texts)
    kept: list[int] = []
    for prompt, own in rows.items():
        ranked = sorted(own, key=lambda row: (doomed[row], -values[row]))
        alive = max(sum(not doomed[row] for row in own), lacking[prompt])
        kept += ranked[:alive]
    ctx.tell_choice(previews.ids, kept, step)
    return sorted(kept)
