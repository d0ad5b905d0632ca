"""Latents to images during a search, written into its ledger."""

from __future__ import annotations

from torch import Tensor

from steer.core.ledger import Ledger
from steer.core.meter import Meter
from steer.driver.model import Model


def decode(model: Model, ledger: Ledger, meter: Meter, latents: Tensor, grad: bool) -> Tensor:
    """By the pipeline's own decoder."""
    ledger.decodes += len(latents)
    with ledger.clock("decode"), meter.count("decode", len(latents)):
        return model.decode(latents, grad)


def preview(model: Model, ledger: Ledger, meter: Meter, latents: Tensor, grad: bool) -> Tensor:
    """By the decoder of previews, which is fitted first where it has to be."""
    if model.previewer is None:
        return decode(model, ledger, meter, latents, grad)
    fit(model, ledger, meter, latents)
    ledger.previews += len(latents)
    with ledger.clock("preview"), meter.count("preview", len(latents)):
        return model.decode(latents, grad, model.previewer)


def fit(model: Model, ledger: Ledger, meter: Meter, latents: Tensor) -> None:
    """Fit the decoder of previews to latents of this shape, unless that was done."""
    rows = model.unfitted(latents)
    if rows:
        ledger.decodes += rows
        with ledger.clock("decode"), meter.count("decode", rows):
            model.decode(latents[:1].detach(), by=model.previewer)
