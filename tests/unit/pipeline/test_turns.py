"""One guided call at a time on a pipeline: others wait, and a call inside a call is refused."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from families import arguments, build, redness, seeded
from torch import Tensor

from steer.core.errors import SteerError
from steer.methods import BestOfN
from steer.pipeline.guided import guided
from steer.pipeline.turns import turn


def together(*work: Callable[[], Any]) -> list[Any]:
    """What each of some functions returns or raises, run at the same time."""
    found: list[Any] = [None] * len(work)

    def do(place: int) -> None:
        try:
            found[place] = work[place]()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=do, args=(place,)) for place in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    return found


def call(wrapped: Any, prompt: str, seed: int) -> Callable[[], Tensor]:
    given = arguments("sd", prompt=prompt, num_inference_steps=3, height=16, width=16)
    return lambda: wrapped(**{**given, "generator": seeded(seed)}).images


WORK = [("a red circle", 1), ("a blue square", 2), ("two green rings", 3)]


def check_left_alone(pipe: Any, scheduler: Any) -> None:
    assert pipe.scheduler is scheduler
    assert not {"prepare_latents", "progress_bar", "scheduler"} & set(pipe.__dict__) - {"scheduler"}


def test_threads_on_one_pipeline_wait_and_change_nothing() -> None:
    pipe = build("sd")
    scheduler = pipe.scheduler
    wrapped = guided(pipe, redness, method=BestOfN(3))
    alone = [call(wrapped, *work)() for work in WORK]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            for found, wanted in zip(
                together(*(call(wrapped, *work) for work in WORK)), alone, strict=True
            ):
                assert torch.equal(found, wanted)
    check_left_alone(pipe, scheduler)


def test_two_pipelines_of_one_class_in_two_threads() -> None:
    pipes = [build("sd"), build("sd")]
    wrapped = [guided(pipe, redness, method=BestOfN(3)) for pipe in pipes]
    alone = [call(wrapped[0], *work)() for work in WORK[:2]]
    for _ in range(4):
        found = together(*(call(w, *work) for w, work in zip(wrapped, WORK[:2], strict=True)))
        for one, wanted in zip(found, alone, strict=True):
            assert torch.equal(one, wanted)


def test_pipelines_that_share_a_denoiser_wait_for_each_other() -> None:
    first = build("sd")
    second = StableDiffusionPipeline(**first.components, requires_safety_checker=False)
    running, most = 0, 0

    def watched(images: Tensor, prompts: Sequence[str]) -> Tensor:
        nonlocal running, most
        running += 1
        most = max(most, running)
        threading.Event().wait(0.02)
        running -= 1
        return redness(images, prompts)

    second.set_progress_bar_config(disable=True)
    wrapped = [guided(pipe, watched, method=BestOfN(3)) for pipe in (first, second)]
    found = together(*(call(w, *work) for w, work in zip(wrapped, WORK[:2], strict=True)))
    assert all(isinstance(images, Tensor) for images in found)
    assert most == 1


def test_a_call_inside_a_call_is_refused_in_one_sentence() -> None:
    pipe = build("sd")
    scheduler = pipe.scheduler

    def again(images: Tensor, prompts: Sequence[str]) -> Tensor:
        guided(pipe, redness, method=BestOfN(2))(**arguments("sd"))
        return redness(images, prompts)

    with pytest.raises(SteerError, match="StableDiffusionPipeline is in a guided call"):
        guided(pipe, again, method=BestOfN(2))(**arguments("sd"))
    check_left_alone(pipe, scheduler)


def test_a_call_inside_a_call_from_another_thread_does_not_hang() -> None:
    pipe = build("sd")

    def again(images: Tensor, prompts: Sequence[str]) -> Tensor:
        wrapped = guided(pipe, redness, method=BestOfN(2))
        asyncio.run(asyncio.to_thread(wrapped, **arguments("sd")))
        return redness(images, prompts)

    with pytest.raises(SteerError, match="in a guided call"):
        guided(pipe, again, method=BestOfN(2))(**arguments("sd"))


def test_another_pipeline_inside_a_call_is_fine() -> None:
    inner = guided(build("sd"), redness, method=BestOfN(2))

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        inner(**arguments("sd", num_inference_steps=2))
        return redness(images, prompts)

    out = guided(build("sd"), score, method=BestOfN(2))(**arguments("sd"))
    plain = guided(build("sd"), redness, method=BestOfN(2))(**arguments("sd"))
    assert out.rewards == plain.rewards


def test_the_plain_pipeline_inside_a_guided_call_is_refused() -> None:
    pipe = build("sd")
    scheduler = pipe.scheduler

    def again(images: Tensor, prompts: Sequence[str]) -> Tensor:
        pipe(**arguments("sd"))
        return redness(images, prompts)

    with pytest.raises(SteerError, match="is in a guided call"):
        guided(pipe, again, method=BestOfN(2))(**arguments("sd"))
    check_left_alone(pipe, scheduler)


def test_the_plain_pipeline_in_another_thread_is_refused() -> None:
    pipe = build("sd")
    begun, ended = threading.Event(), threading.Event()

    def slow(images: Tensor, prompts: Sequence[str]) -> Tensor:
        begun.set()
        ended.wait(60)
        return redness(images, prompts)

    def plain() -> Any:
        begun.wait(60)
        try:
            return call(pipe, *WORK[1])()
        finally:
            ended.set()

    steered = guided(pipe, slow, method=BestOfN(2))
    found, refused = together(call(steered, *WORK[0]), plain)
    assert isinstance(refused, SteerError)
    assert "in a guided call" in str(refused)
    expected = call(guided(pipe, redness, method=BestOfN(2)), *WORK[0])()
    assert torch.equal(found, expected)


def test_asyncio_to_thread() -> None:
    wrapped = guided(build("sd"), redness, method=BestOfN(2))
    alone = [call(wrapped, *work)() for work in WORK]

    async def all_of() -> list[Tensor]:
        return await asyncio.gather(*(asyncio.to_thread(call(wrapped, *work)) for work in WORK))

    for found, wanted in zip(asyncio.run(all_of()), alone, strict=True):
        assert torch.equal(found, wanted)


def test_a_turn_ends_with_an_error_and_is_no_ones_afterwards() -> None:
    pipe = build("sd")
    with pytest.raises(RuntimeError), turn(pipe):
        raise RuntimeError
    with turn(pipe):
        pass


def test_a_context_copied_inside_a_call_may_call_after_it() -> None:
    import contextvars

    pipe = build("sd")
    with turn(pipe):
        copied = contextvars.copy_context()

    def later() -> None:
        with turn(pipe):
            pass

    copied.run(later)


def test_pipelines_that_can_be_neither_hashed_nor_weakly_referenced() -> None:
    class Odd:
        __slots__ = ("scheduler",)
        __hash__ = None

    odd = Odd()
    with turn(odd), pytest.raises(SteerError, match="Odd is in a guided call"), turn(odd):
        pass
