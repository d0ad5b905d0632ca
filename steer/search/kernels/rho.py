"""One kernel for every published stochastic sampler of one number per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from steer.core.checks import near, positive, whole
from steer.core.errors import UnsupportedSchedulerError
from steer.core.transition import mixed
from steer.core.types import Move, Population, Step, wide
from steer.search.context import Context
from steer.search.kernels.draws import Moving
from steer.search.kernels.glass import inner_flow
from steer.search.kernels.laws import KEEP, LAWS, Law, Shares, noise_level


FLOW_PRESET = "euler-ancestral"
"""What moves particles on flow models whose scheduler draws no noise, under `kernel="auto"`."""

_PURE = 1e-3  # alpha / sigma below which latents are taken for pure noise


@dataclass(frozen=True)
class Rho:
    """A step that keeps a share rho of the noise and draws the rest anew, on any schedule.

        x' = alpha' x0 + sigma' (rho noise(x, x0) + sqrt(1 - rho^2) z)

    with rho from the noise level s = sigma / (alpha + sigma) of this step and s' of the next:

    - `"ode"`: 1, the deterministic step.
    - `"flow-sde"`: (s'(1 - s) / ((1 - s')s))^(a^2 / 2), `level` a = 0.7 (Liu et al. 2025,
      Flow-GRPO, arXiv:2505.05470, its SDE solved exactly).
    - `"ddpm"`: s'(1 - s) / ((1 - s')s), the DDPM posterior; `"ddim"` with `level` eta = 1 is the
      same with a share eta of its fresh noise (Song et al. 2020, arXiv:2010.02502, eq. 16), at
      every step without exception, as `DDIMScheduler` does it.
    - `"dance"`: exp(-eta^2 / 2 (1/s' - 1/s)), `level` eta = 0.3 (Xue et al. 2025, DanceGRPO,
      arXiv:2505.07818).
    - `"rbf"`: exp(-c^2 / 6 (s^3 - s'^3)), `level` c = 3; `"rbf-vp"` has its g = c r^2 in the time r
      of a VP path (Kim et al. 2025, arXiv:2503.19385).
    - `"euler-ancestral"`: (1 - s')q / ((1 - q)s') with q = s'(1 + (s'/s - 1) eta), `level` eta = 1
      (`LTXEulerAncestralRFScheduler` of diffusers).
    - `"cps"`: cos(eta pi / 2), `level` eta = 0.8 (Wang & Yu 2025, arXiv:2509.05952).
    - `"constant"`: `level`, 0.4.
    - `"renoise"`: 0, all noise anew (LCM; `stochastic_sampling=True` of diffusers).

    All but `"cps"`, `"constant"` and `"renoise"` keep the model's marginals in the limit of many
    steps; those three draw as much noise in a short step as in a long one, so samples of many
    steps vary less than the model's. In few steps all of them vary less, as one denoiser call gives
    the posterior's mean and not a draw from it: `inner` calls give that draw (GLASS).

    Args:
        preset: A name above.
        level: The preset's own strength; `None` for its usual one.
        inner: Denoiser calls in a step that draws noise. 1 is the step above; with more the rest
            flows through an inner ODE whose law at this rho becomes exact (Holderrieth et al. 2025,
            GLASS flows, arXiv:2509.25170), on flow models.
        noise_window: (a, b), noise is drawn at steps from a noise level s in [a, b] only.
        fresh_start: Draw noise also in a step from pure noise. It would forget the initial noise,
            so by default that step is deterministic. The last step is always (but for `"ddim"`).

    Raises:
        ValueError: An unknown preset, a `level` that it does not have or outside its range, `inner`
            below 1 or of a preset that draws no noise, or no window; when called: a window in which
            no step of the run lies.
        UnsupportedSchedulerError: When called: `inner` above 1 on a model that is no flow model.
    """

    preset: str = FLOW_PRESET
    level: float | None = None
    inner: int = 1
    noise_window: tuple[float, float] = (0.0, 1.0)
    fresh_start: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.noise_window, list):
            object.__setattr__(self, "noise_window", tuple(self.noise_window))
        if self.preset not in LAWS:
            raise ValueError(f"preset={self.preset!r}: unknown{near(str(self.preset), [*LAWS])}")
        self._check_level()
        whole("inner", self.inner, "Rho('flow-sde', inner=4)")
        if self.inner > 1 and self.preset == "ode":
            raise ValueError(
                f"inner={self.inner} with preset='ode': more calls in a step sample the noise that "
                "is drawn, and 'ode' draws none; use 'flow-sde' or 'constant', or more steps"
            )
        _check_window(self.noise_window)

    def _check_level(self) -> None:
        if self.level is None:
            return
        if self.law.level is None:
            strong = ", ".join(name for name, law in LAWS.items() if law.level is not None)
            raise ValueError(
                f"level={self.level!r}: {self.preset!r} has no strength to set (those that have: "
                f"{strong})"
            )
        positive("level", self.level, zero=True, none=False)
        if self.level > self.law.most:
            raise ValueError(
                f"level={self.level!r}: that of {self.preset!r} is {self.law.meaning}, from 0 to "
                f"{self.law.most:g}"
            )

    @property
    def law(self) -> Law:
        """What the preset says."""
        return LAWS[self.preset]

    @property
    def keeps_marginals(self) -> bool:
        """Whether ever more steps lead to the model's own distribution."""
        return self.law.keeps_marginals

    @property
    def asks(self) -> bool:
        """Whether it asks the denoiser further questions, and so draws its noise itself."""
        return self.inner > 1

    def shares(self, step: Step) -> Shares:
        """rho and sqrt(1 - rho^2) at a step."""
        level = self.law.level if self.level is None else self.level
        if not self.law.everywhere and self._is_plain(step):
            return KEEP
        low, high = self.noise_window
        if not low <= noise_level(step.alpha, step.sigma) <= high:
            return KEEP
        return self.law.shares(step, level or 0.0)

    def is_silent(self, step: Step) -> bool:
        """Whether no noise is drawn at a step, so that copies of a row stay equal."""
        return not self.law.everywhere and self.shares(step).fresh == 0

    def aim(self, step: Step) -> Step:
        """The jump to ask a flow map for: down to q, from where fresh noise leads up to s'.

        q / (1 - q) = rho s' / (1 - s'), as in the gamma-sampling of consistency trajectory models
        (Kim et al. 2024, arXiv:2310.02279). With the average velocity to q the step above is this
        jump and the noise, which keeps an exact flow map's marginals in any number of steps.
        """
        kept, fresh = self.shares(step)
        if fresh == 0 or not _is_flow(step):
            return step
        left = step.alpha_next + kept * step.sigma_next
        return replace(
            step, alpha_next=step.alpha_next / left, sigma_next=kept * step.sigma_next / left
        )

    def _is_plain(self, step: Step) -> bool:
        """Whether a step is deterministic whatever the law: the first, the last, and idle ones."""
        first = step.alpha <= _PURE * step.sigma and not self.fresh_start
        idle = step.alpha * step.sigma_next >= step.alpha_next * step.sigma  # does not lower noise
        return first or idle or step.index + 1 == step.count

    def check(self, steps: Sequence[Step], method: str) -> None:
        """Raise an error, before anything is sampled, if it cannot move rows on this grid.

        Raises:
            ValueError, UnsupportedSchedulerError: See the class.
        """
        if self.asks and not all(map(_is_flow, steps)):
            raise UnsupportedSchedulerError(
                f"{method}: kernel={self!r} asks the denoiser between the noise levels of the "
                "schedule, which only flow models are known to bear; use inner=1 here"
            )
        levels = [noise_level(step.alpha, step.sigma) for step in steps]
        low, high = self.noise_window
        if not any(low <= level <= high for level in levels):
            raise ValueError(
                f"{method}: noise_window={self.noise_window!r} holds at no step of this run, whose "
                f"noise levels sigma / (alpha + sigma) go from {levels[0]:.3g} down to "
                f"{levels[-1]:.3g}; widen it, or use kernel='ode'"
            )

    def __call__(self, ctx: Context, step: Step, population: Population, output: Tensor) -> Moving:
        """The step of every row; with `inner` above 1 a generator that asks the denoiser."""
        x, shares = population.x, self.shares(step)
        if shares.fresh == 0 and _is_flow(step):
            return _euler(step, x, output)
        if self.asks and shares.fresh:
            return inner_flow(ctx, step, shares, population, output, self.inner)
        return mixed(step, x, step.x0(x, output), *shares)


def _euler(step: Step, x: Tensor, output: Tensor) -> Move:
    """The deterministic step of a flow model, in the arithmetic of `FlowMatchEuler`."""
    mean = wide(x) + (step.sigma_next - step.sigma) * wide(output)
    return Move(mean.to(x.dtype), 0.0, step.x0(x, output))


def _is_flow(step: Step) -> bool:
    """Whether a step is on a flow model's own path, x = (1 - sigma) x0 + sigma noise."""
    ends = (step.alpha + step.sigma, step.alpha_next + step.sigma_next)
    return step.prediction == "flow" and all(abs(end - 1) < 1e-5 for end in ends)


def _check_window(window: object) -> None:
    pair = window if isinstance(window, tuple) and len(window) == 2 else (None, None)
    low, high = (end if isinstance(end, int | float) else float("nan") for end in pair)
    if not 0 <= low < high <= 1:
        raise ValueError(
            f"noise_window={window!r}: must be two noise levels (a, b) with 0 <= a < b <= 1, as in "
            "noise_window=(0.2, 0.9)"
        )
