"""The denoiser on the rows that are needed: what is cut, what comes back, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import arguments, build, redness
from torch import Tensor, nn

from steer.core.errors import PaddedLaneError
from steer.driver.denoisers.tensors import picked
from steer.driver.narrow import Narrow, can_narrow
from steer.methods import BestOfN, LookaheadGuidance, Prune
from steer.pipeline.guided import guided


class Product(nn.Module):
    """Latents times an embedding, both with one entry per row; keeps how many rows it saw."""

    def __init__(self, fixed: int | None = None) -> None:
        super().__init__()
        self.fixed, self.seen = fixed, []

    def forward(self, x: Tensor, embedding: Tensor, more: Any = None) -> tuple[Tensor]:
        if self.fixed not in (None, len(x)):
            raise RuntimeError("made for another batch")
        self.seen.append(len(x))
        return (x * embedding,)


class Pipe:
    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet


def asked(unet: nn.Module, slots: tuple[int, ...], **more: Any) -> tuple[Tensor, list[int]]:
    """A batch of null prompts and prompts of four rows each, and the checks that were counted."""
    counts: list[int] = []
    given = {"eager": True, "checked": {}, **more}
    narrow = Narrow(Pipe(unet), 4, lambda: slots, count=counts.append, **given)
    with narrow.installed():
        return unet(torch.arange(1.0, 9), torch.arange(8) * 10.0)[0], counts


def test_only_what_is_needed_is_asked_and_comes_back_in_its_place() -> None:
    unet = Product()
    exact = torch.arange(1.0, 9) * torch.arange(8) * 10
    found, counts = asked(unet, (1, 3), checked={unet: {(4, 8)}})
    assert unet.seen == [4] and counts == []
    assert found[[1, 3, 5, 7]].tolist() == exact[[1, 3, 5, 7]].tolist()
    assert len(found) == 8
    assert "forward" not in vars(unet)


def test_a_batch_is_checked_once() -> None:
    unet, checked = Product(), {}
    assert asked(unet, (), checked=checked)[1] == [1] and unet.seen == [8, 2]
    assert asked(unet, (), checked=checked)[1] == [] and unet.seen == [8, 2, 8]
    assert asked(unet, (2,), checked=checked)[1] == [] and unet.seen[3:] == [2]
    other = Product()
    assert asked(other, (2,))[1] == [4] and other.seen == [8, 2]
    assert asked(Product(), (), eager=False)[1] == []


@pytest.mark.parametrize(("slots", "recorded"), [((), [True, False]), ((1, 3), [False, True])])
def test_only_the_answer_is_recorded_and_not_what_it_is_held_against(
    slots: tuple[int, ...], recorded: list[bool]
) -> None:
    """Else a first call with a gradient would hold the graphs of two."""
    x = torch.arange(1.0, 9).requires_grad_()
    graphs: list[bool] = []

    class Watched(Product):
        def forward(self, x: Tensor, embedding: Tensor, more: Any = None) -> tuple[Tensor]:
            graphs.append(x.requires_grad and torch.is_grad_enabled())
            return super().forward(x, embedding)

    watched = Watched()
    narrow = Narrow(Pipe(watched), 4, lambda: slots, True, {}, count=lambda _: None)
    with narrow.installed():
        assert watched(x, torch.ones(8))[0].requires_grad
    assert graphs == recorded


class Mixed(Product):
    """Answers a row by all of them."""

    def forward(self, x: Tensor, embedding: Tensor, more: Any = None) -> tuple[Tensor]:
        return (x * embedding / x.norm(),)


@pytest.mark.parametrize("unet", [Product(fixed=8), Mixed()])
def test_who_depends_on_the_batch_is_refused(unet: nn.Module) -> None:
    with pytest.raises(PaddedLaneError, match="no narrower batches"):
        asked(unet, ())


class Cache:
    """What a denoiser keeps of its first call, for all rows."""


class Caching(Product):
    """Returns a cache beside its answer, or takes one."""

    def forward(self, x: Tensor, embedding: Tensor, more: Any = None) -> Any:
        return x * embedding, None if more else Cache()


def test_caches_are_refused() -> None:
    with pytest.raises(PaddedLaneError, match="returns a cache"):
        asked(Caching(), ())
    narrow = Narrow(Pipe(unet := Caching()), 4, lambda: (), True, {}, lambda rows: None)
    with narrow.installed(), pytest.raises(PaddedLaneError, match="given a cache"):
        unet(torch.arange(8.0), torch.arange(8.0), more=Cache())


def test_lists_with_one_entry_per_row_and_lists_of_batches() -> None:
    rows = [torch.full((3,), float(i)) for i in range(4)]
    assert [int(row[0]) for row in picked(rows, 4, [0, 2])] == [0, 2]
    assert picked([7, 8, 9, 6], 4, [3]) == [6]
    images = [torch.full((4, 2), float(i)) for i in range(4)]  # of as many channels as rows
    assert [int(image[0, 0]) for image in picked(images, 4, [0, 2], lists=True)] == [0, 2]
    one = ([torch.ones(3)],)  # an output of one list of one row
    assert len(picked(one, 1, [0, 0], lists=True)[0]) == 2
    residuals = tuple(torch.arange(4.0) for _ in range(4))
    assert [part.tolist() for part in picked(residuals, 4, [1])] == [[1.0]] * 4
    assert picked({"a": torch.arange(4), "b": None, "c": torch.ones(1)}, 4, [2])["a"].tolist() == [
        2
    ]


def test_compiled_denoisers_are_left_alone() -> None:
    pipe = Pipe(Product())
    assert can_narrow(pipe)
    pipe.unet.compile()
    assert not can_narrow(pipe)
    assert not can_narrow(Pipe(torch.compile(Product())))  # pyright: ignore[reportArgumentType]


@pytest.mark.sample
@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize(
    "method", [Prune(6, (3, 1), (0.25, 0.5)), LookaheadGuidance(2, lookaheads=5, through=2)]
)
def test_lanes_change_nothing_but_the_number_of_calls(family: str, method: Any) -> None:
    """Wide lanes cost the rows of lanes of one, in fewer calls; a second call checks nothing."""
    call = guided(build(family), redness, method=method)
    out, again = call(**arguments(family)), call(**arguments(family))
    alone = guided(build(family), redness, method=method, lane_width=1)(**arguments(family))
    torch.testing.assert_close(out.images, alone.images, rtol=1e-3, atol=1e-3)
    wide, narrow = out.report.ledger, alone.report.ledger
    assert wide.denoiser_rows == narrow.denoiser_rows == method.cost(out.report.steps)
    assert wide.denoiser_calls < narrow.denoiser_calls
    assert wide.checked_rows and not again.report.ledger.checked_rows
    assert torch.equal(again.images, out.images)


def test_a_survivor_alone_is_asked_as_in_the_plain_call() -> None:
    """Bit for bit: nothing but its own rows is in the denoiser's batch."""
    pipe = build("sd")
    method = LookaheadGuidance(1, lookaheads=4, through=2, strength=0)
    out = guided(pipe, redness, method=method)(**arguments("sd"))
    assert out.report.lane_width == 4
    assert torch.equal(out.images, build("sd")(**arguments("sd")).images)


def test_a_denoiser_that_needs_its_batch_runs_padded() -> None:
    """Found at the first call: the call begins again in lanes that divide every population."""
    pipe = build("sd")
    own = pipe.unet.forward

    def forward(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(sample) not in (4, 12):
            raise RuntimeError("made for these batches alone")
        return own(sample, *args, **kwargs)

    pipe.unet.forward = forward
    call = guided(pipe, redness, method=Prune(6, (2,), (0.5,)))
    out = call(**arguments("sd"))
    assert out.report.lane_width == 2 and out.report.ledger.checked_rows == 0
    expected = guided(build("sd"), redness, method=Prune(6, (2,), (0.5,)), lane_width=2)
    assert torch.equal(out.images, expected(**arguments("sd")).images)


def test_what_fitted_is_remembered() -> None:
    pipe = build("sd")

    def small(module: nn.Module, args: tuple[Any, ...]) -> None:
        if len(args[0]) > 4:
            raise torch.OutOfMemoryError("out of memory")

    pipe.unet.register_forward_pre_hook(small)
    call = guided(pipe, redness, method=BestOfN(8))
    with pytest.warns(UserWarning, match="half as wide"):
        assert call(**arguments("sd")).report.lane_width == 2
    out = call(**arguments("sd"))
    assert out.report.lane_width == 2 and not out.report.trace.of("memory")
