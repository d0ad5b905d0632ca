"""Seeds of a call, read off the generator that the plain call would use."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from steer.core.seeds import row_seed
from steer.driver.solver_state import Generators


def call_seeds(generator: Generators, prompts: int, images: int, device: Any) -> tuple[int, ...]:
    """One seed per prompt, from the state of the generator that the plain call would use.

    With a list of generators every prompt's seed comes from its own one, so that a prompt gives
    the same images in a call of several prompts and in one alone. Without a generator the state of
    the device's global one is read, and not advanced, so that `torch.manual_seed` has effect.
    """
    if isinstance(generator, list) and len(generator) >= prompts * images:
        return tuple(_digest(generator[p * images].get_state()) for p in range(prompts))
    if isinstance(generator, list):
        generator = generator[0] if generator else None
    if generator is not None:
        state = generator.get_state()
    elif torch.device(device).type == "cuda":
        state = torch.cuda.get_rng_state(device)
    else:
        state = torch.get_rng_state()
    seed = _digest(state)
    return tuple(row_seed(seed, p) if p else seed for p in range(prompts))


def _digest(state: Tensor) -> int:
    content = state.cpu().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1
