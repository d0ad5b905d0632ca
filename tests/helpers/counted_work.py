"""Work counted at the models themselves, independently of the ledger; and a reward with a slope."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from families import redness

from steer.rewards.function import FunctionReward


reddish = FunctionReward(redness, name="reddish", differentiable=True, needs_prompt=False)
"""Differentiable: the mean of the red channel."""


@contextmanager
def counting(pipe: Any) -> Iterator[SimpleNamespace]:
    """Rows through the denoiser (guidance doubles them) and latents through the decoder."""
    seen = SimpleNamespace(rows=0, calls=0, decodes=0)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer

    forward, own = denoiser.forward, pipe.vae.decode

    @functools.wraps(forward)  # inside of what steer puts around it
    def counted(*args: Any, **kwargs: Any) -> Any:
        x: Any = (
            args[0] if args else kwargs.get("hidden_states", kwargs.get("sample", kwargs.get("x")))
        )
        seen.rows, seen.calls = seen.rows + len(x), seen.calls + 1
        return forward(*args, **kwargs)

    def decode(z: Any, *args: Any, **kwargs: Any) -> Any:
        seen.decodes += len(z)
        return own(z, *args, **kwargs)

    object.__setattr__(pipe.vae, "decode", decode)
    denoiser.forward = counted
    try:
        yield seen
    finally:
        del denoiser.forward
        object.__delattr__(pipe.vae, "decode")


def agrees(seen: SimpleNamespace, report: Any) -> bool:
    """Whether the ledger says what was seen, for a call with latent output."""
    ledger = report.ledger
    made = ledger.denoiser_rows + ledger.checked_rows
    rows = seen.rows in (made, made * ledger.cfg_rows)
    return rows and seen.decodes == ledger.decodes == ledger.reward_calls
