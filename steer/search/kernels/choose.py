"""Which kernel moves the particles of a call, as a method's `kernel` names it."""

from __future__ import annotations

from steer.core.checks import near
from steer.core.errors import UnsupportedSchedulerError
from steer.core.types import Step
from steer.core.warn import warn
from steer.driver.solver import Solver
from steer.search.context import Context
from steer.search.kernels.draws import Kernel
from steer.search.kernels.laws import LAWS
from steer.search.kernels.rho import FLOW_PRESET, Rho
from steer.search.kernels.uphill import GradientMove


_FEW = 8  # as many steps as distilled models take at most


def check_kernel(kernel: object, eta: float) -> None:
    """Raise ValueError unless `kernel` is a kernel or the name of one, and `eta` is heard.

    Args:
        kernel: As a method was given it.
        eta: Share of fresh noise, in (0, 1].
    """
    names = ["auto", "solver", *LAWS]
    if not callable(kernel) and kernel not in names:
        raise ValueError(f"kernel={kernel!r}: must be a Kernel or a name{near(str(kernel), names)}")
    if eta != 1 and kernel not in ("auto", "solver", "ddim") and _is_own(kernel):
        raise ValueError(
            f"eta={eta!r} with kernel={kernel!r}: eta belongs to kernel='ddim'; give a strength as "
            "in kernel=Rho('flow-sde', 0.7)"
        )


def choose_kernel(
    ctx: Context, solver: Solver, method: str, kernel: str | Kernel, eta: float
) -> Kernel | None:
    """The law of the moves; `None` is the pipeline's own solver.

    Args:
        ctx, solver: The call, and the user's scheduler.
        method: Who asks, for messages.
        kernel: `"auto"`, `"solver"`, a preset of `Rho`, or a `Kernel`.
        eta: Share of fresh noise in DDIM moves.

    Raises:
        UnsupportedSchedulerError: `"solver"` where the scheduler draws no noise, or a kernel that
            this grid does not have.
        ValueError: A run of one step, a `noise_window` in which no step lies, or an `eta` that
            nothing listens to.
        RewardError: A move along the gradient of a reward that has none.
        UnsupportedPipelineError: A gradient through a flow map, of a model that is none.
    """
    if len(ctx.steps) == 1:
        raise ValueError(
            f"{method}: num_inference_steps gives 1 step, after which there is nothing to choose "
            "between; run more steps, or search the first noise with BestOfN, NoiseSearch or "
            "NoiseOptimization"
        )
    if kernel == "solver":
        return _own_solver(ctx, solver, method)
    if kernel == "auto":
        if solver.draws_noise(ctx.steps):
            _warn_of_renoising(solver, ctx, method)
            return None
        if not ctx.model.is_flow_map:  # fresh noise keeps its law in few steps, see `aim`
            _warn_of_few_steps(solver, ctx, method)
        chosen: Kernel = own_moves(ctx, eta)
    else:
        chosen = _named(kernel, eta) if isinstance(kernel, str) else kernel
    if isinstance(chosen, Rho):
        chosen.check(ctx.steps, method)
        _check_of_map(chosen, ctx, method)
    if isinstance(chosen, GradientMove):
        chosen.check(ctx)
    return chosen


def own_moves(ctx: Context, eta: float) -> Rho:
    """Moves in the place of a scheduler that draws no noise, or none that a method can follow.

    Raises:
        ValueError: `eta` on a flow model, whose moves have none.
    """
    if ctx.steps[0].prediction != "flow":
        return _named("ddim", eta)
    if eta != 1:
        raise ValueError(
            f"eta={eta!r} with kernel='auto' on a flow model, whose moves are {FLOW_PRESET!r} and "
            f"have no eta; write kernel='ddim', or kernel=Rho({FLOW_PRESET!r}, 0.5) for less noise"
        )
    return Rho(FLOW_PRESET)


def is_silent(kernel: Kernel | None, step: Step) -> bool:
    """Whether a kernel is known to draw no noise at a step."""
    return isinstance(kernel, Rho) and kernel.is_silent(step)


def aim(ctx: Context, kernel: Kernel | None, step: Step) -> Step:
    """The step to ask the denoiser at before a kernel moves: a flow map's jump, else as it is."""
    return kernel.aim(step) if isinstance(kernel, Rho) and ctx.model.is_flow_map else step


def asks_further(kernel: object) -> bool:
    """Whether a kernel asks the denoiser further questions and draws its noise itself."""
    return isinstance(kernel, Rho) and kernel.asks


def further_calls(kernel: object, index: int, steps: int) -> int:
    """Denoiser calls of a row beyond the first, at most, at step `index` of a run of `steps`."""
    if not isinstance(kernel, Rho) or index + 1 == steps or (not index and not kernel.fresh_start):
        return 0
    return kernel.inner - 1


def _named(name: str, eta: float) -> Rho:
    return Rho("ddim", eta) if name == "ddim" else Rho(name)


def _is_own(kernel: object) -> bool:
    return isinstance(kernel, str | Rho)


def _own_solver(ctx: Context, solver: Solver, method: str) -> None:
    """Insist on the pipeline's own solver."""
    if not solver.draws_noise(ctx.steps):
        flow = ctx.steps[0].prediction == "flow"
        other = (
            f"kernel={FLOW_PRESET!r}"
            if flow
            else "EulerAncestralDiscreteScheduler or DDIMScheduler with eta=1, or kernel='ddim'"
        )
        raise UnsupportedSchedulerError(
            f"{method}: {solver.name} draws no noise, so copies of a particle would stay equal; "
            f"use {other}"
        )
    _warn_of_renoising(solver, ctx, method)


def _check_of_map(kernel: Rho, ctx: Context, method: str) -> None:
    """Raise UnsupportedSchedulerError where a flow map would be asked between two jumps."""
    if kernel.asks and ctx.model.is_flow_map:
        raise UnsupportedSchedulerError(
            f"{method}: kernel={kernel!r} asks for posterior means within a step, and the flow map "
            f"of {ctx.model.name} answers with jumps, whose law is right with one call; use inner=1"
        )


def _warn_of_few_steps(solver: Solver, ctx: Context, method: str) -> None:
    if len(ctx.steps) > _FEW:
        return
    preset, noisy = "ddim", "LCMScheduler, EulerAncestralDiscreteScheduler"
    if ctx.steps[0].prediction == "flow":
        preset, noisy = FLOW_PRESET, "FlowMatchLCMScheduler"
    message = (
        f"{method} in {len(ctx.steps)} steps of {solver.name}, which draws no noise: its moves "
        "add fresh noise at every step, which models made for few steps do not expect; run "
        f"more steps, use a scheduler that draws noise itself ({noisy}), or search the first noise "
        f"with NoiseSearch, NoiseOptimization or BestOfN (kernel={preset!r} says that it is meant)"
    )
    warn(message, stacklevel=2)


def _warn_of_renoising(solver: Solver, ctx: Context, method: str) -> None:
    if ctx.steps[0].prediction != "flow" or not solver.renoises or len(ctx.steps) <= _FEW:
        return
    message = (
        f"{method} in {len(ctx.steps)} steps of {solver.name}, which draws all noise anew at every "
        "step: made for models of few steps, it makes samples of many steps vary less than the "
        f"model's; kernel={FLOW_PRESET!r} keeps the model's distribution"
    )
    warn(message, stacklevel=2)
