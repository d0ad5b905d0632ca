"""FLOPs of denoiser, decoder and reward: counted by torch once, then known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from steer.core.costs import Costs
from steer.core.ledger import Ledger


Kind: TypeAlias = Literal["row", "decode", "preview", "score", "row_backward", "gradient", "probe"]
"""What is counted; `"probe"` is there once decodes and scores were counted for a plan."""

_UNSEEN = 2  # a backward pass that was never counted, in forward passes


_FLASH = "_scaled_dot_product_flash_attention"
_ON_THE_CPU = {  # operations that torch's table has for GPUs alone
    getattr(torch.ops.aten, f"{_FLASH}_for_cpu{end}"): getattr(torch.ops.aten, f"{_FLASH}{end}")
    for end in ("", "_backward")
}


class FlopCounter(TorchDispatchMode):
    """Counts floating-point operations inside, by torch's own table (`torch.utils.flop_counter`).

    Torch's `FlopCounterMode` also follows modules, by hooks which change results where gradients
    are taken.

    Attributes:
        total: Operations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        kind = getattr(func, "_overloadpacket", func)
        formula = flop_registry.get(_ON_THE_CPU.get(kind, kind))
        if formula is None and torch.is_inference_mode_enabled():
            with self:
                parts = func.decompose(*args, **given)
            if parts is not NotImplemented:
                return parts
        found = func(*args, **given)
        if formula is not None:
            self.total += formula(*args, **given, out_val=found)
        return found


@dataclass(eq=False)
class Meter:
    """What one of each costs on a pipeline, and what a call has spent of it.

    Attributes:
        ledger: Where FLOPs are added up, by kind.
        known: FLOPs of one of each kind; calls of the same pipeline, size and reward share it.
        counts: Whether operations are counted at all: not where modules are compiled, which a
            counter would make run uncompiled.
    """

    ledger: Ledger = field(default_factory=Ledger)
    known: MutableMapping[Kind, float] = field(default_factory=dict)
    counts: bool = False

    @contextmanager
    def count(self, kind: Kind, number: int) -> Iterator[None]:
        """What happens inside is `number` of a kind; operations are counted the first time."""
        if kind in self.known or not self.counts or not number:
            yield
        else:
            with FlopCounter() as counter:
                yield
            self.known[kind] = counter.total / number
        self.spend(kind, number)

    def spend(self, kind: Kind, number: int) -> None:
        """Add what `number` of a kind cost to the ledger, where that is known."""
        cost = self.known.get(kind, 0.0) * number
        if cost:
            self.ledger.flops[kind] = self.ledger.flops.get(kind, 0.0) + cost

    @property
    def costs(self) -> Costs | None:
        """What one of each costs; `None` where a denoiser row's is unknown.

        Backward passes that were never counted are taken for twice their forward pass: an upper
        bound, since weights are frozen. What is unknown otherwise counts nothing.
        """
        row = self.known.get("row", 0.0)
        if not row:
            return None
        decode, score = self.known.get("decode", 0.0), self.known.get("score", 0.0)
        preview = self.known.get("preview", decode)
        return Costs(
            row=row,
            decode=decode,
            preview=preview,
            score=score,
            row_backward=self.known.get("row_backward", _UNSEEN * row),
            gradient=self.known.get("gradient", _UNSEEN * (preview + score)),
            unit="flops",
        )
