"""How far a call went from the plain sampler: the KL of its choices, the norm of its noises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steer.core.sphere import norm_score
from steer.core.types import Name
from steer.search.starts import Starts


_FAR = 3.0


def noise_norms(starts: Starts, chosen: Sequence[Name], scheduler: Any) -> list[float | None]:
    """`norm_score` of the noise of every returned image; `None` where that is a plain draw."""
    scale = float(getattr(scheduler, "init_noise_sigma", 1.0))
    found = (starts.latents.get(name) if name in starts.changed else None for name in chosen)
    return [None if x is None else norm_score(x.double() / scale) for x in found]


def lines(events: Iterable[Mapping[str, Any]], prompt: int) -> list[str]:
    """A prompt's lines for a report; none where nothing was chosen or changed."""
    own = [e for e in events if e["event"] == "departure" and e["prompt"] == prompt]
    return [line for event in own for line in words(event["kl"], event["noise_norm"])]


def words(kl: float | None, norms: Sequence[float | None]) -> list[str]:
    """The KL of a prompt, and the norms of its noises, as lines."""
    told = (
        [] if not kl else [f"KL from the plain sampler: {kl:.2f} nats per image (upper estimate)"]
    )
    known = [value for value in norms if value is not None]
    if known:
        shown = ", ".join(f"{value:+.1f}" for value in known)
        far = any(abs(value) > _FAR for value in known)
        told.append(
            f"Norm of the initial noise: {shown} standard deviations from that of a draw"
            + (", unusual: the denoiser may answer it badly" if far else "")
        )
    return told
