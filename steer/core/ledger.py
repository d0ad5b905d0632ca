"""What a call cost: denoiser rows, decodes, reward calls, backward passes, seconds, peak bytes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch

from steer.core.spent import Spent, billing


@dataclass
class Ledger:
    """Counts of one guided call.

    Attributes:
        denoiser_calls: Denoiser calls, one per step of the pipeline's loop.
        denoiser_rows: Latents evaluated, once for every denoiser of a blend; padding counts where
            the denoiser's batch has any.
        cfg_rows: Rows of the denoiser's batch per latent: 2 with classifier-free guidance, else 1.
        checked_rows: Latents evaluated to see that narrower batches are answered alike, once for
            every denoiser and size of a batch; no part of `equivalent_rows`.
        backward_rows: Latents differentiated through the denoiser; each counts as two rows more.
        decodes: Latents decoded to images by steer (the pipeline's own final decode included); a
            video counts once.
        previews: Latents shown by another decoder than the pipeline's own (`guided(preview=...)`);
            no part of `decodes`.
        reward_calls: Images scored; of videos, frames.
        gradients: Images whose reward was differentiated through reward and decoder.
        probes: Images decoded and scored to see what that costs, once for every pipeline, size and
            reward; no part of what was spent.
        remote: What servers of rewards were asked, by judges too: requests, scores that were known
            already, tokens read and written.
        flops: Floating-point operations by kind: of denoiser rows, decodes, previews, scores and
            backward passes; empty where they could not be counted.
        plain_flops: Those of the plain call, its decode included.
        seconds: Wall time by part: total, decode, preview, reward.
        peak_bytes: Peak device memory on CUDA, peak resident set on the CPU.
    """

    denoiser_calls: int = 0
    denoiser_rows: int = 0
    cfg_rows: int = 1
    checked_rows: int = 0
    backward_rows: int = 0
    decodes: int = 0
    previews: int = 0
    reward_calls: int = 0
    gradients: int = 0
    probes: int = 0
    remote: Spent = field(default_factory=Spent)
    flops: dict[str, float] = field(default_factory=dict)
    plain_flops: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0

    @property
    def equivalent_rows(self) -> int:
        """Denoiser-row equivalents: a backward pass counts as two rows."""
        return self.denoiser_rows + 2 * self.backward_rows

    @contextmanager
    def clock(self, part: str) -> Iterator[None]:
        """Add the wall time of the block to `seconds[part]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Rewards are asked inside: add the time to `seconds["reward"]`, requests to `remote`."""
        with self.clock("reward"), self.serving():
            yield

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Add to `remote` what servers are asked inside."""
        with billing() as spent:
            try:
                yield
            finally:
                self.remote.add(spent)

    def read_peak(self) -> None:
        """Store the peak memory so far."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self.peak_bytes = int(torch.cuda.max_memory_allocated())
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            self.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def add(self, other: Ledger) -> None:
        """Add what an attempt of the same call cost that ran out of memory."""
        counts = ("denoiser_calls", "denoiser_rows", "checked_rows", "backward_rows")
        counts += ("decodes", "previews", "reward_calls", "gradients", "probes")
        for name in counts:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.remote.add(other.remote)
        for kind, spent in other.flops.items():
            self.flops[kind] = self.flops.get(kind, 0.0) + spent
        for part, spent in other.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + spent
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON-ready values, `equivalent_rows` included.

        Without what depends on the calls that came before (`checked_rows`, `probes`, and FLOPs,
        into whose counts features of prompts come that a reward may have had already).
        """
        found = {**asdict(self), "equivalent_rows": self.equivalent_rows}
        past = ("checked_rows", "probes", "flops", "plain_flops")
        return {k: v for k, v in found.items() if k not in past}
