"""What a decode and a score cost, seen before a plan is made with it."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from steer.core.costs import ROWS, Costs
from steer.core.errors import UnsupportedPipelineError
from steer.core.meter import Kind, Meter
from steer.core.shortage import is_shortage
from steer.core.types import Reward
from steer.driver.metering import Counted, is_countable
from steer.methods.default import FEWER_STEPS, Sampling
from steer.rewards.parts import parts_of
from steer.search.context import Context
from steer.search.decoding import fit


@dataclass(eq=False)
class Weights:
    """What a guided pipeline's calls have taught about what things cost.

    Attributes:
        counted: FLOPs of denoisers by the shapes of their arguments.
        sampling: How the latest planned call sampled.
        lane: The lane width that its populations had to be multiples of; `None` for none.
    """

    counted: Counted = field(default_factory=WeakKeyDictionary)
    sampling: Sampling = FEWER_STEPS
    lane: int | None = None
    _latest: MutableMapping[Kind, float] = field(default_factory=dict)
    _known: dict[tuple[Any, ...], MutableMapping[Kind, float]] = field(default_factory=dict)

    def meter(
        self, meter: Meter, pipe: Any, reward: Reward, latents: Tensor, previewer: Any = None
    ) -> None:
        """Let a call's meter know what calls of this pipeline, size and reward have counted.

        And of this decoder of previews.
        """
        parts = [*vars(pipe).values(), getattr(previewer, "module", None)]
        modules = [part for part in parts if isinstance(part, torch.nn.Module)]
        meter.counts = is_countable(modules)
        size = tuple(latents.shape[1:]), latents.dtype
        key = (type(pipe), *map(id, modules), id(reward), id(previewer), *size)
        meter.known = self._latest = self._known.setdefault(key, {})

    @property
    def costs(self) -> Costs:
        """What one of each costs by the latest call; rows alone where that is not known yet."""
        return _bounds(Meter(known=self._latest).costs)


def weigh(ctx: Context, latents: Tensor) -> Costs:
    """What one of each costs in FLOPs; in rows where those of the denoiser cannot be counted.

    Where a decode or a score was never seen, one row is decoded and scored for it.

    Args:
        ctx: Of the call; its meter knows what a row costs.
        latents: `(rows, *latent)`, as they stand in the loop.
    """
    meter = ctx.meter
    if meter.counts and meter.known.get("row") and "probe" not in meter.known:
        ctx.ledger.probes += 1
        found: dict[Kind, float] = {"probe": 0.0}
        with ctx.ledger.serving():
            _probe(ctx, latents[:1], Meter(known=found, counts=True))
        meter.known.update(found)
    return _bounds(meter.costs)


def _bounds(costs: Costs | None) -> Costs:
    """Backward passes as twice their forward passes, so that equal calls get equal plans."""
    if costs is None:
        return ROWS
    images = costs.preview + costs.score
    return replace(costs, row_backward=2 * costs.row, gradient=2 * images)


def _probe(ctx: Context, latents: Tensor, meter: Meter) -> None:
    """Decode and score a row; what cannot be decoded, or is not scored, costs nothing."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            with meter.count("decode", 1):
                images = ctx.model.decode(latents)
            parts_of(ctx.reward, images, ctx.prompts[:1])  # its features of the prompt, once
            with meter.count("score", 1):
                parts_of(ctx.reward, images, ctx.prompts[:1])
            if ctx.model.previewer is not None:
                fit(ctx.model, ctx.ledger, ctx.meter, latents)
                with meter.count("preview", 1):
                    ctx.model.decode(latents, by=ctx.model.previewer)
    except UnsupportedPipelineError:
        return
    except Exception as error:  # a reward may not like this picture; the search will tell
        if is_shortage(error):
            raise
