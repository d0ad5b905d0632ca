"""Resampling schemes and greedy selections: log-weights to ancestors, with one signature.

    select(log_weights (P, N) float, count, generator) -> ancestors (P, count) int64

Every row of `log_weights` is one prompt; its weights are normalised over its own N particles only.
The resampling schemes are unbiased: particle i of weight W_i has `count * W_i` children on average
(Douc, Cappe & Moulines 2005, arXiv:cs/0507025). Everything is computed in float64 on the CPU.

`generator` is one generator, or a list of one per prompt; with a list, what a prompt draws depends
on no other prompt. `None` is torch's global one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor


Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
Selector: TypeAlias = Callable[[Tensor, int, Generators], Tensor]


def normalise(log_weights: Tensor) -> Tensor:
    """Weights `(P, N)` float64 that sum to one per prompt; all equal where every weight is zero.

    Raises:
        ValueError: Not `(P, N)` with N >= 1, or a weight that is NaN or +inf.
    """
    logs = _check(log_weights)
    dead = torch.isneginf(logs).all(1, keepdim=True)
    return logs.masked_fill(dead, 0.0).softmax(1)


def ess(log_weights: Tensor) -> Tensor:
    """Effective sample size 1 / sum W^2 per prompt, `(P,)` float64 in [1, N]."""
    return 1 / normalise(log_weights).square().sum(1)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Log of the mean weight per prompt, `(P,)` float64; -inf where every weight is zero."""
    logs = _check(log_weights)
    return logs.logsumexp(1) - torch.tensor(logs.shape[1], dtype=torch.float64).log()


def systematic(log_weights: Tensor, count: int, generator: Generators = None) -> Tensor:
    """Evenly spaced points after one uniform; floor or ceil of count * W children each.

    Carpenter, Clifford & Fearnhead 1999.
    """
    weights = normalise(log_weights)
    start = _uniforms(weights, 1, generator)
    return _invert(weights, (torch.arange(count, dtype=torch.float64) + start) / count)


def stratified(log_weights: Tensor, count: int, generator: Generators = None) -> Tensor:
    """One uniform in each of `count` equal strata (Kitagawa 1996)."""
    weights = normalise(log_weights)
    within = _uniforms(weights, count, generator)
    return _invert(weights, (torch.arange(count, dtype=torch.float64) + within) / count)


def multinomial(log_weights: Tensor, count: int, generator: Generators = None) -> Tensor:
    """Independent draws (Gordon, Salmond & Smith 1993): the noisiest scheme, for reference."""
    weights = normalise(log_weights)
    return _invert(weights, _uniforms(weights, count, generator).sort(1).values)


def residual(log_weights: Tensor, count: int, generator: Generators = None) -> Tensor:
    """floor(count * W) children each, the rest by independent draws (Liu & Chen 1998)."""
    mass = normalise(log_weights) * count
    whole = _floor(mass)
    rest = (mass - whole).clamp(min=0)
    missing = count - whole.sum(1, keepdim=True).long()
    drawn = _uniforms(mass, count, generator)
    beyond = torch.arange(count) >= missing
    points = drawn.masked_fill(beyond, 2.0).sort(1).values  # those not needed come last
    more = _invert(rest / rest.sum(1, keepdim=True).clamp(min=1e-300), points)
    return _repeat(whole.long().scatter_add(1, more, (~beyond).long()))


def ssp(log_weights: Tensor, count: int, generator: Generators = None) -> Tensor:
    """Srinivasan sampling process: children in {floor, ceil} of count * W, negatively associated.

    Gerber, Chopin & Whiteley 2019, "Negative association, ordering and convergence of resampling
    methods" (arXiv:1707.01845): fractional parts are paired, and one of a pair takes
    from the other what makes either of them whole, with the odds that keep both means.
    """
    mass = normalise(log_weights) * count
    whole = _floor(mass)
    coins = _uniforms(mass, mass.shape[1], generator)
    return _repeat(_pair(whole.long(), (mass - whole).clamp(min=0), coins, count))


def greedy(log_weights: Tensor, count: int, generator: Generators = None) -> Tensor:
    """Every child from the heaviest particle; ties go to the earlier one. Not unbiased."""
    return _check(log_weights).argmax(1, keepdim=True).expand(-1, count).clone()


def top_k(log_weights: Tensor, count: int, generator: Generators = None) -> Tensor:
    """The `count` heaviest, heaviest first; ties go to the earlier one. Not unbiased.

    Raises:
        ValueError: `count` is more than there are.
    """
    logs = _check(log_weights)
    if count > logs.shape[1]:
        raise ValueError(f"count={count}: there are {logs.shape[1]} particles; ask for fewer")
    return logs.argsort(dim=1, descending=True, stable=True)[:, :count]


def without_replacement(log_weights: Tensor, count: int, generator: Generators = None) -> Tensor:
    """`count` different particles, drawn one after the other by weight among those that are left.

    By adding Gumbel noise to the log-weights (Efraimidis & Spirakis 2006; Kool, van Hoof & Welling
    2019, arXiv:1903.06059). With `count=1` a draw by weight.

    Raises:
        ValueError: `count` is more than there are.
    """
    logs = normalise(log_weights).log()
    noise = _uniforms(logs, logs.shape[1], generator).clamp(min=1e-300)
    return top_k(logs - (-noise.log()).log(), count)


def in_place(ancestors: Tensor) -> Tensor:
    """Ancestors reordered: a particle that has children keeps its row for the first of them.

    Further children take the rows of particles without any. `(P, N)` ancestors among N particles.
    """
    arranged = []
    for row in ancestors.tolist():
        alive, spare = set(), []
        for parent in row:
            (spare.append if parent in alive else alive.add)(parent)
        further = iter(spare)
        arranged.append([at if at in alive else next(further) for at in range(len(row))])
    return torch.tensor(arranged)


RESAMPLERS: dict[str, Selector] = {
    "systematic": systematic,
    "stratified": stratified,
    "ssp": ssp,
    "residual": residual,
    "multinomial": multinomial,
}
"""The unbiased ones."""

SELECTORS: dict[str, Selector] = {
    **RESAMPLERS,
    "without_replacement": without_replacement,
    "greedy": greedy,
    "top_k": top_k,
}


def _check(log_weights: Tensor) -> Tensor:
    logs = log_weights.detach().to("cpu", torch.float64)
    if logs.ndim != 2 or logs.shape[1] == 0:
        raise ValueError(f"log_weights {tuple(logs.shape)}: must be (prompts, particles)")
    if bool((torch.isnan(logs) | torch.isposinf(logs)).any()):
        raise ValueError("log_weights: NaN or +inf among them; weights must be finite or zero")
    return logs


def _uniforms(like: Tensor, count: int, generator: Generators) -> Tensor:
    """`(P, count)` float64 in [0, 1), each prompt's from its own generator where it has one."""
    if generator is None or isinstance(generator, torch.Generator):
        return _rand((len(like), count), generator)
    if len(generator) != len(like):
        raise ValueError(f"{len(generator)} generators for {len(like)} prompts: give one each")
    return torch.cat([_rand((1, count), own) for own in generator])


def _rand(shape: tuple[int, int], generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device, dtype=torch.float64).cpu()


def _invert(weights: Tensor, points: Tensor) -> Tensor:
    """The particle in whose share of [0, 1) each point lies; never one of weight zero."""
    ends = weights.cumsum(1)
    found = torch.searchsorted(ends, points.expand(len(weights), -1).contiguous(), right=True)
    last = weights.shape[1] - 1 - (weights > 0).flip(1).long().argmax(1, keepdim=True)
    return torch.minimum(found, last)


def _floor(mass: Tensor) -> Tensor:
    """floor, forgiving rounding errors just below a whole number."""
    return (mass + 1e-12 * mass.clamp(min=1)).floor()


def _repeat(children: Tensor) -> Tensor:
    """Ancestors `(P, count)`, in order, of `children` `(P, N)`, `count` in every row."""
    rows, particles = children.shape
    numbers = torch.arange(particles).repeat(rows)
    return numbers.repeat_interleave(children.flatten()).unflatten(0, (rows, -1))


def _pair(children: Tensor, parts: Tensor, coins: Tensor, count: int) -> Tensor:
    """Round every `children + parts` up or down such that means are kept and rows sum to `count`.

    All `(P, N)`. One particle of each row is held, with what is left of its part, and meets the
    others in turn; of two that meet, one becomes whole and the other is held from then on.
    """
    held, part = torch.zeros(len(parts), 1, dtype=torch.int64), parts[:, :1]
    for other in range(1, parts.shape[1]):
        theirs = parts[:, other, None]
        gain, loss = torch.minimum(1 - part, theirs), torch.minimum(part, 1 - theirs)
        takes = coins[:, other, None] * (gain + loss) < loss  # held takes from other, or gives
        done = torch.where(takes, gain == 1 - part, loss == part)  # held is whole, not other
        up = torch.where(takes, held, other)
        children = children.scatter_add(1, up, (takes == done).long())
        change = torch.where(takes, gain, -loss)
        part = torch.where(done, theirs - change, part + change)
        held = torch.where(done, other, held)
    short = count - children.sum(1, keepdim=True)  # 0 or 1, but for rounding
    return children.scatter_add(1, held, short)
