"""Seeds: one rule for prompts, one for everything else."""

from __future__ import annotations

import hashlib


def prompt_seed(seed: int, index: int) -> int:
    """The seed of prompt `index`: `seed + index`, whatever else the run holds."""
    return seed + index


def row_seed(seed: int, *name: int) -> int:
    """A 63-bit seed from (seed, *name), the same on every machine and Python version."""
    digest = hashlib.blake2b(repr((seed, *name)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
