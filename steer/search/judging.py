"""Scores of particles: decoded, asked part by part, combined per prompt, remembered and logged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from steer.core.errors import NotFiniteError, RewardError
from steer.core.ledger import Ledger
from steer.core.rows import rows_by_prompt
from steer.core.trace import Trace
from steer.core.types import Name, Population, Reward, Step
from steer.driver.safety import Check
from steer.rewards.frames import count_images
from steer.rewards.parts import Parts, combine_parts, is_relative, parts_of


_SAME = 0.004  # of a mean over an area; pixels are rounded to 8 bits
_SAME_IN_HALF = 0.03  # half precision depends on the batch
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
        flagged: Particles whose final image the safety checker flagged; they rank last.
        base: Final image or video of particle 0 per prompt, where it was decoded.
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
    base: dict[int, Tensor] = field(default_factory=dict)
    asked: Step | None = None
    _glimpses: dict[Name, Tensor] = field(default_factory=dict)
    _watchers: list[Callable[[Population, Tensor], None]] = field(default_factory=list)
    _finished: dict[Name, dict[str, float]] = field(default_factory=dict)

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
        if reward is None:
            reward = self.reward
            self.ledger.reward_calls += count_images(reward, images)
        with self.ledger.clock("reward"), self._noting(reward, ids):
            try:
                return parts_of(reward, images, [self.prompts[prompt] for prompt, _ in ids])
            except NotFiniteError as error:
                raise RewardError(
                    f"{self._particle(ids[error.index])}: its decoded image has NaN pixels; where "
                    "the VAE runs in half precision, decode in float32 (pipe.vae.to(torch.float32))"
                ) from error

    def combine(self, parts: Parts, ids: Sequence[Name], reward: Reward | None = None) -> Tensor:
        """Scores by part as one reward per particle, `(rows,)` float32, prompt by prompt.

        Raises:
            RewardError: A reward that is not finite; prompt and particle are named.
        """
        reward = self.reward if reward is None else reward
        with self._noting(reward, ids):
            scores = combine_parts(reward, parts, [prompt for prompt, _ in ids]).float()
        for row, value in enumerate(scores.detach().tolist()):
            if not math.isfinite(value):
                broken = [k for k, part in parts.items() if not math.isfinite(float(part[row]))]
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
        """Decode and score clean latents, `chunk` rows at a time; see `Context.evaluate`."""
        known = self.finals if step is None else {}
        todo = [row for row, name in enumerate(population.ids) if name not in known]
        part, pieces = population.take(todo), []
        for start in range(0, len(part), chunk):
            ids = part.ids[start : start + chunk]
            with torch.no_grad():
                images = show(Population(part.x[start : start + chunk], ids))
                if step is None and self.check is not None:
                    images, flags = self.check(images)
                    self.flag(ids, flags)
                pieces.append(self.parts(images, ids))
            self._keep(images, ids, step)
        if pieces:
            scores = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
            values = self._note(part.ids, scores, step)
            if step is not None:
                return values
            for watch in self._watchers:
                watch(part, values)
        everyone = [self.finals[name] for name in population.ids]
        return torch.tensor(everyone, device=population.x.device)

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
        return name in self.flagged, -self.finals[name]

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
        shown = {"parts": {k: part.tolist() for k, part in parts.items()}} if len(parts) > 1 else {}
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
        lists = {name: part.tolist() for name, part in parts.items()}
        for row, name in enumerate(ids):
            self._finished[name] = {key: values[row] for key, values in lists.items()}
        prompts = {prompt for prompt, _ in ids}
        names = sorted(name for name in self._finished if name[0] in prompts)
        whole = {key: torch.tensor([self._finished[n][key] for n in names]) for key in lists}
        self.finals.update(zip(names, self.combine(whole, names).tolist(), strict=True))
        for row in self.trace.of("score"):
            if not row["preview"] and row["prompt"] in prompts:
                row["reward"] = [self.finals[row["prompt"], k] for k in row["particle"]]
        device = next(iter(parts.values())).device
        return torch.tensor([self.finals[name] for name in ids], device=device)

    def _keep(self, images: Tensor, ids: Sequence[Name], step: Step | None) -> None:
        """Small previews for the trace, and the base image for the judges."""
        if step is None and self.keeps_base:
            self.base |= {p: images[row] for row, (p, k) in enumerate(ids) if k == 0}
        if step is None and isinstance(images, Tensor):
            self._glimpses |= dict(zip(ids, _glimpse(images), strict=True))
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

    def agrees(self, images: Tensor, ids: Sequence[Name], exact: bool) -> bool:
        """Whether these are the images that were scored as the particles' final ones.

        Args:
            images: `(B, 3, H, W)`, perhaps rounded to 8 bits.
            ids: The particle of each.
            exact: Whether the pipeline computes in float32 at least.
        """
        known = [row for row, name in enumerate(ids) if name in self._glimpses]
        if not known or not isinstance(images, Tensor):
            return True
        scored = torch.stack([self._glimpses[ids[row]] for row in known])
        gap = (_glimpse(images)[known].to(scored) - scored).abs().max()
        return bool(gap < (_SAME if exact else _SAME_IN_HALF))

    def forget(self) -> None:
        """Drop all final scores: the images that were scored are not those that are returned."""
        self.finals.clear()
        self._finished.clear()
        self._glimpses.clear()
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


def _glimpse(images: Tensor) -> Tensor:
    """`(B, 3, 8, 8)` of images, or of the middle frame of videos, by area."""
    if images.ndim == 5:
        images = images[:, images.shape[1] // 2]
    return F.adaptive_avg_pool2d(images.detach().float(), 8)


def _few(names: Sequence[str], most: int = 8) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
