"""The reward's gradient as a proposal: particle filtering that is guided and still unbiased."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from steer.core.checks import positive
from steer.core.potentials import damping, tempering
from steer.core.sphere import radius, unit
from steer.core.types import Move, Step, wide
from steer.core.when import When, every
from steer.search.kernels.uphill import GradientMove, Through


_ALWAYS = every(1)


@dataclass(frozen=True)
class GradientProposal(GradientMove):
    """The kernel's move with its mean shifted up the reward: `SMC(n, proposal=GradientProposal())`.

        x' = mu + std z + std^2 gamma lam G,    G = grad_x r(decode(x0(x)))

    The filter weights every particle by the density of the unshifted move over that of this one,
    so the weighted population follows the same law as without a proposal; only the weights are
    less unequal. With `lam` as that of the filter, `temper` and no `pull` this is DAS (Kim et al.
    2025, arXiv:2501.05803). On a flow map, `through="map"` and `SMC(lookahead="map")` filter by the
    reward of where the flow ends, as FMTT does (Sabour et al. 2025, arXiv:2511.22688). FMTT's own
    drift is half of this shift, and has weights of its own; here the kernel's density corrects it.

    Args:
        lam: In the reward's own units, as in `SMC(lam=..., standardise=False)`. `None` takes the
            gradient's direction only.
        pull: Length of the shift in standard deviations of the move's noise: exactly so without
            `lam`, at most so with it; `None` is no limit. A step adds up to `pull`^2 to the
            variance of the log-weights, so keep it well below 1 over many steps.
        through: `"denoiser"` is the gradient above, at two more rows per row; `"x0"` takes
            dx0/dx = alpha / (alpha^2 + sigma^2) (white data of variance 1) for the denoiser's
            derivative, at no denoiser row: a worse proposal, corrected all the same; `"map"` takes
            the gradient of the reward of where a flow map leads from x in one jump, at three rows.
        temper: A rate g for gamma = min((1 + g)^i - 1, 1) with i in hundredths of the way, as in
            `SMC(temper=...)`; `None` for 1.
        eta: Share of fresh noise where it is the kernel itself; as a proposal it takes the noise of
            the filter's kernel.
        when: Steps at which the mean is shifted.
        damping: Divide `lam` by 1 + damping P on the way, see `steer.core.potentials.damping`:
            `lam a` is exact for a reward of curvature a. It takes a `lam`.

    Raises:
        ValueError: Arguments of the wrong kind, neither `lam` nor `pull`, `damping` without `lam`.
        RewardError: When called: the reward is not differentiable.
        GradientError: When called: a gradient that is not finite.
        UnsupportedPipelineError: When called: `through="map"` on a model that is no flow map, or
            from whose denoiser no gradient comes back.
    """

    lam: float | None = None
    pull: float | None = 0.5
    through: Through = "denoiser"
    temper: float | None = None
    eta: float = 1.0
    when: When = _ALWAYS
    damping: float = 0.0

    def __post_init__(self) -> None:
        example = "GradientProposal(pull=0.5) or GradientProposal(lam=2.0, pull=None)"
        positive("lam", self.lam)
        positive("pull", self.pull)
        positive("temper", self.temper)
        positive("damping", self.damping, zero=True, none=False)
        self.check_settings()
        if self.lam is None and self.pull is None:
            raise ValueError(f"lam=None and pull=None: nothing says how far; write {example}")
        if self.damping and self.lam is None:
            raise ValueError(
                f"damping={self.damping!r} and lam=None: it divides lam, and pull alone drops the "
                "gradient's length; give lam too, or leave damping out"
            )

    def changed(self, base: Move, step: Step, gradient: Tensor) -> Move:
        """The kernel's move with its mean shifted up the gradient."""
        shift = self._shift(step, gradient, base.std)
        return Move((wide(base.mean) + shift).to(base.mean.dtype), base.std, base.x0)

    def _shift(self, step: Step, gradient: Tensor, std: float) -> Tensor:
        if self.pull is not None and self.lam is None:
            return self.pull * std * unit(gradient)
        warmth = tempering(step, self.temper) * damping(step, self.damping)
        shift = (std**2 * (self.lam or 0.0) * warmth) * gradient
        if self.pull is None:
            return shift
        return shift * (self.pull * std / radius(shift).clamp(min=1e-30)).clamp(max=1.0)
