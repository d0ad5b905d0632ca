"""What the report shows: plain dataclasses that every page (run, demo, comparison) shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from steer.core.spent import Spent
from steer.pipeline.report import genealogy


SMALL = 160
"""Images of at most this many pixels a side are shown enlarged, pixel by pixel."""

_TARGET, _THUMB = 224, 128
_COUNTS = (
    "denoiser_rows",
    "denoiser_calls",
    "backward_rows",
    "decodes",
    "previews",
    "reward_calls",
)


@dataclass(frozen=True)
class VerdictView:
    """What the oracle said of one image."""

    fraction: float
    all_met: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageView:
    """An image on the page; `width`, `height` in its own pixels, shown `scale` times as large."""

    src: str
    width: int
    height: int
    alt: str
    reward: float | None = None
    verdict: VerdictView | None = None
    file: str | None = None

    @property
    def small(self) -> bool:
        """Whether it is shown enlarged, pixel by pixel."""
        return max(self.width, self.height) <= SMALL

    @property
    def scale(self) -> int:
        """The whole number of screen pixels per image pixel."""
        return max(1, _TARGET // max(self.width, self.height)) if self.small else 1

    @property
    def thumb(self) -> int:
        """Its width on the contact sheet, again whole pixels when it is small."""
        largest = max(self.width, self.height)
        return self.width * max(1, _THUMB // largest) if self.small else _THUMB


_KINDS = {
    "row": "denoiser",
    "row_backward": "denoiser, backward",
    "decode": "decoder",
    "preview": "preview decoder",
    "score": "reward",
    "gradient": "reward and decoder, backward",
}


@dataclass(frozen=True)
class CostView:
    """A ledger for people; `plain_rows`, `plain_flops` are what the plain call would have spent."""

    denoiser_rows: int
    plain_rows: int
    denoiser_calls: int
    cfg_rows: int
    backward_rows: int
    decodes: int
    reward_calls: int
    seconds: dict[str, float]
    peak_bytes: int
    previews: int = 0
    remote: Spent = field(default_factory=Spent)
    flops: dict[str, float] = field(default_factory=dict)
    plain_flops: float = 0.0

    @property
    def multiple(self) -> float:
        """What was spent, in plain calls: by FLOPs, else by rows (a backward pass is two)."""
        if self.plain_flops:
            return sum(self.flops.values()) / self.plain_flops
        return (self.denoiser_rows + 2 * self.backward_rows) / max(self.plain_rows, 1)

    @property
    def shares(self) -> list[tuple[str, float]]:
        """What of `multiple` went where, largest first; empty where FLOPs were not counted."""
        if not self.plain_flops:
            return []
        spent = {_KINDS[kind]: value / self.plain_flops for kind, value in self.flops.items()}
        return sorted(spent.items(), key=lambda item: -item[1])

    @property
    def parts(self) -> list[tuple[str, float]]:
        """Seconds by part, the denoiser's share being what is left of the total."""
        named = {k: v for k, v in self.seconds.items() if k != "total"}
        rest = max(self.seconds.get("total", 0.0) - sum(named.values()), 0.0)
        return [("denoiser and rest", rest), *named.items()]

    @property
    def total_seconds(self) -> float:
        """Wall time of the guided calls."""
        return self.seconds.get("total", sum(self.seconds.values()))

    @classmethod
    def of(cls, ledger: Mapping[str, Any], plain_rows: int) -> CostView:
        """The view of one `Ledger.to_dict()`."""
        counts = {name: int(ledger.get(name) or 0) for name in _COUNTS}
        return cls(
            plain_rows=plain_rows,
            cfg_rows=int(ledger.get("cfg_rows") or 1),
            seconds={k: float(v) for k, v in (ledger.get("seconds") or {}).items()},
            peak_bytes=int(ledger.get("peak_bytes") or 0),
            remote=Spent(**(ledger.get("remote") or {})),
            flops={k: float(v) for k, v in (ledger.get("flops") or {}).items()},
            plain_flops=float(ledger.get("plain_flops") or 0),
            **counts,
        )

    @classmethod
    def sum(cls, costs: Sequence[CostView]) -> CostView:
        """All costs together; the peak is the largest one."""
        parts = dict.fromkeys(part for cost in costs for part in cost.seconds)
        kinds = dict.fromkeys(kind for cost in costs for kind in cost.flops)
        all_counted = all(cost.plain_flops for cost in costs)
        names, remote = (*_COUNTS, "plain_rows"), Spent()
        for cost in costs:
            remote.add(cost.remote)
        counts = {name: sum(getattr(cost, name) for cost in costs) for name in names}
        return cls(
            cfg_rows=max((c.cfg_rows for c in costs), default=1),
            seconds={part: sum(c.seconds.get(part, 0.0) for c in costs) for part in parts},
            peak_bytes=max((c.peak_bytes for c in costs), default=0),
            remote=remote,
            flops={kind: sum(c.flops.get(kind, 0.0) for c in costs) for kind in kinds},
            plain_flops=sum(c.plain_flops for c in costs) if all_counted else 0.0,
            **counts,
        )


@dataclass(frozen=True)
class JudgeView:
    """A reward that nobody optimised: the base image's score beside the guided one's."""

    name: str
    base: float | None
    guided: float


@dataclass(frozen=True)
class PromptView:
    """One prompt: the plain call's image beside the guided ones, and how they were found.

    Attributes:
        lines: Where the chosen particles come from, where they have ancestors; how far that is.
        notes: What a reader should know of the call: a budget that ended it, memory that was short.
    """

    index: int
    prompt: str
    seed: int | None
    base: ImageView | None
    guided: tuple[ImageView, ...]
    accepted: bool | None
    judges: tuple[JudgeView, ...]
    blocks: tuple[genealogy.Block, ...]
    plot: Markup
    cost: CostView
    steps: int
    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether the plain call's image won."""
        return self.base is not None and self.base.src == self.guided[0].src

    @property
    def gain(self) -> float | None:
        """Reward of the best guided image above the plain call's."""
        best = self.guided[0].reward if self.guided else None
        if best is None or self.base is None or self.base.reward is None:
            return None
        return best - self.base.reward


@dataclass(frozen=True)
class RunView:
    """A page: what was asked, the numbers, the prompts, and how to do it again."""

    title: str
    kind: str
    status: str
    reward: str
    prompts: tuple[PromptView, ...]
    asked: int
    cost: CostView
    configuration: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    when: str = ""

    @property
    def reward_means(self) -> tuple[float | None, float | None]:
        """Mean reward of the base images and of the best guided ones, over prompts with both."""
        pairs = [(p.base.reward, p.guided[0].reward) for p in self.prompts if p.base]
        both = [(b, g) for b, g in pairs if b is not None and g is not None]
        if not both:
            best = [p.guided[0].reward for p in self.prompts]
            return None, _mean([g for g in best if g is not None])
        return _mean([b for b, _ in both]), _mean([g for _, g in both])

    @property
    def highlight(self) -> int | None:
        """Index of the prompt that gained most."""
        ranked = sorted(self.prompts, key=lambda p: p.gain or 0.0)
        return ranked[-1].index if ranked else None

    @property
    def all_met(self) -> tuple[int | None, int, int] | None:
        """Oracle: base images and guided images with every constraint met, and of how many."""
        judged = [p for p in self.prompts if p.guided[0].verdict]
        if not judged:
            return None
        with_base = [p.base.verdict for p in judged if p.base and p.base.verdict]
        base = sum(v.all_met for v in with_base) if len(with_base) == len(judged) else None
        met = sum(p.guided[0].verdict.all_met for p in judged if p.guided[0].verdict)
        return base, met, len(judged)

    @property
    def judges(self) -> tuple[JudgeView, ...]:
        """Each held-out judge's means over the prompts."""
        names = dict.fromkeys(judge.name for p in self.prompts for judge in p.judges)
        found = []
        for name in names:
            rows = [j for p in self.prompts for j in p.judges if j.name == name]
            base = [j.base for j in rows if j.base is not None]
            mean = _mean(base) if len(base) == len(rows) else None
            found.append(JudgeView(name, mean, _mean([j.guided for j in rows]) or 0.0))
        return tuple(found)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
