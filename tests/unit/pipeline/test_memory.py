"""Memory that is short: half the lane, the same result, and then the numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from families import arguments, build, redness, seeded

from steer.core.errors import OutOfMemoryError, SteerError
from steer.core.shortage import is_shortage
from steer.methods import SMC, BestOfN, Prune
from steer.pipeline.guided import guided


def on_cuda(rows: int) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


def on_the_host(rows: int) -> None:
    torch.empty(1 << 55)


@contextmanager
def small(pipe: Any, most: int, fail: Any = on_cuda, after: int = 0) -> Iterator[list[int]]:
    """A denoiser whose memory holds `most` rows, from its `after`-th call on; rows it was given."""
    seen: list[int] = []

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(len(args[0]))
        if len(args[0]) > most and len(seen) > after:
            fail(len(args[0]))

    hook = pipe.unet.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def test_what_counts_as_a_shortage() -> None:
    for fail in (on_cuda, on_the_host):
        with pytest.raises(RuntimeError) as caught:
            fail(1)
        assert is_shortage(caught.value), caught.value
    assert is_shortage(RuntimeError("CUDA error: out of memory"))
    assert is_shortage(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"))
    assert not is_shortage(RuntimeError("shapes do not match"))
    assert not is_shortage(ValueError("out of memory"))


@pytest.mark.sample
@pytest.mark.parametrize("method", [BestOfN(4), SMC(4), Prune(start=4, keep=(2,), at=(0.5,))])
@pytest.mark.parametrize("fail", [on_cuda, on_the_host])
def test_half_the_lane_gives_the_same_result(method: Any, fail: Any) -> None:
    """Bit for bit what the call gives that is asked for half the lane at once."""
    width = guided(build("sd", "euler_a"), redness, method=method)(
        **arguments("sd")
    ).report.lane_width
    expected = guided(build("sd", "euler_a"), redness, method=method, lane_width=width // 2)(
        **arguments("sd")
    )
    pipe = build("sd", "euler_a")
    with small(pipe, width, fail, after=2), pytest.warns(UserWarning, match="half as wide a lane"):
        out = guided(pipe, redness, method=method)(**arguments("sd"))
    assert torch.equal(out.images, expected.images)
    assert out.rewards == expected.rewards
    assert out.report.chosen == expected.report.chosen
    assert out.report.lane_width == width // 2


def test_what_the_first_attempt_cost_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """The ledger agrees with the rows that the denoiser saw come and go."""
    pipe = build("sd")
    caplog.set_level(logging.WARNING, "steer")
    with small(pipe, 4, after=2) as seen, pytest.warns(UserWarning):
        out = guided(pipe, redness, method=BestOfN(4), lane_width=4)(**arguments("sd"))
    (event,) = out.report.trace.of("memory")
    assert event["lane_width"] == 2 and event["rows"] == 2 * 4
    assert seen[:3] == [8, 8, 8] and set(seen[3:]) == {4}
    finished = sum(seen) - seen[2]  # the third call never ended
    assert out.report.ledger.denoiser_rows * out.report.ledger.cfg_rows == finished
    assert "width=2" in caplog.text and "Tried to allocate 2.00 GiB" in caplog.text


def test_no_generator_draws_the_same_again() -> None:
    """The global generator is put back before the second attempt, and advanced as by a call."""
    outs, states = [], []
    for most in (100, 4):
        pipe = build("sd", "euler_a")
        torch.manual_seed(3)
        call = guided(pipe, redness, method=BestOfN(4), lane_width=2 if most == 100 else 4)
        with small(pipe, most):
            outs.append(_quietly(call, **arguments("sd", generator=None)))
        states.append(torch.get_rng_state())
    assert torch.equal(outs[0].images, outs[1].images)
    assert torch.equal(*states)


def test_generators_as_a_list() -> None:
    given = arguments("sd", prompt=["a", "b"])
    pipe = build("sd", "euler_a")
    fresh = lambda: [seeded(1), seeded(2)]  # noqa: E731
    expected = guided(pipe, redness, method=BestOfN(2), lane_width=1)(
        **{**given, "generator": fresh()}
    )
    with small(pipe, 4):
        out = _quietly(guided(pipe, redness, method=BestOfN(2)), **{**given, "generator": fresh()})
    assert torch.equal(out.images, expected.images)


@pytest.mark.parametrize(("width", "tried"), [(1, "width 1"), (4, "width 1.*width 4.*width 2")])
def test_then_the_numbers(width: int, tried: str) -> None:
    pipe = build("sd")
    kept = pipe.scheduler
    call = guided(pipe, redness, method=BestOfN(4), lane_width=width)
    with small(pipe, 1, after=3), pytest.raises(OutOfMemoryError, match=tried) as caught:
        _quietly(call, **arguments("sd", prompt=["a", "b"]))
    text = str(caught.value)
    for words in ("2 rows", "2 prompts", "16x16", "4x8x8", "2.00 GiB", "one prompt"):
        assert words in text, words
    assert isinstance(caught.value, SteerError | MemoryError)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert pipe.scheduler is kept


def test_other_errors_are_no_shortage() -> None:
    def fail(rows: int) -> None:
        raise RuntimeError("shapes do not match")

    pipe = build("sd")
    with small(pipe, 1, fail) as seen, pytest.raises(RuntimeError, match="shapes do not match"):
        guided(pipe, redness, method=BestOfN(4))(**arguments("sd"))
    assert seen == [8, 2]  # once more in a lane of the call's own size, then it is the user's


def _quietly(call: Any, **given: Any) -> Any:
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        return call(**given)
