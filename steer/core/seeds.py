"""Seeds: the three rules by which a prompt gets its own, and one rule for everything else.

| rule | seed | for |
|---|---|---|
| `prompt_seed` | `seed + index` | `steer sample`: one number makes the image again, anywhere |
| `pair_seed` | hash of (seed, index) | `steer compare`: no two of prompts x seeds share noise |
| `text_seed` | hash of (seed, text, number) | `steer tune data`: prompts may change places |

Within a call, prompts, particles and steps draw from `row_seed` of their prompt's seed.
"""

from __future__ import annotations

import hashlib


def prompt_seed(seed: int, index: int) -> int:
    """`seed + index`: the seed of prompt `index` in a list, whatever else the list holds."""
    return seed + index


def pair_seed(seed: int, index: int) -> int:
    """A 63-bit seed of (seed, prompt index); unlike a sum, no two pairs share one."""
    return row_seed(seed, index)


def text_seed(seed: int, text: str, number: int) -> int:
    """A 48-bit seed of a prompt's `number`-th sample, whatever else is in the set."""
    digest = hashlib.blake2b(repr((seed, text, number)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 16


def row_seed(seed: int, *name: int) -> int:
    """A 63-bit seed from (seed, *name), the same on every machine and Python version."""
    digest = hashlib.blake2b(repr((seed, *name)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
