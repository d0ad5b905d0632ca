"""The tree of one prompt: where to expand next, what its states are worth, which leaf to take."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer.core.types import Name


_NOISELESS = 1e-5  # rewards that differ by less than this share of their size are one reward


@dataclass(frozen=True)
class Policy:
    """How a tree is searched.

    Attributes:
        lam: Inverse temperature, per standard deviation of the rewards where `standardise`.
        explore: Weight of the exploration bonus, in the units of the values.
        sample: Draw children by value and bonus, rather than take the best.
        widen: (C, alpha): a state visited N times has at most about C * N^alpha children.
        standardise: Measure rewards in standard deviations.
    """

    lam: float
    explore: float
    sample: bool
    widen: tuple[float, float]
    standardise: bool


@dataclass(eq=False, slots=True)
class Node:
    """A state that some rollout passed through.

    Attributes:
        depth: 0 is the root, whose children are reached from fresh noise; the deepest are leaves.
        name: The rollout that made it.
        parent: Whose child it is.
        x: Latents `(*latent)`; clean ones for a leaf. `None` for the root.
        output: The denoiser's output there; `None` for the root and for leaves.
        children: States reached from it.
        visits: Rollouts through it, those on their way included.
        growing: Children on their way.
        energy: lam times the soft value.
    """

    depth: int
    name: Name
    parent: Node | None = None
    x: Tensor | None = None
    output: Tensor | None = None
    children: list[Node] = field(default_factory=list)
    visits: int = 0
    growing: int = 0
    energy: float = 0.0

    def child(self, name: Name, x: Tensor, output: Tensor | None = None) -> Node:
        """A new child, which its rollout visits."""
        node = Node(self.depth + 1, name, self, x, output, visits=1)
        self.children.append(node)
        return node


class Grove:
    """All rollouts of one prompt as a tree.

    Args:
        prompt: Which.
        rows: Denoiser rows that an expansion at every depth costs; falling. Its length is the
            number of depths that branch.
        seed: Of the choices that are made at random.
    """

    def __init__(self, prompt: int, rows: Sequence[int], seed: int) -> None:
        self.prompt, self.rows = prompt, list(rows)
        self.root = Node(0, (prompt, -1))
        self.leaves: list[Node] = []
        self.drawn = self.started = self.spent = 0
        self.spread = 0.0
        self._random = random.Random(seed)
        self._nodes: list[Node] = [self.root]

    def remember(self, node: Node) -> Node:
        """Take in a new node; parents come before their children."""
        self._nodes.append(node)
        if node.depth == len(self.rows):
            self.leaves.append(node)
        return node

    def pick(self, policy: Policy, first: int, only: int | None = None) -> Node:
        """Where to expand next: descend while states have children enough.

        The deepest states that branch always take another child, as a leaf has nothing further to
        give. Visits count at once, so that picks of one round differ (Liu et al. 2020, "Watch the
        unobserved", arXiv:1810.11755). With `only` a state takes a child more than it has room for
        where none beside it has room.

        Args:
            policy: How to search.
            first: The lowest depth that may be expanded.
            only: The one depth that may be.
        """
        node = self.root
        while True:
            node.visits += 1
            if node.depth == only or (
                only is None and node.depth >= first and self._room(node, policy)
            ):
                node.growing += 1
                return node
            node = self._choose(node, policy, only)

    def back_up(self, policy: Policy, rewards: Mapping[Name, float]) -> None:
        """Soft values of all states from the rewards of their leaves, leaves first.

        v(state) = 1/lam log mean exp(lam v(child)) (soft Bellman backup, arXiv:2506.20701).
        """
        values = [rewards[leaf.name] for leaf in self.leaves]
        lam = policy.lam
        if policy.standardise:
            lam = lam / self.spread if self._widen_spread(values) else 0.0
        for leaf, value in zip(self.leaves, values, strict=True):
            leaf.energy = lam * value
        for node in reversed(self._nodes):
            if node.children:
                node.energy = log_mean_exp([child.energy for child in node.children])

    def log_shares(self) -> Tensor:
        """Log-probability of every leaf, sampling children by exp(lam v) from the root down.

        `(leaves,)` float64, in the order of `leaves`.
        """
        shares: dict[int, float] = {id(self.root): 0.0}
        for node in self._nodes:
            total = node.energy + math.log(max(len(node.children), 1))
            for child in node.children:
                shares[id(child)] = shares[id(node)] + child.energy - total
        return torch.tensor([shares[id(leaf)] for leaf in self.leaves], dtype=torch.float64)

    def _widen_spread(self, values: Sequence[float]) -> float:
        """The largest standard deviation of the rewards so far; 0 while all are equal."""
        if len(values) > 1:
            now = float(torch.tensor(values, dtype=torch.float64).std())
            if now > _NOISELESS * max(map(abs, values)):
                self.spread = max(self.spread, now)
        return self.spread

    def _room(self, node: Node, policy: Policy, coming: int = 0) -> bool:
        """Whether it may take another child, when so many more visits have come."""
        if node.depth == len(self.rows) - 1 or not node.children:
            return True
        factor, power = policy.widen
        return len(node.children) + node.growing < factor * (node.visits + coming) ** power

    def _choose(self, node: Node, policy: Policy, only: int | None) -> Node:
        """DTS*: the best by value and bonus. DTS: one at random by exp(lam (value + bonus))."""
        log_visits, bonus = math.log(node.visits), policy.lam * policy.explore
        children = node.children
        if node.depth + 1 == only:
            children = [c for c in children if self._room(c, policy, 1)] or children
        energies = [c.energy + bonus * math.sqrt(log_visits / c.visits) for c in children]
        top = max(energies)
        if not policy.sample:
            return children[energies.index(top)]
        weights = [math.exp(energy - top) for energy in energies]
        return self._random.choices(children, weights)[0]


def log_mean_exp(values: Sequence[float]) -> float:
    """Log of the mean of exp(values)."""
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values) / len(values))
