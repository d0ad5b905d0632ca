"""Threads on one pipeline, and on two of a class: the images of the calls alone."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from campaign_books import CALLS, Books
from families import arguments, build, redness, seeded

from steer.methods import SMC, BestOfN, NoiseSearch, Prune
from steer.pipeline.guided import guided


METHODS = (BestOfN(3), SMC(3), Prune(start=3, keep=(1,), at=(0.5,)), NoiseSearch(n=2, rounds=2))
ROUNDS = max(2, CALLS // 500)


@pytest.mark.parametrize("pipelines", [1, 2])
def test_threads(pipelines: int, books: Books) -> None:
    pipes = [build("sd") for _ in range(pipelines)]
    work = [(method, seed) for method in METHODS for seed in (1, 2)]
    given = arguments("sd", num_inference_steps=3)

    def call(number: int, pipe: Any) -> Any:
        method, seed = work[number]
        return guided(pipe, redness, method=method)(**{**given, "generator": seeded(seed)}).images

    alone = [call(number, pipes[0]) for number in range(len(work))]
    for turn in range(ROUNDS):
        numbers = [(turn + k) % len(work) for k in range(3)]
        found: dict[int, Any] = {}

        def do(place: int, number: int, found: dict[int, Any] = found) -> None:
            try:
                found[place] = call(number, pipes[place % pipelines])
            except Exception as error:
                found[place] = error

        threads = [
            threading.Thread(target=do, args=pair, daemon=True) for pair in enumerate(numbers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
            if thread.is_alive():
                books.found("hangs", f"threads on {pipelines} pipelines: {numbers}")
        for place, number in enumerate(numbers):
            books.did("calls in threads")
            if isinstance(found.get(place), Exception):
                books.found("tracebacks", f"thread: {found[place]!r}")
            elif not torch.equal(found[place], alone[number]):
                books.found("silently_wrong", f"thread: {work[number]} on {pipelines} pipelines")
        left = [
            name
            for pipe in pipes
            for name in ("prepare_latents", "progress_bar")
            if name in vars(pipe)
        ]
        if left:
            books.found("silently_wrong", f"threads leave {left}")
    books.check()
