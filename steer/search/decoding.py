"""Latents to images during a search, written into its ledger."""

from __future__ import annotations

from torch import Tensor

from steer.core.ledger import Ledger
from steer.driver.model import Model


def decode(model: Model, ledger: Ledger, latents: Tensor, grad: bool) -> Tensor:
    """By the pipeline's own decoder."""
    ledger.decodes += len(latents)
    with ledger.clock("decode"):
        return model.decode(latents, grad)


def preview(model: Model, ledger: Ledger, latents: Tensor, grad: bool) -> Tensor:
    """By the decoder of previews; what that had the pipeline's own decode counts as decodes."""
    decoder = model.previewer
    if decoder is None:
        return decode(model, ledger, latents, grad)
    before = decoder.decodes
    with ledger.clock("preview"):
        images = model.decode(latents, grad, decoder)
    ledger.previews += len(latents)
    ledger.decodes += decoder.decodes - before
    return images
