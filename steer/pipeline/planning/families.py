"""The plans that are compared: best-of-N, short runs, pruning, drafts, guided or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations

from steer.core.costs import Costs
from steer.methods.guidance.guide import Guide
from steer.methods.selection.best_of_n import BestOfN
from steer.methods.selection.prune import Prune
from steer.pipeline.planning.kinds import Kind
from steer.search.method import Method


_KEEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def plans_of(kind: Kind, n: int, compute: float, costs: Costs) -> Iterator[Method]:
    """Every plan on pilots of a kind that `compute` plain calls pay for, each as wide as they pay.

    Args:
        kind: How the pilots were sampled.
        n: Particles recorded per prompt: no plan starts more.
        compute: The budget.
        costs: What a row, a decode, a score cost.
    """

    def guided(method: Method) -> Method:
        return method if kind.when is None else Guide(method, when=kind.when)

    def widest(plan: Callable[[int], Method], least: int) -> Iterator[Method]:
        def make(k: int) -> Method:
            return guided(plan(k))

        found = costs.most(lambda k: make(k).work(kind.count), compute, kind.count, least)
        method = make(min(found, n))
        if least <= n and costs.fits(method.work(kind.count), compute, kind.count):
            yield method

    if kind.strides is None or not kind.looks:
        yield from widest(lambda k: BestOfN(k, kind.strides), 1)
    for keep, at in _cuts(kind, n):
        plan = Prune(n, keep, at, kind.strides)
        yield from widest(lambda k, plan=plan: replace(plan, start=k), keep[0] + 1)


def _cuts(kind: Kind, n: int) -> Iterator[tuple[tuple[int, ...], tuple[float, ...]]]:
    """How many go on, and where: one cut or two; of drafts, the first where the strides end."""
    keeps = [k for k in _KEEPS if k < n]
    for places in (*combinations(kind.at, 1), *combinations(kind.at, 2)):
        if kind.strides is not None and places[0] != kind.at[0]:
            continue
        sizes = [(k,) for k in keeps] if len(places) == 1 else list(combinations(keeps[::-1], 2))
        for keep in sizes:
            yield keep, places
