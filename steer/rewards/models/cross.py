"""Layers in which an image's tokens look at a prompt's, as MPS has them.

In pairs: attention of the image to the prompt, then of the image to itself, each with a
feed-forward beside it, and one key and value for all heads (as PaLM, arXiv:2204.02311). Names are
the published checkpoint's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossTower(nn.Module):
    """Pairs of layers.

    Args:
        width: Of the tokens.
        layers: Pairs.
        heads: Of every attention.
        head_width: Of a head.
    """

    def __init__(self, width: int, layers: int, heads: int, head_width: int) -> None:
        super().__init__()
        pairs = [
            nn.ModuleList(
                [
                    Residual(CrossLayer(width, heads, head_width)),
                    Residual(SelfLayer(width, heads, head_width)),
                ]
            )
            for _ in range(layers)
        ]
        self.layers = nn.ModuleList(pairs)

    def forward(self, image: Tensor, words: Tensor, seen: Tensor) -> Tensor:
        """`(B, N, D)` tokens after they looked at `(B, T, D)` words where `(B, T)` `seen` is."""
        for pair in self.layers:
            cross, own = pair  # type: ignore[misc] # a ModuleList
            image = own(cross(image, words, seen))
        return image


class Residual(nn.Module):
    """`x + fn(x, ...)`.

    Args:
        fn: The layer.
    """

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return x + self.fn(x, *others)


class Gated(nn.Module):
    """`silu(second half) * first half`."""

    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * x


class CrossLayer(nn.Module):
    """Attention to the prompt, and a feed-forward beside it.

    Args:
        width: Of the tokens.
        heads: Of the attention.
        head_width: Of a head.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 8 * width, bias=False),
            Gated(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, image: Tensor, words: Tensor, seen: Tensor) -> Tensor:
        """`(B, N, D)`; see `CrossTower`."""
        image = self.norm(image)
        keys, values = self.to_kv(words).chunk(2, dim=-1)
        read = _attend(self.to_q(image), keys, values, self.heads, seen[:, None, None])
        return self.to_out(read) + self.ff(image)


class SelfLayer(nn.Module):
    """Attention of the image to itself with rotary positions, and a feed-forward beside it.

    Args:
        width: Of the tokens.
        heads: Of the attention.
        head_width: Of a head.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.parts = (heads * head_width, head_width, head_width, 8 * width)
        self.norm = nn.LayerNorm(width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(heads * head_width, width, bias=False)
        self.ff_out = nn.Sequential(Gated(), nn.Linear(4 * width, width, bias=False))
        self.rotary_emb = nn.Module()
        steps = torch.arange(0, head_width, 2) / head_width
        self.rotary_emb.register_buffer("inv_freq", 10000.0**-steps)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, N, D)`."""
        queries, keys, values, inner = self.fused_attn_ff_proj(self.norm(image)).split(
            self.parts, dim=-1
        )
        turned = self._turn(queries.unflatten(-1, (self.heads, -1)).transpose(1, 2))
        read = _attend(turned.transpose(1, 2).flatten(2), self._turn(keys), values, self.heads)
        return self.attn_out(read) + self.ff_out(inner)

    def _turn(self, x: Tensor) -> Tensor:
        """`(..., N, d)` turned by its position."""
        frequencies: Tensor = self.rotary_emb.get_buffer("inv_freq")
        places = torch.arange(x.shape[-2], device=x.device, dtype=frequencies.dtype)
        angles = torch.outer(places, frequencies).repeat(1, 2).to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, heads: int, seen: Tensor | None = None
) -> Tensor:
    """`(B, N, heads * d)` queries on `(B, T, d)` keys and values that all heads share."""
    split = queries.unflatten(-1, (heads, -1)).transpose(1, 2)
    shared = [part[:, None].expand(-1, heads, -1, -1) for part in (keys, values)]
    return F.scaled_dot_product_attention(split, *shared, attn_mask=seen).transpose(1, 2).flatten(2)
