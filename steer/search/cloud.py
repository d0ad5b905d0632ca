"""A weighted population: log-weights, evidence and names through weighting and resampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.core.potentials import Memory, Potential
from steer.core.resampling import Selector, ess, in_place, log_mean_exp, without_replacement
from steer.core.seeds import row_seed
from steer.core.types import Name, Population, Step, by_prompt, rows_of
from steer.search.context import Context


_NOISELESS = 1e-5  # rewards that differ by less than this share of their size are one reward
_RESAMPLING = -2  # where a step's resampling draws from, beside the particles' own seeds
_CHOOSING = -3  # where the final draw comes from, likewise
_HALVINGS = 40
_EQUAL: Mapping[Name, float] = {}


@dataclass(eq=False)
class Cloud:
    """N weighted particles for each of P prompts; all `(P, N)` are float64 on the CPU.

    Attributes:
        population: The particles, P x N rows.
        roots: Initial latents of every particle's line, by name.
        log_weights: Since the last resampling, `(P, N)`.
        memory: What the potentials remember.
        log_evidence: Of all resamplings so far, `(P,)`.
        spread: Largest standard deviation that a prompt's rewards have had, `(P, 1)`.
        warmth: Inverse temperature of the last weighting, `(P, 1)`.
    """

    population: Population
    roots: dict[Name, Tensor]
    log_weights: Tensor
    memory: Memory
    log_evidence: Tensor
    spread: Tensor
    warmth: Tensor

    @classmethod
    def of(cls, start: Population, log_weights: Mapping[Name, float] = _EQUAL) -> Cloud:
        """The particles at the start, with equal weights, or with those that are given by name.

        Given ones are normalised per prompt to a mean of 1, so that the evidence stays consistent.

        Raises:
            ValueError: Prompts differ in their number of particles.
        """
        prompts = len(start.prompts)
        size, odd = divmod(len(start), prompts)
        if odd or any(sum(p == q for q, _ in start.ids) != size for p in start.prompts):
            raise ValueError(f"{len(start)} particles for {prompts} prompts: must be as many each")
        blank = Memory.blank(prompts, size)
        none = torch.zeros(prompts, 1, dtype=torch.float64)
        roots = dict(zip(start.ids, start.x.unbind(), strict=True))
        logs = blank.total
        if log_weights:
            given = [log_weights.get(name, 0.0) for name in start.ids]
            logs = by_prompt(torch.tensor(given, dtype=torch.float64), prompts)
            logs = logs - log_mean_exp(logs)[:, None]
        return cls(start, roots, logs, blank, none[:, 0], none, none)

    @property
    def size(self) -> int:
        """Particles per prompt."""
        return self.log_weights.shape[1]

    def grid(self, values: Tensor) -> Tensor:
        """Values per row as `(P, N)` float64 on the CPU."""
        return by_prompt(values.detach().to("cpu", torch.float64), len(self.log_evidence))

    def reward_scale(self, rewards: Tensor) -> Tensor:
        """The scale of rewards, `(P, 1)`: 1 over the largest standard deviation of any step so far.

        0 for a prompt whose rewards were always equal.
        """
        if self.size > 1:
            now = rewards.std(1, keepdim=True)
            real = now > _NOISELESS * rewards.abs().amax(1, keepdim=True)
            self.spread = torch.maximum(self.spread, torch.where(real, now, 0.0))
        return torch.where(self.spread > 0, 1 / self.spread.clamp(min=1e-300), 0.0)

    def weigh(self, potential: Potential, rewards: Tensor, scale: Tensor) -> None:
        """Multiply the weights by a potential; `rewards (P, N)`, `scale (P, 1)`."""
        increment, self.memory = potential(rewards, scale, self.memory)
        self.log_weights = self.log_weights + increment

    def warmest(self, potential: Potential, rewards: Tensor, scale: Tensor, least: float) -> Tensor:
        """The largest inverse temperature up to 1, `(P, 1)`, that keeps the ESS at `least`.

        Never below the last one. By bisection, as the ESS falls while the temperature does.
        """

        def enough(warmth: Tensor) -> Tensor:
            increment, _ = potential(rewards, scale * warmth, self.memory)
            return ess(self.log_weights + increment)[:, None] >= least

        low, high = self.warmth, torch.ones_like(self.warmth)
        whole = enough(high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            fits = enough(middle)
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        return torch.where(whole, torch.ones_like(low), low)

    def resample(
        self, ctx: Context, step: Step, select: Selector, poor: Callable[[Tensor], Tensor]
    ) -> list[int] | None:
        """Resample the prompts that are `poor` in ESS; rows to take, or `None` if there are none.

        A survivor keeps its place and its name, every further copy is a new particle. What a prompt
        draws depends on its seed and the step, on no other prompt.
        """
        chosen = poor(ess(self.log_weights))
        if not bool(chosen.any()):
            return None
        prompts = self.population.prompts
        seeds = [row_seed(ctx.starts.seeds[p], _RESAMPLING, step.index) for p in prompts]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = in_place(select(self.log_weights, self.size, generators))
        stay = torch.arange(self.size).expand_as(drawn)
        ancestors = torch.where(chosen[:, None], drawn, stay)
        mean = log_mean_exp(self.log_weights)
        self.log_evidence = self.log_evidence + torch.where(chosen, mean, 0.0)
        self.log_weights = self.log_weights.masked_fill(chosen[:, None], 0.0)
        self.memory = self.memory.take(ancestors)
        rows = rows_of(ancestors, self.size).tolist()
        told = [prompt for prompt, hit in zip(prompts, chosen.tolist(), strict=True) if hit]
        self._descend(ctx, rows, [at for at, row in enumerate(rows) if row != at], step, told)
        return rows

    def draw(self, ctx: Context, count: int) -> Population:
        """`count` different particles of every prompt, drawn by their weights."""
        prompts = self.population.prompts
        seeds = [row_seed(ctx.starts.seeds[prompt], _CHOOSING) for prompt in prompts]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        chosen = without_replacement(self.log_weights, count, generators)
        return self.population.take(rows_of(chosen, self.size).tolist())

    def tell(self, ctx: Context, step: Step | None, scale: Tensor) -> None:
        """The weights as they are now, into the trace; `scale (P, 1)` is what they were made by."""
        sizes = ess(self.log_weights).tolist()
        logs = self.log_weights.log_softmax(1).tolist()
        evidence = (self.log_evidence + log_mean_exp(self.log_weights)).tolist()
        for number, prompt in enumerate(self.population.prompts):
            ctx.log(
                "weights",
                step=None if step is None else step.index,
                prompt=prompt,
                particle=[k for p, k in self.population.ids if p == prompt],
                log_weights=logs[number],
                ess=sizes[number],
                scale=float(scale[number]),
                log_evidence=evidence[number],
            )

    def leave_plain(self, ctx: Context) -> None:
        """New names for the particles that are the plain call's own, which they no longer are."""
        rows = list(range(len(self.population)))
        plain = [row for row in rows if self.population.ids[row][1] < ctx.images]
        self._descend(ctx, rows, plain, None, self.population.prompts)

    def _descend(
        self, ctx: Context, rows: list[int], born: list[int], step: Step | None, told: list[int]
    ) -> None:
        """Take rows, give those at the places `born` new names, and tell who descends from whom."""
        taken = self.population.take(rows)
        parents, names = taken.ids, list(taken.ids)
        for at, name in zip(born, ctx.starts.names([parents[b][0] for b in born]), strict=True):
            names[at] = name
        self.roots = {name: self.roots[old] for name, old in zip(names, parents, strict=True)}
        ctx.starts.keep([names[at] for at in born], [self.roots[names[at]] for at in born])
        self.population = Population(taken.x, tuple(names))
        here = [at for at, (prompt, _) in enumerate(names) if prompt in told]
        old, new = [parents[at] for at in here], [names[at] for at in here]
        ctx.tell_descent("select", new, step, old)
