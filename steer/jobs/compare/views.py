"""What the page shows, as plain dataclasses; `panels` makes them from a comparison's results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """One reward of one arm: its mean, and how far it lies from the baseline's."""

    mean: str
    interval: str
    sort: float
    best: bool
    difference: str = ""
    verdict: str = ""
    """`up` or `down` where the interval of the difference leaves out nothing, else `even`."""


@dataclass(frozen=True)
class ArmView:
    """A row of the table."""

    name: str
    label: str
    colour: int
    baseline: bool
    how: str
    differs: str
    cells: tuple[Cell, ...]
    cost: Mapping[str, Any]
    diversity: str
    diversity_sort: float


@dataclass(frozen=True)
class Duel:
    """Prompts won, tied and lost against the baseline."""

    label: str
    colour: int
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class RewardView:
    """One reward's panel."""

    name: str
    optimised: bool
    scale: float
    digits: int
    quality: Markup
    forest: Markup
    duels: tuple[Duel, ...]
    matrix: tuple[tuple[str | None, ...], ...]
    """Share of prompts that the row's arm wins against the column's, ties counted as half."""
    heat: tuple[tuple[float, ...], ...]
    categories: tuple[tuple[str, int, tuple[tuple[str, bool], ...]], ...]
    protocol: tuple[tuple[str, tuple[tuple[str, bool], ...]], ...]


@dataclass(frozen=True)
class Shot:
    """An image of one arm for one prompt and seed; `best` marks the rewards that it leads in."""

    src: str
    width: int
    height: int
    small: bool
    scores: tuple[str, ...]
    best: tuple[bool, ...]


@dataclass(frozen=True)
class PromptView:
    """One prompt with every arm's images: `shots[seed][arm]`."""

    index: int
    text: str
    category: str
    spreads: tuple[float, ...]
    shots: tuple[tuple[Shot, ...], ...]


@dataclass(frozen=True)
class PageView:
    """The page."""

    title: str
    when: str
    lede: str
    arms: tuple[ArmView, ...]
    rewards: tuple[RewardView, ...]
    diversity: str
    prompts: tuple[PromptView, ...]
    seeds: tuple[int, ...]
    asked: int
    images: int
    seconds: float
    warnings: tuple[str, ...]
    configuration: Mapping[str, Any]
    versions: Mapping[str, str]
    command: str
    headlines: tuple[tuple[str, str, str, str], ...] = field(default=())
    """Name, from, to and a remark, one per tile."""
