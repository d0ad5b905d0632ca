"""Guidance by the reward's gradient: any search with its answers moved up the reward on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steer.core.checks import one_of, plain_calls, positive, predicate, whole
from steer.core.costs import ROWS, Costs, Work, check_costs
from steer.core.errors import UnsupportedPipelineError
from steer.core.potentials import damping
from steer.core.sphere import radius, unit
from steer.core.types import Population, Query, Search, Step, wide
from steer.core.when import When, between
from steer.methods.selection.prune import Prune
from steer.search.context import Context
from steer.search.guidance import (
    check_gradient,
    gradient_behind,
    leave_plain_names,
    record_x0,
    reward_gradient,
    shift_output,
    window,
)
from steer.search.maps import check_map, to_clean
from steer.search.method import Around, Method, check_method
from steer.search.short_runs import Asking


_USUAL = between(0.5, 0.95)
_EXAMPLE = "Guide(Prune(8, (4, 2), (0.5, 0.65)), strength=0.1, when=between(0.5, 0.95))"


@dataclass(frozen=True)
class Guide(Around):
    """Run `method`, and guide what it samples: selection and gradient in one trajectory.

    Every model output that the method is answered at the steps `when` implies a clean prediction
    x0, which is moved up the reward's gradient first:

        x0 <- x0 + strength * |x0| * g / |g|,    g = grad r(decode(x0))

    The changed x0 goes to the pipeline's own solver as the model output that implies it. The
    gradient's length is dropped, so `strength` means the same for every reward and model. Around
    `Prune` only particles that are worth it are guided, since the usual window opens when half of
    the steps are done and the first cut has been made; `Guide(BestOfN(n))` guides all.

    `through="x0"` differentiates decoder and reward, and never the denoiser: MPGD (He et al. 2024,
    arXiv:2311.16424), at no further denoiser call. `through="denoiser"` takes the gradient with
    respect to the noisy latents, through the denoiser: DPS (Chung et al. 2023, arXiv:2209.14687)
    and the forward guidance of Bansal et al. 2023 (arXiv:2302.07121), at two more rows per guided
    row and the memory of a training step. `through="map"` asks a flow map where
    the latents end, in one jump, and differentiates that: three more rows per guided row.

    A raw gradient finds adversarial images, which please the reward and nobody else: keep the
    window short and the strength low, let several particles compete, watch a `judge`. Calls that
    the method differentiates itself are answered as they are. A `Budget` goes around `Guide`:
    inside, it does not see what the guidance costs.

    Args:
        method: Any method; it asks and selects as ever.
        strength: Length of the shift of x0, as a share of its norm; 0 guides nothing.
        when: Steps whose answers are guided.
        through: What the gradient goes through.
        inner: Gradient steps that share the length `strength` (x0 only); each decodes and scores.
        schedule: `"constant"`; `"noise"`: times sigma / sqrt(alpha^2 + sigma^2), less and less; or,
            on flow models, `"velocity"`: the length is `strength` sigma |u| with the velocity u, so
            that a step goes along u + strength |u| g / |g|. With `through="map"` that is FMRG-J
            (2026, arXiv:2604.27147), with `through="denoiser"` the same with the one-step x0 in
            place of the map, and with `through="x0", inner=3` close to FMRG-E, likewise.
        damping: Divide the shift by 1 + damping P with P = sigma^2 / (alpha^2 + sigma^2), so that
            the early steps, at which a preview's reward says least about the image, move it least;
            see `steer.core.potentials.damping`. 0 for none.

    Raises:
        ValueError: Arguments of the wrong kind; when called: a reward that only ranks candidates.
        RewardError: When called: the reward is not differentiable.
        GradientError: When called: a gradient that is not finite.
        UnsupportedPipelineError: When called: no gradient comes back from the denoiser; no flow
            model, with `schedule="velocity"`; no flow map, with `through="map"`.
    """

    method: Method
    strength: float = 0.1
    when: When = _USUAL
    through: Literal["x0", "denoiser", "map"] = "x0"
    inner: int = 1
    schedule: Literal["constant", "noise", "velocity"] = "constant"
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_method("method", self.method, _EXAMPLE)
        positive("strength", self.strength, zero=True, none=False)
        predicate(self.when, _EXAMPLE)
        one_of("through", self.through, ("x0", "denoiser", "map"))
        whole("inner", self.inner, _EXAMPLE)
        one_of("schedule", self.schedule, ("constant", "noise", "velocity"))
        positive("damping", self.damping, zero=True, none=False)
        if self.inner > 1 and self.through != "x0":
            raise ValueError(
                f"inner={self.inner} with through={self.through!r}: one denoiser call gives one "
                "gradient; leave inner out"
            )

    @classmethod
    def for_compute(cls, compute: float, steps: int, costs: Costs = ROWS) -> Guide:
        """`Prune` as it is planned for what `compute` plain calls leave beside its gradients.

        Raises:
            ValueError: `compute` below 1.
        """
        plain_calls(compute)
        check_costs(costs)

        def planned(hundredths: int) -> Guide:
            return cls(Prune.for_compute(hundredths / 100, steps, costs))

        whole = cls(Prune.for_compute(compute, steps, costs))
        if costs.fits(whole.work(steps), compute, steps):
            return whole
        return planned(costs.most(lambda h: planned(h).work(steps), compute, steps, least=100))

    def cost(self, steps: int) -> int:
        """Denoiser-row equivalents per returned image, at most; see `work`."""
        return self.work(steps).equivalent_rows

    def work(self, steps: int) -> Work:
        """The method's, and a gradient for every row at the guided steps."""
        guided = self.when.indices(steps) if self.strength else []
        images = self.inner * self.method.rows_at(steps, guided)
        work = self.method.work(steps)
        work += Work(previews=images, scores=images, gradients=images)
        if self.through == "denoiser":
            opening = self.populations[0] if 0 in guided else 0  # the pipeline's own, unrecorded
            work += Work(rows=opening, backward_rows=images)
        if self.through == "map":
            work += Work(rows=images, backward_rows=images)
        return work

    def kl(self, ctx: Context, prompt: int) -> float | None:
        """Unknown where anything is guided."""
        return None if self.strength else self.method.kl(ctx, prompt)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """The method's own search, its questions passed on and its answers guided."""
        guided = window(self.when, len(ctx.steps), type(self).__name__) if self.strength else []
        if not guided:
            return (yield from self.method(ctx, start))
        check_gradient(ctx, type(self).__name__)
        self._check_velocity(ctx)
        if self.through == "map":
            check_map(ctx, type(self).__name__, "through")
        search = self.method(ctx, leave_plain_names(ctx, start))
        with ctx.model.frozen():
            try:
                query = next(search)
                while True:
                    if query.step.index in guided and not query.grad:
                        output = yield from self._answer(ctx, query)
                    else:
                        output = yield query
                    query = search.send(output)
            except StopIteration as stop:
                return stop.value
            finally:
                search.close()

    def _check_velocity(self, ctx: Context) -> None:
        if self.schedule == "velocity" and ctx.steps[0].prediction != "flow":
            raise UnsupportedPipelineError(
                f"Guide(schedule='velocity') on {ctx.model.name}: it is no flow model, so that "
                "there is no velocity to take a share of; use schedule='noise'"
            )

    def _answer(self, ctx: Context, query: Query) -> Asking[Tensor]:
        """The lane's output with every particle's x0 moved; that of padding is left or repeated."""
        rows = list(query.slots or range(len(query.latents)))
        ids = tuple(query.ids[row] for row in rows)
        if self.through == "denoiser":
            here = Population(query.latents[rows], ids)
            found = yield from self._through_denoiser(ctx, query.step, here)
            whole = found[:1].repeat(len(query.latents), *[1] * (found.ndim - 1))
            whole[rows] = found
            return whole
        output = yield query
        here = Population(query.latents[rows], ids)  # after the answer: a callback may write them
        if self.through == "map":
            _, leaf, ahead = yield from record_x0(ctx, to_clean(query.step), here)
            shift = self._pulled(ctx, query.step, here, leaf, ahead)
        else:
            shift = self._through_x0(ctx, query.step, here, output[rows])
        whole = torch.zeros_like(query.latents, dtype=shift.dtype)
        whole[rows] = shift
        return shift_output(query.step, output, whole)

    def _through_x0(self, ctx: Context, step: Step, here: Population, output: Tensor) -> Tensor:
        """The shift of x0 by the gradient of reward and decoder alone."""
        x0, size = step.x0(wide(here.x), wide(output)), self._size(step)
        whole = self._whole(step, here.x, x0)
        shift, rewards = torch.zeros_like(x0), None
        for _ in range(self.inner):
            reward, gradient = reward_gradient(ctx, here.at(x0 + shift))
            shift = shift + size / self.inner * whole * unit(gradient)
            rewards = reward if rewards is None else rewards
        assert rewards is not None
        _tell(ctx, step, here, rewards, shift, x0)
        return shift

    def _through_denoiser(self, ctx: Context, step: Step, here: Population) -> Asking[Tensor]:
        """The output, shifted by the gradient at the noisy latents."""
        output, leaf, x0 = yield from record_x0(ctx, step, here)
        return shift_output(step, output, self._pulled(ctx, step, here, leaf, x0))

    def _pulled(
        self, ctx: Context, step: Step, here: Population, leaf: Tensor, x0: Tensor
    ) -> Tensor:
        """The shift along the gradient of the reward of `x0` with respect to `leaf`."""
        rewards, gradient, _ = gradient_behind(ctx, step, here, leaf, x0)
        x0 = x0.detach()
        shift = self._size(step) * self._whole(step, here.x, x0) * unit(gradient)
        _tell(ctx, step, here, rewards, shift, x0)
        return shift

    def _size(self, step: Step) -> float:
        """Length of the shift, as a share of `_whole`."""
        share = step.noise_share if self.schedule == "noise" else 1.0
        return self.strength * share * damping(step, self.damping)

    def _whole(self, step: Step, x: Tensor, x0: Tensor) -> Tensor:
        """What the shift is a share of, by row: the norm of x0, or that of sigma times velocity."""
        if self.schedule != "velocity":
            return radius(x0)
        return step.sigma * radius(step.noise(wide(x), x0) - x0)


def _tell(
    ctx: Context, step: Step, here: Population, rewards: Tensor, shift: Tensor, x0: Tensor
) -> None:
    """Into the trace: the rewards before the shift, and its length as a share of that of x0."""
    ctx.tell("score", here.ids, step, reward=rewards.tolist(), preview=True)
    ctx.tell("guide", here.ids, step, shift=(radius(shift) / radius(x0)).flatten().tolist())
