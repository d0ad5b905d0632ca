"""Scores of particles: decoded, asked part by part, combined per prompt, remembered and logged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from steer.core.errors import NotFiniteError, RewardError
from steer.core.ledger import Ledger
from steer.core.meter import Meter
from steer.core.rows import rows_by_prompt
from steer.core.trace import Trace
from steer.core.types import Name, Population, Reward, Step
from steer.driver.decoding.nan import nan_rows, without_nan
from steer.driver.safety import Check
from steer.rewards.frames import count_images
from steer.rewards.parts import Group, Parts, combine_parts, is_relative, parts_of
from steer.search.finished import Finished
from steer.search.glimpses import Glimpses
from steer.search.picks.picking import Picking
from steer.search.picks.ranks import Best


_PREVIEW = 96  # longest side of the previews that a trace keeps


@dataclass(eq=False)
class Judging:
    """The reward of a call, and every score that it gave.

    Attributes:
        reward: What is optimised.
        prompts: One text per prompt, for the reward.
        ledger, trace: The books.
        keeps_base: Whether the final image of particle 0 is kept, for judges.
        check: The pipeline's safety checker; final images are scored as it shows them.
        finals: Final reward per particle, where it was scored; of a reward that compares
            candidates, among all finished ones of the prompt so far.
        flagged: Particles whose final image the safety checker flagged, or that is NaN; they rank
            last.
        nan: Particles whose final image has NaN pixels; it was not scored.
        base: Final image or video of particle 0 per prompt, where it was decoded.
        glimpses: What final images looked like.
        picking: Which candidates are returned.
        meter: What one of each costs in FLOPs.
        asked: The step of the latest denoiser call, for errors.
    """

    reward: Reward
    prompts: list[str]
    ledger: Ledger
    trace: Trace
    keeps_base: bool = False
    check: Check | None = None
    finals: dict[Name, float] = field(default_factory=dict)
    flagged: set[Name] = field(default_factory=set)
    nan: set[Name] = field(default_factory=set)
    base: dict[int, Tensor] = field(default_factory=dict)
    asked: Step | None = None
    meter: Meter = field(default_factory=Meter)
    glimpses: Glimpses = field(default_factory=Glimpses)
    picking: Picking = field(default_factory=Picking)
    _watchers: list[Callable[[Population, Tensor], None]] = field(default_factory=list)
    _finished: Finished = field(default_factory=Finished)

    def score(self, images: Tensor, ids: Sequence[Name], reward: Reward | None = None) -> Tensor:
        """The reward of images for their particles' prompts, `(rows,)` float32."""
        return self.combine(self.parts(images, ids, reward), ids, reward)

    def parts(self, images: Tensor, ids: Sequence[Name], reward: Reward | None = None) -> Parts:
        """Scores of images by part of the reward, `(rows,)` each: what may be asked in pieces.

        Whatever the reward itself raises goes through as it is, with a note (PEP 678) that says
        for which prompts and particles, and after which step, it was called.

        Raises:
            RewardError: Not one score per image, or an image that is not finite.
        """
        counting: AbstractContextManager[None] = nullcontext()
        if reward is None:
            reward = self.reward
            self.ledger.reward_calls += count_images(reward, images)
            counting = self.meter.count("score", len(ids))
        with self.ledger.scoring(), self._noting(reward, ids):
            try:
                with counting:
                    return parts_of(reward, images, [self.prompts[prompt] for prompt, _ in ids])
            except NotFiniteError as error:
                raise self.nan_error(ids[error.index]) from error

    def combine(self, parts: Parts, ids: Sequence[Name], reward: Reward | None = None) -> Tensor:
        """Scores by part as one reward per particle, `(rows,)` float32, prompt by prompt.

        Raises:
            RewardError: A reward that is not finite; prompt and particle are named.
        """
        reward = self.reward if reward is None else reward
        groups = [Group(self.prompts[prompt], prompt) for prompt, _ in ids]
        with self.ledger.clock("reward"), self._noting(reward, ids):
            scores = combine_parts(reward, parts, groups).float()
        for row, value in enumerate(scores.detach().tolist()):
            if not math.isfinite(value):
                broken = [k for k, part in parts.items() if not bool(part[row].isfinite().all())]
                part = f" (its part {broken[0]!r})" if len(parts) > 1 and broken else ""
                raise RewardError(
                    f"reward {reward.name!r}{part} returned {value} for {self._particle(ids[row])}"
                    f"{self._when()}: rewards must be finite"
                )
        return scores

    def evaluate(
        self,
        population: Population,
        step: Step | None,
        chunk: int,
        show: Callable[[Population], Tensor],
    ) -> Tensor:
        """Decode and score clean latents, `chunk` rows at a time; see `Context.evaluate`.

        Images with NaN pixels are not scored, and get less than any other of their prompt.

        Raises:
            RewardError: All previews of a prompt are NaN.
        """
        known = self.finals if step is None else {}
        todo = [row for row, name in enumerate(population.ids) if name not in known]
        part, pieces, whole = population.take(todo), [], []
        for start in range(0, len(part), chunk):
            ids = part.ids[start : start + chunk]
            with torch.no_grad():
                images = show(Population(part.x[start : start + chunk], ids))
                if step is None and self.check is not None:
                    images, flags = self.check(images)
                    self.flag(ids, flags)
                rows = [row for row, nan in enumerate(nan_rows(images)) if not nan]
                whole += [start + row for row in rows]
                if not rows:
                    continue
                if len(rows) < len(ids):
                    images, ids = images[rows], tuple(ids[row] for row in rows)
                pieces.append(self.parts(images, ids))
            self._keep(images, ids, step)
        scored = part.take(whole)
        self._tell_nan(part, scored, step)
        if pieces:
            scores = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
            values = self._note(scored.ids, scores, step)
            if step is not None:
                return without_nan(values, whole, [prompt for prompt, _ in part.ids])
            for watch in self._watchers:
                watch(scored, values)
        everyone = [self.final(name) for name in population.ids]
        return torch.tensor(everyone, device=population.x.device)

    def final(self, name: Name) -> float:
        """A finished particle's reward; that of its prompt's worst where its image is NaN."""
        if name in self.nan:
            others = [v for n, v in self.finals.items() if n[0] == name[0] and n not in self.nan]
            self.finals[name] = min(others, default=0.0)
        return self.finals[name]

    def _tell_nan(self, part: Population, scored: Population, step: Step | None) -> None:
        """Note whose images are NaN; RewardError where no preview of a prompt is left."""
        there = set(scored.ids)
        lost = [name for name in part.ids if name not in there]
        for prompt, rows in rows_by_prompt(lost).items():
            if step is not None and prompt not in scored.prompts:
                raise self.nan_error(lost[rows[0]])
            self.log_nan(step, [lost[row] for row in rows])

    def log_nan(self, step: Step | None, names: Sequence[Name]) -> None:
        """Note particles of one prompt whose images have NaN pixels; final ones rank last."""
        particles = [particle for _, particle in names]
        at = None if step is None else step.index
        self.trace.log("nan", step=at, prompt=names[0][0], particle=particles)
        if step is None:
            self.flagged.update(names)
            self.nan.update(names)
            self.finals |= {name: 0.0 for name in names if name not in self.finals}

    def nan_error(self, name: Name) -> RewardError:
        """The error for an image with NaN pixels, where nothing better is left."""
        return RewardError(
            f"{self._particle(name)}: its decoded image has NaN pixels; where the VAE runs in half "
            "precision, decode in float32 (pipe.vae.to(torch.float32))"
        )

    @contextmanager
    def watch(self, follow: Callable[[Population, Tensor], None]) -> Iterator[None]:
        """`follow(population, rewards)` is called with everything that is finished meanwhile."""
        self._watchers.append(follow)
        try:
            yield
        finally:
            self._watchers.remove(follow)

    def flag(self, ids: Sequence[Name], flags: Sequence[bool]) -> None:
        """Note whose final images the safety checker flagged."""
        found = [name for name, flag in zip(ids, flags, strict=True) if flag]
        for prompt, rows in rows_by_prompt(found).items():
            self.trace.log("flagged", prompt=prompt, particle=[found[row][1] for row in rows])
        self.flagged.update(found)

    def rank(self, name: Name) -> tuple[bool, float]:
        """Sort key of a finished particle, best first: those that were flagged come last."""
        return name in self.flagged, -self.final(name)

    def top(self, ids: Sequence[Name], values: Sequence[float], count: int) -> list[int]:
        """Rows of the `count` best of every prompt, best first; flagged particles come last."""
        return self.picking.rows(ids, values, self.flagged, count, pick=Best())

    def pick(self, ids: Sequence[Name], values: Sequence[float], count: int) -> list[int]:
        """Rows of the `count` of every prompt that the call's pick chooses; flagged come last."""
        return self.picking.rows(ids, values, self.flagged, count)

    def record(self, images: Tensor, ids: Sequence[Name]) -> None:
        """Score finished images and remember it."""
        parts = self.parts(images, ids)
        self._keep(images, ids, None)
        self._note(ids, parts, None)

    def _note(self, ids: Sequence[Name], parts: Parts, step: Step | None) -> Tensor:
        """Combine scores by part, and log them prompt by prompt."""
        if step is None and is_relative(self.reward):
            scores = self._among_all(ids, parts)
        else:
            scores = self.combine(parts, ids)
        values = scores.tolist()
        if step is None:
            self.finals.update(zip(ids, values, strict=True))
        lists = {k: part.tolist() for k, part in parts.items() if part.ndim == 1}
        shown = {"parts": lists} if len(parts) > 1 and lists else {}
        for prompt, rows in rows_by_prompt(ids).items():
            self.trace.log(
                "score",
                step=None if step is None else step.index,
                prompt=prompt,
                particle=[ids[row][1] for row in rows],
                reward=[values[row] for row in rows],
                preview=step is not None,
                **{
                    key: {name: [part[row] for row in rows] for name, part in lists.items()}
                    for key, lists in shown.items()
                },
            )
        return scores

    def _among_all(self, ids: Sequence[Name], parts: Parts) -> Tensor:
        """Rewards of `ids` among all finished particles of their prompts, those updated too."""
        device = next(iter(parts.values())).device
        prompts = {prompt for prompt, _ in ids}
        self._finished.add(ids, parts)
        names, whole = self._finished.of(prompts, device)
        self.finals.update(zip(names, self.combine(whole, names).tolist(), strict=True))
        for row in self.trace.of("score"):
            if not row["preview"] and row["prompt"] in prompts:
                row["reward"] = [self.finals[row["prompt"], k] for k in row["particle"]]
        return torch.tensor([self.finals[name] for name in ids], device=device)

    def _keep(self, images: Tensor, ids: Sequence[Name], step: Step | None) -> None:
        """Small previews for the trace, the base image for the judges, features for the pick."""
        self.picking.look(images, ids, step)
        if step is None and self.keeps_base:
            self.base |= {p: images[row] for row, (p, k) in enumerate(ids) if k == 0}
        if step is None:
            self.glimpses.keep(images, ids)
        if not self.trace.keep_images:
            return
        if images.ndim == 5:  # of a video, its middle frame
            images = images[:, images.shape[1] // 2]
        scale = min(1.0, _PREVIEW / max(images.shape[-2:]))
        if scale < 1:
            images = F.interpolate(images, scale_factor=scale, mode="area")
        small = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        at = -1 if step is None else step.index
        self.trace.images |= {(p, k, at): small[row] for row, (p, k) in enumerate(ids)}

    def forget(self) -> None:
        """Drop all final scores: the images that were scored are not those that are returned."""
        self.finals.clear()
        self._finished.clear()
        self.glimpses.clear()
        self.base.clear()

    @contextmanager
    def _noting(self, reward: Reward, ids: Sequence[Name]) -> Iterator[None]:
        """Add to an error of the reward's own what was being scored."""
        try:
            yield
        except Exception as error:
            who = "; ".join(
                f"prompt {prompt} ({self.prompts[prompt]!r}), particle "
                f"{_few([str(ids[row][1]) for row in rows])}"
                for prompt, rows in rows_by_prompt(ids).items()
            )
            error.add_note(f"reward {reward.name!r} was scoring {who}{self._when()}")
            raise

    def _when(self) -> str:
        """Where the search was, by its last denoiser call."""
        step = self.asked
        if step is None:
            return ""
        return f", after the denoiser's step {step.index + 1} of {step.count}"

    def _particle(self, name: Name) -> str:
        prompt, particle = name
        return f"prompt {prompt} ({self.prompts[prompt]!r}), particle {particle}"


def _few(names: Sequence[str], most: int = 8) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
